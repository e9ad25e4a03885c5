"""Whether my_policy.Loudest is what it says, before an hour is spent on it. Copy this file and put your own class in.

    pytest test_my_policy.py

`recurrence` is the definition, token by token; `scan` is what runs. Both say which tokens were kept after every step.
"""

import pytest
import torch
from my_policy import Loudest

import msrnn_bench as mb

POLICY = Loudest()
TOKENS, K = 120, 24  # K at least as large as the number of protected states


@pytest.fixture
def qkv():
    """Queries of 4 heads, keys and values of 2, as a layer has them; spread, so that attention is peaked."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, heads, TOKENS, 16) for heads in (4, 2, 2)]
    return [2 * torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


def test_the_fast_way_is_the_definition(qkv):
    slow, one = mb.recurrence(*qkv, policy=POLICY, state_size=K, trace=True)
    fast, two = mb.scan(*qkv, policy=POLICY, state_size=K, trace=True)
    assert torch.equal(one.trace, two.trace), "other states were kept"
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [TOKENS, TOKENS + 10])
def test_while_there_is_room_nothing_leaves(qkv, size):
    out, state = mb.scan(*qkv, policy=POLICY, state_size=size)
    plain = torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
    assert (state.evictions == 0).all()
    torch.testing.assert_close(out, plain, atol=1e-12, rtol=0)


def test_exactly_what_is_due_leaves(qkv):
    _, state = mb.scan(*qkv, policy=POLICY, state_size=K, trace=True)
    assert (state.evictions == TOKENS - K).all() and (state.first_eviction == K).all()
    assert max(state.largest) == K
    recent = range(TOKENS - POLICY.recent, TOKENS)
    for kept in state.trace[:, :, -1].flatten(0, 1).tolist():  # after the last step
        assert len(set(kept)) == K and set(recent) <= set(kept), "a protected state has left"


def test_the_size_of_the_pieces_does_not_matter(qkv):
    """In pieces, with the state carried on, as a long text is."""
    whole, _ = mb.scan(*qkv, policy=POLICY, state_size=K)
    state, parts = None, []
    for at in range(0, TOKENS, 50):
        out, state = mb.scan(*(x[:, :, at : at + 50] for x in qkv), policy=POLICY, state_size=K, state=state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("other", [mb.Tova(), mb.Tova(per="head"), mb.Window(), mb.H2O(recent=8)], ids=lambda p: p.name)
def test_it_is_not_another_policy_by_mistake(qkv, other):
    _, ours = mb.scan(*qkv, policy=POLICY, state_size=K, trace=True)
    _, theirs = mb.scan(*qkv, policy=other, state_size=K, trace=True)
    assert not torch.equal(ours.trace, theirs.trace[:, :1])


def test_its_settings_do_something(qkv):
    kept = [mb.scan(*qkv, policy=Loudest(fade=fade), state_size=K, trace=True)[1].trace for fade in (0.0, 0.5, 0.9)]
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[1], kept[2])

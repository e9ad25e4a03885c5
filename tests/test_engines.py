"""The scan against the recurrence, both against the invariants that every policy owes; no model involved."""

import pytest
import torch
from conftest import evicting, policies

import msrnn_bench as mb
from msrnn_bench.multistate import scan as scan_module
from msrnn_bench.multistate.recurrence import recurrence
from msrnn_bench.multistate.scan import scan

ENGINES = {"recurrence": recurrence, "scan": scan}


def inputs(batch=1, heads=4, groups=2, tokens=150, size=8, dtype=torch.float64, spread=2.0):
    shapes = (batch, heads, tokens, size), (batch, groups, tokens, size), (batch, groups, tokens, size)
    q, k, v = (torch.randn(s, dtype=torch.float64) * spread for s in shapes)
    return q.to(dtype), k.to(dtype), v.to(dtype)


class Loudest(mb.Policy):
    """A user's policy: the state whose loudest head is quietest leaves."""

    def score(self, *, attention, keys, values, positions, query_position, previous, layer):
        assert torch.equal(positions.sort(-1).values, positions)
        assert attention.shape[-1] == keys.shape[2] == values.shape[2] == positions.shape[-1] == previous.shape[-1]
        return attention.amax(dim=1, keepdim=True) + 0.5 * previous


class Older(mb.Policy):
    """Per head: the norm of the key, minus a little for age."""

    per = "head"
    first = 1

    def score(self, *, attention, keys, values, positions, query_position, previous, layer):
        return keys.norm(dim=-1) - 0.01 * (query_position[:, None, None] - positions)


def every_policy():
    return {**policies(), "loudest": Loudest(), "older": Older()}


@pytest.mark.parametrize("name", every_policy())
@pytest.mark.parametrize(("tokens", "size"), [(150, 1), (150, 7), (131, 16), (200, 70), (63, 64), (90, 300)])
def test_scan_is_the_recurrence(name, tokens, size):
    policy = every_policy()[name]
    if policy.first > size:
        with pytest.raises(mb.UsageError, match="first"):
            policy.rule(size)
        return
    q, k, v = inputs(batch=2, tokens=tokens)
    slow, slow_state = recurrence(q, k, v, policy=policy, state_size=size, trace=True)
    fast, fast_state = scan(q, k, v, policy=policy, state_size=size, trace=True)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    assert torch.equal(fast_state.trace, slow_state.trace)
    assert torch.equal(fast_state.evictions, slow_state.evictions)
    assert torch.equal(fast_state.first_eviction, slow_state.first_eviction)
    assert fast_state.largest == slow_state.largest


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", every_policy())
def test_invariants(name, engine):
    policy, run, size, tokens = every_policy()[name], ENGINES[engine], 12, 100
    q, k, v = inputs(batch=2, tokens=tokens)
    out, state = run(q, k, v, policy=policy, state_size=size, trace=True)
    again, _ = run(q, k, v, policy=policy, state_size=size)
    assert torch.equal(out, again)
    full, _ = run(q, k, v, policy=policy, state_size=tokens)
    torch.testing.assert_close(full, causal(q, k, v), atol=1e-12, rtol=0)
    alone, _ = run(q[1:], k[1:], v[1:], policy=policy, state_size=size)
    torch.testing.assert_close(alone[0], out[1], atol=1e-12, rtol=0)
    if not policy.evicts:
        return
    kept = state.trace  # [B, P, T, k]
    alive = kept >= 0
    assert int(alive.sum(-1).max()) == size == max(state.largest)
    assert (state.evictions == tokens - size).all()
    assert (state.first_eviction == size).all()
    for b in range(kept.shape[0]):
        for p in range(kept.shape[1]):
            before: set[int] = set()
            lifetime = 0
            for t in range(tokens):
                now = set(kept[b, p, t][alive[b, p, t]].tolist())
                assert now <= before | {t}, "an evicted state came back"
                lifetime += len(before | {t})
                before = now
            assert lifetime == sum(min(t + 1, size + 1) for t in range(tokens))
            protected = set(range(policy.first)) | set(range(tokens - policy.rule(size).recent, tokens))
            assert protected <= before


def causal(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", every_policy())
def test_a_split_call_is_one_call(name, engine):
    policy, run, size = every_policy()[name], ENGINES[engine], 20
    q, k, v = inputs(tokens=170)
    whole, end = run(q, k, v, policy=policy, state_size=size)
    parts, state = [], None
    for begin, stop in ((0, 1), (1, 10), (10, 95), (95, 96), (96, 170)):
        here = slice(begin, stop)
        part, state = run(q[:, :, here], k[:, :, here], v[:, :, here], policy=policy, state_size=size, state=state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-12, rtol=0)
    assert torch.equal(state.kept()[0], end.kept()[0])
    assert torch.equal(state.evictions, end.evictions)
    assert torch.equal(state.first_eviction, end.first_eviction)


@pytest.mark.parametrize("name", evicting())
def test_engines_take_each_others_states(name):
    policy, size = policies()[name], 20
    q, k, v = inputs(tokens=120)
    whole, _ = recurrence(q, k, v, policy=policy, state_size=size)
    for first, second in ((recurrence, scan), (scan, recurrence)):
        a, state = first(q[:, :, :70], k[:, :, :70], v[:, :, :70], policy=policy, state_size=size)
        b, _ = second(q[:, :, 70:], k[:, :, 70:], v[:, :, 70:], policy=policy, state_size=size, state=state)
        torch.testing.assert_close(torch.cat([a, b], dim=2), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", every_policy())
def test_padded_rows_get_what_they_get_alone(name, engine):
    policy, run, size, tokens = every_policy()[name], ENGINES[engine], 16, 90
    q, k, v = inputs(batch=3, tokens=tokens)
    padding = torch.ones(3, tokens, dtype=torch.bool)
    padding[0, :40] = False  # left
    padding[1, 75:] = False  # right
    out, state = run(q, k, v, policy=policy, state_size=size, padding=padding)
    assert state.seen == [50, 75, 90]
    assert (out[0, :, :40] == 0).all()
    more = inputs(batch=3, tokens=30)
    later, state = run(*more, policy=policy, state_size=size, state=state)
    for row in range(3):
        real = padding[row]
        alone, one = run(*(x[row : row + 1, :, real] for x in (q, k, v)), policy=policy, state_size=size)
        torch.testing.assert_close(out[row][:, real], alone[0], atol=1e-12, rtol=0)
        then, one = run(*(x[row : row + 1] for x in more), policy=policy, state_size=size, state=one)
        torch.testing.assert_close(later[row], then[0], atol=1e-12, rtol=0)
        assert torch.equal(state.kept()[row], one.kept()[0])


@pytest.mark.parametrize("name", evicting())
def test_torch_path_is_the_compiled_path(name, monkeypatch):
    policy, size = policies()[name], 20
    q, k, v = inputs(batch=2, tokens=150)
    compiled, one = scan(q, k, v, policy=policy, state_size=size, trace=True)
    monkeypatch.setattr(scan_module, "_compiled", lambda q, rule: False)
    plain, two = scan(q, k, v, policy=policy, state_size=size, trace=True)
    torch.testing.assert_close(plain, compiled, atol=1e-12, rtol=0)
    assert torch.equal(one.trace, two.trace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", evicting())
def test_low_precision(name, dtype):
    """Scores are float32 whatever the model's dtype, so both engines choose alike but for rare near-ties."""
    policy, size = policies()[name], 32
    q, k, v = inputs(tokens=200, dtype=dtype)
    slow, one = recurrence(q, k, v, policy=policy, state_size=size, trace=True)
    fast, two = scan(q, k, v, policy=policy, state_size=size, trace=True)
    assert fast.dtype == dtype and two.scores.dtype == torch.float32 and two.keys.dtype == dtype
    same = (one.trace == two.trace).all(-1).double().mean().item()
    assert same > 0.95, f"only {same:.1%} of the steps keep the same states"
    if same == 1:
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
        torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)


def test_closed_form():
    """Four tokens, k = 2, weights that can be done by hand: token 1 leaves, then the newest, 3, itself."""
    log = torch.log
    wanted = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.2, 0.3, 0], [0.6, 0, 0.3, 0.1]], dtype=torch.float64)
    # With q = the rows of log-weights and k = unit vectors, the logits are the logs of the weights wanted.
    q = log(wanted.clamp(min=1e-30))[None, None]
    k = torch.eye(4, dtype=torch.float64)[None, None]
    v = torch.tensor([[1.0], [10.0], [100.0], [1000.0]], dtype=torch.float64).expand(4, 4)[None, None]
    for run in ENGINES.values():
        out, state = run(q, k, v, policy=mb.Tova(), state_size=2, scale=1.0, trace=True)
        torch.testing.assert_close(out[0, 0, :, 0], torch.tensor([1.0, 5.5, 32.5, 130.6], dtype=torch.float64))
        assert state.trace[0, 0].tolist() == [[0, -1], [0, 1], [0, 2], [0, 2]]


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_go_to_the_oldest(engine):
    q, k, v = torch.zeros(1, 1, 80, 4), torch.zeros(1, 1, 80, 4), torch.randn(1, 1, 80, 4)
    _, state = ENGINES[engine](q, k, v, policy=mb.Tova(), state_size=5)
    assert state.kept()[0].tolist() == [[75, 76, 77, 78, 79]]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dead_state_with_a_huge_logit_leaves_no_trace(engine):
    """A state that left in this block may have a logit so large that the block's softmax underflows for the rest."""
    q, k, v = inputs(tokens=140, heads=2, groups=1, dtype=torch.float32)
    k[:, :, 70] = 0
    q[..., 0] = 0
    q[:, :, 80:, 0] = 60
    k[..., 0] = 0
    k[:, :, 70, 0] = 60  # invisible until step 80, then overwhelming; a window of 8 has dropped it by then
    window = mb.Eviction(memory=0.0, first=0, recent=7)
    out, state = ENGINES[engine](q, k, v, policy=window, state_size=8)
    assert torch.isfinite(out).all()
    exact, _ = recurrence(q.double(), k.double(), v.double(), policy=window, state_size=8)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=0)


def test_random_is_uniform_and_counter_based():
    q, k, v = inputs(batch=2, tokens=400)
    policy = mb.Random(seed=3)
    _, a = scan(q, k, v, policy=policy, state_size=40, trace=True)
    assert torch.equal(a.trace[0], a.trace[1]), "rows of the same document draw alike"
    b = scan_module.State(documents=(5, 6))
    _, b = scan(q, k, v, policy=policy, state_size=40, state=b, trace=True)
    assert not torch.equal(b.trace[0], b.trace[1])
    age = 400 - a.kept()[0].double().mean().item()
    assert 25 < age < 60, "a state's age is geometric with mean k"


def test_user_policy_with_a_wrong_answer():
    class Wrong(mb.Policy):
        def score(self, *, attention, **_):
            return attention

    q, k, v = inputs()
    for run in ENGINES.values():
        with pytest.raises(mb.UsageError, match="must return a tensor of shape"):
            run(q, k, v, policy=Wrong(), state_size=8)


@pytest.mark.parametrize(
    ("policy", "size", "message"),
    [
        (mb.Tova(), 0, "at least 1"), (mb.Tova(first=9), 8, "protect 9"), (mb.H2O(recent=9), 8, "protect"),
        (mb.Window(first=9), 8, "first"), (mb.Eviction(first=5, recent=5), 8, "5 . 5"),
    ],
)  # fmt: skip
def test_refusals(policy, size, message):
    with pytest.raises(mb.UsageError, match=message):
        policy.rule(size)


def test_memory_out_of_range():
    with pytest.raises(mb.UsageError, match="memory"):
        mb.Eviction(memory=1.5)


def test_names_say_the_knobs():
    assert {name: policy.name for name, policy in policies().items() if name != "eviction"} == {
        name: name for name in policies() if name != "eviction"
    }
    assert mb.Tova(memory=0.5).name == "eviction(memory=0.5,first=0,recent=0,per=layer)"
    assert Loudest().name == "loudest"

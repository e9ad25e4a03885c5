"""When each state left: against the trace of the definition, in both engines, in pieces, batches, forks and while writing."""

import pytest
import torch
from conftest import policies, tiny
from test_engines import ENGINES, every_policy, inputs

import msrnn_bench as mb
from msrnn_bench.multistate.naming import carried
from msrnn_bench.multistate.recurrence import recurrence
from msrnn_bench.multistate.rows import stack
from msrnn_bench.multistate.scan import scan
from msrnn_bench.multistate.state import State


def recording(documents=None):
    """An empty state that is asked to keep deaths."""
    return State(documents=documents, deaths=torch.empty(0, dtype=torch.int64))


def from_trace(trace):
    """[B, P, T]: the first step after its own at which a token is not among the positions kept, -1 where there is none."""
    batch, deciders, steps, _ = trace.shape
    deaths = torch.full((batch, deciders, steps), -1)
    for b in range(batch):
        for p in range(deciders):
            before: set[int] = set()
            for t in range(steps):
                kept = set(trace[b, p, t].tolist()) - {-1}
                for gone in (before | {t}) - kept:
                    deaths[b, p, gone] = t
                before = kept
    return deaths


SIZES = [(name, size) for name, policy in every_policy().items() for size in (1, 16, 70) if policy.first <= size]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_deaths_are_the_definitions_trace(name, engine, size):
    policy = every_policy()[name]
    q, k, v = inputs(batch=2, tokens=150)
    _, wanted = recurrence(q, k, v, policy=policy, state_size=size, trace=True, state=State(documents=(3, 8)))
    out, state = ENGINES[engine](q, k, v, policy=policy, state_size=size, state=recording((3, 8)))
    plain, off = ENGINES[engine](q, k, v, policy=policy, state_size=size, state=State(documents=(3, 8)))
    assert torch.equal(state.deaths, from_trace(wanted.trace))
    assert off.deaths is None and torch.equal(out, plain) and torch.equal(state.positions, off.positions)
    assert ((state.deaths >= 0).sum(-1) == state.evictions).all()


@pytest.mark.parametrize("name", ["tova", "tova_head", "h2o", "window4", "random"])
def test_pieces_and_single_tokens_go_on_counting(name):
    policy, size = policies()[name], 20
    q, k, v = inputs(batch=2, tokens=130)
    _, whole = scan(q, k, v, policy=policy, state_size=size, state=recording())
    state = recording()
    for at, end in [(0, 7), (7, 64), (64, 65), (65, 66), (66, 70), *((n, n + 1) for n in range(70, 130))]:
        _, state = scan(*(x[:, :, at:end] for x in (q, k, v)), policy=policy, state_size=size, state=state)
    assert torch.equal(state.deaths[..., :130], whole.deaths) and (state.deaths[..., 130:] == -2).all()


def test_rows_of_a_padded_batch_and_a_stack_have_lengths_of_their_own():
    policy, size, real = mb.Tova(), 10, [40, 25, 0]
    q, k, v = inputs(batch=3, tokens=40)
    padding = torch.stack([torch.arange(40) >= 40 - n for n in real])
    _, state = scan(q, k, v, policy=policy, state_size=size, state=recording(), padding=padding)
    alone = [scan(*(x[b : b + 1, :, 40 - n :] for x in (q, k, v)), policy=policy, state_size=size, state=recording())[1]
             for b, n in enumerate(real) if n]  # fmt: skip
    for b, one in enumerate(alone):
        assert torch.equal(state.deaths[b, :, : real[b]], one.deaths[0])
    assert (state.deaths[1, :, 25:] == -2).all() and (state.deaths[2] == -2).all()
    joined = stack([one.fork() for one in alone]).select([1, 0])
    more = inputs(batch=2, tokens=5)
    for t in range(5):
        _, joined = scan(*(x[:, :, t : t + 1] for x in more), policy=policy, state_size=size, state=joined)
    for b, one in enumerate(reversed(alone)):
        _, after = scan(*(x[b : b + 1] for x in more), policy=policy, state_size=size, state=one)
        assert torch.equal(joined.deaths[b, :, : after.seen[0]], after.deaths[0, :, : after.seen[0]])
        assert (joined.deaths[b, :, after.seen[0] :] == -2).all()


@pytest.mark.parametrize("name", ["tova", "h2o", "window1", "random"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_models_deaths_in_pieces_forks_and_generation(name, engine):
    model, k, policy = tiny("llama-gqa"), 12, policies()[name]
    ids = torch.randint(3, 96, (1, 60))
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    with mb.bounded(model, policy, k, engine=engine, deaths=True) as states:
        written = model.generate(ids, **options)
        wrote = states.deaths
        model(written[:, :-1])
        assert all(map(torch.equal, wrote, states.deaths))
        assert [d.shape for d in wrote] == [(1, 2 if policy.per == "head" else 1, 69)] * 2
        for layer, died in zip(states.layers, states.deaths, strict=True):
            for decider, kept in enumerate(layer.kept[0]):
                assert torch.equal((died[0, decider] == -1).nonzero()[:, 0], kept)
        model(ids[:, :40])
        before = states.fork()
        model(ids[:, 40:], **carried(model, states.current))
        whole = states.deaths
        model(ids[:, 40:], **carried(model, before))
        assert all(map(torch.equal, whole, states.deaths)) and all(int(d.max()) == 59 for d in whole)


def test_a_cut_at_once_is_the_prompts_last_step():
    model, ids = tiny("llama-gqa"), torch.randint(3, 96, (1, 50))
    with mb.bounded(model, mb.Tova(per="head"), 8, prefill="oneshot", deaths=True) as states:
        model(ids[:, :40])
        for layer, died in zip(states.layers, states.deaths, strict=True):
            for decider, kept in enumerate(layer.kept[0]):
                assert died[0, decider].tolist() == [-1 if t in kept.tolist() else 39 for t in range(40)]
        model(ids[:, 40:], **carried(model, states.current))
        assert all(((d >= 40).sum(-1) == 10).all() and ((d == 39).sum(-1) == 32).all() for d in states.deaths)


def test_they_are_kept_only_where_asked_for():
    model = tiny("llama-gqa")
    with mb.bounded(model, mb.Tova(), 8) as states, pytest.raises(mb.UsageError, match="deaths=True"):
        model(torch.randint(3, 96, (1, 20)))
        assert states.deaths
    with mb.bounded(model, mb.Full(), deaths=True) as states:
        model(torch.randint(3, 96, (2, 20)))
        assert all(torch.equal(d, torch.full((2, 1, 20), -1)) for d in states.deaths)


PUBLISHED = {256: 248.97, 512: 480.94, 1024: 896.88, 2048: 1536.75}


@pytest.mark.parametrize("name", [name for name, policy in every_policy().items() if policy.evicts])
def test_the_mean_lifetime_is_arithmetic(name):
    """sum over t of min(t, k+1), over T = 4,096 (the paper's Table 2 prints 249, 481, 897, 1537): any victims give it, so this
    holds the bookkeeping against numbers from outside. A user's own policy is called step by step and stays short."""
    policy, own = every_policy()[name], name in ("loudest", "older")
    tokens, sizes = (300, [20]) if own else (4096, list(PUBLISHED))
    q, k, v = inputs(heads=2, tokens=tokens, size=2, dtype=torch.float32)
    for size in sizes:
        _, state = scan(q, k, v, policy=policy, state_size=size, state=recording())
        died = torch.where(state.deaths < 0, tokens - 1, state.deaths)
        lifetime = (died - torch.arange(tokens) + 1).double().mean(-1)
        wanted = sum(min(t, size + 1) for t in range(1, tokens + 1)) / tokens
        assert (lifetime == wanted).all()
        assert own or round(wanted, 2) == PUBLISHED[size]

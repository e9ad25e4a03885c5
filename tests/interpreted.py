"""The Triton kernels against the recurrence, in Triton's interpreter: run by test_gpu.py in a process of its own.

    TRITON_INTERPRET=1 python -m pytest tests/interpreted.py        # MANY=1 for a thousand cases

The cases are a covering design: any two values of any two FACTORS meet in one of them.
"""

import math
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial, wraps
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton
from conftest import tiny
from recorded import record
from transformers import LlamaConfig, LlamaForCausalLM
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, interpreter_builder

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate import gpu, graph, scan
from msrnn_bench.multistate.attention import bounded
from msrnn_bench.multistate.naming import NAMES, carried
from msrnn_bench.multistate.recurrence import recurrence
from msrnn_bench.multistate.state import State
from msrnn_bench.policies import A2SF, H2O, ElementwisePolicy, Eviction, Full, Random, Tova, Window


class Loud(ElementwisePolicy):
    """What every part of a score can be."""

    def __init__(self, per: str = "layer", first: int = 0) -> None:
        self.per, self.first, self.recent = per, first, 1

    @staticmethod
    def score_state(mean, maximum, previous, age, position):
        return max(maximum, 0.5 * mean) + 0.25 * previous + (age > 3) * 1e-3 * math.log(position + 2.0)


class Nothing(ElementwisePolicy):
    @staticmethod
    def score_state(mean, maximum, previous, age, position):
        return (maximum - maximum) / (age - age)


MANY = "MANY" in os.environ
FACTORS: dict[str, list[Any]] = {
    "policy": [
        Tova(), Tova(first=2), Tova(per="head"), H2O(), H2O(per="layer"), A2SF(), Random(seed=3), Window(first=1),
        Eviction(memory=0.5, first=1, recent=1), Loud(), Loud(per="head", first=1),
    ],
    "heads": [(1, 1), (4, 2), (3, 3), (5, 1)],  # query heads, KV heads
    "batch": [1, 2],
    "dtype": [torch.float64, torch.float32, torch.bfloat16],
    "size": [2, 3, 5, 9],
    "block": [3, 8, 96],
    "gain": [1, 12, 24],  # of the logits: a state may be all of a row, and leave
    "keys": ["different", "duplicated"],
    "call": ["one", "carried", "padded", "tokens"],
}  # fmt: skip
LONGEST = 48 if MANY else 12


def designed(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Cases until all pairs have met, then more until there are `count`."""
    chance, names = random.Random(seed), list(FACTORS)
    missing = {
        (a, i, b, j) for a, b in combinations(names, 2) for i in range(len(FACTORS[a])) for j in range(len(FACTORS[b]))
    }  # fmt: skip
    made = 0
    while missing or made < count:
        drawn = [{name: chance.randrange(len(FACTORS[name])) for name in names} for _ in range(200 if missing else 1)]
        if missing:
            a, i, b, j = min(missing)
            drawn = [{**one, a: i, b: j} for one in drawn]
        best = max(drawn, key=lambda one: len(missing & _pairs(one)))
        missing -= _pairs(best)
        made += 1
        yield {name: FACTORS[name][at] for name, at in best.items()} | {"seed": made}


def _pairs(case: dict[str, int]) -> set[tuple[str, int, str, int]]:
    return {(a, case[a], b, case[b]) for a, b in combinations(case, 2)}


def tensors(case: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """q, k, v of a case; duplicated keys tie, and the loud ones leave sooner or later."""
    make = torch.Generator().manual_seed(case["seed"])
    heads, groups = case["heads"]
    steps, size = random.Random(case["seed"]).randint(8, LONGEST), 4

    def draw(count: int) -> torch.Tensor:
        return torch.randn(case["batch"], count, steps, size, generator=make, dtype=torch.float64)

    q, k, v = draw(heads) * case["gain"], draw(groups), draw(groups)
    if case["keys"] == "duplicated":  # in eighths, whose products are exact: else a product's last bit, which depends on the slot
        q, k = q.mul(8).round() / 8, k.mul(8).round() / 8  # of a state, would break the tie
        k = k[:, :, torch.randint(0, steps, (steps,), generator=make) // 3]
    return tuple(x.to(case["dtype"]) for x in (q, k, v))


def walked(engine: Any, case: dict[str, Any]) -> tuple[torch.Tensor, State]:
    """A case in one call, in two, in one of padded rows, or token by token at its end."""
    q, k, v = tensors(case)
    run = partial(engine, policy=case["policy"], state_size=case["size"])
    steps = q.shape[2]
    if case["call"] == "one":
        return run(q, k, v)
    if case["call"] == "padded":
        padding = torch.ones(q.shape[0], steps, dtype=torch.bool)
        padding[0, : steps // 3] = False
        return run(q, k, v, padding=padding)
    cut = steps // 2
    ends = [cut, steps] if case["call"] == "carried" else [cut, *range(cut + 1, steps + 1)]
    out, begin, state = [], 0, None
    for end in ends:
        part, state = run(*(x[:, :, begin:end] for x in (q, k, v)), state=state)
        out.append(part)
        begin = end
    assert state is not None
    return torch.cat(out, dim=2), state


def case_name(case: dict[str, Any]) -> str:
    heads = "x".join(str(n) for n in case["heads"])
    policy = f"{case['policy'].name}".replace(",", "-")
    return f"{case['seed']}-{policy}-{heads}-{str(case['dtype'])[6:]}-k{case['size']}-{case['keys']}-{case['call']}"


@pytest.fixture(scope="module", autouse=True)
def _at_once() -> Iterator[None]:
    """The interpreter puts its functions in the language's place at every call of a device function, and computes for each sum of
    integers whether it overflows, which nobody asks: two thirds of its time."""
    scope = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": triton.language, "core": triton.language.core}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda function: interpreter._LangPatchScope())
        patch.setattr(interpreter_builder, "options", replace(interpreter_builder.options, sanitize_overflow=False))
        yield
    scope.restore()


@pytest.fixture(autouse=True)
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.interpreted()
    if "case" in request.fixturenames:
        monkeypatch.setattr(scan, "BLOCK", request.getfixturevalue("case")["block"])


@pytest.fixture(autouse=True)
def _within(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel reads or writes outside of the tensors that it was given, which no mask would show."""
    spans: list[tuple[int, int]] = []
    prepare = GridExecutor._init_args_hst

    def prepared(self: Any, args: Any, named: Any) -> Any:
        found = prepare(self, args, named)
        given = [x for x in (*found[0], *found[1].values()) if hasattr(x, "untyped_storage")]
        spans[:] = [(x.data_ptr(), x.untyped_storage().data_ptr() + x.untyped_storage().nbytes()) for x in given]
        return found

    def checked(real: Any, mask_at: int) -> Any:
        def access(pointers: Any, *others: Any) -> Any:
            wanted = np.broadcast_to(others[mask_at].data, pointers.data.shape)
            asked = pointers.data[wanted].astype(np.int64)
            inside = np.zeros(asked.shape, bool)
            for begin, end in spans:
                inside |= (asked >= begin) & (asked < end)
            assert inside.all(), f"{real.__name__} outside of all tensors"
            return real(pointers, *others)

        return access

    monkeypatch.setattr(GridExecutor, "_init_args_hst", prepared)
    for name, mask_at in (("create_masked_load", 0), ("create_masked_store", 1)):
        monkeypatch.setattr(interpreter_builder, name, checked(getattr(interpreter_builder, name), mask_at))


@pytest.mark.parametrize("case", designed(1000 if MANY else 40), ids=case_name)
def test_the_kernels_are_the_recurrence(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 the states kept are the same, and in any dtype where attention is not too steep for it; the certificate changes
    no bit of anything."""
    ours, state = walked(scan.scan, case)
    theirs, expected = walked(recurrence, case)
    if case["dtype"] == torch.float64 or (case["gain"] == 1 and case["keys"] == "different"):
        assert [kept.tolist() for kept in state.kept()] == [kept.tolist() for kept in expected.kept()]
        assert torch.equal(state.evictions, expected.evictions)
        assert torch.equal(state.first_eviction, expected.first_eviction)
        within = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}[case["dtype"]]
        torch.testing.assert_close(ours, theirs, atol=within, rtol=within)
    certified = case["policy"].name.startswith("tova") and case["heads"][0] > 1
    if certified and case["policy"].per == "layer" and case["call"] != "tokens":
        monkeypatch.setattr(gpu, "evict", partial(gpu.evict, certificate=False))
        plain, without = walked(scan.scan, case)
        assert torch.equal(plain, ours)
        assert [kept.tolist() for kept in state.kept()] == [kept.tolist() for kept in without.kept()]
        assert torch.equal(state.scores, without.scores)


@pytest.mark.parametrize(("policy", "order"), [(Tova(), "shuffled"), (H2O(), "backwards")], ids=["shuffled", "backwards"])
def test_programs_run_in_any_order(policy: Any, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs a grid's programs in their order, where a GPU runs them as it likes."""
    case = {
        "policy": policy, "heads": (4, 2), "batch": 2, "dtype": torch.float32, "size": 6, "gain": 1, "keys": "different",
        "call": "tokens", "seed": 5,
    }  # fmt: skip
    monkeypatch.setattr(scan, "BLOCK", 8)
    expected, state = walked(scan.scan, case)
    place = interpreter_builder.set_grid_idx
    seen = []

    def elsewhere(x: int, y: int, z: int) -> None:
        across, down, deep = interpreter_builder.grid_dim
        count, at = across * down * deep, (x * down + y) * deep + z
        ranks = random.Random(count).sample(range(count), count) if order == "shuffled" and count > 4 else range(count)[::-1]
        seen.append(ranks[at] != at)
        place(ranks[at] // (down * deep), ranks[at] // deep % down, ranks[at] % deep)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", elsewhere)
    found, other = walked(scan.scan, case)
    assert sum(seen) > 50
    assert torch.equal(found, expected)
    for name in ("keys", "values"):
        assert torch.equal(getattr(other, name)[:, :, :6], getattr(state, name)[:, :, :6]), name
    assert torch.equal(other.positions, state.positions)
    assert torch.equal(other.scores[..., :6], state.scores[..., :6])


def test_a_state_without_bound() -> None:
    case = {
        "policy": Full(), "heads": (4, 2), "batch": 2, "dtype": torch.float32, "size": None, "gain": 1, "keys": "different",
        "call": "tokens", "seed": 7,
    }  # fmt: skip
    torch.testing.assert_close(walked(scan.scan, case)[0], walked(recurrence, case)[0], atol=1e-5, rtol=1e-5)


def test_a_loud_state_that_left_is_computed_away() -> None:
    """A state that has all of every row leaves (it is old, and protected no more): what is left of the rows has underflowed."""
    steps, size = 14, 4
    q = torch.full((1, 2, steps, 2), 30.0)
    k = torch.zeros(1, 2, steps, 2)
    k[:, :, 2] = 9.0  # e^540 times the others
    k[:, :, :, 1] += torch.linspace(0, 0.3, steps)
    v = torch.randn(1, 2, steps, 2)
    rule = Window(first=0)
    ours, state = scan.scan(q, k, v, policy=rule, state_size=size)
    theirs, expected = recurrence(q.double(), k.double(), v.double(), policy=rule, state_size=size)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-3, rtol=1e-3)
    assert state.kept()[0].tolist() == expected.kept()[0].tolist()


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_a_score_that_ranks_nothing_is_refused() -> None:
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    with pytest.raises(UsageError, match="NaN"):
        scan.scan(q, k, v, policy=Nothing(), state_size=3)


def test_a_model_reads_and_writes() -> None:
    """The whole way of a padded batch through a model, as a GPU takes it: blocks, then tokens of rows that differ in fill."""
    model = tiny("llama-gqa")
    ids = torch.randint(3, 90, (2, 14), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found = []
    for engine in ("scan", "recurrence"):
        with bounded(model, Tova(), 12, engine=engine, verify=False) as states:  # more than the first row has
            written = model.generate(ids, output_logits=True, return_dict_in_generate=True, **options)
        kept = [[row.tolist() for row in layer.kept] for layer in states.layers]
        found.append(
            (written.sequences, torch.stack(written.logits), kept, [layer.evictions.tolist() for layer in states.layers])
        )
    (ours, logits, *held), (theirs, expected, *others) = found
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert held == others


def small(cls: Any = LlamaForCausalLM, layers: int = 1) -> Any:
    """One layer, for each launch takes milliseconds here; peaked attention."""
    torch.manual_seed(3)
    made = cls(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return made.double().eval()


class Counting(LlamaForCausalLM):
    """Its logits know how much the cache has seen, whatever the positions say."""

    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        seen = carried_in(kwargs).get_seq_length()
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * (1 + seen // 1000)
        return output


class Looking(LlamaForCausalLM):
    """Reads a number on the host."""

    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * (2 if output.logits.sum().item() > 1e9 else 1)
        return output


def carried_in(call: dict[str, Any]) -> Any:
    return next(call[name] for name in NAMES if name in call)


def on(model: Any, states: Any, ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
    """The logits of the ids, one token a call, from `cache` or the session's own states on."""
    found = [model(one, **carried(model, states.current if cache is None else cache)).logits for one in ids.split(1, dim=1)]
    return torch.cat(found, dim=1)


def held(layers: Any) -> list[Any]:
    return [
        ([row.tolist() for row in one.kept], one.evictions.tolist(), one.first_eviction.tolist(), one.largest) for one in layers
    ]


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How often each graph was replayed."""
    made: list[list[int]] = []

    def counted(work: Any) -> Any:
        again, result = record(work)
        made.append([0])
        mine = made[-1]

        def replay() -> None:
            mine[0] += 1
            again()

        return replay, result

    monkeypatch.setattr(graph, "record", counted)
    return made


TEXT = torch.randint(3, 32, (2, 10), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("policy", [Tova(first=1), H2O(), A2SF()], ids=lambda policy: policy.name)
def test_a_graph_is_its_steps(policy: Any, recordings: list[Any]) -> None:
    """States that fill up and evict, of one text after another in the same memory; the first text's are left alone, and can be
    gone on from when the memory is another's. To the last bit."""
    model, found = small(), []
    for asked in (True, False):
        with bounded(model, policy, 5, graph=asked, verify=False) as states:
            model(TEXT[:, :3])
            first = states.current
            logits = [on(model, states, TEXT[:, 3:6])]
            before = states.layers
            model(TEXT[:, 4:8])  # another text
            logits.append(on(model, states, TEXT[:, 8:10]))
            seen = [held(before), held(states.layers)]
            logits.append(on(model, states, TEXT[:, 6:8], first))
            found.append((torch.cat(logits, dim=1), seen, held(states.layers), states.graph_refused))
    (ours, *states_), (theirs, *expected) = found
    assert torch.equal(ours, theirs) and states_ == expected and expected[-1] is None
    assert [count for (count,) in recordings] == [7]


def test_a_graph_writes_rows_that_differ(recordings: list[Any]) -> None:
    """`generate`, one row padded, layers of unlike size, a batch of another size behind it."""
    model, found = small(layers=2), []
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[0, :3] = 0
    for asked in (True, False):
        with bounded(model, Tova(), [3, 5], graph=asked, verify=False) as states:
            options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            out = [model.generate(TEXT[:, :5], attention_mask=mask, **options).tolist(), held(states.layers)]
            out += [model.generate(TEXT[:1, :5], **options).tolist(), held(states.layers)]
        found.append(out)
    assert found[0] == found[1]
    assert [count for (count,) in recordings] == [3, 3]
    assert "forward" not in vars(model)


@pytest.mark.parametrize(("cls", "why"), [(Counting, "apart from their positions"), (Looking, "not permitted")])
def test_a_model_that_a_graph_would_get_wrong_is_left_as_it_is(cls: Any, why: str, recordings: Any, caplog: Any) -> None:
    model, found = small(cls), []
    for asked in (True, False):
        states = bounded(model, Tova(), 4, graph=asked, verify=False)
        with states:
            model(TEXT[:, :3])
        for part in TEXT[:, 3:6].split([2, 1], dim=1):  # the block is entered again, and what was refused is not tried again
            with states:
                logits = on(model, states, part)
        found.append((logits, held(states.layers)))
        assert (why in str(states.graph_refused)) == asked
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    assert "forward" not in vars(model) and sum("no effect" in line for line in caplog.messages) == 1

"""Policies whose score is a function of numbers: against the definition, against one written the general way, and refusals."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import tiny

import msrnn_bench as mb
from msrnn_bench.multistate import scan as scan_module
from msrnn_bench.multistate.attention import bounded
from msrnn_bench.runs.identity import _policy

CAP = 0.05


@dataclass(frozen=True)
class General(mb.Policy):
    """All five numbers, in tensors."""

    fade: float = 0.5
    first: int = 0
    recent: int = 0
    per: str = "layer"

    def score(self, *, attention, positions, query_position, previous, **_):
        deciders = previous.shape[1]
        rows = attention.unflatten(1, (deciders, -1))
        mean, maximum, position = rows.mean(2), rows.amax(2), positions[:, :deciders]
        age = query_position[:, None, None] - position
        return mean.clamp(max=CAP) + self.fade * previous + maximum.sqrt() * (age > 5) - torch.exp(-age / 9.0) * position / 500


@dataclass(frozen=True)
class Fast(mb.ElementwisePolicy):
    """The same, one state at a time."""

    fade: float = 0.5
    first: int = 0
    recent: int = 0
    per: str = "layer"

    @staticmethod
    def score_state(mean, maximum, previous, age, position, fade):
        return min(mean, CAP) + fade * previous + math.sqrt(maximum) * (age > 5) - math.exp(-age / 9.0) * position / 500


def inputs(tokens, batch=1, dtype=torch.float64):
    return [(2 * torch.randn(batch, heads, tokens, 8, dtype=torch.float64)).to(dtype) for heads in (6, 2, 2)]


KNOBS = [{}, {"per": "head"}, {"first": 2, "recent": 5}, {"per": "head", "first": 1, "recent": 11, "fade": 0.9}]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_both_ways_to_write_a_policy_are_the_definition(knobs):
    qkv = inputs(230, batch=2)
    slow, one = mb.recurrence(*qkv, policy=General(**knobs), state_size=24, trace=True)
    for engine in (mb.recurrence, mb.scan):
        out, two = engine(*qkv, policy=Fast(**knobs), state_size=24, trace=True)
        assert torch.equal(one.trace, two.trace)
        torch.testing.assert_close(out, slow, atol=1e-12, rtol=0)
        assert torch.equal(one.first_eviction, two.first_eviction) and one.largest == two.largest
    _, tova = mb.scan(*qkv, policy=mb.Tova(per=knobs.get("per", "layer")), state_size=24, trace=True)
    assert not torch.equal(one.trace, tova.trace)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_pieces_single_tokens_and_uneven_rows(knobs):
    """With the state carried; single tokens go through decode.py."""
    qkv, padding = inputs(150, batch=2), torch.ones(2, 150, dtype=torch.bool)
    padding[0, :40] = False
    rule = Fast(**knobs)
    found = []
    for engine in (mb.recurrence, mb.scan):
        out, state = engine(*(x[:, :, :100] for x in qkv), policy=rule, state_size=16, padding=padding[:, :100])
        parts = [out]
        for at in (*range(100, 120), slice(120, 150)):
            here = slice(at, at + 1) if isinstance(at, int) else at
            out, state = engine(*(x[:, :, here] for x in qkv), policy=rule, state_size=16, state=state)
            parts.append(out)
        order = state.positions[..., :16].argsort(-1)
        found.append(
            (torch.cat(parts, dim=2), torch.stack(state.kept()), state.scores[..., :16].gather(-1, order), state.evictions)
        )
    (slow, kept, scores, left), (fast, kept_too, scores_too, left_too) = found
    assert torch.equal(kept, kept_too) and torch.equal(left, left_too)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    torch.testing.assert_close(scores_too, scores, atol=1e-12, rtol=0)


def test_torch_path(monkeypatch):
    qkv = inputs(150)
    compiled, one = mb.scan(*qkv, policy=Fast(), state_size=20, trace=True)
    monkeypatch.setattr(scan_module, "_compiled", lambda q, rule: False)
    plain, two = mb.scan(*qkv, policy=Fast(), state_size=20, trace=True)
    torch.testing.assert_close(plain, compiled, atol=1e-12, rtol=0)
    assert torch.equal(one.trace, two.trace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype):
    qkv = inputs(200, dtype=dtype)
    _, one = mb.recurrence(*qkv, policy=Fast(), state_size=32, trace=True)
    fast, two = mb.scan(*(x[:, :, :190] for x in qkv), policy=Fast(), state_size=32, trace=True)
    assert fast.dtype == dtype and two.scores.dtype == torch.float32
    assert (one.trace[:, :, :190] == two.trace).all(-1).double().mean() > 0.95
    for t in range(190, 200):
        _, two = mb.scan(*(x[:, :, t : t + 1] for x in qkv), policy=Fast(), state_size=32, state=two)
    assert torch.equal(one.kept()[0], two.kept()[0])


@pytest.mark.parametrize("options", [{}, {"prefill": "oneshot"}, {"positions": "compressed"}], ids=str)
def test_inside_a_model(options):
    model, ids = tiny("llama-gqa"), torch.randint(3, 96, (1, 70))
    kept = []
    for policy, engine in ((General(), "recurrence"), (Fast(), "scan")):
        with bounded(model, policy, 12, engine=engine, **options) as states:
            text = model.generate(ids, max_new_tokens=8, do_sample=False)
        kept.append((text, [layer.kept for layer in states.layers]))
    assert torch.equal(kept[0][0], kept[1][0]) and str(kept[0][1]) == str(kept[1][1])


def own(body, more="", **names):
    """A policy whose function returns `body`."""
    scope = {"math": math, "torch": torch, "sqrt": math.sqrt, **names}
    exec(f"def score_state(mean, maximum, previous, age, position{more}):\n    return {body}", scope)
    return type("Own", (mb.ElementwisePolicy,), {"score_state": staticmethod(scope["score_state"]), "fade": 0.5})()


@pytest.mark.parametrize(
    "body",
    [
        "1.0", "mean / age", "math.log(mean)", "max(mean, maximum - CAP, 0.01)", "sqrt(abs(mean - math.e))",
        "(age < 9) * (maximum >= 0.1) - (age >= 9) * mean ** 2", "1 - (age > 5) + (position > 20)",
        "(2 - mean) ** 0.5 / (3 / position) + math.log(2)", "helper(mean) * scale + sum([mean, -age]) - (age == 0)",
        "min(mean, math.inf) - math.inf * 2 ** -9 if scale < 0 else maximum",
    ],
)  # fmt: skip
def test_what_may_stand_in_it(body):
    qkv, policy = inputs(60), own(body, CAP=CAP, helper=lambda x: x * x + 1, scale=3)
    slow, one = mb.recurrence(*qkv, policy=policy, state_size=9, trace=True)
    fast, two = mb.scan(*qkv, policy=policy, state_size=9, trace=True)
    assert torch.equal(one.trace, two.trace)


@pytest.mark.parametrize(
    ("body", "more", "says"),
    [
        ("mean if age > 3 else maximum", "", "branches on an argument"), ("0 < age < 3", "", "branches"),
        ("mean and age", "", "branches"), ("min([mean, age])", "", "branches"), ("mean ** age", "", "its powers"),
        ("'a'", "", "no number"), ("torch.exp(mean)", "", "must be Tensor, not Term"), ("int(mean)", "", "cannot be compiled"),
        ("mean ** -1", "", "its powers can be 0.5"),
        ("math.tanh(mean)", "", "cannot be compiled"), ("age // 2", "", "//"), ("nowhere + mean", "", "nowhere"),
        ("mean", ", rate", "takes rate"), ("None", "", "None is no number"), ("mean * math.nan", "", "nan is no number"),
        ("mean", ", *rest", "must take .mean, maximum, previous, age, position., in this order"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(body, more, says):
    with pytest.raises(mb.UsageError, match=says) as found:
        own(body, more).rule(8)
    assert "Own.score_state" in str(found.value) and "\n" not in str(found.value)


def test_refused_functions():
    class Missing(mb.ElementwisePolicy): ...

    class Method(mb.ElementwisePolicy):
        def score_state(self, mean):
            return mean

    for policy, says in ((Missing(), "defined with `def`"), (Method(), "it takes .self, mean")):
        with pytest.raises(mb.UsageError, match=says):
            policy.rule(8)
    with pytest.raises(mb.UsageError, match="protect 9"):
        Fast(first=9).rule(8)


def test_nan_is_refused_where_it_is_met():
    """One that the first states do not show; also from the compiled step of one token."""
    policy = own("math.sqrt(30 - position) if fade > 0 else mean", ", fade")
    qkv = inputs(40)
    for engine in (mb.recurrence, mb.scan):
        _, state = engine(*(x[:, :, :31] for x in qkv), policy=policy, state_size=8)
        for more in (slice(31, 40), slice(31, 32)):
            with pytest.raises(mb.UsageError, match="NaN"):
                engine(*(x[:, :, more] for x in qkv), policy=policy, state_size=8, state=state.fork())


def test_the_function_is_part_of_a_cells_identity(tmp_path, monkeypatch):
    """The bytes of its file, wherever that is, and the fields that it takes."""
    monkeypatch.syspath_prepend(tmp_path)
    head = "import msrnn_bench as mb\nfrom elsewhere_21 import score\n"
    Path(tmp_path, "own_21.py").write_text(head + "class Own(mb.ElementwisePolicy):\n    score_state = staticmethod(score)\n")
    seen = set()
    for body in ("mean", "maximum", "mean"):
        Path(tmp_path, "elsewhere_21.py").write_text(f"def score(mean, maximum, previous, age, position):\n    return {body}\n")
        for name in ("own_21", "elsewhere_21"):
            sys.modules.pop(name, None)
        policy = __import__("own_21").Own()
        seen.add(str(_policy(policy, policy.rule(8))))
    assert len(seen) == 2
    fast = Fast()
    assert _policy(fast, fast.rule(8))["settings"] == {"fade": 0.5}

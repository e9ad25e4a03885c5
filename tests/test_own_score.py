"""What a user's own `score` is shown, and what it costs: keys and values only where it can read them, and no wait in a step."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from msrnn_bench.multistate import fallback
from msrnn_bench.multistate.recurrence import recurrence
from msrnn_bench.multistate.scan import scan
from msrnn_bench.multistate.scores import unread
from msrnn_bench.policies import Policy, Tova


def quiet(*, attention: Any, previous: Any, **_: Any) -> Any: ...
def all_named(*, attention, keys, values, positions, query_position, previous, layer): ...  # type: ignore[no-untyped-def]
def by_rest(*, attention: Any, **rest: Any) -> Any:
    return rest["keys"]


def by_closure(*, attention: Any, **rest: Any) -> Any:
    return (lambda: rest)()["values"]


def by_locals(*, attention: Any, **rest: Any) -> Any:
    return locals()


def passed_on(*args: Any, **rest: Any) -> Any:
    return quiet(*args, **rest)


@pytest.mark.parametrize("score", [all_named, by_rest, by_closure, by_locals, passed_on, max, torch.no_grad()(quiet)])
def test_what_may_be_read_is_shown(score: Any) -> None:
    assert unread(score) == set()


def test_what_cannot_be_read_is_not() -> None:
    assert unread(quiet) == {"keys", "values", "positions", "query_position", "layer"}


class Largest(Policy):
    """Reads all that there is."""

    def __init__(self, per: str = "layer", first: int = 0, recent: int = 0) -> None:
        self.per, self.first, self.recent = per, first, recent

    def score(self, *, attention: Any, previous: Any, **rest: Any) -> Any:
        groups = rest["keys"].shape[1]
        loud = attention.unflatten(1, (groups, -1)).amax(dim=2)
        size = rest["keys"].norm(dim=-1) * 0.1 - rest["values"].norm(dim=-1) * 0.05
        age = (rest["query_position"][:, None, None] - rest["positions"]) * 0.01
        mine = loud + size - age + rest["layer"]
        return previous * 0.5 + (mine if self.per == "head" else mine.mean(dim=1, keepdim=True))


class Blind(Largest):
    """Cannot, and its scores tie."""

    def score(self, *, previous: Any, **_: Any) -> Any:
        return torch.zeros_like(previous)


OWN = [Largest(), Largest("head"), Largest("head", first=1, recent=2), Blind(), Blind("head", first=2)]


@pytest.mark.parametrize("policy", OWN)
@pytest.mark.parametrize("pieces", [[40], [7, 1, 1, 31]])
def test_it_is_the_recurrence(policy: Policy, pieces: list[int]) -> None:
    draw = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, heads, 40, 8, generator=draw, dtype=torch.float64) for heads in (4, 2, 2))
    found = []
    for engine in (scan, recurrence):
        outs, state = [], None
        for a, b, c in zip(*(x.split(pieces, dim=2) for x in (q, k, v)), strict=True):
            out, state = engine(a, b, c, policy=policy, state_size=6, state=state)
            outs.append(out)
        assert state is not None
        found.append((torch.cat(outs, dim=2), [row.tolist() for row in state.kept()], state.evictions.tolist()))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-12, rtol=1e-12)
    assert found[0][1:] == found[1][1:]


class Waits(TorchDispatchMode):
    """Counts what a device would be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("policy", "waits"), [(Largest(), 1), (Tova(), 0)])
def test_a_block_waits_once_for_a_score_of_ones_own(policy: Policy, waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msrnn_bench.multistate.scan._compiled", lambda q, rule: False)
    real, seen = fallback.evict, []

    def counted(*args: Any) -> torch.Tensor:
        with Waits() as mode:
            victims = real(*args)
        seen.append(mode.count)
        return victims

    monkeypatch.setattr(fallback, "evict", counted)
    q, k, v = (torch.randn(1, 2, 120, 4) for _ in range(3))
    scan(q, k, v, policy=policy, state_size=6)
    assert len(seen) == 2 and set(seen) == {waits}

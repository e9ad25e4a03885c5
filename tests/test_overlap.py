"""Two chunks on their way at once (`streams=2`): the same numbers, really at once, and a failure ends both."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate import overlap, streams
from msrnn_bench.multistate.attention import bounded
from msrnn_bench.multistate.overlap import overlapped
from msrnn_bench.policies import A2SF, H2O, Policy, Random, Tova, Window
from msrnn_bench.tasks.reading.losses import losses

POLICIES = [Tova(), Tova(per="head"), H2O(), A2SF(), Window(first=2), Random(seed=3)]


def text(batch: int = 2, tokens: int = 90) -> torch.Tensor:
    return torch.randint(3, 90, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.name}-{policy.per}")
def test_the_same_to_the_last_bit(policy: Policy) -> None:
    """Losses, states, their reports and steps of death; and the states can be gone on from."""
    model, found = tiny("llama-gqa"), []
    for ways in (1, 2):
        states = bounded(model, policy, 12, deaths=True, documents=(4, 5), verify=False)
        nll = losses(model, text(), 16, states, None, None, ways)["nll"]
        with states:
            after = model(text(tokens=3), cache=states.current).logits
        found.append((nll, after, states.deaths, [[row.tolist() for row in one.kept] for one in states.layers]))
    (nll, after, deaths, kept), (expected, later, steps, held) = found
    assert (nll == expected).all() and torch.equal(after, later) and kept == held
    assert all(torch.equal(a, b) for a, b in zip(deaths, steps, strict=True))


def test_they_overlap_whoever_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is in the first layer before the one before has left the last; never in a layer before it."""
    model, seen = tiny("llama-gqa"), []
    names = ["chunk_0", "chunk_1"]

    def note(layer: int, slow: str) -> Any:
        def hook(*_: Any) -> None:
            seen.append((layer, threading.current_thread().name))
            time.sleep(0.02 if threading.current_thread().name == slow else 0)

        return hook

    expected = losses(model, text(), 16, bounded(model, Tova(), 12, verify=False), None)["nll"]
    for slow in names:
        hooks = [layer.register_forward_hook(note(i, slow)) for i, layer in enumerate(model.model.layers)]
        found = losses(model, text(), 16, bounded(model, Tova(), 12, verify=False), None, None, 2)["nll"]
        for hook in hooks:
            hook.remove()
        assert (found == expected).all()
    assert {name for _, name in seen} == set(names)
    last = len(model.model.layers) - 1
    assert any(a == (0, names[1]) and b == (last, names[0]) for a, b in pairwise(seen))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_failure_ends_both(layer: int) -> None:
    """The third chunk waits for the second's layer by then."""
    model, calls = tiny("llama-gqa"), []

    def fail(*_: Any) -> None:
        calls.append(layer)
        if len(calls) == 2:
            time.sleep(0.3)
            raise ValueError("the second chunk")

    hook = model.model.layers[layer].register_forward_pre_hook(fail)
    before = threading.active_count()
    with pytest.raises(ValueError, match="the second chunk"):
        losses(model, text(), 16, bounded(model, Tova(), 12, verify=False), None, None, 2)
    hook.remove()
    assert threading.active_count() == before
    with bounded(model, Tova(), 12, verify=False):  # the model is as it was
        model(text())


def test_nobody_asks_any_more() -> None:
    model, before = tiny("llama-gqa"), threading.active_count()
    with bounded(model, Tova(), 12, verify=False) as states:
        passes = overlapped(model, states, text().split(16, dim=1))
        next(passes)
        passes.close()
    assert threading.active_count() == before


class Stream:
    """A CUDA stream that notes when it is told to record and to wait; the thread that is in it has it as the current."""

    here = threading.local()

    def __init__(self, _: object = None) -> None:
        self.told: list[tuple[str, object]] = []

    def record_event(self) -> object:
        self.told.append(("record", event := object()))
        return event

    def wait_event(self, event: object) -> None:
        self.told.append(("wait", event))

    def wait_stream(self, other: object) -> None:
        self.told.append(("behind", other))


@contextmanager
def within(stream: Stream) -> Iterator[None]:
    Stream.here.now = stream
    yield
    del Stream.here.now


def test_streams_wait_for_one_another_and_keep_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a GPU's run is told, with streams that are none: a chunk enters a layer behind the mark that the chunk before has
    left there, and what it finds there is not given away meanwhile; the reader goes on behind the last mark of each chunk."""
    model, main, kept = tiny("llama-gqa"), Stream(), []
    real = overlap._check
    monkeypatch.setattr(overlap, "_check", lambda model: (real(model), SimpleNamespace(type="cuda"))[1])
    for name, fake in (("Stream", Stream), ("stream", within)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: getattr(Stream.here, "now", main))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: kept.append((id(x), stream)))
    turns: list[overlap.Turn] = []
    monkeypatch.setattr(overlap.Turn, "stop", lambda self: None)
    start = overlap.Turn.__init__
    monkeypatch.setattr(overlap.Turn, "__init__", lambda self, *args: (turns.append(self), start(self, *args))[1])
    expected = losses(model, text(), 16, bounded(model, Tova(), 12, verify=False), None)["nll"]
    states = bounded(model, Tova(), 12, verify=False)
    assert (losses(model, text(), 16, states, None, None, 2)["nll"] == expected).all()
    assert len(turns) == 6 and len({turn.lane for turn in turns}) == 2
    for before, turn in pairwise(turns):
        told = turn.lane.told
        for layer in range(2):
            assert told.index(("wait", before._marks[layer])) < told.index(("record", turn._marks[layer]))
    assert sum(entry == ("behind", main) for lane in {turn.lane for turn in turns} for entry in lane.told) == 6
    ends = [lane.told[i + 1] for lane in {t.lane for t in turns} for i, entry in enumerate(lane.told)
            if entry[0] == "record" and entry[1] in {t._marks[1] for t in turns}]  # fmt: skip
    assert {event for what, event in main.told if what == "wait"} == {event for what, event in ends if what == "record"}
    last = [x for state in turns[-1].layers_ for x in vars(state).values() if isinstance(x, torch.Tensor)]
    assert {id(x) for x in last} <= {x for x, stream in kept if stream is main}
    assert {stream for _, stream in kept} == {main, *(turn.lane for turn in turns)}


def test_a_stream_has_its_own_of_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    @streams.remembered(8)
    def ones(n: int, device: torch.device) -> torch.Tensor:
        made.append(n)
        return torch.ones(n, device=device)

    cpu = torch.device("cpu")
    assert ones(3, cpu) is ones(3, cpu) and ones(4, cpu).numel() == 4 and made == [3, 4]
    monkeypatch.setattr(streams, "_stream", lambda device: 7)
    assert ones(3, cpu) is ones(3, cpu) and made == [3, 4, 3]


def test_a_rotation_that_needs_the_whole_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama-gqa")
    monkeypatch.setattr("msrnn_bench.multistate.overlap.stretches", lambda config: ("dynamic", 16))
    with bounded(model, Tova(), 12, verify=False) as states, pytest.raises(UsageError, match="take streams=1"):
        next(overlapped(model, states, text().split(16, dim=1)))

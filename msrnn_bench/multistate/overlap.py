"""Two passes over one text at a time, for GPUs: a chunk enters a layer as soon as the chunk before it has left that layer.

A layer's walk from state to state keeps few of a GPU's processors busy, its products keep all. A chunk needs of the one before it
each layer's states and nothing else, so two may be on their way, a layer apart, in a thread and a CUDA stream each. What is
computed is what one after the other computes, operation for operation.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.cache import MultiState
from msrnn_bench.multistate.naming import carried
from msrnn_bench.multistate.rotation import stretches
from msrnn_bench.multistate.session import Session
from msrnn_bench.multistate.streams import receive


class _StoppedError(Exception):
    """The chunk before failed, or nobody asks any more."""


class Turn(MultiState):
    """The states for the call of one chunk: a layer's are its own from when the chunk before has left the layer."""

    def __init__(self, states: MultiState, begin: int, before: Turn | None, lane: Any) -> None:
        super().__init__(states.rules, None)
        self.lane = lane  # the CUDA stream of this turn, None elsewhere
        self.layers_ = states.layers_  # one list, whoever's turn it is
        self.columns = [begin] * len(states.rules)
        self._before, self._stopped = before, False
        self._left = [threading.Event() for _ in states.rules]
        self._marks: list[Any] = [None] * len(states.rules)

    def enter(self, layer: int) -> None:
        """Wait for the layer: this thread for the other's, and on a GPU this stream for what the other has launched."""
        before = self._before
        if before is not None:
            before._left[layer].wait()
        if self._stopped or (before is not None and before._stopped):
            raise _StoppedError
        if before is not None and before._marks[layer] is not None:
            receive(self.layers_[layer], before._marks[layer])

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.enter(layer_idx)
        return super().update(key_states, value_states, layer_idx)

    def passed(self, layer: int) -> None:
        if self.lane is not None:
            self._marks[layer] = self.lane.record_event()
        self._left[layer].set()

    def stop(self) -> None:
        """Nothing more comes of this turn, so that whoever waits for it need not."""
        self._stopped = True
        for event in self._left:
            event.set()


def overlapped(model: PreTrainedModel, session: Session, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The logits [B, n, V] of a text's chunks [B, n] in their order, from empty states on, within a block of `session`.

    UsageError where the model is one whose calls cannot overlap."""
    device = _check(model)
    shared, turn, begin = session.fresh(), None, 0
    lanes = [torch.cuda.Stream(device) if device.type == "cuda" else None for _ in range(2)]
    under_way: deque[tuple[Turn, Future[tuple[Tensor, Any]]]] = deque()
    with ThreadPoolExecutor(len(lanes), thread_name_prefix="chunk") as pool:
        try:
            for number, chunk in enumerate(chunks):
                turn = Turn(shared, begin, turn, lanes[number % 2])
                begin += chunk.shape[1]
                if turn.lane is not None:
                    turn.lane.wait_stream(torch.cuda.current_stream(device))  # which has made the ids
                under_way.append((turn, pool.submit(_read, model, session, turn, chunk)))
                if len(under_way) == len(lanes):
                    yield _arrived(*under_way.popleft())
            while under_way:
                yield _arrived(*under_way.popleft())
        finally:
            for waiting, _ in under_way:
                waiting.stop()


def _check(model: PreTrainedModel) -> torch.device:
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise UsageError("streams=2 needs the whole model on one device; take streams=1, or no model.device_map")
    if stretches(model.config) is not None:
        raise UsageError("this model's rotation depends on the text's length, so its chunks cannot overlap: take streams=1")
    return devices.pop()


def _read(model: PreTrainedModel, session: Session, turn: Turn, chunk: Tensor) -> tuple[Tensor, Any]:
    """One chunk, in a thread of its own: its logits, and the mark behind which they are there."""
    lane = turn.lane
    try:
        with torch.no_grad(), session.in_this_thread(), nullcontext() if lane is None else torch.cuda.stream(lane):
            turn.enter(0)
            logits = model(chunk, **carried(model, turn)).logits
            return logits, None if lane is None else lane.record_event()
    except BaseException:
        turn.stop()
        raise


def _arrived(turn: Turn, future: Future[tuple[Tensor, Any]]) -> Tensor:
    logits, mark = future.result()
    if mark is not None:
        logits.record_stream(torch.cuda.current_stream(logits.device))
        for state in turn.layers_:
            receive(state, mark)
    return logits

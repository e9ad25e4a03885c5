"""Runs of a bounded model against the clock: a text is read once, and each run goes on from a copy of its states to its end.

Rows of a batch are copies of one state, each in memory of its own; what a step costs does not depend on what the states say.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msrnn_bench.errors import MachineError, out_of_memory
from msrnn_bench.job import Job
from msrnn_bench.models.sources import Loaded
from msrnn_bench.multistate.cache import MultiState
from msrnn_bench.multistate.footprint import Footprint, footprint
from msrnn_bench.multistate.naming import carried
from msrnn_bench.multistate.rotation import piece_of
from msrnn_bench.tasks.cost import memory
from msrnn_bench.tasks.writing.answers import check_states, job_session

PIECE = 512  # tokens a forward pass while the text before is read


@dataclass(frozen=True)
class Run:
    """`tokens` read in `seconds` by all rows together; the states' bytes when it was over."""

    tokens: int
    seconds: float
    footprint: Footprint

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Bench:
    """The job's model and policy on ids [T]. A run times the text's last tokens; `runs` says how many that may be, for before
    each the states of what stands in front are kept."""

    def __init__(self, loaded: Loaded, job: Job, ids: list[int], runs: Collection[int]) -> None:
        self.model, self.job = loaded.model, job
        self.ids = torch.tensor([ids], device=loaded.model.device)
        self.session = job_session(loaded.model, job)
        self.last: dict[str, Any] = {}  # the logits of one token are enough
        if "logits_to_keep" in inspect.signature(loaded.model.forward).parameters:
            self.last = {"logits_to_keep": 1}
        self.bases = self._read(sorted({len(ids) - tokens for tokens in runs}))

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def _read(self, stops: list[int]) -> dict[int, MultiState]:
        """The states of one row after so many tokens each."""
        width = piece_of(self.model.config, self.ids.shape[1], PIECE)
        bases, at = {}, 0
        for stop in stops:
            with self.session:
                for begin in range(at, stop, width):
                    self._call(self.ids[:, begin : min(begin + width, stop)], self.session.current)
            check_states(self.session, self.job, [stop])
            bases[stop], at = self.session.fork(), stop
        self._release()
        return bases

    def _call(self, ids: Tensor, states: MultiState | None) -> None:
        self.model(ids, **carried(self.model, states), **self.last)

    def _release(self) -> MultiState:
        """The session's states; it lets go of them, or two runs' would be in memory at once."""
        states, self.session.current = self.session.current, None
        assert states is not None
        return states

    def decode(self, rows: int, steps: int) -> Run:
        """`steps` tokens, one a forward pass."""
        return self._run(rows, steps, 1)

    def prefill(self, rows: int, tokens: int) -> Run:
        """`tokens` a row in one forward pass."""
        return self._run(rows, tokens, tokens)

    def _run(self, rows: int, tokens: int, width: int) -> Run:
        before = self.ids.shape[1] - tokens
        pieces = self.ids[:, before:].expand(rows, -1).split(width, dim=1)
        self._room_for(rows, self.bases[before])
        states: MultiState | None = self.bases[before].fork(rows=rows)
        with self.session:
            self._wait()
            begin = time.perf_counter()
            for piece in pieces:
                self._call(piece, states)
                states = self.session.current
            self._wait()
            seconds = time.perf_counter() - begin
        check_states(self.session, self.job, [self.ids.shape[1]] * rows)
        return Run(rows * tokens, seconds, footprint(self._release()))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _room_for(self, rows: int, base: MultiState) -> None:
        """Refuse what a machine without a limit of its own would not survive; a GPU says so itself."""
        need, free = rows * footprint(base).total, memory.left(self.device)
        if self.device.type != "cuda" and need > 0.9 * free:
            raise MachineError(
                f"{rows} rows of states need {memory.shown(need)} and this machine has {memory.shown(free)} left: set "
                f"task.memory to less than that"
            )

    def attempt(self, rows: int, tokens: int, *, at_once: bool = False) -> Run | None:
        """`decode`, or `prefill`; None where it is more than the memory has, which is free again then."""
        try:
            return self.prefill(rows, tokens) if at_once else self.decode(rows, tokens)
        except Exception as error:
            if not out_of_memory(error):
                raise
        self.session.current = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

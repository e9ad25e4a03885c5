"""What a state costs (the paper, section 7.1 and Table 1): its bytes, the largest batch that they allow, tokens per second.

Everything is measured behind `length` tokens of the dataset's text with the states full, nothing is extrapolated. A time is a
fact of the machine, so machine and device are part of this task's identity (runs/identity.py). Where we differ: the
paper's throughput is of 512 whole sequences at the largest batch; here prefill and decode are apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msrnn_bench.datasets.chunks import Chunk, chunks
from msrnn_bench.errors import Count, UsageError, check_fields
from msrnn_bench.job import Job, Work, load
from msrnn_bench.policies import Baseline
from msrnn_bench.results.cells import Row
from msrnn_bench.tasks.cost import memory
from msrnn_bench.tasks.cost.search import largest

if TYPE_CHECKING:
    from msrnn_bench.tasks.cost.clock import Bench, Run

ON_CPU = "2GiB"  # the budget of a machine whose memory is everybody's
CAPPED = "at least: task.max_batch"
NONE_FITS = "not one row fits task.memory"
TOO_MUCH = "out of memory"


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Rows of one cell: `state_bytes` of one row as allocated, and its parts beyond the keys and values held (subtasks `slots`,
    `books`); `state_bytes_exact` by arithmetic; `batch`, the most rows whose states fit `memory` (the weights are not
    counted); `peak_bytes` while decoding; `decode_tokens_per_second` and `prefill_tokens_per_second`, a row a repeat, total
    the rate and count 1, so that a mean is a mean of repeats and median and spread are in the rows. The last three at
    subtasks `batch=1` and `batch=max`.

    length: tokens read in all, the timed ones included (null: `context`). steps: tokens a row, decoded one a pass. piece: tokens
    a row, read in one pass. memory: a budget, "2GiB" (null: that on a CPU; on a GPU all that is free, found by trying).
    max_batch: no more rows are tried. repeats: of each kind of run, in turn, after one run of each to warm up.
    """

    length: Count | None = None
    memory: str | None = None
    max_batch: Count = 64
    steps: Count = 32
    piece: Count = 128
    repeats: Count = 5

    name = "efficiency"
    template = None
    timed = True  # machine and device are part of the identity

    def __post_init__(self) -> None:
        check_fields(self, "task")
        if self.memory is not None:
            memory.parsed(self.memory)

    def settings(self) -> dict[str, Any]:
        """What of this task is part of a cell's identity."""
        return {**vars(self), "memory": None if self.memory is None else memory.parsed(self.memory)}

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do."""
        if isinstance(job.policy, Baseline):
            raise UsageError("policy=baseline keeps no states: take full, or a policy that evicts")
        if job.prefill != "stepwise":
            raise UsageError(f"prefill={job.prefill} cuts once; task=efficiency times full states: take prefill=stepwise")
        length = self._length(job)
        if length > job.context:
            raise UsageError(f"task.length={length} is more than context={job.context}: set context={length}, or lower it")
        before = length - max(self.steps, self.piece)
        if before < 1:
            raise UsageError(
                f"task.piece={self.piece} and task.steps={self.steps} leave nothing of {length} tokens to fill the states "
                "with: lower them, or raise task.length"
            )
        if job.cache is not None and job.cache > before:
            raise UsageError(
                f"cache={job.cache} is not full after {before} tokens, behind which the timed ones begin: take less, "
                "or policy=full for all of them"
            )

    def work(self, job: Job) -> Work:
        """The text read once, and the timed runs at no more than `max_batch` rows; finding the largest batch comes on top."""
        timed = (1 + self.repeats) * (self.steps + self.piece) * (1 + self.max_batch)
        return Work(self._length(job) + timed, rows=self.max_batch, logits=self.piece)

    def rows(self, job: Job) -> Iterator[Row]:
        """Bytes, the largest batch, then the runs."""
        from msrnn_bench.tasks.cost.clock import Bench

        loaded = load(job)
        length = self._length(job)
        before = length - max(self.steps, self.piece)
        text = chunks(job.dataset, loaded.tokenizer, context=length, documents=job.documents, tokens=job.tokens)[0]
        job.progress.start(before)
        bench = Bench(loaded, job, text.ids, (self.steps, self.piece))
        job.progress.advance(before)
        wide = _Rows(job, text)
        yield from self._bytes(bench, wide, loaded.model.config)
        memory.forget_peak(bench.device)
        bench.decode(1, self.steps)
        yield wide.one("peak_bytes", memory.peak(bench.device), "batch=1", missing="not told by this system")
        most, at_most = self._batch(bench)
        yield wide.one("batch", most, limit=CAPPED if at_most else "ok")
        if most:
            memory.forget_peak(bench.device)
            bench.decode(most, self.steps)
            yield wide.one("peak_bytes", memory.peak(bench.device), "batch=max", missing="not told by this system")
        yield from self._runs(bench, wide, most)

    def _length(self, job: Job) -> int:
        return job.context if self.length is None else self.length

    def _bytes(self, bench: Bench, wide: _Rows, config: Any) -> Iterator[Row]:
        """Of one row whose states are full."""
        from msrnn_bench.multistate.footprint import exact_bytes

        run = bench.decode(1, self.steps)
        exact = exact_bytes(config, bench.model.dtype, wide.held)
        if exact != run.footprint.held:  # layers of unlike heads, a name we do not know
            exact = None
        yield wide.one("state_bytes_exact", exact, missing="the configuration does not tell")
        yield wide.one("state_bytes", run.footprint.total)
        yield wide.one("state_bytes", run.footprint.slots, "slots")
        yield wide.one("state_bytes", run.footprint.books, "books")

    def _batch(self, bench: Bench) -> tuple[int, bool]:
        """The most rows whose states fit, and whether `max_batch` rather than memory was the limit."""
        budget = self._budget(bench)
        room = budget if budget is not None else memory.left(bench.device) or 1

        def fits(rows: int) -> bool:
            run = bench.attempt(rows, self.steps)
            return run is not None and (budget is None or run.footprint.total <= budget)

        guess = room // bench.decode(1, self.steps).footprint.total
        found = largest(fits, guess=guess, most=self.max_batch)
        return found, found == self.max_batch

    def _budget(self, bench: Bench) -> int | None:
        """Bytes for states; None for all that a GPU has."""
        if self.memory is not None:
            return memory.parsed(self.memory)
        return None if bench.device.type == "cuda" else memory.parsed(ON_CPU)

    def _runs(self, bench: Bench, wide: _Rows, most: int) -> Iterator[Row]:
        """The kinds of run take turns, so that a slow minute of the machine meets all of them alike."""
        kinds = [
            (metric, subtask, rows, tokens)
            for subtask, rows in (("batch=1", 1), ("batch=max", most))
            for metric, tokens in (("decode", self.steps), ("prefill", self.piece))
        ]
        job = bench.job
        before = wide.length - max(self.steps, self.piece)
        job.progress.start(before + (1 + self.repeats) * sum(rows * tokens for _, _, rows, tokens in kinds))
        for repeat in range(self.repeats + 1):
            for metric, subtask, rows, tokens in kinds:
                run = bench.attempt(rows, tokens, at_once=metric == "prefill") if rows else None
                job.progress.advance(rows * tokens)
                if repeat:  # the first is to warm up
                    yield wide.timed(f"{metric}_tokens_per_second", subtask, repeat, run, tokens, TOO_MUCH if rows else NONE_FITS)


class _Rows:
    """Rows of one cell."""

    def __init__(self, job: Job, text: Chunk) -> None:
        self.length = len(text.ids)
        self.held = self.length if job.cache is None else job.cache
        self.columns = {
            **job.columns, "bos": text.bos, "length": self.length, "evictions": self.length - self.held, "max_states": self.held,
        }  # fmt: skip

    def one(self, metric: str, total: int | None, subtask: str | None = None, *, missing: str = "", limit: str = "ok") -> Row:
        """A number that is measured once; `missing` says why it is not there, `limit` what it is if not the whole."""
        return Row(
            **self.columns, document="repeat 1", subtask=subtask, bucket_start=0, bucket_end=self.length, metric=metric,
            total=None if total is None else float(total), count=1, status=missing if total is None else limit,
        )  # fmt: skip

    def timed(self, metric: str, subtask: str, repeat: int, run: Run | None, tokens: int, status: str) -> Row:
        """A repeat of a run: the rate over a count of 1."""
        return Row(
            **self.columns, document=f"repeat {repeat}", subtask=subtask, bucket_start=self.length - tokens,
            bucket_end=self.length, metric=metric, total=None if run is None else run.rate, count=1,
            seconds=None if run is None else run.seconds, tokens_per_second=None if run is None else run.rate,
            status="ok" if run is not None else status,
        )  # fmt: skip

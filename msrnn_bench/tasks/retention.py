"""Which tokens stay (the paper, section 6.2, Figures 8, 9, 12, 13, Tables 2 and 5): for every layer the step at which each
token's state left, in the pass that measures perplexity. All rows derive from these times; those of the first document's first
chunk are stored beside the rows as `death`, int32 [L, P, T], -1 where a state is held at the end.

Rows: see docs/tasks.md. What the paper leaves open: "recent" is among the last k positions; a token's class is that of the word
its first character stands in; times are those of chunks, each from an empty state, and end with the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from msrnn_bench.datasets.chunks import Chunk
from msrnn_bench.errors import UsageError
from msrnn_bench.job import Job
from msrnn_bench.results.cells import Row
from msrnn_bench.tasks.perplexity import Perplexity, acted, inputs
from msrnn_bench.tasks.staying import words
from msrnn_bench.tasks.staying.classes import NAMES, VERSION, Classes, schemes
from msrnn_bench.tasks.staying.lifetimes import (
    first_alive,
    lifetimes,
    position_buckets,
    recent_share,
    step_buckets,
    steps_held,
)

if TYPE_CHECKING:
    from msrnn_bench.tasks.reading.losses import Measured

Part = tuple[str, int, int, float, float]  # subtask, bucket, total, count


@dataclass(frozen=True, kw_only=True)
class Retention(Perplexity):
    """`classes`: auto (characters, and words for prose or Python's tokens for pysource), or a list of char, pos and token."""

    classes: Literal["auto"] | tuple[Literal["char", "pos", "token"], ...] = "auto"

    name = "retention"
    deaths = True

    def settings(self) -> dict[str, Any]:
        """What of this task is part of a cell's identity."""
        classes = self.classes if isinstance(self.classes, str) else sorted(set(self.classes))
        return {**super().settings(), "classes": classes, "rules": VERSION}

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do."""
        super().check(job)
        if not job.policy.evicts or job.cache is None:
            raise UsageError(f"task=retention asks which states leave, and with policy={job.policy.name} none does: take another")
        if job.cache >= job.context:
            raise UsageError(
                f"task=retention asks which states leave, and cache={job.cache} holds all of context={job.context}: lower cache"
            )
        if "pos" in schemes(self.classes, job.dataset):
            words.check_installed()

    def rows(self, job: Job) -> Iterator[Row]:
        """Rows of all documents. A class that a document lacks and another has holds nothing of its state, and has a row that
        says so: shares then have the same whole in all documents."""
        found = list(super().rows(job))
        whole = {row.document: row for row in reversed(found) if row.metric == "composition"}
        names = list(dict.fromkeys(row.subtask for row in found if row.metric == "composition"))
        there = {(row.document, row.subtask) for row in found if row.metric == "composition"}
        for document in dict.fromkeys(row.document for row in found):
            yield from (row for row in found if row.document == document)
            for name in names:
                if (document, name) not in there:
                    yield Row(**{**vars(whole[document]), "subtask": name, "total": 0.0})

    def _arrays(self, first: list[Measured]) -> dict[str, np.ndarray]:
        assert first[0].deaths is not None
        return {"death": first[0].deaths.astype(np.int32)}

    def _document(self, pieces: list[Chunk], measured: list[Measured], job: Job) -> Iterator[dict[str, Any]]:
        yield from super()._document(pieces, measured, job)
        size, steps, shared = job.cache, job.context, acted(measured)
        assert size is not None
        deaths = [m.deaths for m in measured if m.deaths is not None]
        classes = self._classes(job)
        codes = [classes.of(piece) for piece in pieces] if classes.wanted else []
        for metric, parts in (
            ("lifetime", _lifetime(deaths, codes)),
            ("recent_share", _recent(deaths, size, steps)),
            ("composition", _composition(deaths, codes, size, steps)),
            ("first_alive", _first(deaths, steps)),
        ):
            for subtask, start, end, total, count in parts:
                yield {
                    **shared, "subtask": subtask, "bucket_start": start, "bucket_end": end, "metric": metric,
                    "total": float(total), "count": int(count),
                }  # fmt: skip

    def _classes(self, job: Job) -> Classes:
        """Those of the job's chunks, found out once for all cells of a process that share them."""
        wanted = schemes(self.classes, job.dataset)
        key = ("chunks", "classes", job.dataset, job.dataset.stamp(), job.documents, job.context, job.tokens, wanted)
        if key not in job.shared:
            loaded, pieces = inputs(job)
            job.shared[key] = Classes(job.dataset, job.documents, loaded.tokenizer, wanted, pieces)
        return job.shared[key]


def _layer(number: int, layers: int) -> str:
    return f"layer:{number:0{max(2, len(str(layers - 1)))}d}"


def _lifetime(deaths: Sequence[np.ndarray], codes: Sequence[dict[str, np.ndarray]]) -> Iterator[Part]:
    """Steps attended to, of all tokens, by position, layer and class. Counts are of tokens and layers."""
    times = np.stack([lifetimes(one) for one in deaths])  # [chunks, L, T]
    chunks, layers, steps = times.shape
    yield "all", 0, steps, times.sum(), times.size
    for start, end in position_buckets(steps):
        yield "position", start, end, times[..., start:end].sum(), chunks * layers * (end - start)
    for layer in range(layers):
        yield _layer(layer, layers), 0, steps, times[:, layer].sum(), chunks * steps
    for name, total, tokens in _by_class(times.sum(axis=1), codes):
        if tokens:
            yield name, 0, steps, total, layers * tokens


def _recent(deaths: Sequence[np.ndarray], size: int, steps: int) -> Iterator[Part]:
    """Recent states' share, over steps at which the state is full, and (`every`) over all."""
    shares = np.stack([recent_share(one, size) for one in deaths])  # [chunks, L, T]
    chunks, layers, _ = shares.shape
    buckets = step_buckets(size, steps)
    for layer in range(layers):
        for start, end in buckets:
            yield _layer(layer, layers), start, end, shares[:, layer, start:end].sum(), chunks * (end - start)
    for start, end in buckets:
        yield "all", start, end, shares[..., start:end].sum(), chunks * layers * (end - start)
    for name, start in (("all:full", size), ("all:every", 0)):
        yield name, start, steps, shares[..., start:].sum(), chunks * layers * (steps - start)


def _composition(deaths: Sequence[np.ndarray], codes: Sequence[dict[str, np.ndarray]], size: int, steps: int) -> Iterator[Part]:
    """States held of each class, over the steps at which the state is full."""
    held = np.stack([steps_held(one, size) for one in deaths])  # [chunks, L, T]
    states = len(deaths) * held.shape[1] * size * (steps - size)
    for name, total, tokens in _by_class(held.sum(axis=1), codes):
        if tokens:
            yield name, size, steps, total, states


def _first(deaths: Sequence[np.ndarray], steps: int) -> Iterator[Part]:
    alive = np.stack([first_alive(one) for one in deaths])  # [chunks, L]
    yield "all", 0, steps, alive.sum(), alive.size


def _by_class(values: np.ndarray, codes: Sequence[dict[str, np.ndarray]]) -> Iterator[tuple[str, float, int]]:
    """(class, sum of `values` [chunks, T] over its tokens, their number), for every class of every scheme."""
    for scheme in codes[0] if codes else ():
        found = np.stack([chunk[scheme] for chunk in codes])
        for code, name in enumerate(NAMES[scheme]):
            yield f"class:{scheme}/{name}", float(values[found == code].sum()), int((found == code).sum())

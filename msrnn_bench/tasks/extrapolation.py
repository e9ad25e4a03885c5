"""Extrapolation (the paper's 70K experiment, Figure 7): the loss of every token of texts far longer than those that the
model was trained on, each read once from an empty state that is carried to its end.

`tokens` is how much of each document is read, and is what the column `context` says: there are no chunks. The paper takes
the documents of at least that length. The full model has no positions for such texts; what it does on fresh chunks of its
own length, over the same targets, is the control (`policy=baseline cache=<its positions>`), for a text's difficulty drifts
too. The loss is summed by document and position; the running perplexity at n is exp of the sums over positions < n.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from msrnn_bench.datasets.amount import amount
from msrnn_bench.datasets.chunks import Chunk, beginnings, together
from msrnn_bench.errors import Count, UsageError, check_fields
from msrnn_bench.job import Job, Work, load
from msrnn_bench.models.limits import is_rotary, max_positions
from msrnn_bench.models.sources import Loaded
from msrnn_bench.multistate.rotation import stretches
from msrnn_bench.multistate.support import sliding_window
from msrnn_bench.policies import Baseline, Full
from msrnn_bench.results.cells import Row
from msrnn_bench.results.journal import Journal
from msrnn_bench.tasks.cost.batch import Batch, chosen, planned
from msrnn_bench.tasks.cost.memory import peak_bytes

if TYPE_CHECKING:
    from msrnn_bench.tasks.reading.losses import Measured

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """`every`: tokens of position a row; `least`: tokens that a document must have (null: all that are read of each);
    `chunk`: tokens of each row a forward pass, `batch`: rows, each a document of the same length (speed and memory; a result only
    as far as a batch changes the last bits of a sum), auto: see cost/batch.py."""

    every: Count = 1000
    least: Count | None = None
    chunk: Count = 1024
    batch: Batch = "auto"

    name = "extrapolation"
    template = None
    keeps_journal = False  # of a finished cell the rows say all
    shares = True  # by document, or by those that are read together

    def __post_init__(self) -> None:
        check_fields(self, "task")

    def settings(self) -> dict[str, Any]:
        """What of this task is part of a cell's identity."""
        return {"every": self.every, "least": self.least}

    def context(self, context: int | None, tokens: int | None) -> int:
        """What the column `context` says: how much is read of each document, at once and without chunks."""
        if context is not None:
            raise UsageError(f"task=extrapolation reads no chunks: leave context=null, and give tokens={context}")
        if tokens is None or tokens < 2:
            raise UsageError("how much of each document? task=extrapolation needs a number of 2 or more, such as tokens=70000")
        return tokens

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do: above all positions that the model does not have."""
        if job.prefill != "stepwise":
            raise UsageError(f"prefill={job.prefill} reads a prompt at once; extrapolation is stepwise by definition")
        config, name = job.model.config(), job.model.name
        limit = max_positions(config)
        if isinstance(job.policy, Baseline):
            if limit is not None and job.cache is not None and job.cache > limit:
                raise UsageError(
                    f"cache={job.cache}: policy=baseline reads fresh chunks of so many tokens, and {name} has {limit} positions: "
                    f"take cache={limit} or less"
                )
            return
        _check_streaming(job, config)
        if limit is None or job.context <= limit:
            return
        if isinstance(job.policy, Full):
            raise UsageError(
                f"tokens={job.context} is more than the {limit} positions of {name}, so the full model cannot read it: "
                f"its control is policy=baseline cache={limit}, fresh chunks over the same targets"
            )
        if not is_rotary(config):
            raise UsageError(
                f"{name} has a table of {limit} positions, it cannot extrapolate: take tokens={limit} or less, or a rotary model"
            )
        if job.positions == "original" and not getattr(job.model, "extrapolate", False):
            raise UsageError(
                f"tokens={job.context} is more than the {limit} positions of {name}: positions=compressed stays among "
                "those it was trained on, model.extrapolate=true goes beyond"
            )

    def work(self, job: Job) -> Work | None:
        """Each document's beginning read once; of the baseline, a batch of pieces at a time."""
        found = amount(job.dataset, context=job.context, documents=job.documents, tokens=job.context)
        if found is None:
            return None
        if isinstance(job.policy, Baseline) and job.cache is not None:
            return Work(*found, logits=min(job.cache, job.context))
        rows = max(1, min(planned(self.batch), found[0] // job.context))
        return Work(*found, rows=rows, logits=rows * min(self.chunk, job.context))

    def rows(self, job: Job) -> Iterator[Row]:
        """Rows of all documents, in order; one that an earlier run has read is not read again."""
        loaded, texts = self._inputs(job)
        journal = Journal(job.journal, job.earlier)
        columns = {**job.columns, "bos": texts[0].bos}
        batch = chosen(self.batch, loaded.model, job, texts=len(texts), chunk=self.chunk)
        groups = together([[text] for text in texts], batch)
        ours = [{n: texts[n] for n in group} for number, group in enumerate(groups) if job.mine(number)]
        job.progress.start(sum(len(text.ids) for group in ours for text in group.values()))
        for group in ours:
            for text, record in zip(group.values(), self._records(loaded, group, job, journal), strict=True):
                for start, end, total, count in record["buckets"]:
                    yield Row(
                        **columns, **record["shared"], document=text.document, bucket_start=start, bucket_end=end, metric="nll",
                        total=total, count=count,
                    )  # fmt: skip

    def _inputs(self, job: Job) -> tuple[Loaded, list[Chunk]]:
        """The model, and the beginnings of the documents, made once for all cells of a process that share them."""
        loaded = load(job)
        sizes: dict[str, Any] = {"tokens": job.context, "least": self.least or job.context, "documents": job.documents}
        wanted = ("chunks", "beginnings", job.dataset, job.dataset.stamp(), *sizes.values())
        if wanted not in job.shared:
            texts, short = beginnings(job.dataset, loaded.tokenizer, **sizes)
            if short:
                named = ", ".join(f"{name} ({length:,})" for name, length in list(short.items())[:5])
                more = f" and {len(short) - 5} more" if len(short) > 5 else ""
                log.warning(
                    "%d of %d documents have fewer than %d tokens and are left out: %s%s",
                    len(short), len(short) + len(texts), sizes["least"], named, more,
                )  # fmt: skip
            job.shared[wanted] = texts
        return loaded, job.shared[wanted]

    def _records(self, loaded: Loaded, group: dict[int, Chunk], job: Job, journal: Journal) -> list[dict[str, Any]]:
        """Of documents that are read together: sums by position, and what a document's rows share, of the journal or measured
        from the first token to the last. Where one is missing all are read, for in another company the last bits would be
        others."""
        from msrnn_bench.tasks.reading.losses import measure

        keys = [f"{number:04d}/{text.document}" for number, text in group.items()]
        known = [journal.get(key) for key in keys]
        if None not in known:
            job.progress.restored(sum(len(text.ids) for text in group.values()))
            return [record for record in known if record is not None]
        found = measure(loaded.model, list(group.values()), job, self.chunk, advance=job.progress.advance)
        return [record or journal.add(key, self._record(one)) for key, record, one in zip(keys, known, found, strict=True)]

    def _record(self, found: Measured) -> dict[str, Any]:
        """What the journal has of a document."""
        shared = {key: value for key, value in asdict(found).items() if key not in ("values", "deaths")}
        tokens = len(found.values["nll"]) + 1
        shared |= {"tokens_per_second": tokens / found.seconds, "peak_bytes": peak_bytes()}
        return {"shared": shared, "buckets": list(self._sums(found.values["nll"]))}

    def _sums(self, values: np.ndarray) -> Iterator[tuple[int, int, float, int]]:
        """Start, end, sum and number of each bucket of target positions; target p of T stands at p - 1 of T - 1 values."""
        total = len(values) + 1
        for start, end in pairwise([*range(0, total, self.every), total]):
            part = values[max(start, 1) - 1 : end - 1]
            if part.size:
                yield start, end, float(part.sum(dtype=np.float64)), int(part.size)


def _check_streaming(job: Job, config: Any) -> None:
    """Refuse models whose states cannot be carried so far: their own window would bind, or their rotation would change."""
    window = sliding_window(config)
    if window is not None and job.context > window:
        raise UsageError(
            f"the own sliding window of {job.model.name} would bind beyond {window} tokens, so it cannot read a text of "
            f"tokens={job.context} as a multi-state RNN: take tokens={window} or less"
        )
    stretched = stretches(config)
    if stretched is not None and job.context > stretched[1]:
        raise UsageError(
            f"the {stretched[0]} rotation of {job.model.name} depends on the length of the text beyond {stretched[1]} tokens, so "
            f"a longer one cannot be streamed: take tokens={stretched[1]} or less"
        )

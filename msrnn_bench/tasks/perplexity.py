"""Language modelling (the paper, section 4.1): the loss of every token of long chunks, each from an empty state.

Where we differ or the paper is silent: full chunks only, tokens weigh alike, a beginning mark only where the
tokenizer adds one itself; all of it is in the rows. The loss is summed by document and position bucket; no mean here.
A killed cell goes on at the document it was in. Documents that one batch reads together are done together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from msrnn_bench.datasets.amount import amount
from msrnn_bench.datasets.chunks import Chunk, chunks, together
from msrnn_bench.errors import Count, UsageError, check_fields
from msrnn_bench.job import Job, Work, load
from msrnn_bench.models.sources import Loaded
from msrnn_bench.multistate.rotation import piece_of
from msrnn_bench.policies import Baseline, Full
from msrnn_bench.results.cells import Row
from msrnn_bench.results.journal import Journal, packed, unpacked
from msrnn_bench.tasks.cost.batch import Batch, chosen, planned
from msrnn_bench.tasks.cost.memory import peak_bytes

if TYPE_CHECKING:
    from msrnn_bench.tasks.reading.losses import Measured

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """`buckets`: edges of the position buckets; `chunk`: tokens of each row a forward pass, `batch`: rows, each
    a chunk of a document (speed and memory; a result only as far as a batch changes the last bits of a sum), auto: see
    cost/batch.py; `agreement`: also KL divergence to and top-1 agreement with the full model."""

    buckets: tuple[Count, ...] = field(default=(64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536))
    chunk: Count = 1024
    batch: Batch = "auto"
    agreement: bool = False

    name = "perplexity"
    template = None
    keeps_tokens = True  # each token's loss can be kept beside the rows
    keeps_journal = False  # of a finished cell the rows say all
    shares = True  # by document, or by those that are read together
    deaths = False  # whether the step at which each state left is asked for

    def __post_init__(self) -> None:
        check_fields(self, "task")

    def settings(self) -> dict[str, Any]:
        """What of this task is part of a cell's identity."""
        return {"buckets": sorted(set(self.buckets)), "agreement": self.agreement}

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do."""
        if job.prefill != "stepwise":
            raise UsageError(f"prefill={job.prefill} reads a prompt at once; perplexity is stepwise by definition")
        if self.agreement and isinstance(job.policy, Full | Baseline):
            raise UsageError(
                f"task.agreement compares a bounded state with the full model; leave it off for policy={job.policy.name}"
            )

    def work(self, job: Job) -> Work | None:
        """Each token read once, or twice where the full model reads along; of the baseline, a batch of pieces at a time."""
        found = amount(job.dataset, context=job.context, documents=job.documents, tokens=job.tokens)
        if found is None:
            return None
        tokens, how = found
        rows = max(1, min(planned(self.batch), tokens // job.context))
        once = min(self.chunk, job.context) * rows
        if isinstance(job.policy, Baseline) and job.cache is not None:
            rows, once = 1, min(job.context, max(1, 4096 // job.cache) * job.cache)
        return Work(tokens * (2 if self.agreement else 1), how, rows=rows, logits=once)

    def rows(self, job: Job) -> Iterator[Row]:
        """Rows of all documents, in order."""
        loaded, pieces = inputs(job)
        once = min(self.chunk, job.context)
        if piece_of(loaded.model.config, job.context, once) > once:
            log.warning(
                "the model's rotation depends on the text's length: each is read in one call of %d tokens, not of %d",
                job.context, self.chunk,
            )  # fmt: skip
        columns, journal = {**job.columns, "bos": pieces[0].bos}, Journal(job.journal, job.earlier)
        packs: dict[str, list[str]] = {"tokens": [], "arrays": []}
        documents = [list(group) for _, group in groupby(pieces, key=lambda piece: piece.document)]
        batch = chosen(self.batch, loaded.model, job, texts=len(pieces), chunk=self.chunk, beside=self.agreement)
        groups = [{number: documents[number] for number in group} for group in together(documents, batch)]
        ours = [group for number, group in enumerate(groups) if job.mine(number)]
        job.progress.start(sum(len(document) for group in ours for document in group.values()) * job.context)
        for group in ours:
            for number, record in self._records(loaded, group, job, columns, journal, batch):
                yield from _rows(columns, documents[number][0].document, record)
                for kind, found in packs.items():
                    found += [record[kind]] if record[kind] else []
        for kind, put in (("tokens", job.keep), ("arrays", job.store)):
            parts = [unpacked(pack) for pack in packs[kind]] if put is not None else []
            for name in dict.fromkeys(name for part in parts for name in part):
                put(name, np.concatenate([part[name] for part in parts if name in part]))  # type: ignore[misc]

    def _records(
        self, loaded: Loaded, group: dict[int, list[Chunk]], job: Job, columns: dict[str, Any], journal: Journal, batch: int
    ) -> list[tuple[int, dict[str, Any]]]:
        """Of documents that are read together, by number: each one's rows, its tokens' losses where they are kept, its other
        arrays, of the journal or measured. Where one is missing all are read, for in another company the last bits would be
        others.

        One that an earlier run measured without keeping what is now to be kept is measured again."""
        keys = {number: f"{number:05d} {pieces[0].document}" for number, pieces in group.items()}
        known = {number: record for number, key in keys.items() if (record := journal.get(key)) is not None}
        if job.keep is not None:
            known = {number: record for number, record in known.items() if record["tokens"]}
        pieces = [piece for document in group.values() for piece in document]
        if len(known) == len(group):
            job.progress.restored(len(pieces) * job.context)
            return list(known.items())
        measured: list[Measured] = []
        for at in range(0, len(pieces), batch):
            measured += self._measure(loaded, pieces[at : at + batch], job)
            job.progress.advance(len(pieces[at : at + batch]) * job.context)
        each = iter(measured)
        for number, document in group.items():
            found = list(islice(each, len(document)))
            if number not in known:
                known[number] = journal.add(keys[number], self._record(document, found, job, columns, number))
        return sorted(known.items())

    def _record(
        self, pieces: list[Chunk], measured: list[Measured], job: Job, columns: dict[str, Any], number: int
    ) -> dict[str, Any]:
        """What the journal has of a document."""
        tokens = {metric: np.stack([m.values[metric] for m in measured]) for metric in measured[0].values}
        arrays = {} if number else self._arrays(measured)
        record = {
            "rows": list(self._document(pieces, measured, job)),
            "tokens": packed(tokens) if job.keep is not None else None,
            "arrays": packed(arrays) if arrays else None,
        }
        _rows(columns, pieces[0].document, record)  # what is no number is refused here, by name
        return record

    def _arrays(self, first: list[Measured]) -> dict[str, np.ndarray]:
        """What else is stored, of the first document alone."""
        return {}

    def _measure(self, loaded: Loaded, pieces: list[Chunk], job: Job) -> list[Measured]:
        from msrnn_bench.tasks.reading.losses import measure

        return measure(loaded.model, pieces, job, self.chunk, agreement=self.agreement, deaths=self.deaths)

    def _document(self, pieces: list[Chunk], measured: list[Measured], job: Job) -> Iterator[dict[str, Any]]:
        """The rows of a document, but for what is the same in all: its chunks summed, per metric and bucket of target
        positions."""
        context = job.context
        edges = [0, *(edge for edge in sorted(set(self.buckets)) if edge < context), context]
        seconds = sum(m.seconds for m in measured)
        shared: dict[str, Any] = {
            **acted(measured),
            "state_bytes": max((m.state_bytes for m in measured if m.state_bytes is not None), default=None),
            "seconds": seconds,
            "tokens_per_second": len(measured) * context / seconds,
            "peak_bytes": peak_bytes(),
        }
        for metric in measured[0].values:
            values = np.stack([m.values[metric] for m in measured])  # [chunks, T - 1]; target p stands at p - 1
            for start, end in pairwise(edges):
                part = values[:, max(start, 1) - 1 : end - 1]
                if part.size:
                    total = float(part.sum(dtype=np.float64))
                    yield {
                        **shared, "bucket_start": start, "bucket_end": end, "metric": metric, "total": total, "count": part.size
                    }  # fmt: skip


def _rows(columns: dict[str, Any], document: str, record: dict[str, Any]) -> list[Row]:
    return [Row(**columns, **row, document=document) for row in record["rows"]]


def acted(measured: list[Measured]) -> dict[str, int | None]:
    """The row columns of what a document's states did; `_report` has seen that all chunks agree."""
    return {
        "evictions": measured[0].evictions,
        "first_eviction": measured[0].first_eviction,
        "max_states": max((m.max_states for m in measured if m.max_states is not None), default=None),
    }


def inputs(job: Job) -> tuple[Loaded, list[Chunk]]:
    """The model and the chunks, made once for all cells of a process that share them."""
    loaded = load(job)
    sizes: dict[str, Any] = {"context": job.context, "documents": job.documents, "tokens": job.tokens}
    wanted = ("chunks", job.dataset, job.dataset.stamp(), *sizes.values())
    if wanted not in job.shared:
        job.shared[wanted] = chunks(job.dataset, loaded.tokenizer, **sizes)
    return loaded, job.shared[wanted]

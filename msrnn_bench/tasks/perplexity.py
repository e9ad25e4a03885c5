"""Language modelling (the paper, section 4.1): the loss of every token of long chunks, each from an empty state.

Where we differ or the paper is silent: full chunks only, tokens weigh alike, a beginning mark only where the
tokenizer adds one itself; all of it is in the rows. The loss is summed by document and position bucket; no mean here.
A killed cell goes on at the document it was in.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from msrnn_bench.datasets.amount import amount
from msrnn_bench.datasets.chunks import Chunk, chunks
from msrnn_bench.errors import Count, UsageError, check_fields
from msrnn_bench.job import Job, Work, load
from msrnn_bench.models.sources import Loaded
from msrnn_bench.multistate.rotation import piece_of
from msrnn_bench.policies import Baseline, Full
from msrnn_bench.results.cells import Row
from msrnn_bench.results.journal import Journal, packed, unpacked
from msrnn_bench.tasks.cost.memory import peak_bytes

if TYPE_CHECKING:
    from msrnn_bench.tasks.reading.losses import Measured

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """`buckets`: edges of the position buckets; `chunk`: tokens a forward pass (never the result);
    `agreement`: also KL divergence to and top-1 agreement with the full model."""

    buckets: tuple[Count, ...] = field(default=(64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536))
    chunk: Count = 1024
    agreement: bool = False

    name = "perplexity"
    template = None
    keeps_tokens = True  # each token's loss can be kept beside the rows
    keeps_journal = False  # of a finished cell the rows say all
    shares = True  # by document
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
        once = min(self.chunk, job.context)
        if isinstance(job.policy, Baseline) and job.cache is not None:
            once = min(job.context, max(1, 4096 // job.cache) * job.cache)
        return Work(tokens * (2 if self.agreement else 1), how, logits=once)

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
        documents = [(document, list(group)) for document, group in groupby(pieces, key=lambda piece: piece.document)]
        ours = [(number, *found) for number, found in enumerate(documents) if job.mine(number)]
        job.progress.start(sum(len(group) for _, _, group in ours) * job.context)
        for number, document, group in ours:
            record = self._record(loaded, group, job, columns, journal, number)
            yield from _rows(columns, document, record)
            for kind, found in packs.items():
                found += [record[kind]] if record[kind] else []
        for kind, put in (("tokens", job.keep), ("arrays", job.store)):
            parts = [unpacked(pack) for pack in packs[kind]] if put is not None else []
            for name in dict.fromkeys(name for part in parts for name in part):
                put(name, np.concatenate([part[name] for part in parts if name in part]))  # type: ignore[misc]

    def _record(
        self, loaded: Loaded, pieces: list[Chunk], job: Job, columns: dict[str, Any], journal: Journal, number: int
    ) -> dict[str, Any]:
        """A document's rows, its tokens' losses where they are kept, its other arrays: of the journal, or measured.

        One that an earlier run measured without keeping what is now to be kept is measured again."""
        key = f"{number:05d} {pieces[0].document}"
        record = journal.get(key)
        if record is not None and (job.keep is None or record["tokens"]):
            job.progress.restored(len(pieces) * job.context)
            return record
        measured = []
        for piece in pieces:
            measured.append(self._measure(loaded, piece, job))
            job.progress.advance(job.context)
        tokens = {metric: np.stack([m.values[metric] for m in measured]) for metric in measured[0].values}
        arrays = {} if number else self._arrays(measured)
        record = {
            "rows": list(self._document(pieces, measured, job)),
            "tokens": packed(tokens) if job.keep is not None else None,
            "arrays": packed(arrays) if arrays else None,
        }
        _rows(columns, pieces[0].document, record)  # what is no number is refused here, by name
        return journal.add(key, record)

    def _arrays(self, first: list[Measured]) -> dict[str, np.ndarray]:
        """What else is stored, of the first document alone."""
        return {}

    def _measure(self, loaded: Loaded, piece: Chunk, job: Job) -> Measured:
        import torch

        from msrnn_bench.multistate.attention import bounded
        from msrnn_bench.tasks.reading.losses import Measured, baseline_losses, losses, report

        ids = torch.tensor([piece.ids], device=loaded.model.device)
        begin = time.perf_counter()
        if isinstance(job.policy, Baseline):
            assert job.cache is not None
            values = baseline_losses(loaded.model, ids, job.cache)
            return Measured(values, time.perf_counter() - begin, max_states=min(job.cache, job.context))
        document = zlib.crc32(piece.document.encode()) + piece.index
        options: dict[str, Any] = {"engine": job.engine, "positions": job.positions, "documents": [document]}
        states = bounded(loaded.model, job.policy, job.cache, deaths=self.deaths, **options)
        full = bounded(loaded.model, Full(), **options) if self.agreement else None
        values = losses(loaded.model, ids, self.chunk, states, full)
        result = Measured(values, time.perf_counter() - begin)
        report(states, job, result)
        if self.deaths:
            result.deaths = torch.stack([layer[0] for layer in states.deaths]).cpu().numpy()
        return result

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

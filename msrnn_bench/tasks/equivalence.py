"""The theorem, measured (the paper, section 3.1): a transformer's decoder is an unbounded multi-state RNN, and a bounded one with
room for all states is the model itself. Three pairs that must be one function, on the dataset's text.

`recurrence/library`  the definition, token by token and unbounded, against the library's own forward
`scan/recurrence`     the two engines under the job's policy at k
`bounded/full`        the policy with room for all T states against the library's own forward

The unit is `rounding`: how far apart the same sums are in two orders. In float64 the library's casts to float32 (norms, softmax,
rotations) are left out on both sides, so that 1e-12 tells right from wrong; everywhere else nothing is changed.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msrnn_bench.datasets.amount import amount
from msrnn_bench.datasets.chunks import Chunk, chunks
from msrnn_bench.errors import UsageError, check_fields
from msrnn_bench.job import Job, Work, load
from msrnn_bench.results.cells import Row


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Rows per text (a chunk of `context` tokens is one) and pair: `max_difference` (largest difference of two logits),
    `kl` (nats a token, of the second from the first), `top1_agreement`, `rounding` (largest difference of two logits between two
    orders of the same sums: the library's eager attention against its fused one, and the text whole against in two pieces, the
    larger), `in_rounding` (the first in units of the last); and of the engines `same_states`, the share of the states
    at the end that both kept, for where two scores are as good as equal rounding decides who leaves, and then logits differ
    by more than it."""

    name = "equivalence"
    template = None

    def __post_init__(self) -> None:
        check_fields(self, "task")

    def settings(self) -> dict[str, Any]:
        """What of this task is part of a cell's identity."""
        return {}

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do."""
        if not job.policy.evicts:
            raise UsageError(f"policy={job.policy.name} bounds nothing to hold against the full model: take policy=tova")
        if job.prefill != "stepwise":
            raise UsageError(f"prefill={job.prefill} is not the recurrence: task=equivalence takes prefill=stepwise")
        if job.positions != "original":
            raise UsageError(
                f"positions={job.positions} is another function than the library's: task=equivalence takes positions=original"
            )
        assert job.cache is not None
        if job.cache >= job.context:
            raise UsageError(
                f"cache={job.cache} has room for all {job.context} tokens, so nothing would be evicted: "
                f"take cache={max(1, job.context // 4)}, or a larger context"
            )

    def work(self, job: Job) -> Work | None:
        """Each token of the texts; how often it is read is in the rate of finished cells."""
        found = amount(job.dataset, context=job.context, documents=job.documents, tokens=job.tokens)
        return None if found is None else Work(*found, logits=job.context)

    def rows(self, job: Job) -> Iterator[Row]:
        """Rows of all texts, in order."""
        import torch

        from msrnn_bench.multistate.twin import Wide
        from msrnn_bench.tasks.reading.pairs import compare

        loaded = load(job)
        sizes: dict[str, Any] = {"context": job.context, "documents": job.documents, "tokens": job.tokens}
        found = chunks(job.dataset, loaded.tokenizer, **sizes)
        job.progress.start(len(found) * job.context)
        for chunk in found:
            ids = torch.tensor([chunk.ids], device=loaded.model.device)
            with torch.no_grad(), Wide() if job.dtype == "float64" else contextlib.nullcontext():
                pairs = compare(loaded.model, ids, job, zlib.crc32(chunk.document.encode()) + chunk.index)
            for subtask, metrics in pairs.items():
                for metric, (total, count) in metrics.items():
                    yield _row(job, chunk, subtask, metric, total, count)
            job.progress.advance(job.context)


def _row(job: Job, chunk: Chunk, subtask: str, metric: str, total: float | None, count: int) -> Row:
    """What is infinite was made of logits that are no numbers, and is missing as what has no unit is."""
    assert job.cache is not None
    held = job.cache if subtask == "scan/recurrence" else job.context
    number = total if total is not None and math.isfinite(total) else None
    status = "ok" if number is not None else "no rounding to measure in" if total is None else "logits that are no numbers"
    return Row(
        **job.columns, bos=chunk.bos, document=f"{chunk.document}#{chunk.index}" if chunk.index else chunk.document,
        subtask=subtask, bucket_start=0, bucket_end=job.context, metric=metric, total=number, count=count,
        evictions=job.context - held, max_states=held, status=status,
    )  # fmt: skip

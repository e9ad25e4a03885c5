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

import torch
from torch import Tensor

from msrnn_bench.datasets.amount import amount
from msrnn_bench.datasets.chunks import Chunk, chunks
from msrnn_bench.errors import UsageError, check_fields
from msrnn_bench.job import Job, Work, load
from msrnn_bench.multistate.attention import Session, bounded
from msrnn_bench.multistate.naming import cache_in, carried
from msrnn_bench.multistate.rotation import forget_lengths, stretches
from msrnn_bench.multistate.twin import Wide
from msrnn_bench.policies import Full
from msrnn_bench.results.cells import Row
from msrnn_bench.tasks.writing.answers import check_states

ORDERS = ("eager", "sdpa")  # the library's own ways to sum one attention
PART = 0.6  # of a text in its first piece: no multiple of a block


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


def compare(model: Any, ids: Tensor, job: Job, document: int) -> dict[str, dict[str, tuple[float | None, int]]]:
    """Pair -> metric -> (total, count) for one text, ids [1, T]; a total is None where there is no such number."""
    total = ids.shape[1]

    def bounding(policy: Any, size: int | None, engine: str) -> Session:
        return bounded(model, policy, size, engine=engine, documents=[document])

    library = own(model, ids)
    spread = max(apart(other, library) for other in [*_orders(model, ids), *_in_pieces(model, ids)])
    scanning, walking = (bounding(job.policy, job.cache, engine) for engine in ("scan", "recurrence"))
    scan, walk = _read(scanning, ids, total), _read(walking, ids, total)
    again = bounding(job.policy, job.cache, "scan")
    own_spread = max(spread, apart(_read(again, ids, _part(model, total)), scan))
    for session in (scanning, walking, again):
        check_states(session, job, [total])
    kept = same_states(scanning, walking)
    return {
        "recurrence/library": measures(_read(bounding(Full(), None, "recurrence"), ids, total), library, spread),
        "scan/recurrence": {**measures(scan, walk, own_spread), "same_states": kept},
        "bounded/full": measures(_read(bounding(job.policy, total, "scan"), ids, total), library, spread),
    }


def measures(ours: Tensor, theirs: Tensor, rounding: float) -> dict[str, tuple[float | None, int]]:
    """Of two logits [T, V]: what the rows say, (total, count) each."""
    tokens, difference = len(ours), apart(ours, theirs)
    one, other = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    divergence = (other.exp() * (other - one)).sum(-1).clamp(min=0)  # of two equal rows rounding makes it less than 0
    agree = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    units = difference / rounding if rounding > 0 else 0.0 if difference == 0 else None
    return {
        "max_difference": (difference, 1),
        "kl": (float(divergence.sum()), tokens),
        "top1_agreement": (float(agree), tokens),
        "rounding": (rounding, 1),
        "in_rounding": (units, 1),
    }


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two logits; infinite where one of them is no number."""
    difference = float((ours.double() - theirs.double()).abs().max())
    return difference if math.isfinite(difference) else math.inf


def same_states(one: Session, other: Session) -> tuple[float, int]:
    """States at the end that both have kept, and all; over layers and whoever decides alone."""
    same, held = 0, 0
    for left, right in zip(one.layers, other.layers, strict=True):
        for ours, theirs in zip(left.kept[0].tolist(), right.kept[0].tolist(), strict=True):
            same, held = same + len(set(ours) & set(theirs)), held + len(ours)
    return float(same), held


def own(model: Any, ids: Tensor, **options: Any) -> Tensor:
    """The library's own logits [T, V], as the model was loaded."""
    forget_lengths(model)
    return model(ids, use_cache=False, **options).logits[0]


def _orders(model: Any, ids: Tensor) -> Iterator[Tensor]:
    """The library's logits with its other attentions; one that this class does not have, or not here, is left out."""
    before = model.config._attn_implementation
    try:
        for name in ORDERS:
            if name != before:
                with contextlib.suppress(ValueError, ImportError, NotImplementedError):
                    model.set_attn_implementation(name)
                    yield own(model, ids)
    finally:
        model.set_attn_implementation(before)


def _in_pieces(model: Any, ids: Tensor) -> Iterator[Tensor]:
    """The library's logits of the text in two pieces; nothing where its rotation needs the whole text."""
    part = _part(model, ids.shape[1])
    if part == ids.shape[1]:
        return
    forget_lengths(model)
    first = model(ids[:, :part], use_cache=True)
    second = model(ids[:, part:], **carried(model, cache_in(first)), use_cache=True)
    yield torch.cat([first.logits, second.logits], dim=1)[0]


def _part(model: Any, total: int) -> int:
    """Tokens of the first of two pieces; all where the model must read the text at once."""
    return max(1, int(total * PART)) if stretches(model.config) is None else total


def _read(session: Session, ids: Tensor, part: int) -> Tensor:
    """The bounded model's logits [T, V], in pieces of `part` tokens."""
    logits = []
    with session:
        for at in range(0, ids.shape[1], part):
            logits.append(session.model(ids[:, at : at + part], **carried(session.model, session.current)).logits[0])
    return torch.cat(logits)

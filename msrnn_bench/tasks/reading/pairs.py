"""Two functions that must be one, held against each other on a text; and how far apart the same sums are in two orders."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from msrnn_bench.job import Job
from msrnn_bench.multistate.attention import Session, bounded
from msrnn_bench.multistate.naming import cache_in, carried
from msrnn_bench.multistate.rotation import forget_lengths, stretches
from msrnn_bench.policies import Full
from msrnn_bench.tasks.writing.answers import check_states

ORDERS = ("eager", "sdpa")  # the library's own ways to sum one attention
PART = 0.6  # of a text in its first piece: no multiple of a block


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

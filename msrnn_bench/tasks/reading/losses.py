"""The loss of every token of texts, read piece by piece under a policy; and what the states did meanwhile.

Importing this imports torch and transformers, so a task imports it where it measures.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msrnn_bench.datasets.chunks import Chunk
from msrnn_bench.job import Job, check_places
from msrnn_bench.multistate.attention import Session, bounded
from msrnn_bench.multistate.naming import carried
from msrnn_bench.multistate.overlap import overlapped
from msrnn_bench.multistate.rotation import piece_of
from msrnn_bench.policies import Baseline, Full

PIECE = 32  # rows of logits turned into a loss at a time: megabytes that stay in the cache, not a chunk's hundreds


@dataclass
class Measured:
    """One chunk's numbers, a value per target (positions 1..T-1), and what its states did."""

    values: dict[str, np.ndarray]
    seconds: float
    evictions: int | None = None
    first_eviction: int | None = None
    max_states: int | None = None
    state_bytes: int | None = None
    deaths: np.ndarray | None = None  # [L, P, T], of a task that asks when each state left


def measure(
    model: Any, texts: Sequence[Chunk], job: Job, chunk: int, *, agreement: bool = False, deaths: bool = False,
    advance: Callable[[int], None] | None = None,
) -> list[Measured]:  # fmt: skip
    """What is measured of each text under the job's policy. All have one length and each begins with an empty state; they are
    the rows of one batch, in passes of `chunk` tokens a row. The baseline, whose pieces are a batch already, reads them one by
    one.

    Rows of a batch are alike, so `seconds` is an equal share of the batch's. The random policy draws by document and number of
    the chunk: a row is what it is alone, but for the order in which sums are made. `agreement`: also against the full model;
    `deaths`: also when each state left."""
    ids = torch.tensor([text.ids for text in texts], device=model.device)
    job = replace(job, context=ids.shape[1])  # of a document that ends before `tokens`, its own length
    if isinstance(job.policy, Baseline):
        return [_baseline(model, row[None], job, advance) for row in ids]
    begin = time.perf_counter()
    numbers = [zlib.crc32(text.document.encode()) + text.index for text in texts]
    options: dict[str, Any] = {"engine": job.engine, "positions": job.positions, "documents": numbers}
    states = bounded(model, job.policy, job.cache, deaths=deaths, **options)
    full = bounded(model, Full(), **options) if agreement else None
    values = losses(model, ids, chunk, states, full, advance, job.streams)
    seconds = (time.perf_counter() - begin) / len(texts)
    found = [Measured({metric: rows[row] for metric, rows in values.items()}, seconds) for row in range(len(texts))]
    report(states, job, found)
    for row, one in enumerate(found if deaths else ()):
        one.deaths = torch.stack([layer[row] for layer in states.deaths]).cpu().numpy()
    return found


def _baseline(model: Any, ids: Tensor, job: Job, advance: Callable[[int], None] | None) -> Measured:
    assert job.cache is not None
    begin = time.perf_counter()
    values = baseline_losses(model, ids, job.cache, advance)
    return Measured(values, time.perf_counter() - begin, max_states=min(job.cache, job.context))


def losses(
    model: Any, ids: Tensor, chunk: int, states: Session, full: Session | None, advance: Callable[[int], None] | None = None,
    streams: int = 1,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Per target of ids [B, T], as [B, T - 1]: nll, and against the full model kl and top1_agreement. The state is carried from
    one forward pass to the next, so [T, vocabulary] never exists (but for models whose rotation needs the whole text at once).
    `advance` is told how many tokens each pass has read; with two `streams` two passes overlap (not beside the full model)."""
    batch, total = ids.shape
    chunk = piece_of(model.config, total, chunk)
    values = {"nll": np.empty((batch, total - 1))}
    parts = ids.split(chunk, dim=1)
    with closing(_passes(model, parts, states, full, streams)) as passes:
        for part, at in zip(parts, range(0, total, chunk), strict=True):
            logits, reference = next(passes)
            targets = ids[:, at + 1 : at + chunk + 1]
            for row, first in product(range(batch), range(0, targets.shape[1], PIECE)):
                here = (row, slice(first, min(first + PIECE, targets.shape[1])))
                found = {"nll": _nll(logits[here], targets[here])}
                if reference is not None:
                    found |= _compare(logits[here], reference[here])
                for metric, x in found.items():  # into arrays made before: small tensors among large ones pin the heap's pages
                    whole = values.setdefault(metric, np.empty((batch, total - 1)))
                    whole[row, at + first : at + first + len(x)] = x.double().cpu().numpy()
            del logits, reference
            if advance is not None:
                advance(part.numel())
    return values


def _passes(
    model: Any, parts: Sequence[Tensor], states: Session, full: Session | None, streams: int
) -> Generator[tuple[Tensor, Tensor | None]]:
    """Logits [B, n, V] of each part [B, n], the states gone on, and those of the full model; none is kept for the next."""
    if streams > 1 and full is None and len(parts) > 1:
        with states:
            yield from map(lambda logits: (logits, None), overlapped(model, states, parts))
    else:
        for part in parts:
            yield _pass(model, states, part), None if full is None else _pass(model, full, part)


def _pass(model: Any, session: Session, part: Tensor) -> Tensor:
    with session:
        logits: Tensor = model(part, **carried(model, session.current)).logits
    return logits


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(_wide(logits), targets, reduction="none")


def _compare(logits: Tensor, reference: Tensor) -> dict[str, Tensor]:
    ours, theirs = _wide(logits).log_softmax(-1), _wide(reference).log_softmax(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    return {"kl": kl, "top1_agreement": (ours.argmax(-1) == theirs.argmax(-1)).to(kl.dtype)}


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def baseline_losses(model: Any, ids: Tensor, size: int, advance: Callable[[int], None] | None = None) -> dict[str, np.ndarray]:
    """Independent inputs jk..jk+k-1 predict targets jk+1..jk+k: the same targets as every other policy."""
    total = ids.shape[1]
    values = np.empty(total - 1)
    whole = (total - 1) // size
    rows = max(1, 4096 // size)  # rows of a batch: as many tokens as a chunk of the paper
    batches = [ids[0, : whole * size].view(whole, size)[i : i + rows] for i in range(0, whole, rows)]
    if whole * size < total - 1:
        batches.append(ids[:, whole * size : total - 1])
    here = 0
    for batch in batches:
        for logits in model(batch, use_cache=False).logits:
            for row in range(0, len(logits), PIECE):
                part = _nll(logits[row : row + PIECE], ids[0, here + 1 : here + 1 + len(logits[row : row + PIECE])])
                values[here : here + len(part)] = part.double().cpu().numpy()
                here += len(part)
        if advance is not None:
            advance(batch.numel())
    return {"nll": values}


def report(states: Session, job: Job, results: Sequence[Measured]) -> None:
    """Note what the states of each row did; a policy that did not do exactly what it must is an error, not a result."""
    layers = states.layers
    evictions = {float(n) for layer in layers for n in layer.evictions.double().mean(-1).tolist()}
    largest = [max(layer.largest[row] for layer in layers) for row in range(len(results))]
    bound = job.context if job.cache is None else job.cache
    due = max(0, job.context - bound) if job.policy.evicts else 0
    if evictions != {float(due)} or set(largest) != {min(job.context, bound)}:
        raise RuntimeError(
            f"policy {job.policy.name} evicted {sorted(evictions)} states a layer where {due} were due, and held "
            f"{sorted(set(largest))} of {bound}: the policy did not act as it should, so nothing was measured"
        )
    check_places(job, layers)
    for row, result in enumerate(results):
        result.evictions = due
        result.first_eviction = min(int(layer.first_eviction[row].min()) for layer in layers) if due else None
        result.max_states = largest[row]
        result.state_bytes = sum(layer.nbytes for layer in layers) // len(results)  # all rows hold as many

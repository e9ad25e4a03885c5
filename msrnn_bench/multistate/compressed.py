"""The scan under compressed positions. Where a state stands changes with every eviction beside it, so that no block of queries
sees the same keys: until the first eviction plain attention, then a compiled step a token (compressed_kernels.py).

States keep their keys unturned. What the kernel does not know (a user's own policy, other devices and dtypes) is walked by
the recurrence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msrnn_bench.multistate import recurrence
from msrnn_bench.multistate.draw import draw_key
from msrnn_bench.multistate.positions import Rotation, reach
from msrnn_bench.multistate.state import State, kept_each_step, score_dtype
from msrnn_bench.policies import Rule

Blocks = Callable[..., tuple[Tensor, State]]
KNOWN = (torch.float32, torch.float64, torch.bfloat16)


def compiled(q: Tensor, rule: Rule) -> bool:
    """Whether the kernel can do it."""
    return q.device.type == "cpu" and q.dtype in KNOWN and rule.score is None


def steps(
    q: Tensor, k: Tensor, v: Tensor, *, rule: Rule, state: State, scale: float, trace: bool, rotation: Rotation, blocks: Blocks
) -> tuple[Tensor, State]:  # fmt: skip
    """`recurrence.steps`; `blocks` is the scan's own under original positions, for what it can do. Rows may differ in what they
    have seen and kept where nothing is filled (one step, or a full state)."""
    if rule.score is not None or (trace and not compiled(q, rule)):
        return recurrence.steps(q, k, v, rule=rule, state=state, scale=scale, trace=trace, rotation=rotation)
    count = q.shape[2]
    if state.empty:
        most = count if rule.state_size is None else min(rule.state_size, count)
        state.start(k, k.shape[1] if rule.per == "head" else 1, most + 1)
    before, start = state.positions.clone() if trace else None, state.seen[0]
    n = 0
    if (count > 1 or not compiled(q, rule)) and not bool(state.evictions.any()):
        n = count if rule.state_size is None else min(rule.state_size - state.alive[0], count)
    parts, victims = [], state.positions.new_empty((*state.positions.shape[:2], 0))
    shared: dict[str, Any] = {"rule": rule, "state": state, "scale": scale, "rotation": rotation}
    if n > 0:
        parts.append(_fill(q[:, :, :n], k[:, :, :n], v[:, :, :n], blocks=blocks, **shared))
    after = q[:, :, n:], k[:, :, n:], v[:, :, n:]
    if n < count and compiled(q, rule):
        part, victims = _walk(*after, **shared)
        parts.append(part)
    elif n < count:
        parts.append(recurrence.steps(*after, trace=False, **shared)[0])
    if before is not None:
        every = torch.nn.functional.pad(victims, (count - victims.shape[-1], 0), value=-1)
        state.trace = kept_each_step(before, every, start)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2), state


def _fill(
    q: Tensor, k: Tensor, v: Tensor, *, rule: Rule, state: State, scale: float, rotation: Rotation, blocks: Blocks
) -> Tensor:  # fmt: skip
    """Steps before the first eviction: places are positions, so everything is turned once and read as ever."""
    old, n = state.alive[0], q.shape[2]
    state.reserve(old + n)
    assert state.keys is not None
    unturned = torch.cat([state.keys[:, :, :old], k], dim=2)
    state.keys[:, :, :old] = rotation.turn(unturned[:, :, :old], state.positions[:, :, :old])
    at = torch.arange(state.seen[0], state.seen[0] + n, device=q.device)
    everyone = replace(rule, state_size=None)
    out, _ = blocks(rotation.turn(q, at), rotation.turn(k, at), v, rule=everyone, state=state, scale=scale, trace=False)
    assert state.keys is not None
    state.keys[:, :, : old + n] = unturned
    state.farthest = [max(a, b - 1) for a, b in zip(state.farthest, state.seen, strict=True)]
    return out


def _walk(
    q: Tensor, k: Tensor, v: Tensor, *, rule: Rule, state: State, scale: float, rotation: Rotation
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The compiled steps: out, and the victims [B, P, T]."""
    from msrnn_bench.multistate.compressed_kernels import walk  # numba: only where it is used

    count, exact = q.shape[2], score_dtype(q.dtype)
    most = max(state.alive) + count
    size = most if rule.state_size is None else rule.state_size
    state.reserve(min(most, size + 1), most=size + 1)
    assert state.keys is not None and state.values is not None
    cos, sin = rotation.tables((most if rule.state_size is None else reach(size)) + 1, q)
    out = torch.empty(q.shape, dtype=exact)
    victims = state.positions.new_empty((*state.positions.shape[:2], count))
    alive, seen, farthest = (np.array(x) for x in (state.alive, state.seen, state.farthest))
    seeds = [] if rule.seed is None else [draw_key(rule.seed, d, state.layer) for d in state.documents or ()]
    query, key, value = (x.contiguous() for x in (q.to(exact), k, v))
    walk(
        query.numpy(), _array(key), _array(value), _array(state.keys), _array(state.values), q.dtype == torch.bfloat16,
        state.positions.numpy(), state.scores.numpy(), alive, seen, farthest, victims.numpy(), out.numpy(), cos.numpy(),
        sin.numpy(), scale, np.array(seeds, dtype=np.uint64), rule.memory, rule.first, rule.recent, size,
    )  # fmt: skip
    state.alive, state.seen, state.farthest = alive.tolist(), seen.tolist(), farthest.tolist()
    state.largest = [max(a, b) for a, b in zip(state.largest, state.alive, strict=True)]
    state.count_evictions(victims)
    state.trace = None
    return out.to(q.dtype), victims


def _array(x: Tensor) -> np.ndarray:
    """The tensor's memory; bfloat16, which NumPy lacks, as the integers of its bits."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()

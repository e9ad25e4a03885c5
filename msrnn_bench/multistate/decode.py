"""One token on a CPU: the same step as a block of the scan with one query, in one compiled call a layer.

Nothing is copied: the new state is written where the evicted one stood, and rows of a batch may differ in what they
have seen and kept. What it computes is what `scan.py` computes; it exists because at one query the dozen torch calls
of a block cost more than their arithmetic.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate import kernels
from msrnn_bench.multistate.draw import draw_key
from msrnn_bench.multistate.rescore import rescorer
from msrnn_bench.multistate.scores import NAN
from msrnn_bench.multistate.state import State, score_dtype
from msrnn_bench.policies import Rule

NEVER = 2**62  # the size of a state that nobody has to leave


def decode(q: Tensor, k: Tensor, v: Tensor, rule: Rule, state: State, scale: float) -> tuple[Tensor, State]:
    """q [B, H, 1, D], k, v [B, G, 1, D] -> [B, H, 1, D], and the state, changed in place.

    UsageError where a user's score is NaN."""
    size = NEVER if rule.state_size is None else rule.state_size
    state.reserve(max(state.alive) + 1, most=size + 1)
    assert state.keys is not None and state.values is not None
    exact = score_dtype(q.dtype)
    out = torch.empty(q.shape, dtype=exact)
    seeds = [] if rule.seed is None else [draw_key(rule.seed, d, state.layer) for d in state.documents or ()]
    alive, seen = np.array(state.alive), np.array(state.seen)
    narrow = q.dtype != exact
    victims = torch.empty(state.positions.shape[:2], dtype=torch.int64)
    query, key, value = (x.contiguous() for x in (q.to(exact), k, v))  # as they are in a model: _step is compiled once
    ranked = _step(
        query.numpy(), _array(key), _array(value), _array(state.keys), _array(state.values), narrow,
        state.positions.numpy(), state.scores.numpy(), alive, seen, state.evictions.numpy(),
        state.first_eviction.numpy(), victims.numpy(), out.numpy(), scale, np.array(seeds, dtype=np.uint64), rule.memory,
        rule.first, rule.recent, size, rescorer(rule, exact),
    )  # fmt: skip
    if not ranked:
        raise UsageError(NAN)
    state.step(rule.state_size)
    state.note_deaths(victims[..., None])
    return out.to(q.dtype), state


def _array(x: Tensor) -> np.ndarray:
    """The tensor's memory; bfloat16, which NumPy lacks, as the integers of its bits."""
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


@numba.njit(cache=True, nogil=True, fastmath=kernels.FAST)
def _step(
    query, key, value, keys, values, narrow, positions, scores, alive, seen, evictions, first_eviction, victims, out, scale,
    seeds, memory, first, recent, size, rescore,
):  # fmt: skip
    """Shapes as in `State`; query, out [B, H, 1, D]; key, value [B, G, 1, D]; victims [B, P] out: positions that left,
    -1 where none did; `rescore`, and what is returned, as in `kernels.evict`. With `narrow`, what is stored are bits of
    bfloat16, widened a head at a time."""
    batch, heads, _, width = query.shape
    groups, deciders = keys.shape[1], positions.shape[1]
    reps = heads // groups
    most = alive.max() + 1
    wide = np.empty((most if narrow else 1, width), out.dtype)
    row, mean = np.empty(most, out.dtype), np.empty(most, out.dtype)
    maximum = np.empty(0 if rescore is None else most, out.dtype)
    for b in range(batch):
        new, now = alive[b], seen[b]
        n = new + 1
        for p in range(deciders):
            where, score = positions[b, p], scores[b, p]
            where[new], score[new] = now, 0.0
            mean[:n] = 0.0
            maximum[:n] = 0.0
            for g in range(p, p + 1) if deciders == groups else range(groups):
                keys[b, g, new], values[b, g, new] = key[b, g, 0], value[b, g, 0]
                share = out.dtype.type(deciders) / out.dtype.type(heads)
                if narrow:
                    _attend_narrow(
                        query[b], keys[b, g], values[b, g], wide, row, mean, maximum, out[b], g * reps, reps, n, scale, share
                    )  # fmt: skip
                else:
                    _attend(query[b], keys[b, g], values[b, g], row, mean, maximum, out[b], g * reps, reps, n, scale, share)
            if len(seeds):
                kernels.draw_scores(mean, where, seeds[b], now, n)
            if rescore is None:
                kernels.update(score, mean, memory, n)
            else:
                own, places = score[:n].copy(), where[:n].copy()
                if not rescore(own, mean, maximum, places, now, n):
                    return False
                score[:n] = own
            victims[b, p] = -1
            if n > size:
                worst = _lowest(score, where, n, first, now - recent)
                for g in range(p, p + 1) if deciders == groups else range(groups):
                    keys[b, g, worst], values[b, g, worst] = keys[b, g, new], values[b, g, new]
                victims[b, p] = where[worst]
                where[worst], score[worst] = where[new], score[new]
                where[new] = -1
                evictions[b, p] += 1
                if first_eviction[b, p] < 0:
                    first_eviction[b, p] = now
        alive[b] = min(n, size)
    return True


@numba.njit(cache=True, nogil=True, fastmath=kernels.FAST)
def _attend(query, keys, values, row, mean, maximum, out, head, reps, n, scale, share):
    """The group's query heads, one after another: softmax row over n states, output, share of the mean row, and
    the maximum row where there is one."""
    for h in range(head, head + reps):
        _softmax_row(query[h, 0], keys, row, n, scale)
        _decide(row, mean, maximum, n, share)
        _weigh(values, row, out[h, 0], n)


@numba.njit(cache=True, nogil=True, fastmath=kernels.FAST)
def _attend_narrow(query, keys, values, wide, row, mean, maximum, out, head, reps, n, scale, share):
    """`_attend` where keys and values are bits of bfloat16. Rows are kept: values are widened after all keys were used."""
    rows = np.empty((reps, n), row.dtype)
    _widen(keys, wide, n)
    for r in range(reps):
        _softmax_row(query[head + r, 0], wide, rows[r], n, scale)
        _decide(rows[r], mean, maximum, n, share)
    _widen(values, wide, n)
    for r in range(reps):
        _weigh(wide, rows[r], out[head + r, 0], n)


@numba.njit(cache=True, nogil=True, fastmath=kernels.FAST, inline="always")
def _decide(row, mean, maximum, n, share):
    """What a query head's softmax row adds to what the decision is made from."""
    for s in range(n):
        mean[s] += share * row[s]
    if len(maximum):
        for s in range(n):
            maximum[s] = max(maximum[s], row[s])


@numba.njit(cache=True, nogil=True)
def _widen(bits, wide, n):
    """bfloat16 is the upper half of a float32."""
    upper = wide.view(np.uint32)
    for s in range(n):
        for d in range(bits.shape[1]):
            upper[s, d] = np.uint32(bits[s, d]) << np.uint32(16)


@numba.njit(cache=True, nogil=True, fastmath=kernels.FAST)
def _softmax_row(query, keys, row, n, scale):
    top = -np.inf
    for s in range(n):
        dot = row.dtype.type(0.0)
        for d in range(len(query)):
            dot += query[d] * keys[s, d]
        row[s] = dot * scale
        top = max(top, row[s])
    mass = row.dtype.type(0.0)
    for s in range(n):
        row[s] = np.exp(row[s] - row.dtype.type(top))
        mass += row[s]
    inverse = row.dtype.type(1.0) / mass
    for s in range(n):
        row[s] *= inverse


@numba.njit(cache=True, nogil=True, fastmath=kernels.FAST)
def _weigh(values, row, out, n):
    """out [D] = row [n] @ values [n, D]."""
    out[:] = 0.0
    for s in range(n):
        for d in range(len(out)):
            out[d] += row[s] * values[s, d]


@numba.njit(cache=True, nogil=True, fastmath=kernels.FAST)
def _lowest(score, where, n, first, newest):
    """The slot of the lowest score among positions first..newest; of equals the oldest."""
    worst = -1
    for s in range(n):
        if first <= where[s] <= newest and (
            worst < 0 or score[s] < score[worst] or (score[s] == score[worst] and where[s] < where[worst])
        ):
            worst = s
    return worst

"""The sequential part of the scan, compiled for CPUs: which states are alive, step after step inside a block.

Plain loops over NumPy arrays, one numba function per idea; `scan.py` owns the tensors and `fallback.py` does the same
with torch operations for every other device. Shapes as in `scan.py`: probs [B, P, R, N, S] where P decide alone and
each averages its R query heads, N queries of the block, S candidates (old states in slots 0..S-N-1, the block's own
behind them).
"""

from __future__ import annotations

import numba
import numpy as np

from msrnn_bench.multistate import draw

# Rows whose surviving mass is below this share of what the block's softmax saw are computed again from the logits:
# the maximum it subtracted belongs to a state that has left, and the rest of the row may have underflowed.
VANISHING = 1e-4

FAST = {"nnan", "nsz", "arcp", "contract", "reassoc"}  # no "ninf": infinity marks the protected
_STEP, _PLACE = np.uint64(draw.STEP), np.uint64(draw.PLACE)
_MIX1, _MIX2 = np.uint64(draw.MIX1), np.uint64(draw.MIX2)


def evict(
    probs, norm, positions, scores, victims, query, keys, scale, seeds, memory, first, recent, size, start, rescore
):  # fmt: skip
    """Walk the block's N steps; who leaves at a step is absent from all later ones. compiled.py has it compiled.

    probs      [B, P, R, N, S] softmax rows over all candidates that are not in the future; on return 0 where a state
               had left, unnormalised: output row = norm * probs @ values.
    norm       [B, P, R, N] out: one over the row's surviving mass.
    positions  [B, P, S] token positions; -1 on return where the state left.
    scores     [B, P, S] carried; victims [B, P, N] out: positions that left, -1 where none did.
    query      [B, H, N, D], keys [B, G, S, D]: read only where a row must be computed again.
    seeds      [B] uint64, empty when attention decides. `start` is the position of the block's first query.
    rescore    a function of rescore.py, which replaces `memory`; None for the family, which is compiled without it.
    Returns whether all scores rank: False where one was NaN.
    """
    batch, deciders, reps, steps, states = probs.shape
    old = states - steps
    group_size = query.shape[1] // keys.shape[1]
    blocked = np.empty(states, scores.dtype)
    mean, maximum = np.empty(states, scores.dtype), np.empty(states, scores.dtype)
    gone = np.empty(steps, np.int64)
    slot_of = np.empty(recent + steps + 1, np.int64)
    for b in range(batch):
        for p in range(deciders):
            where, score = positions[b, p].copy(), scores[b, p].copy()  # side by side, whatever stands between the rows
            _protect(blocked, slot_of, where, old, first, recent, start)
            n_gone = 0
            for step in range(steps):
                now = start + step
                width = old + step + 1
                for r in range(reps):
                    row = probs[b, p, r, step]
                    for i in range(n_gone):
                        row[gone[i]] = 0.0
                    mass = row.dtype.type(0.0)
                    for s in range(width):
                        mass += row[s]
                    if mass < VANISHING:
                        head = p * reps + r
                        mass = _recompute(row, query[b, head, step], keys[b, head // group_size], scale, where, width)
                    norm[b, p, r, step] = 1.0 / mass
                if len(seeds):
                    draw_scores(mean, where, seeds[b], now, width)
                else:
                    _average(mean, probs[b, p], norm[b, p], step, width)
                if rescore is None:
                    update(score, mean, memory, width)
                else:
                    _highest(maximum, probs[b, p], norm[b, p], step, width)
                    if not rescore(score, mean, maximum, where, now, width):
                        return False
                _enter(blocked, slot_of, where, old + step, now, first, recent, start)
                if width - n_gone > size:
                    worst = _lowest(score, blocked, where, width)
                    victims[b, p, step] = where[worst]
                    where[worst] = -1
                    blocked[worst] = np.inf
                    gone[n_gone] = worst
                    n_gone += 1
                else:
                    victims[b, p, step] = -1
            positions[b, p, :], scores[b, p, :] = where, score
    return True


@numba.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def _protect(blocked, slot_of, where, old, first, recent, start):
    """Set `blocked` [S] (0 or infinity) before the block's first step; note where the recent states are."""
    slot_of[:] = -1
    for s in range(len(where)):
        blocked[s] = np.inf
    for s in range(old):
        if where[s] >= first and where[s] <= start - recent:
            blocked[s] = 0.0
        if where[s] >= start - recent:
            slot_of[where[s] - (start - recent)] = s


@numba.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def _enter(blocked, slot_of, where, slot, now, first, recent, start):
    """The state of step `now` becomes a candidate, and the one that is recent no more loses its protection."""
    slot_of[now - (start - recent)] = slot
    aged = slot_of[now - start]  # the slot of position now - recent
    if aged >= 0 and where[aged] >= first:
        blocked[aged] = 0.0


@numba.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def _average(mean, probs, norm, step, width):
    """mean [S] = the deciders' R softmax rows averaged."""
    reps = probs.shape[0]
    for r in range(reps):
        weight = norm[r, step] / probs.dtype.type(reps)
        row = probs[r, step]
        if r == 0:
            for s in range(width):
                mean[s] = weight * row[s]
        else:
            for s in range(width):
                mean[s] += weight * row[s]


@numba.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def _highest(maximum, probs, norm, step, width):
    """maximum [S] = the largest of the deciders' R softmax rows."""
    maximum[:width] = 0.0
    for r in range(probs.shape[0]):
        weight = norm[r, step]
        row = probs[r, step]
        for s in range(width):
            maximum[s] = max(maximum[s], weight * row[s])


@numba.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def update(score, mean, memory, width):
    if memory == 0.0:
        for s in range(width):
            score[s] = mean[s]
    else:
        keep = score.dtype.type(memory)
        for s in range(width):
            score[s] = keep * score[s] + mean[s]


@numba.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def _lowest(score, blocked, where, width):
    """The unprotected slot of the lowest score; of equals the oldest state."""
    low = score.dtype.type(np.inf)
    for s in range(width):
        low = min(low, score[s] if blocked[s] == 0 else low)
    worst = -1
    for s in range(width):
        if blocked[s] == 0 and score[s] == low and (worst < 0 or where[s] < where[worst]):
            worst = s
    return worst


@numba.njit(cache=True, nogil=True)
def _recompute(row, query, keys, scale, where, width):
    """The row's exponentials again, with the maximum over the states alive; returns their sum."""
    top = -np.inf
    for s in range(width):
        if where[s] >= 0:
            dot = row.dtype.type(0.0)
            for d in range(len(query)):
                dot += query[d] * keys[s, d]
            row[s] = dot * scale
            top = max(top, row[s])
    mass = row.dtype.type(0.0)
    for s in range(width):
        row[s] = np.exp(row[s] - top) if where[s] >= 0 else 0.0
        mass += row[s]
    return mass


@numba.njit(cache=True, nogil=True)
def draw_scores(mean, where, seed, now, width):
    """The random policy's scores; `draw.draws` says the same in torch."""
    key = _mix(seed + np.uint64(now) * _STEP)
    for s in range(width):
        mean[s] = np.float32(_mix(key + np.uint64(where[s]) * _PLACE) >> np.uint64(40)) * np.float32(2.0**-24)


@numba.njit(cache=True, nogil=True)
def _mix(x):
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def plan_moves(positions, scores, keep, moves):
    """Pair each state in a slot >= `keep` with a free slot below: moves [B, P, N, 2] (from, to), -1 behind the last."""
    batch, deciders, states = positions.shape
    for b in range(batch):
        for p in range(deciders):
            hole, n = 0, 0
            for s in range(keep, states):
                if positions[b, p, s] < 0:
                    continue
                while positions[b, p, hole] >= 0:
                    hole += 1
                positions[b, p, hole], scores[b, p, hole] = positions[b, p, s], scores[b, p, s]
                positions[b, p, s] = -1
                moves[b, p, n, 0], moves[b, p, n, 1] = s, hole
                n += 1
            moves[b, p, n:] = -1


@numba.njit(cache=True, nogil=True)
def move_rows(buffer, moves):
    """Carry out `plan_moves` on keys or values [B, G, S, D]."""
    batch, groups, _, _ = buffer.shape
    deciders, most = moves.shape[1], moves.shape[2]
    for b in range(batch):
        for g in range(groups):
            p = g if deciders == groups else 0
            for n in range(most):
                if moves[b, p, n, 0] < 0:
                    break
                buffer[b, g, moves[b, p, n, 1]] = buffer[b, g, moves[b, p, n, 0]]

"""The step of a state with compressed positions, compiled for CPUs: every state is turned to where it stands at that step.

Inside a call states are walked through in the order of age, so that distances are a running sum of gaps and an eviction moves
O(k) small numbers. Shapes as in `State`; D = 2 * pairs + what is not turned.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from msrnn_bench.multistate import kernels

FAST = kernels.FAST


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def walk(
    query, key, value, keys, values, narrow, positions, scores, alive, seen, farthest, victims, out, cos, sin, scale, seeds,
    memory, first, recent, size,
):  # fmt: skip
    """T steps. query, out [B, H, T, D], key, value [B, G, T, D], unturned; keys, values [B, G, S, D] with room for one more state
    than stay; alive, seen, farthest [B] are brought up to date; victims [B, P, T] out: positions, -1 where nobody left; cos, sin
    [reach + 1, pairs]. With `narrow` keys and values are bits of bfloat16."""
    batch, heads, steps, width = query.shape
    groups, deciders = keys.shape[1], positions.shape[1]
    reps, own = heads // groups, groups // deciders
    most = min(alive.max() + steps, size) + 1
    slots, where = np.empty((deciders, most), np.int64), np.empty((deciders, most), np.int64)
    gaps, score = np.zeros((deciders, most), np.int64), np.zeros((deciders, most), scores.dtype)
    far, mean, rows = np.empty(most, np.int64), np.empty(most, out.dtype), np.empty((reps, most), out.dtype)
    wide, in_row = np.empty((most if narrow else 0, width), out.dtype), np.arange(most)
    share = out.dtype.type(deciders) / out.dtype.type(heads)
    for b in range(batch):
        n = alive[b]
        for p in range(deciders):
            _by_age(positions[b, p], scores[b, p], slots[p], where[p], gaps[p], score[p], n)
        for t in range(steps):
            new, now = n, seen[b] + t
            for p in range(deciders):
                slots[p, new], where[p, new], score[p, new] = new, now, 0.0
                if new > 0:
                    gaps[p, new - 1] = _closed(now - where[p, new - 1])
                far[new] = 0
                for i in range(new - 1, -1, -1):
                    far[i] = far[i + 1] + gaps[p, i]
                farthest[b] = max(farthest[b], far[0])
                mean[: new + 1] = 0.0
                for g in range(p * own, (p + 1) * own):
                    keys[b, g, new], values[b, g, new] = key[b, g, t], value[b, g, t]
                    if narrow:
                        _widen(keys[b, g], slots[p], wide, new + 1)
                        _logits(query[b], wide, in_row, far, cos, sin, scale, rows, g * reps, t, new + 1)
                    else:
                        _logits(query[b], keys[b, g], slots[p], far, cos, sin, scale, rows, g * reps, t, new + 1)
                    for r in range(reps):
                        _softmax(rows[r], mean, share, new + 1)
                    if narrow:
                        _widen(values[b, g], slots[p], wide, new + 1)
                        _outputs(wide, in_row, rows, out[b], g * reps, t, new + 1)
                    else:
                        _outputs(values[b, g], slots[p], rows, out[b], g * reps, t, new + 1)
                if len(seeds):
                    kernels.draw_scores(mean, where[p], seeds[b], now, new + 1)
                kernels.update(score[p], mean, memory, new + 1)
                victims[b, p, t] = -1
                if new + 1 > size:
                    worst = _lowest(score[p], where[p], new + 1, first, now - recent)
                    victims[b, p, t] = where[p, worst]
                    slot = slots[p, worst]
                    for g in range(p * own, (p + 1) * own):
                        keys[b, g, slot], values[b, g, slot] = keys[b, g, new], values[b, g, new]
                    slots[p, new] = slot  # where the newest stands from now on
                    _leave(slots[p], where[p], gaps[p], score[p], worst, new)
            n = min(new + 1, size)
        for p in range(deciders):
            positions[b, p, :] = -1
            for i in range(n):
                positions[b, p, slots[p, i]], scores[b, p, slots[p, i]] = where[p, i], score[p, i]
        alive[b], seen[b] = n, seen[b] + steps


@numba.njit(cache=True, nogil=True, inline="always")
def _closed(gap):
    """`positions.compressed` of one gap."""
    return gap if gap <= 10 else np.int64(math.ceil(10.0 + math.log(math.log(gap - 10.0 + math.e))))


@numba.njit(cache=True, nogil=True)
def _by_age(positions, scores, slots, where, gaps, score, n):
    """The n states of one decider, oldest first."""
    order = np.argsort(positions[:n])
    for i in range(n):
        slots[i], where[i], score[i] = order[i], positions[order[i]], scores[order[i]]
        if i > 0:
            gaps[i - 1] = _closed(where[i] - where[i - 1])


@numba.njit(cache=True, nogil=True)
def _leave(slots, where, gaps, score, worst, newest):
    """The state at index `worst` is gone, and those behind it close up; its two gaps become one."""
    if 0 < worst < newest:
        gaps[worst - 1] = _closed(where[worst + 1] - where[worst - 1])
    for i in range(worst, newest):
        slots[i], where[i], gaps[i], score[i] = slots[i + 1], where[i + 1], gaps[i + 1], score[i + 1]


@numba.njit(cache=True, nogil=True)
def _widen(bits, slots, wide, n):
    """wide [n, D], by age; bfloat16 is the upper half of a float32."""
    upper = wide.view(np.uint32)
    for i in range(n):
        row = bits[slots[i]]
        for d in range(len(row)):
            upper[i, d] = np.uint32(row[d]) << np.uint32(16)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _logits(query, keys, slots, far, cos, sin, scale, rows, head, t, n):
    """rows [R, n]: a group's queries times every key, turned back by its distance from them; four queries at a time, so that a
    key is turned in registers and never written."""
    pairs, width, last = cos.shape[1], keys.shape[1], rows.shape[0] - 1
    for r0 in range(0, last + 1, 4):
        r1, r2, r3 = min(r0 + 1, last), min(r0 + 2, last), min(r0 + 3, last)  # the last one again where there are fewer
        q0, q1, q2, q3 = query[head + r0, t], query[head + r1, t], query[head + r2, t], query[head + r3, t]
        for i in range(n):
            key, c, s = keys[slots[i]], cos[far[i]], sin[far[i]]
            d0 = d1 = d2 = d3 = rows.dtype.type(0.0)
            for d in range(pairs):
                one, two = key[d], key[pairs + d]
                x, y = one * c[d] + two * s[d], two * c[d] - one * s[d]
                d0 += q0[d] * x + q0[pairs + d] * y
                d1 += q1[d] * x + q1[pairs + d] * y
                d2 += q2[d] * x + q2[pairs + d] * y
                d3 += q3[d] * x + q3[pairs + d] * y
            for d in range(2 * pairs, width):
                x = key[d]
                d0 += q0[d] * x
                d1 += q1[d] * x
                d2 += q2[d] * x
                d3 += q3[d] * x
            rows[r0, i], rows[r1, i], rows[r2, i], rows[r3, i] = d0 * scale, d1 * scale, d2 * scale, d3 * scale


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _softmax(row, mean, share, n):
    """The row's softmax in its place; its share of the deciding mean."""
    top = row[0]
    for i in range(1, n):
        top = max(top, row[i])
    mass = row.dtype.type(0.0)
    for i in range(n):
        row[i] = np.exp(row[i] - top)
        mass += row[i]
    inverse = row.dtype.type(1.0) / mass
    for i in range(n):
        row[i] *= inverse
        mean[i] += share * row[i]


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _outputs(values, slots, rows, out, head, t, n):
    """out [R, D] = rows [R, n] times the values, four of them at a time."""
    reps, width, even = rows.shape[0], values.shape[1], n - n % 4
    for r in range(reps):
        out[head + r, t, :] = 0.0
    for i in range(0, even, 4):
        v0, v1, v2, v3 = values[slots[i]], values[slots[i + 1]], values[slots[i + 2]], values[slots[i + 3]]
        for r in range(reps):
            a, b, c, d = rows[r, i], rows[r, i + 1], rows[r, i + 2], rows[r, i + 3]
            row = out[head + r, t]
            for x in range(width):
                row[x] += a * v0[x] + b * v1[x] + c * v2[x] + d * v3[x]
    for i in range(even, n):
        value = values[slots[i]]
        for r in range(reps):
            a, row = rows[r, i], out[head + r, t]
            for x in range(width):
                row[x] += a * value[x]


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _lowest(score, where, n, first, newest):
    """The lowest score among positions first..newest, which stand side by side; of equals the oldest."""
    worst = -1
    for i in range(n):
        if first <= where[i] <= newest and (worst < 0 or score[i] < score[worst]):
            worst = i
    return worst

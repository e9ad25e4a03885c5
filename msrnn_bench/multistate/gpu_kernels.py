"""The sequential part of the scan for GPUs, in Triton: which states are alive, step after step inside a block.

The same numbers as kernels.py, in four kernels a block and three a decode step; gpu.py owns the tensors and launches them. Each
program writes rows that no other reads or writes, and nothing is atomic, so programs may run in any order. Shapes as in scan.py:
logits [B, P, R, N, S], where P decide alone and each averages its R query heads, N queries of the block, S candidates (old states
in slots 0..S-N-1, the block's own behind them). A state that leaves at step n is still attended to at n, absent from n + 1.

**The certificate.** Who leaves under a rule without memory is the lowest mean over R heads, of rows normalised over the live. As
it stands, that is R rows of S numbers a step. But `means` has the rows' mean normalised over *all* candidates, made before the
walk by programs that need not wait for one another, and head by head the two differ by one factor r = Z / (Z - D), Z the row's
sum and D its share of the dead, so that the true mean of a state lies between `mean * min r` and `mean * max r`. Only states
whose lower bound does not exceed the lowest upper bound (with ETA on either side for rounding) can be the lowest; only they are
read in all heads, in a fixed order, so that the victim is the same to the last bit as if all had been. One alone leaves unread.
"""

from __future__ import annotations

import triton
import triton.language as tl

ETA = tl.constexpr(2.0**-16)  # rounding of a mean over at most a few hundred heads in float32, many times over
# Below this share of its row's sum what the live have left is computed again, with their own maximum; as in kernels.py.
VANISHING = tl.constexpr(1e-4)
NOBODY = tl.constexpr(2**62)


@triton.jit(do_not_specialize=["steps", "states"])
def rows(
    logits, tops, sums, means, clock, steps, states, P: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr, MEANS: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Program (b * P + p, n): maximum and sum of exponentials of each head's row, `tops` and `sums` [B, P, R, N], and the mean of
    the normalised rows, `means` [B, P, N, S], over what is not in the query's future. EXACT: the dtype of the logits."""
    decider, step = tl.program_id(0).to(tl.int64), tl.program_id(1)
    width = tl.load(clock + 2 * (decider // P)) + step + 1
    slot = tl.arange(0, TILE)
    for r in range(R):
        row = (decider * R + r) * steps + step
        highest = tl.full([TILE], float("-inf"), EXACT)
        for at in range(0, width, TILE):
            highest = tl.maximum(highest, tl.load(logits + row * states + at + slot, mask=at + slot < width, other=float("-inf")))
        top = tl.max(highest, axis=0)
        total = tl.zeros([TILE], tl.float64)
        for at in range(0, width, TILE):
            logit = tl.load(logits + row * states + at + slot, mask=at + slot < width, other=float("-inf"))
            total += tl.exp(logit - top).to(tl.float64)
        tl.store(tops + row, top)
        tl.store(sums + row, tl.sum(total, axis=0))
    if MEANS:
        tl.debug_barrier()
        for at in range(0, width, TILE):
            mean = tl.zeros([TILE], EXACT)
            for r in range(R):
                row = (decider * R + r) * steps + step
                logit = tl.load(logits + row * states + at + slot, mask=at + slot < width, other=float("-inf"))
                mean += tl.exp(logit - tl.load(tops + row)) * (1.0 / (tl.load(sums + row) * R)).to(EXACT)
            tl.store(means + (decider * steps + step) * states + at + slot, mean, mask=at + slot < width)


@triton.jit(do_not_specialize=["steps", "states", "size", "first", "recent"])
def walk(
    logits, tops, sums, means, norms, positions, scores, died, victims, sources, holes, evictions, first_eviction, clock, steps,
    states, size, first, recent, position_b, position_p, score_b, score_p, MEMORY: tl.constexpr, P: tl.constexpr,
    R: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr, DEAD: tl.constexpr, CERTIFICATE: tl.constexpr,
    GIVEN: tl.constexpr, SCORE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Program b * P + p: the block's steps, one after the other, for one decider.

    tops       [B, P, R, N] in: the rows' maxima; out: those to subtract, of the live where the row had to be computed again.
    sums       [B, P, R, N] float64, the rows' sums over all candidates; norms [B, P, R, N] out: one over what the live have.
    means      [B, P, N, S]: the mean rows for the certificate; with GIVEN the scores themselves (a draw).
    positions, scores  [B, P, S] in and out, a position -1 where the state left.
    died       [B, P, S] out: the step at which the state left, N where it lives.
    victims    [B, P, N] out: positions that left, -1 where none did.
    evictions, first_eviction  [B, P] in and out; clock [B, 2] int32: the number of old states, the block's first position.
    sources, holes  [B, P, N] out: the slot whose state has to move, and the free slot for it; -1 behind the last
               source. During the walk `holes` has the slots of those that left.
    SCORE      a compiled function of (mean, maximum, previous, age, position), None for the family.
    HEADS      the power of two not below R; DEAD of the dead and TILE of the states are looked at together.
    """
    decider = tl.program_id(0).to(tl.int64)
    slot, head, dead = tl.arange(0, TILE), tl.arange(0, HEADS), tl.arange(0, DEAD)
    real = head < R
    positions += (decider // P) * position_b + (decider % P) * position_p
    scores += (decider // P) * score_b + (decider % P) * score_p
    logits, means = logits + decider * R * steps * states, means + decider * steps * states
    tops, sums, norms = tops + decider * R * steps, sums + decider * R * steps, norms + decider * R * steps
    died += decider * states
    victims, sources, holes = victims + decider * steps, sources + decider * steps, holes + decider * steps
    old, start = tl.load(clock + 2 * (decider // P)), tl.load(clock + 2 * (decider // P) + 1)
    for at in range(0, states, TILE):
        tl.store(died + at + slot, steps, mask=at + slot < states)
    for at in range(0, steps, TILE):
        tl.store(sources + at + slot, -1, mask=at + slot < steps)
    count, unranked, earliest = 0, 0, tl.load(first_eviction + decider)
    tl.debug_barrier()
    for step in range(steps):
        now, width = start + step, old + step + 1
        full = width - count > size
        mine = head * steps + step  # what each head's row has left for the live
        top = tl.load(tops + mine, mask=real, other=0.0)
        total = tl.load(sums + mine, mask=real, other=1.0)
        lost = tl.zeros([HEADS], tl.float64)
        for at in range(0, count, DEAD):
            gone = tl.load(holes + at + dead, mask=at + dead < count, other=0)
            wanted = real[:, None] & (at + dead < count)[None, :]
            logit = tl.load(logits + mine[:, None] * states + gone[None, :], mask=wanted, other=float("-inf"))
            lost += tl.sum(tl.exp(logit - top[:, None]).to(tl.float64), axis=1)
        left = total - lost
        vanishing = real & (left < total * VANISHING)
        again = tl.sum(vanishing.to(tl.int32), axis=0)
        if again > 0:
            for r in range(R):
                if tl.sum((vanishing & (head == r)).to(tl.int32), axis=0) > 0:
                    row = (r * steps + step) * states
                    highest = tl.full([TILE], float("-inf"), EXACT)
                    for at in range(0, width, TILE):
                        alive = (at + slot < width) & (tl.load(positions + at + slot, mask=at + slot < width, other=-1) >= 0)
                        highest = tl.maximum(highest, tl.load(logits + row + at + slot, mask=alive, other=float("-inf")))
                    most = tl.max(highest, axis=0)
                    rest = tl.zeros([TILE], tl.float64)
                    for at in range(0, width, TILE):
                        alive = (at + slot < width) & (tl.load(positions + at + slot, mask=at + slot < width, other=-1) >= 0)
                        logit = tl.load(logits + row + at + slot, mask=alive, other=float("-inf"))
                        rest += tl.exp(logit - most).to(tl.float64)
                    top = tl.where(head == r, most, top)
                    left = tl.where(head == r, tl.sum(rest, axis=0), left)
            tl.store(tops + mine, top, mask=real)
        tl.store(norms + mine, (1.0 / left).to(EXACT), mask=real)
        # the certificate: who can be the lowest
        certain, lone = full, 0  # `lone` counts candidates; one alone leaves, and no head need be read
        least, bound = tl.sum(tl.zeros([TILE], EXACT), axis=0), tl.sum(tl.zeros([TILE], EXACT), axis=0)
        if CERTIFICATE:
            certain = full & (again == 0) & (step < steps - 1)
            if certain:
                factor = total / left
                least = tl.min(tl.where(real, factor, float("inf")), axis=0).to(EXACT) * (1 - ETA)
                lowest = tl.full([TILE], float("inf"), EXACT)
                for at in range(0, width, TILE):
                    position = tl.load(positions + at + slot, mask=at + slot < width, other=-1)
                    eligible = (position >= first) & (position <= now - recent) & (position >= 0)
                    mean = tl.where(eligible, tl.load(means + step * states + tl.where(eligible, at + slot, 0)), float("inf"))
                    lowest = tl.minimum(lowest, mean)
                most = tl.max(tl.where(real, factor, 0.0), axis=0).to(EXACT) * (1 + ETA)
                bound = tl.maximum(tl.min(lowest, axis=0) * most, 1e-30)  # below it shares of a head underflow one by one
                for at in range(0, width, TILE):
                    position = tl.load(positions + at + slot, mask=at + slot < width, other=-1)
                    eligible = (position >= first) & (position <= now - recent) & (position >= 0)
                    mean = tl.where(eligible, tl.load(means + step * states + tl.where(eligible, at + slot, 0)), float("inf"))
                    lone += tl.sum((eligible & (mean * least <= bound)).to(tl.int32), axis=0)
        tl.debug_barrier()  # norms and tops are written
        least_rank, least_key = tl.full([TILE], float("inf"), EXACT), tl.full([TILE], NOBODY, tl.int64)
        for at in range(0, width, TILE):
            position = tl.load(positions + at + slot, mask=at + slot < width, other=-1)
            alive = position >= 0
            eligible = alive & (position >= first) & (position <= now - recent)
            candidate = alive
            if CERTIFICATE:
                if certain:
                    mean = tl.where(eligible, tl.load(means + step * states + tl.where(eligible, at + slot, 0)), float("inf"))
                    candidate = eligible & (mean * least <= bound)
            if GIVEN:
                score = tl.load(means + step * states + at + slot, mask=alive, other=0.0)
            else:
                mean, maximum = tl.zeros([TILE], EXACT), tl.zeros([TILE], EXACT)
                place = tl.where(candidate, at + slot, 0)  # loads under a mask would wait for one another
                if lone != 1:
                    for r in tl.range(0, R, loop_unroll_factor=4):  # several loads under way at once
                        row = r * steps + step
                        logit = tl.where(candidate, tl.load(logits + row * states + place), float("-inf"))
                        share = tl.exp(logit - tl.load(tops + row)) * tl.load(norms + row)
                        mean += share
                        if SCORE is not None:
                            maximum = tl.maximum(maximum, share)
                mean = mean / R
                if SCORE is not None:
                    previous = tl.load(scores + at + slot, mask=alive, other=0.0)
                    score = SCORE(mean, maximum, previous, (now - position).to(EXACT), position.to(EXACT))
                    unranked += tl.sum((alive & (score != score)).to(tl.int32), axis=0)
                elif MEMORY == 0:
                    score = mean
                else:
                    score = tl.load(scores + at + slot, mask=alive, other=0.0) * MEMORY + mean
            if MEMORY != 0 or SCORE is not None or GIVEN:
                tl.store(scores + at + slot, score, mask=alive)
            elif step == steps - 1:
                tl.store(scores + at + slot, score, mask=alive)
            rank = tl.where(eligible & candidate, score, float("inf"))
            key = tl.where(eligible & candidate, (position.to(tl.int64) << 32) | (at + slot), NOBODY)
            better = (rank < least_rank) | ((rank == least_rank) & (key < least_key))  # of equals the oldest
            least_rank, least_key = tl.where(better, rank, least_rank), tl.where(better, key, least_key)
        if unranked > 0:  # gpu.py looks for it
            tl.store(norms + mine, tl.full([HEADS], float("nan"), EXACT), mask=real)
        if full & (unranked == 0):
            chosen = tl.min(tl.where(least_rank == tl.min(least_rank, axis=0), least_key, NOBODY), axis=0)
            worst = (chosen & 0xFFFFFFFF).to(tl.int32)
            tl.store(victims + step, chosen >> 32)
            tl.store(positions + worst, -1)
            tl.store(died + worst, step)
            tl.store(holes + count, worst)
            earliest = tl.where(earliest < 0, now.to(tl.int64), earliest)
            count += 1
        else:
            tl.store(victims + step, -1)
        tl.debug_barrier()  # who left is known to all threads
    tl.store(evictions + decider, tl.load(evictions + decider) + count)
    tl.store(first_eviction + decider, earliest)
    # who stands behind as many slots as survive takes the place of one that left before them; they are equally many
    keep = old + steps - count
    free, behind = 0, 0
    for at in range(0, states, TILE):
        there = at + slot < states
        lives = tl.load(positions + at + slot, mask=there, other=-1) >= 0
        hole, source = there & (lives == 0) & (at + slot < keep), lives & (at + slot >= keep)
        tl.store(holes + free + tl.cumsum(hole.to(tl.int32), axis=0) - 1, at + slot, mask=hole)
        tl.store(sources + behind + tl.cumsum(source.to(tl.int32), axis=0) - 1, at + slot, mask=source)
        free, behind = free + tl.sum(hole.to(tl.int32), axis=0), behind + tl.sum(source.to(tl.int32), axis=0)


@triton.jit(do_not_specialize=["steps", "states"])
def finish(logits, out, tops, norms, died, clock, steps, states, P: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr):
    """Program (row of B * P * R, n): `out` [B, P, R, N, S], the softmax over the live at step n, else 0; may be the logits."""
    head, step = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.arange(0, TILE)
    row = head * steps + step
    top, norm, old = tl.load(tops + row), tl.load(norms + row), tl.load(clock + 2 * (head // R // P))
    for at in range(0, states, TILE):
        death = tl.load(died + (head // R) * states + at + slot, mask=at + slot < states, other=-1)
        alive = (at + slot <= old + step) & (death >= step)
        logit = tl.load(logits + row * states + at + slot, mask=alive, other=float("-inf"))
        share = tl.exp(logit - top) * norm
        tl.store(out + row * states + at + slot, share.to(out.dtype.element_ty), mask=at + slot < states)


@triton.jit(do_not_specialize=["states"])
def attend(
    query, new_keys, new_values, keys, values, positions, scores, logits, tops, sums, out, clock, states, scale, key_b, key_g,
    key_s, value_b, value_g, value_s, position_b, position_p, score_b, score_p, P: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Program (b, g), a block of one query: the new state enters its slot, and each of the group's R query heads attends.

    query, out [B, H, D]; new_keys, new_values [B, G, D]; logits [B, H, S], tops and sums [B, H] out, for `walk`. Sums run along
    with the maximum seen so far; TILE states are looked at together."""
    b, g = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d, slot = tl.arange(0, WIDTH), tl.arange(0, TILE)
    old, now = tl.load(clock + 2 * b), tl.load(clock + 2 * b + 1)
    new = (b * G + g) * SIZE + d
    keys, values = keys + b * key_b + g * key_g, values + b * value_b + g * value_g
    tl.store(keys + old * key_s + d, tl.load(new_keys + new, mask=d < SIZE), mask=d < SIZE)
    tl.store(values + old * value_s + d, tl.load(new_values + new, mask=d < SIZE), mask=d < SIZE)
    if (P == G) | (g == 0):
        p = g if P == G else g * 0
        tl.store(positions + b * position_b + p * position_p + old, now.to(tl.int64))
        tl.store(scores + b * score_b + p * score_p + old, 0.0)
    tl.debug_barrier()
    for r in range(R):
        row = (b * G + g) * R + r
        asked = tl.load(query + row * SIZE + d, mask=d < SIZE, other=0.0).to(EXACT)
        top = tl.max(tl.full([TILE], float("-inf"), EXACT), axis=0)
        total = tl.sum(tl.zeros([TILE], tl.float64), axis=0)
        weighed = tl.zeros([WIDTH], EXACT)
        for at in range(0, old + 1, TILE):
            there = at + slot <= old
            inside = there[:, None] & (d < SIZE)[None, :]
            key = tl.load(keys + (at + slot)[:, None] * key_s + d[None, :], mask=inside, other=0.0).to(EXACT)
            logit = tl.where(there, tl.sum(key * asked[None, :], axis=1) * scale, float("-inf"))
            tl.store(logits + row * states + at + slot, logit, mask=there)
            highest = tl.maximum(top, tl.max(logit, axis=0))
            fade, exponential = tl.exp(top - highest), tl.exp(logit - highest)
            value = tl.load(values + (at + slot)[:, None] * value_s + d[None, :], mask=inside, other=0.0).to(EXACT)
            weighed = weighed * fade + tl.sum(exponential[:, None] * value, axis=0)
            total = total * fade.to(tl.float64) + tl.sum(exponential.to(tl.float64), axis=0)
            top = highest
        tl.store(tops + row, top)
        tl.store(sums + row, total)
        tl.store(out + row * SIZE + d, (weighed / total.to(EXACT)).to(out.dtype.element_ty), mask=d < SIZE)


@triton.jit(do_not_specialize=["steps"])
def move(
    keys, values, positions, scores, sources, holes, steps, key_b, key_g, key_s, value_b, value_g, value_s, position_b,
    position_p, score_b, score_p, P: tl.constexpr, G: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Program (b, g, i): the i-th of the states that `walk` says have to move goes to its hole. SIZE: D <= WIDTH."""
    b, g, i = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    p = g if P == G else g * 0
    at = (b * P + p) * steps + i
    source, hole = tl.load(sources + at), tl.load(holes + at)
    if source >= 0:
        d = tl.arange(0, WIDTH)
        key = tl.load(keys + b * key_b + g * key_g + source * key_s + d, mask=d < SIZE)
        value = tl.load(values + b * value_b + g * value_g + source * value_s + d, mask=d < SIZE)
        tl.store(keys + b * key_b + g * key_g + hole * key_s + d, key, mask=d < SIZE)
        tl.store(values + b * value_b + g * value_g + hole * value_s + d, value, mask=d < SIZE)
        if (P == G) | (g == 0):
            place, point = positions + b * position_b + p * position_p, scores + b * score_b + p * score_p
            tl.store(place + hole, tl.load(place + source))
            tl.store(place + source, -1)
            tl.store(point + hole, tl.load(point + source))

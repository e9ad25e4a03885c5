"""The same recurrence, block-parallel: exact eviction in one pass per layer.

Under teacher forcing a layer's queries and keys for all tokens are known before its first eviction, and its evictions
depend on nothing else. So the products with the keys and the values are dense, over blocks of queries; only the
bookkeeping of which states are alive walks from step to step (kernels.py). Cost O(T (k + block)), no T x T matrix.

Shapes: B batch, H query heads, G KV heads, T tokens, S slots, D head size, k state size, N queries of a block; P is 1
(decided per layer) or G (per KV head), and each decider averages R = H / P query heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from msrnn_bench.multistate import compressed, fallback, gpu
from msrnn_bench.multistate.draw import draw_key
from msrnn_bench.multistate.positions import Rotation
from msrnn_bench.multistate.products import BLOCK, Work, causal, scaled_logits, weighted_values
from msrnn_bench.multistate.rows import each_row
from msrnn_bench.multistate.state import State, kept_each_step, oldest_first
from msrnn_bench.policies import Policy, Rule


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    policy: Policy | Rule,
    state_size: int | None,
    state: State | None = None,
    scale: float | None = None,
    padding: Tensor | None = None,
    trace: bool = False,
    rotation: Rotation | None = None,
) -> tuple[Tensor, State]:
    """Equal to `recurrence` up to rounding, argument for argument; see there."""
    rule = policy if isinstance(policy, Rule) else policy.rule(state_size)  # type: ignore[arg-type]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = state or State()
    if rotation is not None:
        walk = partial(compressed.steps, rotation=rotation, blocks=_blocks)
        if q.shape[2] == 1 and compressed.compiled(q, rule) and padding is None and not (state.empty or trace):
            return walk(q, k, v, rule=rule, state=state, scale=scale, trace=False)
        return each_row(walk, q, k, v, rule=rule, state=state, scale=scale, padding=padding, trace=trace)
    if q.shape[2] == 1 and gpu.usable(q.device, rule) and padding is None and not (state.empty or trace):
        return gpu.decode(q, k, v, rule, state, scale)
    if q.shape[2] == 1 and decodes(q, rule, state, padding, trace):
        from msrnn_bench.multistate.decode import decode  # numba: only where it is used

        return decode(q, k, v, rule, state, scale)
    return each_row(_blocks, q, k, v, rule=rule, state=state, scale=scale, padding=padding, trace=trace)


def decodes(q: Tensor, rule: Rule, state: State, padding: Tensor | None, trace: bool) -> bool:
    """Whether decode.py can take this call of one token: a rule and a dtype that it knows, bounded or not."""
    known = (torch.float32, torch.float64, torch.bfloat16)
    return _compiled(q, rule) and q.dtype in known and not (state.empty or trace) and padding is None


def _blocks(q: Tensor, k: Tensor, v: Tensor, *, rule: Rule, state: State, scale: float, trace: bool) -> tuple[Tensor, State]:
    batch, _, steps, _ = q.shape
    groups = k.shape[1]
    if state.empty:
        most = steps if rule.state_size is None else min(rule.state_size, steps)
        state.start(k, groups if rule.per == "head" else 1, most + min(BLOCK, steps))
    before = state.positions.clone() if trace else None
    out = torch.empty_like(q)
    victims = state.positions.new_full((*state.positions.shape[:2], steps), -1)
    state.seen = [n + steps for n in state.seen]
    work = Work(state, narrow=gpu.usable(q.device, rule))
    at = 0
    while at < steps:
        start = state.seen[0] - steps + at
        room = steps if rule.state_size is None else rule.state_size - state.alive[0]
        if room > 0 and rule.score is None and (not rule.remembers or room >= BLOCK or room >= steps - at):
            n = min(room, steps - at, BLOCK if rule.remembers else 8 * BLOCK if state.alive[0] else steps)
            step = _fill
        elif rule.fixed and room <= 0 and steps - at >= BLOCK:
            n, step = steps - at, _band
        else:
            n, step = min(BLOCK, steps - at), _evict
        part = slice(at, at + n)
        out[:, :, part] = step(q[:, :, part], k[:, :, part], v[:, :, part], rule, state, work, scale, start, victims[:, :, part])
        at += n
    state.largest = [max(a, b) for a, b in zip(state.largest, state.alive, strict=True)]
    state.count_evictions(victims)
    state.trace = kept_each_step(before, victims, state.seen[0] - steps) if before is not None else None
    return out, state


def _fill(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, state: State, work: Work, scale: float, start: int, victims: Tensor
) -> Tensor:
    """Steps at which nothing leaves: plain causal attention, and the scores where the policy remembers them."""
    n = q.shape[2]
    alive = state.alive[0]
    work.append(k, v, start)
    assert state.keys is not None and state.values is not None
    state.alive = [alive + n] * len(state.alive)
    if not rule.remembers:
        work.forget_mirror()
        shared: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
        if alive == 0:
            return scaled_dot_product_attention(q, k, v, is_causal=n > 1, **shared)
        mask = causal(n, alive, q.device) if n > 1 else None
        keys, values = state.keys[:, :, : alive + n], state.values[:, :, : alive + n]
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask, **shared)
    keys, values = work.load(alive + n, n)
    logits = scaled_logits(q, keys, work, scale)
    probs = torch.softmax(logits, dim=-1, out=logits)
    batch, deciders = state.scores.shape[:2]
    reps = q.shape[1] // deciders
    fade = rule.memory ** torch.arange(n - 1, -1, -1, dtype=work.exact, device=q.device)
    gained = (fade.repeat(reps) / reps).expand(batch * deciders, 1, -1) @ probs.view(batch * deciders, reps * n, -1)
    scores = state.scores[:, :, : alive + n]
    scores.mul_(rule.memory**n).add_(gained.view(batch, deciders, -1))
    return weighted_values(probs, values)


def _evict(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, state: State, work: Work, scale: float, start: int, victims: Tensor
) -> Tensor:
    """One block: dense products over the states alive and the N new ones, and who leaves at which step."""
    batch, heads, n, _ = q.shape
    alive = state.alive[0]
    end = alive + n
    work.append(k, v, start)
    assert state.keys is not None and state.values is not None
    keys, values = work.load(end, n)
    logits = scaled_logits(q, keys, work, scale)
    positions, scores = state.positions[:, :, :end], state.scores[:, :, :end]
    deciders = positions.shape[1]
    by_decider = logits.view(batch, deciders, heads // deciders, n, end)
    seeds = [] if rule.seed is None else [draw_key(rule.seed, d, state.layer) for d in state.documents or ()]
    keep = end if rule.state_size is None else min(end, rule.state_size)
    buffers = [state.keys[:, :, :end], state.values[:, :, :end]] + ([keys, values] if work.mirrored else [])
    if gpu.usable(q.device, rule):
        rows, moves = gpu.evict(by_decider, state, victims, rule, start, keep, values.dtype)
        out = weighted_values(rows.view(batch, heads, n, end), values)
        gpu.compact(state.keys, state.values, state, moves)
    elif _compiled(q, rule):
        from msrnn_bench.multistate import compiled  # numba: only where it is used

        norm = compiled.evict(by_decider, positions, scores, victims, q.to(work.exact), keys, scale, seeds, rule, start)
        out = weighted_values(logits, values).mul_(norm.view(batch, heads, n, 1))
        compiled.compact(positions, scores, keep, n, *buffers)
    else:
        victims.copy_(fallback.evict(by_decider, positions, scores, keys, values, seeds, rule, state, start))
        out = weighted_values(logits, values)
        fallback.compact(positions, scores, keep, *buffers)
    state.alive = [keep] * batch
    return out


def _compiled(q: Tensor, rule: Rule) -> bool:
    """Whether the compiled kernels can do it: they know the family, functions of numbers, and this processor's memory."""
    return q.device.type == "cpu" and (rule.score is None or rule.elementwise is not None)


def _band(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, state: State, work: Work, scale: float, start: int, victims: Tensor
) -> Tensor:
    """Windows: who is alive is known, the first i and the last k - i. Plain attention over a band."""
    n, first, recent = q.shape[2], rule.first, rule.recent
    old_keys, old_values, old_positions, _ = oldest_first(state)
    every = (torch.cat([old_keys, k], dim=2), torch.cat([old_values, v], dim=2))
    out = torch.empty_like(q)
    grid = torch.arange(first + recent + BLOCK, device=q.device) - first
    query = torch.arange(BLOCK, device=q.device)[:, None]
    mask = (grid < 0) | ((grid >= query) & (grid <= query + recent))
    for at in range(0, n, BLOCK):
        m = min(BLOCK, n - at)
        reach = slice(first + at, first + at + recent + m)
        keys, values = (torch.cat([x[:, :, :first], x[:, :, reach]], dim=2) if first else x[:, :, reach] for x in every)
        out[:, :, at : at + m] = scaled_dot_product_attention(
            q[:, :, at : at + m], keys, values, attn_mask=mask[:m, : first + recent + m], scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
    new = torch.arange(start, start + n, device=q.device).expand(*old_positions.shape[:2], n)
    positions = torch.cat([old_positions, new], dim=2)
    victims.copy_(positions[:, :, first : first + n])
    size = first + recent
    assert state.keys is not None and state.values is not None
    for slots, x in ((state.keys, every[0]), (state.values, every[1])):
        slots[:, :, :first], slots[:, :, first:size] = x[:, :, :first], x[:, :, first + n :]
    state.positions[:, :, :first], state.positions[:, :, first:size] = positions[:, :, :first], positions[:, :, first + n :]
    work.forget_mirror()
    return out

"""The same recurrence, block-parallel: exact eviction in one pass per layer.

Under teacher forcing a layer's queries and keys for all tokens are known before its first eviction, and its evictions
depend on nothing else. So the products with the keys and the values are dense, over blocks of queries; only the
bookkeeping of which states are alive walks from step to step (kernels.py). Cost O(T (k + block)), no T x T matrix.

Shapes: B batch, H query heads, G KV heads, T tokens, S slots, D head size, k state size, N queries of a block; P is 1
(decided per layer) or G (per KV head), and each decider averages R = H / P query heads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from msrnn_bench.multistate import fallback
from msrnn_bench.multistate.draw import draw_key
from msrnn_bench.multistate.rows import each_row
from msrnn_bench.multistate.state import State, oldest_first, score_dtype
from msrnn_bench.policies import Policy, Rule

BLOCK = 96  # queries per dense product; more waste work on the dead, fewer starve the matrix product


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
) -> tuple[Tensor, State]:
    """Equal to `recurrence` up to rounding, argument for argument; see there."""
    rule = policy if isinstance(policy, Rule) else policy.rule(state_size)  # type: ignore[arg-type]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = state or State()
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
    work = _Work(state)
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
    state.trace = _trace(before, victims, state.seen[0] - steps) if before is not None else None
    return out, state


class _Work:
    """The keys and values in the dtype of the products: the state's own where that is it, else a float32 mirror."""

    def __init__(self, state: State) -> None:
        assert state.keys is not None
        self.state = state
        self.exact = score_dtype(state.keys.dtype)
        self.mirrored = self.exact != state.keys.dtype
        self.keys = self.values = state.keys[:, :, :0]
        self.buffer = torch.empty(0, dtype=self.exact, device=state.keys.device)

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        """Write N new states behind those alive; they are candidates, `state.alive` does not count them yet."""
        state, alive = self.state, self.state.alive[0]
        end = alive + k.shape[2]
        state.reserve(end)
        assert state.keys is not None and state.values is not None
        state.keys[:, :, alive:end], state.values[:, :, alive:end] = k, v
        state.positions[:, :, alive:end] = torch.arange(start, start + k.shape[2], device=k.device)
        state.scores[:, :, alive:end] = 0

    def load(self, end: int, new: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `end` slots for a product; the last `new` of them have just been written."""
        state = self.state
        assert state.keys is not None and state.values is not None
        if not self.mirrored:
            return state.keys[:, :, :end], state.values[:, :, :end]
        if self.keys.shape[2] < end:
            slots = min(state.keys.shape[2], end + BLOCK) if new > 1 else end
            self.keys, self.values = (x[:, :, :slots].to(self.exact) for x in (state.keys, state.values))
        else:
            self.keys[:, :, end - new : end] = state.keys[:, :, end - new : end]
            self.values[:, :, end - new : end] = state.values[:, :, end - new : end]
        return self.keys[:, :, :end], self.values[:, :, :end]

    def forget_mirror(self) -> None:
        """The slots were filled past the mirror."""
        if self.mirrored:
            self.keys = self.values = self.keys[:, :, :0]

    def room_for(self, *shape: int) -> Tensor:
        """Scratch space, reused from block to block: fresh megabytes cost more in page faults than in arithmetic."""
        size = 1
        for n in shape:
            size *= n
        if self.buffer.numel() < size:
            self.buffer = self.buffer.new_empty(size)
        return self.buffer[:size].view(shape)


def _logits(q: Tensor, keys: Tensor, work: _Work, scale: float) -> Tensor:
    """[B, H, N, S] in float32 or float64; the block's own future is -inf. `keys` [B, G, S, D] end with the block's."""
    batch, heads, n, size = q.shape
    groups, states = keys.shape[1:3]
    grouped = q.to(work.exact).reshape(batch * groups, heads // groups * n, size)
    logits = work.room_for(batch * groups, heads // groups * n, states)
    matrices = _by_group(keys)
    for part, left, right in zip(logits.chunk(len(matrices)), grouped.chunk(len(matrices)), matrices, strict=True):
        _products(part, left, right.transpose(1, 2), scale)
    logits = logits.view(batch, heads, n, states)
    if n > 1:
        logits[..., states - n :] += _future(n, work.exact, q.device)
    return logits


@lru_cache(maxsize=4)
def _future(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[N, N]: -inf where the key is in the query's future; the same in every block and layer."""
    return torch.full((n, n), float("-inf"), dtype=dtype, device=device).triu(1)


@lru_cache(maxsize=4)
def _causal(n: int, old: int, device: torch.device) -> Tensor:
    """[N, old + N] True where query n may attend, `old` states being before the first; the same in every layer."""
    return torch.ones(n, old + n, dtype=torch.bool, device=device).tril(old)


def _products(out: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """out [n, M, Y] = scale * left [n, M, X] @ right [n, X, Y].

    A CPU's batched product gives whole matrices to threads, so that three matrices take two threads as long as four;
    the matrices left over are cut by rows instead (20% of both products at three KV heads and k=2,048).
    """
    count, rows = left.shape[:2]
    threads = torch.get_num_threads() if left.device.type == "cpu" else 1
    over = count % threads if count > threads and rows % threads == 0 else 0
    whole = count - over
    torch.baddbmm(out[:whole], left[:whole], right[:whole], beta=0, alpha=scale, out=out[:whole])
    cut = (threads, rows // threads)
    for i in range(whole, count):
        part = out[i].unflatten(0, cut)
        torch.baddbmm(part, left[i].unflatten(0, cut), right[i].expand(threads, -1, -1), beta=0, alpha=scale, out=part)


def _by_group(x: Tensor) -> list[Tensor]:
    """Keys or values [B, G, S, D] as batches of matrices without a copy: slots are a slice of a larger buffer, so rows
    of a batch cannot be flattened into one."""
    return [x.flatten(0, 1)] if x.shape[0] == 1 or x.is_contiguous() else list(x)


def _outputs(probs: Tensor, values: Tensor) -> Tensor:
    """probs [B, H, N, S] @ values [B, G, S, D] -> [B, H, N, D]."""
    batch, heads, n, states = probs.shape
    groups, size = values.shape[1], values.shape[3]
    grouped = probs.view(batch * groups, heads // groups * n, states)
    out = grouped.new_empty(*grouped.shape[:2], size)
    matrices = _by_group(values)
    for part, left, right in zip(out.chunk(len(matrices)), grouped.chunk(len(matrices)), matrices, strict=True):
        _products(part, left, right)
    return out.view(batch, heads, n, size)


def _fill(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, state: State, work: _Work, scale: float, start: int, victims: Tensor
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
        mask = _causal(n, alive, q.device) if n > 1 else None
        keys, values = state.keys[:, :, : alive + n], state.values[:, :, : alive + n]
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask, **shared)
    keys, values = work.load(alive + n, n)
    logits = _logits(q, keys, work, scale)
    probs = torch.softmax(logits, dim=-1, out=logits)
    batch, deciders = state.scores.shape[:2]
    reps = q.shape[1] // deciders
    fade = rule.memory ** torch.arange(n - 1, -1, -1, dtype=work.exact, device=q.device)
    gained = (fade.repeat(reps) / reps).expand(batch * deciders, 1, -1) @ probs.view(batch * deciders, reps * n, -1)
    scores = state.scores[:, :, : alive + n]
    scores.mul_(rule.memory**n).add_(gained.view(batch, deciders, -1))
    return _outputs(probs, values)


def _evict(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, state: State, work: _Work, scale: float, start: int, victims: Tensor
) -> Tensor:
    """One block: dense products over the states alive and the N new ones, and who leaves at which step."""
    batch, heads, n, _ = q.shape
    alive = state.alive[0]
    end = alive + n
    work.append(k, v, start)
    assert state.keys is not None and state.values is not None
    keys, values = work.load(end, n)
    logits = _logits(q, keys, work, scale)
    positions, scores = state.positions[:, :, :end], state.scores[:, :, :end]
    deciders = positions.shape[1]
    by_decider = logits.view(batch, deciders, heads // deciders, n, end)
    seeds = [] if rule.seed is None else [draw_key(rule.seed, d, state.layer) for d in state.documents or ()]
    keep = end if rule.state_size is None else min(end, rule.state_size)
    buffers = [state.keys[:, :, :end], state.values[:, :, :end]] + ([keys, values] if work.mirrored else [])
    if _compiled(q, rule):
        from msrnn_bench.multistate import compiled  # numba: only where it is used

        norm = compiled.evict(by_decider, positions, scores, victims, q.to(work.exact), keys, scale, seeds, rule, start)
        out = _outputs(logits, values).mul_(norm.view(batch, heads, n, 1))
        compiled.compact(positions, scores, keep, n, *buffers)
    else:
        victims.copy_(fallback.evict(by_decider, positions, scores, keys, values, seeds, rule, state, start))
        out = _outputs(logits, values)
        fallback.compact(positions, scores, keep, *buffers)
    state.alive = [keep] * batch
    return out


def _compiled(q: Tensor, rule: Rule) -> bool:
    """Whether the compiled kernels can do it: they know the family, and this processor's memory."""
    return q.device.type == "cpu" and rule.score is None


def _band(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, state: State, work: _Work, scale: float, start: int, victims: Tensor
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


def _trace(before: Tensor, victims: Tensor, start: int) -> Tensor:
    """Positions kept after each step [B, P, T, k] from who was there [B, P, S] and who left [B, P, T]."""
    steps = victims.shape[-1]
    now = torch.arange(start, start + steps, device=victims.device)
    known = torch.cat([before, now.expand(*before.shape[:2], steps)], dim=-1)
    left = known[..., None] == victims[..., None, :]  # [B, P, U, T]
    gone = left.cumsum(-1) > 0
    alive = (known[..., None] >= 0) & (known[..., None] <= now) & ~gone
    width = int(alive.sum(2).max())
    last = torch.iinfo(torch.int64).max
    kept = torch.where(alive, known[..., None], last).transpose(-1, -2).sort(dim=-1).values[..., :width]
    return kept.masked_fill(kept == last, -1)

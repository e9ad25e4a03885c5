"""The scan's dense products over a block of queries, and the buffers that they read and write.

Shapes: B batch, H query heads, G KV heads, S slots, D head size, N queries of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msrnn_bench.multistate.state import State, score_dtype
from msrnn_bench.multistate.streams import remembered

BLOCK = 96  # queries per dense product; more waste work on the dead, fewer starve the matrix product


class Work:
    """The keys and values in the dtype of the products: the state's own where that is it, else a float32 mirror. Where a device
    has products of bfloat16 that end in float32 (`narrow`), they are the state's own always."""

    def __init__(self, state: State, *, narrow: bool = False) -> None:
        assert state.keys is not None
        self.state = state
        self.exact = score_dtype(state.keys.dtype)
        self.mirrored = self.exact != state.keys.dtype and not narrow
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


def scaled_logits(q: Tensor, keys: Tensor, work: Work, scale: float) -> Tensor:
    """[B, H, N, S] in float32 or float64; the block's own future is -inf. `keys` [B, G, S, D] end with the block's."""
    batch, heads, n, size = q.shape
    groups, states = keys.shape[1:3]
    grouped = q.to(keys.dtype).reshape(batch * groups, heads // groups * n, size)
    logits = work.room_for(batch * groups, heads // groups * n, states)
    matrices = _by_group(keys)
    for part, left, right in zip(logits.chunk(len(matrices)), grouped.chunk(len(matrices)), matrices, strict=True):
        _products(part, left, right.transpose(1, 2), scale)
    logits = logits.view(batch, heads, n, states)
    if n > 1:
        logits[..., states - n :].add_(_future(n, work.exact, q.device))
    return logits


@remembered(8)
def _future(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[N, N]: -inf where the key is in the query's future; the same in every block and layer."""
    return torch.full((n, n), float("-inf"), dtype=dtype, device=device).triu(1)


@remembered(8)
def causal(n: int, old: int, device: torch.device) -> Tensor:
    """[N, old + N] True where query n may attend, `old` states being before the first; the same in every layer."""
    return torch.ones(n, old + n, dtype=torch.bool, device=device).tril(old)


def _products(out: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """out [n, M, Y] = scale * left [n, M, X] @ right [n, X, Y].

    A CPU's batched product gives whole matrices to threads, so that three matrices take two threads as long as four;
    the matrices left over are cut by rows instead (20% of both products at three KV heads and k=2,048).
    """
    if left.dtype != out.dtype:
        _narrow_products(out, left, right, scale)
        return
    count, rows = left.shape[:2]
    threads = torch.get_num_threads() if left.device.type == "cpu" else 1
    over = count % threads if count > threads and rows % threads == 0 else 0
    whole = count - over
    torch.baddbmm(out[:whole], left[:whole], right[:whole], beta=0, alpha=scale, out=out[:whole])
    cut = (threads, rows // threads)
    for i in range(whole, count):
        part = out[i].unflatten(0, cut)
        torch.baddbmm(part, left[i].unflatten(0, cut), right[i].expand(threads, -1, -1), beta=0, alpha=scale, out=part)


def _narrow_products(out: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """`_products` of 16-bit matrices, summed and kept in float32. Only CUDA has it; elsewhere (tests) they are widened."""
    if out.device.type == "cuda":
        torch.baddbmm(out, left, right, out_dtype=out.dtype, beta=0, alpha=scale, out=out)
    else:
        torch.baddbmm(out, left.to(out.dtype), right.to(out.dtype), beta=0, alpha=scale, out=out)


def _by_group(x: Tensor) -> list[Tensor]:
    """Keys or values [B, G, S, D] as batches of matrices without a copy: slots are a slice of a larger buffer, so rows
    of a batch cannot be flattened into one."""
    return [x.flatten(0, 1)] if x.shape[0] == 1 or x.is_contiguous() else list(x)


def weighted_values(probs: Tensor, values: Tensor) -> Tensor:
    """probs [B, H, N, S] @ values [B, G, S, D] -> [B, H, N, D], in the values' dtype."""
    batch, heads, n, states = probs.shape
    probs = probs.to(values.dtype)
    groups, size = values.shape[1], values.shape[3]
    grouped = probs.view(batch * groups, heads // groups * n, states)
    out = grouped.new_empty(*grouped.shape[:2], size)
    matrices = _by_group(values)
    for part, left, right in zip(out.chunk(len(matrices)), grouped.chunk(len(matrices)), matrices, strict=True):
        _products(part, left, right)
    return out.view(batch, heads, n, size)

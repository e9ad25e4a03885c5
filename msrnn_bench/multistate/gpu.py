"""torch tensors in, the Triton kernels on their memory: the GPU's side of scan.py. Nothing here waits for the device."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from msrnn_bench.multistate.draw import draws
from msrnn_bench.policies import Rule



def usable(device: torch.device) -> bool:
    """Whether the kernels can run there: Triton is installed, and the device is its, or its interpreter stands in for one."""
    return (device.type == "cuda" or interpreted()) and find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter was asked for, which runs the kernels on a CPU, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def evict(
    logits: Tensor, positions: Tensor, scores: Tensor, victims: Tensor, seeds: list[int], rule: Rule, start: int, keep: int,
    dtype: torch.dtype, *, certificate: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Walk the block's steps; see `gpu_kernels`.

    logits [B, P, R, N, S] float32 or float64, used up; positions and scores [B, P, S] in place; victims [B, P, N] out.
    Returns the rows of attention [B, P, R, N, S] in `dtype`, and for `compact` sources and holes [B, P, N]. `certificate=False`
    reads every state in all heads at every step: the same victims, for tests.
    """
    from msrnn_bench.multistate import gpu_kernels as kernels

    batch, deciders, heads, steps, states = logits.shape
    old, rows = states - steps, batch * deciders
    exact = _name(logits.dtype)
    tops, norms = logits.new_empty(2, batch, deciders, heads, steps)
    sums = tops.new_empty(tops.shape, dtype=torch.float64)
    certified = certificate and heads > 1 and rule.memory == 0 and rule.seed is None and rule.state_size is not None
    means = logits.new_empty((batch, deciders, steps, states) if certified else 1)
    if rule.seed is not None:
        means = _drawn(seeds, positions, start, steps).to(logits.dtype)
    died = torch.empty((batch, deciders, states), dtype=torch.int32, device=logits.device)
    sources = died.new_full((batch, deciders, steps), -1)
    holes = sources.clone()
    left = victims.new_empty(victims.shape)
    shape = {"R": heads, "TILE": 512 if states <= 512 else 1024, "num_warps": 4}
    kernels.rows[rows, steps](logits, tops, sums, means, old, steps, states, MEANS=certified, EXACT=exact, **shape)
    kernels.walk[rows,](
        logits, tops, sums, means, norms, positions, scores, died, left, sources, holes, old, steps, states, start,
        states if rule.state_size is None else rule.state_size, keep, rule.first, rule.recent, *positions.stride()[:2],
        *scores.stride()[:2], MEMORY=rule.memory, P=deciders, HEADS=_power(heads), DEAD=max(4, min(32, 1024 // _power(heads))),
        CERTIFICATE=certified, GIVEN=rule.seed is not None, SCORE=None, EXACT=exact, **shape,
    )  # fmt: skip
    out = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    kernels.finish[rows * heads, steps](logits, out, tops, norms, died, old, steps, states, **shape)
    victims.copy_(left)
    return out, sources, holes


def compact(keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor, sources: Tensor, holes: Tensor) -> None:
    """Move the states that stand behind the first `keep` slots to where others left: keys, values [B, G, S, D]."""
    from msrnn_bench.multistate import gpu_kernels as kernels

    batch, groups, _, size = keys.shape
    deciders, steps = sources.shape[1:]
    kernels.move[batch, groups, steps](
        keys, values, positions, scores, sources, holes, steps, *keys.stride()[:3], *values.stride()[:3],
        *positions.stride()[:2], *scores.stride()[:2], P=deciders, G=groups, WIDTH=_power(size), SIZE=size, num_warps=1,
    )  # fmt: skip


def _drawn(seeds: list[int], positions: Tensor, start: int, steps: int) -> Tensor:
    """The random policy's scores [B, P, N, S], all steps at once."""
    batch, deciders, states = positions.shape
    now = torch.arange(start, start + steps, device=positions.device).repeat(batch)
    keys = [seed for seed in seeds for _ in range(steps)]
    repeated = positions[:, :, None].expand(-1, -1, steps, -1).transpose(1, 2).flatten(0, 1)
    return draws(keys, now, repeated).view(batch, steps, deciders, states).transpose(1, 2).contiguous()


def _name(dtype: torch.dtype) -> object:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()

"""torch tensors in, the compiled kernels on their memory: the CPU's side of scan.py. Nothing is copied."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate import kernels
from msrnn_bench.multistate.rescore import rescorer
from msrnn_bench.multistate.scores import NAN
from msrnn_bench.policies import Rule


def evict(
    logits: Tensor, positions: Tensor, scores: Tensor, victims: Tensor, query: Tensor, keys: Tensor, scale: float,
    seeds: list[int], rule: Rule, start: int,
) -> Tensor:  # fmt: skip
    """See `kernels.evict`; `logits` [B, P, R, N, S] become its `probs`. Returns norm [B, P, R, N].

    UsageError where a user's score is NaN."""
    probs = torch.softmax(logits, dim=-1, out=logits)
    norm = probs.new_empty(probs.shape[:-1])
    size = probs.shape[-1] if rule.state_size is None else rule.state_size
    own = rescorer(rule, scores.dtype)
    arguments = (
        probs.numpy(), norm.numpy(), positions.numpy(), scores.numpy(), victims.numpy(), query.numpy(), keys.numpy(),
        scale, np.array(seeds, dtype=np.uint64), rule.memory, rule.first, rule.recent, size, start, own,
    )  # fmt: skip
    kind = scores.dtype, own is None
    if kind not in _KERNELS:
        _KERNELS[kind] = _for_slices(arguments)
    if not _KERNELS[kind](*arguments):
        raise UsageError(NAN)
    return norm


_KERNELS: dict[tuple[torch.dtype, bool], Any] = {}


def _for_slices(arguments: tuple[Any, ...]) -> Any:
    """`kernels.evict`, compiled once for slices of anything: by itself numba would once more for every way in which the five may
    lie in memory. It makes them no slower, for its loops run over copies."""
    types = [numba.typeof(argument) for argument in arguments]
    loose = [kind.copy(layout="A") if isinstance(kind, numba.types.Array) else kind for kind in types[1:]]
    return numba.njit((types[0], *loose), cache=True, nogil=True, fastmath=kernels.FAST)(kernels.evict)


def compact(positions: Tensor, scores: Tensor, keep: int, new: int, *buffers: Tensor) -> None:
    """Move the states in slots from `keep` on into free slots below; at most `new` of them can stand there."""
    moves = np.empty((*positions.shape[:2], new + 1, 2), np.int64)
    kernels.plan_moves(positions.numpy(), scores.numpy(), keep, moves)
    for x in buffers:
        # Rows only move, so a dtype that NumPy lacks travels as the integers of its bits.
        bits = x.view(torch.int16) if x.element_size() == 2 else x
        kernels.move_rows(bits.numpy(), moves)

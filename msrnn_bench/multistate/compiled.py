"""torch tensors in, the compiled kernels on their memory: the CPU's side of scan.py. Nothing is copied."""

from __future__ import annotations

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
    ranked = kernels.evict(
        probs.numpy(), norm.numpy(), positions.numpy(), scores.numpy(), victims.numpy(), query.numpy(), keys.numpy(),
        scale, np.array(seeds, dtype=np.uint64), rule.memory, rule.first, rule.recent, size, start,
        rescorer(rule, scores.dtype),
    )  # fmt: skip
    if not ranked:
        raise UsageError(NAN)
    return norm


def compact(positions: Tensor, scores: Tensor, keep: int, new: int, *buffers: Tensor) -> None:
    """Move the states in slots from `keep` on into free slots below; at most `new` of them can stand there."""
    moves = np.empty((*positions.shape[:2], new + 1, 2), np.int64)
    kernels.plan_moves(positions.numpy(), scores.numpy(), keep, moves)
    for x in buffers:
        # Rows only move, so a dtype that NumPy lacks travels as the integers of its bits.
        bits = x.view(torch.int16) if x.element_size() == 2 else x
        kernels.move_rows(bits.numpy(), moves)

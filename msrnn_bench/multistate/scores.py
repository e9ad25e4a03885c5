"""What a user's own policy may answer."""

from __future__ import annotations

import torch
from torch import Tensor

from msrnn_bench.errors import UsageError

NAN = "the policy's score returned NaN, which ranks nothing"


def checked_scores(answer: Tensor, scores: Tensor) -> Tensor:
    """What a user's `score` returned, refused when it cannot rank the states."""
    if not isinstance(answer, Tensor) or answer.shape != scores.shape:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UsageError(
            f"the policy's score must return a tensor of shape {tuple(scores.shape)}, got {got}; "
            'set per = "head" on the policy to decide per KV head'
        )
    if torch.isnan(answer).any():
        raise UsageError(NAN)
    return answer.to(scores.dtype)

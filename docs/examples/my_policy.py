"""A policy of your own. From this folder: msrnn-bench run policy._target_=my_policy.Loudest cache=512

The state whose loudest head is quietest leaves; what is loud once fades by half each step, and the newest
`recent` states stay. `score` sees the live states only, oldest first; the lowest unprotected one leaves.
"""

from dataclasses import dataclass

from torch import Tensor

from msrnn_bench import Policy


@dataclass(frozen=True)
class Loudest(Policy):
    fade: float = 0.5
    recent: int = 8

    def score(self, *, attention: Tensor, previous: Tensor, **_) -> Tensor:  # [B, H, S] and [B, 1, S] -> [B, 1, S]
        return attention.amax(dim=1, keepdim=True) + self.fade * previous

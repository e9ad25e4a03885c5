"""Compressed positions (the paper, section 4.4 and its 70K-token experiment): where the kept states stand, and how a layer turns.

Gaps g between neighbouring states are closed to g where g <= 10, else ceil(10 + ln(ln(g - 10 + e))): 11 -> 11, 20 -> 11,
100 -> 12, 1,000 -> 12, 70,000 -> 13. Summed up over the k+1 states attended to they are the states' places; the query stands at
the newest's. A rotation knows distances only, so where the first one stands does not matter. The paper prints ln(ln g); the
authors' code has the formula above. torch only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from msrnn_bench.multistate.state import score_dtype

NEAR = 10  # gaps up to here stay
WIDEST = 14  # no text is so long that a gap closes to more


def compressed(gap: Tensor) -> Tensor:
    """What a gap of `gap` tokens, int64, closes to; int64."""
    far = (gap.clamp(min=NEAR) - NEAR).double() + math.e
    return torch.where(gap <= NEAR, gap, (NEAR + far.log().log()).ceil().long())


def places(positions: Tensor) -> Tensor:
    """Where states stand whose true positions are `positions` [..., S], oldest first: [..., S], the oldest at 0."""
    return torch.nn.functional.pad(compressed(positions.diff(dim=-1)).cumsum(-1), (1, 0))


def reach(state_size: int) -> int:
    """The largest distance that a state of `state_size` can have from the query."""
    return WIDEST * state_size


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., D] whose first halves of pairs stand in front, then the second halves, then what is not turned; cos, sin
    [..., pairs]."""
    pairs = cos.shape[-1]
    first, second, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


@dataclass
class Rotation:
    """How one layer turns queries and keys.

    `make(places)` gives cos and sin [n, pairs] at places [n] from the model's own rotary module, in float64. `order` [D] are
    the head's dimensions as `rotate` wants them; None where they stand so already.
    """

    make: Callable[[Tensor], tuple[Tensor, Tensor]]
    order: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None

    def tables(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin [at least `rows`, pairs] of the places 0, 1, ... in the dtype of scores, on the device of `like`."""
        exact, have = score_dtype(like.dtype), 0 if self.cos is None else len(self.cos)
        if self.cos is None or self.sin is None or have < rows or (self.cos.dtype, self.cos.device) != (exact, like.device):
            made = self.make(torch.arange(max(rows, 2 * have if have < rows else have)))
            self.cos, self.sin = (x.to(like.device, exact).contiguous() for x in made)
        return self.cos, self.sin

    def arranged(self, x: Tensor) -> Tensor:
        """x [..., D] of the model, in `order`; dot products stay what they are."""
        return x if self.order is None else x[..., self.order.to(x.device)]

    def models(self, x: Tensor) -> Tensor:
        """x [..., D] in the model's own order again."""
        return x if self.order is None else x[..., self.order.argsort().to(x.device)]

    def turn(self, x: Tensor, places: Tensor) -> Tensor:
        """x [B, heads, n, D], arranged and unturned, at places [n] or [B, P, n] where P divides heads; in x's dtype."""
        cos, sin = self.tables(int(places.max()) + 1 if places.numel() else 1, x)
        cos, sin = cos[places], sin[places]
        if places.dim() == 3:
            repeats = x.shape[1] // places.shape[1]
            cos, sin = cos.repeat_interleave(repeats, 1), sin.repeat_interleave(repeats, 1)
        return rotate(x.to(cos.dtype), cos, sin).to(x.dtype)

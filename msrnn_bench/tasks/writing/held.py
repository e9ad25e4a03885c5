"""What became of some tokens of a prompt: how many of their states each layer still holds, and how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def behind(tokens: int) -> list[int]:
    """At how many tokens behind something to look: powers of two, and at the end of the `tokens` that there are."""
    return [*(2**power for power in range(tokens.bit_length()) if 2**power < tokens), tokens]


def held_after(deaths: Sequence[Tensor], places: range, steps: Sequence[int]) -> tuple[list[list[int]], int]:
    """How many states of the tokens at `places` are held once n tokens behind the last of them have been read, for each n of
    `steps` and each layer [L, n], summed over those that decide; and how many decide.

    deaths: per layer [1, P, tokens], as `Session.deaths`; a state is held after step t where its step of death is later."""
    counts = []
    for layer in deaths:
        ours = layer[0, :, places.start : places.stop]
        counts.append([int(((ours < 0) | (ours > places.stop - 1 + n)).sum()) for n in steps])
    return counts, deaths[0].shape[1]

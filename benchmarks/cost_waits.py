"""Loads that wait for one another, in the kernels of gpu_kernels.py as Triton 3.7.1 compiles them for sm_90.

Counted in the machine code (bfloat16; 1, 4, 12 and 32 heads; pointers aligned as in a launch): instructions issue in order, so
that a load waits for an earlier one where a register which that one fills is used in between. Loads under a mask are compiled to
predicated ones, which share registers and wait; so in the long loops of `walk` nothing is masked, but read at slot 0.
"""

from __future__ import annotations

from math import ceil

# Of a tile of so many states: finding the candidates (three passes over the mean row), and reading four heads, of those and,
# without the certificate, of all.
TILES = {512: (6, 5, 5), 1024: (6, 5, 6)}
ONE, FOUR = 5, 3  # where a decision averages one head alone, or four: no loop is left


def walk(heads: int, states: int, steps: int, *, certified: bool, memory: bool, lone: float) -> float:
    """Of one step of `walk`, a mean over a block of so many. One decision averages `heads`; `lone` is the share of steps at which
    the certificate leaves one candidate, which leaves unread."""
    size = 512 if states <= 512 else 1024
    finding, reading, plain = TILES[size]
    together = max(4, min(32, 1024 // (1 << (heads - 1).bit_length())))  # of the dead
    dead = sum(max(0, 2 * ceil(n / together) - 1) for n in range(steps)) / steps
    if certified:
        tile = finding + (1 - lone) * ceil(heads / 4) * reading
    else:
        tile = 1 + (ONE if heads == 1 else FOUR if heads <= 4 else ceil(heads / 4) * plain) + memory
    return 1 + dead + ceil(states / size) * tile


def attend(heads: int, states: int) -> tuple[int, int]:
    """Of one program of `attend`, whose group has so many query heads: from memory, and again from a cache."""
    tiles = 5 * ceil(states / 32)
    return 3 + tiles, (heads - 1) * (1 + tiles)

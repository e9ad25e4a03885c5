"""Counter-based random numbers: the same (seed, document, layer, step, position) always draws the same.

A generator with a state would make a row's draws depend on its neighbours in the batch and on the chunking.
The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014); 24 bits, exact in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
STEP, PLACE = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
MIX1, MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def draw_key(seed: int, document: int, layer: int) -> int:
    """64 bits that stand for one layer reading one document."""
    key = 0
    for part in (seed, document, layer):
        key = _mix((key + (part + 1) * STEP) & _MASK)
    return key


def draws(keys: list[int], step: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float32, of the shape of `positions` [B, P, S]; `keys` one per row, `step` [B]."""
    key = torch.tensor([_signed(k) for k in keys], device=positions.device)[:, None, None]
    x = _mix_tensor(key + step[:, None, None] * _signed(STEP))
    x = _mix_tensor(x + positions * _signed(PLACE))
    return (_shift(x, 40)).to(torch.float32) * 2.0**-24


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * MIX1) & _MASK
    x = ((x ^ (x >> 27)) * MIX2) & _MASK
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(MIX1)
    x = (x ^ _shift(x, 27)) * _signed(MIX2)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x

"""Is the path that is about to be timed exact? Kept sets and outputs of two paths on one device, on a shape of a second.

On a GPU the Triton kernels are held against the torch fallback; where the fallback itself is what runs, against the recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import msrnn_bench as mb
from msrnn_bench.multistate import gpu
from msrnn_bench.multistate import scan as scanning

HEADS, GROUPS, SIZE, K, STEPS = 8, 4, 32, 24, 160
PIECES = (112, *(1,) * 12, 36)  # a text, a token at a time, the rest
CLOSE = 2e-5  # of outputs of about 1, in float32


def path(device: torch.device) -> str:
    """What decides who leaves there, in words."""
    if gpu.usable(device, mb.Tova().rule(K)):
        return "Triton kernels"
    return "torch fallback" + (": Triton is not installed" if device.type == "cuda" else "")


@contextmanager
def fallback() -> Iterator[None]:
    """The torch operations, whatever else could run."""
    no_kernels = mock.patch.object(gpu, "usable", lambda device, rule: False)
    with no_kernels, mock.patch.object(scanning, "_compiled", lambda q, rule: False):
        yield


def faults(policy: mb.Policy, device: torch.device) -> str | None:
    """What differs, in one line; None where nothing does. The text is read in pieces, a token at a time among them."""
    q, k, v = drawn(device)
    if gpu.usable(device, policy.rule(K)):
        ours = read(mb.scan, q, k, v, policy)
        with fallback():
            theirs, other = read(mb.scan, q, k, v, policy), "the torch fallback"
    else:
        with fallback():
            ours = read(mb.scan, q, k, v, policy)
        theirs, other = read(mb.recurrence, q, k, v, policy), "the recurrence"
    for step, (mine, its) in enumerate(zip(ours[1], theirs[1], strict=True)):
        if not torch.equal(mine, its):
            return f"{policy.name} keeps other states than {other} (after piece {step + 1} of {len(PIECES)}, float32)"
    worst = float((ours[0] - theirs[0]).abs().max())
    if not worst <= CLOSE:  # nan too
        return f"{policy.name}'s outputs differ from those of {other} by {worst:.1e} (float32, at most {CLOSE:.0e})"
    return None


def drawn(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of two rows; the tests show that no choice between them is within a rounding."""
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, STEPS, SIZE, generator=draw).to(device) for heads in (HEADS, GROUPS, GROUPS))
    return q, k, v


def read(engine: Callable[..., tuple[Tensor, Any]], q: Tensor, k: Tensor, v: Tensor, policy: mb.Policy) -> tuple[Tensor, list]:
    """Outputs [B, H, T, D], and per piece the positions kept after each of its steps."""
    outs, kept, state, at = [], [], None, 0
    for n in PIECES:
        part = slice(at, at + n)
        out, state = engine(q[:, :, part], k[:, :, part], v[:, :, part], policy=policy, state_size=K, state=state, trace=n > 1)
        outs.append(out)
        kept.append(state.trace if n > 1 else torch.stack(state.kept()))  # a step of its own has no trace
        at += n
    return torch.cat(outs, dim=2), kept

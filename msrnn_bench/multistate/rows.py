"""Rows of a batch that are not alike: padding, and states of unequal fill. Knows neither engine.

Both engines step all rows together, which needs every row to add the same tokens to as many states. Rows that differ
are run alone, so that each gets exactly what it gets alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from msrnn_bench.multistate.state import State
from msrnn_bench.policies import Rule

Steps = Callable[..., tuple[Tensor, State]]


def each_row(
    steps: Steps, q: Tensor, k: Tensor, v: Tensor, *, rule: Rule, state: State, scale: float, padding: Tensor | None,
    trace: bool,
) -> tuple[Tensor, State]:  # fmt: skip
    """`steps` over the batch at once where rows are alike, else row by row; see `recurrence` for the arguments."""
    options: dict[str, Any] = {"rule": rule, "scale": scale, "trace": trace}
    if padding is not None and bool(padding.all()):
        padding = None
    if padding is None and (state.empty or len({*zip(state.alive, state.seen, strict=True)}) == 1):
        return steps(q, k, v, state=state, **options)
    if trace and padding is not None:
        raise ValueError("trace needs a batch without padding")
    if state.empty:
        state.start(k, k.shape[1] if rule.per == "head" else 1, 0)
    out, states = torch.zeros_like(q), []
    for row in range(q.shape[0]):
        real = slice(None) if padding is None else padding[row].nonzero().squeeze(-1)
        alone = state.select([row])
        if padding is None or bool(padding[row].any()):
            part, alone = steps(*(x[row : row + 1, :, real] for x in (q, k, v)), state=alone, **options)
            out[row, :, real] = part[0]
        states.append(alone)
    return out, stack(states)


def stack(states: list[State]) -> State:
    """One state of all rows; rows with less room get more."""
    slots = max(s.keys.shape[2] for s in states if s.keys is not None)
    width = max(0 if s.deaths is None else s.deaths.shape[-1] for s in states)
    for s in states:
        s.reserve_exactly(slots)
        s.widen_deaths(width)
    joined: dict[str, Any] = {}
    for item in fields(State):
        values = [getattr(s, item.name) for s in states]
        if isinstance(values[0], Tensor):
            joined[item.name] = torch.cat(values)
        elif isinstance(values[0], (list, tuple)):
            joined[item.name] = type(values[0])(x for value in values for x in value)
    return replace(states[0], **joined)

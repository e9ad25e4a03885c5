"""The scan's sequential part in torch operations: any device, and policies of the user's own. Same results as kernels.py.

Nothing in a step waits for the device: how many states are alive is known without asking, and whether a score was NaN is asked
once a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.draw import draws
from msrnn_bench.multistate.scores import NAN, shaped_scores, unread
from msrnn_bench.multistate.state import State
from msrnn_bench.policies import Rule


def evict(
    logits: Tensor, positions: Tensor, scores: Tensor, keys: Tensor, values: Tensor, seeds: list[int], rule: Rule,
    state: State, start: int,
) -> Tensor:  # fmt: skip
    """Walk the block's steps; in place: `logits` [B, P, R, N, S] become softmax rows over the states alive,
    `positions` and `scores` [B, P, S] what they are after the last step. Returns the victims [B, P, N].

    keys, values [B, G, S, D] are those of the candidates, for a user's own `score`. UsageError where one is NaN.
    """
    batch, deciders, reps, steps, states = logits.shape
    old = states - steps
    size = states if rule.state_size is None else rule.state_size
    # Of the live, oldest first: slots and positions [2, B, P, n], scores [B, P, n]; those that enter stand ready.
    order = positions[..., :old].argsort(dim=-1)
    held, gained = torch.stack([order, positions[..., :old].gather(-1, order)]), scores[..., :old].gather(-1, order)
    slots = torch.arange(old, states, device=logits.device).expand(batch, deciders, steps)
    fresh, nothing = torch.stack([slots, positions[..., old:]]), scores.new_zeros((batch, deciders, 1))
    index = torch.arange(min(size, states), device=logits.device)
    now = torch.arange(start, start + steps, device=logits.device).expand(batch, steps)
    lows: list[Tensor] = []
    left: list[Tensor] = []
    for step in range(steps):
        held, gained = torch.cat([held, fresh[..., step : step + 1]], dim=-1), torch.cat([gained, nothing], dim=-1)
        row = logits[..., step, :].softmax(dim=-1)  # the dead and the future are -inf
        logits[..., step, :] = row
        if rule.score is not None:
            gained = _own_score(rule, state, row, keys, values, held, gained, now[:, step])
        elif rule.seed is not None:
            gained = draws(seeds, now[:, step], held[1]).to(scores.dtype)
        else:
            mean = row.mean(dim=2).gather(-1, held[0])
            gained = mean if rule.memory == 0 else rule.memory * gained + mean
        low, worst = gained.min(dim=-1, keepdim=True)  # of equal scores the first, which is the oldest
        lows.append(low)  # NaN where one is
        if held.shape[-1] <= size:
            continue
        if rule.first or rule.recent:
            protected = (held[1] < rule.first) | (held[1] > start + step - rule.recent)
            worst = gained.masked_fill(protected, float("inf")).argmin(dim=-1, keepdim=True)
        gone = held.gather(-1, worst.expand(2, -1, -1, -1))
        left.append(gone[1])
        logits[..., step + 1 :, :].scatter_(
            -1, gone[0, :, :, None, None].expand(-1, -1, reps, steps - step - 1, -1), -float("inf")
        )
        stay = index + (index >= worst)
        held, gained = held.gather(-1, stay.expand(2, -1, -1, -1)), gained.gather(-1, stay)
    if rule.score is not None and bool(torch.cat(lows).isnan().any()):
        raise UsageError(NAN)
    positions.fill_(-1).scatter_(-1, held[0], held[1])
    scores.scatter_(-1, held[0], gained)
    none = positions.new_full((batch, deciders, steps - len(left)), -1)
    return torch.cat([none, *left], dim=-1)


def _own_score(
    rule: Rule, state: State, row: Tensor, keys: Tensor, values: Tensor, held: Tensor, previous: Tensor, now: Tensor
) -> Tensor:
    """A user's `score` [B, P, n], shown the live states oldest first; keys and values where it can read them."""
    assert rule.score is not None
    groups, idle, slots = keys.shape[1], unread(rule.score), held[0]
    shown: dict[str, Any] = {
        "attention": row.gather(-1, slots[:, :, None].expand(-1, -1, row.shape[2], -1)).flatten(1, 2),
        "positions": held[1].expand(-1, groups, -1), "query_position": now, "previous": previous, "layer": state.layer,
    }  # fmt: skip
    wide = slots.expand(-1, groups, -1)[..., None]
    for name, x in (("keys", keys), ("values", values)):
        if name not in idle:
            shown[name] = x.gather(2, wide.expand(-1, -1, -1, x.shape[-1]))
    return shaped_scores(rule.score(**shown), previous)


def compact(positions: Tensor, scores: Tensor, keep: int, *buffers: Tensor) -> None:
    """Move the states alive into the first `keep` slots of every tensor; positions, scores [B, P, S], buffers [B, G, S, D]."""
    order = (positions < 0).to(torch.int8).argsort(dim=-1, stable=True)[..., :keep]
    for x in (positions, scores):
        x[..., :keep] = x.gather(-1, order)
    for x in buffers:
        index = order.expand(*x.shape[:2], keep)[..., None].expand(-1, -1, -1, x.shape[-1])
        x[:, :, :keep] = x.gather(2, index)
    positions[..., keep:] = -1

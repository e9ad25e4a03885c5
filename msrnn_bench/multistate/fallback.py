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
    victims = positions.new_full((batch, deciders, steps), -1)
    unranked = torch.zeros((), dtype=torch.bool, device=logits.device)
    # of the live, oldest first [B, P, n]: their slots, positions and scores; those that enter stand ready
    slots = positions[..., :old].argsort(dim=-1)
    known, gained = positions.gather(-1, slots), scores.gather(-1, slots)
    new = torch.arange(old, states, device=logits.device).expand(batch, deciders, steps), positions[..., old:].clone()
    nothing, index = scores.new_zeros((batch, deciders, 1)), torch.arange(min(size, states), device=logits.device)
    for step in range(steps):
        now, enter = start + step, slice(step, step + 1)
        slots, known = torch.cat([slots, new[0][..., enter]], dim=-1), torch.cat([known, new[1][..., enter]], dim=-1)
        gained = torch.cat([gained, nothing], dim=-1)
        whole, wide = logits[..., step, :], slots[:, :, None].expand(-1, -1, reps, -1)
        row = whole.gather(-1, wide).softmax(dim=-1)
        whole.zero_().scatter_(-1, wide, row)
        if rule.score is not None:
            gained = _own_score(rule, state, row, keys, values, slots, known, gained, now)
            unranked |= gained.isnan().any()
        elif rule.seed is not None:
            gained = draws(seeds, torch.full((batch,), now, device=row.device), known).to(scores.dtype)
        else:
            gained = rule.memory * gained + row.mean(dim=2)
        if slots.shape[-1] <= size:
            continue
        ranked = gained
        if rule.first or rule.recent:
            ranked = gained.masked_fill((known < rule.first) | (known > now - rule.recent), float("inf"))
        worst = ranked.argmin(dim=-1, keepdim=True)  # of equal scores the first, which is the oldest
        victims[..., enter] = known.gather(-1, worst)
        stay = index + (index >= worst)
        slots, known, gained = slots.gather(-1, stay), known.gather(-1, stay), gained.gather(-1, stay)
    if rule.score is not None and bool(unranked):
        raise UsageError(NAN)
    positions.fill_(-1).scatter_(-1, slots, known)
    scores.scatter_(-1, slots, gained)
    return victims


def _own_score(
    rule: Rule, state: State, row: Tensor, keys: Tensor, values: Tensor, slots: Tensor, known: Tensor, previous: Tensor, now: int
) -> Tensor:
    """A user's `score` [B, P, n], shown the live states oldest first; keys and values where it can read them."""
    assert rule.score is not None
    batch, groups = keys.shape[:2]
    idle = unread(rule.score)
    shown: dict[str, Any] = {
        "attention": row.flatten(1, 2), "positions": known.expand(-1, groups, -1), "previous": previous, "layer": state.layer,
        "query_position": torch.full((batch,), now, device=row.device),
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

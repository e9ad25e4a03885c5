"""The scan's sequential part in torch operations: any device, and policies of the user's own. Same results as kernels.py."""

from __future__ import annotations

import torch
from torch import Tensor

from msrnn_bench.multistate.draw import draws
from msrnn_bench.multistate.scores import checked_scores
from msrnn_bench.multistate.state import State
from msrnn_bench.policies import Rule


def evict(
    logits: Tensor, positions: Tensor, scores: Tensor, keys: Tensor, values: Tensor, seeds: list[int], rule: Rule,
    state: State, start: int,
) -> Tensor:  # fmt: skip
    """Walk the block's steps; in place: `logits` [B, P, R, N, S] become softmax rows over the states alive,
    `positions` and `scores` [B, P, S] what they are after the last step. Returns the victims [B, P, N].

    keys, values [B, G, S, D] are those of the candidates, for a user's own `score`.
    """
    batch, deciders, reps, steps, states = logits.shape
    old = states - steps
    victims = positions.new_full((batch, deciders, steps), -1)
    index = torch.arange(states, device=logits.device)
    infinity = float("inf")
    for step in range(steps):
        now = start + step
        alive = (positions >= 0) & (index <= old + step)
        row = logits[..., step, :].masked_fill_(~alive[:, :, None], -infinity).softmax(dim=-1)
        logits[..., step, :] = row
        if rule.score is not None:
            scored = _own_score(rule, state, row, keys, values, positions, scores, alive, now)
        elif rule.seed is not None:
            scored = draws(seeds, torch.full((batch,), now, device=row.device), positions).to(scores.dtype)
        else:
            scored = rule.memory * scores + row.mean(dim=2)
        scores.copy_(torch.where(alive, scored, scores))
        if rule.state_size is None or old + step + 1 - max(0, old + step - rule.state_size) <= rule.state_size:
            continue
        protected = ~alive | (positions < rule.first) | (positions > now - rule.recent)
        ranked = scores.masked_fill(protected, infinity)
        low = ranked.amin(dim=-1, keepdim=True)
        # of equal scores the oldest: the smallest position among them
        worst = positions.masked_fill(ranked != low, torch.iinfo(torch.int64).max).argmin(dim=-1, keepdim=True)
        victims[..., step] = positions.gather(-1, worst).squeeze(-1)
        positions.scatter_(-1, worst, -1)
    return victims


def _own_score(
    rule: Rule, state: State, row: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor, alive: Tensor,
    now: int,
) -> Tensor:  # fmt: skip
    """A user's `score`, shown the live states oldest first, spread back over the slots."""
    batch, deciders, _, states = row.shape
    groups = keys.shape[1]
    count = int(alive[0, 0].sum())
    order = positions.masked_fill(~alive, torch.iinfo(torch.int64).max).argsort(dim=-1)[..., :count]  # [B, P, S]
    wide = order.expand(batch, groups, count)

    def live(x: Tensor) -> Tensor:
        return x.gather(2, wide[..., None].expand(-1, -1, -1, x.shape[-1]))

    assert rule.score is not None
    attention = row.gather(-1, order[:, :, None].expand(-1, -1, row.shape[2], -1)).flatten(1, 2)
    previous = scores.gather(-1, order)
    answer = rule.score(
        attention=attention, keys=live(keys), values=live(values), positions=positions.expand(-1, groups, -1).gather(-1, wide),
        query_position=torch.full((batch,), now, device=row.device), previous=previous, layer=state.layer,
    )  # fmt: skip
    return scores.scatter(-1, order, checked_scores(answer, previous))


def compact(positions: Tensor, scores: Tensor, keep: int, *buffers: Tensor) -> None:
    """Move the states alive into the first `keep` slots of every tensor; positions, scores [B, P, S], buffers [B, G, S, D]."""
    order = (positions < 0).to(torch.int8).argsort(dim=-1, stable=True)[..., :keep]
    for x in (positions, scores):
        x[..., :keep] = x.gather(-1, order)
    for x in buffers:
        index = order.expand(*x.shape[:2], keep)[..., None].expand(-1, -1, -1, x.shape[-1])
        x[:, :, :keep] = x.gather(2, index)
    positions[..., keep:] = -1

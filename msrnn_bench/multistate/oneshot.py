"""The other prefill: read the prompt with full attention, then cut its states once to the best k.

This is what the TOVA authors' `generate` does with a prompt (their code; the paper does not say): the cut sees the
whole prompt, the question at its end included, so it is another experiment than `stepwise`, not another speed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from msrnn_bench.multistate.draw import draw_key, draws
from msrnn_bench.multistate.rows import Steps, each_row
from msrnn_bench.multistate.state import ALIVE, State
from msrnn_bench.policies import Policy, Rule


def oneshot(
    engine: Steps, q: Tensor, k: Tensor, v: Tensor, *, policy: Policy | Rule, state_size: int | None, state: State,
    scale: float | None = None, padding: Tensor | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Arguments and answer of `recurrence`, for a prompt on an empty state.

    Score of state j = sum over prompt steps t of memory^(p-1-t) * A_t[j] with A the full model's softmax rows (memory
    0: the last row); the `first` and `recent` are protected; the newest stays only if it scores so.
    """
    rule = policy if isinstance(policy, Rule) else policy.rule(state_size)  # type: ignore[arg-type]
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def read_then_cut(
        q: Tensor, k: Tensor, v: Tensor, *, rule: Rule, state: State, scale: float, trace: bool
    ) -> tuple[Tensor, State]:
        unbounded = replace(rule, state_size=None)
        out, state = engine(q, k, v, policy=unbounded, state_size=None, state=state, scale=scale, trace=trace)
        if rule.state_size is not None and state.alive[0] > rule.state_size:
            if not unbounded.remembers:
                state.scores = _last_row(q, rule, state, scale)
            _cut(state, rule)
        state.largest = list(state.alive)
        return out, state

    return each_row(read_then_cut, q, k, v, rule=rule, state=state, scale=scale, padding=padding, trace=False)


def _last_row(q: Tensor, rule: Rule, state: State, scale: float) -> Tensor:
    """Scores [B, P, S] of a policy without memory: the last query's attention, or the draw of the last step."""
    assert state.keys is not None
    batch, heads, _, size = q.shape
    groups, alive = state.keys.shape[1], state.alive[0]
    scores = torch.zeros_like(state.scores)
    if rule.seed is not None:
        seeds = [draw_key(rule.seed, document, state.layer) for document in state.documents or ()]
        last = torch.tensor(state.seen, device=q.device) - 1
        scores[..., :alive] = draws(seeds, last, state.positions[..., :alive])
        return scores
    query = q[:, :, -1].to(scores.dtype).view(batch, groups, heads // groups, size)
    keys = state.keys[:, :, :alive].to(scores.dtype)
    attention = (query @ keys.transpose(-1, -2) * scale).softmax(dim=-1)
    scores[..., :alive] = attention.mean(dim=2) if rule.per == "head" else attention.mean(dim=(1, 2))[:, None]
    return scores


def _cut(state: State, rule: Rule) -> None:
    """Keep the k best; of equals the younger, since ties go against the oldest."""
    assert state.keys is not None and state.values is not None and rule.state_size is not None
    alive = state.alive[0]
    positions, order = state.positions[..., :alive].sort(dim=-1, descending=True)  # the youngest first
    scores = state.scores[..., :alive].gather(-1, order)
    protected = (positions < rule.first) | (positions >= state.seen[0] - rule.recent)
    ranked = scores.masked_fill(protected, float("inf"))
    best = ranked.argsort(dim=-1, descending=True, stable=True)[..., : rule.state_size].sort(dim=-1, descending=True).values
    slots = order.gather(-1, best)
    wide = slots.expand(*state.keys.shape[:2], -1)[..., None].expand(-1, -1, -1, state.keys.shape[-1])
    state.keys, state.values = state.keys.gather(2, wide), state.values.gather(2, wide)
    state.positions, state.scores = state.positions.gather(-1, slots), state.scores.gather(-1, slots)
    state.alive = [rule.state_size] * len(state.alive)
    state.evictions += alive - rule.state_size
    state.first_eviction.fill_(state.seen[0] - 1)
    if state.deaths is not None:
        read = state.seen[0]
        state.deaths[..., :read] = read - 1  # all at once, at the prompt's last step
        state.deaths.scatter_(-1, state.positions, ALIVE)

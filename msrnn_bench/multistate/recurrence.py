"""The definition: a bounded multi-state RNN, one token after the other. torch only; to be held against the paper.

Everything fast in this package is tested against this file. Shapes: B batch, H query heads, G KV heads, T tokens,
S states, D head size; P is 1 (decided per layer) or G (per KV head).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from msrnn_bench.multistate.draw import draw_key, draws
from msrnn_bench.multistate.positions import Rotation, places
from msrnn_bench.multistate.rows import each_row
from msrnn_bench.multistate.scores import checked_scores
from msrnn_bench.multistate.state import State, oldest_first, score_dtype
from msrnn_bench.policies import Policy, Rule


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    policy: Policy | Rule,
    state_size: int | None,
    state: State | None = None,
    scale: float | None = None,
    padding: Tensor | None = None,
    trace: bool = False,
    rotation: Rotation | None = None,
) -> tuple[Tensor, State]:
    """Attention of one layer with at most `state_size` states, token by token.

    q [B, H, T, D]; k, v [B, G, T, D], already rotated where the model rotates. `state` carries on an earlier call.
    `padding` [B, T] is True at real tokens; the others neither enter the state nor attend (their output is 0).
    With `rotation` positions are compressed: q and k come, and are kept, unrotated, in the rotation's order of dimensions.
    Returns out [B, H, T, D] and the state (the one given is used up). At each step (paper, Algorithm 1 and section
    3.1): the new state enters, the query attends to all k+1, the output is theirs, and only then one leaves.
    """
    rule = policy if isinstance(policy, Rule) else policy.rule(state_size)  # type: ignore[arg-type]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    walk = partial(steps, rotation=rotation)
    return each_row(walk, q, k, v, rule=rule, state=state or State(), scale=scale, padding=padding, trace=trace)


def steps(
    q: Tensor, k: Tensor, v: Tensor, *, rule: Rule, state: State, scale: float, trace: bool, rotation: Rotation | None = None
) -> tuple[Tensor, State]:  # fmt: skip
    """`recurrence` where all rows add the same tokens to as many states."""
    batch, heads, count, size = q.shape
    groups = k.shape[1]
    deciders = groups if rule.per == "head" else 1
    if state.empty:
        state.start(k, deciders, 0)
    assert state.keys is not None and state.values is not None
    exact = score_dtype(q.dtype)
    keys, values, positions, scores = oldest_first(state)
    out, victims, kept = torch.empty_like(q), [], []
    for t in range(count):
        position = state.seen[0] + t
        # the new state enters: S_{t-1} + {t}
        keys = torch.cat([keys, k[:, :, t : t + 1]], dim=2)
        values = torch.cat([values, v[:, :, t : t + 1]], dim=2)
        positions = torch.cat([positions, positions.new_full((batch, deciders, 1), position)], dim=2)
        scores = torch.cat([scores, scores.new_zeros(batch, deciders, 1)], dim=2)
        # the query attends to all of them, each where it stands
        query, turned = q[:, :, t].to(exact), keys.to(exact)
        if rotation is not None:
            at = places(positions)
            state.farthest = [max(n, int(row.max())) for n, row in zip(state.farthest, at, strict=True)]
            query, turned = rotation.turn(query[:, :, None], at[..., -1:])[:, :, 0], rotation.turn(turned, at)
        query = query.view(batch, groups, heads // groups, size)
        attention = (query @ turned.transpose(-1, -2) * scale).softmax(dim=-1)  # [B, G, H/G, S]
        out[:, :, t] = (attention @ values.to(exact)).reshape(batch, heads, size).to(q.dtype)
        # the policy scores them, and the lowest of more than k leaves
        known = keys if rotation is None else rotation.models(keys)
        scores = _score(rule, state, attention, known, values, positions, scores, position)
        victim = positions.new_full((batch, deciders), -1)
        if rule.state_size is not None and positions.shape[-1] > rule.state_size:
            protected = (positions < rule.first) | (positions > position - rule.recent)
            # Oldest first and argmin's first minimum: ties go to the oldest.
            index = scores.masked_fill(protected, float("inf")).argmin(dim=-1, keepdim=True)
            victim = positions.gather(-1, index).squeeze(-1)
            stay = torch.ones_like(positions, dtype=torch.bool).scatter_(-1, index, False)
            keys, values = _keep(keys, stay), _keep(values, stay)
            positions, scores = _keep(positions, stay), _keep(scores, stay)
        victims.append(victim)
        kept.append(positions)
    state.keys, state.values, state.positions, state.scores = keys, values, positions, scores
    state.seen = [n + count for n in state.seen]
    state.alive = [positions.shape[-1]] * batch
    state.largest = [max(n, *(p.shape[-1] for p in kept)) for n in state.largest]
    state.count_evictions(torch.stack(victims, dim=-1))
    state.trace = _padded(kept) if trace else None
    return out, state


def _score(
    rule: Rule, state: State, attention: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor, at: int
) -> Tensor:
    """The scores [B, P, S] after a step whose softmax rows are `attention` [B, G, H/G, S]."""
    batch, groups, _, states = attention.shape
    step = torch.full((batch,), at, device=positions.device)
    if rule.score is not None:
        every = positions.expand(batch, groups, states)
        answer = rule.score(
            attention=attention.flatten(1, 2), keys=keys, values=values, positions=every, query_position=step,
            previous=scores, layer=state.layer,
        )  # fmt: skip
        return checked_scores(answer, scores)
    if rule.seed is not None:
        seeds = [draw_key(rule.seed, document, state.layer) for document in state.documents or ()]
        return draws(seeds, step, positions).to(scores.dtype)
    mean = attention.mean(dim=2) if rule.per == "head" else attention.mean(dim=(1, 2), keepdim=False)[:, None]
    return rule.memory * scores + mean


def _keep(x: Tensor, stay: Tensor) -> Tensor:
    """The entries of x [B, P or G, S(, D)] where `stay` [B, P, S], one fewer per row."""
    stay = stay.expand(x.shape[:3])
    return x[stay].view(x.shape[0], x.shape[1], -1, *x.shape[3:])


def _padded(kept: list[Tensor]) -> Tensor:
    """[B, P, T, k] of the positions kept after each step, -1 where the state was not full yet."""
    width = max(p.shape[-1] for p in kept)
    return torch.stack([torch.nn.functional.pad(p, (0, width - p.shape[-1]), value=-1) for p in kept], dim=2)

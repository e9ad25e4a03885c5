"""What an attention layer carries from token to token: the multi-state H_t of the paper (its equation 5).

Letters: B batch, H query heads, G KV heads, S slots, D head size; P is 1 (decided per layer) or G (per KV head).
Slots are in no particular order: a new state is written where an evicted one stood. Knows nothing of policies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

ALIVE, UNREAD = -1, -2  # in the place of a step of death


@dataclass
class State:
    """The states of one layer.

    keys, values  [B, G, S, D] in the model's dtype; only the first `alive` slots hold states.
    positions     [B, P, S] int64, the token position of each slot's state, -1 where there is none.
    scores        [B, P, S] float32 (float64 for float64 models), whatever the model's dtype.
    seen          tokens read so far, one number per row; the next token has this position.
    evictions     [B, P] int64, states that left; first_eviction [B, P], the step of the first one, -1 for none.
    largest       [B] the largest occupancy after eviction.
    farthest      [B] the largest distance of a state from the query under compressed positions; elsewhere not told.
    documents     one number per row, what `Random` draws from beside its seed.
    trace         [B, P, T, k] int64: positions kept after each step of the last call, sorted, -1 padded; None unless
                  asked for.
    deaths        [B, P, >= seen] int64: the step at which each token's state left, ALIVE while it is held, UNREAD beyond
                  what the row has seen; None unless asked for (an empty tensor before the first call asks).
    """

    layer: int = 0
    documents: tuple[int, ...] | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    positions: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    seen: list[int] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)
    evictions: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    first_eviction: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    largest: list[int] = field(default_factory=list)
    farthest: list[int] = field(default_factory=list)
    trace: Tensor | None = None
    deaths: Tensor | None = None

    @property
    def empty(self) -> bool:
        return self.keys is None

    def start(self, key: Tensor, deciders: int, slots: int) -> None:
        """Allocate room for `slots` states of the shape of `key` [B, G, T, D], decided by `deciders` (P) at a time."""
        batch, heads, _, size = key.shape
        self.keys = key.new_empty(batch, heads, slots, size)
        self.values = key.new_empty(batch, heads, slots, size)
        self.positions = key.new_full((batch, deciders, slots), -1, dtype=torch.int64)
        self.scores = key.new_zeros((batch, deciders, slots), dtype=score_dtype(key.dtype))
        self.evictions = key.new_zeros((batch, deciders), dtype=torch.int64)
        self.first_eviction = key.new_full((batch, deciders), -1, dtype=torch.int64)
        self.seen, self.alive, self.largest, self.farthest = ([0] * batch for _ in range(4))
        self.documents = self.documents or (0,) * batch
        if self.deaths is not None:
            self.deaths = key.new_empty((batch, deciders, 0), dtype=torch.int64)

    def reserve(self, slots: int, most: int | None = None) -> None:
        """Make room for `slots` states; grows by doubling, so that an unbounded state costs O(1) a token, but not
        beyond `most`."""
        assert self.keys is not None
        have = self.keys.shape[2]
        if slots > have:
            self.reserve_exactly(max(slots, 2 * have) if most is None else max(slots, min(2 * have, most)))

    def reserve_exactly(self, slots: int) -> None:
        """Make room for `slots` states and no more."""
        assert self.keys is not None and self.values is not None
        more = slots - self.keys.shape[2]
        if more > 0:
            pad = torch.nn.functional.pad
            self.keys, self.values = pad(self.keys, (0, 0, 0, more)), pad(self.values, (0, 0, 0, more))
            self.positions = pad(self.positions, (0, more), value=-1)
            self.scores = pad(self.scores, (0, more))

    def kept(self) -> list[Tensor]:
        """Per row, the positions [P, alive] alive now, sorted."""
        return [self.positions[b, :, :n].sort(dim=-1).values for b, n in enumerate(self.alive)]

    def step(self, size: int | None) -> None:
        """One token more was read in every row, and of more than `size` states one left."""
        self.seen = [n + 1 for n in self.seen]
        self.alive = [n + 1 if size is None else min(n + 1, size) for n in self.alive]
        self.largest = [max(a, b) for a, b in zip(self.largest, self.alive, strict=True)]
        self.trace = None

    def count_evictions(self, victims: Tensor) -> None:
        """Take note of who left: `victims` [B, P, T] are positions, -1 where nobody did; T the newest steps."""
        left = victims >= 0
        self.evictions += left.sum(-1)
        steps = victims.shape[-1]
        alike = len(set(self.seen)) == 1  # then no list has to be sent to the device
        begin = self.seen[0] - steps if alike else torch.tensor(self.seen, device=left.device)[:, None] - steps
        first = torch.where(left.any(-1), begin + left.int().argmax(-1), -1)
        self.first_eviction = torch.where(self.first_eviction < 0, first, self.first_eviction)
        self.note_deaths(victims)

    def note_deaths(self, victims: Tensor) -> None:
        """Write the step beside each of `victims` [B, P, T], positions as in `count_evictions`, where deaths are asked for."""
        if self.deaths is None:
            return
        steps, width, most = victims.shape[-1], self.deaths.shape[-1], max(self.seen)
        if most > width:  # by doubling, so that a token costs O(1) of it
            room = max(most, 2 * width) if width else most
            self.deaths = torch.nn.functional.pad(self.deaths, (0, room - width), value=UNREAD)
        now = torch.arange(steps, device=victims.device) + torch.tensor(self.seen, device=victims.device)[:, None, None] - steps
        now = now.expand(victims.shape)
        self.deaths.scatter_(-1, now, ALIVE)
        row, decider, step = (victims >= 0).nonzero(as_tuple=True)
        self.deaths[row, decider, victims[row, decider, step]] = now[row, decider, step]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of the states alive."""
        if self.keys is None:
            return 0
        _, heads, _, size = self.keys.shape
        return 2 * heads * size * self.keys.element_size() * sum(self.alive)

    def fork(self) -> State:
        """A copy that goes its own way."""
        copied: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            copied[item.name] = value.clone() if isinstance(value, Tensor) else list(value) if isinstance(value, list) else value
        return replace(self, **copied)

    def select(self, rows: list[int]) -> State:
        """The state of these rows, in this order, repeats allowed; a copy."""
        copied: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor) and value.shape[0]:
                value = value[rows]
            elif isinstance(value, (list, tuple)):
                value = type(value)(value[r] for r in rows)
            copied[item.name] = value
        return replace(self, **copied)

    def widen_deaths(self, width: int) -> None:
        """Room for the deaths of `width` tokens, to stand in one batch with a row that has read more."""
        if self.deaths is not None:
            self.deaths = torch.nn.functional.pad(self.deaths, (0, width - self.deaths.shape[-1]), value=UNREAD)


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores, logits and probabilities: rounded to bfloat16 they would tie."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def oldest_first(state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The live slots in the order of their positions; the scan leaves them in any order."""
    assert state.keys is not None and state.values is not None
    alive = state.alive[0]
    positions, order = state.positions[..., :alive].sort(dim=-1)
    scores = state.scores[..., :alive].gather(-1, order)
    index = order.expand(*state.keys.shape[:2], alive)[..., None].expand(-1, -1, -1, state.keys.shape[-1])
    return state.keys.gather(2, index), state.values.gather(2, index), positions, scores


def kept_each_step(before: Tensor, victims: Tensor, start: int) -> Tensor:
    """Positions kept after each step [B, P, T, k] from who was there [B, P, S] and who left [B, P, T]."""
    steps = victims.shape[-1]
    now = torch.arange(start, start + steps, device=victims.device)
    known = torch.cat([before, now.expand(*before.shape[:2], steps)], dim=-1)
    left = known[..., None] == victims[..., None, :]  # [B, P, U, T]
    gone = left.cumsum(-1) > 0
    alive = (known[..., None] >= 0) & (known[..., None] <= now) & ~gone
    width = int(alive.sum(2).max())
    last = torch.iinfo(torch.int64).max
    kept = torch.where(alive, known[..., None], last).transpose(-1, -2).sort(dim=-1).values[..., :width]
    return kept.masked_fill(kept == last, -1)

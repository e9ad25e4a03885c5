"""`MultiState`: the states of all layers in the place of the library's key-value cache. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.rows import stack
from msrnn_bench.multistate.state import State
from msrnn_bench.policies import Rule


@dataclass(frozen=True)
class LayerReport:
    """What happened in one layer: `evictions` and `first_eviction` [B, P] (-1: none), `largest` occupancy after
    eviction per row, `kept` positions per row [P, alive], `nbytes` of the states alive, all rows; under
    compressed positions `farthest` per row, the largest distance from the query that a state had."""

    evictions: Tensor
    first_eviction: Tensor
    largest: list[int]
    kept: list[Tensor]
    nbytes: int
    farthest: list[int]


class MultiState(Cache):
    """One `State` per layer. To the model it looks like a cache that has seen all tokens: positions stay true."""

    _is_user_defined = True  # to `generate`: it may not read a token beyond the end and take it back (it would, on mps)

    def __init__(self, rules: list[Rule], documents: tuple[int, ...] | None, deaths: bool = False) -> None:
        super().__init__(layers=[])
        self.rules = rules
        unread = torch.empty(0, dtype=torch.int64) if deaths else None
        self.layers_ = [State(layer=i, documents=documents, deaths=unread) for i in range(len(rules))]
        self.columns = [0] * len(rules)
        self.padding: Tensor | None = None
        self._new = 0
        self.single = False  # a fork: for one continuation
        self._ended: list[bool] = []  # rows whose last token was an end mark
        self._spoilt: list[int] = []  # rows that were fed padding behind it

    def begin(self, batch: int, new: int, padding: Tensor | None) -> None:
        """A call of `new` tokens is about to run; `padding` [B, T] as in `recurrence`."""
        first = self.layers_[0]
        if not first.empty and len(first.seen) != batch:
            raise UsageError(
                f"the states hold {len(first.seen)} rows, the call has {batch}; states.fork(rows=n) repeats each row n times"
            )
        if first.documents is not None and len(first.documents) != batch:
            raise UsageError(f"documents has {len(first.documents)} numbers for a batch of {batch}")
        self.padding, self._new = padding, new
        self._expected = self.columns[0] + new

    def watch(self, tokens: Tensor, ends: set[int], padding: int | None) -> None:
        """See who ends: `generate` feeds rows that are finished padding, as real tokens, until the last row is, and
        that padding evicts. Such states are refused as the beginning of a next prompt; nothing would show the loss.

        `tokens` [B, T] are about to be read; several at once are a prompt.
        """
        batch, new = tokens.shape
        if new > 1 and self._spoilt:
            raise UsageError(
                f"row {self._spoilt[0]} ended before other rows of the batch, and the padding that generate fed it since has "
                "evicted real states: start the next turn without these states, or hold one conversation a batch"
            )
        if new > 1 or len(self._ended) != batch:
            self._ended, self._spoilt = [False] * batch, []
        if new == 1 and batch > 1:
            for row, token in enumerate(tokens[:, 0].tolist()):
                if self._ended[row] and token == padding and row not in self._spoilt:
                    self._spoilt.append(row)
                self._ended[row] = self._ended[row] or token in ends

    def check_history(self, mask: Tensor) -> None:
        """A next prompt's mask [B, columns seen + T] must hide what was hidden: what was read cannot be unread."""
        seen = mask[:, : self.columns[0]].sum(-1).tolist()
        for row, (told, read) in enumerate(zip(seen, self.layers_[0].seen, strict=False)):
            if int(told) != read:
                raise UsageError(
                    f"attention_mask says that row {row} has {int(told)} tokens so far, but its states have read {read}; padding "
                    "in the middle cannot be taken back: start without these states, or hold one conversation a batch"
                )

    def true_positions(self, device: torch.device) -> Tensor | None:
        """[B, T] positions of the call's tokens among each row's real ones; None where all rows count columns."""
        seen = self.layers_[0].seen
        if self.padding is None and all(n == self.columns[0] for n in seen):
            return None
        before = torch.tensor(seen or [0], device=device)[:, None]
        new = torch.arange(self._new, device=device)[None] if self.padding is None else self.padding.long().cumsum(-1) - 1
        return (before + new).clamp(min=0)

    def passed(self, layer: int) -> None:
        """The call has read and written this layer's states; who waits for them may go on (overlap.py)."""

    def check_all_layers_ran(self, model: str) -> None:
        if any(n != self._expected for n in self.columns):
            ran = sum(n == self._expected for n in self.columns)
            raise UsageError(
                f"only {ran} of {len(self.columns)} layers of {model} use the attention interface; it cannot be bounded"
            )

    def reports(self) -> list[LayerReport]:
        return [LayerReport(s.evictions, s.first_eviction, s.largest, s.kept(), s.nbytes, s.farthest) for s in self.layers_]

    def deaths(self) -> list[Tensor] | None:
        """Per layer [B, P, tokens seen]: the step at which each token's state left, counted from 0; ALIVE (-1) while it is
        held, UNREAD (-2) where a row has read less than another. None where they were not asked for."""
        known = [s.deaths[..., : max(s.seen, default=0)] for s in self.layers_ if s.deaths is not None]
        return known if len(known) == len(self.layers_) else None

    def fork(self, rows: int = 1) -> MultiState:
        """A copy that goes its own way: a document read once, many questions asked. `rows` repeats each row of the
        batch that often: many answers to one prompt."""
        if not self.layers_:
            raise UsageError(
                "this fork was gone on from already and holds nothing: fork states.current, or fork before you go on"
            )
        other = MultiState(self.rules, self.layers_[0].documents)
        other.layers_, other.columns = [state.fork() for state in self.layers_], list(self.columns)
        other._ended, other._spoilt = list(self._ended), list(self._spoilt)
        if rows > 1:
            other.batch_repeat_interleave(rows)
        other.single = True
        return other

    def taken(self) -> MultiState:
        """These states in a new place: a call that goes on from a fork has them, and the fork is empty-handed. Without this a
        second continuation of one fork would go on from the end of the first, and nothing would show."""
        if not self.layers_:
            raise UsageError(
                "this fork was gone on from already: take states.fork() again for another continuation, states.current to go on"
            )
        other = MultiState(self.rules, None)
        other.layers_, self.layers_ = self.layers_, []
        other.columns, other._ended, other._spoilt = self.columns, self._ended, self._spoilt
        return other

    @classmethod
    def join(cls, parts: Sequence[MultiState]) -> MultiState:
        """One batch of prompts that were read apart, row behind row. To `generate` their texts are padded on the left to
        the longest; each row has what it has read, and its true positions."""
        if any(part.rules is not parts[0].rules for part in parts):
            raise UsageError("these states belong to different bounded() blocks and cannot be one batch")
        other = cls(parts[0].rules, None)
        other.layers_ = [stack(list(layer)) for layer in zip(*(part.layers_ for part in parts), strict=True)]
        other.columns = [max(columns) for columns in zip(*(part.columns for part in parts), strict=True)]
        return other

    def row(self, number: int) -> MultiState:
        """A copy of one row of the batch, that goes its own way."""
        other = MultiState(self.rules, None)
        other.layers_, other.columns = [state.select([number]) for state in self.layers_], list(self.columns)
        return other

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch, in this order, repeats allowed, while prompts are read: an end mark in one ends
        nothing. Layer by layer: there is never room for two of all."""
        for layer, state in enumerate(self.layers_):
            self.layers_[layer] = state.select(rows)
        self._ended, self._spoilt = [], []

    # -- the library's side --

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The attention function gets the new keys and values alone; it owns the old ones."""
        self.columns[layer_idx] += key_states.shape[2]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, padding included; never the number kept: positions would freeze silently."""
        return self.columns[layer_idx]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.columns[layer_idx] + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        rows = (indices.nonzero().squeeze(-1) if indices.dtype == torch.bool else indices).tolist()
        if rows == list(range(self.batch_size)):
            return  # every beam goes on as it is
        self.layers_ = [state if state.empty else state.select(rows) for state in self.layers_]
        self._spoilt = [new for new, old in enumerate(rows) if old in self._spoilt]
        self._ended = [self._ended[row] for row in rows] if self._ended else []

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self.batch_size).repeat_interleave(repeats)
        self.batch_select_indices(rows)

    def crop(self, tokens_to_remove: int) -> None:
        raise UsageError("evicted states cannot come back: crop and assisted decoding do not work inside bounded()")

    def reset(self) -> None:
        raise UsageError("start a new call without these states instead of resetting the states")

    @property
    def batch_size(self) -> int:
        return len(self.layers_[0].seen) or -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return not self.layers_[0].empty

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self.layers_)

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.layers_)

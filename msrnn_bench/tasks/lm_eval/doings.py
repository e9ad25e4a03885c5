"""What a request of lm-eval's cost, as far as rows tell it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Doings:
    """What a request cost: its targets' positions [start, end), `tokens` scored or written, `cut` tokens left out of its
    beginning, `length` tokens of text in all, and the row columns of these names."""

    start: int
    end: int
    tokens: int
    cut: int
    length: int
    evictions: int
    first_eviction: int | None
    max_states: int
    state_bytes: int
    seconds: float = 0.0

    @classmethod
    def together(cls, parts: Sequence[Doings]) -> Doings:
        """Of several as one: the extremes of where and how full, the sums of the rest."""
        first = [p.first_eviction for p in parts if p.first_eviction is not None]
        return cls(
            start=min(p.start for p in parts), end=max(p.end for p in parts), tokens=sum(p.tokens for p in parts),
            cut=sum(p.cut for p in parts), length=sum(p.length for p in parts), evictions=max(p.evictions for p in parts),
            first_eviction=min(first, default=None), max_states=max(p.max_states for p in parts),
            state_bytes=max(p.state_bytes for p in parts), seconds=sum(p.seconds for p in parts),
        )  # fmt: skip

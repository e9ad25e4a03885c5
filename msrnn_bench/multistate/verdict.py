"""What the guard has found of a model, and what a session makes of it. Finds nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from msrnn_bench.errors import UsageError


@dataclass
class Verdict:
    """`limits`: a way of reading (whole, pieces, padding, positions given) and the tokens up to which it is exact, 0 for
    never; a way that is not in it is exact. `reasons`: why, a sentence each. `record`: what was checked
    and how, for the manifest."""

    limits: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def refuse(self, way: str, reason: str, limit: int = 0) -> None:
        if way not in self.limits or self.limits[way] > limit:
            self.limits[way], self.reasons[way] = limit, reason

    def check(self, name: str, tokens: int, *, goes_on: bool = False, padded: bool = False, placed: bool = False) -> None:
        """Raise UsageError where a call that ends at `tokens` tokens would not be exact."""
        ways = {"whole": True, "pieces": goes_on, "padding": padded, "positions": placed}
        for way in [way for way, wanted in ways.items() if wanted]:
            if way in self.limits and tokens > self.limits[way]:
                raise UsageError(f"{name} cannot be bounded{_ways(way, self.limits[way])}: {self.reasons[way]}")


def _ways(way: str, limit: int) -> str:
    what = {
        "whole": "",
        "positions": " with position_ids given, as generate does",
        "pieces": " in pieces or while it writes",
        "padding": " in a batch with padding",
    }[way]
    return what + (f" beyond {limit} tokens" if limit else "")

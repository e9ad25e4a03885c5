"""From estimates to a verdict: a claim's comparisons held against its bound. Knows no claim and no table.

A claim of several comparisons ("at every k < T") holds where each does. Each interval inside the bound needs no
correction for their number (an intersection-union test); that *some* interval lies outside does, so a claim is
rejected only by an interval widened for the number of comparisons (Bonferroni). An equality is judged by two one-sided
tests at 95% each: the whole 90% interval inside both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msrnn_bench.report.verdict import NOT_MEASURED, NOT_REPRODUCED, REPRODUCED, UNDECIDED
from msrnn_bench.results.intervals import CONFIDENCE, EQUIVALENCE, Interval

COUNTED = "counted"  # the method of what is no sample: its interval is itself
_ROUNDING = 1e-9  # 10.22 - 10.20 is 0.02


@dataclass(frozen=True)
class Bound:
    """What a statistic must lie in: [low, high], or what is above or below one end; `strict`: the end itself is outside."""

    low: float = -math.inf
    high: float = math.inf
    strict: bool = False

    @property
    def equality(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def confidence(self) -> float:
        """Of the interval that is held against it."""
        return EQUIVALENCE if self.equality else CONFIDENCE

    def margin(self, low: float, high: float) -> float:
        """How far inside the nearer end lies what reaches from low to high; negative where it reaches outside."""
        return min(low - self.low, self.high - high)

    def holds(self, low: float, high: float) -> bool:
        margin = self.margin(low, high)
        return margin > _ROUNDING if self.strict else margin >= -_ROUNDING

    def fails(self, low: float, high: float) -> bool:
        """Wholly outside."""
        return not self.holds(low, low) and not self.holds(high, high) and not (low < self.low and high > self.high)


@dataclass(frozen=True)
class Estimate:
    """One comparison of a claim. `interval` gives one of any confidence, None where there is none; `bound` is its own
    where the comparisons of a claim have different ones."""

    what: str
    value: float
    n: int
    interval: Callable[[float], Interval | None]
    bound: Bound | None = None


@dataclass(frozen=True)
class Lack:
    """A comparison that cannot be made, and what it lacks."""

    what: str


Part = Estimate | Lack


@dataclass(frozen=True)
class Finding:
    """What the comparisons of a claim say together; the numbers are those of the one that decides."""

    verdict: str
    reason: str
    statistic: float | None = None
    low: float | None = None
    high: float | None = None
    smallest: float | None = None
    n: int = 0
    inside: bool | None = None  # by point


def decide(parts: Sequence[Part], bound: Bound) -> Finding:
    """A counterexample rejects whatever else lacks; without one, a claim of which something lacks is not measured."""
    made = [part for part in parts if isinstance(part, Estimate)]
    lacks = [part.what for part in parts if isinstance(part, Lack)]
    if not made:
        return Finding(NOT_MEASURED, _lacking(lacks or ["what it needs"]))
    worst = min(made, key=lambda part: _of(part, bound).margin(part.value, part.value))
    inside = all(_of(part, bound).holds(part.value, part.value) for part in made)
    for part in sorted(made, key=lambda part: _of(part, bound).margin(part.value, part.value)):
        own = _of(part, bound)
        wide = part.interval(1 - (1 - own.confidence) / len(made))
        if wide is not None and own.fails(wide.low, wide.high):
            return _found(NOT_REPRODUCED, part, wide, inside, _reason(part, wide, own, "outside", len(made), lacks))
    if any(part.interval(CONFIDENCE) is None for part in made):
        return _by_point(worst, _of(worst, bound), inside, lacks)
    if lacks:
        return Finding(NOT_MEASURED, _lacking(lacks), inside=inside)
    judged = [(part, _interval(part, _of(part, bound).confidence)) for part in made]
    part, interval = min(judged, key=lambda one: _of(one[0], bound).margin(one[1].low, one[1].high))
    holds = all(_of(one, bound).holds(found.low, found.high) for one, found in judged)
    where = "inside" if holds else "across an end of"
    reason = _reason(part, interval, _of(part, bound), where, len(made) if holds else 1, [])
    return _found(REPRODUCED if holds else UNDECIDED, part, interval, inside, reason)


def _of(part: Estimate, bound: Bound) -> Bound:
    return part.bound or bound


def _interval(part: Estimate, confidence: float) -> Interval:
    found = part.interval(confidence)
    assert found is not None
    return found


def _by_point(worst: Estimate, bound: Bound, inside: bool, lacks: list[str]) -> Finding:
    if lacks and inside:
        return Finding(NOT_MEASURED, _lacking(lacks), inside=inside)
    side = "inside" if inside else "outside"
    why = "one document has no interval" if worst.n < 2 else "its documents are too few or too unequal for an interval"
    reason = f"{worst.what}: {number(worst.value)}, by point {side} the bound; {why}"
    return Finding(UNDECIDED, reason, statistic=worst.value, n=worst.n, inside=inside)


def _found(verdict: str, part: Estimate, interval: Interval, inside: bool, reason: str) -> Finding:
    return Finding(
        verdict, reason, part.value, interval.low, interval.high, (interval.high - interval.low) / 2, part.n, inside
    )  # fmt: skip


def _reason(part: Estimate, interval: Interval, bound: Bound, where: str, number_of: int, lacks: list[str]) -> str:
    level = bound.confidence if where != "outside" else 1 - (1 - bound.confidence) / number_of
    several = f", the nearest of {number_of} to it" if where == "inside" and number_of > 1 else ""
    widened = f", widened for {number_of} comparisons" if where == "outside" and number_of > 1 else ""
    also = f"; {_lacking(lacks)}" if lacks else ""
    ends = f"[{number(interval.low)}, {number(interval.high)}] ({100 * level:.4g}% {interval.method}{widened})"
    ends = f"({COUNTED})" if interval.method == COUNTED else ends
    return f"{part.what}: {number(part.value)} {ends} lies {where} the bound{several}{also}"


def _lacking(lacks: list[str]) -> str:
    shown = list(dict.fromkeys(lacks))
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return f"lacks {', '.join(shown[:4])}{more}"


def number(value: float) -> str:
    """Three digits, thousands whole: 0.251, 26.5, 4,805."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

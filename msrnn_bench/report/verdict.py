"""What is said of one claim of the paper, for one model and text: a line of `claims.csv`."""

from __future__ import annotations

from dataclasses import dataclass

REPRODUCED = "reproduced"  # the whole interval lies inside the bound
NOT_REPRODUCED = "not reproduced"  # wholly outside
UNDECIDED = "undecided"  # neither, or there is no interval
NOT_MEASURED = "not measured"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_MEASURED)
BY_POINT = "(by point, no interval)"  # of the paper's own numbers, which come without intervals
STATED = "stated, not printed"  # the paper says so and prints no number


@dataclass(frozen=True)
class Verdict:
    """One claim and what the rows say of it. A claim of several comparisons is told by the one that decides it."""

    claim: str  # short id: tova-gap-eighth
    sentence: str  # the claim in our words
    place: str  # where in the paper
    needs: str  # what it needs, in words
    verdict: str  # one of VERDICTS
    statistic: float | None
    low: float | None  # 95% interval; of an equality 90%, which is two one-sided tests at 95% each
    high: float | None
    bound: str  # in words, the published value in brackets
    reason: str  # one sentence
    scope: str  # model, text, how many documents; "" if not measured
    smallest: float | None  # the smallest effect that so many documents could have shown: half the interval's width
    command: str  # what would measure it
    published: str  # what the paper's own numbers give: "reproduced (by point, no interval)" | STATED | ...

"""Values of a metric from sums over documents, and how far they would move with other documents: 95% intervals.

A document is the unit: its tokens, or the questions asked of it, vary together. Each function takes `sums` [..., n, 2 m]: of
n documents the (total, count) of each of the m quantities that make the metric (one, or ROUGE's three).

* A mean, a perplexity (both ratios of sums) or a difference of either: the jackknife over documents with Student's t. A
  perplexity's interval is made on the log scale, where losses add up; a difference's on its own. Where documents weigh
  unequally by their counts the degrees of freedom are Kish's effective number of documents less one, which is n - 1 where
  they weigh alike. Percentile bootstrap covers 79% at four documents where it says 95 (tests/test_intervals.py).
* A share of right answers: Jeffreys' interval with n the number of documents, not of answers, so that it is never of no width
  where all agree; of two shares' difference Newcombe's from the two of them.

One document has no interval.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

CONFIDENCE = 0.95
# Two one-sided tests at 95% each reject together where the whole 90% interval lies inside the bounds (Schuirmann 1987).
EQUIVALENCE = 0.90
Array = NDArray[np.float64]

# Metrics that are made of others': the geometric mean of the means, as SCROLLS and ZeroSCROLLS define ROUGE's.
DERIVED = {"rouge": ("rouge1", "rouge2", "rougeL")}
# Metrics each of whose values is 0 or 1: right or wrong, so or not. lm-eval's come with a filter behind a comma.
SHARES = {"accuracy", "acc", "acc_norm", "em", "ended", "exact_match", "win", "tie", "loss"}


class Interval(NamedTuple):
    """Ends, and the method's name as tables and figures give it."""

    low: float
    high: float
    method: str


def is_loss(metric: str) -> bool:
    """Whether the metric is told as the perplexity that it is the logarithm of."""
    return metric.startswith("nll")


def is_share(metric: str) -> bool:
    return metric.partition(",")[0] in SHARES


def value(metric: str, sums: Array) -> Array:
    """The metric [...] from sums [..., 2 m] over any set of documents; never a mean of means."""
    ratios = sums[..., 0::2] / sums[..., 1::2]
    if is_loss(metric):
        return np.exp(ratios[..., 0])
    return ratios.prod(-1) ** (1 / ratios.shape[-1])


def interval(metric: str, sums: Array) -> Interval | None:
    """Of the metric's value over the documents of `sums` [n, 2 m]."""
    if len(sums) < 2:
        return None
    if is_share(metric):
        low, high = _jeffreys(float(value(metric, sums.sum(0))), len(sums))
        return Interval(low, high, "Jeffreys")
    if is_loss(metric):
        low, high = _jackknife(sums, lambda s: s[..., 0] / s[..., 1])
        return Interval(float(np.exp(low)), float(np.exp(high)), "jackknife-t")
    return Interval(*_jackknife(sums, lambda s: value(metric, s)), "jackknife-t")


def difference(metric: str, ours: Array, theirs: Array) -> Interval | None:
    """Of the value over `ours` less that over `theirs`, [n, 2 m] each: the same documents in the same order."""
    if len(ours) < 2:
        return None
    if is_share(metric):
        return Interval(*_newcombe(metric, ours, theirs), "Newcombe")
    half = ours.shape[-1]
    both = np.concatenate([ours, theirs], axis=-1)
    return Interval(*_jackknife(both, lambda s: value(metric, s[..., :half]) - value(metric, s[..., half:])), "jackknife-t")


def excess(ours: Array, theirs: Array, confidence: float = CONFIDENCE) -> Interval | None:
    """Of the perplexity over `ours` as a multiple of that over `theirs`, less one: exp(difference of the mean losses) - 1.
    [n, 2] each, the same documents in the same order. Made on the log scale, where losses add up."""
    both = np.concatenate([ours, theirs], axis=-1)
    made = of(lambda s: s[..., 0] / s[..., 1] - s[..., 2] / s[..., 3], both, confidence)
    return made and Interval(float(np.expm1(made.low)), float(np.expm1(made.high)), made.method)


def of(estimate: Callable[[Array], Array], sums: Array, confidence: float = CONFIDENCE) -> Interval | None:
    """Of any smooth function of the sums over all documents, [..., 2 m] -> [...]. None where it cannot be told: of one
    document, or where one document alone holds what the function needs."""
    if len(sums) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        if not np.isfinite(estimate(sums.sum(0) - sums)).all():
            return None
        low, high = _jackknife(sums, estimate, confidence)
    return Interval(low, high, "jackknife-t") if np.isfinite([low, high]).all() else None


def share(hits: Array, confidence: float = CONFIDENCE) -> Interval | None:
    """Jeffreys' interval of a share from its (total, count) by document [n, 2]; n documents count as n trials."""
    if len(hits) < 2:
        return None
    total, count = hits.sum(0)
    return Interval(*_jeffreys(float(total / count), len(hits), confidence), "Jeffreys")


def _jackknife(sums: Array, estimate: Callable[[Array], Array], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Estimate -+ t * standard error, the error from leaving out one document at a time (Efron and Tibshirani 1993, 11.2)."""
    n, total = len(sums), sums.sum(0)
    left = estimate(total - sums)
    error = np.sqrt((n - 1) / n * np.square(left - left.mean()).sum())
    weights = sums[:, 1::2] / total[1::2]
    effective = 1 / np.square(weights).sum(0).max()
    half = float(special.stdtrit(max(effective - 1, 1e-3), (1 + confidence) / 2) * error) if error > 0 else 0.0
    centre = float(estimate(total))
    return centre - half, centre + half


@lru_cache(4096)  # shares of the same documents are few
def _jeffreys(share: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Equal-tailed, from the posterior under Jeffreys' prior (Brown, Cai and DasGupta 2001), its ends 0 and 1 where all agree."""
    low, high = special.betaincinv(share * n + 0.5, n - share * n + 0.5, [(1 - confidence) / 2, (1 + confidence) / 2])
    return 0.0 if share <= 0 else float(low), 1.0 if share >= 1 else float(high)


def _newcombe(metric: str, ours: Array, theirs: Array) -> tuple[float, float]:
    """From the intervals of both shares and their correlation over documents (Newcombe 1998, method 10). A correlation over
    few documents is itself uncertain, so it counts less its standard error (of Fisher's z): without that, five documents
    of which all pairs agree by chance cover 90%."""
    n = len(ours)
    p, q = float(value(metric, ours.sum(0))), float(value(metric, theirs.sum(0)))
    (low_p, high_p), (low_q, high_q) = _jeffreys(p, n), _jeffreys(q, n)
    together = _correlation(ours[:, 0] / ours[:, 1], theirs[:, 0] / theirs[:, 1])

    def reach(down: float, up: float) -> float:
        return float(np.sqrt(max(0.0, down**2 - 2 * together * down * up + up**2)))

    return p - q - reach(p - low_p, high_q - q), p - q + reach(high_p - p, q - low_q)


def _correlation(a: Array, b: Array) -> float:
    """Of two values over n documents, less one standard error; 0 where it is less, or cannot be told."""
    if len(a) < 4 or a.std() == 0 or b.std() == 0:
        return 0.0
    found = float(np.corrcoef(a, b)[0, 1].clip(-1 + 1e-9, 1 - 1e-9))
    return max(0.0, float(np.tanh(np.arctanh(found) - 1 / np.sqrt(len(a) - 3))))

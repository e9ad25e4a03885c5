"""lm-eval's metrics as sums over documents, each checked against lm-eval's own number.

Knows what `evaluate` returns, not how it came about. What does not come out as a sum is left to the caller to say.
"""

from __future__ import annotations

import math
import numbers as kinds
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNITS = {"word_perplexity": "nll_per_word", "byte_perplexity": "nll_per_byte"}


@dataclass(frozen=True)
class Share:
    """A document's share of a metric: the metric is sum(total) / sum(count), of `nll...` its exponential."""

    document: int
    metric: str
    total: float
    count: int
    length: int | None = None


def shares(samples: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]) -> Iterator[Share | str]:
    """The shares of all documents, and instead of them the name of a metric that is no sum over documents.

    RULER names its metrics by their lengths, and fills those that a document does not have with -1: here they are
    `accuracy` at a `length`.
    """
    found: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if not metric.isdigit() or str(sample["doc"].get("max_length")) == metric:
                found.setdefault((metric, sample["filter"]), []).append((sample["doc_id"], sample[metric]))
    for (metric, chosen), values in found.items():
        length = int(metric) if metric.isdigit() else None
        sums = _sums(metric, [value for _, value in values], numbers[f"{metric},{chosen}"])
        if sums is None:
            yield metric
            continue
        name = "accuracy" if length is not None else sums[0]
        name = name if chosen == "none" else f"{name},{chosen}"
        for (document, _), (total, count) in zip(values, sums[1], strict=True):
            yield Share(document, name, total, count, length)


def _sums(metric: str, values: list[Any], number: Any) -> tuple[str, list[tuple[float, int]]] | None:
    """The metric's name here and (total, count) per document, found by what gives lm-eval's `number`: a mean, the
    exponential of a mean loss, or a loss per word, byte or bit."""
    if not isinstance(number, kinds.Real):
        return None
    if all(isinstance(value, kinds.Real) for value in values):
        mean = float(sum(values)) / len(values)
        if _same(mean, number):
            return metric, [(float(value), 1) for value in values]
        if _same(_exp(-mean), number):
            return "nll", [(-float(value), 1) for value in values]
        return None
    if not all(isinstance(value, tuple | list) and len(value) == 2 for value in values):
        return None
    if any(not isinstance(a, kinds.Real) or not isinstance(b, kinds.Real) or float(b) % 1 for a, b in values):
        return None
    loss, weight = -float(sum(value[0] for value in values)), float(sum(value[1] for value in values))
    if weight <= 0:
        return None
    if _same(_exp(loss / weight), number):
        return UNITS.get(metric, f"nll_per_weight_of_{metric}"), [(-float(a), round(b)) for a, b in values]
    if _same(loss / weight / math.log(2), number):
        return metric, [(-float(a) / math.log(2), round(b)) for a, b in values]
    return None


def _same(ours: float, theirs: Any) -> bool:
    return math.isclose(ours, float(theirs), rel_tol=1e-9, abs_tol=1e-12)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def plain(value: Any) -> Any:
    """A value of anybody's metric as JSON takes it; what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        items = value.tolist() if hasattr(value, "tolist") else value
        return [plain(item) for item in items] if isinstance(items, list | tuple) else plain(items)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)

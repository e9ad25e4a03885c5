"""The rows that can be compared, and what can be estimated from them: sums by document, paired over documents.

A scene is all that was measured of one model on one text in one way. Knows no claim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from msrnn_bench.report.deciding import Bound, Estimate, Lack, Part
from msrnn_bench.results import intervals
from msrnn_bench.results.intervals import Array, Interval

_SAME = ("model", "dataset", "weights", "context", "seed", "bos", "dtype", "template", "variant")
_EITHER = ("full", "baseline")  # have no prefill and no positions of their own: they stand beside either
# What the paper means by a policy's name: memory, first, recent (of k), per. A cell with other knobs is another policy.
_KNOBS: dict[str, tuple[float | None, int, Callable[[int], int], str]] = {
    "window": (None, 0, lambda k: k, "layer"), "window1": (None, 1, lambda k: k - 1, "layer"),
    "window4": (None, 4, lambda k: k - 4, "layer"), "h2o": (1.0, 0, lambda k: k // 2, "head"),
    "h2o_layer": (1.0, 0, lambda k: k // 2, "layer"), "tova": (0.0, 0, lambda k: 0, "layer"),
    "tova1": (0.0, 1, lambda k: 0, "layer"), "tova4": (0.0, 4, lambda k: 0, "layer"),
    "tova_head": (0.0, 0, lambda k: 0, "head"),
}  # fmt: skip

At = tuple[str, int | None]  # a policy and its state size, None for the full model
FULL: At = ("full", None)
Sums = dict[str, tuple[float, ...]]  # document -> (total, count) of each quantity of a metric


@dataclass(frozen=True)
class Scene:
    """What was measured of one model on one text in one way."""

    settings: dict[str, Any]
    rows: pd.DataFrame
    _kept: dict[Any, list[Sums]] = field(default_factory=dict, repr=False)
    _cells: dict[Any, dict[str, Sums]] = field(default_factory=dict, repr=False)

    @property
    def context(self) -> int:
        """T of the claims."""
        return int(self.settings["context"])

    def sizes(self, *policies: str, metric: str = "nll") -> list[int]:
        """Below T, those at which every one of the policies was measured."""
        rows = self.rows[self.rows["metric"] == metric]
        found = [set(rows.loc[rows["policy"] == name, "cache"].dropna().astype(int)) for name in policies]
        return sorted(size for size in set.intersection(*found) if size < self.context)

    def fraction(self, part: int) -> int:
        """The state size T/part; 0, at which nothing is measured, where that is no whole number."""
        return self.context // part if self.context % part == 0 else 0

    def sums(self, at: At, metric: str, subtask: str | None = None, until: int | None = None) -> list[Sums]:
        """By cell, the largest first; `until`: of the positions before it, of the documents that reach it."""
        key = (*at, metric, subtask, until)
        if key not in self._kept:
            parts = [self._read(at, name, subtask, until) for name in intervals.DERIVED.get(metric, (metric,))]
            whole = [[part[cell] for part in parts] for cell in parts[0] if all(cell in part for part in parts)]
            cells = [{name: sum((m[name] for m in ms), ()) for name in ms[0] if all(name in m for m in ms)} for ms in whole]
            self._kept[key] = sorted([c for c in cells if c], key=lambda cell: -sum(values[1] for values in cell.values()))
        return self._kept[key]

    def _read(self, at: At, metric: str, subtask: str | None, until: int | None) -> dict[str, Sums]:
        """Of one quantity: cell -> document -> (total, count)."""
        if until is not None:
            rows = self.rows[(self.rows["policy"] == at[0]) & (self.rows["metric"] == metric)]
            reach = rows[rows["bucket_end"] == until]
            reaching = pd.MultiIndex.from_frame(rows[["cell", "document"]]).isin(
                list(zip(reach["cell"], reach["document"], strict=True))
            )
            return _summed(rows[reaching & (rows["bucket_end"] <= until)]).get((*at, metric, subtask), {})
        if not self._cells:
            self._cells.update(_summed(self.rows))
        return self._cells.get((*at, metric, subtask), {})


def _summed(rows: pd.DataFrame) -> dict[Any, dict[str, Sums]]:
    """(policy, size, metric, subtask) -> cell -> document -> (total, count)."""
    names = ["policy", "cache", "metric", "subtask", "cell", "document"]
    keys = [rows[name].astype("object").where(rows[name].notna(), "") for name in names]
    found: dict[Any, dict[str, Sums]] = {}
    for key, total, count in rows.groupby(keys, sort=True)[["total", "count"]].sum().itertuples(name=None):
        policy, size, metric, subtask, cell, document = key
        at = (policy, int(size) if size != "" else None, metric, subtask or None)
        found.setdefault(at, {}).setdefault(cell, {})[document] = (float(total), float(count))
    return found


def scenes(rows: pd.DataFrame, tasks: Sequence[str], ways: Sequence[str] = ()) -> Iterator[Scene]:
    """Those of these tasks, in the order of their settings. `ways`: settings that a policy is run under and the full model
    and the baseline have not, prefill or positions; they stand in the scenes of all."""
    own = rows[rows["task"].isin(list(tasks)) & rows["status"].eq("ok") & _papers_own(rows)]
    for way in ways:
        either = own["policy"].isin(_EITHER)
        used = sorted(own.loc[~either, way].unique())
        own = pd.concat([own[~either], *(own[either].assign(**{way: name}) for name in used)])
    names = [*_SAME, *ways]
    for _, group in own.groupby([own[name].astype("object") for name in names], dropna=False, sort=True):
        yield Scene({name: _plain(group[name].iloc[0]) for name in names}, group)


def _papers_own(rows: pd.DataFrame) -> pd.Series:
    """Whether a row's policy is what the paper means by its name."""
    columns = ["policy", "memory", "first", "recent", "per", "cache"]
    numbers = rows.groupby([rows[name].astype("object") for name in columns], dropna=False, sort=False).ngroup()
    first = ~numbers.duplicated()
    lines = rows.loc[first, columns].itertuples(index=False)
    odd = [number for number, line in zip(numbers[first], lines, strict=True) if not _meant(*line)]
    return ~numbers.isin(odd)


def _meant(policy: str, memory: Any, first: Any, recent: Any, per: Any, cache: Any) -> bool:
    if policy not in _KNOBS or pd.isna(cache):
        return True
    wanted = _KNOBS[policy]
    given = (memory, first, recent, per)
    meant = (wanted[0], wanted[1], wanted[2](int(cache)), wanted[3])
    return all(pd.isna(a) or a == b for a, b in zip(given, meant, strict=True))


def _plain(value: Any) -> Any:
    return None if pd.isna(value) else value


def called(at: At) -> str:
    return "the full model" if at[0] == "full" else f"{at[0]} at k={at[1]:,}" if at[1] else f"{at[0]} at any such k"


Estimator = Callable[[Array], Array]


def of(sums: Array, estimate: Estimator, what: str, *, back: Estimator = lambda x: x, bound: Bound | None = None) -> Estimate:
    """A smooth function of sums [n, 2 m] over documents; `back`: from the scale on which its interval is made to that on
    which it is told."""

    def interval(confidence: float) -> Interval | None:
        made = intervals.of(estimate, sums, confidence)
        if made is None:
            return None
        low, high = back(np.array([made.low, made.high]))
        return Interval(float(low), float(high), made.method)

    return Estimate(what, float(back(estimate(sums.sum(0)))), len(sums), interval, bound)


def contrast(
    scene: Scene, metric: str, ours: At, theirs: At, estimate: Estimator | None = None, *, subtask: str | None = None,
    alike: bool = False, back: Estimator = lambda x: x, bound: Bound | None = None, what: str = "",
) -> Part:  # fmt: skip
    """Of one metric between two cells, over the documents they share: by default the difference of the values.

    `estimate`: sums [..., 4 m], ours first, -> [...]; `alike`: only documents of which both scored as many tokens."""
    found = [scene.sums(at, metric, subtask) for at in (ours, theirs)]
    lacking = [called(at) for at, sums in zip((ours, theirs), found, strict=True) if not sums]
    if lacking:
        return Lack(" and ".join(lacking))
    pair = paired(*found, alike=alike)
    if pair is None:
        return Lack(f"{called(ours)} and {called(theirs)} on the same documents")
    what = what or f"{called(ours)} less {called(theirs)}"
    return of(pair, estimate or _difference(metric), what, back=back, bound=bound)


def paired(ours: list[Sums], theirs: list[Sums], *, alike: bool = False) -> Array | None:
    """Of two measurements' cells the two with the most in common, as an array [documents, 4 m], ours first."""
    best: tuple[float, Array] | None = None
    for a in ours:
        for b in theirs:
            common = [name for name in sorted(a) if name in b and not (alike and a[name][1::2] != b[name][1::2])]
            weight = sum(a[name][1] for name in common)
            if weight > (best[0] if best else 0.0):
                best = (weight, np.array([a[name] + b[name] for name in common]))
    return best[1] if best else None


def array(sums: Sums) -> Array:
    """[documents, 2 m], in the documents' order."""
    return np.array([sums[name] for name in sorted(sums)])


def _difference(metric: str) -> Estimator:
    def estimate(sums: Array) -> Array:
        half = sums.shape[-1] // 2
        return intervals.value(metric, sums[..., :half]) - intervals.value(metric, sums[..., half:])

    return estimate


def ratios(sums: Array) -> Array:
    """Two means [..., 4] -> the difference between them; of losses, in nats a token."""
    return sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]


def logarithms(sums: Array) -> Array:
    """Two means [..., 4] -> the logarithm of their quotient."""
    return np.log(sums[..., 0] / sums[..., 1]) - np.log(sums[..., 2] / sums[..., 3])

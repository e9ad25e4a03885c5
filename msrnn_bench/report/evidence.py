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

_SAME = ["model", "dataset", "weights", "context", "seed", "bos", "dtype", "positions", "template", "variant"]
_EITHER = ("full", "baseline")  # read every prompt alike, whatever the prefill
# What the paper means by a policy's name: memory, first, recent (of k), per. A cell with other knobs is another policy.
_KNOBS: dict[str, tuple[float | None, int, Callable[[int], int], str]] = {
    "window": (None, 0, lambda k: k, "layer"), "window1": (None, 1, lambda k: k - 1, "layer"),
    "window4": (None, 4, lambda k: k - 4, "layer"), "h2o": (1.0, 0, lambda k: k // 2, "head"),
    "h2o_layer": (1.0, 0, lambda k: k // 2, "layer"), "tova": (0.0, 0, lambda k: 0, "layer"),
    "tova1": (0.0, 1, lambda k: 0, "layer"), "tova4": (0.0, 4, lambda k: 0, "layer"),
    "tova_head": (0.0, 0, lambda k: 0, "head"),
}  # fmt: skip
BEHIND = "{} at k={:,}"  # how a cell is called


@dataclass(frozen=True)
class Scene:
    """What was measured of one model on one text in one way."""

    settings: dict[str, Any]
    rows: pd.DataFrame
    _cells: dict[tuple[Any, ...], list[pd.DataFrame]] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """T of the claims."""
        return int(self.settings["context"])

    def sizes(self, *policies: str, metric: str = "nll") -> list[int]:
        """Below T, those at which every one of the policies was measured."""
        rows = self.rows[self.rows["metric"] == metric]
        found = [set(rows.loc[rows["policy"] == name, "cache"].dropna().astype(int)) for name in policies]
        return sorted(size for size in set.intersection(*found) if size < self.context)

    def fraction(self, part: int) -> int | None:
        """The state size T/part; None where there is no such size."""
        return self.context // part if self.context % part == 0 else None

    def sums(
        self, policy: str, cache: int | None, metric: str, subtask: str | None = None, buckets: tuple[int, int] | None = None
    ) -> list[pd.DataFrame]:
        """By cell, the largest first, (total, count) by document; `buckets`: of those inside [start, end] alone."""
        key = (policy, cache, metric, subtask, buckets)
        if key not in self._cells:
            rows = self.rows[(self.rows["policy"] == policy) & (self.rows["metric"] == metric)]
            rows = rows[rows["cache"].isna()] if cache is None else rows[rows["cache"] == cache]
            rows = rows[rows["subtask"].isna()] if subtask is None else rows[rows["subtask"] == subtask]
            if buckets is not None:
                rows = rows[(rows["bucket_start"] >= buckets[0]) & (rows["bucket_end"] <= buckets[1])]
            order = sorted(
                rows.groupby("cell"), key=lambda one: (-int(one[1]["count"].sum()), one[1]["engine"].iloc[0] != "scan")
            )
            self._cells[key] = [cell.groupby("document")[["total", "count"]].sum().astype("float64") for _, cell in order]
        return self._cells[key]

    def paired(self, ours: list[pd.DataFrame], theirs: list[pd.DataFrame], alike: bool) -> tuple[Array, Array] | None:
        """Of two measurements' cells the two with the most documents in common; `alike`: as many tokens of each."""
        best: tuple[float, tuple[Array, Array]] | None = None
        for a in ours:
            for b in theirs:
                common = a.index.intersection(b.index).sort_values()
                if alike:
                    common = common[(a.loc[common, "count"] == b.loc[common, "count"]).to_numpy()]
                weight = float(a.loc[common, "count"].sum())
                if len(common) and (best is None or weight > best[0]):
                    best = (weight, (a.loc[common].to_numpy(), b.loc[common].to_numpy()))
        return best and best[1]


def scenes(rows: pd.DataFrame, tasks: Sequence[str], prefills: bool) -> Iterator[Scene]:
    """Those of these tasks, in the order of their settings; `prefills`: the ways to read a prompt apart, the full model and
    the baseline in both."""
    own = rows[rows["task"].isin(list(tasks)) & (rows["status"] == "ok") & _papers_own(rows)]
    names = _SAME if not prefills else [*_SAME, "prefill"]
    if prefills:
        either = own["policy"].isin(_EITHER)
        used = sorted(own.loc[~either, "prefill"].unique()) or ["stepwise"]
        own = pd.concat([own[~either], *(own[either].assign(prefill=name) for name in used)])
    for _, group in own.groupby([own[name].astype("object") for name in names], dropna=False, sort=True):
        yield Scene({name: _plain(group[name].iloc[0]) for name in names}, group)


def _papers_own(rows: pd.DataFrame) -> pd.Series:
    """Whether a row's policy is what the paper means by its name."""
    lines = rows[["policy", "memory", "first", "recent", "per", "cache"]].drop_duplicates()
    odd = pd.Series(False, index=rows.index)
    line: Any
    for line in lines.itertuples(index=False):
        if line.policy in _KNOBS and pd.notna(line.cache):
            memory, first, recent, per = _KNOBS[line.policy]
            wanted = (memory, first, recent(int(line.cache)), per)
            given = (line.memory, line.first, line.recent, line.per)
            if any(pd.notna(a) and a != b for a, b in zip(given, wanted, strict=True)):
                same = (rows["policy"] == line.policy) & (rows["cache"] == line.cache)
                for name in ("memory", "first", "recent", "per"):
                    value = getattr(line, name)
                    same &= rows[name].isna() if pd.isna(value) else rows[name].eq(value).fillna(False)
                odd |= same
    return ~odd


def _plain(value: Any) -> Any:
    return None if pd.isna(value) else value


def called(policy: str, cache: int | None) -> str:
    return "the full model" if policy == "full" else BEHIND.format(policy, cache)


def contrast(
    scene: Scene, metric: str, ours: tuple[str, int | None], theirs: tuple[str, int | None],
    estimate: Callable[[Array], Array], what: str, *, alike: bool = True,
) -> Part:  # fmt: skip
    """Of one metric between two cells over the documents they share. `estimate`: sums [..., 4] -> [...]."""
    found = [scene.sums(policy, cache, metric) for policy, cache in (ours, theirs)]
    lacking = [called(*cell) for cell, sums in zip((ours, theirs), found, strict=True) if not sums]
    if lacking:
        return Lack(" and ".join(lacking))
    pair = scene.paired(*found, alike=alike)
    if pair is None:
        return Lack(f"{called(*ours)} and {called(*theirs)} on the same documents")
    return of(np.concatenate(pair, axis=-1), estimate, what)


def of(sums: Array, estimate: Callable[[Array], Array], what: str, bound: Bound | None = None) -> Estimate:
    """Any smooth function of sums [n, 2 m] over documents."""

    def interval(confidence: float) -> Interval | None:
        return intervals.of(estimate, sums, confidence)

    return Estimate(what, float(estimate(sums.sum(0))), len(sums), interval, bound)


def losses(sums: Array) -> Array:
    """Sums [..., 4] of two losses -> their difference in nats a token."""
    return sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]


def perplexities(sums: Array) -> Array:
    """The same, of the perplexities."""
    return np.exp(sums[..., 0] / sums[..., 1]) - np.exp(sums[..., 2] / sums[..., 3])

"""From all rows to what a figure over input length shows: panels of lines, each a perplexity at every position where it is
known, with its interval over documents. Knows columns, no colours.

A line is a cell. Everything is made of a document's sums over the positions below n, so that the running perplexity is their
ratio at n, and that of a stretch the ratio of two differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from msrnn_bench.errors import UsageError
from msrnn_bench.results import intervals

_BLOCK = ["model", "dataset", "weights", "context", "dtype", "bos", "variant"]  # one text, one model
_KNOBS = ["memory", "first", "recent", "per", "seed", "engine", "prefill"]  # what else parts two lines of a policy
_NEEDED = {*_BLOCK, *_KNOBS, "task", "policy", "positions", "cache", "cell", "document", "bucket_start", "bucket_end", "metric",
           "total", "count", "status"}  # fmt: skip
_CONTROLS = ("baseline", "full")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Of one cell: `sums` [documents, positions, 2], total and count over the positions below each of `ends`."""

    documents: tuple[str, ...]
    ends: NDArray[np.int64]
    sums: Array

    def stretches(self, width: int) -> Sums:
        """The same over the `width` buckets before each end, where there are so many; 0 is all that is before."""
        if not width:
            return self
        if width > len(self.ends):
            raise UsageError(f"window={width} is more buckets than there are: take window={len(self.ends)} or less")
        before = np.concatenate([np.zeros_like(self.sums[:, :1]), self.sums], axis=1)
        return Sums(self.documents, self.ends[width - 1 :], self.sums[:, width - 1 :] - before[:, :-width])

    def at(self, ends: NDArray[np.int64]) -> Sums:
        """The same at fewer ends."""
        return Sums(self.documents, ends, self.sums[:, np.isin(self.ends, ends)])


@dataclass(frozen=True)
class Line:
    """A perplexity, or its difference to the control's, at `ends` [n]; low and high are NaN where there is no interval.

    `positions` is said where the table has both kinds, else None; `extra` is what else parts it from others of its policy."""

    policy: str
    positions: str | None
    extra: str
    cache: int | None
    documents: int
    ends: NDArray[np.int64]
    value: Array
    low: Array
    high: Array
    method: str | None

    @property
    def control(self) -> bool:
        return self.policy in _CONTROLS


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a model on a text, and the policies' lines of one state size beside the controls."""

    settings: dict[str, Any]
    title: str
    lines: list[Line]
    paired: bool  # whether the bands are intervals of the difference to the control
    scale: float  # the control's perplexity at the end; without a control the best line's

    @property
    def random(self) -> bool:
        return self.settings["weights"] == "random"


def read(table: pd.DataFrame, *, width: int, difference: bool) -> list[Panel]:
    """The panels of a table of all rows. `width` buckets make a stretch, 0 is the running perplexity; `difference`: less the
    control's."""
    lacking = sorted(_NEEDED - set(table.columns))
    if lacking:
        raise UsageError(f"not a table of all rows, it lacks {', '.join(lacking)}: give the tidy.csv that collect writes")
    wanted = (table["task"] == "extrapolation") & (table["metric"] == "nll") & (table["status"] == "ok")
    rows = table[wanted.fillna(False).astype(bool)].copy()
    if not (~rows["policy"].isin(_CONTROLS)).any():
        raise UsageError("no policy over long texts to draw: run `msrnn-bench run task=extrapolation tokens=70000`, then collect")
    for name in (*_BLOCK, *_KNOBS, "positions"):
        rows[name] = ["" if pd.isna(v) else f"{v:g}" if isinstance(v, float) else str(v) for v in rows[name]]
    kinds = rows.loc[~rows["policy"].isin(_CONTROLS), "positions"].nunique()
    rows["model_seed"] = rows["seed"].where(rows["weights"] == "random", "")
    panels = []
    for _, block in rows.groupby([*_BLOCK, "model_seed"]):
        ours, controls = (block[block["policy"].isin(_CONTROLS) == is_control] for is_control in (False, True))
        for cache, lines in ours.groupby("cache"):
            panels.append(_panel(int(str(cache)), lines, controls, rows, (width, difference, kinds > 1)))
    return panels


def _panel(cache: int, ours: pd.DataFrame, controls: pd.DataFrame, rows: pd.DataFrame, options: tuple[int, bool, bool]) -> Panel:
    width, difference, both = options
    settings = {name: ours[name].iloc[0] for name in _BLOCK}
    found = [(first, _sums(cell)) for first, cell in [*_cells(ours), *_cells(controls)]]
    control = _control(found)
    same = control is not None and all(sums.documents == control.documents for _, sums in found)
    title = f"{str(settings['model']).rsplit('/', 1)[-1]} on {settings['dataset']}, {cache:,} states"
    if difference and not same:
        why = "has no control" if control is None else "has lines over other documents than the control's"
        raise UsageError(f"{title} {why}: measure policy=baseline at the model's positions and the same documents, then collect")
    parting = [name for name in _KNOBS if ours.groupby("policy")[name].nunique().max() > 1]
    lines = []
    for first, sums in found:
        if difference and sums is control:
            continue
        extra = ", ".join(f"{name} {first[name] or '-'}" for name in parting if first["policy"] not in _CONTROLS)
        told = first["positions"] if both and first["policy"] not in _CONTROLS else None
        size = None if pd.isna(first["cache"]) else int(first["cache"])
        against = control if same and sums is not control else None
        lines.append(
            Line(str(first["policy"]), told, extra, size, len(sums.documents), *_values(sums, against, width, difference))
        )
    parts = [n for n in _BLOCK if n not in ("model", "dataset", "weights") and rows[n].nunique() > 1]
    title += "".join(f", {n} {settings[n]}" for n in parts)
    last = [float(intervals.value("nll", sums.sums[:, -1].sum(0))) for sums in ([control] if control else [s for _, s in found])]
    return Panel(settings, title, lines, same, min(last))


def _control(found: list[tuple[pd.Series, Sums]]) -> Sums | None:
    """The full model in fresh chunks, the longest there are; of a text short enough for it, without them."""
    chunks = [(float(first["cache"]), number) for number, (first, _) in enumerate(found) if first["policy"] == "baseline"]
    if chunks:
        return found[max(chunks)[1]][1]
    return next((sums for first, sums in found if first["policy"] == "full"), None)


def _cells(rows: pd.DataFrame) -> list[tuple[pd.Series, pd.DataFrame]]:
    """A line each: its settings and its rows. Of cells that measured the same the one over the most tokens stands for all."""
    chosen = []
    names = ["policy", "positions", "cache", *_KNOBS]
    for _, same in rows.groupby([rows[name].astype("object") for name in names], dropna=False, sort=True):
        sums = same.groupby("cell")[["total", "count"]].sum()
        best = sums[sums["count"] == sums["count"].max()]
        first = same.iloc[0]
        if best["total"].nunique() > 1:
            what = f"{first['policy']} of {first['model']}, cache {first['cache']}, {first['positions']} positions"
            raise UsageError(
                f"{what} has several results (cells {', '.join(best.index)}): delete the stale ones and collect again"
            )
        chosen.append((first, same[same["cell"] == best.index[0]]))
    return chosen


def _sums(cell: pd.DataFrame) -> Sums:
    """Up to where every document of the cell reaches."""
    tables = [cell.pivot(index="document", columns="bucket_end", values=name) for name in ("total", "count")]
    both = [table.astype("float64").sort_index().sort_index(axis=1).dropna(axis=1) for table in tables]
    sums = np.stack([table.to_numpy() for table in both], axis=-1).cumsum(axis=1)
    return Sums(tuple(map(str, both[0].index)), both[0].columns.to_numpy("int64"), sums)


def _values(sums: Sums, control: Sums | None, width: int, difference: bool) -> tuple[Any, ...]:
    """ends, value, low, high and the method of the intervals, which are of the difference where there is a control."""
    if control is not None:
        ends = np.intersect1d(sums.ends, control.ends)
        sums, control = sums.at(ends).stretches(width), control.at(ends).stretches(width)
    else:
        sums = sums.stretches(width)
    value = intervals.value("nll", sums.sums.sum(0))
    low, high = np.full((2, len(value)), np.nan)
    base = np.zeros(len(value)) if control is None else intervals.value("nll", control.sums.sum(0))
    method = None
    for at in range(len(value)):
        one = sums.sums[:, at]
        found = intervals.interval("nll", one) if control is None else intervals.difference("nll", one, control.sums[:, at])
        if found is not None:
            shift = 0.0 if control is None or difference else base[at]
            low[at], high[at], method = found.low + shift, found.high + shift, found.method
    return sums.ends, value - base if difference else value, low, high, method


def shown(panels: Sequence[Panel], setting: str) -> str:
    """A setting's values over the panels."""
    return " / ".join(dict.fromkeys(str(panel.settings[setting]) for panel in panels))

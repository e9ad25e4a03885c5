"""The numbers of two cells: value beside value; and of one cell measured twice, whether every number came out the same.

Times and peaks are the moment's and are left out, and so are columns that the earlier of two measurements did not fill yet.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from msrnn_bench.errors import UsageError
from msrnn_bench.results import intervals
from msrnn_bench.results.summary import PARTS, summarise

ROUNDING = 1e-6  # relative; of another order of additions, never of another text, model or policy
KEYS = ["document", "subtask", "length", "depth", "bucket_start", "bucket_end", "metric"]  # what a row is of
NUMBERS = ["total", "count", "evictions", "first_eviction", "max_states", "state_bytes"]
MOMENTS = ("seconds", "tokens_per_second", "peak_bytes")  # columns, and the ends of the names of metrics


@dataclass(frozen=True)
class Unlike:
    """Numbers of one kind that did not come out the same: how many, and the farthest of them."""

    what: str
    count: int
    relative: float  # infinite where a whole number differs, or one of the two is missing
    where: str
    recorded: Any
    again: Any


@dataclass(frozen=True)
class Agreement:
    """Of a cell and its repetition."""

    rows: int
    numbers: int
    moments: int  # rows of times and peaks, which are left out
    unlike: list[Unlike]
    lost: list[str]  # what only one of the two has

    @property
    def exact(self) -> bool:
        return not self.unlike and not self.lost

    @property
    def same(self) -> bool:
        """To rounding at least."""
        return not self.lost and all(kind.relative <= ROUNDING for kind in self.unlike)


def values(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """A line per metric, subtask and length of either: both values, `theirs` less `ours`, and where both rest on the same
    documents the paired 95% interval of that."""
    a, b = (summarise(rows, []).set_index(PARTS)["value"] for rows in (ours, theirs))
    both = pd.DataFrame({"ours": a, "theirs": b}).reset_index()
    both["difference"] = both["theirs"] - both["ours"]
    paired = [_paired(line, ours, theirs) for _, line in both.iterrows()]
    return both.assign(low=[low for low, _ in paired], high=[high for _, high in paired])


def _paired(line: pd.Series, ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[float, float]:
    metric = str(line["metric"])
    a, b = (_sums(rows, line) for rows in (ours, theirs))
    known = metric not in intervals.DERIVED and len(a) and a.index.equals(b.index)
    found = intervals.difference(metric, b.to_numpy("float64"), a.to_numpy("float64")) if known else None
    return (float("nan"), float("nan")) if found is None else (found.low, found.high)


def _sums(rows: pd.DataFrame, line: pd.Series) -> pd.DataFrame:
    """Total and count by document, of the rows of one line."""
    kept = rows["status"] == "ok"
    for part in PARTS:
        kept &= rows[part].isna() if pd.isna(line[part]) else rows[part].eq(line[part]).fillna(False)
    return rows[kept].groupby("document")[["total", "count"]].sum()


def agreement(recorded: Path, again: Path, rows: pd.DataFrame, new: pd.DataFrame) -> Agreement:
    """Of two cells' rows, and of the arrays beside them; `recorded` and `again` are the files of the rows."""
    whole, rows, new = len(rows), _lasting(rows), _lasting(new)
    new = new[new["metric"].isin(set(rows["metric"]))]  # a metric that is measured today only is none of the cell's
    a, b = _keyed(rows), _keyed(new)
    lost = [*_alone(a, b, "came out no more"), *_alone(b, a, "came out besides")]
    shared = a.index.intersection(b.index)
    a, b = a.loc[shared], b.loc[shared]
    unlike = [kind for metric, at in a.groupby("metric").groups.items() for kind in _kinds(str(metric), a.loc[at], b.loc[at])]
    kept = _arrays(recorded.with_suffix(".npz"))
    arrays = _arrays(again.with_suffix(".npz")) if kept else {}
    for name, array in kept.items():
        if name not in arrays or arrays[name].shape != array.shape:
            lost.append(f"the array {name} came out {'no more' if name not in arrays else 'in another shape'}")
            continue
        rounds = array.dtype.kind == "f"
        ours, theirs = (part.ravel().astype("float64" if rounds else part.dtype) for part in (array, arrays[name]))
        unlike += _kind(f"the array {name}", ours, theirs, rounds, lambda at: f"number {at}")
    columns = [column for column in NUMBERS if rows[column].notna().any()]
    numbers = len(rows) * len(columns) + sum(array.size for array in kept.values())
    return Agreement(len(rows), numbers, whole - len(rows), unlike, lost)


def _lasting(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows but those of times and peaks, where a task measures such."""
    return rows[~rows["metric"].str.endswith(MOMENTS)]


def _keyed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by what they are of, missing parts as text, for they do not equal themselves; repeated ones numbered."""
    named = rows[KEYS].astype("str").fillna("")
    index = pd.MultiIndex.from_frame(named.assign(repeat=named.groupby(KEYS).cumcount()))
    return rows[[*NUMBERS, "status"]].set_axis(index)


def _alone(a: pd.DataFrame, b: pd.DataFrame, what: str) -> list[str]:
    """What is said of the rows that only `a` has."""
    keys = a.index.difference(b.index)
    return [f"{len(keys)} rows {what}, the first {_place(keys[0])}"] if len(keys) else []


def _kinds(metric: str, a: pd.DataFrame, b: pd.DataFrame) -> list[Unlike]:
    found: list[Unlike] = []
    for column in NUMBERS:
        if a[column].notna().any():
            ours, theirs = (frame[column].to_numpy("float64", na_value=np.nan) for frame in (a, b))
            name = metric if column == "total" else f"{metric}'s {column}"
            found += _kind(name, ours, theirs, column == "total", lambda at: _place(a.index[at]))
    ours, theirs = (frame["status"].to_numpy(object) for frame in (a, b))
    return found + _kind(f"{metric}'s status", ours, theirs, False, lambda at: _place(a.index[at]))


def _kind(what: str, ours: Any, theirs: Any, rounds: bool, where: Callable[[int], str]) -> list[Unlike]:
    """Nothing where all are the same bits. Of whole numbers and texts there is no rounding."""
    unlike = ~((ours == theirs) | ((ours != ours) & (theirs != theirs)))
    if not unlike.any():
        return []
    far = np.where(unlike, np.inf, -1.0)
    if rounds:
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.abs(ours - theirs) / np.maximum(np.abs(ours), np.abs(theirs))
        far = np.where(unlike & ~np.isnan(relative), relative, far)
    at = int(far.argmax())
    return [Unlike(what, int(unlike.sum()), float(far[at]), where(at), ours[at], theirs[at])]


def _place(key: tuple[Any, ...]) -> str:
    """Which row a key is of, in words."""
    document, subtask, length, depth, start, end, metric, *_ = key
    parts = [subtask, f"{length} tokens" if length else "", f"depth {depth}" if depth else ""]
    return ", ".join([f"{metric} of {document}", *filter(None, parts), f"positions {start} to {end}"])


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays beside a cell's rows; none where it keeps none. Nothing is unpickled."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is damaged ({error}): delete it with its .json and run the cell again") from error

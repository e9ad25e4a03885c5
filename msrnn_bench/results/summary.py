"""From rows to the two tables people read: results/tidy.csv and results/summary.csv.

One line of the summary is one cell and metric (and subtask and length, where a task has them): two cells are never
pooled, even where every setting that is a column agrees (a text or a policy edited between two runs), for that would
count documents twice. Does not know the tasks, but for one thing: in which of them the policy wrote what is scored.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from msrnn_bench.errors import UsageError
from msrnn_bench.results import intervals
from msrnn_bench.results.cells import COLUMN_TYPES, SETTINGS
from msrnn_bench.results.files import write_atomically
from msrnn_bench.results.reading import read_cells, uncollected
from msrnn_bench.results.spreadsheet import harmless
from msrnn_bench.results.tidy import as_csv

log = logging.getLogger(__name__)

PARTS = ["metric", "subtask", "length"]  # what of a cell has a line of its own
KEYS = [*SETTINGS[1:], "variant", *PARTS]
TOPLINE_KEYS = [
    "task",
    "dataset",
    "model",
    "weights",
    "context",
    "seed",
    "bos",
    "dtype",
    "template",
    "variant",
    *PARTS,
]
TIDY_TYPES = {**{name: kind for name, (kind, _) in COLUMN_TYPES.items()}, "variant": "str"}
WRITTEN = {"stories"}  # tasks that score what the policy wrote: a pair shares its seed, not its number of tokens
SUMMARY_TYPES = {
    **{key: TIDY_TYPES[key] for key in KEYS},
    **dict.fromkeys(["documents", "count"], "Int64"),
    **dict.fromkeys(["value", "low", "high"], "float64"),
    "interval": "str",  # how low and high were made
    "topline": "float64",
    **dict.fromkeys(["difference", "difference_low", "difference_high"], "float64"),
    "difference_interval": "str",
    **dict.fromkeys(["evictions", "max_states"], "Int64"),
    "tokens_per_second": "float64",
    "status": "str",
    "cell": "str",
}


def collect(results_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write tidy.csv (every row) and summary.csv (every cell) from the finished and failed cells; return both."""
    rows, summary = tables(results_dir)
    write_atomically(results_dir / "tidy.csv", as_csv(harmless(rows)))
    write_atomically(results_dir / "summary.csv", harmless(summary).to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    return rows, summary


@uncollected()
def tables(results_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `collect` writes, not written."""
    rows, failures = read_cells(results_dir)
    if rows.empty and not failures:
        raise UsageError(f"{results_dir} has no finished cell: run `msrnn-bench run policy=tova cache=512` first")
    return rows, summarise(rows, failures)


class _Part(NamedTuple):
    """One line of the summary: what its rows have in common, and the sums [n, 2 m] of its scored documents, which are given as
    their places in one sorted list of all documents, so that two parts' are compared at once."""

    told: dict[str, Any]
    documents: NDArray[np.intp]
    sums: intervals.Array

    def values(self, keys: list[str]) -> tuple[Any, ...]:
        """Settings, missing as None."""
        return tuple(None if pd.isna(self.told[key]) else self.told[key] for key in keys)


def summarise(rows: pd.DataFrame, failures: list[dict[str, Any]]) -> pd.DataFrame:
    """One line per cell and part of it, failed cells included: those have a status and no value."""
    parts = _parts(rows) if len(rows) else []
    full: dict[Any, list[_Part]] = {}  # what a topline must agree in -> the full model's parts that do
    for part in parts:
        if part.told["policy"] == "full" and len(part.sums):
            full.setdefault(part.values(TOPLINE_KEYS), []).append(part)
    lines = [part.told | _estimate(part, full.get(part.values(TOPLINE_KEYS), [])) for part in parts]
    lines += [_failure(manifest) for manifest in failures]
    summary = pd.DataFrame(lines, columns=list(SUMMARY_TYPES)).astype(SUMMARY_TYPES)
    return summary.sort_values([*KEYS, "cell"], kind="stable", ignore_index=True)


def _parts(rows: pd.DataFrame) -> list[_Part]:
    """The rows of each line of the summary, all lines at once: a folder may have ten thousand cells."""
    rows = _with_derived(rows)
    number = rows.groupby(["cell", *PARTS], sort=False, dropna=False).ngroup().to_numpy()
    told = _described(rows, number)
    scored = (rows["status"] == "ok").to_numpy()
    keys = [number[scored], rows.loc[scored, "document"], rows.loc[scored, "of"]]
    # Documents sorted, so that order plays no part.
    sums = rows.loc[scored].groupby(keys)[["total", "count"]].sum()
    of, document = (sums.index.get_level_values(level) for level in (0, 1))
    wanted = pd.Series(sums.index.get_level_values(2)).groupby(of.to_numpy()).nunique()  # quantities that make the metric
    whole = sums.groupby([of, document])["total"].transform("size").to_numpy() == wanted.reindex(of).to_numpy()
    values, of = sums.to_numpy("float64")[whole], of[whole]
    places = pd.factorize(document[whole], sort=True)[0]
    begin, end = (np.searchsorted(of, range(len(told)), side=side) for side in ("left", "right"))
    parts = []
    for n, line in enumerate(told):
        m = int(wanted.get(n, 1))
        own = np.asfortranarray(values[begin[n] : end[n]].reshape(-1, 2 * m))
        parts.append(_Part(line, places[begin[n] : end[n] : m], own))
    return parts


def _with_derived(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those of each metric made of others' once more under its name, `of` saying which quantity each is."""
    made = [rows.assign(of=rows["metric"])]
    for metric, quantities in intervals.DERIVED.items():
        parts = rows[rows["metric"].isin(quantities)]
        whole = parts[parts.groupby("cell")["metric"].transform("nunique") == len(quantities)]
        if len(whole):
            made.append(whole.assign(of=whole["metric"], metric=metric))
    return pd.concat(made, ignore_index=True)


def _described(rows: pd.DataFrame, number: NDArray[np.integer]) -> list[dict[str, Any]]:
    """All that needs no statistics, by the parts' numbers, which follow their first rows. A line is `ok`, `partial` (some rows
    could not be scored) or has their status."""
    scored = (rows["status"] == "ok").groupby(number)
    speed = rows["tokens_per_second"].groupby([number, rows["document"]]).median()
    told = rows.loc[~pd.Series(number, index=rows.index).duplicated(), [*KEYS, "cell", "status"]].reset_index(drop=True)
    told["evictions"], told["max_states"] = (rows[name].groupby(number).max() for name in ("evictions", "max_states"))
    told["tokens_per_second"] = speed.groupby(level=0).median()
    told["status"] = told["status"].where(~scored.any(), "partial").where(~scored.all(), "ok")
    return [{str(key): value for key, value in line.items()} for line in told.to_dict("records")]


def _failure(manifest: dict[str, Any]) -> dict[str, Any]:
    row = manifest.get("row") or {}
    return {**{key: row.get(key) for key in KEYS}, "status": manifest.get("status"), "cell": manifest["cell"]}


def _estimate(part: _Part, full: list[_Part]) -> dict[str, Any]:
    """Value, interval and paired difference from the sums of each document. One document has no interval."""
    metric, ours = str(part.told["metric"]), part.sums
    if not len(ours):
        return {}
    value = float(intervals.value(metric, ours.sum(0)))
    line: dict[str, Any] = {"documents": len(ours), "count": int(ours[:, 1].sum()), "value": value}
    if found := intervals.interval(metric, ours):
        line |= {"low": found.low, "high": found.high, "interval": found.method}
    itself = part.told["policy"] == "full"
    theirs = ours if itself else _topline(part, full)
    if theirs is not None:
        line["topline"] = float(intervals.value(metric, theirs.sum(0)))
        line["difference"] = value - line["topline"]
        if itself:
            line |= {"difference_low": 0.0, "difference_high": 0.0} if len(ours) > 1 else {}
        elif paired := intervals.difference(metric, ours, theirs):
            line |= {"difference_low": paired.low, "difference_high": paired.high, "difference_interval": paired.method}
    return line


def quantity(metric: str) -> str:
    """What the value of a metric is, in words: losses are told as the perplexities that they are the logarithms of."""
    return metric.replace("nll", "perplexity", 1).replace("_", " ") if intervals.is_loss(metric) else metric


def _topline(part: _Part, full: list[_Part]) -> intervals.Array | None:
    """The full model's sums over the same documents; None where it did not score every one of them alike: as many
    tokens of each, unless they are its own (`WRITTEN`).

    Engine and prefill do not change the full model; where there is a choice, the cell that agrees in them is taken."""
    found: dict[tuple[bool, ...], list[tuple[str, intervals.Array]]] = {}
    preferred = ["cell", "engine", "prefill"]
    for other in full:
        sums = _over(part.documents, other)
        if sums is None or sums.shape != part.sums.shape:
            continue
        if part.told["task"] in WRITTEN or np.array_equal(sums[:, 1::2], part.sums[:, 1::2]):
            rank = tuple(a == b for a, b in zip(other.values(preferred), part.values(preferred), strict=True))
            found.setdefault(rank, []).append((other.told["cell"], sums))
    if not found:
        return None
    best = found[max(found)]
    if any(not np.array_equal(sums, best[0][1]) for _, sums in best):
        names = ", ".join(sorted(cell for cell, _ in best))
        log.warning("cell %s has no topline: %s differ and each could be it; delete the stale one", part.told["cell"], names)
        return None
    return best[0][1]


def _over(documents: NDArray[np.intp], other: _Part) -> intervals.Array | None:
    """The other part's sums over these documents; None where it lacks one."""
    at = np.searchsorted(other.documents, documents).clip(max=len(other.documents) - 1)
    return np.asfortranarray(other.sums[at]) if np.array_equal(other.documents[at], documents) else None

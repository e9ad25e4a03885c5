"""From rows to the two tables people read: results/tidy.csv and results/summary.csv.

One line of the summary is one cell and metric (and subtask and length, where a task has them): two cells are never
pooled, even where every setting that is a column agrees (a text or a policy edited between two runs), for that would
count documents twice. Does not know the tasks, but for one thing: in which of them the policy wrote what is scored.
"""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from msrnn_bench.errors import UsageError
from msrnn_bench.results import intervals
from msrnn_bench.results.cells import COLUMN_TYPES, SETTINGS
from msrnn_bench.results.files import write_atomically
from msrnn_bench.results.reading import read_cells
from msrnn_bench.results.spreadsheet import harmless

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
    rows, failures = read_cells(results_dir)
    if rows.empty and not failures:
        raise UsageError(f"{results_dir} has no finished cell: run `msrnn-bench run policy=tova cache=512` first")
    summary = summarise(rows, failures)
    for name, table, digits in (("tidy", rows, None), ("summary", summary, "%.6g")):
        text = harmless(table).to_csv(index=False, lineterminator="\n", float_format=digits)
        write_atomically(results_dir / f"{name}.csv", text)
    return rows, summary


def summarise(rows: pd.DataFrame, failures: list[dict[str, Any]]) -> pd.DataFrame:
    """One line per cell and part of it, failed cells included: those have a status and no value."""
    rows = _with_derived(rows)
    scored = rows[rows["status"] == "ok"]
    documents = {key: _sums(part) for key, part in _parts(scored)}
    groups = dict(_parts(rows))
    full: dict[Any, list[Any]] = {}  # what a topline must agree in -> the full model's parts that do
    for key, group in groups.items():
        if group["policy"].iloc[0] == "full" and key in documents:
            full.setdefault(_values(group, TOPLINE_KEYS), []).append(key)
    lines = []
    for key, group in groups.items():
        line = _describe(group)
        if key in documents:
            toplines = [(groups[other], documents[other]) for other in full.get(_values(group, TOPLINE_KEYS), [])]
            itself = group["policy"].iloc[0] == "full"
            topline = documents[key] if itself else _topline(group, documents[key], toplines)
            line |= _estimate(str(line["metric"]), documents[key], topline)
        lines.append(line)
    lines += [_failure(manifest) for manifest in failures]
    summary = pd.DataFrame(lines, columns=list(SUMMARY_TYPES)).astype(SUMMARY_TYPES)
    return summary.sort_values([*KEYS, "cell"], kind="stable", ignore_index=True)


def _with_derived(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those of each metric made of others' once more under its name, `of` saying which quantity each is."""
    made = [rows.assign(of=rows["metric"])]
    for metric, quantities in intervals.DERIVED.items():
        parts = rows[rows["metric"].isin(quantities)]
        whole = parts[parts.groupby("cell")["metric"].transform("nunique") == len(quantities)]
        if len(whole):
            made.append(whole.assign(of=whole["metric"], metric=metric))
    return pd.concat(made)


def _sums(part: pd.DataFrame) -> pd.DataFrame:
    """Per document the (total, count) of each quantity, [n, 2 m]; documents sorted, so that order plays no part."""
    table = part.groupby(["document", "of"])[["total", "count"]].sum().unstack("of")
    wanted = [(kind, of) for of in sorted(set(part["of"])) for kind in ("total", "count")]
    return pd.DataFrame(table[wanted]).dropna().astype("float64")


def _parts(rows: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """The rows of each line of the summary. The keys are text, for missing values do not equal themselves."""
    keys = rows[["cell", *PARTS]].astype("str").fillna("").agg("\0".join, axis=1) if len(rows) else rows["cell"]
    return list(rows.groupby(keys, sort=False))


def _values(group: pd.DataFrame, keys: list[str]) -> tuple[Any, ...]:
    """What a part's rows have in common, missing as None."""
    first = group.iloc[0]
    return tuple(None if pd.isna(first[key]) else first[key] for key in keys)


def _describe(group: pd.DataFrame) -> dict[str, Any]:
    """All that needs no statistics. A line is `ok`, `partial` (some rows could not be scored) or has their status."""
    scored = group["status"] == "ok"
    status = "ok" if scored.all() else "partial" if scored.any() else group["status"].iloc[0]
    return {
        **group.iloc[0][[*KEYS, "cell"]],
        "evictions": group["evictions"].max(),
        "max_states": group["max_states"].max(),
        "tokens_per_second": group.groupby("document")["tokens_per_second"].median().median(),
        "status": status,
    }


def _failure(manifest: dict[str, Any]) -> dict[str, Any]:
    row = manifest.get("row") or {}
    return {**{key: row.get(key) for key in KEYS}, "status": manifest.get("status"), "cell": manifest["cell"]}


def _estimate(metric: str, documents: pd.DataFrame, topline: pd.DataFrame | None) -> dict[str, Any]:
    """Value, interval and paired difference from the sums of each document. One document has no interval."""
    ours = documents.to_numpy("float64")
    value = float(intervals.value(metric, ours.sum(0)))
    line: dict[str, Any] = {"documents": len(documents), "count": int(ours[:, 1].sum()), "value": value}
    if found := intervals.interval(metric, ours):
        line |= {"low": found.low, "high": found.high, "interval": found.method}
    if topline is not None:
        theirs = topline.to_numpy("float64")
        line["topline"] = float(intervals.value(metric, theirs.sum(0)))
        line["difference"] = value - line["topline"]
        if topline is documents:  # the full model beside itself
            line |= {"difference_low": 0.0, "difference_high": 0.0} if len(documents) > 1 else {}
        elif paired := intervals.difference(metric, ours, theirs):
            line |= {"difference_low": paired.low, "difference_high": paired.high, "difference_interval": paired.method}
    return line


def quantity(metric: str) -> str:
    """What the value of a metric is, in words: losses are told as the perplexities that they are the logarithms of."""
    return metric.replace("nll", "perplexity", 1).replace("_", " ") if intervals.is_loss(metric) else metric


def _topline(group: pd.DataFrame, own: pd.DataFrame, full: list[tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame | None:
    """The full model's sums over the same documents; None where it did not score every one of them alike: as many
    tokens of each, unless they are its own (`WRITTEN`).

    Engine and prefill do not change the full model; where there is a choice, the cell that agrees in them is taken."""
    found: dict[tuple[bool, ...], list[tuple[str, pd.DataFrame]]] = {}
    preferred = ["cell", "engine", "prefill"]
    written = group["task"].iloc[0] in WRITTEN
    for other, sums in full:
        sums = sums.reindex(own.index)
        alike = sums["count"].notna() if written else sums["count"] == own["count"]
        if bool(alike.to_numpy().all()):
            rank = tuple(a == b for a, b in zip(_values(other, preferred), _values(group, preferred), strict=True))
            found.setdefault(rank, []).append((other["cell"].iloc[0], sums))
    if not found:
        return None
    best = found[max(found)]
    if any(not sums.equals(best[0][1]) for _, sums in best):
        names = ", ".join(sorted(cell for cell, _ in best))
        log.warning("cell %s has no topline: %s differ and each could be it; delete the stale one", group["cell"].iloc[0], names)
        return None
    return best[0][1]

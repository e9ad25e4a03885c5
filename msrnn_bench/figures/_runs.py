"""From all rows to what is compared in figures of single documents' rows: blocks of one text, in them a run per policy and
state size, and for each of its items (a position, a class, a distance) a value with its interval over documents.

Knows columns, no colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _panels, style
from msrnn_bench.results import intervals

_BLOCK = ["model", "dataset", "weights", "context", "dtype", "bos", "positions", "template", "variant"]  # one text, one model
_TITLED = {"model", "dataset", "weights", "length", "prefill"}  # said anyway
_KNOBS = ["memory", "first", "recent", "per", "seed", "engine", "prefill"]
_NEEDED = {*_BLOCK, *_KNOBS, "task", "policy", "cache", "cell", "document", "subtask", "bucket_start", "bucket_end", "metric",
           "total", "count", "status"}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One cell: `name` is the policy's, with what parts it from others of its name in the block; `rows` are the cell's."""

    name: str
    policy: str
    cache: float
    cell: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Block:
    """What can be compared, for all of it is the same model on the same text: runs by policy, then by size."""

    title: str
    settings: dict[str, str]
    runs: list[Run]

    @property
    def random(self) -> bool:
        return self.settings["weights"] == "random"

    @property
    def context(self) -> int:
        return int(self.settings["context"])

    @property
    def names(self) -> list[str]:
        """The policies, in the order in which the runs have them."""
        return list(dict.fromkeys(run.name for run in self.runs))

    @property
    def sizes(self) -> list[float]:
        return sorted({run.cache for run in self.runs})


def read(table: pd.DataFrame, metric: str, lacking: str, *, block: Sequence[str] = ()) -> list[Block]:
    """The blocks of all rows of one metric, apart by `block`'s columns too; `lacking` is said where there is no such row.

    Of several cells that measured the same, the one over the most stands for all."""
    missing = sorted({*_NEEDED, *block} - set(table.columns))
    if missing:
        raise UsageError(
            f"not a table of all rows, it lacks {', '.join(missing)}: give the tidy.csv that `msrnn-bench collect` writes"
        )
    wanted = table["metric"].eq(metric) & table["status"].eq("ok") & table["cache"].notna()
    rows = table[wanted.fillna(False).astype(bool)].copy()
    if rows.empty:
        raise UsageError(lacking)
    names = [*_BLOCK, *block]
    for name in names:
        rows[name] = ["" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value) for value in rows[name]]
    rows["cache"] = rows["cache"].astype("float64")
    return [_block({name: str(part[name].iloc[0]) for name in names}, part, rows) for _, part in rows.groupby(names, sort=True)]


def _block(settings: dict[str, str], part: pd.DataFrame, rows: pd.DataFrame) -> Block:
    extra = [name for name in settings if name not in _TITLED and rows[name].nunique() > 1]
    said = [f"{name} {settings[name]}" if name not in ("subtask", "dtype", "variant") else settings[name] for name in extra]
    title = f"{settings['model'].rsplit('/', 1)[-1]} on {settings['dataset']}" + (f" ({', '.join(said)})" if said else "")
    runs = []
    for policy, points in part.groupby("policy"):
        for name, variant in _panels.variants(str(policy), points):
            for cache, same in variant.groupby("cache"):
                runs.append(_run(name, str(policy), float(str(cache)), same))
    known = list(style.LOOKS)
    place = {name: known.index(name) if name in known else len(known) for name in {run.policy for run in runs}}
    return Block(title, settings, sorted(runs, key=lambda run: (place[run.policy], run.name, run.cache)))


def _run(name: str, policy: str, cache: float, rows: pd.DataFrame) -> Run:
    sums = rows.groupby("cell")[["count", "total"]].sum()
    best = sums[sums["count"] == sums["count"].max()]
    if best["total"].nunique() > 1:
        raise UsageError(
            f"{name} at cache {cache:g} has several results (cells {', '.join(sorted(best.index))}): delete the stale ones and "
            "collect again"
        )
    cell = str(min(best.index))
    return Run(name, policy, cache, cell, rows[rows["cell"] == cell])


def values(rows: pd.DataFrame, by: str, metric: str) -> pd.DataFrame:
    """Of the rows of one cell, for each value of the column `by` in their order: value, low and high (missing where one document
    alone has it), count, documents, interval (how low and high were made)."""
    lines = []
    for item, same in rows.groupby(by, sort=True):
        sums = same.groupby("document")[["total", "count"]].sum().to_numpy("float64")
        found = intervals.interval(metric, sums)
        low, high, method = found or (float("nan"), float("nan"), None)
        lines.append((item, float(intervals.value(metric, sums.sum(0))), low, high, int(sums[:, 1].sum()), len(sums), method))
    return pd.DataFrame(lines, columns=[by, "value", "low", "high", "count", "documents", "interval"])


def measured(blocks: Sequence[Block], unit: str = "per chunk") -> str:
    """What was measured, as a sentence of the caption."""

    def shown(name: str) -> str:
        return " / ".join(dict.fromkeys(block.settings[name] for block in blocks))

    numbers = {run.rows["document"].nunique() for block in blocks for run in block.runs}
    fewest, most = min(numbers), max(numbers)
    number = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    context = " / ".join(dict.fromkeys(f"{block.context:,}" for block in blocks))
    return f"{context} tokens {unit}, {number} document{'s' * (most > 1)}, {shown('dtype')}, {shown('weights')} weights."


def banded(points: Sequence[pd.DataFrame], what: str = "Bands") -> list[str]:
    """What the bands are, as a sentence, or why there are none."""
    methods = sorted({str(method) for frame in points for method in frame["interval"].dropna()})
    return [f"{what}: 95% intervals over documents ({' and '.join(methods)})." if methods else "One document has no interval."]

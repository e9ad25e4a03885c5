"""Writes the tables of README.md and docs/results.md from results/*: what stands behind `<!-- table: NAME -->`.

python docs/tables.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from msrnn_bench.results import intervals

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs/results.md"]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)((?:\|.*\n)*)")
SHORT = ["a2sf", "h2o", "tova", "window4", "baseline", "window", "random"]  # README's policies


def summary(folder: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / folder / "summary.csv")


def markdown(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    lines = [[*head], *([*row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(map(str, line)).replace("|  |", "| |") + " |\n" for line in lines)


def perplexity(folder: str, policies: list[str] | None = None, sizes: list[int] | None = None) -> str:
    """Policy by state size, the best at the middle size first, as `collect` prints it. From the sums in tidy.csv, for the
    six digits of summary.csv would be rounded twice."""
    rows = pd.read_csv(ROOT / "results" / folder / "tidy.csv")
    sums = rows[rows["metric"] == "nll"].groupby(["policy", "cache"])[["total", "count"]].sum()
    table = np.exp(sums["total"] / sums["count"]).unstack("cache")
    table = table.loc[policies or table.index, sizes or table.columns]
    table = table.sort_values(table.columns[len(table.columns) // 2])
    lines = [
        [policy, *(f"{value:.3f}" for value in values)] for policy, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    return markdown(["policy", *map(int, table.columns)], lines)


def cells(table: pd.DataFrame, policy: str, prefill: str, size: int) -> pd.DataFrame:
    """The lines of one policy, prefill and size, shortest length first; no size is the full model's."""
    mine = table[(table["policy"] == policy) & (table["prefill"] == prefill)]
    return mine[mine["cache"] == size].sort_values("length")


def retrieval() -> str:
    table = summary("retrieval")
    asked = [(policy, "stepwise") for policy in ("tova", "window4", "h2o", "a2sf", "random")]
    asked += [(policy, "oneshot") for policy in ("tova", "window4", "h2o")]
    sizes = (64, 256, 1024)
    rows = [[*one, *(" / ".join(f"{v:.2f}" for v in cells(table, *one, size)["value"]) for size in sizes)] for one in asked]
    return markdown(["policy", "prefill", *sizes], rows)


def squality() -> str:
    """Bold where the interval of the paired difference to the full model has no zero in it."""
    table = summary("squality")
    table = table[table["metric"] == "rouge"]
    asked = [(policy, "stepwise") for policy in ("tova", "window4", "h2o", "baseline")]
    asked += [(policy, "oneshot") for policy in ("tova", "window4", "h2o")]
    sizes = (256, 512, 1024, 2048)

    def shown(policy: str, prefill: str, size: int) -> str:
        line = cells(table, policy, prefill, size).iloc[0]
        mark = "**" if line["difference_low"] > 0 or line["difference_high"] < 0 else ""
        return f"{mark}{line['value']:.2f}{mark}"

    rows = [[p, prefill if p != "baseline" else "", *(shown(p, prefill, size) for size in sizes)] for p, prefill in asked]
    return markdown(["policy", "prefill", *sizes], rows)


def niah() -> str:
    table = summary("niah")

    def shown(line: pd.Series) -> str:
        width = f" [{line['low']:.2f}, {line['high']:.2f}]" if line["low"] < line["high"] else ""
        return f"{line['value']:.2f}{width}"

    def both(policy: str, size: int) -> str:
        return " / ".join(shown(line) for _, line in cells(table, policy, "stepwise", size).iterrows())

    return markdown(["policy", 256, 1024], [[p, both(p, 256), both(p, 1024)] for p in ("tova", "window4", "h2o")])


def _with_interval(metric: str, rows: pd.DataFrame, digits: int = 2) -> str:
    """The value over all documents, and its interval over them."""
    sums = rows.groupby("document")[["total", "count"]].sum().to_numpy("float64")
    found = intervals.interval(metric, sums)
    width = f" [{found.low:.{digits}f}, {found.high:.{digits}f}]" if found else ""
    return f"{float(intervals.value(metric, sums.sum(0))):.{digits}f}{width}"


def retention() -> str:
    """What stays: shares, and the classes kept longest of those with 100 tokens or more."""
    rows = pd.read_csv(ROOT / "results/retention/tidy.csv")

    def longest(part: pd.DataFrame) -> str:
        scheme = "class:pos/" if part["dataset"].iloc[0] == "pydocs" else "class:token/"
        lives = part[(part["metric"] == "lifetime") & part["subtask"].fillna("").str.startswith(scheme)]
        sums = lives.groupby("subtask")[["total", "count"]].sum()
        layers = rows.loc[rows["subtask"].fillna("").str.startswith("layer:"), "subtask"].nunique()
        steps = (sums["total"] / sums["count"])[sums["count"] >= 100 * layers].sort_values(ascending=False)
        return " · ".join(f"{name.removeprefix(scheme)} {value:.0f}" for name, value in steps.head(5).items())

    lines = []
    for text in ("pydocs", "pysource"):
        for policy in ("tova", "h2o", "window4"):
            part = rows[(rows["dataset"] == text) & (rows["policy"] == policy)]
            recent = part[(part["metric"] == "recent_share") & (part["subtask"] == "all:full")]
            first = part[part["metric"] == "first_alive"]
            lines.append(
                [text, policy, _with_interval("recent_share", recent), _with_interval("first_alive", first), longest(part)]
            )
    return markdown(["text", "policy", "recent", "first token held", "kept longest, mean steps"], lines)


def extrapolation() -> str:
    """Running perplexity at some lengths, and how far it moves from the first of them to the last, paired."""
    rows = pd.read_csv(ROOT / "results/extrapolation/tidy.csv")
    marks, lines = (10_000, 20_000, 40_000, 70_000), []
    for (policy, positions), part in rows.groupby(["policy", "positions"]):
        sums = [
            part[part["bucket_end"] <= mark].groupby("document")[["total", "count"]].sum().to_numpy("float64") for mark in marks
        ]
        moved = intervals.difference("nll", sums[-1], sums[0])
        assert moved is not None
        values = [float(intervals.value("nll", each.sum(0))) for each in sums]
        lines.append([policy, positions, *(f"{v:.2f}" for v in values),
                      f"{values[-1] - values[0]:+.2f} [{moved.low:.2f}, {moved.high:.2f}]"])  # fmt: skip
    return markdown(["policy", "positions", *(f"{mark:,}" for mark in marks), "10,000 to 70,000"], lines)


def efficiency() -> str:
    """Bytes, the largest batch, and tokens per second decoded: medians, and how many times the full model's."""
    table = summary("efficiency")

    def value(size: float, metric: str, subtask: str | None = None) -> pd.Series:
        mine = table[table["cache"].isna() if np.isnan(size) else table["cache"] == size]
        mine = mine[(mine["metric"] == metric) & (mine["subtask"].isna() if subtask is None else mine["subtask"] == subtask)]
        return mine.iloc[0]

    def rate(size: float, batch: str) -> float:
        rows = pd.read_csv(ROOT / "results/efficiency/tidy.csv")
        rows = rows[rows["cache"].isna() if np.isnan(size) else rows["cache"] == size]
        rows = rows[(rows["metric"] == "decode_tokens_per_second") & (rows["subtask"] == f"batch={batch}")]
        return float((rows["total"] / rows["count"]).median())

    lines = []
    for size in (np.nan, 2048.0, 1024.0, 512.0, 256.0):
        most = value(size, "batch")
        batch = f"{most['value']:.0f}" if most["status"] == "ok" else "at least 64"
        ratios = [rate(size, which) / rate(np.nan, which) for which in ("1", "max")]
        rates = [f"{rate(size, which):.0f} ({ratio:.1f})" for which, ratio in zip(("1", "max"), ratios, strict=True)]
        held = [f"{value(size, metric)['value'] / 2**20:.1f}" for metric in ("state_bytes_exact", "state_bytes")]
        lines.append(["full" if np.isnan(size) else f"tova {size:.0f}", *held, batch, *rates])
    return markdown(["states", "keys and values, MiB", "as allocated, MiB", "batch in 2 GiB", "decoded at batch 1 (ratio)",
                     "at the largest batch (ratio)"], lines)  # fmt: skip


def equivalence() -> str:
    """The largest difference of a logit, in units of rounding, and agreement on the likeliest token; by model and dtype."""
    table = summary("equivalence")
    table["kind"] = table["model"].where(~table["model"].str.endswith("(twin)"), "90 tiny models")
    lines = []
    for (kind, dtype), part in table.groupby(["kind", "dtype"]):
        cells = []
        for pair in ("recurrence/library", "scan/recurrence", "bounded/full"):
            mine = part[part["subtask"] == pair]
            most, units, alike = (
                mine.loc[mine["metric"] == metric, "value"] for metric in ("max_difference", "in_rounding", "top1_agreement")
            )
            cells.append(f"{most.max():.1e} ({units.max():.1f}), {alike.min():.3f}")
        lines.append([kind, dtype, *cells])
    return markdown(["model", "dtype", "recurrence, library", "scan, recurrence at k < T", "scan at k = T, library"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "novels": lambda: perplexity("novels"), "novels_short": lambda: perplexity("novels", SHORT, [64, 256, 1024]),
    "pysource": lambda: perplexity("pysource"), "stories260k": lambda: perplexity("stories260k"),
    "retrieval": retrieval, "squality": squality, "niah": niah,
    "retention": retention, "extrapolation": extrapolation, "efficiency": efficiency,
    "equivalence": equivalence,
}  # fmt: skip


def written(text: str) -> str:
    """A page with its tables made anew."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]](), text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page)

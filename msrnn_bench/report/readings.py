"""What a figure says, in two lines of plain words, computed from the table it is drawn of. Numbers only: no praise, no guess.

`read` asks the figure's module for its own `reading(table)`, then looks here and in readings_states.py for a function of the
figure's name, and else reads the summary as any metric is read: the ends at the smallest size, and who is near the topline
from which size on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

import pandas as pd

from msrnn_bench import figures
from msrnn_bench.report import readings_states
from msrnn_bench.report.telling import label, listed, number, sentence
from msrnn_bench.results.summary import quantity

_WHERE = ["task", "model", "dataset", "weights", "context", "dtype", "template", "variant", "prefill", "subtask", "length"]
_NEAR = 0.05  # of the topline: what counts as near it
_MOST = 4  # sentences; a figure of many panels has its numbers in the tables below
_FIRST = ("rouge", "f1", "accuracy", "acc", "exact_match", "length")  # of a task's metrics, the one that is read


def title(name: str) -> str:
    """What a figure is called."""
    doc = (importlib.import_module(f"{figures.__name__}.{name}").__doc__ or name).strip().split("\n")[0]
    return doc.split(",")[0].split(":")[0].rstrip(". ")


def read(name: str, rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """The sentences of that figure."""
    module = importlib.import_module(f"{figures.__name__}.{name}")
    table = rows if figures.table_of(name) == "tidy" else summary
    own: Callable[[pd.DataFrame], Iterable[str]] | None = getattr(module, "reading", None)
    if own is not None:
        return list(own(table))
    return READERS.get(name, getattr(readings_states, name, _any))(rows, summary)


def _any(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """Of each panel of the first metric there is."""
    known = summary[summary["value"].notna() & summary["cache"].notna()]
    if known.empty:
        return ["No bounded policy has a value yet."]
    first = next((name for name in _FIRST if (known["metric"] == name).any()), str(known["metric"].iloc[0]))
    return _of(known[known["metric"] == first], first)


def _perplexity(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    return _of(summary[(summary["metric"] == "nll") & summary["value"].notna() & summary["cache"].notna()], "nll")


def _of(known: pd.DataFrame, metric: str) -> list[str]:
    keys = known[_WHERE].astype("str").fillna("").agg("\0".join, axis=1)
    panels = [panel for _, panel in known.groupby(keys, sort=True)]
    told = [line for panel in panels for line in (_ends(panel, metric, panels), _near(panel, metric))]
    if len(told) <= _MOST:
        return told
    return [*[_ends(panel, metric, panels) for panel in panels][: _MOST - 1], f"{len(panels)} panels; all values are below."]


def _ends(panel: pd.DataFrame, metric: str, panels: list[pd.DataFrame]) -> str:
    """The lowest and the highest line at the smallest size."""
    size = panel["cache"].min()
    at = panel[panel["cache"] == size].sort_values("value", kind="stable")
    toplines = panel["topline"].dropna()
    ends = [("lowest", at["value"].min()), ("highest", at["value"].max())][: at["value"].nunique()]
    said = [f"the {end} {quantity(metric)} is {number(value)} ({listed(_who(at, value))})" for end, value in ends]
    topline = f"; the topline's is {number(toplines.iloc[0])}" if len(toplines) else ""
    return sentence(f"{_place(panel, panels)}at k={size:,.0f} {' and '.join(said)}{topline}")


def _who(points: pd.DataFrame, value: float) -> list[str]:
    """Everyone who has that value."""
    return [label(str(policy)) for policy in dict.fromkeys(points.loc[points["value"] == value, "policy"])]


def _near(panel: pd.DataFrame, metric: str) -> str:
    """From which size on each policy stays within 5% of the topline: losses by the point, others by the interval."""
    panel = panel[panel["topline"].notna()]
    if panel.empty:
        return "There is no topline to compare with."
    found: dict[float, list[str]] = {}
    for policy, points in panel.groupby("policy", sort=False):
        points = points.sort_values("cache", ascending=False)
        near = (points["difference"].abs() <= _NEAR * points["topline"].abs()).cummin()
        if near.any():
            found.setdefault(float(points.loc[near, "cache"].min()), []).append(label(str(policy)))
    if not found:
        return f"No policy is within {_NEAR:.0%} of the topline at any size."
    told = "; ".join(f"from k={size:,.0f} on {listed(names)}" for size, names in sorted(found.items()))
    never = sorted({label(str(policy)) for policy in panel["policy"]} - {name for names in found.values() for name in names})
    return sentence(f"Within {_NEAR:.0%} of the topline: {told}" + (f"; at no size {listed(never)}" if never else ""))


def _stories(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    told = summary[(summary["metric"] == "length") & summary["value"].notna() & summary["cache"].notna()]
    lines = []
    for _, line in told.sort_values(["cache", "policy"], kind="stable").iterrows():
        moved = ""
        if pd.notna(line["difference_low"]):
            ends = ", ".join(number(line[name]) for name in ("difference_low", "difference_high"))
            moved = f" ({number(line['difference'])} [{ends}] against the topline)"
        lines.append(f"{label(line['policy'])}'s stories have {number(line['value'])} tokens{moved}")
    size = told["cache"].min()
    most = int((told["cache"] == size).sum())
    ended = summary[(summary["metric"] == "ended") & (summary["cache"] == size) & summary["value"].notna()]
    first = sentence(f"At k={size:,.0f} {listed(lines[:most], ';')}")
    shares = [f"of {label(line['policy'])}'s {line['value']:.0%} end by themselves" for _, line in ended.iterrows()]
    full = summary[(summary["metric"] == "ended") & (summary["policy"] == "full") & summary["value"].notna()]
    shares += [f"of the topline's {value:.0%}" for value in full["value"][:1]]
    return [first, sentence(listed(shares, ";"))] if shares else [first]


def _depth(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """How many answers were right, by policy, over all depths and lengths; and at which depth each was best."""
    right = rows[(rows["metric"] == "accuracy") & rows["depth"].notna() & (rows["status"] == "ok")]
    sums = right.groupby(["policy", "depth"])[["total", "count"]].sum().reset_index()
    whole = sums.groupby("policy")[["total", "count"]].sum()
    whole = whole.loc[(whole["total"] / whole["count"]).sort_values(ascending=False, kind="stable").index]
    shares = [f"{label(str(policy))} {line['total'] / line['count']:.0%}" for policy, line in whole.iterrows()]
    deep = sums[sums["policy"] != "full"].groupby("depth")[["total", "count"]].sum()
    share = deep["total"] / deep["count"]
    return [
        f"Right answers over all depths, lengths, sizes and prefills: {', '.join(shares)}.",
        f"Bounded policies together are right most often where the answer stands at {share.idxmax():.0%} of the text "
        f"({share.max():.0%}), least often at {share.idxmin():.0%} ({share.min():.0%}).",
    ]


def _judged(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    found = rows[rows["metric"].isin(["win", "tie", "loss"]) & (rows["status"] == "ok")]
    sums = found.groupby(["policy", "cache", "metric"])[["total", "count"]].sum()
    shares = (sums["total"] / sums["count"]).unstack("metric").reset_index()
    lines = [
        f"At k={line['cache']:,.0f} {label(line['policy'])} won {line.get('win', 0):.0%}, tied {line.get('tie', 0):.0%} and lost "
        f"{line.get('loss', 0):.0%} of its pairs."
        for _, line in shares.iterrows()
    ]
    return lines[:_MOST]


def _place(panel: pd.DataFrame, panels: list[pd.DataFrame]) -> str:
    """Which panel, where there are several: what tells it from the others."""
    first = panel.iloc[0]
    differing = [name for name in _WHERE if len({str(other.iloc[0][name]) for other in panels}) > 1]
    shown = [
        f"{first[name]:,} tokens" if name in ("length", "context") else str(first[name])
        for name in differing
        if pd.notna(first[name])
    ]
    return f"{', '.join(shown)}: " if shown else ""


READERS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], list[str]]] = {
    "perplexity": _perplexity, "stories": _stories, "depth": _depth, "judged": _judged,
}  # fmt: skip

"""The summary as tables of policy by state size, with intervals: what the page shows and what tables/*.tex hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd

from msrnn_bench.figures import _published, style
from msrnn_bench.results.intervals import is_loss
from msrnn_bench.results.summary import quantity
from msrnn_bench.results.tables import labels

_TABLE = ["task", "model", "weights", "dataset", "context", "bos", "dtype", "template", "variant", "metric"]
_GROUP = ["prefill", "positions", "engine", "subtask", "length"]
_MOST = 60  # lines of a table; the rest is in summary.csv
PUBLISHED = {  # task -> the experiments of the paper that measured the same, in published.csv
    "squality": ("squality_",), "qasper": ("qasper_",), "stories": ("story_",), "extrapolation": ("extrapolation_",),
    "efficiency": ("efficiency_",), "retention": ("kept_tokens", "first_tokens", "pos_lifetime_"),
    "perplexity": ("pg19_fig3",),
}  # fmt: skip

_ABLATION = "pg19_ablation_table3"  # the perplexities that the paper prints by policy and size


@dataclass(frozen=True)
class Entry:
    """One value, its interval as text, empty where there is none."""

    value: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Line:
    """A policy, its entries by size. `kind`: measured | topline (one entry for all sizes) | published."""

    name: str
    entries: list[Entry]
    kind: str = "measured"


@dataclass(frozen=True)
class Group:
    """Lines that share how they were read: prefill, subtask, length; `title` is empty where the table has one group."""

    title: str
    lines: list[Line]


@dataclass(frozen=True)
class Table:
    """`first` marks the metric of its task that people read first."""

    task: str
    metric: str
    caption: str
    sizes: list[str]
    groups: list[Group]
    notes: list[str] = field(default_factory=list)
    left_out: int = 0
    first: bool = True


@dataclass(frozen=True)
class Printed:
    """What the paper prints of a task, as it prints it: model, policy, size, metric, value, place."""

    task: str
    lines: list[tuple[str, ...]]


def make(summary: pd.DataFrame) -> list[Table]:
    """The tables of a summary: one per task, model, dataset, settings and metric."""
    known = summary[summary["value"].notna()]
    tables: list[Table] = []
    read: set[tuple[str, ...]] = set()
    for part in parts(known, _TABLE):
        metric, where = str(part["metric"].iloc[0]), tuple(str(part[name].iloc[0]) for name in _TABLE[:-1])
        if metric == "nll" and part["difference"].notna().any() and part["task"].iloc[0] == "perplexity":
            tables += [_values(part, first=True), _excess(part)]
        else:
            tables.append(_values(part, first=where not in read))
        read.add(where)
    return tables


def printed(summary: pd.DataFrame) -> list[Printed]:
    """What the paper prints of the tasks in a summary."""
    paper, found = _published.read(), []
    for task in sorted(set(summary["task"])):
        begins = PUBLISHED.get(task, ())
        result = ~paper["policy"].astype("str").str.startswith("(axis")
        rows = paper[result & paper["experiment"].map(lambda name, begins=begins: str(name).startswith(begins))]
        columns = ["model", "policy", "printed_size", "metric", "printed_value", "source"]
        lines = [tuple(str(row[name]) for name in columns) for _, row in rows.iterrows()]
        found += [Printed(task, lines)] if lines else []
    return found


def shown(value: float, digits: int | None = None) -> str:
    """9.053, 34.07, 141.9, 4,812: four digits, no more than three of them behind the point."""
    if pd.isna(value):
        return ""
    size = abs(value)
    if size >= 1e15:
        return f"{value:.3e}"
    places = digits if digits is not None else 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def _values(part: pd.DataFrame, *, first: bool) -> Table:
    groups, left = [], _MOST
    sizes = _sizes(part)
    several = len(parts(part, _GROUP)) > 1
    for group in parts(part, _GROUP):
        lines = _lines(group, sizes, _plain)
        groups.append(Group(_group_title(group, part) if several else "", lines[: max(left, 0)]))
        left -= len(lines)
    groups = [group for group in groups if group.lines]
    total = sum(len(_lines(group, sizes, _plain)) for group in parts(part, _GROUP)) if left < 0 else 0
    return Table(
        str(part["task"].iloc[0]), str(part["metric"].iloc[0]), f"{_subject(part)}: {_quantity(part)}{_ways(part)}",
        [f"{size:,.0f}" for size in sizes], groups, _methods(part, "interval"), max(0, total - _MOST), first,
    )  # fmt: skip


def _excess(part: pd.DataFrame) -> Table:
    """How far above the topline, in percent of it, beside what the paper's own Table 3 says of LLaMA-2-7B."""
    sizes = _sizes(part)
    groups = [Group(_group_title(group, part), _excess_lines(group, sizes)) for group in parts(part, _GROUP)]
    notes = [
        "The interval is that of the paired difference. Published: the paper's Table 3, LLaMA-2-7B on PG-19, by the point; "
        "it is another model and another text.",
        *_methods(part, "difference_interval"),
    ]
    if len(groups) == 1:
        groups = [Group("", groups[0].lines)]
    caption = f"{_subject(part)}: perplexity above the topline, in percent of it{_ways(part)}"
    return Table("perplexity", "excess", caption, [f"{size:,.0f}" for size in sizes], groups, notes)


def _excess_lines(group: pd.DataFrame, sizes: list[float]) -> list[Line]:
    lines, paper = [], _ablation()
    for line, policy in zip(_lines(group, sizes, _percent, topline=False), _order(group), strict=True):
        lines.append(line)
        theirs = paper.get(policy, {})
        if any(size in theirs for size in sizes):
            entries = [Entry(shown(theirs[size], 1)) if size in theirs else Entry() for size in sizes]
            lines.append(Line(f"{line.name}, published", entries, "published"))
    return lines


def _ablation() -> dict[str, dict[float, float]]:
    """Policy -> size -> percent above the topline, of the paper's Table 3: at its largest size nothing is evicted."""
    rows = _published.read()
    rows = rows[(rows["experiment"] == _ABLATION) & rows["value"].notna()]
    full = float(rows.loc[rows["state_size"] == rows["state_size"].max(), "value"].iloc[0])
    found: dict[str, dict[float, float]] = {}
    for name, size, value in zip(rows["policy"], rows["state_size"], rows["value"], strict=True):
        found.setdefault(_published.own_name(name), {})[float(size)] = 100 * (value / full - 1)
    return found


def _lines(group: pd.DataFrame, sizes: list[float], entry: object, *, topline: bool = True) -> list[Line]:
    """The topline, then the policies, the best at the middle size first (the largest value where large is good)."""
    bounded = group[group["cache"].notna()].assign(name=_names(group[group["cache"].notna()]))
    lines = [_topline(group)] if topline else []
    for name in _order_names(bounded):
        at = bounded[bounded["name"] == name].drop_duplicates("cache").set_index("cache")
        lines.append(Line(name, [entry(at.loc[size]) if size in at.index else Entry() for size in sizes]))  # type: ignore[operator]
    return [line for line in lines if line.entries]


def _names(lines: pd.DataFrame) -> pd.Series:
    """What people call each line: the policy's label, and what tells it from others of its name."""
    told = labels(lines)
    plain = {str(policy): style.looks([str(policy)])[str(policy)].label for policy in lines["policy"]}
    return pd.Series(
        [plain[str(p)] + str(told[i]).removeprefix(str(p)) for i, p in zip(lines.index, lines["policy"], strict=True)],
        index=lines.index,
        dtype="str",
    )


def _order_names(bounded: pd.DataFrame) -> list[str]:
    if bounded.empty:
        return []
    table = bounded.pivot_table(index="name", columns="cache", values="value", aggfunc="first", sort=True)
    middle = table[table.columns[len(table.columns) // 2]]
    down = not is_loss(str(bounded["metric"].iloc[0]))
    return list(middle.sort_values(ascending=not down, kind="stable", na_position="last").index)


def _order(group: pd.DataFrame) -> list[str]:
    """The policies in the order of `_lines`."""
    bounded = group[group["cache"].notna()].assign(name=_names(group[group["cache"].notna()]))
    first = bounded.drop_duplicates("name").set_index("name")["policy"]
    return [str(first[name]) for name in _order_names(bounded)]


def _topline(group: pd.DataFrame) -> Line:
    full = group[group["cache"].isna() & (group["policy"] == "full")]
    name = style.LOOKS["full"].label
    if len(full):
        return Line(name, [_plain(full.iloc[0])], "topline")
    toplines = group["topline"].dropna()
    return Line(name, [Entry(shown(toplines.iloc[0]))] if len(toplines) else [], "topline")


def _plain(line: pd.Series) -> Entry:
    return Entry(shown(line["value"]), _interval(line["low"], line["high"]))


def _percent(line: pd.Series) -> Entry:
    if pd.isna(line["difference"]):
        return Entry()
    share = 100 / line["topline"]
    return Entry(
        shown(share * line["difference"], 1), _interval(share * line["difference_low"], share * line["difference_high"], 1)
    )


def _interval(low: float, high: float, digits: int | None = None) -> str:
    return "" if pd.isna(low) else f"{shown(low, digits)} to {shown(high, digits)}"


def _sizes(part: pd.DataFrame) -> list[float]:
    return sorted({float(size) for size in part["cache"].dropna()})


def parts(table: pd.DataFrame, keys: list[str]) -> list[pd.DataFrame]:
    """Missing values do not equal themselves: the keys are text."""
    if table.empty:
        return []
    texts = table[keys].astype("str").fillna("").agg("\0".join, axis=1)
    return [part for _, part in table.groupby(texts, sort=True)]


def _subject(part: pd.DataFrame) -> str:
    first = part.iloc[0]
    text = first["dataset"] if first["dataset"] != "none" else first["task"]
    return f"{first['model']} on {text}{', RANDOM WEIGHTS' if first['weights'] == 'random' else ''}"


def _quantity(part: pd.DataFrame) -> str:
    return quantity(str(part["metric"].iloc[0]))


def _ways(part: pd.DataFrame) -> str:
    """On how much, and how: behind a comma."""
    first = part.iloc[0]
    fewest, most = int(part["documents"].min()), int(part["documents"].max())
    number = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    told = [f"{number} document{'s' if most > 1 else ''}", f"{first['context']:,} tokens of context", str(first["dtype"])]
    told += [f"{first['template']} prompt"] if pd.notna(first["template"]) else []
    told += [said for name, said in _said(part) if part[name].nunique(dropna=False) == 1 and not _usual(name, first)]
    told += [str(first["variant"])] if pd.notna(first["variant"]) else []
    return f" ({', '.join(told)})"


def _usual(name: str, line: pd.Series) -> bool:
    """Whether it goes without saying: prompts alone have a prefill that matters."""
    return bool(line[name] in ("original", "scan") or (name == "prefill" and pd.isna(line["template"])))


def _said(lines: pd.DataFrame) -> list[tuple[str, str]]:
    """How the settings that part groups are said, of those the first line has."""
    first = lines.iloc[0]
    words = {
        "length": "{:,} tokens",
        "subtask": "{}",
        "prefill": "{} prefill",
        "positions": "{} positions",
        "engine": "engine {}",
    }
    return [(name, words[name].format(first[name])) for name in _GROUP if pd.notna(first[name])]


def _group_title(group: pd.DataFrame, part: pd.DataFrame) -> str:
    return ", ".join(said for name, said in _said(group) if part[name].nunique(dropna=False) > 1)


def _methods(part: pd.DataFrame, column: str) -> list[str]:
    names = sorted(set(part[column].dropna()))
    return [f"95% intervals over documents ({' and '.join(names)})."] if names else ["One document: no intervals."]


def rows(table: Table) -> Iterator[tuple[str, Line]]:
    """Every line with the title of its group."""
    for group in table.groups:
        for line in group.lines:
            yield group.title, line

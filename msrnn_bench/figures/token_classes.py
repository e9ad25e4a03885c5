"""How long tokens are kept, by class: Tables 2 and 5 of the paper (arXiv 2401.06104) as a ranked dot plot, longest first, with
intervals over documents; a panel per state size.

The axis is a multiple of the average token's steps (in steps above it): that average is a matter of size and length alone,
the same for every policy and model, so texts of other lengths can be compared at the same share k / T. The paper's values
stand beside ours there, and only for those classes that mean the same in both (`_tags.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _runs, _table5, style
from msrnn_bench.figures._runs import Block, Run
from msrnn_bench.figures.style import Look

TABLE = "tidy"

_LACKING = "no token classes to draw: run `msrnn-bench run task=retention cache=256`, then collect"
_SCHEMES = {"pos": "part of speech", "token": "token of Python's source", "char": "kind of characters"}
_FIRST = ("tova", "h2o", "window4", "random")  # drawn of many policies, beside those emphasised
_MOST = 4
_ROW, _LABELS, _ABOVE, _BELOW = 0.128, 1.15, 0.62, 0.42  # inches
_PAPER = Look("The paper: TOVA, LLaMA-2-7B, PG-19, at the same k / T", "#000000", "D", "")


def data(table: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows, and all it leaves out, a line per run, scheme and class.

    Columns: model dataset weights context policy cache cell scheme class tokens documents; `steps` (mean steps kept) with its
    interval `low`, `high` (made by `interval`); `average`, that of all tokens; `multiple` = steps / average; and where the paper
    has a tag of the same meaning and a size of the same share of its text: `published_tag`, `published_k`, `published_steps`,
    `published_average`, `published_multiple`."""
    return pd.concat([_values(run, block) for block in _read(table) for run in block.runs], ignore_index=True)


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    emphasise: str | Sequence[str] = "tova",
    scheme: str | None = None,
    policies: Sequence[str] | None = None,
) -> Figure:
    """Draw all rows of task=retention.

    scheme: pos, token or char, by default the first of them that a text has; policies: which to draw, by default four at most
    (`data` has all); emphasise: the policy or policies drawn large, the first that is there giving the order; note, caption as
    everywhere."""
    blocks = _read(table)
    values = _of_scheme(data(table), blocks, scheme)
    blocks = [block for block in blocks if len(_of(values, block))]
    thick = [emphasise] if isinstance(emphasise, str) else list(emphasise)
    names = _chosen(values, list(policies) if policies is not None else None, thick)
    shown = values[values["policy"].isin(names)]
    looks = style.looks(names)
    paper = bool(shown["published_multiple"].notna().any())
    text = _axes.wrapped(_sentences(blocks, values, shown), note) if caption else []
    with style.context():
        handles = [Line2D([], [], **_axes.line_style(looks[name], name in thick) | {"linestyle": ""}) for name in names]
        handles += [Line2D([], [], **_hollow(), label=_PAPER.label)] if paper else []
        figure, rows = _canvas([_classes(_of(shown, block), thick) for block in blocks], blocks, len(text), len(handles))
        limits = _limits(shown)
        for block, (order, axes) in zip(blocks, rows, strict=True):
            part = _of(shown, block)
            for number, (size, ax) in enumerate(zip(block.sizes, axes, strict=True)):
                _draw(ax, part[part["cache"] == size], order, looks, set(thick))
                _frame(ax, part[part["cache"] == size], order, limits, size, named=number == 0)
            title = f"{block.title}, RANDOM WEIGHTS" if block.random else block.title
            place = axes[0].get_position()
            figure.text(place.x0, place.y1 + 0.42 / figure.get_figheight(), title, fontsize=style.TITLE, va="bottom",
                        color=style.ALARM if block.random else "black")  # fmt: skip
        _axes.surround(figure, handles, text, beside=False)
    return figure


def _read(table: pd.DataFrame) -> list[Block]:
    """The blocks of all cells that have classes, their rows those by class and those by layer."""
    if not {"subtask", "cell"} <= set(table.columns):
        return _runs.read(table, "lifetime", _LACKING)  # which says what it lacks
    subtasks = table["subtask"].fillna("").astype(str)
    classes = subtasks.str.startswith("class:")
    there = table["cell"].isin(set(table.loc[classes, "cell"]))
    return _runs.read(table[there & (classes | subtasks.str.startswith("layer:"))], "lifetime", _LACKING)


def _values(run: Run, block: Block) -> pd.DataFrame:
    """The lines of one run, as `data` says."""
    layers = max(run.rows.loc[run.rows["subtask"].str.startswith("layer:"), "subtask"].nunique(), 1)
    parts = run.rows["subtask"].str.extract(r"^class:([^/]*)/(.*)$", flags=re.S)
    classes = run.rows.assign(scheme=parts[0], name=parts[1]).dropna(subset=["scheme"])
    settings = {name: block.settings[name] for name in ("model", "dataset", "weights")}
    size = _table5.same_share(run.cache, block.context)
    frames = []
    for scheme, rows in classes.groupby("scheme"):
        points = _runs.values(rows, "name", "lifetime")
        average = float(rows["total"].sum() / rows["count"].sum())
        frame = pd.DataFrame(
            {
                **settings, "context": block.context, "policy": run.name, "cache": run.cache, "cell": run.cell, "scheme": scheme,
                "class": points["name"], "tokens": points["count"] // layers, "documents": points["documents"],
                "steps": points["value"], "low": points["low"], "high": points["high"], "interval": points["interval"],
                "average": average, "multiple": points["value"] / average,
            }
        )  # fmt: skip
        frames.append(pd.concat([frame, _table5.beside(points["name"], size if scheme == "pos" else None)], axis=1))
    return pd.concat(frames, ignore_index=True)


def _of_scheme(values: pd.DataFrame, blocks: list[Block], wanted: str | None) -> pd.DataFrame:
    """One scheme a block: the one wanted, or its first of `_SCHEMES`."""
    there = sorted(set(values["scheme"]))
    if wanted is not None:
        if wanted not in there:
            raise UsageError(f"scheme={wanted} is none of those measured: {', '.join(there)}")
        return values[values["scheme"] == wanted]
    parts = []
    for block in blocks:
        part = _of(values, block)
        parts.append(part[part["scheme"] == next(name for name in (*_SCHEMES, *there) if name in set(part["scheme"]))])
    return pd.concat(parts)


def _of(values: pd.DataFrame, block: Block) -> pd.DataFrame:
    return values[values["cell"].isin([run.cell for run in block.runs])]


def _chosen(values: pd.DataFrame, wanted: list[str] | None, thick: list[str]) -> list[str]:
    there = list(dict.fromkeys(values["policy"]))
    if wanted is not None:
        if unknown := sorted(set(wanted) - set(there)):
            raise UsageError(f"policies has {unknown[0]}, which is none of those measured: {', '.join(there)}")
        return wanted
    if len(there) <= _MOST:
        return there
    first = [name for name in dict.fromkeys((*thick, *_FIRST, *there)) if name in there][:_MOST]
    return [name for name in there if name in first]


def _classes(values: pd.DataFrame, thick: list[str]) -> list[str]:
    """The classes of a block, those that the first emphasised policy keeps longest first: by the mean multiple over sizes."""
    leading = next((name for name in thick if (values["policy"] == name).any()), values["policy"].iloc[0])
    logs = np.log(values["multiple"]).groupby([values["policy"] == leading, values["class"]]).mean()
    led = logs[True] if True in logs else logs.iloc[:0]
    rest = [name for name in sorted(set(values["class"])) if name not in led.index]
    return [*led.sort_index().sort_values(ascending=False, kind="stable").index, *rest]


def _canvas(
    orders: list[list[str]], blocks: list[Block], lines: int, entries: int
) -> tuple[Figure, list[tuple[list[str], list[Axes]]]]:
    """A row of panels per block, as high as it has classes."""
    foot = 0.12 + lines * 0.115 + math.ceil(entries / 5) * 0.135
    height = foot + sum(len(order) * _ROW + _ABOVE + _BELOW for order in orders)
    figure = Figure(figsize=(style.TEXT_WIDTH, height))
    rows, top = [], height
    for order, block in zip(orders, blocks, strict=True):
        many, tall = len(block.sizes), len(order) * _ROW
        width = min((style.TEXT_WIDTH - _LABELS - 0.1 - 0.16 * (many - 1)) / many, 4.2)
        axes = []
        for number in range(many):
            left, bottom = _LABELS + number * (width + 0.16), top - _ABOVE - tall
            axes.append(figure.add_axes((left / style.TEXT_WIDTH, bottom / height, width / style.TEXT_WIDTH, tall / height)))
        rows.append((order, axes))
        top -= tall + _ABOVE + _BELOW
    return figure, rows


def _limits(shown: pd.DataFrame) -> tuple[float, float]:
    """Room for every value, and for the intervals up to twice as far out: an interval over two documents may reach anywhere."""
    values = pd.concat([shown["multiple"], shown["published_multiple"]]).dropna()
    low, high = float(values.min()), float(values.max())
    ends = pd.concat([shown["low"], shown["high"]]) / pd.concat([shown["average"]] * 2)
    inside = ends[(ends > low / 2) & (ends < high * 2)]
    low, high = min([low, *inside]), max([high, *inside])
    return min(low, 0.5) / 1.08, max(high, 2.0) * 1.08


def _hollow() -> dict[str, Any]:
    return {"color": _PAPER.color, "marker": _PAPER.marker, "linestyle": "", "markersize": 4.2, "markerfacecolor": "none",
            "markeredgewidth": 0.8}  # fmt: skip


def _draw(ax: Axes, values: pd.DataFrame, order: list[str], looks: dict[str, Look], thick: set[str]) -> None:
    """Each policy a little beside the others of the row, in the legend's order."""
    names = [name for name in looks if (values["policy"] == name).any()]
    for number, name in enumerate(names):
        points = values[values["policy"] == name]
        beside = 0.0 if len(names) == 1 else 0.5 * (number / (len(names) - 1) - 0.5)
        at = np.array([order.index(one) for one in points["class"]]) + beside
        ax.hlines(at, points["low"].clip(lower=1e-9) / points["average"], points["high"] / points["average"],
                  color=looks[name].color, linewidth=0.8, zorder=2.5, label="_interval")  # fmt: skip
        marks = {**_axes.line_style(looks[name], name in thick), "linestyle": "", "zorder": 4 if name in thick else 3}
        ax.plot(points["multiple"], at, **{**marks, "markersize": 4.6 if name in thick else 3.4})
    paper = values.dropna(subset=["published_multiple"]).drop_duplicates("class")
    if len(paper):
        ax.plot(paper["published_multiple"], [order.index(one) for one in paper["class"]], **_hollow(), zorder=5, label="_paper")


def _frame(ax: Axes, values: pd.DataFrame, order: list[str], limits: tuple[float, float], size: float, *, named: bool) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xlim(*limits)
    ticks = [2.0**power for power in range(math.ceil(math.log2(limits[0])), math.floor(math.log2(limits[1])) + 1)]
    ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Multiple of the average")
    ax.axvline(1, color=style.MUTED, linewidth=0.8, linestyle=":", zorder=1)
    average = float(values["average"].iloc[0])
    above = ax.secondary_xaxis("top")
    above.set_ticks(ticks, labels=[f"{tick * average:,.0f}" for tick in ticks])
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xlabel(f"k = {size:,.0f}: mean steps kept", labelpad=3)
    ax.set_ylim(len(order) - 0.4, -0.6)
    counts = values.groupby("class")["tokens"].max()
    labels = [f"{name}  ({counts[name]:,})" if name in counts else name for name in order]
    ax.set_yticks(range(len(order)), labels=labels if named else [], fontsize=style.SMALL + 0.4)
    ax.tick_params(axis="y", length=0)


def _sentences(blocks: list[Block], values: pd.DataFrame, shown: pd.DataFrame) -> list[str]:
    """What the reader must know and the axes do not say."""
    left = [name for name in dict.fromkeys(values["policy"]) if name not in set(shown["policy"])]
    paper = shown.dropna(subset=["published_multiple"])
    sizes = ", ".join(f"{int(size):,}" for size in sorted(set(paper["published_k"])))
    beside = (
        f"Diamonds: Table 5 of the paper, k = {sizes} of {_table5.TOKENS:,} tokens, at the same share k / T and only where the "
        "tag means what ours does (quote_close is its ”, newline its \\n); another model and text."
    )
    by = " or ".join(_SCHEMES.get(scheme, scheme) for scheme in dict.fromkeys(shown["scheme"]))
    return [
        f"Steps at which a token's state was attended to, mean over layers, by {by}, the longest kept first; in brackets how "
        "many tokens.",
        _runs.measured(blocks),
        *_runs.banded([shown], "Lines"),
        *([beside] if len(paper) else []),
        *([f"Not drawn: {', '.join(left)}."] if left else []),
    ]

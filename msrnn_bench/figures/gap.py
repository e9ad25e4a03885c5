"""Excess over the full model against multi-state size, in percent of its perplexity, on two logarithmic axes.

Beyond the paper: in its Figure 3 all lines but two lie on each other from 256 states up; here each is seen down to a tenth of
a percent. The excess is paired by document and its intervals are made on the log scale, where losses add up. A band is the
paper's bound of 0.4 perplexity, in percent of the panel's own topline; a dotted line is what that is on the paper's
topline of 7.16. What is at or below zero has no place on such an axis: it is marked below it and named in the caption. At
k = T nothing is evicted and what differs is rounding: that is left out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _panels, _published, _scale, style
from msrnn_bench.figures._panels import Panel
from msrnn_bench.figures.style import Look
from msrnn_bench.results import intervals
from msrnn_bench.results.cells import SETTINGS

TABLE = "tidy"
BOUND = 0.4  # perplexity: the paper's, Section 6.1
_TOPLINE = 7.16  # the paper's full model
_TASKS = ("perplexity", "retention")  # retention reads the same chunks in the same way and keeps the loss
_TICKS = [n * 10.0**e for e in range(-4, 7) for n in (1, 3)]
_SHADE = "#000000", 0.07  # colour, opacity


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    emphasise: str | Sequence[str] = "tova",
    paper: pd.DataFrame | None = None,
) -> Figure:
    """Draw the rows of all cells (tidy.csv).

    note: a sentence for the caption (what kind of model this is); caption=False leaves the caption out; emphasise: the policy
    or policies drawn thick; paper: the paper's numbers (as `_published.read` gives them), dotted in panels of its T."""
    table = data(table)
    panels = _panels.read(table[table["excess"].notna()])
    overlays = [_overlay(paper, panel) for panel in panels]
    order = _scale.order(panels, operator.sub)
    looks, thick = style.looks(order), {emphasise} if isinstance(emphasise, str) else set(emphasise)
    text = _caption(panels, table, looks, paper is not None, any(overlays), note) if caption else []
    limits = _limits(panels, overlays)
    with style.context():
        handles = _handles(panels, order, looks, thick, any(overlays))
        columns = _axes.columns(len(panels))
        figure, axes, width = _axes.canvas(len(panels), columns, len(handles), len(text))
        for index, (panel, ax) in enumerate(zip(panels, axes, strict=True)):
            _draw(ax, panel, overlays[index], looks, thick, limits, width)
            ax.set_ylabel("Excess over the topline (%)" if index % columns == 0 else "")
        _axes.surround(figure, handles, text, beside=len(panels) == 1)
    return figure


def data(table: pd.DataFrame) -> pd.DataFrame:
    """A line per cell below T in the columns that panels are made of; `value`, `low` and `high` are percent, `topline` is the
    full model's perplexity on the same documents; `excess` is `value`, missing where there is no topline. Refuses
    another table than that of all rows."""
    lacking = sorted({*SETTINGS, "variant", "document", "subtask", "metric", "total", "count", "status"} - set(table.columns))
    if lacking:
        raise UsageError(f"not a table of all rows, it lacks {', '.join(lacking)}: give the tidy.csv that collect writes")
    rows = table[table["task"].isin(_TASKS) & table["metric"].eq("nll").fillna(False) & table["status"].eq("ok")]
    cells = {str(cell): part for cell, part in rows.groupby("cell")}
    heads = {cell: part.iloc[0] for cell, part in cells.items()}
    full = [cell for cell, head in heads.items() if head["policy"] == "full"]
    measured = {_key(head, "positions", "policy", "cache") for head in heads.values() if head["task"] == "perplexity"}
    lines = []
    for cell, head in heads.items():
        again = head["task"] != "perplexity" and _key(head, "positions", "policy", "cache") in measured
        if cell in full or again or head["cache"] >= head["context"]:
            continue
        toplines = [cells[other] for other in full if _key(heads[other]) == _key(head)]
        lines.append({**head[[*SETTINGS, "variant"]], "task": "perplexity", "metric": "nll", **_excess(cells[cell], toplines)})
    if not any(pd.notna(line["excess"]) for line in lines):
        raise UsageError("no excess over a full model to draw: run `msrnn-bench run -m policy=full,tova cache=512`, then collect")
    absent = dict.fromkeys(["subtask", "length", "difference", "difference_low", "difference_high"])
    return pd.DataFrame([{**absent, **line, "status": "ok"} for line in lines])


def _key(head: pd.Series, *more: str) -> tuple[Any, ...]:
    """What a topline must agree in."""
    names = [name for name in _panels.SHARED if name not in ("task", "positions")]  # the full model has no gaps to close
    return tuple(None if pd.isna(head[name]) else head[name] for name in (*names, *more))


def _excess(ours: pd.DataFrame, toplines: list[pd.DataFrame]) -> dict[str, Any]:
    """Percent, over the documents of which the full model scored as many tokens; of several full cells the one with most."""
    own = ours.groupby("document")[["total", "count"]].sum()
    pairs = []
    for topline in toplines:
        other = topline.groupby("document")[["total", "count"]].sum().reindex(own.index)
        alike = own["count"] == other["count"]
        pairs.append((own[alike].to_numpy("float64"), other[alike].to_numpy("float64")))
    a, b = max(pairs, key=lambda pair: float(pair[0][:, 1].sum()), default=(np.empty((0, 2)), np.empty((0, 2))))
    line: dict[str, Any] = dict.fromkeys(["low", "high", "interval", "topline", "excess", "value"])
    printed = set(own.index) == {_published.DOCUMENT}
    line |= {"documents": _published.READ["perplexity"] if printed else len(a), "count": int(a[:, 1].sum())}
    if not len(a):
        return line
    (mine, tokens), (theirs, _) = a.sum(0), b.sum(0)
    line["value"] = line["excess"] = 100 * math.expm1((mine - theirs) / tokens)
    line["topline"] = math.exp(theirs / tokens)
    if found := intervals.excess(a, b):
        line |= {"low": 100 * found.low, "high": 100 * found.high, "interval": found.method}
    return line


def _overlay(paper: pd.DataFrame | None, panel: Panel) -> dict[str, pd.DataFrame]:
    """The paper's excess by policy: a percentage can stand beside another model's, where T is the same."""
    if paper is None or int(str(panel.settings["context"])) != _published.CONTEXT:
        return {}
    table = data(_published.rows(paper))
    return {str(name): points.sort_values("cache") for name, points in table.groupby("policy") if name in panel.lines}


def _limits(panels: list[Panel], overlays: list[dict[str, pd.DataFrame]]) -> tuple[float, float]:
    """One pair for all panels, from below the least positive value to above the largest."""
    lines = [points for panel in panels for points in panel.lines.values()] + [p for one in overlays for p in one.values()]
    values = np.concatenate([points["value"].to_numpy("float64") for points in lines])
    positive = values[values > 0]
    if not positive.size:
        return 0.1, 10.0
    return min(float(positive.min()) / 1.5, 3.0), max(float(positive.max()) * 1.5, 10.0)


def _draw(
    ax: Axes, panel: Panel, overlay: dict[str, pd.DataFrame], looks: dict[str, Look], thick: set[str],
    limits: tuple[float, float], width: float,
) -> None:  # fmt: skip
    bound = _bound(panel)
    ax.axhspan(limits[0], min(bound, limits[1]), zorder=0.4, color=_SHADE[0], alpha=_SHADE[1], linewidth=0)
    ax.axhline(100 * BOUND / _TOPLINE, color=style.MUTED, linewidth=0.7, linestyle=(0, (1, 2)), zorder=0.6)
    clipped = {name: points.assign(bottom=points["bottom"].clip(lower=limits[0])) for name, points in panel.lines.items()}
    _axes.draw(ax, replace(panel, lines=clipped), looks, thick)
    for name, points in overlay.items():
        ax.plot(points["cache"], points["value"], ":", color=looks[name].color, linewidth=1.0, label="_paper")
    _axes.frame(ax, panel, limits, 0, width)
    ax.set_yscale("log", nonpositive="clip")
    ax.set_ylim(*limits)
    ticks = [tick for tick in _TICKS if limits[0] <= tick <= limits[1]]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.yaxis.set_minor_locator(NullLocator())
    where: dict[str, Any] = {"fontsize": style.SMALL, "color": style.MUTED, "va": "top", "ha": "left"}
    ax.text(0.01, bound / 1.04, f"0.4 perplexity = {bound:.2g}%", transform=ax.get_yaxis_transform(), **where)
    for name, points in panel.lines.items():
        for size in points.loc[points["value"] <= 0, "cache"]:
            ax.plot(size, limits[0], marker="v", color=looks[name].color, markersize=4, clip_on=False, zorder=6, label="_zero")


def _bound(panel: Panel) -> float:
    """The paper's 0.4 in percent of this panel's topline."""
    toplines = pd.concat([points["topline"] for points in panel.lines.values()])
    return 100 * BOUND / float(toplines.median())


def _handles(panels: list[Panel], order: list[str], looks: dict[str, Look], thick: set[str], paper: bool) -> list[Any]:
    handles: list[Any] = [*_axes.handles(panels, order, looks, thick, paper=False)]
    if paper:
        handles.append(Line2D([], [], color=style.MUTED, linestyle=":", linewidth=1, label="The paper's LLaMA-2-7B"))
    handles.append(Patch(color=_SHADE[0], alpha=_SHADE[1], linewidth=0, label="Within 0.4 perplexity"))
    return handles


def _caption(
    panels: list[Panel], table: pd.DataFrame, looks: dict[str, Look], asked: bool, overlaid: bool, note: str | None
) -> list[str]:
    """What the reader must know and the axes do not say."""
    shares = ", ".join(f"{_bound(p):.2g}% of {100 * BOUND / _bound(p):.2f}" for p in panels)
    sentences = [
        *_axes.measured(panels, "per chunk"), *_axes.bands(panels, "excess"),
        *(["A band that reaches the lower edge has zero in it."] if _reaching(panels) else []),
        f"Shaded: the paper's bound of 0.4 perplexity, here {shares}; dotted: {100 * BOUND / _TOPLINE:.1f}%, what it is of the "
        f"paper's {_TOPLINE}.", "At k = T nothing is evicted: left out.",
        *_below(panels, looks),
    ]  # fmt: skip
    alone = int(table["excess"].isna().sum())
    if alone:
        sentences.append(f"{alone} cell{'s have' if alone > 1 else ' has'} no topline on the same tokens and is not drawn.")
    if asked and not overlaid:
        sentences.append(f"The paper's numbers are of T = {_published.CONTEXT:,} and are not shown beside another.")
    return _axes.wrapped(sentences, note)


def _reaching(panels: list[Panel]) -> bool:
    """Whether an interval of a positive value has no lower end on the axis."""
    lines = [points for panel in panels for points in panel.lines.values()]
    return any(bool((points["bottom"] <= 0).any()) for points in lines)


def _below(panels: list[Panel], looks: dict[str, Look]) -> list[str]:
    """How many values have no place on the axis, and which."""
    named, count, total = [], 0, 0
    for panel in panels:
        own = [
            f"{looks[name].label} at {size:,.0f} ({value:.2g}%)"
            for name, points in panel.lines.items()
            for size, value in zip(points["cache"], points["value"], strict=True) if value <= 0
        ]  # fmt: skip
        total += sum(len(points) for points in panel.lines.values())
        count += len(own)
        named += [f"{panel.title}: {', '.join(own)}"] if own and len(panels) > 1 else own
    if not count:
        return []
    are = "value is" if count == 1 else "values are"
    return [f"▼: {count} of {total} {are} at or below zero and not on a logarithmic axis ({'; '.join(named)})."]

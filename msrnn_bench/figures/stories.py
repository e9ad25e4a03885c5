"""Sampled stories against multi-state size: how long, how varied, and how likely the full model finds what was written.

A row of three panels per model and kind of prompt. Bars are intervals over stories, not of the difference to the full
model (a line with a band), which is in the summary: for these panels are about each policy's own stories. The share of
distinct tokens falls with a story's length, so it compares policies only where they write alike long.
"""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _panels, style
from msrnn_bench.figures._panels import Panel
from msrnn_bench.figures.style import Look

METRICS = {
    "length": ("How long", "Tokens per story"),
    "distinct": ("How varied", "Distinct tokens / tokens"),
    "nll": ("As the full model reads it", "Perplexity"),
}
_ROW, _LEGEND_LINE, _LEGEND_COLUMNS, _CAPTION_LINE = 2.15, 0.14, 5, 0.115  # inches, but the columns
_APART = 0.05  # octaves between the bars of two policies at one size, if the sizes span one octave; more if more


def plot(table: pd.DataFrame, *, note: str | None = None, caption: bool = True, emphasise: str = "tova") -> Figure:
    """Draw a summary table.

    note: a sentence for the caption (what kind of model this is); caption=False leaves the caption out; emphasise: the
    policy drawn thick."""
    rows = _read(table)
    panels = [panel for row in rows for panel in row.values()]
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    looks, thick = style.looks([*names, "full"]), {emphasise}
    text = _caption(table, panels, note) if caption else []
    with style.context():
        handles = _handles(names, looks, thick, any(panel.topline is not None for panel in panels))
        figure, places = _canvas(len(rows), len(handles), len(text))
        for place, row in zip(places, rows, strict=True):
            _head(place, next(iter(row.values())))
            for ax, (metric, panel) in zip(place.subplots(1, len(row), squeeze=False)[0], row.items(), strict=True):
                _draw(ax, panel, names, looks, thick)
                ax.set_title(METRICS[metric][0], fontsize=style.TICK, color=style.MUTED)
                ax.set_ylabel(METRICS[metric][1])
        _axes.surround(figure, handles, text, beside=False)
    return figure


def _read(table: pd.DataFrame) -> list[dict[str, Panel]]:
    """Per row of the figure its panels by metric."""
    if "task" not in table:
        raise UsageError("not a summary table, it lacks task: give what `msrnn-bench collect` writes")
    told = table[table["task"].eq("stories").fillna(False).astype(bool)]
    if not (told["metric"].eq("length") & told["policy"].ne("full") & told["value"].notna()).any():
        raise UsageError("no policy's stories to draw: run `msrnn-bench run task=stories policy=tova cache=256`, then collect")
    rows: dict[str, dict[str, Panel]] = {}
    for metric in METRICS:
        for panel in _panels.read(told, metric):
            rows.setdefault(panel.title, {})[metric] = panel
    return list(rows.values())


def _canvas(rows: int, entries: int, lines: int) -> tuple[Figure, list[SubFigure]]:
    """A figure as wide as a page's text, with room for legend and caption below."""
    below = math.ceil(entries / _LEGEND_COLUMNS) * _LEGEND_LINE + lines * _CAPTION_LINE + 0.14
    height = rows * _ROW + below
    engine = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - below / height), w_pad=0.04, h_pad=0.03)
    figure = Figure(figsize=(style.TEXT_WIDTH, height), layout=engine)
    return figure, list(figure.subfigures(rows, 1, squeeze=False)[:, 0])


def _handles(names: list[str], looks: dict[str, Look], thick: set[str], topline: bool) -> list[Line2D]:
    shown = [*names, *(["full"] if topline else [])]
    return [Line2D([], [], **_axes.line_style(looks[name], name in thick)) for name in shown]


def _head(place: SubFigure, panel: Panel) -> None:
    title = panel.title.removesuffix(" on stories")
    color = style.ALARM if panel.random else "black"
    place.suptitle(f"{title}: RANDOM WEIGHTS" if panel.random else title, fontsize=style.TITLE, color=color)


def _draw(ax: Axes, panel: Panel, names: list[str], looks: dict[str, Look], thick: set[str]) -> None:
    """The policies of one size stand beside each other, or their bars would hide each other."""
    sizes, present = panel.sizes, [name for name in names if name in panel.lines]
    step = _APART * max(1.0, math.log2(sizes[-1] / sizes[0]))
    for place, name in enumerate(present):
        points, look = panel.lines[name], _axes.line_style(looks[name], name in thick)
        x = points["cache"] * 2 ** (step * (place - (len(present) - 1) / 2))
        bars = [points["value"] - points["low"], points["high"] - points["value"]]
        ax.errorbar(x, points["value"], yerr=bars, elinewidth=0.9, zorder=4 if name in thick else 3, **look)
    if panel.topline is not None:
        full = panel.topline
        ax.axhline(full["value"], zorder=2.5, **_axes.line_style(looks["full"], thick=False))
        if pd.notna(full["low"]):
            ax.axhspan(full["low"], full["high"], color="black", alpha=0.06, linewidth=0, zorder=0.5)
    margin = 2 ** (0.4 + step * len(present) / 2)
    ax.set_xscale("log", base=2)
    ax.set_xlim(sizes[0] / margin, sizes[-1] * margin)
    ax.set_xticks(sizes, labels=[f"{size:.0f}" for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Multi-state size")


def _caption(table: pd.DataFrame, panels: list[Panel], note: str | None) -> list[str]:
    """What the reader must know and the axes do not say."""
    fewest, most = min(panel.documents[0] for panel in panels), max(panel.documents[1] for panel in panels)
    number = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    shown: dict[str, Any] = {
        name: " / ".join(dict.fromkeys(panel.shown(name) for panel in panels)) for name in ("template", "dtype", "weights")
    }
    sentences = [f"{number} sampled stories per point, {shown['template']} prompt, {shown['dtype']}, {shown['weights']} weights."]
    if any(points["low"].notna().any() for panel in panels for points in panel.lines.values()):
        sentences.append(f"Bars and grey bands: 95% intervals over stories{_axes.by_method(panels, paired=False)}.")
    sentences.append("The share of distinct tokens falls with length.")
    failed = int((table["task"].eq("stories") & table["status"].eq("failed")).sum())
    return _axes.wrapped([*sentences, *_axes.failures(failed)], note)

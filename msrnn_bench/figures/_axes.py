"""How panels of lines against the state size are drawn: canvas, lines and bands, axes, legend, caption.

Draws what it is given; knows neither tables nor what was measured.
"""

import math
import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from msrnn_bench.figures import style
from msrnn_bench.figures._panels import Panel
from msrnn_bench.figures._scale import Limits
from msrnn_bench.figures.style import Look

ROW = 8.0  # points: a row of marks above the axes
_TICKS = 16  # so many sizes have a tick each; of more those that are named
_LEGEND_LINE, _LEGEND_WIDTH, _LEGEND_COLUMNS, _CAPTION_LINE = 0.135, 1.7, 5, 0.115  # inches, but the columns


def canvas(
    panels: int, columns: int, entries: int, lines: int, legend_columns: int = _LEGEND_COLUMNS
) -> tuple[Figure, list[Axes], float]:
    """A figure as wide as a page's text, with room for the legend (right of one panel, below several) and the caption.

    Returns the axes' width in inches too, about: what is written along them must not overlap."""
    rows = math.ceil(panels / columns)
    legend = 0.0 if panels == 1 else math.ceil(entries / legend_columns) * _LEGEND_LINE + 0.1
    below = legend + lines * _CAPTION_LINE + 0.06
    height = rows * (3.5 if panels == 1 else 2.7) + below
    across = style.TEXT_WIDTH - (_LEGEND_WIDTH if panels == 1 else 0)
    rect = (0, below / height, across / style.TEXT_WIDTH, 1 - below / height)
    engine = ConstrainedLayoutEngine(rect=rect, w_pad=0.03, h_pad=0.03)
    figure = Figure(figsize=(style.TEXT_WIDTH, height), layout=engine)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels], across / columns - 0.5


def columns(panels: int) -> int:
    """Three panels a row, or two where that leaves none alone."""
    return 2 if panels == 4 else min(panels, 3)


def line_style(look: Look, thick: bool) -> dict[str, Any]:
    filled = look.marker not in "+x"
    return {
        "color": look.color,
        "marker": look.marker,
        "linestyle": look.dash,
        "linewidth": 2.2 if thick else 1.0,
        "markersize": 5.5 if thick else 4.4,
        "markeredgewidth": 0.4 if filled else 1.0,
        "markeredgecolor": "white" if filled else look.color,
        "label": look.label,
    }


def draw(ax: Axes, panel: Panel, looks: dict[str, Look], thick: set[str]) -> None:
    for name, points in panel.lines.items():
        style_, raised = line_style(looks[name], name in thick), 2 if name in thick else 0
        ax.plot(points["cache"], points["value"], zorder=3 + raised, **style_)
        if points["bottom"].notna().any():
            band: dict[str, Any] = {"color": looks[name].color, "alpha": 0.12, "linewidth": 0}
            ax.fill_between(points["cache"], points["bottom"], points["top"], **band)
            if len(points) == 1:  # a band without width
                ax.vlines(points["cache"], points["bottom"], points["top"], color=looks[name].color, linewidth=0.8)
    if panel.topline is not None:
        topline = panel.topline
        ax.axhline(topline["value"], zorder=2.5, **line_style(looks["full"], thick=False))
        if pd.notna(topline["low"]):
            ax.axhspan(topline["low"], topline["high"], color="black", alpha=0.06, linewidth=0, zorder=0.5)


def frame(ax: Axes, panel: Panel, limits: Limits, rows: int, width: float) -> None:
    """Scales, ticks at the sizes present, and the title above the rows of marks."""
    sizes = panel.sizes
    octaves = math.log2(sizes[-1] / sizes[0])
    margin = 2 ** (0.045 * octaves if octaves else 1.0)
    ax.set_xscale("log", base=2)
    ax.set_xlim(sizes[0] / margin, sizes[-1] * margin)
    named = apart({size: f"{size:.0f}" for size in sizes}, style.TICK, ax, width)
    ticks = sizes if len(sizes) <= _TICKS else sorted(named)
    ax.set_xticks(ticks, labels=[named.get(size, "") for size in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Multi-state size")
    ax.set_ylim(*limits)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    title = broken(panel.title, width + 0.45)
    ax.set_title(f"{title}\nRANDOM WEIGHTS" if panel.random else title, pad=5 + rows * ROW)
    if panel.random:
        ax.title.set_color(style.ALARM)


def broken(title: str, width: float) -> str:
    """A title too wide for its panel in two lines, as even as its two natural breaks allow; in more if need be."""
    if style.inches(title, style.TITLE) < width:
        return title
    halves = [title.replace(mark, "\n" + mark.lstrip(), 1).split("\n") for mark in (" on ", " (") if mark in title]
    lines = min(halves, key=lambda lines: max(map(len, lines)), default=[title])
    letters = int(width / style.inches("x", style.TITLE))
    return "\n".join(part for line in lines for part in textwrap.wrap(line, letters))


def apart(texts: dict[float, str], points: float, ax: Axes, width: float) -> dict[float, str]:
    """The texts that fit beside each other along the axis at their sizes; the larger size goes first."""
    left, right = ax.get_xlim()
    kept: dict[float, str] = {}
    edge = math.inf
    for size, text in sorted(texts.items(), reverse=True):
        at, half = math.log2(size / left) / math.log2(right / left) * width, style.inches(text, points) / 2
        if at + half <= edge:
            kept[size], edge = text, at - half
    return kept


def handles(panels: list[Panel], order: list[str], looks: dict[str, Look], thick: set[str], paper: bool) -> list[Line2D]:
    handles = [Line2D([], [], **line_style(looks[name], name in thick)) for name in order]
    if any(panel.topline is not None for panel in panels):
        handles.append(Line2D([], [], **line_style(looks["full"], thick=False)))
    if paper:
        handles.append(Line2D([], [], color=style.MUTED, linestyle=":", linewidth=1, label="The paper's numbers"))
    return handles


def surround(figure: Figure, handles: list[Line2D], text: list[str], beside: bool, legend_columns: int = _LEGEND_COLUMNS) -> None:
    """One legend for all panels, and the caption at the bottom."""
    height = figure.get_figheight()
    below = (len(text) * _CAPTION_LINE + 0.06) / height
    if beside:
        figure.legend(handles=handles, loc="center right", bbox_to_anchor=(1, 0.5 + below / 2), labelspacing=0.55)
    else:
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, below), ncols=legend_columns,
                      columnspacing=1.4, labelspacing=0.35, borderaxespad=0, borderpad=0)  # fmt: skip
    add_caption(figure, text)


def add_caption(figure: Figure, text: list[str]) -> None:
    """The lines of a caption at the bottom."""
    if text:
        figure.text(
            0.008,
            0.04 / figure.get_figheight(),
            "\n".join(text),
            fontsize=style.SMALL,
            color=style.MUTED,
            va="bottom",
            linespacing=1.25,
        )


def measured(panels: list[Panel], unit: str) -> list[str]:
    """What was measured, as sentences of the caption; `unit` is what `context` counts the tokens of."""
    settings = {name: " / ".join(dict.fromkeys(panel.shown(name) for panel in panels)) for name in panels[0].settings}
    fewest, most = min(panel.documents[0] for panel in panels), max(panel.documents[1] for panel in panels)
    number = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    documents = f"{number} document{'s' * (most > 1)}"
    sentences = [f"{settings['context']} tokens {unit}, {documents}, {settings['dtype']}, {settings['weights']} weights."]
    if any(len(set(panel.documents)) > 1 for panel in panels):
        sentences.append("Not all lines are over the same documents.")
    return sentences


def bands(panels: list[Panel], quantity: str) -> list[str]:
    """What the bands are intervals of."""
    if not any(panel.banded for panel in panels):
        return []
    paired = all(panel.paired for panel in panels)
    kind = "of the difference to the topline (horizontal band: of the topline itself)" if paired else f"of the {quantity}"
    return [f"Bands: 95% intervals over documents{by_method(panels, paired)}, {kind}."]


def by_method(panels: list[Panel], paired: bool) -> str:
    """How the intervals were made, in brackets; nothing where a table of an earlier version does not say."""
    methods = sorted(set().union(*(panel.methods(paired) for panel in panels)))
    return f" ({' and '.join(methods)})" if methods else ""


def unpublished(paper: pd.DataFrame | None, overlays: list[dict[str, pd.DataFrame]], what: str) -> list[str]:
    """What a reader who asked for the paper's numbers must know where a figure has none."""
    if paper is None or any(overlays):
        return []
    return [f"The paper prints no {what} of {'this model and text' if len(overlays) == 1 else 'these models and texts'}."]


def failures(failed: int) -> list[str]:
    if not failed:
        return []
    return [f"{failed} cell{'s' * (failed > 1)} failed and {'are' if failed > 1 else 'is'} missing."]


def wrapped(sentences: list[str], note: str | None) -> list[str]:
    """The lines of a caption."""
    return textwrap.wrap(" ".join([*sentences, *([note] if note else [])]), 158)

"""Perplexity against multi-state size, after Figure 3 of the paper (arXiv 2401.06104): one panel per model and dataset.

Departures from it: intervals; and what runs off the top is marked with its number. The coloured bands are intervals of
the *paired difference* to the topline: documents differ far more from each other than a policy differs from the full
model, and intervals of the perplexity itself (the topline's grey band) would bury every comparison.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from msrnn_bench.figures import _panels, _scale, style
from msrnn_bench.figures._panels import Panel
from msrnn_bench.figures.style import Look

_ROW = 8.0  # points: a row of marks above the axes
_LEGEND_LINE, _LEGEND_WIDTH, _LEGEND_COLUMNS, _CAPTION_LINE = 0.135, 1.7, 5, 0.115  # inches, but the columns


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    emphasise: str | Sequence[str] = "tova",
    paper: pd.DataFrame | None = None,
) -> Figure:
    """Draw a summary table.

    note: a sentence for the caption (what kind of model this is); caption=False leaves the caption out;
    emphasise: the policy or policies drawn thick; paper: the paper's numbers (experiment, model, policy, state_size,
    metric, value), dotted where model, dataset and policy are those of a panel."""
    panels = _panels.read(table)
    published = [_panels.published(paper, panel) for panel in panels]
    limits = _scale.limits(panels, published)
    marked = _scale.marked(panels, limits)
    order = _scale.order(panels)
    looks = style.looks([*order, "full"])
    thick = {emphasise} if isinstance(emphasise, str) else set(emphasise)
    text = _caption(panels, bool(marked), note) if caption else []
    with style.context():
        handles = _handles(panels, order, looks, thick, any(published))
        columns = 2 if len(panels) == 4 else min(len(panels), 3)
        figure, axes, width = _canvas(len(panels), columns, len(handles), len(text))
        for index, (panel, ax) in enumerate(zip(panels, axes, strict=True)):
            _draw(ax, panel, looks, thick)
            for name, points in published[index].items():
                ax.plot(points["cache"], points["value"], ":", color=looks[name].color, linewidth=1.0, label="_paper")
            _frame(ax, panel, limits[index], len(marked), width)
            _mark(ax, panel, limits[index][1], {name: looks[name] for name in marked}, width)
            leftmost = index % columns == 0
            ax.set_ylabel("Perplexity" if leftmost else "")
            ax.tick_params(labelleft=leftmost or len(set(limits)) > 1)
            if leftmost:
                _name_rows(ax, [looks[name] for name in marked])
        _surround(figure, handles, text, beside=len(panels) == 1)
    return figure


def _canvas(panels: int, columns: int, entries: int, lines: int) -> tuple[Figure, list[Axes], float]:
    """A figure as wide as a page's text, with room for the legend (right of one panel, below several) and the caption.

    Returns the axes' width in inches too, about: what is written along them must not overlap."""
    rows = math.ceil(panels / columns)
    legend = 0.0 if panels == 1 else math.ceil(entries / _LEGEND_COLUMNS) * _LEGEND_LINE + 0.1
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


def _line_style(look: Look, thick: bool) -> dict[str, Any]:
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


def _draw(ax: Axes, panel: Panel, looks: dict[str, Look], thick: set[str]) -> None:
    for name, points in panel.lines.items():
        style_, raised = _line_style(looks[name], name in thick), 2 if name in thick else 0
        ax.plot(points["cache"], points["value"], zorder=3 + raised, **style_)
        if points["bottom"].notna().any():
            band: dict[str, Any] = {"color": looks[name].color, "alpha": 0.12, "linewidth": 0}
            ax.fill_between(points["cache"], points["bottom"], points["top"], **band)
    if panel.topline is not None:
        topline = panel.topline
        ax.axhline(topline["value"], zorder=2.5, **_line_style(looks["full"], thick=False))
        if pd.notna(topline["low"]):
            ax.axhspan(topline["low"], topline["high"], color="black", alpha=0.06, linewidth=0, zorder=0.5)


def _frame(ax: Axes, panel: Panel, limits: _scale.Limits, rows: int, width: float) -> None:
    """Scales, ticks at the sizes present, and the title above the rows of marks."""
    sizes = panel.sizes
    octaves = math.log2(sizes[-1] / sizes[0])
    margin = 2 ** (0.045 * octaves if octaves else 1.0)
    ax.set_xscale("log", base=2)
    ax.set_xlim(sizes[0] / margin, sizes[-1] * margin)
    named = _apart({size: f"{size:.0f}" for size in sizes}, style.TICK, ax, width)
    ax.set_xticks(sizes, labels=[named.get(size, "") for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Multi-state size")
    ax.set_ylim(*limits)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    fits = style.inches(panel.title, style.TITLE) < width + 0.45
    title = panel.title if fits else panel.title.replace(" on ", "\non ", 1)
    ax.set_title(f"{title}\nRANDOM WEIGHTS" if panel.random else title, pad=5 + rows * _ROW)
    if panel.random:
        ax.title.set_color(style.ALARM)


def _mark(ax: Axes, panel: Panel, top: float, rows: dict[str, Look], width: float) -> None:
    """Above the axes, a row for each line that runs off: a triangle and the number at every size it does so."""
    for row, (name, look) in enumerate(reversed(rows.items())):
        if name not in panel.lines:
            continue
        values = panel.lines[name].set_index("cache")["value"]
        above = {float(str(size)): "▲" + short(value) for size, value in values[values > top].items()}
        kept = _apart(above, style.SMALL, ax, width)
        for size in above:
            _above(ax, size, row, kept.get(size, "▲"), look.color, ha="center")


def _name_rows(ax: Axes, rows: list[Look]) -> None:
    for row, look in enumerate(reversed(rows)):
        _above(ax, ax.get_xlim()[0], row, look.label, look.color, ha="right", left=6)


def _above(ax: Axes, size: float, row: int, text: str, color: str, ha: str, left: float = 0) -> None:
    ax.annotate(
        text, (size, 1), xycoords=("data", "axes fraction"), xytext=(-left, 3 + row * _ROW), textcoords="offset points",
        ha=ha, va="bottom", fontsize=style.SMALL, color=color, annotation_clip=False,
    )  # fmt: skip


def _apart(texts: dict[float, str], points: float, ax: Axes, width: float) -> dict[float, str]:
    """The texts that fit beside each other along the axis at their sizes; the larger size goes first."""
    left, right = ax.get_xlim()
    kept: dict[float, str] = {}
    edge = math.inf
    for size, text in sorted(texts.items(), reverse=True):
        at, half = math.log2(size / left) / math.log2(right / left) * width, style.inches(text, points) / 2
        if at + half <= edge:
            kept[size], edge = text, at - half
    return kept


def short(value: float) -> str:
    """Few digits: 17.7, 240, 4812, 48k, 4.8e+08."""
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value / 1000:.0f}k" if value >= 9_999.5 else f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"


def _handles(panels: list[Panel], order: list[str], looks: dict[str, Look], thick: set[str], paper: bool) -> list[Line2D]:
    handles = [Line2D([], [], **_line_style(looks[name], name in thick)) for name in order]
    if any(panel.topline is not None for panel in panels):
        handles.append(Line2D([], [], **_line_style(looks["full"], thick=False)))
    if paper:
        handles.append(Line2D([], [], color=style.MUTED, linestyle=":", linewidth=1, label="The paper's numbers"))
    return handles


def _surround(figure: Figure, handles: list[Line2D], text: list[str], beside: bool) -> None:
    """One legend for all panels, and the caption at the bottom."""
    height = figure.get_figheight()
    below = (len(text) * _CAPTION_LINE + 0.06) / height
    if beside:
        figure.legend(handles=handles, loc="center right", bbox_to_anchor=(1, 0.5 + below / 2), labelspacing=0.55)
    else:
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, below), ncols=_LEGEND_COLUMNS,
                      columnspacing=1.4, labelspacing=0.35, borderaxespad=0, borderpad=0)  # fmt: skip
    if text:
        figure.text(
            0.008,
            0.04 / height,
            "\n".join(text),
            fontsize=style.SMALL,
            color=style.MUTED,
            va="bottom",
            linespacing=1.25,
        )


def _caption(panels: list[Panel], marked: bool, note: str | None) -> list[str]:
    """What the reader must know and the axes do not say."""
    settings = {name: " / ".join(dict.fromkeys(panel.shown(name) for panel in panels)) for name in panels[0].settings}
    fewest, most = min(panel.documents[0] for panel in panels), max(panel.documents[1] for panel in panels)
    number = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    documents = f"{number} document{'s' * (most > 1)}"
    sentences = [f"{settings['context']} tokens per chunk, {documents}, {settings['dtype']}, {settings['weights']} weights."]
    if any(len(set(panel.documents)) > 1 for panel in panels):
        sentences.append("Not all lines are over the same documents.")
    if any(panel.banded for panel in panels):
        paired = "of the difference to the topline (horizontal band: of the topline itself)"
        kind = paired if all(panel.paired for panel in panels) else "of the perplexity"
        sentences.append(f"Bands: 95% bootstrap intervals over documents, {kind}.")
    if marked:
        sentences.append("▲: beyond the axis, with its value.")
    failed = sum(panel.failed for panel in panels)
    if failed:
        sentences.append(f"{failed} cell{'s' * (failed > 1)} failed and {'are' if failed > 1 else 'is'} missing.")
    return textwrap.wrap(" ".join([*sentences, *([note] if note else [])]), 158)

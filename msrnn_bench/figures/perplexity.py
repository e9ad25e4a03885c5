"""Perplexity against multi-state size, after Figure 3 of the paper (arXiv 2401.06104): one panel per model and dataset,
and per subtask, length and kind of prompt where there are several.

Departures from it: intervals; and what runs off the top is marked with its number. The coloured bands are intervals of
the *paired difference* to the topline: documents differ far more from each other than a policy differs from the full
model, and intervals of the perplexity itself (the topline's grey band) would bury every comparison.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _panels, _scale, style
from msrnn_bench.figures._panels import Panel
from msrnn_bench.figures.style import Look
from msrnn_bench.results.summary import quantity

_SHARED = (*_panels.SHARED, "subtask", "length")


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    emphasise: str | Sequence[str] = "tova",
    paper: pd.DataFrame | None = None,
    metric: str = "nll",
) -> Figure:
    """Draw a summary table.

    note: a sentence for the caption (what kind of model this is); caption=False leaves the caption out;
    emphasise: the policy or policies drawn thick; paper: the paper's numbers (experiment, model, policy, state_size,
    metric, value), dotted where model, dataset and policy are those of a panel; metric: nll, a token's loss, or lm-eval's
    nll_per_word or nll_per_byte."""
    if not metric.startswith("nll"):
        raise UsageError(
            f"metric={metric} is no perplexity: choose nll, nll_per_word or nll_per_byte, or draw it with figure=score"
        )
    panels = _panels.read(table, metric, _SHARED)
    published = [_panels.published(paper if metric == "nll" else None, panel) for panel in panels]
    limits = _scale.limits(panels, published)
    marked = _scale.marked(panels, limits)
    order = _scale.order(panels)
    looks = style.looks([*order, "full"])
    thick = {emphasise} if isinstance(emphasise, str) else set(emphasise)
    text = _caption(panels, bool(marked), _axes.unpublished(paper, published, "perplexity"), note) if caption else []
    with style.context():
        handles = _axes.handles(panels, order, looks, thick, any(published))
        columns = _axes.columns(len(panels))
        figure, axes, width = _axes.canvas(len(panels), columns, len(handles), len(text))
        for index, (panel, ax) in enumerate(zip(panels, axes, strict=True)):
            _axes.draw(ax, panel, looks, thick)
            for name, points in published[index].items():
                ax.plot(points["cache"], points["value"], ":", color=looks[name].color, linewidth=1.0, label="_paper")
            _axes.frame(ax, panel, limits[index], len(marked), width)
            _mark(ax, panel, limits[index][1], {name: looks[name] for name in marked}, width)
            leftmost = index % columns == 0
            ax.set_ylabel(quantity(metric).capitalize() if leftmost else "")
            ax.tick_params(labelleft=leftmost or len(set(limits)) > 1)
            if leftmost:
                _name_rows(ax, [looks[name] for name in marked])
        _axes.surround(figure, handles, text, beside=len(panels) == 1)
    return figure


def _mark(ax: Axes, panel: Panel, top: float, rows: dict[str, Look], width: float) -> None:
    """Above the axes, a row for each line that runs off: a triangle and the number at every size it does so."""
    for row, (name, look) in enumerate(reversed(rows.items())):
        if name not in panel.lines:
            continue
        values = panel.lines[name].set_index("cache")["value"]
        above = {float(str(size)): "▲" + short(value) for size, value in values[values > top].items()}
        kept = _axes.apart(above, style.SMALL, ax, width)
        for size in above:
            _above(ax, size, row, kept.get(size, "▲"), look.color, ha="center")


def _name_rows(ax: Axes, rows: list[Look]) -> None:
    for row, look in enumerate(reversed(rows)):
        _above(ax, ax.get_xlim()[0], row, look.label, look.color, ha="right", left=6)


def _above(ax: Axes, size: float, row: int, text: str, color: str, ha: str, left: float = 0) -> None:
    ax.annotate(
        text, (size, 1), xycoords=("data", "axes fraction"), xytext=(-left, 3 + row * _axes.ROW), textcoords="offset points",
        ha=ha, va="bottom", fontsize=style.SMALL, color=color, annotation_clip=False,
    )  # fmt: skip


def short(value: float) -> str:
    """Few digits: 17.7, 240, 4812, 48k, 4.8e+08."""
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value / 1000:.0f}k" if value >= 9_999.5 else f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"


def _caption(panels: list[Panel], marked: bool, more: list[str], note: str | None) -> list[str]:
    """What the reader must know and the axes do not say."""
    chunks = all(panel.settings["task"] == "perplexity" for panel in panels)
    sentences = [*_axes.measured(panels, "per chunk" if chunks else "of context"), *_axes.bands(panels, "perplexity")]
    if marked:
        sentences.append("▲: beyond the axis, with its value.")
    return _axes.wrapped([*sentences, *more, *_axes.failures(sum(panel.failed for panel in panels))], note)

"""Perplexity against multi-state size, after Figure 3 of the paper (arXiv 2401.06104): one panel per model and dataset.

Departures from it: intervals; and what runs off the top is marked with its number. The coloured bands are intervals of
the *paired difference* to the topline: documents differ far more from each other than a policy differs from the full
model, and intervals of the perplexity itself (the topline's grey band) would bury every comparison.
"""

import math
import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from msrnn_bench.figures import _panels, style
from msrnn_bench.figures._panels import Panel
from msrnn_bench.figures.style import Look

_REACH = 3.0  # the axis reaches to this multiple of the best policy's largest loss; what lies above is marked
_ROW = 8.0  # points: the height of a row of marks above the axes
_LINE = 0.15  # inches: a line of the legend
_COLUMNS = 3  # panels side by side

Limits = tuple[float, float]


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
    order = _order(panels)
    looks = style.looks([*order, "full"])
    thick = {emphasise} if isinstance(emphasise, str) else set(emphasise)
    published = [_panels.published(paper, panel) for panel in panels]
    limits = _limits(panels)
    marks = _marked(panels, limits)
    with style.context():
        text = _caption(panels, bool(marks), note) if caption else ""
        figure, axes = _canvas(panels, len(marks), _legend_rows(panels, order), text)
        for panel, ax, limit, overlay in zip(panels, axes, limits, published, strict=True):
            _draw(ax, panel, looks, thick, overlay)
            _frame(ax, panel, limit, len(marks), len(panels))
            _mark(ax, panel, limit[1], marks, looks)
        _legend(figure, order, looks, thick, panels, any(published))
    return figure



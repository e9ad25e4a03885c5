"""Perplexity over the bytes that a state takes: what the paper's Figure 3 and Table 1 say apart, on one pair of axes.

One panel per model and dataset, a line per policy, the full model at the right with all its states. Bytes are of the keys and
values held for one sequence, as the rows of perplexity record them, so policies of one size stand above each other, and
models, dtypes and sizes can be compared where it matters. The bands are those of the perplexity figure.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _panels, _scale, style
from msrnn_bench.figures._panels import Panel
from msrnn_bench.figures._scale import Limits
from msrnn_bench.figures.efficiency import short_bytes
from msrnn_bench.figures.style import Look
from msrnn_bench.results.summary import summarise

TABLE = "tidy"


def plot(
    table: pd.DataFrame, *, note: str | None = None, caption: bool = True, emphasise: str | Sequence[str] = "tova"
) -> Figure:
    """Draw the rows of `tidy.csv`. note, caption and emphasise are those of the perplexity figure."""
    rows, bytes_of = _read(table)
    panels = _panels.read(summarise(rows, []), "nll")
    limits = _scale.limits(panels, [{} for _ in panels])
    order = _scale.order(panels)
    looks = style.looks([*order, "full"])
    thick = {emphasise} if isinstance(emphasise, str) else set(emphasise)
    left_out = int(table.loc[table["task"].eq("perplexity") & table["policy"].eq("baseline"), "cell"].nunique())
    text = _caption(panels, limits, left_out, note) if caption else []
    with style.context():
        handles = _axes.handles(panels, order, looks, thick, paper=False)
        columns = _axes.columns(len(panels))
        figure, axes, width = _axes.canvas(len(panels), columns, len(handles), len(text))
        for index, (panel, ax) in enumerate(zip(panels, axes, strict=True)):
            _draw(ax, panel, bytes_of, looks, thick)
            _frame(ax, panel, limits[index], width)
            ax.set_ylabel("Perplexity" if index % columns == 0 else "")
        _axes.surround(figure, handles, text, beside=len(panels) == 1)
    return figure


def _read(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """The rows of losses that know their states' bytes, and these by cell."""
    lacking = sorted({"task", "metric", "state_bytes", "cell", "policy", "total", "document"} - set(table.columns))
    if lacking:
        raise UsageError(f"not a table of rows, it lacks {', '.join(lacking)}: give tidy.csv, which `msrnn-bench collect` writes")
    wanted = table["task"].eq("perplexity") & table["metric"].eq("nll") & table["state_bytes"].notna()
    rows = table[wanted.fillna(False).astype(bool)]
    if rows.empty:
        raise UsageError(
            "no perplexity with the bytes of its states to draw: run `msrnn-bench run policy=tova cache=512`, then collect"
        )
    held = rows.groupby("cell")["state_bytes"].max()
    return rows, {str(cell): float(size) for cell, size in held.items()}


def _draw(ax: Axes, panel: Panel, bytes_of: dict[str, float], looks: dict[str, Look], thick: set[str]) -> None:
    for name, points in panel.lines.items():
        x = points["cell"].map(bytes_of)
        ax.plot(x, points["value"], zorder=5 if name in thick else 3, **_axes.line_style(looks[name], name in thick))
        if points["bottom"].notna().any():
            ax.fill_between(x, points["bottom"], points["top"], color=looks[name].color, alpha=0.12, linewidth=0)
    if panel.topline is not None:
        full, at = panel.topline, bytes_of.get(str(panel.topline["cell"]))
        ax.axhline(full["value"], zorder=2.5, **_axes.line_style(looks["full"], thick=False))
        if at is not None:
            ax.plot([at], [full["value"]], color="black", marker="*", markersize=9, linestyle="", zorder=6, label="_full")


def _frame(ax: Axes, panel: Panel, limits: Limits, width: float) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=max(3, int(width / 0.55))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value)))
    ax.set_xlabel("Keys and values of one sequence")
    ax.set_ylim(*limits)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    ax.set_title(f"{panel.title}\nRANDOM WEIGHTS" if panel.random else panel.title)
    if panel.random:
        ax.title.set_color(style.ALARM)


def _caption(panels: list[Panel], limits: list[Limits], left_out: int, note: str | None) -> list[str]:
    """What the reader must know and the axes do not say."""
    sentences = [
        *_axes.measured(panels, "per chunk"),
        *_axes.bands(panels, "perplexity"),
        "Star: the full model, all its states.",
    ]
    beyond = _scale.marked(panels, limits)
    if beyond:
        sentences.append(f"Run off the top: {', '.join(style.looks(beyond)[name].label for name in beyond)}.")
    if left_out:
        sentences.append("The baseline keeps no states from chunk to chunk and is left out.")
    return _axes.wrapped(sentences, note)

"""How long the first tokens of a text are kept, after Figure 9 of the paper (arXiv 2401.06104): the mean number of steps at
which the state of the token at each position was attended to, its own step and the one at which it left among them.

A line per state size where there is one policy, as in the paper; where there are several, a panel per size with a line per
policy. What the paper lacks: intervals, the end (a token is there for no more steps than the text has behind it), and the
average over all tokens, which size and length of the text alone decide, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _runs, style
from msrnn_bench.figures._runs import Block, Run
from msrnn_bench.figures.style import Look

TABLE = "tidy"

_LACKING = "no token's lifetime to draw: run `msrnn-bench run task=retention cache=256`, then collect"
_LAST = 25  # the last position drawn, as in the paper
_END = Look("Kept to the end", "#000000", "", "--")
_MEAN = Look("Mean over all tokens", "#7A7A7A", "", ":")


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    emphasise: str | Sequence[str] = "tova",
    lines: str | None = None,
) -> Figure:
    """Draw all rows of task=retention.

    note: a sentence for the caption (what kind of model this is); caption=False leaves the caption out; emphasise: the policy
    or policies drawn thick; lines: `k` (a line per state size, a panel per policy) or `policy` (the other way round), by
    default k where there is one policy."""
    if lines not in (None, "k", "policy"):
        raise UsageError(f"lines={lines} is neither k nor policy")
    blocks = _runs.read(_positions(table), "lifetime", _LACKING)
    per_size = lines == "k" or (lines is None and all(len(block.names) == 1 for block in blocks))
    panels = [panel for block in blocks for panel in _panels(block, per_size)]
    looks: dict[Any, Look] = dict(style.sizes(size for block in blocks for size in block.sizes))
    looks |= style.looks(name for block in blocks for name in block.names)
    thick = {emphasise} if isinstance(emphasise, str) else set(emphasise)
    shown = [key for key in looks if any(key in found for _, _, found in panels)]
    points = [line for _, _, found in panels for line in found.values()]
    text = _axes.wrapped(_sentences(blocks, points), note) if caption else []
    with style.context():
        handles = [Line2D([], [], **_axes.line_style(looks[key], key in thick)) for key in shown]
        handles += [Line2D([], [], **_axes.line_style(look, False)) for look in (_END, _MEAN)]
        columns = _axes.columns(len(panels))
        figure, axes, _ = _axes.canvas(len(panels), columns, len(handles), len(text))
        for index, ((title, block, found), ax) in enumerate(zip(panels, axes, strict=True)):
            _draw(ax, found, looks, thick, block)
            ax.set_title(f"{title}\nRANDOM WEIGHTS" if block.random else title, color=style.ALARM if block.random else "black")
            ax.set_xlabel("Position of the token")
            leftmost = index % columns == 0
            ax.set_ylabel("Steps kept, mean" if leftmost else "")
            ax.tick_params(labelleft=leftmost or len({block.context for block in blocks}) > 1)
        _axes.surround(figure, handles, text, beside=len(panels) == 1)
    return figure


def _positions(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of single positions, and of all tokens together."""
    if not {"subtask", "bucket_start", "bucket_end"} <= set(table.columns):
        return table  # refused by name where it is read
    alone = (table["bucket_end"] - table["bucket_start"]).eq(1) & table["bucket_start"].le(_LAST)
    first = table["subtask"].eq("position") & alone
    return table[(first | table["subtask"].eq("all")).fillna(False).astype(bool)]


def _panels(block: Block, per_size: bool) -> list[tuple[str, Block, dict[Any, pd.DataFrame]]]:
    """Title, block and lines of each panel: a panel per policy and a line per size, or the other way round."""
    made = []
    for part in block.names if per_size else block.sizes:
        found: dict[Any, pd.DataFrame] = {}
        for run in block.runs:
            if (run.name if per_size else run.cache) == part:
                found[run.cache if per_size else run.name] = _points(run)
        what = style.looks([str(part)])[str(part)].label if per_size else f"k = {part:,.0f}"
        made.append((f"{block.title}\n{what}", block, found))
    return made


def _points(run: Run) -> pd.DataFrame:
    """The values by position; `attrs` has the mean over all tokens."""
    rows, whole = (run.rows[run.rows["subtask"] == part] for part in ("position", "all"))
    if rows.empty or whole.empty:
        raise UsageError(f"cell {run.cell} has no lifetimes by position: delete it and run it again")
    points = _runs.values(rows, "bucket_start", "lifetime")
    points.attrs["mean"] = float(whole["total"].sum() / whole["count"].sum())
    return points


def _draw(ax: Axes, found: dict[Any, pd.DataFrame], looks: dict[Any, Look], thick: set[str], block: Block) -> None:
    means = {round(points.attrs["mean"], 6) for points in found.values()}
    for key, points in found.items():
        color, raised = looks[key].color, 2 * (key in thick)
        ax.plot(points["bucket_start"], points["value"], zorder=3 + raised, **_axes.line_style(looks[key], key in thick))
        if points["low"].notna().any():
            ax.fill_between(points["bucket_start"], points["low"], points["high"], color=color, alpha=0.12, linewidth=0)
        own = {"color": color} if len(means) > 1 else {}  # lines of several sizes have each their own mean
        ax.axhline(points.attrs["mean"], zorder=2, **{**_axes.line_style(_MEAN, False), **own, "label": "_mean"})
    last = max(int(points["bucket_start"].max()) for points in found.values())
    ax.plot([0, last], [block.context, block.context - last], zorder=2.5, **{**_axes.line_style(_END, False), "label": "_end"})
    ax.set_xlim(-0.6, last + 0.6)
    ax.set_ylim(0, block.context * 1.05)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _sentences(blocks: list[Block], points: list[pd.DataFrame]) -> list[str]:
    return [
        "Steps at which a token's state was attended to, mean over layers and chunks (and heads, where they decide alone); "
        "position 0 is the chunk's first token.",
        _runs.measured(blocks),
        *_runs.banded(points),
    ]

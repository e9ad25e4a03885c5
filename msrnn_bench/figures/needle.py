"""What became of the needle: the share of its tokens whose states are held, against the tokens read behind it, over all layers.

No figure of the paper's. A panel per state size (and text, kind and length of prompt), a line per policy, of the rows that
`task.needle=true` adds to retrieval. The full model, which holds everything, is no line.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from msrnn_bench.figures import _axes, _runs, style
from msrnn_bench.figures._runs import Block
from msrnn_bench.figures.style import Look

TABLE = "tidy"

_LACKING = "no needle's states to draw: run `msrnn-bench run task=retrieval task.needle=true`, then collect"
_METRIC = "needle_kept_by_step"
UNASKED = (_METRIC,)


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    emphasise: str | Sequence[str] = "tova",
) -> Figure:
    """Draw all rows of retrieval that say what became of the needle; note, caption and emphasise as everywhere."""
    blocks = _runs.read(table, _METRIC, _LACKING, block=("subtask", "length", "prefill"))
    panels = [(block, size, _lines(block, size)) for block in blocks for size in block.sizes]
    looks = style.looks(name for block in blocks for name in block.names)
    thick = {emphasise} if isinstance(emphasise, str) else set(emphasise)
    points = [line for _, _, lines in panels for line in lines.values()]
    last = max(int(line["bucket_start"].max()) for line in points)
    text = _axes.wrapped(_sentences(blocks, points), note) if caption else []
    with style.context():
        handles = [Line2D([], [], **_axes.line_style(looks[name], name in thick)) for name in looks]
        columns = _axes.columns(len(panels))
        figure, axes, width = _axes.canvas(len(panels), columns, len(handles), len(text))
        for index, ((block, size, lines), ax) in enumerate(zip(panels, axes, strict=True)):
            _draw(ax, lines, looks, thick)
            _frame(ax, block, size, last, width)
            leftmost = index % columns == 0
            ax.set_ylabel("Share of the needle held" if leftmost else "")
            ax.tick_params(labelleft=leftmost)
        _axes.surround(figure, handles, text, beside=len(panels) == 1)
    return figure


def _lines(block: Block, size: float) -> dict[str, pd.DataFrame]:
    return {run.name: _runs.values(run.rows, "bucket_start", _METRIC) for run in block.runs if run.cache == size}


def _draw(ax: Axes, lines: dict[str, pd.DataFrame], looks: dict[str, Look], thick: set[str]) -> None:
    for name, points in lines.items():
        large = name in thick
        ax.plot(points["bucket_start"], points["value"], zorder=3 + 2 * large, **_axes.line_style(looks[name], large))
        if points["low"].notna().any():
            low, high = points["low"].clip(0, 1), points["high"].clip(0, 1)  # a share is within
            ax.fill_between(points["bucket_start"], low, high, color=looks[name].color, alpha=0.12, linewidth=0)


def _frame(ax: Axes, block: Block, size: float, last: int, width: float) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xlim(0.85, last * 1.2)
    steps = [2**power for power in range(last.bit_length())]
    named = _axes.apart({step: f"{step:,}" for step in steps}, style.TICK, ax, width)
    ax.set_xticks(steps, labels=[named.get(step, "") for step in steps])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Tokens read behind the needle")
    ax.axvline(size, color=style.MUTED, linewidth=0.8, linestyle=":", zorder=1)
    ax.set_ylim(-0.03, 1.03)
    prefill = " (oneshot)" if block.settings["prefill"] != "stepwise" else ""
    title = f"{block.title}\nk = {size:,.0f}, {int(float(block.settings['length'])):,} tokens{prefill}"
    ax.set_title(f"{title}\nRANDOM WEIGHTS" if block.random else title, color=style.ALARM if block.random else "black")


def _sentences(blocks: list[Block], points: list[pd.DataFrame]) -> list[str]:
    def shown(name: str) -> str:
        return " / ".join(dict.fromkeys(block.settings[name] for block in blocks))

    documents = sorted({int(number) for line in points for number in line["documents"]})
    haystacks = f"{documents[-1]:,}" if len(documents) == 1 else f"{documents[0]:,} to {documents[-1]:,}"
    return [
        "Share of the tokens of the sentence asked for whose states are held, mean over layers, haystacks and the depths with so "
        "much text behind them (which differ from point to point, so a line may rise); dotted: k tokens.",
        f"Kind {shown('subtask')}, {haystacks} haystacks, {shown('dtype')}, {shown('weights')} weights.",
        *_runs.banded(points),
    ]

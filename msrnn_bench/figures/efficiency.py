"""What a state costs, after Table 1 of the paper (arXiv 2401.06104): bytes, largest batch and throughput against its size.

A row per model and machine, and below them the paper's own numbers. Departures from it: bytes as allocated beside the
arithmetic; prefill and decode apart; a mark is the median of the repeats and its bar reaches from the slowest to the fastest.
"""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from msrnn_bench.figures import _axes, _costs, style
from msrnn_bench.figures._costs import Costs
from msrnn_bench.figures.style import Look

TABLE = "tidy"
_ROW, _LEGEND, _LINE = 1.95, 0.2, 0.115  # inches: a row of panels, the legend, a line of the caption
_PANELS = ("Memory of one sequence", "Largest batch", "Decoding, × full cache", "Tokens per second")


def plot(
    table: pd.DataFrame, *, note: str | None = None, caption: bool = True, emphasise: str = "tova", published: bool = True
) -> Figure:
    """Draw the rows of `tidy.csv`.

    note: a sentence for the caption; caption=False leaves the caption out; emphasise: the policy drawn thick; published: add the
    paper's Table 1 as a row of its own."""
    rows = [*_costs.read(table), *([_costs.published()] if published else [])]
    names = list(dict.fromkeys(name for costs in rows for name in costs.policies))
    looks = style.looks([*names, "full"])
    text = _caption(rows, table, note) if caption else []
    below = _LEGEND + len(text) * _LINE + 0.1
    height = _ROW * len(rows) + below
    with style.context():
        engine = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - below / height), w_pad=0.03, h_pad=0.03)
        figure = Figure(figsize=(style.TEXT_WIDTH, height), layout=engine)
        for place, costs in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
            _row(place, costs, looks, emphasise)
        _axes.surround(figure, _handles(names, looks, emphasise), text, beside=False)
    return figure


def _row(place: SubFigure, costs: Costs, looks: dict[str, Look], thick: str) -> None:
    title = f"{costs.title}: RANDOM WEIGHTS" if costs.random else costs.title
    place.suptitle(title, fontsize=style.TITLE, color=style.ALARM if costs.random else "black")
    memory, batch, relative, rate = place.subplots(1, len(_PANELS))
    _lines(memory, costs.of("state_bytes"), looks, thick)
    exact = costs.of("state_bytes_exact").drop_duplicates("cache")
    memory.plot(exact["cache"], exact["value"], color=style.MUTED, linestyle=":", linewidth=1.2, zorder=5, label="_exact")
    batch_points = costs.of("batch")
    _lines(batch, batch_points, looks, thick)
    for _, point in batch_points[batch_points["capped"].astype(bool)].iterrows():
        batch.annotate("≥", (point["cache"], point["value"]), xytext=(0, 3), textcoords="offset points", ha="center",
                       fontsize=style.TICK)  # fmt: skip
    for subtask, faint in (("batch=1", True), ("batch=max", False)):
        _lines(relative, costs.relative(subtask), looks, thick, faint=faint)
    relative.axhline(1.0, color="black", linestyle="--", linewidth=0.9, zorder=1)
    whole = [size for name, size in zip(batch_points["policy"], batch_points["cache"], strict=True) if name == "full"]
    relative.plot(whole, [1.0] * len(whole), color="black", marker="*", markersize=8, linestyle="", label="_full")
    for metric, faint in (("prefill_tokens_per_second", True), ("decode_tokens_per_second", False)):
        _lines(rate, costs.of(metric, "batch=max"), looks, thick, faint=faint)
    if costs.published:
        rate.set_visible(False)  # the paper prints no rates
    for ax, name in zip((memory, batch, relative, rate), _PANELS, strict=True):
        _frame(ax, costs, short_bytes if ax is memory else _short)
        ax.set_title(name, fontsize=style.TICK, color=style.MUTED)


def _lines(ax: Axes, points: pd.DataFrame, looks: dict[str, Look], thick: str, *, faint: bool = False) -> None:
    """A line a policy, the full cache at the length it holds; faint ones are dotted and hollow."""
    for name, part in points.groupby("policy", sort=False):
        look = _axes.line_style(looks[str(name)], name == thick)
        if name == "full":
            look |= {"marker": "*", "markersize": 8, "linestyle": "", "label": "_full"}
        if faint:
            look |= {"linestyle": ":" if name != "full" else "", "linewidth": 0.9, "markerfacecolor": "white",
                     "markeredgecolor": look["color"], "markeredgewidth": 0.8}  # fmt: skip
        bars = [part["value"] - part["low"], part["high"] - part["value"]]
        ax.errorbar(part["cache"], part["value"], yerr=bars, elinewidth=0.9, zorder=4 if name == thick else 3, **look)


def _frame(ax: Axes, costs: Costs, shown: Callable[[float], str]) -> None:
    """Both axes logarithmic: half the size is half the memory at any size."""
    sizes = sorted({float(size) for size in costs.points["cache"]})
    span = math.log2(sizes[-1] / sizes[0]) or 1.0
    ax.set_xscale("log", base=2)
    ax.set_xlim(sizes[0] / 2 ** (0.08 * span), sizes[-1] * 2 ** (0.08 * span))
    named = _axes.apart({size: f"{size:.0f}" for size in sizes}, style.TICK, ax, 1.2)
    ax.set_xticks(sizes, labels=[named.get(size, "") for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Multi-state size")
    ax.set_yscale("log", base=2)
    low, high = ax.dataLim.y0, ax.dataLim.y1
    if 0 < low <= high:
        ax.set_ylim(low / 1.5, high * 1.5)
    ax.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.3g}"


def short_bytes(value: float) -> str:
    """Bytes in few letters: 512 B, 64 KiB, 1.5 GiB."""
    power = min(max(int(math.log(value, 1024)) if value >= 1 else 0, 0), 4)
    return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _handles(names: list[str], looks: dict[str, Look], thick: str) -> list[Line2D]:
    handles = [Line2D([], [], **_axes.line_style(looks[name], name == thick)) for name in names]
    full: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 8, "linestyle": "", "label": "Full cache"}
    return [*handles, Line2D([], [], **full)]


def _caption(rows: list[Costs], table: pd.DataFrame, note: str | None) -> list[str]:
    """What the reader must know and the axes do not say."""
    ours = [costs for costs in rows if not costs.published]
    repeats = sorted({int(n) for costs in ours for n in costs.of("decode_tokens_per_second", "batch=max")["repeats"]})
    sentences = ["Memory: as allocated; dotted: keys and values by arithmetic. Largest batch: the most rows whose states fit."]
    if any(costs.points["capped"].any() for costs in ours):
        sentences.append("≥: no more rows were tried.")
    if repeats:
        count = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
        sentences.append(f"Rates: medians of {count} repeats, bars from the slowest to the fastest.")
    sentences.append(
        "Third panel: at the largest batch, dotted at batch 1. Fourth, at the largest batch: decoding, dotted prefill."
    )
    if any(costs.published for costs in rows):
        sentences.append("Published: throughput of 512 whole sequences at the largest batch.")
    failed = int((table["task"].eq("efficiency") & table["total"].isna()).sum())
    if failed:
        sentences.append(f"{failed} row{'s' * (failed > 1)} without a value: see status in tidy.csv.")
    return _axes.wrapped(sentences, note)

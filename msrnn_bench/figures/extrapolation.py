"""Perplexity against input length, after Figure 7 of the paper (arXiv 2401.06104): texts far beyond the training length, a
panel per model, text and state size.

Departures from it: original positions beside compressed ones where both were measured; intervals; and the control, the full
model on fresh chunks of its own length over the same tokens, for a text's difficulty drifts too. Its band is of its own
value, the others' of the difference to it. The running perplexity takes in all tokens before n; `local` takes a stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _lengths, style
from msrnn_bench.figures._lengths import Line, Panel
from msrnn_bench.figures.perplexity import short
from msrnn_bench.figures.style import Look

TABLE, TASKS = "tidy", ("extrapolation",)
_FIRST = 7  # a seventh of the length is where a running perplexity is drawn from: the paper's 10K of 70K
_MARKS = 7  # marks along a line
_LEGEND_COLUMNS = 3
_BAND = 0.4  # of the lines' own range: how far the axis goes for the sake of a band
_REACH, _NEAR = 3.0, 1.25  # the axis reaches to 3 times what the best policy loses, and to a quarter above the control


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    emphasise: str | Sequence[str] = "tova",
    local: bool | str = False,
    window: int | str = 1,
    difference: bool | str = False,
    start: int | str | None = None,
) -> Figure:
    """Draw all rows of task=extrapolation.

    note: a sentence for the caption (what kind of model this is); caption=False leaves the caption out; emphasise: the policy
    or policies drawn thick; local: the perplexity of the last `window` buckets of task.every tokens instead of that of
    all tokens so far; difference: less the control's; start: the length from which it is drawn (a seventh of all)."""
    local, difference = _flag("local", local), _flag("difference", difference)
    window, start = _number("window", window), None if start is None else _number("start", start)
    if window < 1 or (window > 1 and not local):
        raise UsageError(f"window={window} is a number of buckets, 1 or more, of local=true")
    panels = _lengths.read(table, width=window if local else 0, difference=difference)
    ends = [line.ends for panel in panels for line in panel.lines]
    first = start if start is not None else 0 if local else max(one[-1] for one in ends) // _FIRST
    if not all((one >= first).any() for one in ends):
        raise UsageError(f"start={first} lies behind the end of a line: take start={min(int(one[-1]) for one in ends)} or less")
    looks = style.looks([*dict.fromkeys(line.policy for panel in panels for line in panel.lines), "baseline", "full"])
    thick = {emphasise} if isinstance(emphasise, str) else set(emphasise)
    text = _caption(panels, local, first, note) if caption else []
    with style.context():
        alone = len(panels) == 1
        handles = _handles(panels, looks, thick, alone)
        columns = _axes.columns(len(panels))
        figure, axes, _ = _axes.canvas(len(panels), columns, len(handles), len(text), _LEGEND_COLUMNS)
        for index, (panel, ax) in enumerate(zip(panels, axes, strict=True)):
            _draw(ax, panel, looks, thick, first)
            _frame(ax, panel, looks, first, difference)
            ax.set_ylabel(_name(panel, local, window, difference) if index % columns == 0 else "")
        _axes.surround(figure, handles, text, alone, _LEGEND_COLUMNS)
    return figure


def _flag(name: str, given: bool | str) -> bool:
    """As it is given in Python, or typed behind `plot`."""
    if str(given).lower() not in ("true", "false"):
        raise UsageError(f"{name}={given} must be true or false")
    return str(given).lower() == "true"


def _number(name: str, given: int | str) -> int:
    if not str(given).isdigit():
        raise UsageError(f"{name}={given} must be a whole number of 0 or more")
    return int(given)


def _name(panel: Panel, local: bool, window: int, difference: bool) -> str:
    every = int(np.median(np.diff(panel.lines[0].ends))) if len(panel.lines[0].ends) > 1 else int(panel.lines[0].ends[0])
    what = f"Perplexity of the last {window * every:,} tokens" if local else "Perplexity"
    return f"{what}, less the control's" if difference else what


def _label(line: Line, look: Look) -> str:
    if line.policy == "baseline":
        return f"Control: full model on\nfresh chunks of {line.cache:,}"
    parts = [f"{line.positions} positions"] if line.positions else []
    return ",\n".join([look.label, *parts, *([line.extra] if line.extra else [])])


def _style(line: Line, look: Look, thick: bool) -> dict[str, Any]:
    """A policy has one colour and mark; where there are both kinds of positions the original ones are dashed and hollow."""
    made = _axes.line_style(look, thick) | {"label": _label(line, look)}
    if line.positions is not None:
        made["linestyle"] = "-" if line.positions == "compressed" else (0, (2.5, 1.5))
        if line.positions != "compressed":
            made |= {"markerfacecolor": "white", "markeredgecolor": look.color, "markeredgewidth": 0.9, "linewidth": 1.0}
    return made


def _handles(panels: list[Panel], looks: dict[str, Look], thick: set[str], broken: bool) -> list[Line2D]:
    """One entry for each kind of line, those that end highest first; their names in two lines or in one."""
    last: dict[str, float] = {}
    styles: dict[str, dict[str, Any]] = {}
    for panel in panels:
        for line in panel.lines:
            made = _style(line, looks[line.policy], line.policy in thick)
            styles[made["label"]] = made
            last[made["label"]] = max(last.get(made["label"], -np.inf), float(line.value[-1] / panel.scale))
    if not broken:
        styles = {label: made | {"label": label.replace("\n", " ")} for label, made in styles.items()}
    return [Line2D([], [], **styles[label]) for label in sorted(last, key=lambda label: (-last[label], label))]


def _draw(ax: Axes, panel: Panel, looks: dict[str, Look], thick: set[str], first: int) -> None:
    for number, line in enumerate(panel.lines):
        seen = line.ends >= first
        x, look = line.ends[seen], looks[line.policy]
        step = max(1, len(x) // _MARKS)
        where = (number * step // len(panel.lines), step)
        order = 2.5 if line.control else 4 if line.policy in thick else 3
        ax.plot(x, line.value[seen], markevery=where, zorder=order, **_style(line, look, line.policy in thick))
        if np.isfinite(line.low[seen]).any() and not (line.control and panel.paired):
            ax.fill_between(x, line.low[seen], line.high[seen], color=look.color, alpha=0.1, linewidth=0)


def _frame(ax: Axes, panel: Panel, looks: dict[str, Look], first: int, difference: bool) -> None:
    """Limits, ticks, title; above the axes a line for each that runs off the top."""
    low, high = _limits(panel, first, difference)
    end = max(int(line.ends[-1]) for line in panel.lines)
    begin = min(int(line.ends[line.ends >= first][0]) for line in panel.lines)
    margin = 0.02 * max(end - begin, 1)
    ax.set_xlim(begin - margin, end + margin)
    ax.set_ylim(low, high)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: _thousands(n)))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    ax.set_xlabel("Input Length")
    if difference:
        ax.axhline(0, color="black", linewidth=0.7, zorder=1)
    off = [line for line in panel.lines if line.value[line.ends >= first].max() > high]
    for row, line in enumerate(sorted(off, key=lambda line: line.value[-1])):
        look = looks[line.policy]
        text = f"▲ {_label(line, look)}: {short(float(line.value[-1]))} at {_thousands(line.ends[-1])}".replace("\n", " ")
        ax.annotate(
            text, (0, 1), xycoords="axes fraction", xytext=(2, 3 + row * _axes.ROW), textcoords="offset points", ha="left",
            va="bottom", fontsize=style.SMALL, color=look.color, annotation_clip=False,
        )  # fmt: skip
    ax.set_title(f"{panel.title}\nRANDOM WEIGHTS" if panel.random else panel.title, pad=5 + len(off) * _axes.ROW)
    if panel.random:
        ax.title.set_color(style.ALARM)


def _limits(panel: Panel, first: int, difference: bool) -> tuple[float, float]:
    """From below all lines to the largest value worth its room: 3 times what the best policy loses, or a quarter above the
    control."""
    drawn = {id(line): line.value[line.ends >= first] for line in panel.lines}
    base = 0.0 if difference else max((float(drawn[id(line)].max()) for line in panel.lines if line.control), default=0.0)
    best = min(float(drawn[id(line)].max()) for line in panel.lines if not line.control)
    base = base or (0.0 if difference else best)
    reach = max(base + _REACH * (best - base), base + (_NEAR - 1) * panel.scale)
    values = np.concatenate(list(drawn.values()))
    low, high = float(values.min()), float(values[values <= reach].max(initial=max(base, values.min())))
    room = max(high - low, 0.02 * panel.scale)
    bands = [line for line in panel.lines if drawn[id(line)].max() <= high and not (line.control and panel.paired)]
    below = [low, *(float(np.nanmin(line.low[line.ends >= first], initial=low)) for line in bands)]
    above = [high, *(float(np.nanmax(line.high[line.ends >= first], initial=high)) for line in bands)]
    low, high = max(min(below), low - _BAND * room), min(max(above), high + _BAND * room)
    return low - 0.06 * room, high + 0.06 * room


def _thousands(n: float) -> str:
    """10K as the paper writes it."""
    return f"{n / 1000:g}K" if abs(n) >= 1000 else f"{n:g}"


def _caption(panels: list[Panel], local: bool, first: int, note: str | None) -> list[str]:
    """What the reader must know and the axes do not say."""
    lines = [line for panel in panels for line in panel.lines]
    numbers = sorted({line.documents for line in lines})
    number = f"{numbers[-1]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
    dtype, weights = _lengths.shown(panels, "dtype"), _lengths.shown(panels, "weights")
    read = " / ".join(f"{int(n):,}" for n in _lengths.shown(panels, "context").split(" / "))
    sentences = [f"The first {read} tokens of {number} document{'s' * (numbers[-1] > 1)}, read once, {dtype}, {weights} weights."]
    if not local:
        begin = min(int(line.ends[line.ends >= first][0]) for line in lines)
        sentences.append(f"Perplexity of all tokens before the input length, drawn from {_thousands(begin)} on.")
    methods = sorted({line.method for line in lines if line.method})
    if methods:
        paired = "the difference to the control" if all(panel.paired for panel in panels) else "the perplexity"
        sentences.append(f"Bands: 95% intervals over documents ({' and '.join(methods)}), of {paired}.")
    elif numbers[-1] == 1:
        sentences.append("One document has no interval.")
    if len(numbers) > 1:
        sentences.append("Not all lines are over the same documents.")
    return _axes.wrapped(sentences, note)

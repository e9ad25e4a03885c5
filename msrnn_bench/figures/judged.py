"""Stories judged in pairs, after Figure 6 of the paper (arXiv 2401.06104): how often a policy's story won against the full
model's of the same seed, one bar per multi-state size.

Shares are of the pairs that were judged. Departures from it: how many those were stands beside each bar; pairs without
a verdict, and identical ones, are counted in the caption.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import style

TABLE = "tidy"
OUTCOMES = {"win": ("Win", "#0072B2", "white"), "tie": ("Tie", "#D9D9D9", "black"), "loss": ("Loss", "#C8643C", "white")}
_PARTS = ["model", "weights", "template", "dtype", "context", "seed", "prefill", "engine", "policy", "memory", "first", "per"]
_BAR, _AROUND, _LEGEND, _CAPTION_LINE = 0.26, 0.42, 0.26, 0.115  # inches
_WIDTH, _LETTERS = 5.2, 115  # inches of the figure, letters of a line of its caption
_NARROW = 3.5  # percent: a narrower part of a bar has no room for its number


def plot(table: pd.DataFrame, *, note: str | None = None, caption: bool = True) -> Figure:
    """Draw the rows of all cells (tidy.csv).

    note: a sentence for the caption (what kind of model this is); caption=False leaves the caption out."""
    panels = _read(table)
    text = textwrap.wrap(_caption(panels, note), _LETTERS) if caption else []
    with style.context():
        figure, axes = _canvas([len(cells) for _, cells in panels], len(text))
        for ax, (title, cells) in zip(axes, panels, strict=True):
            _draw(ax, cells)
            ax.set_title(title, color=style.ALARM if title.endswith("RANDOM WEIGHTS") else "black")
        axes[-1].set_xlabel("Pairs, %")
        height = figure.get_figheight()
        handles = [Patch(color=color, label=name) for name, color, _ in OUTCOMES.values()]
        below = (len(text) * _CAPTION_LINE + 0.08) / height
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, below), ncols=3, borderaxespad=0)
        if text:
            where: dict[str, Any] = {"va": "bottom", "fontsize": style.SMALL, "color": style.MUTED, "linespacing": 1.25}
            figure.text(0.008, 0.04 / height, "\n".join(text), **where)
    return figure


def _read(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title and cells of each panel: a line per size with the number of wins, ties, losses, and of what was not judged."""
    lacking = sorted({*_PARTS, "cell", "cache", "metric", "total", "status"} - set(table.columns))
    if lacking:
        raise UsageError(f"not a table of rows, it lacks {', '.join(lacking)}: give the tidy.csv of `msrnn-bench collect`")
    rows = table[table["metric"].isin(list(OUTCOMES)).fillna(False).astype(bool)]
    if rows.empty:
        raise UsageError("no judged stories to draw: run task=stories with task.judge=endpoint or task.judge=local first")
    cells = pd.DataFrame([_counts(cell) for _, cell in rows.groupby("cell")])
    panels = []
    for _, panel in cells.groupby([cells[name].astype("object") for name in _PARTS], dropna=False, sort=True):
        for cache, same in panel.groupby("cache"):
            if len(same) > 1:
                what = f"{same['policy'].iloc[0]} of {same['model'].iloc[0]}, cache {cache}"
                raise UsageError(
                    f"{what} was judged several times (cells {', '.join(sorted(same['cell']))}): keep what another judge or "
                    "prompt gave in a results_dir of its own"
                )
        panels.append((_title(panel, cells), panel.sort_values("cache")))
    return panels


def _counts(cell: pd.DataFrame) -> dict[str, Any]:
    known = {name: cell[name].iloc[0] for name in [*_PARTS, "cell", "cache"]}
    won = {name: float(cell.loc[(cell["metric"] == name) & (cell["status"] == "ok"), "total"].sum()) for name in OUTCOMES}
    status = cell.loc[cell["metric"] == "win", "status"].value_counts()
    return {**known, **won, **{name: int(status.get(name, 0)) for name in ("ok", "unjudged", "identical")}}


def _title(panel: pd.DataFrame, cells: pd.DataFrame) -> str:
    """Policy and model, and what else parts this panel from others of the same two."""
    first = panel.iloc[0]
    siblings = cells[(cells["model"] == first["model"]) & (cells["policy"] == first["policy"])]
    extras = [
        f"{name} {first[name]}" for name in _PARTS
        if name not in ("model", "policy", "weights") and siblings[name].nunique(dropna=False) > 1
    ]  # fmt: skip
    title = f"{_label(first['policy'])} against the full model, {str(first['model']).rsplit('/', 1)[-1]}"
    title = f"{title} ({', '.join(extras)})" if extras else title
    return f"{title}: RANDOM WEIGHTS" if first["weights"] == "random" else title


def _label(policy: str) -> str:
    return style.looks([policy])[policy].label


def _canvas(bars: Sequence[int], lines: int) -> tuple[Figure, list[Axes]]:
    """Panels one below the other, as high as their bars, with room for legend and caption below."""
    below = _LEGEND + lines * _CAPTION_LINE
    heights = [number * _BAR + _AROUND for number in bars]
    height = sum(heights) + 0.2 + below
    engine = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - below / height), w_pad=0.04, h_pad=0.03)
    figure = Figure(figsize=(_WIDTH, height), layout=engine)
    axes = figure.subplots(len(bars), 1, squeeze=False, sharex=True, height_ratios=heights)
    return figure, list(axes[:, 0])


def _draw(ax: Axes, cells: pd.DataFrame) -> None:
    """Bars from the smallest size at the top; the number of judged pairs on the right."""
    for place, (_, cell) in enumerate(cells.iterrows()):
        left = 0.0
        for name, (_, color, ink) in OUTCOMES.items():
            share = 100 * cell[name] / cell["ok"] if cell["ok"] else 0.0
            ax.barh(place, share, left=left, height=0.74, color=color, edgecolor="white", linewidth=0.6)
            if share >= _NARROW:
                ax.text(left + share / 2, place, f"{share:.0f}%", ha="center", va="center", fontsize=style.TICK, color=ink)
            left += share
        number = f"n = {cell['ok']}" if cell["ok"] else "none judged"
        ax.text(101, place, number, va="center", fontsize=style.SMALL, color=style.MUTED, clip_on=False)
    ax.set_yticks(range(len(cells)), labels=[f"{size}" for size in cells["cache"]])
    ax.set_ylabel("State size")
    ax.set_xlim(0, 100)
    ax.set_ylim(len(cells) - 0.5, -0.5)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)


def _caption(panels: list[tuple[str, pd.DataFrame]], note: str | None) -> str:
    """How pairs were judged, and what of them is not in the bars."""
    cells = pd.concat([panel for _, panel in panels])
    sentences = [
        "Each pair is judged twice, its stories swapped: a win or a loss is the same verdict both times, all else a tie.",
        "Shares are of the n pairs that were judged.",
    ]
    for status, words in (("identical", "identical and dropped"), ("unjudged", "without a verdict (no tie)")):
        left = [f"{cell[status]} at {_label(cell['policy'])} {cell['cache']}" for _, cell in cells.iterrows() if cell[status]]
        if left:
            sentences.append(f"Pairs {words}: {', '.join(left)}.")
    return " ".join([*sentences, *([note] if note else [])])

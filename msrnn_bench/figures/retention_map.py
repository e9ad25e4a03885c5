"""Which states are held when, after Figure 8 of the paper (arXiv 2401.06104): steps down, tokens across, black where the
token's state is held after the step; one layer, the policies side by side on the same text. `layer=all` is the manner of its
Figures 12 and 13: every layer small, a picture per policy.

Departures: a pixel that covers several steps and tokens shows which share of them is held, on a scale that leaves a single
state visible; where heads decide alone it is the share over heads too; and what was not read yet is told from what has left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _pixels, _runs, style
from msrnn_bench.figures._runs import Block, Run

TABLE = "tidy"
ARRAYS = "death"  # what of each cell's arrays is handed over as `arrays`

_LACKING = "no retention cell here: run `msrnn-bench run task=retention cache=256`, then plot again"
_UNREAD = "#DDE6EE"  # a tint that is neither held nor left
_HELD = LinearSegmentedColormap.from_list("held", ["white", "black"]).with_extremes(bad=_UNREAD)
_SCALE = PowerNorm(0.5, 0, 1)
_DENSITY = 150  # pixels an inch of a map: fewer than are drawn, so that none is dropped
_GAP = 3  # pixels between the tiles of a picture of all layers
# Inches: a line of text above a map, what stands below one with axes, left of the first, between two, right of the last.
_TITLE, _BELOW, _LEFT, _BETWEEN, _RIGHT, _LARGEST = 0.17, 0.42, 0.58, 0.16, 0.62, 4.6
Deaths = Mapping[str, NDArray[np.int64]]


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    arrays: Deaths | None = None,
    layer: int | str = "last",
    cache: int | str | None = None,
) -> Figure:
    """Draw the death times of one chunk a cell.

    arrays: by cell, death [L, P, T] of the first chunk of the cell's first document: the step at which each token's state left,
    -1 for never, for each layer and each of P that decide alone. layer: a number from 0, `last`, or `all`. cache: the state
    size to draw; by default the one that most policies have, of several the one nearest to an eighth of the text; a single
    policy's are all drawn. note and caption as everywhere. UsageError where no cell has an array, or one contradicts its rows.
    """
    blocks = _runs.read(table, "lifetime", _LACKING)
    chosen = [(block, _chosen(block, arrays or {}, cache)) for block in blocks]
    chosen = [(block, runs) for block, runs in chosen if runs]
    if not chosen:
        size = "" if cache is None else f" of cache={cache}"
        raise UsageError(f"no retention cell{size} has its death times beside its rows: run `msrnn-bench run task=retention`")
    for block, runs in chosen:
        for run in runs:
            _check(run, block, (arrays or {})[run.cell])
    text = _axes.wrapped(_sentences(chosen, arrays or {}, layer), note) if caption else []
    with style.context():
        figure, places, side = _canvas(chosen, arrays or {}, layer == "all", len(text))
        for block, runs in chosen:
            for number, run in enumerate(runs):
                ax, leftmost = places.pop(0)
                death = np.asarray((arrays or {})[run.cell])
                (_draw_all if layer == "all" else _draw_one)(ax, death, layer, round(side * _DENSITY))
                _name(ax, block if number == 0 else None, run)
                if layer != "all":
                    ax.set_xlabel("Token")
                    ax.set_ylabel("Step" if leftmost else "")
                    ax.tick_params(left=leftmost, labelleft=leftmost)
        _axes.add_caption(figure, text)
    return figure


def _chosen(block: Block, arrays: Deaths, cache: int | str | None) -> list[Run]:
    """The runs to draw: those with an array, of one size where there are several policies."""
    there = [run for run in block.runs if run.cell in arrays]
    if cache is not None:
        return [run for run in there if f"{run.cache:g}" == str(cache)]
    if len({run.name for run in there}) < 2:
        return there
    counts = {size: sum(run.cache == size for run in there) for size in {run.cache for run in there}}
    size = max(counts, key=lambda k: (counts[k], -abs(math.log2(k / block.context * 8))))
    return [run for run in there if run.cache == size]


def _check(run: Run, block: Block, death: NDArray[np.int64]) -> None:
    """Refuse an array that is not of these rows: a map of another run would be looked at in good faith."""
    alive = (np.asarray(death) < 0).sum(-1) if np.asarray(death).ndim == 3 else np.array([-1])
    if np.shape(death)[-1] != block.context or (alive != min(run.cache, block.context)).any():
        raise UsageError(
            f"the death times of cell {run.cell} are not of its {block.context} tokens and {run.cache:g} states: delete its "
            "files and run it again"
        )


def _layer(death: NDArray[np.int64], layer: int | str) -> int:
    last = len(death) - 1
    number = last if layer == "last" else int(layer) if str(layer).lstrip("-").isdigit() else -1
    if not 0 <= number <= last:
        raise UsageError(f"layer={layer} is none of 0 to {last}, last or all")
    return number


def _canvas(
    chosen: list[tuple[Block, list[Run]]], arrays: Deaths, everything: bool, lines: int
) -> tuple[Figure, list[tuple[Axes, bool]], float]:
    """The figure, the axes of all runs in order, each with whether it is the leftmost, and how wide they are in inches. Places
    are given by hand, for a map's pixels must be as large as they are counted here. Each block begins a new row."""
    wide = max(len(runs) for _, runs in chosen)
    columns = min(wide, 2 if everything else 5 if wide == 5 else 4)
    left, below = (0.08, 0.08) if everything else (_LEFT, _BELOW)
    side = (style.TEXT_WIDTH - left - _RIGHT - (columns - 1) * _BETWEEN) / columns
    side = side if everything else min(side, _LARGEST)
    depth = max(len(arrays[run.cell]) for _, runs in chosen for run in runs)
    across = math.ceil(math.sqrt(depth))
    tall = side * math.ceil(depth / across) / across if everything else side
    rows = [-(-len(runs) // columns) for _, runs in chosen]
    foot = 0.1 + lines * 0.115
    height = foot + sum(count * (tall + _TITLE + below) + _TITLE for count in rows)
    figure = Figure(figsize=(style.TEXT_WIDTH, height))
    places, top = [], height
    for (_, runs), count in zip(chosen, rows, strict=True):
        top -= _TITLE
        for number in range(len(runs)):
            row, column = divmod(number, columns)
            at = left + column * (side + _BETWEEN), top - row * (tall + _TITLE + below) - _TITLE - tall
            ax = figure.add_axes((at[0] / style.TEXT_WIDTH, at[1] / height, side / style.TEXT_WIDTH, tall / height))
            places.append((ax, column == 0))
        top -= count * (tall + _TITLE + below)
    bar = min(tall, 2.4)
    _add_scale(figure, left + columns * (side + _BETWEEN) - 0.04, height - 2 * _TITLE - bar, bar)
    return figure, places, side


def _add_scale(figure: Figure, left: float, bottom: float, tall: float) -> None:
    """What the greys mean; its place and height in inches."""
    height = figure.get_figheight()
    scale = figure.add_axes((left / style.TEXT_WIDTH, bottom / height, 0.09 / style.TEXT_WIDTH, tall / height), label="scale")
    bar = figure.colorbar(ScalarMappable(_SCALE, _HELD), cax=scale)
    bar.set_ticks([0, 0.05, 0.25, 0.5, 1], labels=["0", ".05", ".25", ".5", "1"])
    bar.set_label("Share held under a pixel", labelpad=2)


def _draw_one(ax: Axes, death: NDArray[np.int64], layer: int | str, pixels: int) -> None:
    tokens = death.shape[-1]
    _show(ax, _pixels.held(death[_layer(death, layer)], pixels), (0, tokens, tokens, 0))
    ax.set_xlim(-0.02 * tokens, tokens)  # the first column is a token, not a frame
    ticks = [tokens * part // 4 for part in range(5)]
    ax.set_xticks(ticks[::2], labels=[f"{tick:,}" for tick in ticks[::2]])
    first, *_, last = ax.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")  # the next map's begin right behind
    ax.set_yticks(ticks, labels=[f"{tick:,}" for tick in ticks])


def _draw_all(ax: Axes, death: NDArray[np.int64], layer: int | str, pixels: int) -> None:
    """Every layer as a tile, its number in the corner where nothing was read yet."""
    across = math.ceil(math.sqrt(len(death)))
    tiles = [_pixels.held(one, pixels // across - _GAP) for one in death]
    size = len(tiles[0])
    for number, tile in enumerate(tiles):
        row, column = (place * (size + _GAP) for place in divmod(number, across))
        _show(ax, tile, (column, column + size, row + size, row))
        ax.text(column + size - 2, row + 3, str(number), ha="right", va="top", fontsize=style.SMALL)
    ax.set_xlim(0, across * (size + _GAP) - _GAP)
    ax.set_ylim(math.ceil(len(death) / across) * (size + _GAP) - _GAP, 0)
    ax.set_axis_off()


def _show(ax: Axes, picture: NDArray[np.float64], extent: tuple[float, float, float, float]) -> None:
    ax.grid(False)
    image: dict[str, Any] = {"cmap": _HELD, "norm": _SCALE, "interpolation": "nearest", "aspect": "auto"}
    ax.imshow(np.ma.masked_invalid(picture), extent=extent, **image)
    ax.spines[:].set_visible(False)


def _name(ax: Axes, block: Block | None, run: Run) -> None:
    """The policy above its map, and above the first of a block what it was measured on."""
    look = style.looks([run.name])[run.name]
    ax.set_title(f"{look.label}, k = {run.cache:,.0f}", color=look.color, fontweight="bold", pad=3)
    if block is not None:
        title = f"{block.title}, RANDOM WEIGHTS" if block.random else block.title
        ax.set_title(title + "\n", loc="left", color=style.ALARM if block.random else "black", pad=3)


def _sentences(chosen: list[tuple[Block, list[Run]]], arrays: Deaths, layer: int | str) -> list[str]:
    """What the reader must know and the axes do not say."""
    texts = dict.fromkeys(str(run.rows["document"].iloc[0]) for _, runs in chosen for run in runs)
    depths = {len(arrays[run.cell]) for _, runs in chosen for run in runs}
    heads = any(np.shape(arrays[run.cell])[1] > 1 for _, runs in chosen for run in runs)
    last = " / ".join(str(depth - 1) for depth in sorted(depths))
    one = f"Layer {last if layer == 'last' else layer} of 0 to {last}"
    which = f"All layers, 0 to {last}: in each steps" if layer == "all" else f"{one}: steps"
    settings = [" / ".join(dict.fromkeys(block.settings[name] for block, _ in chosen)) for name in ("dtype", "weights")]
    tokens = " / ".join(dict.fromkeys(f"{block.context:,}" for block, _ in chosen))
    return [
        f"{which} down, tokens across; black where a token's state is held after the step, white where it has left, tinted "
        "where it was not read yet.",
        *(["Where heads decide alone, the share over heads."] if heads else []),
        f"The first {tokens} tokens of {', '.join(texts)}, {settings[0]}, {settings[1]} weights.",
    ]

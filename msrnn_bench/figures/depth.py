"""Retrieval accuracy over depth x length: a map per policy (rows) and state size (columns), the full model's apart.

Drawn from all rows, for the summary has no depth. A field is the mean over its examples, written in it in percent. One
hue grows darker with accuracy, so a print in grey and a colour-blind reader see the same order.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import style

TABLE = "tidy"

_BLOCK = ["model", "dataset", "subtask", "template", "weights", "context", "dtype", "bos", "positions"]  # share a topline
_KNOBS = ["prefill", "memory", "first", "recent", "per", "engine"]  # what else parts two rows of maps
_FIELD = ["cache", "length", "depth"]
_NEEDED = {*_BLOCK, "policy", *_KNOBS, *_FIELD, "seed", "cell", "metric", "total", "count", "status"}
_COLORS, _EDGE = "Blues", "#B0B0B0"
_DEPTH, _AROUND, _CAPTION_LINE = 0.14, 0.14, 0.115  # inches: a row of fields, what is around a map, a line of the caption


@dataclass(frozen=True)
class Line:
    """A row of maps: a policy, with what parts it from others of its name, and its fields at every state size; `rank`
    orders the lines of one policy."""

    policy: str
    label: str
    fields: pd.DataFrame
    rank: tuple[bool, str] = (False, "")


@dataclass(frozen=True)
class Block:
    """What can be compared: the full model's line where there is one, and the policies', the best first. All its maps have
    the same depths and lengths, so that a place means the same in each."""

    title: str
    random: bool
    lines: list[Line]
    depths: list[float]
    lengths: list[float]


def plot(table: pd.DataFrame, *, note: str | None = None, caption: bool = True) -> Figure:
    """Draw all rows that have a length, a depth and an accuracy.

    note: a sentence for the caption (what kind of model this is); caption=False leaves the caption out."""
    fields = _fields(table)
    blocks = [_block(part, fields) for _, part in fields.groupby(_BLOCK)]
    sizes = sorted(set(fields["cache"]) - {0.0}) or [0.0]
    width = min(style.TEXT_WIDTH, 1.1 + 1.97 * len(sizes))
    text = _caption(fields, note, round(width / style.TEXT_WIDTH * 155)) if caption else []
    with style.context():
        figure, axes = _canvas(sum(len(block.lines) for block in blocks), len(sizes), fields["depth"].nunique(), width, len(text))
        rows = iter(axes)
        for block in blocks:
            _draw_block(block, [next(rows) for _ in block.lines], sizes)
        _add_scale(figure, len(axes))
        if text:
            words: dict[str, Any] = {"fontsize": style.SMALL, "color": style.MUTED, "va": "bottom", "linespacing": 1.25}
            figure.text(0.008, 0.04 / figure.get_figheight(), "\n".join(text), **words)
    return figure


def _fields(table: pd.DataFrame) -> pd.DataFrame:
    """A line per field, its settings as text, `cache` 0 for the full model's; `total` and `count` over its examples.

    Seeds are other examples, so they are summed. Of several cells that measured the same, the one of the most examples
    stands for all."""
    lacking = sorted(_NEEDED - set(table.columns))
    if lacking:
        raise UsageError(f"not a table of all rows, it lacks {', '.join(lacking)}: give the tidy.csv that collect writes")
    scored = (table["metric"] == "accuracy") & (table["status"] == "ok") & table["length"].notna() & table["depth"].notna()
    rows = table[scored.fillna(False).astype(bool)].copy()
    if rows.empty:
        raise UsageError("no accuracy over depth and length to draw: run `msrnn-bench run task=retrieval`, then collect")
    names = [*_BLOCK, "policy", *_KNOBS]
    for name in names:
        rows[name] = ["" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value) for value in rows[name]]
    rows.loc[rows["policy"] == "full", _KNOBS] = ""  # they do not change the full model
    rows["cache"] = rows["cache"].astype("float64").fillna(0.0)
    cells = rows.groupby([*names, *_FIELD, "seed", "cell"], as_index=False)[["total", "count"]].sum()
    same = [*names, *_FIELD, "seed"]
    best = cells[cells["count"] == cells.groupby(same)["count"].transform("max")]
    for _, rivals in best.groupby(same):
        if rivals["total"].nunique() > 1:
            line, which = rivals.iloc[0], ", ".join(sorted(rivals["cell"].astype(str)))
            what = f"{line['policy']} of {line['model']} at " + ", ".join(f"{name} {line[name]:g}" for name in _FIELD)
            raise UsageError(f"{what} has several results (cells {which}): delete the stale ones and collect again")
    return best.drop_duplicates(same).groupby([*names, *_FIELD], as_index=False)[["total", "count"]].sum()


def _block(part: pd.DataFrame, fields: pd.DataFrame) -> Block:
    settings = {name: str(part[name].iloc[0]) for name in _BLOCK}
    varying = [name for name in _BLOCK[2:] if name != "weights" and fields[name].nunique() > 1]
    what = [settings[name] if name in ("subtask", "dtype") else f"{name} {settings[name]}" for name in varying]
    title = f"{settings['model'].rsplit('/', 1)[-1]} on {settings['dataset']}" + (f" ({', '.join(what)})" if what else "")
    several = part.loc[part["policy"] != "full", "prefill"].nunique() > 1
    lines = [line for policy, points in part.groupby("policy") for line in _lines(str(policy), points, several)]
    best = {str(policy): points["total"].sum() / points["count"].sum() for policy, points in part.groupby("policy")}
    lines.sort(key=lambda line: (line.policy != "full", -best[line.policy], line.policy, *line.rank))
    places = [sorted(part[name].unique()) for name in ("depth", "length")]
    return Block(title, settings["weights"] == "random", lines, *places)


def _lines(policy: str, points: pd.DataFrame, prefills: bool) -> list[Line]:
    """A policy run under several settings is several lines. `recent` follows k by itself: it parts only equal k.
    `prefills`: the block has both, so every line says which is its own."""
    by_size = points.groupby("cache")["recent"].nunique().max()
    parting = [name for name in _KNOBS if (by_size if name == "recent" else points[name].nunique()) > 1]
    if prefills and policy != "full" and "prefill" not in parting:
        parting = ["prefill", *parting]
    label = style.looks([policy])[policy].label.replace(" (", "\n(")
    if not parting:
        return [Line(policy, label, points)]
    made = []
    for values, variant in points.groupby(parting):
        named = [str(v) if n in ("prefill", "engine") else f"{n} {v or '-'}" for n, v in zip(parting, values, strict=True)]
        rank = (str(variant["prefill"].iloc[0]) != "stepwise", "\n".join(named))
        made.append(Line(policy, "\n".join([label, *named]), variant, rank))
    return made


def _canvas(rows: int, columns: int, depths: int, width: float, caption: int) -> tuple[Figure, Any]:
    """Axes [rows, columns], with room for the caption below."""
    below = caption * _CAPTION_LINE + 0.06
    height = rows * (depths * _DEPTH + _AROUND) + 0.5 + below
    engine = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - below / height), w_pad=0.03, h_pad=0.03)
    figure = Figure(figsize=(width, height), layout=engine)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_block(block: Block, rows: list[list[Axes]], sizes: list[float]) -> None:
    """A row of maps a line; the full model's is one map, whatever the sizes."""
    drawn: list[tuple[Line, dict[float, Axes]]] = []
    for line, axes in zip(block.lines, rows, strict=True):
        here: dict[float, Axes] = {}
        for ax, size in zip(axes, sizes, strict=True):
            fields = line.fields if line.policy == "full" else line.fields[line.fields["cache"] == size]
            if fields.empty or (line.policy == "full" and here):
                ax.remove()
                continue
            _draw_map(ax, fields, block, named=not here)
            here[size] = ax
        next(iter(here.values())).set_ylabel(line.label, color=style.looks([line.policy])[line.policy].color, fontweight="bold")
        drawn.append((line, here))
    policies = [here for line, here in drawn if line.policy != "full"]
    for size in sizes:
        column = [here[size] for here in policies if size in here]
        for ax in column[:1]:
            ax.set_title(f"k = {size:,.0f}")
        for ax in column[:-1]:
            ax.tick_params(labelbottom=False)
    topmost = next(iter(drawn[0][1].values()))
    title = f"{block.title}, RANDOM WEIGHTS" if block.random else block.title
    above = "\n" if topmost.get_title() else ""
    topmost.set_title(title + above, loc="left", color=style.ALARM if block.random else "black")


def _draw_map(ax: Axes, fields: pd.DataFrame, block: Block, *, named: bool) -> None:
    """Depths down, lengths across, a dash where nothing was measured; `named`: with the depths beside it."""
    measured = fields.assign(value=fields["total"] / fields["count"]).pivot(index="depth", columns="length", values="value")
    shares = 100.0 * measured.reindex(index=block.depths, columns=block.lengths)
    values = shares.to_numpy("float64")
    ax.grid(False)
    ax.imshow(values, cmap=_COLORS, vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        ink: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "fontsize": style.SMALL,
            "color": "white" if value > 55 else "black",
        }
        ax.text(column, row, "–" if np.isnan(value) else f"{value:.0f}", **ink)
    ax.set_xticks(range(values.shape[1]), labels=[f"{int(length):,}" for length in shares.columns])
    ax.set_yticks(range(values.shape[0]), labels=[f"{100 * depth:g}%" for depth in shares.index])
    ax.tick_params(length=0, labelleft=named)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(_EDGE)


def _add_scale(figure: Figure, rows: int) -> None:
    scale = ScalarMappable(Normalize(0, 100), matplotlib.colormaps[_COLORS])
    bar = figure.colorbar(scale, ax=figure.axes, location="right", shrink=min(0.9, 2.5 / rows), aspect=22, pad=0.015)
    bar.set_label("Accuracy (%)")
    bar.outline.set_visible(False)


def _caption(fields: pd.DataFrame, note: str | None, width: int) -> list[str]:
    """What the reader must know and the axes do not say."""

    def shown(name: str) -> str:
        return " / ".join(str(value) for value in fields[name].unique() if value)

    fewest, most = int(fields["count"].min()), int(fields["count"].max())
    number = f"{most:,} example{'s' * (most > 1)}" if fewest == most else f"{fewest:,} to {most:,} examples"
    prefills = shown("prefill")
    sentences = [
        "Down: where in the text the answer stands (0% its beginning). Across: tokens of the prompt.",
        f"{number} per field. Kind {shown('subtask')}, {shown('template')} prompt, {shown('dtype')}, {shown('weights')} weights"
        + (f", prompts read {prefills}." if prefills else "."),
        *([note] if note else []),
    ]
    return textwrap.wrap(" ".join(sentences), width)

"""Which figures the page has, drawn: those that suit what a folder holds, and any other that can be drawn from it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from msrnn_bench import figures
from msrnn_bench.errors import UsageError, one_line
from msrnn_bench.report import inline, readings
from msrnn_bench.report.folders import Folder, Together
from msrnn_bench.report.inline import Picture
from msrnn_bench.results.arrays import read_arrays

ROOM = 3_000_000  # bytes of a page
_SVG_MOST = 400_000  # bytes: a larger drawing is a map, and smaller as a picture
_ODD = (ArithmeticError, LookupError, TypeError, ValueError)  # of a figure from rows that no task of ours wrote
_DOTS = (150, 110, 80, 60, 45)  # per inch, of pictures that must become smaller


@dataclass
class Drawn:
    """A figure on the page: what it is called, how it is read, how it is drawn."""

    name: str
    title: str
    reading: list[str]
    figure: Figure
    picture: Picture


@dataclass(frozen=True)
class Undrawn:
    """A figure that suits a folder and could not be drawn, and why."""

    folder: str
    name: str
    reason: str


def draw(folder: Folder, prefix: str) -> tuple[list[Drawn], list[Undrawn]]:
    """The figures of a folder by itself. Those that no task claims are tried: one that finds nothing to draw is not there."""
    wanted = figures.suited(folder.summary)
    others = [name for name in figures.names() if name not in wanted and not _claimed(name)]
    drawn, undrawn = _draw([folder], folder.name, folder.rows, folder.summary, wanted, others, prefix)
    if any(one.name in others for one in drawn):  # its task has figures of its own, and is no score
        undrawn = [one for one in undrawn if one.name != "score"]
    return drawn, undrawn


def draw_together(folders: Sequence[Folder], whole: Together, drawn: set[str]) -> list[Drawn]:
    """The figures that need several folders: those that none of them could fill by itself."""
    if len(folders) == 1:
        return []
    suited = figures.suited(whole.summary)
    missing = [name for name in figures.names() if name not in drawn and (name in suited or not _claimed(name))]
    return _draw(folders, "all folders", whole.rows, whole.summary, [], missing, "all-")[0]


def _claimed(name: str) -> bool:
    """Whether some task's results are drawn with it; then it is not tried on those of others."""
    own = getattr(importlib.import_module(f"{figures.__name__}.{name}"), "TASKS", ())
    return bool(own) or any(name in names for names in figures.SUITED.values()) or name == "score"


def _draw(
    folders: Sequence[Folder],
    where: str,
    rows: pd.DataFrame,
    summary: pd.DataFrame,
    wanted: list[str],
    others: list[str],
    prefix: str,
) -> tuple[list[Drawn], list[Undrawn]]:
    drawn, undrawn = [], []
    for name in [*wanted, *others]:
        table = rows if figures.table_of(name) == "tidy" else summary
        try:
            figure = figures.draw(name, table, **_options(name, table, folders))
            reading = readings.read(name, rows, summary)
            title = f"{readings.title(name)}, {where}"
            drawn.append(Drawn(name, title, reading, figure, _picture(figure, f"{prefix}{name}-", title, reading)))
        except UsageError as error:
            if name in wanted:
                undrawn.append(Undrawn(where, name, str(error)))
        except _ODD as error:
            why = f"its rows are not such as this figure has ({type(error).__name__}: {one_line(error)})"
            undrawn.append(Undrawn(where, name, why))
    return drawn, undrawn


def _options(name: str, table: pd.DataFrame, folders: Sequence[Folder]) -> dict[str, Any]:
    """What the figure takes beside its table: the models' note, and the arrays that cells kept (`ARRAYS`)."""
    module = importlib.import_module(f"{figures.__name__}.{name}")
    options: dict[str, Any] = {"note": figures.note(table)} if "note" in inspect.signature(module.plot).parameters else {}
    if kind := getattr(module, "ARRAYS", None):
        options["arrays"] = {cell: held for folder in reversed(folders) for cell, held in read_arrays(folder.path, kind).items()}
    return options


def _picture(figure: Figure, prefix: str, title: str, reading: Sequence[str]) -> Picture:
    made = inline.svg(figure, prefix, title, " ".join(reading))
    return made if len(made.html) <= _SVG_MOST else inline.png(figure, title, " ".join(reading), _DOTS[0])


def fit(drawn: Sequence[Drawn], size: Callable[[], int]) -> None:
    """Draw the largest pictures smaller until the page, of `size()` bytes, has at most ROOM."""
    while size() > ROOM:
        maps = [one for one in drawn if one.picture.kind == "svg" or one.picture.dots > _DOTS[-1]]
        if not maps:
            return
        largest = max(maps, key=lambda one: len(one.picture.html))
        dots = next(dots for dots in _DOTS if largest.picture.kind == "svg" or dots < largest.picture.dots)
        smaller = inline.png(largest.figure, largest.title, " ".join(largest.reading), dots)
        if largest.picture.kind == "svg" and len(smaller.html) >= len(largest.picture.html):
            smaller = inline.png(largest.figure, largest.title, " ".join(largest.reading), _DOTS[-2])
        largest.picture = smaller

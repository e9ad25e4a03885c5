"""`msrnn-bench plot`: figures from a results folder. Reads tables, loads no model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from msrnn_bench import figures
from msrnn_bench.errors import UsageError, one_line
from msrnn_bench.figures import _published
from msrnn_bench.results import spreadsheet
from msrnn_bench.results.arrays import read_arrays
from msrnn_bench.results.files import write_atomically
from msrnn_bench.results.guarded import listed, plain
from msrnn_bench.results.summary import SUMMARY_TYPES, TIDY_TYPES, tables

PUBLISHED = "The paper's own numbers (arXiv 2401.06104v2), which come without intervals."
# of single figures, each of which refuses those of others
OPTIONS = ("local", "window", "difference", "start", "layer", "cache", "lines", "scheme")


def main(options: Namespace) -> int:
    """Draw `options.figure`, or what suits the tasks, from `options.results_dir` and print the paths."""
    folder = Path(options.results_dir).expanduser()
    if options.figure is not None and options.figure not in figures.names():
        raise UsageError(f"unknown figure {options.figure!r}; there are: {', '.join(figures.names())}")
    for option in OPTIONS:
        if getattr(options, option) is not None and options.figure is None:
            raise UsageError(f"{option}={getattr(options, option)} is an option of one figure: say which, figure=NAME")
    if options.published not in (None, "true", "false", "only"):
        raise UsageError(f"published={options.published} must be true (the paper's numbers beside yours), only, or false")
    known = _Tables(folder)
    if options.published == "only":
        names = [options.figure or "perplexity"]
    else:
        names = [options.figure] if options.figure else figures.suited(known["summary"], options.metric)
    if options.out and len(names) > 1:
        raise UsageError(
            f"out={options.out} names one file for {len(names)} figures: choose one, figure={names[0]} or {names[1]}"
        )
    if not names:
        raise UsageError(f"no figure suits these tasks: read {folder / 'summary.csv'}, or choose one with figure=NAME")
    for name in names:
        own = folder / (f"published_{name}" if options.published == "only" else name)
        stem = Path(options.out).expanduser() if options.out else own
        _draw(name, known, stem.with_suffix("") if stem.suffix in (".png", ".pdf", ".svg") else stem, options)
    return 0


def _draw(name: str, known: _Tables, stem: Path, options: Namespace) -> None:
    if options.published == "only":
        table = _published.rows() if figures.table_of(name) == "tidy" else _published.tables()[1]
        settings: dict[str, Any] = {"note": options.note or PUBLISHED}
    else:
        table = known[figures.table_of(name)]
        settings = {
            "note": options.note or figures.note(table),
            "published": {"true": True, "false": False}.get(options.published),
        }
    if options.metric:
        settings["metric"] = options.metric
    if options.paper:
        settings["paper"] = _table(Path(options.paper).expanduser())
    settings |= {option: value for option in OPTIONS if (value := getattr(options, option)) is not None}
    if kind := figures.arrays_of(name):
        settings["arrays"] = read_arrays(known.folder, kind)
    paths = figures.save(figures.draw(name, table, **settings), stem)
    shown = figures.data(name, table)
    if shown is not None:
        paths.append(stem.with_name(f"{stem.name}.csv"))
        write_atomically(paths[-1], spreadsheet.harmless(shown).to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    for path in paths:
        print(path)


class _Tables:
    """`summary` and `tidy` of the finished cells, read once; where only the tables were kept, those on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, which: str) -> pd.DataFrame:
        if listed(self.folder, ".json"):
            rows, summary = self._read
            return rows if which == "tidy" else summary
        kept = self.folder / f"{which}.csv"
        if not plain(kept):
            raise UsageError(f"{self.folder} has no results: run `msrnn-bench run` or `msrnn-bench sweep` first")
        types = TIDY_TYPES if which == "tidy" else SUMMARY_TYPES
        try:
            return _table(kept, spreadsheet.read).reindex(columns=list(types)).astype(types)
        except ValueError as error:
            raise UsageError(f"{kept} is none that `msrnn-bench collect` wrote ({one_line(error)})") from error

    @cached_property
    def _read(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return tables(self.folder)


def _table(path: Path, read: Callable[[Path], pd.DataFrame] = pd.read_csv) -> pd.DataFrame:
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} ({' '.join(str(error).split())}): give a CSV file") from error

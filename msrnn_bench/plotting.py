"""`msrnn-bench plot`: a figure from a results folder. Reads tables, loads no model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd

from msrnn_bench import figures
from msrnn_bench.errors import UsageError
from msrnn_bench.summary import SUMMARY_TYPES, collect

# What a reader must know of a model wherever its numbers are shown.
NOTES = {"smollm2": "smollm2 is SmolLM2-135M-Instruct: instruction-tuned, quantised to 4 bits (Q4_1)."}


def main(options: Namespace) -> int:
    """Draw `options.figure` from `options.results_dir` and print the paths."""
    folder = Path(options.results_dir).expanduser()
    table = _summary(folder)
    if options.figure not in figures.names():
        raise UsageError(f"unknown figure {options.figure!r}; there are: {', '.join(figures.names())}")
    settings: dict[str, Any] = {"note": options.note or _note(table)}
    if options.paper:
        settings["paper"] = _table(Path(options.paper).expanduser())
    stem = Path(options.out).expanduser() if options.out else folder / options.figure
    figure = figures.draw(options.figure, table, **settings)
    for path in figures.save(figure, stem.with_suffix("") if stem.suffix in (".png", ".pdf", ".svg") else stem):
        print(path)
    return 0


def _summary(folder: Path) -> pd.DataFrame:
    """The summary of the finished cells; where only the tables were kept, the one on disk."""
    if any((folder / "cells").glob("[!.]*.json")):
        return collect(folder)[1]
    if not (folder / "summary.csv").is_file():
        raise UsageError(f"{folder} has no results: run `msrnn-bench run` or `msrnn-bench sweep` first")
    return _table(folder / "summary.csv").astype(SUMMARY_TYPES)


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} ({' '.join(str(error).split())}): give a CSV file") from error


def _note(table: pd.DataFrame) -> str | None:
    return " ".join(NOTES[name] for name in sorted(set(table["model"]) & set(NOTES))) or None

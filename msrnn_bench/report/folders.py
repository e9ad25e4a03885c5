"""Results folders, read: each by itself, as the page shows them, and all together, as claims are judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from msrnn_bench.errors import UsageError
from msrnn_bench.redact import redacted_values, redactor
from msrnn_bench.results import spreadsheet
from msrnn_bench.results.cells import read_manifest
from msrnn_bench.results.guarded import listed, plain
from msrnn_bench.results.reading import Cells, read_cells
from msrnn_bench.results.summary import SUMMARY_TYPES, TIDY_TYPES, summarise

_SAME = ["document", "subtask", "length", "depth", "bucket_start", "bucket_end", "metric", "total", "count", "status"]


@dataclass(frozen=True)
class Folder:
    """One results folder. `name` is what the page calls it: never a path, which is another on another machine."""

    name: str
    rows: pd.DataFrame
    summary: pd.DataFrame
    manifests: dict[str, dict[str, Any]]  # of finished and failed cells
    failures: list[dict[str, Any]]
    unfinished: list[str]  # cells that were begun and have no manifest
    path: Path

    def of(self, cells: Sequence[str]) -> list[dict[str, Any]]:
        return [self.manifests[cell] for cell in cells if cell in self.manifests]


@dataclass(frozen=True)
class Together:
    """All folders as one: no two cells are pooled, and a cell that several folders hold counts once."""

    rows: pd.DataFrame
    summary: pd.DataFrame
    twice: list[str]  # cells of which two folders hold unlike rows: the first folder's count


def named(text: str) -> list[Path]:
    """The folders of `results_dir=A,B`, or of `[A,B]`; one whose name has a comma is itself."""
    whole = Path(text).expanduser()
    if whole.is_dir():
        return [whole]
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    paths = [Path(part.strip()).expanduser() for part in inner.split(",") if part.strip()]
    if not paths:
        raise UsageError("results_dir names no folder: write results_dir=results, or results_dir=A,B")
    return list(dict.fromkeys(paths))


def read(paths: Sequence[Path]) -> list[Folder]:
    """Each folder by itself, in the order given; refuses one that holds no results."""
    names = _names(paths)
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def together(folders: Sequence[Folder]) -> Together:
    """Their rows and the summary of these, one name never standing for two things (results/variants.py)."""
    if len(folders) == 1:
        return Together(folders[0].rows, folders[0].summary, [])
    celled = [folder for folder in folders if folder.manifests]
    rows, failures = _told(read_cells(*[folder.path for folder in celled])) if celled else (folders[0].rows.iloc[:0], [])
    kept = [folder.rows[~folder.rows["cell"].isin(set(rows["cell"]))] for folder in folders if not folder.manifests]
    whole = pd.concat([rows, *kept], ignore_index=True).astype(TIDY_TYPES)
    return Together(whole, summarise(whole, failures), _twice(folders))


def _twice(folders: Sequence[Folder]) -> list[str]:
    count = Counter(cell for folder in folders for cell in set(folder.rows["cell"]))
    unlike = []
    for cell in sorted(cell for cell, times in count.items() if times > 1):
        parts = [folder.rows.loc[folder.rows["cell"] == cell, _SAME].reset_index(drop=True) for folder in folders]
        parts = [part for part in parts if len(part)]
        if any(not part.equals(parts[0]) for part in parts[1:]):
            unlike.append(cell)
    return unlike


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with a number where several have the same."""
    last = [path.resolve().name or "results" for path in paths]
    return [name if last.count(name) == 1 else f"{name} ({last[: n + 1].count(name)})" for n, name in enumerate(last)]


def _read(path: Path, name: str) -> Folder:
    manifests = _manifests(path)
    if manifests:
        rows, failures = _told(read_cells(path))
    elif plain(path / "tidy.csv"):  # only the tables were kept
        rows, failures = _table(path / "tidy.csv"), []
    else:
        rows, failures = pd.DataFrame(columns=list(TIDY_TYPES)), []
    if rows.empty and not failures:
        raise UsageError(f"{path} has no results{_inside(path)}: run `msrnn-bench run` or `msrnn-bench sweep` first")
    begun = {file.stem for file in listed(path, ".jsonl")} - set(manifests)
    rowless = {cell for cell, manifest in manifests.items() if manifest.get("status") == "ok"} - set(rows["cell"])
    unfinished = sorted(begun | rowless)
    summary = summarise(rows, failures).astype(SUMMARY_TYPES)
    return Folder(name, rows, summary, manifests, failures, unfinished, path)


def _inside(path: Path) -> str:
    """Where results may have been meant."""
    inner = sorted(found.parent.name for found in path.glob("*/cells"))
    return f" of its own, but {', '.join(inner[:6])} inside it have (results_dir={path / inner[0]},...)" if inner else ""


def _manifests(path: Path) -> dict[str, dict[str, Any]]:
    found = {file.stem: read_manifest(file) for file in listed(path, ".json")}
    return {cell: redacted_values(manifest) for cell, manifest in found.items() if manifest is not None}


def _told(cells: Cells) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """What a page may tell of them: older cells were written before secrets were left out of files."""
    return spreadsheet.mapped(cells.rows, redactor()), redacted_values(cells.failures)


def _table(path: Path) -> pd.DataFrame:
    try:
        return spreadsheet.read(path).reindex(columns=list(TIDY_TYPES)).astype(TIDY_TYPES)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {path} ({' '.join(str(error).split())}): give what `msrnn-bench collect` writes"
        ) from error

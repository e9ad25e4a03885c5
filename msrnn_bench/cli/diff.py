"""`msrnn-bench diff CELL CELL`: what two cells do otherwise, and what came out. Loads no model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from msrnn_bench.errors import UsageError, shown
from msrnn_bench.redact import printable
from msrnn_bench.report.folders import named
from msrnn_bench.results.agreement import values
from msrnn_bench.results.cells import intact, read_manifest
from msrnn_bench.results.differences import differences
from msrnn_bench.results.finding import find
from msrnn_bench.results.reading import read_rows
from msrnn_bench.results.summary import quantity

LINES = 24  # of numbers, where some are of the whole


def main(args: list[str]) -> int:
    """Print it; the exit code says nothing of it."""
    cells = [arg for arg in args if not arg.startswith("results_dir=")]
    folders = named(next((arg.partition("=")[2] for arg in args if arg.startswith("results_dir=")), "results"))
    if len(cells) != 2:
        raise UsageError(f"diff takes two cells, got {len(cells)}: msrnn-bench diff CELL CELL")
    paths = [find(cell, folders) for cell in cells]
    manifests = [manifest_of(path) for path in paths]
    for letter, path, manifest in zip("AB", paths, manifests, strict=True):
        print(printable(f"{letter}  {manifest.get('label')}  {path}"))
    print("\n" + told(differences(*manifests), "A", "B"))
    failed = [f"{letter} failed: {shown(m.get('error'))}" for letter, m in zip("AB", manifests, strict=True) if is_failed(m)]
    if failed:
        print("\n" + printable("\n".join(failed)))
    else:
        a, b = map(rows_of, paths, manifests)
        print("\n" + numbers(a, b, "A", "B"))
    return 0


def manifest_of(path: Path) -> dict[str, Any]:
    """A cell's manifest, seen to be there."""
    manifest = read_manifest(path)
    if manifest is None:
        raise UsageError(f"{path} cannot be read: run the cell again")
    return manifest


def is_failed(manifest: Mapping[str, Any]) -> bool:
    return manifest.get("status") != "ok"


def rows_of(path: Path, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """The rows beside a manifest, seen to be those that it was written for."""
    rows = path.with_suffix(".csv")
    if not rows.is_file() or not intact(rows, manifest):
        raise UsageError(f"{rows} is {'not what was written' if rows.is_file() else 'missing'}: run the cell again")
    return read_rows(rows)


def told(found: Mapping[str, Mapping[str, tuple[Any, Any]]], ours: str, theirs: str) -> str:
    """The differences of two manifests, part by part, each a line with both values."""
    unlike = {part: keys for part, keys in found.items() if keys}
    rows: list[list[str]] = []
    for part, keys in unlike.items():
        rows += [[part, ours, theirs]]
        rows += [[f"  {key}", _value(a), _value(b)] for key, (a, b) in keys.items()]
    same = [part for part in found if part not in unlike]
    return "\n".join(filter(None, [_columns(rows), f"the same: {', '.join(same)}" if same else ""]))


def numbers(a: pd.DataFrame, b: pd.DataFrame, ours: str, theirs: str, *, paired: bool = True) -> str:
    """Values side by side, `paired` with the interval of their difference; where a task has very many, those of the whole."""
    found = values(a, b)
    whole = found[found["subtask"].isna() | found["subtask"].eq("all")]
    lines = whole if len(found) > LINES and len(whole) else found
    rows = [["numbers", ours, theirs, f"{theirs} - {ours}", *(["paired 95% interval"] if paired else [])]]
    for _, line in lines.iterrows():
        parts = [quantity(str(line["metric"])), line["subtask"], None if pd.isna(line["length"]) else f"{line['length']} tokens"]
        name = ", ".join(str(part) for part in parts if pd.notna(part))
        between = "" if pd.isna(line["low"]) else f"{_number(line['low'])} to {_number(line['high'])}"
        three = [_number(line[key]) for key in ("ours", "theirs", "difference")]
        rows.append([f"  {name}", *three, *([between] if paired else [])])
    return _columns(rows) + (f"\n  and {len(found) - len(lines)} more, by part" if len(lines) < len(found) else "")


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.6g}"


def _value(value: Any) -> str:
    """As it is typed; a hash by its beginning."""
    text = value if isinstance(value, str) else json.dumps(value, default=str) if isinstance(value, dict | list) else shown(value)
    return shown(re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", text)) or '""'


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns stand below each other."""
    texts = [[printable(" ".join(cell.split())) if n else printable(cell) for n, cell in enumerate(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)] if texts else []
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts)

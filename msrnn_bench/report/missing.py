"""What is not there: cells that failed, were begun, or leave a hole in their own grid; and the command that fills each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from msrnn_bench.errors import one_line
from msrnn_bench.report.drawing import Undrawn
from msrnn_bench.report.folders import Folder, Together
from msrnn_bench.report.tables import parts

# A cell's configuration and what is to be changed of it -> the command that measures that. The command line brings it.
Command = Callable[[Mapping[str, Any], Mapping[str, str]], str]

_GRID = [
    "task", "model", "dataset", "weights", "context", "seed", "bos", "dtype", "engine", "prefill", "positions", "template",
    "variant",
]  # fmt: skip
_TOPLINE = [name for name in _GRID if name not in ("engine", "prefill")]  # which do not change the full model
_MOST = 40  # lines of each kind: who has more looks into the folder
_UNBOUNDED = "full"


@dataclass(frozen=True)
class Missing:
    """`kind`: failed | begun | not measured | not drawn | counted once."""

    folder: str
    kind: str
    what: str
    why: str
    command: str  # "" where none is known


def find(folders: Sequence[Folder], whole: Together, undrawn: Sequence[Undrawn], command: Command) -> list[Missing]:
    """All of it, folder by folder."""
    found: list[Missing] = []
    for folder in folders:
        found += _some([_failed(folder, manifest, command) for manifest in folder.failures], folder, "failed")
        found += _some([_begun(folder, cell) for cell in folder.unfinished], folder, "begun")
        found += _some(_holes(folder, command), folder, "not measured")
    found += [Missing(one.folder, "not drawn", f"figure {one.name}", one.reason, "") for one in undrawn]
    twice = "two folders hold unlike rows of it; the claims rest on those of the folder named first"
    return [*found, *(Missing("all folders", "counted once", f"cell {cell}", twice, "") for cell in whole.twice)]


def _failed(folder: Folder, manifest: Mapping[str, Any], command: Command) -> Missing:
    why = one_line(Exception(str(manifest.get("error") or "no reason was recorded")))
    return Missing(folder.name, "failed", str(manifest.get("label") or manifest["cell"]), why, _filled(manifest, {}, command))


def _begun(folder: Folder, cell: str) -> Missing:
    return Missing(
        folder.name, "begun", f"cell {cell}", "it has no manifest yet; the command that began it goes on where it stopped", ""
    )


def _holes(folder: Folder, command: Command) -> list[Missing]:
    """Of each grid: sizes at which others were measured and a policy was not; toplines that nothing is held against."""
    lines = folder.summary.drop_duplicates("cell")
    found = []
    for grid in parts(lines, _GRID):
        bounded = grid[grid["cache"].notna()]
        sizes = sorted(set(bounded["cache"]))
        for policy, mine in bounded.groupby("policy", sort=True):
            lacking = [size for size in sizes if size not in set(mine["cache"])]
            if lacking:
                what = f"{_subject(mine)}: {policy} at k={', '.join(f'{size:,}' for size in lacking)}"
                changes = {"cache": ",".join(str(size) for size in lacking)}
                why, how = "others of its grid were measured there", _like(folder, mine, changes, command)
                found.append(Missing(folder.name, "not measured", what, why, how))
    for grid in parts(lines, _TOPLINE):
        if (grid["policy"] != _UNBOUNDED).all():
            why, how = "no policy can be compared with it", _like(folder, grid, {"policy": _UNBOUNDED}, command)
            found.append(Missing(folder.name, "not measured", f"{_subject(grid)}: the topline", why, how))
    return found


def _like(folder: Folder, lines: pd.DataFrame, changes: Mapping[str, str], command: Command) -> str:
    """The command of one of these cells, changed."""
    known = folder.of([str(cell) for cell in lines["cell"]])
    return _filled(known[0], changes, command) if known else ""


def _filled(manifest: Mapping[str, Any], changes: Mapping[str, str], command: Command) -> str:
    config = manifest.get("config")
    return command(config, changes) if config else ""


def _some(found: list[Missing], folder: Folder, kind: str) -> list[Missing]:
    if len(found) <= _MOST:
        return found
    return [*found[:_MOST], Missing(folder.name, kind, f"{len(found) - _MOST:,} more", "the folder's manifests name them", "")]


def _subject(lines: pd.DataFrame) -> str:
    first = lines.iloc[0]
    text = "" if first["dataset"] == "none" else f" on {first['dataset']}"
    return f"{first['model']}, {first['task']}{text}"

"""A cell as people name it, to its manifest: its id, the beginning of it, or the path of one of its files."""

import re
from collections.abc import Sequence
from pathlib import Path

from msrnn_bench.errors import UsageError, shown
from msrnn_bench.results.guarded import listed

ID = 16  # hex digits


def find(name: str, folders: Sequence[Path]) -> Path:
    """The manifest of the one cell of that name, looked for in the folders and those right below them."""
    path = Path(name).expanduser()
    if path.suffix in (".json", ".csv"):
        if not path.with_suffix(".json").is_file():
            raise UsageError(f"{shown(name)} is no cell, there is no {path.with_suffix('.json').name} with its settings")
        return path.with_suffix(".json")
    if not re.fullmatch(f"[0-9a-f]{{1,{ID}}}", name):
        raise UsageError(f"{shown(name)} names no cell: give its id, the beginning of it, or the path of its .json")
    places = [place for folder in folders for place in (folder, *(cells.parent for cells in sorted(folder.glob("*/cells"))))]
    named = [path for place in places for path in listed(place, ".json") if path.name.startswith(name)]
    found = [path for path in named if len(path.stem) == ID and path.is_file()]
    if not found:
        where = ", ".join(map(str, folders))
        raise UsageError(f"no cell begins with {name} in {where}: give results_dir=FOLDER, or the path of its .json")
    if len(found) > 1:
        ids = {path.stem for path in found}
        first = ", ".join(str(path) for path in found[:3]) + (", ..." if len(found) > 3 else "")
        more = "give more of its id" if len(ids) > 1 else "give its path"
        raise UsageError(f"{name} is the beginning of {len(found)} cells ({first}): {more}")
    return found[0]

"""`shards=N`: a cell's documents measured by several processes, here or on other machines; the cell in the end is that of one.

Each part is leased and journalled by itself. Who finds all parts measured takes the cell, in which every document then
comes from a journal: rows, their order and the manifest are made as ever (execute.py). What parts have left is taken over by
any later run, shared by as many as it likes or by none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msrnn_bench.results import sharing
from msrnn_bench.runs.cell import Prepared, this_run


def expand(cells: Sequence[Prepared]) -> list[Prepared]:
    """Each cell as often as it has parts, which follow each other; one that is not shared as it is."""
    return [part for cell in cells for part in _parts(cell)]


def whole(part: Prepared) -> Prepared:
    """The cell that it is a part of."""
    return replace(part, cell=part.cell.whole)


def measured(part: Prepared) -> bool:
    """Whether all of the part is in its journal."""
    return sharing.ended(part.cell, this_run() if part.force else None)


def all_measured(part: Prepared) -> bool:
    """Whether all of every part of the cell is."""
    return all(map(measured, _parts(whole(part))))


def _parts(cell: Prepared) -> list[Prepared]:
    shards = int(cell.config["shards"])
    return [replace(cell, cell=part) for part in sharing.shards(cell.cell, shards)] if shards > 1 else [cell]

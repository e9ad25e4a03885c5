"""One cell's documents shared by several processes: each part of the cell (`Cell.shard`) has a lease and a journal of its own,
and the journal's last line says that it has all of the part. Knows the files, not who measures what into them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msrnn_bench.results.cells import Cell
from msrnn_bench.results.journal import Journal
from msrnn_bench.results.leases import free

END = ""  # the key of a part's last record, which no document has
_LAST = 256  # bytes that have that record


def shards(cell: Cell, count: int) -> list[Cell]:
    """The parts of a cell."""
    return [replace(cell, shard=(number, count)) for number in range(count)]


def end(shard: Cell, seconds: float, run: str) -> None:
    """Note that all of a part is in its journal, how long that took, and in which run."""
    Journal(shard.journal).add(END, {"seconds": round(seconds, 3), "run": run})


def ended(shard: Cell, run: str | None = None) -> bool:
    """Whether all of a part is in its journal; with `run`, whether that run put it there."""
    last = _end(shard.journal)
    return last is not None and run in (None, last.get("run"))


def earlier(cell: Cell, run: str | None = None) -> tuple[Path, ...]:
    """The journals, but for its own, that may have what the cell or the part wants: whole ones and parts', by however many the
    cell was shared then; with `run`, of the parts that came to their end in that run."""
    if run is not None:
        found = [part.journal for part in _parts(cell, "jsonl") if ended(part, run)]
    else:
        found = [cell.whole.journal, *(part.journal for part in _parts(cell, "jsonl"))]
    return tuple(path for path in found if path != cell.journal)


def seconds(journals: Sequence[Path]) -> float:
    """How long the parts behind these journals took, those that came to their end."""
    return sum(float(last["seconds"]) for path in journals if (last := _end(path)) is not None)


def forget(cell: Cell) -> None:
    """Remove the parts' journals, once the cell has all of them, and the leases that dead processes left."""
    for part in _parts(cell, "jsonl"):
        part.journal.unlink(missing_ok=True)
    for part in _parts(cell, "lease"):
        free(part)


def alone(cell: Cell) -> bool:
    """Whether no other process measures the cell in another way: whole where we share it, or shared by another number. Asked
    with the own lease in hand, so that of two who ask at once at least one sees the other."""
    ours = cell.shard and cell.shard[1]
    others = [part for part in _parts(cell, "lease") if part.shard and part.shard[1] != ours and not ended(part)]
    return all(map(free, [cell.whole, *others] if ours else others))


def _parts(cell: Cell, suffix: str) -> Iterator[Cell]:
    """The parts of which there is such a file."""
    for path in sorted(cell.csv.parent.glob(f".{cell.id}.shard-*.{suffix}")):
        if named := re.fullmatch(rf"\.{cell.id}\.shard-(\d+)-of-(\d+)\.{suffix}", path.name):
            yield replace(cell, shard=(int(named[1]) - 1, int(named[2])))


def _end(path: Path) -> dict[str, Any] | None:
    """The last record of a journal, if it is that of the end. A journal may be large, and who waits looks often."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LAST))
            last = json.loads(file.read().splitlines(keepends=True)[-1])
    except (OSError, ValueError, IndexError, RecursionError):
        return None
    whole = isinstance(last, dict) and last.get("key") == END and isinstance(last.get("seconds"), int | float)
    return last if whole else None

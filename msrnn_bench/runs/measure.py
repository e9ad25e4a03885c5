"""Cells measured one after the other, each by one process of all that are at the grid. A cell that fails ends no other."""

from __future__ import annotations

import _thread
import gc
import sys
import time
from collections.abc import Sequence
from typing import Literal

from msrnn_bench.errors import LESS_MEMORY, StorageError, UsageError, one_line, out_of_memory
from msrnn_bench.results import sharing
from msrnn_bench.results.leases import holders, lease
from msrnn_bench.runs.cell import Prepared
from msrnn_bench.runs.execute import execute, record_failure
from msrnn_bench.runs.progress import CellProgress
from msrnn_bench.runs.shards import all_measured, measured, whole

Outcome = Literal["done", "failed", "busy"]
LOOK = 2.0  # seconds between two looks at cells that other processes are at


def measure(cells: Sequence[Prepared], progress: CellProgress) -> None:
    """Measure what is neither finished nor failed, and wait for what others are at: one that dies leaves its cell to us."""
    progress.cells = len(cells)
    progress.remaining = lambda: sum(not cell.settled for cell in cells)
    progress.at_first = (time.monotonic(), progress.remaining())
    waits = False
    with progress:
        while True:
            busy = []
            for number, cell in enumerate(cells, start=1):
                if not cell.settled and measure_part(cell, progress, number) == "busy":
                    busy.append(cell)
            busy = [cell for cell in busy if not cell.settled]  # a cell's first part is busy until its last one is done
            if not busy:
                return
            if not waits:
                print(f"waiting for {_others(busy)}", file=sys.stderr, flush=True)
            waits = True
            time.sleep(LOOK)


def measure_part(part: Prepared, progress: CellProgress, number: int = 1, *, single: bool = False) -> Outcome:
    """As `measure_one`, of a part of a cell; and if it was the last one then of the cell, which is busy until then."""
    if part.cell.shard is None:
        return measure_one(part, progress, number, single=single)
    if not measured(part) and (outcome := measure_one(part, progress, number, single=single)) != "done":
        return outcome
    if part.done:
        sharing.forget(part.cell)  # another way was faster
        return "done"
    return measure_one(whole(part), progress, number, single=single) if all_measured(part) else "busy"


def measure_one(cell: Prepared, progress: CellProgress, number: int = 1, *, single: bool = False) -> Outcome:
    """Measure a cell if no other process is at it. What goes wrong is the cell's failure and stands in its manifest, unless it
    is the storage's (StorageError is raised), or the cell is a `single` one, whose errors are all raised."""
    with lease(cell.cell, on_loss=_thread.interrupt_main) as held:
        if held is None or not sharing.alone(cell.cell):
            return "busy"
        if cell.done:
            return "done"
        if cell.failure is not None and not single:
            return "failed"
        progress.cell(number, cell.cell.told, held.tell)
        try:
            execute(cell)
        except StorageError:
            raise
        except KeyboardInterrupt:
            if not held.lost:
                raise
            progress.end("another process took it over while this one slept")
            return "busy"
        except Exception as error:
            reason = why(error)
            if held.ours and not (single and isinstance(error, UsageError)):
                record_failure(cell, error, reason)
            if single:
                raise
            progress.end(f"failed ({reason})")
            _let_go(cell, error)
            return "failed"
        progress.end("done")
        return "done"


def why(error: BaseException) -> str:
    """An error in one line, with its kind where the words are another library's."""
    if out_of_memory(error):
        return f"out of memory ({one_line(error)}): {LESS_MEMORY}"
    return " ".join(str(error).split()) if isinstance(error, UsageError) else f"{type(error).__name__}: {one_line(error)}"


def _let_go(cell: Prepared, error: Exception) -> None:
    """What a failed cell still holds. Without its memory the next cell would fail for this one's reason."""
    error.__traceback__ = None
    if out_of_memory(error):
        for key in [key for key in cell.job.shared if key[0] in ("model", "chunks")]:
            del cell.job.shared[key]
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _others(busy: Sequence[Prepared]) -> str:
    """Whom we wait for."""
    first, cells = busy[0].cell, {cell.cell.csv for cell in busy}
    found = {name.partition(".")[0]: holder for name, holder in holders(first.results_dir).items()}  # of a cell or its part
    who = f" (process {found[first.id].pid} on {found[first.id].host}, for one)" if first.id in found else ""
    return f"{len(cells)} cells in the hands of other processes{who}"

"""Many cells in one process: all checked first, finished ones skipped, the model loaded once. Measures nothing itself."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from msrnn_bench.compose import _hydra, _parse, compose_grid, compose_one
from msrnn_bench.errors import UsageError
from msrnn_bench.progress import CellProgress
from msrnn_bench.run import Prepared, execute, prepare


def is_sweep(override: str) -> bool:
    """Whether an override has several values."""
    with _hydra():
        return bool(_parse([override])[0].is_sweep_override())


def run(overrides: list[str], *, experiment_grid: bool, single: bool) -> int:
    """Run every cell that the overrides name. Returns the exit code: 1 when a cell failed."""
    points = [(overrides, compose_one(overrides))] if single else compose_grid(overrides, experiment_grid=experiment_grid)
    shared: dict[Any, Any] = {}
    progress = CellProgress(len(points))
    cells = _distinct([prepare(config, point, progress, shared) for point, config in points])
    progress.cells = len(cells)
    todo = [cell for cell in cells if not cell.done]
    if not single:
        print(f"{len(cells)} cells, {len(cells) - len(todo)} finished already")
    failed = []
    with progress:
        for number, cell in enumerate(cells, start=1):
            if cell.done:
                continue
            progress.cell(number, cell.cell.label)
            try:
                execute(cell)
            except (UsageError, KeyboardInterrupt):
                raise
            except Exception as error:
                if single:
                    raise
                failed.append(cell)
                progress.end(f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
                gc.collect()
                continue
            progress.end("done")
    if single:
        _show(cells[0], skipped=not todo)
    else:
        _close(cells, failed)
    return 1 if failed else 0


def _distinct(cells: list[Prepared]) -> list[Prepared]:
    """Each cell once: the full model's serves all sizes."""
    return list({cell.cell.csv: cell for cell in reversed(cells)}.values())[::-1]


def _show(cell: Prepared, skipped: bool) -> None:
    """The number, where it lies, and what it rests on."""
    from msrnn_bench.results import read_cells
    from msrnn_bench.summary import summarise

    rows, _ = read_cells(cell.cell.results_dir)
    ours = rows[rows["cell"] == cell.cell.id]
    if skipped:
        print("finished already; force=true measures it again")
    for _, line in summarise(ours, []).iterrows():
        name = "perplexity" if line["metric"] == "nll" else line["metric"]
        interval = f" (95% interval {line['low']:.4f} to {line['high']:.4f})" if line["low"] == line["low"] else ""
        print(f"{cell.cell.label}: {name} {line['value']:.4f}{interval}, {line['documents']} documents, {line['count']} tokens")
    if cell.job.policy.evicts:
        first = ours.iloc[0]
        print(f"{first['evictions']} evictions a layer in each chunk of {cell.job.context}, at most {first['max_states']} states")
    print(cell.cell.csv)


def _close(cells: list[Prepared], failed: list[Prepared]) -> None:
    from msrnn_bench.summary import collect

    folders: dict[Path, None] = {cell.cell.results_dir: None for cell in cells}
    for folder in folders:
        collect(folder)
        print(folder / "summary.csv")
    for cell in failed:
        print(f"failed: {cell.cell.label} ({cell.cell.manifest} has the traceback)")

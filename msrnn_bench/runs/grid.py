"""Many cells: all checked first, finished ones skipped, the model loaded once a process. Measures nothing itself."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn_bench.errors import UsageError
from msrnn_bench.results.leases import lease
from msrnn_bench.runs import dry
from msrnn_bench.runs.cell import Prepared, prepare
from msrnn_bench.runs.compose import compose_grid, compose_one
from msrnn_bench.runs.execute import execute
from msrnn_bench.runs.progress import WORKER, CellProgress

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 24  # lines of one cell; of one that has more, those of the whole are told


def run(overrides: list[str], *, experiment_grid: bool, single: bool) -> int:
    """Run every cell that the overrides name, or say what would be run. Returns the exit code: 1 when a cell failed."""
    points = [(overrides, compose_one(overrides))] if single else compose_grid(overrides, experiment_grid=experiment_grid)
    if any(config.get("dry_run") for _, config in points):
        return dry.show(points)
    shared: dict[Any, Any] = {}
    progress = CellProgress(len(points))
    cells = _distinct([prepare(config, point, progress, shared) for point, config in points])
    progress.cells = len(cells)
    todo = [cell for cell in cells if not cell.done]
    if single:
        _measure(cells, progress, stop_at_failure=True)
        _show(cells[0], skipped=not todo)
        return 0
    worker = WORKER in os.environ
    if not worker:
        print(f"{len(cells)} cells, {len(cells) - len(todo)} finished already", flush=True)
    workers = 1 if worker else min(points[0][1].workers, len(todo))
    failed = _spawn(cells, workers) if workers > 1 else _measure(cells, progress, stop_at_failure=False)
    if not worker:
        _close(cells, failed)
    return 1 if failed else 0


def _measure(cells: list[Prepared], progress: CellProgress, *, stop_at_failure: bool) -> list[Prepared]:
    """Measure what is not finished and no other process is at; returns what failed."""
    failed = []
    progress.remaining = lambda: sum(not cell.done for cell in cells)
    progress.at_first = (time.monotonic(), progress.remaining())
    with progress:
        for number, cell in enumerate(cells, start=1):
            if cell.done:
                continue
            with lease(cell.cell) as ours:
                if not ours or cell.done:
                    if ours or not stop_at_failure:
                        continue
                    raise UsageError(f"{cell.cell.label} is being measured by another process; wait for it")
                progress.cell(number, cell.cell.label)
                try:
                    execute(cell)
                except (UsageError, KeyboardInterrupt):
                    raise
                except Exception as error:
                    if stop_at_failure:
                        raise
                    failed.append(cell)
                    progress.end(f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
                    gc.collect()
                    continue
                cell.force = False
                progress.end("done")
    return failed


def _spawn(cells: list[Prepared], workers: int) -> list[Prepared]:
    """The same command in `workers` processes that share the cores; each takes what no other is at."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    env = {**os.environ, WORKER: "1", "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "msrnn_bench.cli.main", *sys.argv[1:]]
    running = [subprocess.Popen(command, env=env) for _ in range(workers)]
    try:
        codes = [process.wait() for process in running]
    except BaseException:
        for process in running:
            process.terminate()
        raise
    if any(code not in (0, 1) for code in codes):
        raise RuntimeError(f"a worker ended with code {max(codes, key=abs)}; the same command goes on from here")
    return [cell for cell in cells if not cell.done]


def _distinct(cells: list[Prepared]) -> list[Prepared]:
    """Each cell once: the full model's serves all sizes."""
    return list({cell.cell.csv: cell for cell in reversed(cells)}.values())[::-1]


def _show(cell: Prepared, skipped: bool) -> None:
    """The number, where it lies, and what it rests on."""
    from msrnn_bench.results.reading import read_cells
    from msrnn_bench.results.summary import summarise

    rows, _ = read_cells(cell.cell.results_dir)
    ours = rows[rows["cell"] == cell.cell.id]
    if skipped:
        print("finished already; force=true measures it again")
    lines = summarise(ours, [])
    whole = lines[lines["subtask"].isna() | lines["subtask"].eq("all")]
    told = whole if len(lines) > SHOWN and len(whole) else lines
    for _, line in told.iterrows():
        print(f"{cell.cell.label}: {_sentence(line)}")
    if len(told) < len(lines):
        print(f"{len(lines) - len(told)} more, by part: msrnn-bench collect results_dir={cell.cell.results_dir}")
    if cell.job.policy.evicts:
        what = f"in each chunk of {cell.job.context}" if cell.cell.task == "perplexity" else "at most"
        print(f"{ours['evictions'].max()} evictions a layer {what}, at most {ours['max_states'].max()} states")
    if cell.cell.journal.is_file():
        print(cell.cell.journal)
    print(cell.cell.csv)


def _sentence(line: pd.Series) -> str:
    """One line of the summary: which number, its value, what it rests on."""
    line = line[line.notna()]
    parts = "".join(f"{line[part]}, " for part in ("subtask", "length") if part in line)
    name, unit = ("perplexity", "tokens") if line["metric"] == "nll" else (line["metric"], "values")
    if "value" not in line:
        return f"{parts}{name} could not be measured ({line['status']})"
    method = line.get("interval")
    interval = f" (95% interval {_digits(line['low'])} to {_digits(line['high'])}, {method})" if "low" in line else ""
    return f"{parts}{name} {_digits(line['value'])}{interval}, {line['documents']} documents, {line['count']} {unit}"


def _digits(value: float) -> str:
    """Four behind the point; of what would be 0.0000 three that count."""
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.3g}"


def _close(cells: list[Prepared], failed: list[Prepared]) -> None:
    from msrnn_bench.results.summary import collect

    folders: dict[Path, None] = {cell.cell.results_dir: None for cell in cells}
    for cell in cells:
        if cell.done:
            cell.cell.lock.unlink(missing_ok=True)  # of a process that was killed between its last write and its end
    for folder in folders:
        collect(folder)
        print(folder / "summary.csv")
    for cell in failed:
        print(f"failed: {cell.cell.label} ({cell.cell.manifest} has the traceback)")

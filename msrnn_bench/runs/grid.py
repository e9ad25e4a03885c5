"""Many cells: all checked first, finished ones skipped, the model loaded once a process. Measures nothing itself."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn_bench.errors import UsageError
from msrnn_bench.results.fresh import fresh
from msrnn_bench.results.plans import write_plan
from msrnn_bench.runs import dry, slots
from msrnn_bench.runs.cell import Prepared, begin_run, prepare
from msrnn_bench.runs.compose import compose_grid, compose_one
from msrnn_bench.runs.measure import LOOK, measure, measure_part
from msrnn_bench.runs.progress import WORKER, CellProgress
from msrnn_bench.runs.shards import expand

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

SHOWN = 24  # lines of one cell; of one that has more, those of the whole are told


def run(overrides: list[str], *, experiment_grid: bool, single: bool) -> int:
    """Run every cell that the overrides name, or say what would be run. Returns the exit code: 1 when a cell failed."""
    if WORKER not in os.environ:
        begin_run()
    points = [(overrides, compose_one(overrides))] if single else compose_grid(overrides, experiment_grid=experiment_grid)
    if any(config.get("dry_run") for _, config in points):
        return dry.show(points)
    progress = CellProgress(len(points))
    cells = prepared(points, progress)
    if single:
        return _run_one(cells[0], progress)
    if WORKER in os.environ:
        measure(expand(cells), progress)
        return 0  # what failed stands in the manifests, and the parent reads them
    open_ = announce(cells)
    workers = min(points[0][1].workers, len(expand(open_)))
    if workers > 1:
        code = slots.run(expand(cells), workers)
        if code:
            return code
    elif open_:
        measure(expand(cells), progress)
    return close(cells)


def prepared(points: list[tuple[list[str], DictConfig]], progress: CellProgress) -> list[Prepared]:
    """The cells of a grid, each once, for the full model's serves all sizes; what does not fit is refused before the first."""
    shared: dict[Any, Any] = {}
    every = [prepare(config, point, progress, shared) for point, config in points]
    cells = list({cell.cell.csv: cell for cell in reversed(every)}.values())[::-1]
    progress.cells = len(cells)
    return cells


def announce(cells: list[Prepared]) -> list[Prepared]:
    """Say what is there, leave word of the plan for those who look (`status`), and return what is to be measured."""
    open_ = [cell for cell in cells if not cell.settled]
    failed = sum(cell.failure is not None for cell in cells)
    more = f", {failed} failed earlier and are left alone (retry=failed tries them again)" if failed else ""
    print(f"{len(cells)} cells, {len(cells) - len(open_) - failed} finished already{more}", flush=True)
    if open_:
        for folder in dict.fromkeys(cell.cell.results_dir for cell in cells):
            write_plan(folder, sys.argv[1:], (cell.cell for cell in cells if cell.cell.results_dir == folder))
    return open_


def close(cells: list[Prepared]) -> int:
    """The tables, and what failed with its reason. Returns the exit code: 1 where a cell has no numbers."""
    for folder in dict.fromkeys(cell.cell.results_dir for cell in cells):
        if not any((folder / "cells").glob("[!.]*.json")):
            continue  # every process ended too soon
        if not fresh(folder):
            from msrnn_bench.results.summary import collect  # pandas: only where a table is made

            collect(folder)
        _table(folder, [cell for cell in cells if cell.cell.results_dir == folder and cell.done])
        print(folder / "summary.csv")
    lost = [cell for cell in cells if not cell.done]
    for cell in lost:
        if cell.failure is None:
            print(f"not measured: {cell.cell.label} (its process ended; the same command goes on from here)")
        else:
            print(f"failed: {cell.cell.label} ({cell.failure}; {cell.cell.manifest} has more)")
    return 1 if lost else 0


def _table(folder: Path, cells: list[Prepared]) -> None:
    """A line for each cell of the sweep: the first number of the whole cell, or how many it has of its parts."""
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:  # by hand: pandas takes longer to load than this
        lines: dict[str, list[dict[str, str]]] = {}
        for line in csv.DictReader(file):
            lines.setdefault(line["cell"], []).append({key: value for key, value in line.items() if value})
    width = max((len(cell.cell.label) for cell in cells[:SHOWN]), default=0)
    for cell in cells[:SHOWN]:
        found = lines.get(cell.cell.id, [])
        whole = [line for line in found if line.get("subtask", "all") == "all" and "length" not in line]
        told = _sentence(whole[0]) if whole else f"{len(found)} numbers of its parts"
        print(f"{cell.cell.label:{width}}  {told}")
    if len(cells) > SHOWN:
        print(f"and {len(cells) - SHOWN} cells more")


def _run_one(cell: Prepared, progress: CellProgress) -> int:
    done = cell.done
    if not done:
        with progress:
            while [measure_part(part, progress, single=True) for part in expand([cell])][-1] == "busy":
                if cell.config["shards"] == 1:
                    raise UsageError(f"{cell.cell.label} is being measured by another process; wait for it")
                time.sleep(LOOK)
    _show(cell, skipped=done)
    return 0


def _show(cell: Prepared, skipped: bool) -> None:
    """The number, where it lies, and what it rests on."""
    from msrnn_bench.results.reading import read_rows
    from msrnn_bench.results.summary import summarise

    ours = read_rows(cell.cell.csv)
    if skipped:
        print("finished already; force=true measures it again")
    lines = summarise(ours, [])
    whole = lines[lines["subtask"].isna() | lines["subtask"].eq("all")]
    told = whole if len(lines) > SHOWN and len(whole) else lines
    for _, line in told.iterrows():
        print(f"{cell.cell.label}: {_sentence(line[line.notna()])}")
    if len(told) < len(lines):
        print(f"{len(lines) - len(told)} more, by part: msrnn-bench collect results_dir={cell.cell.results_dir}")
    if cell.job.policy.evicts:
        what = f"in each chunk of {cell.job.context}" if cell.cell.task == "perplexity" else "at most"
        print(f"{ours['evictions'].max()} evictions a layer {what}, at most {ours['max_states'].max()} states")
    if cell.cell.journal.is_file():
        print(cell.cell.journal)
    print(cell.cell.csv)


def _sentence(line: Mapping[str, Any] | pd.Series) -> str:
    """One line of the summary, what it lacks left out: which number, its value, what it rests on."""
    parts = "".join(f"{line[part]}, " for part in ("subtask", "length") if part in line)
    name, unit = ("perplexity", "tokens") if line["metric"] == "nll" else (line["metric"], "values")
    if "value" not in line:
        return f"{parts}{name} could not be measured ({line['status']})"
    method = line.get("interval")
    interval = f" (95% interval {_digits(line['low'])} to {_digits(line['high'])}, {method})" if "low" in line else ""
    return f"{parts}{name} {_digits(line['value'])}{interval}, {line['documents']} documents, {line['count']} {unit}"


def _digits(value: float | str) -> str:
    """Four behind the point; of what would be 0.0000 three that count."""
    value = float(value)
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.3g}"

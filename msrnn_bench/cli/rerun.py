"""`msrnn-bench rerun CELL`: a cell repeated from its manifest alone, in a place of its own, and held against what it was."""

from __future__ import annotations

import contextlib
import glob
import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msrnn_bench.cli.diff import is_failed, manifest_of, numbers, rows_of, told
from msrnn_bench.errors import UsageError, shown
from msrnn_bench.redact import printable
from msrnn_bench.report.folders import named
from msrnn_bench.results.agreement import ROUNDING, Agreement, agreement
from msrnn_bench.results.differences import differences
from msrnn_bench.results.finding import find
from msrnn_bench.runs.cell import Prepared, prepare
from msrnn_bench.runs.execute import execute
from msrnn_bench.runs.progress import CellProgress
from msrnn_bench.runs.restored import PACKAGE, restored

OPTIONS = {"results_dir": "results", "keep": "", "trust": "false"}
SHOWN = 12  # kinds of numbers that did not come out the same


def main(args: list[str]) -> int:
    """0 where every number came out the same, to rounding at least; 1 where one did not."""
    if not args or ("=" in args[0] and not Path(args[0]).is_file()):
        raise UsageError("rerun which cell? msrnn-bench rerun CELL [dataset.path=...] [keep=FOLDER]")
    own = dict(OPTIONS)
    own |= {key: value for key, _, value in (arg.partition("=") for arg in args[1:]) if key in OPTIONS}
    if own["trust"] not in ("true", "false"):
        raise UsageError(f"trust={own['trust']} must be true or false")
    path = find(args[0], named(own["results_dir"]))
    manifest = manifest_of(path)
    if is_failed(manifest):
        raise UsageError(f"{path} is of a cell that failed, there is no number to come out again: run it by its command")
    rows = rows_of(path, manifest)
    given = [arg for arg in args[1:] if arg.partition("=")[0] not in OPTIONS]
    with _place(own["keep"]) as place:
        config = restored(manifest, given, str(place), trust=own["trust"] == "true")
        _refuse_missing(config)
        progress = CellProgress(1)
        with _threads(manifest), progress:
            cell = _prepared(config, path.stem, progress)
            print(printable(f"{cell.cell.label} ({path.stem}), measured {manifest.get('finished')}"), flush=True)
            progress.cell(1, cell.cell.label)
            execute(cell)
            progress.end("measured again")
        again = manifest_of(cell.cell.manifest)
        new = rows_of(cell.cell.manifest, again)
        found = agreement(path.with_suffix(".csv"), cell.cell.csv, rows, new)
    moved = [] if cell.cell.id == path.stem else [f"here it is cell {cell.cell.id}, for what its number hangs on is another:"]
    print("\n".join(printable(line) for line in [*_verdict(found), *moved]))
    print("\n" + told(differences(manifest, again), "recorded", "again"))
    print("\n" + numbers(rows, new, "recorded", "again", paired=False))
    if own["keep"]:
        print(cell.cell.csv)
    return 0 if found.same else 1


@contextlib.contextmanager
def _place(keep: str) -> Iterator[Path]:
    """Where the cell is measured: gone afterwards, but for a folder that was asked for, which must be empty before."""
    if not keep:
        with tempfile.TemporaryDirectory(prefix="msrnn-bench-rerun-") as place:
            yield Path(place)
        return
    folder = Path(keep).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"keep={keep} holds something already: give a folder that is new or empty")
    yield folder


def _refuse_missing(config: Any) -> None:
    """Files that the cell was measured on and that are not where it found them."""
    for group, key in (("dataset", "path"), ("model", "path"), ("task", "judge_path"), ("task", "include_path")):
        path = config[group].get(key)
        if path and not glob.glob(os.path.expanduser(str(path))):
            raise UsageError(f"{group}.path={shown(path)} is not here: give {group}.{key}=PATH after the cell, where it lies now")


def _prepared(config: Any, recorded: str, progress: CellProgress) -> Prepared:
    """The cell. Of a user's own policy the manifest does not say which settings were given and which a policy that it
    replaced left behind: those count with which the cell has its recorded id."""
    cell = prepare(config, [], progress, {})
    if cell.cell.id == recorded or config.policy._target_.startswith(PACKAGE):
        return cell
    knobs = [f"policy.{key}=" for key in inspect.signature(type(cell.job.policy)).parameters if key in config.policy]
    other = prepare(config, knobs, progress, {})
    return other if other.cell.id == recorded else cell


@contextlib.contextmanager
def _threads(manifest: Mapping[str, Any]) -> Iterator[None]:
    """As many as then, where there are so many cores: the order of additions hangs on it, and the id of what is timed."""
    import torch

    machine, before = manifest.get("machine"), torch.get_num_threads()
    then = machine.get("threads") if isinstance(machine, Mapping) else None
    if isinstance(then, int) and 1 <= then <= (os.cpu_count() or 1):
        torch.set_num_threads(then)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _verdict(found: Agreement) -> list[str]:
    """Whether every number came out the same, and of those that did not how many, of what, by how much."""
    left = f" ({found.moments} rows of times and peaks left out)" if found.moments else ""
    whole = f"{found.numbers} numbers in {found.rows} rows{left}"
    if found.exact:
        return [f"the same, bit for bit: {whole}"]
    count = sum(kind.count for kind in found.unlike)
    if found.same:
        lines = [f"the same to rounding (relative {ROUNDING:g}): of {whole} {count} differ"]
    else:
        lines = [f"not the same: of {whole} {count} differ", *found.lost]
    worst = sorted(found.unlike, key=lambda kind: -kind.relative)
    for kind in worst[:SHOWN]:
        by = "" if kind.relative == float("inf") else f" (relative {kind.relative:.2g})"
        lines.append(f"  {kind.count} of {kind.what}, the farthest{by} {kind.where}: {kind.recorded} then, {kind.again} now")
    return lines + ([f"  and {len(worst) - SHOWN} kinds more"] if len(worst) > SHOWN else [])

"""What each launcher costs a cell: the wall time of a whole sweep beside the time its cells were measured, side by side.

    python benchmarks/launchers.py [--cells 8] [--rounds 1] [NAME...] [key=value ...]    # the machine must be quiet

The cells are short ones of SmolLM2's perplexity under TOVA, at as many state sizes; every process has one thread. `basic` is
this process alone, one cell after the other; the others have as many at a time as the machine has cores. Overhead of a cell is
the command's wall time times the processes at a time, by the cells, less the mean time that a cell was measured (the manifests'
`seconds`): starting, imports, loading the model, waiting for one another, and the end of the sweep. `slurm` is a real one of this
machine, started by tests/integration/slurm.py; what is not installed is named and left out. The tables must be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

CELL = ["model=smollm2", "policy=tova", "context=512", "tokens=512", "documents=2", "device=cpu"]
AT_ONCE = os.cpu_count() or 1
LAUNCHERS = {
    "basic": ["hydra/launcher=basic"],
    "processes": ["hydra/launcher=processes", f"workers={AT_ONCE}"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "hydra.launcher.cpus=1"],
    "slurm": ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"],
}
NEEDS = {"submitit_local": "submitit", "ray": "ray", "slurm": "submitit"}
TIMED = ["seconds", "tokens_per_second", "peak_bytes"]


def missing(name: str) -> str | None:
    """What a launcher needs and this machine has not."""
    package = NEEDS.get(name)
    if package and find_spec(package) is None:
        return f"the package {package}"
    return "Slurm" if name == "slurm" and shutil.which("slurmctld") is None else None


def sweep(name: str, cells: int, settings: list[str]) -> tuple[float, float, pd.DataFrame]:
    """Seconds of the command, seconds that its cells were measured, and the table but for times and memory."""
    sizes = ",".join(str(32 + 8 * number) for number in range(cells))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        given = [*CELL, f"cache={sizes}", *LAUNCHERS[name], *settings, f"results_dir={folder}/results"]
        command = [sys.executable, "-m", "msrnn_bench.cli.main", "run", "-m", *given]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        spent = time.perf_counter() - begin
        if done.returncode:
            sys.exit(f"{name}: {done.stdout}{done.stderr}")
        rows = pd.read_csv(Path(folder, "results/tidy.csv"))
        measured = sum(json.loads(path.read_text())["seconds"] for path in Path(folder).glob("results/cells/[!.]*.json"))
    return spent, measured, rows.drop(columns=TIMED)


@contextlib.contextmanager
def around(name: str) -> Iterator[None]:
    """A cluster, where the launcher is of one."""
    if name != "slurm":
        yield
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/integration"))
    from slurm import slurm

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, slurm(Path(folder)):
        yield


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    settings = [word for word in given.names if "=" in word]
    names = [word for word in given.names if "=" not in word] or list(LAUNCHERS)
    first, same = None, True
    print(f"{given.cells} cells of {' '.join(CELL)}; {AT_ONCE} cores, one thread a process")
    print(f"{'launcher':16}{'at a time':>10}{'command (s)':>13}{'measured a cell (s)':>21}{'overhead a cell (s)':>21}")
    for _ in range(given.rounds):
        for name in names:
            if lacking := missing(name):
                print(f"{name:16} left out: {lacking} is not installed")
                continue
            with around(name):
                spent, measured, table = sweep(name, given.cells, settings)
            first = table if first is None else first
            same = same and table.equals(first)
            slots = 1 if name == "basic" else AT_ONCE
            mean = measured / given.cells
            print(f"{name:16}{slots:>10}{spent:>13.1f}{mean:>21.2f}{spent * slots / given.cells - mean:>21.2f}", flush=True)
    print(f"tables {'equal' if same else 'DIFFER'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

"""The same grid of 24 small cells in every place, each disturbed once while a cell is measured: the tables must be equal.

What differs between two measurements of one cell is when and where it was measured; `compare` leaves those columns out.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil

from msrnn_bench.results.leases import Holder, holders

ROOT = Path(__file__).resolve().parents[2]
APART = ["seconds", "tokens_per_second", "peak_bytes"]  # the columns of time and memory
GRID = [
    "experiment=smoke", "model=local", f"model.path={ROOT / 'tests/tiny/model'}", "dataset=text",
    f"dataset.path={ROOT / 'tests/tiny/heldout.txt'}", "context=64", "tokens=256", "documents=2", "policy=window,tova,h2o,random",
    "cache=8,12,16,20,24,32",
]  # fmt: skip


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty folder to work in. One thread for each process, so that numbers do not depend on how many there are."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        yield Path(folder)


def sweep(folder: str, *more: str) -> subprocess.Popen[str]:
    """The grid, started; what is given on our own command line is set too."""
    args = ["sweep", *GRID, *sys.argv[1:], f"results_dir={folder}", *more]
    keys = [arg.partition("=")[0] for arg in args]
    args = [arg for at, arg in enumerate(args) if keys[at] not in keys[at + 1 :]]  # the last word counts
    command = [sys.executable, "-m", "msrnn_bench.cli.main", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def disturbed(folder: str, disturb: Callable[[Holder], str], *more: str) -> pd.DataFrame:
    """The grid's table, `disturb` called once with a process that is at a cell; it says what it has done."""
    begin, process, said = time.monotonic(), sweep(folder, *more), ""
    try:
        while process.poll() is None and not said:
            time.sleep(0.05)
            for holder in holders(Path(folder)).values():
                with suppress(psutil.NoSuchProcess, FileNotFoundError):  # its cell is done, and it is gone
                    said = said or disturb(holder)
        told = process.communicate(timeout=1200)[0]
    finally:
        process.kill()
    assert said, f"{folder}: the sweep ended before a cell could be disturbed\n{told}"
    assert process.returncode == 0, f"{folder}: exit code {process.returncode}\n{told}"
    table = read(folder)
    print(f"{folder:16} {said}; {len(table)} rows, {time.monotonic() - begin:.0f} s", flush=True)
    for line in told.splitlines():
        if "launching them again" in line or "another goes on" in line:
            print(f"{'':16} said: {line[:200]}", flush=True)
    return table


def killed(holder: Holder) -> str:
    """The process at a cell, ended as the kernel does for lack of memory."""
    psutil.Process(holder.pid).kill()
    return f"process {holder.pid} killed at {holder.label}"


def read(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path(folder, "tidy.csv"))


def compare(tables: dict[str, pd.DataFrame]) -> None:
    """Every table against the first."""
    calm, *others = tables
    for other in others:
        pd.testing.assert_frame_equal(tables[other].drop(columns=APART), tables[calm].drop(columns=APART))
    leases = [str(path) for path in Path().glob("*/cells/.*.lease")]
    assert not leases, leases
    print(f"{len(others)} tables equal to the undisturbed one's {len(tables[calm])} rows, but for {', '.join(APART)}")

"""Kill a sweep with SIGKILL at random moments, go on, and compare with one that nothing disturbed.

    python tests/kill.py [KILLS]     # 10 unless told

Both sweeps measure a tiny model; their tidy.csv must be equal but for timings and memory. The test suite runs it with
two kills.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import pandas as pd

from msrnn_bench.cli.main import main

TIMINGS = ["seconds", "tokens_per_second", "peak_bytes"]
SWEEP = [
    "sweep", "experiment=smoke", "model.architecture.n_layer=2", "model.architecture.n_head=2", "model.architecture.n_embd=32",
    "model.architecture.vocab_size=300", "context=128", "tokens=128", "documents=8",
]  # fmt: skip


FEW, MANY = "8,16,32,48", "8,12,16,20,24,32,40,48,56,64"  # state sizes: enough cells to be killed ten times among them


def arguments(folder: Path, sizes: str) -> list[str]:
    return [*SWEEP, f"cache={sizes}", f"results_dir={folder}"]


def command(given: list[str]) -> int:
    """`msrnn-bench GIVEN` in this process; its workers are started with the same words."""
    with patch.object(sys, "argv", ["msrnn-bench", *given]):
        return main(given)


def start(given: list[str]) -> multiprocessing.process.BaseProcess:
    """The same in a copy of this process, which has all imported already: that takes longer than a sweep itself."""

    def silently() -> None:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        command(given)

    process = multiprocessing.get_context("fork").Process(target=silently)
    process.start()
    return process


def finish(folder: Path, sizes: str = FEW) -> pd.DataFrame:
    """The sweep to its end, in this process: only what is to be killed needs one of its own."""
    assert command(arguments(folder, sizes)) == 0
    return pd.read_csv(folder / "tidy.csv")


def compare(root: Path, kills: int, seed: int = 0) -> str:
    """Run both sweeps below `root`; returns what happened, raises AssertionError where the tables differ."""
    sizes = FEW if kills < 5 else MANY
    calm = finish(root / "calm", sizes)
    measuring = sum(json.loads(path.read_text())["seconds"] for path in (root / "calm/cells").glob("[!.]*.json"))
    chance, done, folder = random.Random(seed), [], root / "killed"
    while len(done) < kills:
        process = start(arguments(folder, sizes))
        # Wait until it measures: before that there is nothing to damage.
        before, begin = _traces(folder), time.monotonic()
        while process.is_alive() and _traces(folder) == before and time.monotonic() - begin < 60:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, min(0.8, measuring / (kills + 1))))  # all together leave some of it to do
        if not process.is_alive():
            break  # it finished first: nothing is left to kill
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        done.append(len(list((folder / "cells").glob("*.csv"))))
    killed = finish(folder, sizes)
    pd.testing.assert_frame_equal(killed.drop(columns=TIMINGS), calm.drop(columns=TIMINGS))
    left = [p.name for p in (folder / "cells").iterdir() if p.name.startswith(".")]
    return f"{len(done)} kills with {done} cells on disk; {len(calm)} rows equal, timings aside; leftovers: {left or 'none'}"


def _traces(folder: Path) -> set[str]:
    return {p.name for p in (folder / "cells").iterdir()} if (folder / "cells").exists() else set()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(compare(Path(temporary), int(sys.argv[1]) if sys.argv[1:] else 10))

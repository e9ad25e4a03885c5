"""One cell's documents shared by two processes, against one process: wall time of the whole command, side by side.

    python benchmarks/sharing.py [ROUNDS] [key=value ...]     # 3 rounds; the machine must be quiet

The cell is SmolLM2's perplexity of 16 documents of 2,048 tokens under TOVA, or what the settings make of it. In each round
`one` (a process with all cores), `thread` (a process with one thread) and `shared` (shards=2 workers=2: two processes that
share the cores) measure it into fresh folders. A ratio is the median over rounds, with the smallest and largest in brackets.
The rows of `shared` must be those of `thread` to the last bit, on two cores: where they are not, it exits with 1.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

CELL = ["policy=tova", "cache=256", "context=2048", "tokens=2048", "documents=16", "device=cpu"]
WAYS = {"one": [], "thread": [], "shared": ["shards=2", "workers=2"]}
TIMED = ["seconds", "tokens_per_second", "peak_bytes"]


def measure(folder: Path, way: str, settings: list[str]) -> tuple[float, pd.DataFrame]:
    """Seconds of the command, and the rows but for times and memory. `run -m` in every way, whose end is the same for all."""
    given = list({setting.partition("=")[0]: setting for setting in [*CELL, *settings, *WAYS[way]]}.values())
    command = [sys.executable, "-m", "msrnn_bench.cli.main", "run", "-m", *given, f"results_dir={folder}"]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if way == "thread" else {}
    begin = time.perf_counter()
    subprocess.run(command, env={**os.environ, **threads}, check=True, stdout=subprocess.DEVNULL)
    spent = time.perf_counter() - begin
    (rows,) = folder.glob("cells/[!.]*.csv")
    return spent, pd.read_csv(rows).drop(columns=TIMED)


def main(rounds: int, settings: list[str]) -> int:
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    same = True
    for number in range(rounds):
        found = {}
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                spent, found[way] = measure(Path(folder), way, settings)
            times[way].append(spent)
            print(f"round {number + 1}: {way} {spent:.1f} s", flush=True)
        same = same and found["shared"].equals(found["thread"])
    for base in ("one", "thread"):
        ratios = [ours / theirs for ours, theirs in zip(times["shared"], times[base], strict=True)]
        print(f"shared / {base}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    print(f"{os.cpu_count()} cores; rows of shared and thread {'equal to the last bit' if same else 'DIFFER'}")
    return 0 if same else 1


if __name__ == "__main__":
    given = sys.argv[1:]
    count = int(given.pop(0)) if given and given[0].isdigit() else 3
    sys.exit(main(count, given))

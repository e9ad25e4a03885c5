"""`workers=N`: the same command in N processes that share the cores, or a GPU each; every one takes what no other is at.

A process that dies leaves its cell to the queue and is replaced. A cell that has ended DEATHS processes, or one that the kernel
killed for memory, has failed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msrnn_bench.errors import LESS_MEMORY
from msrnn_bench.hub import commits
from msrnn_bench.results.leases import read
from msrnn_bench.runs import children
from msrnn_bench.runs.cell import Prepared
from msrnn_bench.runs.execute import record_failure
from msrnn_bench.runs.progress import WORKER

DEATHS = 3
INTERRUPTED = 130  # the exit code of a process that was asked to end
LOOK = 0.1  # seconds


def run(cells: Sequence[Prepared], count: int) -> int:
    """Measure with `count` processes. Returns 0 when all is settled, else the code of one that gave up, which has said why."""
    environments = _environments(count)
    running: dict[int, subprocess.Popen[bytes]] = {}
    deaths: Counter[str] = Counter()
    memory = _killed_for_memory()
    try:
        for slot, environment in enumerate(environments):
            running[slot] = children.start(sys.argv[1:], environment)
        while running:
            time.sleep(LOOK)
            for slot, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                children.end(running.pop(slot))
                if code > 0 and code != INTERRUPTED:
                    return code
                if code < 0:
                    cell = _at(cells, process.pid)
                    name = cell.cell.id if cell else ""
                    before, memory = memory, _killed_for_memory()
                    deaths[name] += 1
                    _judge(cell, code, deaths[name], memory > before)
                if code and not all(cell.settled for cell in cells):  # it died, or it alone was asked to end
                    running[slot] = children.start(sys.argv[1:], environments[slot])
        return 0
    finally:
        for process in running.values():
            children.end(process)


def _at(cells: Sequence[Prepared], pid: int) -> Prepared | None:
    """The cell that a process of ours was at when it died."""
    for cell in cells:
        for lease in dict.fromkeys((cell.cell.lease, cell.cell.whole.lease)):  # of a part, and of a cell being put together
            holder = read(lease)
            if holder is not None and holder.here and holder.pid == pid:
                return cell
    return None


def _judge(cell: Prepared | None, code: int, deaths: int, memory: bool) -> None:
    """Say what befell a process, and call its cell failed where that was the cell's doing. RuntimeError: they end before they are
    at one."""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if cell is None:
        if deaths >= DEATHS:
            raise RuntimeError(f"{deaths} processes ended before they were at a cell, the last with {name}")
        return
    label = cell.cell.told
    if memory and code == -signal.SIGKILL:
        reason = f"the kernel ended its process for lack of memory: fewer workers, or {LESS_MEMORY}"
    elif deaths >= DEATHS:
        reason = f"it ended {deaths} processes, the last with {name}"
    else:
        print(f"{label}: its process ended with {name}; another goes on from there", file=sys.stderr, flush=True)
        return
    print(f"{label}: failed ({reason})", file=sys.stderr, flush=True)
    record_failure(cell, RuntimeError(reason), reason)


def _environments(count: int) -> list[dict[str, str]]:
    """What each slot's process is told: its share of the cores, and where there are GPUs one of them, in turn."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    limits = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    shared = {WORKER: "1", **limits, **commits.environment()}
    gpus = _gpus()
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else shared for slot in range(count)]


def _gpus() -> list[str]:
    """The GPUs that we may use, as CUDA names them; asked of the driver's own tool, for torch takes seconds to load."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() and name.strip() != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
        return [str(number) for number, line in enumerate(line for line in said.splitlines() if line.startswith("GPU"))]
    return []


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for memory so far: here, and in our control group where that is counted."""
    counts = [0]
    places = [Path("/proc/vmstat")]
    with suppress(OSError):
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        places.append(Path(f"/sys/fs/cgroup{group}/memory.events"))
    for place in places:
        with suppress(OSError, ValueError):
            counts += [int(line.split()[1]) for line in place.read_text().splitlines() if line.startswith("oom_kill ")]
    return sum(counts)

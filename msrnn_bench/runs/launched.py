"""One cell in a process that a launcher started: measured, or given back to the queue. Imports nothing heavy before it must."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from msrnn_bench.runs import children
from msrnn_bench.runs.progress import CellProgress

LAUNCHER = "MSRNN_BENCH_LAUNCHER"  # set in a job that must not outlive the process that launched it, on the same machine


def job(config: DictConfig) -> str | None:
    """Measure one cell, if no other process is at it. What it fails for stands in its manifest; returned is, in one line, why it
    could not even be tried, so that no launcher has to carry an exception home."""
    from msrnn_bench.runs.measure import why

    if LAUNCHER in os.environ:
        children.follow(int(os.environ[LAUNCHER]))
    try:
        with _given_back_on_signals():
            measure_cell(config)
    except _QueuedAgain as end:
        sys.exit(end.args[0])
    except Exception as error:
        return why(error)
    return None


class _QueuedAgain(KeyboardInterrupt):
    """submitit has had the job queued again, and is to end with this code. An interrupt, for nobody takes it for his own."""


def measure_cell(config: DictConfig) -> None:
    """The cell of a configuration that Hydra has composed."""
    from msrnn_bench.results.leases import BEAT, PATIENCE
    from msrnn_bench.runs.cell import prepare
    from msrnn_bench.runs.measure import LOOK, measure_part
    from msrnn_bench.runs.shards import expand

    begin = time.monotonic()
    with CellProgress(1) as progress:
        cell = prepare(config, list(HydraConfig.get().overrides.task), progress, {})
        while not cell.settled and "busy" in [measure_part(part, progress) for part in expand([cell])]:
            if time.monotonic() - begin > PATIENCE + 2 * BEAT:
                return  # its owner lives: it was no dead one's, such as that of this very job before it was queued again
            time.sleep(LOOK)


@contextmanager
def _given_back_on_signals() -> Iterator[None]:
    """A TERM ends the job as a Ctrl-C does, its cell given back; submitit would pass it by until the KILL. submitit's own signal,
    which has the job queued again, stays submitit's; where it refuses, that exception must not pass for the cell's failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler)}
    for name in ("SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        if number is not None and callable(handler := signal.getsignal(number)):
            before[number] = signal.signal(number, _never_failing(handler))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _never_failing(handler: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except SystemExit as end:
            raise _QueuedAgain(end.code) from end
        except Exception as error:
            raise KeyboardInterrupt from error

    return handle

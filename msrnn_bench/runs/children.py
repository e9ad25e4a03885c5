"""Processes of our own that end when we do, however we end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

CHILD = "MSRNN_BENCH_PARENT"  # set in a child: the process that it must not outlive
_PR_SET_PDEATHSIG = 1


def start(args: Sequence[str], environment: Mapping[str, str] | None = None, *, quiet: bool = False) -> subprocess.Popen[bytes]:
    """`msrnn-bench ARGS` in a process of its own, to be waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", "msrnn_bench.cli.main", *args],
        env={**os.environ, **(environment or {}), CHILD: str(os.getpid())},
        stdin=subprocess.PIPE,  # never written to: it closes with us
        stdout=subprocess.DEVNULL if quiet else None,
    )


def end(process: subprocess.Popen[bytes], seconds: float = 5.0) -> None:
    """Ask it to end where it has not, then see to it."""
    assert process.stdin is not None
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.poll() is None:
        process.kill()
        process.wait()
    process.stdin.close()


def follow_parent() -> None:
    """In a child, at its very beginning: from now on it ends with its parent. In any other process nothing happens.

    On Linux the kernel sees to it, even while Python is busy inside a library; elsewhere a thread waits for the pipe from the
    parent to close."""
    parent = os.environ.pop(CHILD, None)
    if parent is None:
        return
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it was faster
            os._exit(1)
    threading.Thread(target=_wait_for_the_end, name="parent", daemon=True).start()


def follow(ancestor: int, every: float = 1.0) -> None:
    """From now on we end when that process of this machine does, which started our parent, say."""
    import psutil

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(ancestor)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, name="ancestor", daemon=True).start()


def heed_signals() -> None:
    """A TERM or HUP ends us as a Ctrl-C does, with everything given back; one that our starter ignores (nohup) stays ignored."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _wait_for_the_end() -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 4096):
            pass
    os._exit(1)

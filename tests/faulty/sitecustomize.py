"""Faults for tests/faults.py: on the path of its processes Python imports this first.

A fault is a file in the folder $FAULTS; the process that renames it away has it, once, at a point where a cell is running.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import sys
import time
from pathlib import Path

FAULTS = Path(os.environ.get("FAULTS", "/nonexistent"))


def have(kind: str) -> bool:
    """Whether a fault of this kind was ordered and is now ours; it is written down as done."""
    for order in sorted(FAULTS.glob(f"{kind}.*")):
        with contextlib.suppress(OSError):
            order.rename(order.with_name(f"done-{order.name}"))
            return True
    return False


def _journal(module) -> None:
    real = module.Journal.add

    def add(self, key, record):
        if have("exception"):
            raise RuntimeError("an injected fault")
        if have("memory"):
            raise MemoryError("an injected lack of memory")
        if have("full"):
            raise module.StorageError("cannot write: No space left on device (injected): free some space")
        return real(self, key, record)

    module.Journal.add = add


def _files(module) -> None:
    real = module._replace

    def replace(temporary, path):
        if not path.name.startswith(".plan") and have("full"):
            raise OSError(28, "No space left on device (injected)")
        if not path.name.startswith(".plan") and have("readonly"):
            raise OSError(30, "Read-only file system (injected)")
        return real(temporary, path)

    module._replace = replace


def _leases(module) -> None:
    real = module.Lease._live

    def live(self):
        if have("heartbeat"):
            time.sleep(module.PATIENCE * 1.5)
        real(self)

    module.Lease._live = live
    if "CLOCKS" in os.environ:
        hours = 1 if os.getpid() % 2 else -1
        before, stamp = time.time, module.datetime
        time.time = lambda: before() + 3600 * hours

        class Shifted(stamp):
            @classmethod
            def now(cls, tz=None):
                return stamp.fromtimestamp(time.time(), tz)

        module.datetime = Shifted
        (FAULTS / f"clock-{os.getpid()}").touch()


HOOKS = {"msrnn_bench.results.journal": _journal, "msrnn_bench.results.files": _files, "msrnn_bench.results.leases": _leases}


class Finder(importlib.abc.MetaPathFinder):
    """Hooks a module when it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name not in HOOKS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        real = spec.loader.exec_module

        def exec_module(module):
            real(module)
            HOOKS[name](module)

        spec.loader.exec_module = exec_module
        return spec


if FAULTS.is_dir():
    sys.meta_path.insert(0, Finder())

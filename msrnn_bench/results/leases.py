"""Which process is at which cell: of several, on one machine or many, one.

A lease is a small file beside the cell, made only where there is none. Its owner raises a number in it every few seconds.
Who wants the cell too watches that number: an owner whose number stood still for PATIENCE seconds of the watcher's own clock is
dead, and at once dead is one of this machine whose process is gone. So no lock of the file system is needed, which network
storage may lack, and no clock is compared with another's. An owner that was only asleep finds on waking that its lease is
another's, and lets go: at worst a cell is measured twice, and both measure the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from msrnn_bench.errors import StorageError
from msrnn_bench.redact import redacted
from msrnn_bench.results.cells import Cell
from msrnn_bench.results.guarded import contents, no_link

PATIENCE = float(os.environ.get("MSRNN_BENCH_PATIENCE") or 60.0)  # seconds without a beat after which an owner counts as dead
BEAT = PATIENCE / 12  # seconds between two beats
WIDTH = 1024  # bytes of a lease, always the same, so that a beat is written over the last one in one piece


@dataclass(frozen=True)
class Holder:
    """Who is at a cell. `machine` is told apart by more than its name, for containers share names; `token` is this lease's
    own; `since` is the owner's clock, to be shown, not reckoned with; `done` of `total` tokens are read."""

    token: str
    host: str
    machine: str
    pid: int
    born: float
    since: str
    task: str
    label: str
    beat: int = 0
    done: int = 0
    total: int = 0

    @property
    def here(self) -> bool:
        return self.machine == machine()

    @property
    def gone(self) -> bool:
        """Whether it is of this machine, and its process is no more. Of another machine only the beat can tell."""
        if not self.here:
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.born) > 1.0  # the number was given to another process
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


class Lease:
    """A cell that is ours. `lost` becomes true when another took it for a dead owner's, as after a long sleep."""

    def __init__(self, path: Path, holder: Holder, on_loss: Callable[[], None] | None) -> None:
        self.path, self.holder, self.lost = path, holder, False
        self._on_loss, self._over = on_loss, threading.Event()
        self._heart = threading.Thread(target=self._live, name="lease", daemon=True)
        self._heart.start()

    def tell(self, done: int, total: int) -> None:
        """How far the cell is, for those who look; written with the next beat."""
        self.holder = replace(self.holder, done=done, total=total)

    @property
    def ours(self) -> bool:
        """Whether the file still says so: asked before what only one may write."""
        self.lost = self.lost or (holder := read(self.path)) is None or holder.token != self.holder.token
        return not self.lost

    def give_back(self) -> None:
        self._over.set()
        self._heart.join()
        if self.ours:
            self.path.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):  # storage that is away for a while: the next beat tries again
                if not self.ours:
                    if self._on_loss is not None:
                        self._on_loss()
                    return
                self.holder = replace(self.holder, beat=self.holder.beat + 1)
                with self.path.open("r+b") as file:  # into this very file: one that was taken from us is not written over
                    file.write(_line(self.holder))


_watched: dict[Path, tuple[object, float]] = {}  # lease -> (what it said, since when by our clock)


@contextlib.contextmanager
def lease(cell: Cell, on_loss: Callable[[], None] | None = None) -> Iterator[Lease | None]:
    """The right to measure a cell, or None while another process has it. It ends with the process, however that ends.

    `on_loss` is called, from another thread, if the lease is lost. Raises StorageError where no file can be made.
    """
    path = cell.lease
    holder = _ours(cell)
    taken = _make(path, holder) or (_abandoned(path) and _make(path, holder))
    if not taken:
        yield None
        return
    _watched.pop(path, None)
    held = Lease(path, holder, on_loss)
    try:
        yield held
    finally:
        held.give_back()


def free(cell: Cell) -> bool:
    """Whether nobody is at a cell. A dead owner's lease is cleared away; where only its beat can tell, after some asking."""
    return not cell.lease.exists() or _abandoned(cell.lease)


def holders(folder: Path) -> dict[str, Holder]:
    """Who is at the cells of a results folder, by the cell's id; owners that are known to be gone left out."""
    found = {path.name[1 : -len(path.suffix)]: read(path) for path in sorted(no_link(folder / "cells").glob(".*.lease"))}
    return {identifier: holder for identifier, holder in found.items() if holder is not None and not holder.gone}


def read(path: Path) -> Holder | None:
    """What a lease says; None where there is none, or one that cannot be read (yet)."""
    try:
        said = json.loads(contents(path)[:WIDTH])
        return Holder(**{name: kind(said[name]) for name, kind in _FIELDS.items()})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


_FIELDS: dict[str, Callable[..., Any]] = {
    "token": str, "host": str, "machine": str, "pid": int, "born": float, "since": str, "task": str, "label": str,
    "beat": int, "done": int, "total": int,
}  # fmt: skip


@cache
def machine() -> str:
    """This machine, and where it has several the world of processes in it: a number of a process means nothing elsewhere."""
    marks = [platform.node()]
    for mark in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            marks.append(os.readlink(mark) if "ns" in mark else Path(mark).read_text().strip())
    return " ".join(marks)


def _ours(cell: Cell) -> Holder:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    born = psutil.Process().create_time()
    return Holder(secrets.token_hex(8), platform.node(), machine(), os.getpid(), born, now, cell.task, redacted(cell.told)[:80])


def _line(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).ljust(WIDTH - 1).encode()[: WIDTH - 1] + b"\n"


def _make(path: Path, holder: Holder) -> bool:
    """The lease, where nobody has one: the file system makes a file of a name once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("xb")
        except FileExistsError:
            return False
        with file:
            file.write(_line(holder))
        return True
    except OSError as error:
        raise StorageError(f"cannot write {path} ({error.strerror}): choose another results_dir") from error


def _abandoned(path: Path) -> bool:
    """Whether the lease there was a dead owner's; then it is gone when this returns."""
    holder = read(path)
    said: object = holder or os.path.lexists(path)
    if not said:
        return True  # given back in between
    if holder is None or not holder.gone:
        before, since = _watched.get(path, (None, 0.0))
        if said != before:
            _watched[path] = (said, time.monotonic())
            return False
        if time.monotonic() - since < PATIENCE:
            return False
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.rename(aside)  # of several that judge so, one is first
    except OSError:
        return False
    found = read(aside)
    if (found and found.token) != (holder and holder.token) and not path.exists():
        aside.rename(path)  # somebody was faster, and this is the new owner's
        return False
    aside.unlink(missing_ok=True)
    return True

"""What has become of each cell of a results folder: done, running, failed, unfinished, missing. Looks at names, leases, plans and
manifests, never at rows, and needs neither torch nor pandas."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from msrnn_bench.errors import MachineError
from msrnn_bench.results.cells import read_manifest
from msrnn_bench.results.guarded import no_link
from msrnn_bench.results.leases import BEAT, PATIENCE, Holder, holders
from msrnn_bench.results.plans import plans

STATES = ("done", "running", "failed", "unfinished", "missing")
QUIET = 3 * BEAT  # seconds without a beat after which an owner is no longer counted as at work


@dataclass(frozen=True)
class State:
    """One cell. `seconds` are what a finished one took, `reason` is why one failed; `holder` is at a running one, and was not
    heard for `silence` seconds."""

    id: str
    state: str
    task: str = ""
    label: str = ""
    seconds: float | None = None
    reason: str = ""
    holder: Holder | None = None
    silence: float = 0.0


class Look:
    """A results folder, looked at again and again: a manifest is read once, and again when its file is another. Whether an owner
    on another machine is alive shows only from one look to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: dict[str, tuple[Any, State]] = {}  # what tells a file from its successor, and what it says
        self._heard: dict[str, tuple[str, int, float]] = {}  # of a cell's owner: token, beat, and when we saw it first

    def __call__(self) -> list[State]:
        """Every cell that is there or planned, in the order of STATES and then by label."""
        manifests, begun = self._files()
        known = {cell.id: State(cell.id, "missing", cell.task, cell.label) for plan in plans(self.folder) for cell in plan.cells}
        for cell in begun:
            before = known.get(cell)
            known[cell] = State(cell, "unfinished", before.task, before.label) if before else State(cell, "unfinished")
        known |= manifests
        for cell, holder in holders(self.folder).items():
            if (silence := self._silence(cell, holder)) < PATIENCE:
                whole = cell.partition(".")[0]  # of a shared cell each part that is at work is listed
                if whole in known and known[whole].state in ("missing", "unfinished"):
                    del known[whole]
                known[cell] = State(cell, "running", holder.task, holder.label, holder=holder, silence=silence)
        return sorted(known.values(), key=lambda one: (STATES.index(one.state), _read_aloud(one.label), one.id))

    def _files(self) -> tuple[dict[str, State], set[str]]:
        """What the manifests say, and the cells of which there is anything else."""
        names: dict[str, dict[str, os.stat_result]] = defaultdict(dict)
        try:
            with os.scandir(no_link(self.folder / "cells")) as entries:
                for entry in entries:
                    stem, _, kind = entry.name.rpartition(".")
                    if kind in ("json", "csv", "jsonl") and not stem.startswith(".") and entry.is_file(follow_symlinks=False):
                        names[kind][stem] = entry.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise MachineError(f"cannot read {self.folder} ({error.strerror}): check the folder's permissions") from error
        said = {cell: self._said(cell, file) for cell, file in names["json"].items()}
        ended = {cell: state for cell, state in said.items() if state.state == "failed" or cell in names["csv"]}
        whole = {cell: state for cell, state in ended.items() if state.state != "unfinished"}
        return whole, {cell for kind in names.values() for cell in kind} - set(whole)

    def _said(self, cell: str, file: os.stat_result) -> State:
        mark = (file.st_ino, file.st_size, file.st_mtime_ns)
        if cell not in self._ended or self._ended[cell][0] != mark:
            self._ended[cell] = (mark, _manifest(cell, read_manifest(self.folder / "cells" / f"{cell}.json")))
        return self._ended[cell][1]

    def _silence(self, cell: str, holder: Holder) -> float:
        """For how long we have not seen its number rise. Its process is known to live where it is of this machine."""
        before, now = self._heard.get(cell), time.monotonic()
        if holder.here or before is None or before[:2] != (holder.token, holder.beat):
            self._heard[cell] = (holder.token, holder.beat, now)
            return 0.0
        return now - before[2]


def _manifest(cell: str, said: dict[str, Any] | None) -> State:
    if said is None:
        return State(cell, "unfinished")
    task, label, took = str(said.get("task", "")), str(said.get("label", "")), said.get("seconds")
    if said.get("status") == "ok":
        return State(cell, "done", task, label, seconds=took if isinstance(took, int | float) and took >= 0 else None)
    return State(cell, "failed", task, label, reason=str(said.get("error") or said.get("status")))


def _read_aloud(label: str) -> list[tuple[int, str]]:
    """For sorting: k=64 before k=128."""
    return [(int(part[:18]), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", label)]


def seconds_left(states: list[State]) -> float | None:
    """About how long those at work need for what is neither done nor failed, if each cell takes what a finished one of its task
    took; of a running one what is not yet read. None where nobody is at work or nothing is finished to go by."""
    took: dict[str, list[float]] = defaultdict(list)
    for one in states:
        if one.seconds is not None:
            took[one.task].append(one.seconds)
    working = sum(one.state == "running" and one.silence < QUIET for one in states)
    if not took or not working:
        return None
    usual = {task: median(times) for task, times in took.items()}
    anything = median(time for times in took.values() for time in times)
    open_ones = [one for one in states if one.state in ("running", "unfinished", "missing")]
    return sum(usual.get(one.task, anything) * _to_do(one.holder) for one in open_ones) / working


def _to_do(holder: Holder | None) -> float:
    """The share of a cell that is not yet read."""
    return 1.0 if holder is None or holder.total <= 0 else min(1.0, max(0.0, 1 - holder.done / holder.total))

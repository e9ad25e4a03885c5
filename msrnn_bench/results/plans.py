"""What a sweep set out to measure, beside its cells: so that what is missing can be told. Knows nothing of what is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msrnn_bench.redact import redacted, redacted_values
from msrnn_bench.results.cells import Cell
from msrnn_bench.results.files import write_atomically
from msrnn_bench.results.guarded import contents, no_link


@dataclass(frozen=True)
class Planned:
    """A cell of a plan."""

    id: str
    task: str
    label: str


@dataclass(frozen=True)
class Plan:
    """A sweep: what was typed behind `msrnn-bench`, when (the clock of its machine), and its cells in this folder."""

    command: tuple[str, ...]
    started: str
    cells: tuple[Planned, ...]


def write_plan(folder: Path, command: Sequence[str], cells: Iterable[Cell]) -> None:
    """One file for the same cells, however often they are swept; StorageError where it cannot be written."""
    listed = [{"id": cell.id, "task": cell.task, "label": redacted(cell.label)} for cell in cells]
    name = hashlib.sha256(" ".join(sorted(cell["id"] for cell in listed)).encode()).hexdigest()[:16]
    plan = {"command": redacted_values(command), "started": datetime.now(UTC).isoformat(timespec="seconds"), "cells": listed}
    write_atomically(folder / "cells" / f".plan-{name}.json", json.dumps(plan) + "\n")


def plans(folder: Path) -> list[Plan]:
    """The plans of a results folder, the oldest first; one that cannot be read is none."""
    found = []
    for path in sorted(no_link(folder / "cells").glob(".plan-*.json")):
        try:
            said = json.loads(contents(path))
            cells = tuple(Planned(str(c["id"]), str(c["task"]), str(c["label"])) for c in said["cells"])
            found.append(Plan(tuple(map(str, said["command"])), str(said["started"]), cells))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return sorted(found, key=lambda plan: plan.started)

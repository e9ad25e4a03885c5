"""Old names, each with the one that took its place: who uses one gets a line that says so, not `No module named ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

PACKAGE = "msrnn_bench."
MODULES = {
    "chunks": "datasets.chunks", "cli": "cli.main", "compose": "runs.compose", "datasets": "datasets.texts",
    "doctor": "cli.doctor", "files": "results.files", "filler": "datasets.filler", "grid": "runs.grid",
    "hydra_app": "runs.hydra_app", "journal": "results.journal", "listing": "cli.listing", "model_files": "models.files",
    "model_hub": "models.hub", "models": "models.sources", "plotting": "cli.plotting", "progress": "runs.progress",
    "provenance": "results.provenance", "questions": "datasets.questions", "results": "results.cells", "run": "runs",
    "summary": "results.summary", "tabletext": "results.tables", "tasks.answering": "tasks.writing.answering",
    "tasks.answers": "tasks.writing.answers", "tasks.harness": "tasks.lm_eval.harness",
    "tasks.harness_context": "tasks.lm_eval.context", "tasks.harness_files": "tasks.lm_eval.files",
    "tasks.harness_metrics": "tasks.lm_eval.metrics", "tasks.harness_model": "tasks.lm_eval.model",
    "tasks.harness_scoring": "tasks.lm_eval.scoring", "tasks.harness_tasks": "tasks.lm_eval.tasks",
    "tasks.judges": "tasks.writing.judges", "tasks.loading": "job", "tasks.needles": "tasks.writing.needles",
    "tasks.prompts": "tasks.writing.prompts", "tasks.sampling": "tasks.writing.sampling",
    "tasks.scores": "tasks.writing.scores", "text": "datasets.reading",
}  # fmt: skip
NAMES = {"datasets.Chunk": "datasets.chunks.Chunk"}  # what stands in another file than the rest of its old module
COMMANDS = {"lm_eval_model": "the command `msrnn-bench lm-eval`", "cli.__main__": "the command `msrnn-bench`"}


def now(name: str) -> str | None:
    """The present name of a module of an earlier version, or of something in one; None for any other name.

    Some old modules are folders today (`datasets`): of those the names inside are the old ones.
    """
    old = name.removeprefix(PACKAGE)
    if name == old:
        return None
    if old in COMMANDS:
        return COMMANDS[old]
    if old in MODULES:
        return PACKAGE + MODULES[old]
    if old in NAMES:
        return PACKAGE + NAMES[old]
    module, _, inside = old.rpartition(".")
    if module in MODULES and hasattr(import_module(PACKAGE + MODULES[module]), inside):
        return f"{PACKAGE}{MODULES[module]}.{inside}"
    return None


class Signpost:
    """An importer that is asked when no other knows a name, and finds nothing either; but it says where to look."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        found = now(name)
        if found is not None:
            raise ModuleNotFoundError(f"{name} is now {found}")  # without `name`, else `from ... import` would swallow it


def put_up() -> None:
    """Once a process."""
    if Signpost not in sys.meta_path:
        sys.meta_path.append(Signpost)

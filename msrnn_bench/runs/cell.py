"""One cell: a configuration checked, its objects built, its id formed; ready to run, with nothing loaded or written.

Knows the order of things; what is measured arrives through `_target_`, and execute.py measures it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from omegaconf import DictConfig, OmegaConf

from msrnn_bench.errors import UsageError
from msrnn_bench.job import Job, Progress
from msrnn_bench.results.cells import Cell, cell_id, finished, read_manifest
from msrnn_bench.results.guarded import RefusedError, opened
from msrnn_bench.runs.build import build_once, build_policy
from msrnn_bench.runs.identity import Parts, columns, recorded, settings, topline
from msrnn_bench.runs.values import check_values

RUN = "MSRNN_BENCH_RUN"  # names one command: the processes that it starts and a launcher's jobs inherit it


def begin_run() -> None:
    """A new command: what `force` and `retry` measured before is to be measured again."""
    os.environ[RUN] = secrets.token_hex(8)


def this_run() -> str:
    if RUN not in os.environ:
        begin_run()
    return os.environ[RUN]


@dataclass
class Prepared:
    """A cell that is ready to run, checked, with nothing loaded and nothing written."""

    cell: Cell
    job: Job
    task: Any
    config: dict[str, Any]
    settings: dict[str, Any]
    force: bool
    keep_tokens: bool
    retry: str | None = None
    overrides: Sequence[str] = ()  # that make it

    @property
    def done(self) -> bool:
        """Whether there is nothing to do. Under `force` only what this very run has measured counts."""
        if not finished(self.cell) or (self.keep_tokens and not self._tokens_kept()):
            return False
        return not self.force or (read_manifest(self.cell.manifest) or {}).get("run") == this_run()

    @property
    def failure(self) -> str | None:
        """Why it failed, where it is not to be tried again: failed in this run, or in an earlier one without `retry`."""
        manifest = read_manifest(self.cell.manifest) or {}
        if manifest.get("status") != "failed":
            return None
        again = self.force or self.retry == "failed"
        return None if again and manifest.get("run") != this_run() else str(manifest.get("error", "no reason is noted"))

    @property
    def settled(self) -> bool:
        """Whether it is done, or has failed and is left alone."""
        return self.done or self.failure is not None

    @property
    def tokens_file(self) -> Path:
        return self.cell.csv.with_suffix(".npz")

    def _tokens_kept(self) -> bool:
        """Whether the losses are in the file of arrays, which may hold others alone."""
        try:
            with opened(self.tokens_file) as file:
                return "nll.npy" in ZipFile(file).namelist()
        except (FileNotFoundError, BadZipFile, RefusedError):
            return False


def prepare(config: DictConfig, overrides: list[str], progress: Progress, shared: dict[Any, Any]) -> Prepared:
    """Check a configuration and give its cell an id. UsageError or MachineError say what does not fit."""
    check_values(config)
    policy = build_policy(config.policy, overrides)
    model, dataset, task = (build_once(shared, config[group], group) for group in ("model", "dataset", "task"))
    rule, context = policy.rule(config.cache), _context(task, model, policy, config)
    parts = Parts(policy, rule, model, dataset, task, None if policy.name == "full" else config.cache, context)
    known = settings(parts, config)
    identifier, folder = cell_id(known), Path(config.results_dir).expanduser()
    job = Job(
        columns=columns(parts, config) | {"cell": identifier}, policy=policy, model=model, dataset=dataset, cache=parts.cache,
        context=context, documents=config.documents, tokens=config.tokens, device=config.device, **recorded(parts, config),
        graph=config.graph, streams=config.streams, progress=progress, shared=shared,
        journal=Cell(folder, task.name, "", identifier).journal,
        topline=Cell(folder, task.name, "", cell_id(topline(known))).journal,
    )  # fmt: skip
    if config.keep_tokens and not getattr(task, "keeps_tokens", False):
        raise UsageError(f"keep_tokens keeps every token's loss, which task={task.name} does not measure: leave it false")
    if config.workers > 1 and getattr(task, "timed", False):
        raise UsageError(f"task={task.name} measures time, and several processes slow each other down: set workers=1")
    if config.shards > 1 and not getattr(task, "shares", False):
        why = "measures time" if getattr(task, "timed", False) else "does not write down each document's numbers"
        raise UsageError(f"task={task.name} {why}, so one process measures a cell: set shards=1")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    cell = Cell(folder, task.name, _label(parts), identifier)
    made = Prepared(cell, job, task, plain, known, config.force, config.keep_tokens, config.retry, overrides)
    if not made.settled:  # else it was checked when it was measured, and to ask again takes seconds
        if hasattr(model, "check") and model not in shared.setdefault("checked", []):  # a grid has few models, and many cells
            model.check()
            shared["checked"].append(model)
        task.check(job)
    return made


def _context(task: Any, model: Any, policy: Any, config: DictConfig) -> int:
    """The model's answer to the setting, but where a task cuts no chunks and says itself what it reads at once."""
    if hasattr(task, "context"):
        return int(task.context(config.context, config.tokens))
    return int(model.context(config.context, compressed=policy.evicts and config.positions == "compressed"))


def _label(parts: Parts) -> str:
    """What people call the cell."""
    subject = parts.dataset.name if parts.task.name == "perplexity" else parts.task.name
    size = [] if parts.cache is None else [f"k={parts.cache}"]
    return " ".join([parts.model.name, subject, parts.policy.name, *size])

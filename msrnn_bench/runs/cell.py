"""One cell: a configuration checked, its objects built, its id formed; ready to run, with nothing loaded or written.

Knows the order of things; what is measured arrives through `_target_`, and execute.py measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from msrnn_bench.errors import UsageError
from msrnn_bench.job import Job, Progress
from msrnn_bench.results.cells import Cell, cell_id, finished
from msrnn_bench.runs.build import build_once, build_policy
from msrnn_bench.runs.identity import Parts, columns, recorded, settings, topline
from msrnn_bench.runs.values import check_values


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

    @property
    def done(self) -> bool:
        """Whether there is nothing to do."""
        return not self.force and finished(self.cell) and (not self.keep_tokens or self.tokens_file.is_file())

    @property
    def tokens_file(self) -> Path:
        return self.cell.csv.with_suffix(".npz")


def prepare(config: DictConfig, overrides: list[str], progress: Progress, shared: dict[Any, Any]) -> Prepared:
    """Check a configuration and give its cell an id. UsageError or MachineError say what does not fit."""
    check_values(config)
    policy = build_policy(config.policy, overrides)
    model, dataset, task = (build_once(shared, config[group], group) for group in ("model", "dataset", "task"))
    rule, compressed = policy.rule(config.cache), policy.evicts and config.positions == "compressed"
    context = model.context(config.context, compressed=compressed)
    parts = Parts(policy, rule, model, dataset, task, None if policy.name == "full" else config.cache, context)
    known = settings(parts, config)
    identifier, folder = cell_id(known), Path(config.results_dir).expanduser()
    job = Job(
        columns=columns(parts, config) | {"cell": identifier}, policy=policy, model=model, dataset=dataset, cache=parts.cache,
        context=context, documents=config.documents, tokens=config.tokens, device=config.device, **recorded(parts, config),
        progress=progress, shared=shared, journal=Cell(folder, task.name, "", identifier).journal,
        topline=Cell(folder, task.name, "", cell_id(topline(known))).journal,
    )  # fmt: skip
    if config.keep_tokens and not getattr(task, "keeps_tokens", False):
        raise UsageError(f"keep_tokens keeps every token's loss, which task={task.name} does not measure: leave it false")
    task.check(job)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    cell = Cell(folder, task.name, _label(parts), identifier)
    return Prepared(cell, job, task, plain, known, config.force, config.keep_tokens)


def _label(parts: Parts) -> str:
    """What people call the cell."""
    subject = parts.dataset.name if parts.task.name == "perplexity" else parts.task.name
    size = [] if parts.cache is None else [f"k={parts.cache}"]
    return " ".join([parts.model.name, subject, parts.policy.name, *size])

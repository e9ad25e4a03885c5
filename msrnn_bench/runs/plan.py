"""What a grid would measure, found without doing it: which cells are finished, how many tokens the others are, how fast
such cells were. Nothing is loaded, fetched, converted or written (errors.looking); dry.py says it to people.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from msrnn_bench.errors import NotHereError, looking
from msrnn_bench.job import Job, Work
from msrnn_bench.results.cells import Cell, finished, read_manifest
from msrnn_bench.results.guarded import listed
from msrnn_bench.results.reading import read_cells
from msrnn_bench.runs.build import build_once, build_policy
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.identity import ADDRESSES, LABELS, SPEED
from msrnn_bench.runs.values import check_values

CONTEXT = 4096  # the paper's, where a model's positions are not known here


@dataclass(frozen=True)
class Planned:
    """A cell that is not going to be measured now. `point`: the overrides that make it; `manifest`: the
    finished cell's, None where it is to do; `work`: None where it cannot be
    told; `facts`: the model's; `absent`: what a run would fetch to know its id, which then was matched by its configuration."""

    point: tuple[str, ...]
    name: str
    job: Job
    folder: Path
    manifest: Path | None
    work: Work | None
    facts: Any
    absent: str | None = None

    @property
    def finished(self) -> bool:
        return self.manifest is not None


@dataclass(frozen=True)
class Rate:
    """Finished cells: their tokens (0 where their rows tell none) and their seconds, loading included, on one process."""

    tokens: int
    seconds: float
    cells: int


class _Quiet:
    def start(self, tokens: int) -> None: ...
    def advance(self, tokens: int) -> None: ...
    def restored(self, tokens: int) -> None: ...


def plan(points: list[tuple[list[str], DictConfig]]) -> list[Planned]:
    """Each cell of a grid once. What a run refuses is refused here, as far as it can be seen."""
    shared: dict[Any, Any] = {}
    cells: dict[str, Planned] = {}
    with looking():
        for point, config in points:
            key, cell = _cell(config, point, shared)
            cells.setdefault(key, cell)
    return list(cells.values())


def _cell(config: DictConfig, point: list[str], shared: dict[Any, Any]) -> tuple[str, Planned]:
    try:
        prepared = prepare(config, point, _Quiet(), shared)
    except NotHereError as error:
        return _by_configuration(config, point, shared, str(error))
    work = _work(prepared.task, prepared.job)
    facts, folder = _facts(prepared.job.model, shared), prepared.cell.results_dir
    manifest = prepared.cell.manifest if prepared.done else None
    return str(prepared.cell.csv), Planned(tuple(point), prepared.task.name, prepared.job, folder, manifest, work, facts)


def _by_configuration(config: DictConfig, point: list[str], shared: dict[Any, Any], absent: str) -> tuple[str, Planned]:
    """A cell whose id needs what is not here. It is finished if a finished cell records the very same configuration."""
    check_values(config)
    policy = build_policy(config.policy, point)
    model, dataset, task = (build_once(shared, config[group], group) for group in ("model", "dataset", "task"))
    facts = _facts(model, shared)
    folder = Path(config.results_dir).expanduser()
    context = config.context or min(CONTEXT, facts.positions or CONTEXT)
    if hasattr(task, "context"):  # one that cuts no chunks
        context = task.context(config.context, config.tokens)
    columns = {"model": model.name, "dataset": dataset.name, "policy": policy.name}
    job = Job(
        columns=columns, policy=policy, model=model, dataset=dataset, cache=None if policy.name == "full" else config.cache,
        context=context, documents=config.documents, tokens=config.tokens, seed=config.seed, dtype=config.dtype,
        device=config.device, engine=config.engine, prefill=config.prefill, positions=config.positions, progress=_Quiet(),
        journal=folder, topline=folder, graph=config.graph, streams=config.streams,
    )  # fmt: skip
    key = json.dumps(_science(OmegaConf.to_container(config, resolve=True)), sort_keys=True, default=str)
    known = ("recorded", folder)
    if known not in shared:
        shared[known] = _recorded(folder)
    manifest = None if config.force else shared[known].get(key)
    return f"{folder} {key}", Planned(tuple(point), task.name, job, folder, manifest, _work(task, job), facts, absent)


def _facts(model: Any, shared: dict[Any, Any]) -> Any:
    """What its class tells of a model, asked once."""
    key = ("facts", id(model))
    if key not in shared:
        shared[key] = model.about()
    return shared[key]


def _recorded(folder: Path) -> dict[str, Path]:
    """The configurations of the finished cells of a folder, and their manifests."""
    found = {}
    for path in listed(folder, ".json"):
        if finished(Cell(folder, "", "", path.stem)):
            config = (read_manifest(path) or {}).get("config", {})
            found[json.dumps(_science(config), sort_keys=True, default=str)] = path
    return found


def _science(config: Any, top: bool = True) -> Any:
    """A configuration without what never changes a number; the full model's without a state size."""
    if not isinstance(config, dict):
        return config
    dropped = (SPEED | LABELS) - ADDRESSES
    kept = {str(k): _science(v, False) for k, v in config.items() if k not in dropped and not (top and k == "experiment")}
    if top and str(kept.get("policy", {}).get("_target_", "")).endswith(".Full"):
        kept.pop("cache", None)
        kept.pop("prefill", None)
        kept.pop("positions", None)
    return kept


def _work(task: Any, job: Job) -> Work | None:
    try:
        return task.work(job) if hasattr(task, "work") else None
    except NotHereError:
        return None


def rate(folder: Path, task: str, model: str, dtype: str, context: int) -> Rate | None:
    """How fast the finished cells of a folder with this task, model, dtype and context were; None where there are none."""
    if not (folder / "cells").is_dir():
        return None
    rows = read_cells(folder).rows
    rows = rows[(rows["task"] == task) & (rows["model"] == model) & (rows["dtype"] == dtype) & (rows["context"] == context)]
    seconds = {cell: _seconds(folder / "cells" / f"{cell}.json") for cell in rows["cell"].unique()}
    timed = {cell: spent for cell, spent in seconds.items() if spent}
    if not timed:
        return None
    rows = rows[rows["cell"].isin(timed)].dropna(subset=["seconds", "tokens_per_second"])
    rows = rows.drop_duplicates(["cell", "document", "subtask", "length", "depth", "seconds"])  # buckets share a reading
    tokens = (rows["seconds"] * rows["tokens_per_second"]).sum()
    return Rate(round(tokens), sum(timed.values()), len(timed))


def _seconds(manifest: Path) -> float:
    return float((read_manifest(manifest) or {}).get("seconds") or 0)

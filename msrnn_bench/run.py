"""One cell: a configuration becomes rows and a manifest on disk, or is skipped because they are there already.

Knows the order of things and the identity of a cell; what is measured arrives through `_target_`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msrnn_bench import NUMERICS
from msrnn_bench.compose import choices, config_dir
from msrnn_bench.errors import MachineError, UsageError, one_line
from msrnn_bench.files import write_atomically
from msrnn_bench.job import Job, Progress
from msrnn_bench.policies import Full, Policy, Rule
from msrnn_bench.provenance import git, machine, versions
from msrnn_bench.results import Cell, cell_id, check_writable, finished, write, write_failure

CONTEXT = 4096  # the paper's, where neither the user nor the model's positions say otherwise


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
    stored: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether there is nothing to do."""
        return not self.force and finished(self.cell) and (not self.keep_tokens or self.tokens_file.is_file())

    @property
    def tokens_file(self) -> Path:
        return self.cell.csv.with_suffix(".npz")


def prepare(config: DictConfig, overrides: list[str], progress: Progress, shared: dict[Any, Any]) -> Prepared:
    """Check a configuration and give its cell an id. UsageError or MachineError say what does not fit."""
    _check_values(config)
    policy = build_policy(config.policy, overrides)
    model, dataset, task = (_once(shared, config[group], group) for group in ("model", "dataset", "task"))
    cache = None if policy.name == "full" else config.cache
    rule = policy.rule(config.cache)
    context = _context(config.context, model)
    recorded = {key: config[key] for key in ("seed", "dtype", "engine", "prefill", "positions")}
    if not policy.evicts:
        recorded["prefill"] = "stepwise"  # nothing is cut, so one cell serves both
    knobs = _knobs(rule)
    shown = knobs if policy.evicts and rule.score is None and rule.seed is None else {"per": rule.per} if policy.evicts else {}
    if rule.fixed:
        shown = {**knobs, "memory": None}
    columns = {
        "task": task.name, "dataset": dataset.name, "model": model.name, "weights": model.weights, "policy": policy.name,
        **shown, "cache": cache, "context": context, **recorded, "template": task.template,
    }  # fmt: skip
    settings = {
        "numerics": NUMERICS, "task": {"name": task.name, **task.settings()}, "policy": identity(policy, knobs),
        "model": model.fingerprint(seed=config.seed), "dataset": dataset.fingerprint(config.documents), "cache": cache,
        "context": context, "documents": config.documents, "tokens": config.tokens, **recorded,
    }  # fmt: skip
    identifier, folder = cell_id(settings), Path(config.results_dir).expanduser()
    columns["cell"] = identifier
    what = (model.name, dataset.name if task.name == "perplexity" else task.name, policy.name)
    cell = Cell(folder, task.name, " ".join([*what, *([] if cache is None else [f"k={cache}"])]), identifier)
    full = Full()
    topline = cell_id({**settings, "policy": identity(full, _knobs(full.rule())), "cache": None, "prefill": "stepwise"})
    job = Job(
        columns=columns, policy=policy, model=model, dataset=dataset, cache=cache, context=context,
        documents=config.documents, tokens=config.tokens, device=config.device, **recorded, progress=progress, shared=shared,
        journal=cell.journal, topline=Cell(folder, task.name, "", topline).journal,
    )  # fmt: skip
    task.check(job)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return Prepared(cell, job, task, plain, settings, config.force, config.keep_tokens)


def execute(prepared: Prepared) -> None:
    """Measure and write. What goes wrong while measuring leaves a manifest that says so; what the user or the machine
    could not give leaves nothing."""
    cell, job = prepared.cell, prepared.job
    check_writable(cell.results_dir)
    if prepared.force:
        cell.journal.unlink(missing_ok=True)
    arrays: dict[str, Any] = {}
    if prepared.keep_tokens:
        object.__setattr__(job, "keep", arrays.__setitem__)
    begin = time.perf_counter()
    try:
        rows = list(prepared.task.rows(job))
    except (UsageError, KeyboardInterrupt):
        raise
    except Exception as error:
        failure = {**_manifest(prepared, begin), "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        write_failure(cell, {**failure, "row": {"bos": False, **job.columns}})
        raise
    if arrays:
        _write_arrays(prepared.tokens_file, arrays)
    write(cell, rows, _manifest(prepared, begin))


def _knobs(rule: Rule) -> dict[str, Any]:
    return {"memory": rule.memory, "first": rule.first, "recent": rule.recent, "per": rule.per}


def build_policy(config: DictConfig, overrides: list[str]) -> Policy:
    """The policy of a configuration; one of the user's own (`policy._target_=my_policy.MyPolicy`) is found beside
    where the command runs, and gets the settings that were given, not those of the policy it replaced."""
    target = str(config.get("_target_", ""))
    if target.startswith("msrnn_bench."):
        return build(config, "policy")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module, _, name = target.rpartition(".")
        made: Any = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UsageError(f"policy._target_={target} cannot be imported from here ({_short(error)})") from error
    given = {o.lstrip("+").split("=")[0].removeprefix("policy.") for o in overrides if o.lstrip("+").startswith("policy.")}
    packaged = {str(key) for name in choices("policy") for key in OmegaConf.load(config_dir() / "policy" / f"{name}.yaml")}
    own = {str(k): v for k, v in config.items() if k in given or k not in packaged}
    own.pop("_target_", None)
    if not (isinstance(made, type) and issubclass(made, Policy)):
        raise UsageError(f"policy._target_={target} must be a subclass of msrnn_bench.Policy")
    _check_keys(made, own, "policy")
    return made(**own)


def identity(policy: Policy, knobs: dict[str, Any]) -> dict[str, Any]:
    """What of a policy can change the number: the resolved rule, and the source of one that is not ours."""
    known = {"name": policy.name, **(knobs if policy.evicts else {})}
    kind = type(policy)
    if not kind.__module__.startswith("msrnn_bench."):
        source = Path(inspect.getfile(kind)).read_bytes()
        known |= {"source": hashlib.sha256(source).hexdigest(), "class": kind.__qualname__}
    settings = {k: v for k, v in vars(policy).items() if k not in knobs}
    return {
        **known,
        "settings": {k: v if isinstance(v, int | float | str | bool | None) else repr(v) for k, v in settings.items()},
    }


def _once(shared: dict[Any, Any], config: DictConfig, group: str) -> Any:
    """`build`, once for all cells with the same settings: they are frozen, and a grid has few of them."""
    key = ("built", group, OmegaConf.to_yaml(config))
    if key not in shared:
        shared[key] = build(config, group)
    return shared[key]


def build(config: DictConfig, group: str) -> Any:
    """The object behind a config group, unknown keys refused."""
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        made = get_object(plain["_target_"])
        _check_keys(made, {k: v for k, v in plain.items() if not k.startswith("_")}, group)
        return instantiate(config, _convert_="all")
    except UsageError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, UsageError):  # instantiate wraps what a constructor raises
            raise error.__cause__ from None
        raise UsageError(f"{group} cannot be built ({_short(error)}): check its settings") from error


def _check_keys(made: Callable[..., Any], given: dict[str, Any], group: str) -> None:
    known = list(inspect.signature(made).parameters)
    for key in given:
        if key not in known:
            raise UsageError(f"unknown setting '{group}.{key}'; {made.__name__} has: {', '.join(known) or 'none'}")


def _check_values(config: DictConfig) -> None:
    """Types and ranges of the top-level settings."""
    try:
        for key in ("cache", "workers", "seed", "context", "documents", "tokens"):
            value, least = config[key], 0 if key == "seed" else 1
            if value is None and key in ("context", "documents", "tokens"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                what = "the state size, " if key == "cache" else ""
                raise UsageError(f"{key}={value} must be {what}a whole number of {least} or more")
        for key in ("keep_tokens", "force"):
            if not isinstance(config[key], bool):
                raise UsageError(f"{key}={config[key]} must be true or false")
        known = {
            "dtype": ("float32", "bfloat16", "float16"), "engine": ("scan", "recurrence"),
            "prefill": ("stepwise", "oneshot"), "positions": ("original",),
        }  # fmt: skip
        for key, values in known.items():
            if config[key] not in values:
                raise UsageError(f"{key}={config[key]} is unknown: give {' or '.join(values)}")
    except OmegaConfBaseException as error:
        raise UsageError(_short(error)) from error


def _context(wanted: int | None, model: Any) -> int:
    """Tokens per chunk: what was asked for, refused beyond the model's positions, else the paper's or all it has."""
    from msrnn_bench.models import is_rotary, max_positions

    config = model.config()
    limit = max_positions(config)
    if wanted is None:
        return CONTEXT if limit is None else min(CONTEXT, limit)
    if limit is not None and wanted > limit:
        if not model.extrapolate:
            more = "; model.extrapolate=true goes beyond" if is_rotary(config) else ""
            raise UsageError(f"context={wanted} is more than the {limit} positions of {model.name}: take {limit} or less{more}")
        if not is_rotary(config):
            raise UsageError(
                f"{model.name} has a table of {limit} positions, it cannot extrapolate: take context={limit} or less"
            )
    return wanted


def _manifest(prepared: Prepared, begin: float) -> dict[str, Any]:
    """All that is needed to say where a number comes from."""
    job = prepared.job
    loaded = next((v for k, v in job.shared.items() if k[0] == "model"), None)
    return {
        "config": prepared.config, "settings": prepared.settings, "dataset": job.dataset.manifest(job.documents),
        "model": None if loaded is None else loaded.info, "versions": versions(), "git": git(), "machine": machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - begin, 3),
    }  # fmt: skip


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    import io

    import numpy as np

    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_atomically(path, data.getvalue())


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


__all__ = ["MachineError", "Prepared", "build_policy", "execute", "prepare"]

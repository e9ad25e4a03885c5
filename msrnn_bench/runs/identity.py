"""Who a cell is: everything that can change its number, as plain JSON values. Paths and devices are no part of it."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from msrnn_bench import NUMERICS
from msrnn_bench.policies import Full, Policy, Rule
from msrnn_bench.results.provenance import hardware

# The law: every key of a configuration changes the id, or is one of these (tests/test_law.py tries them all).
# Speed, place and bookkeeping: never the number (of a task that is `timed` the device is part of the machine, `_place`).
SPEED = {
    "device",
    "device_map",
    "workers",
    "shards",
    "batch",
    "batch_size",
    "chunk",
    "graph",
    "streams",
    "results_dir",
    "force",
    "retry",
    "keep_tokens",
    "dry_run",
}
# What a thing is called, what is noted of it, and leave to go beyond its limits; what was measured then is in other keys.
LABELS = {"name", "facts", "extrapolate"}
# Where a thing is found: its content counts, wherever it lies.
ADDRESSES = {"path", "repo", "revision", "config", "split", "title", "package", "version", "include_path", "judge_path"}


@dataclass(frozen=True)
class Parts:
    """The objects behind a configuration, and its two sizes: `cache` is None for the full model, `context` is resolved."""

    policy: Policy
    rule: Rule
    model: Any
    dataset: Any
    task: Any
    cache: int | None
    context: int


def settings(parts: Parts, config: DictConfig) -> dict[str, Any]:
    """What the cell's id is a hash of."""
    return {
        "numerics": NUMERICS, "task": {"name": parts.task.name, **parts.task.settings(), **_place(parts.task, config)},
        "policy": _policy(parts.policy, parts.rule), "model": parts.model.fingerprint(seed=config.seed),
        "dataset": parts.dataset.fingerprint(config.documents), "cache": parts.cache, "context": parts.context,
        "documents": config.documents, "tokens": config.tokens, **recorded(parts, config),
    }  # fmt: skip


def _place(task: Any, config: DictConfig) -> dict[str, Any]:
    """The machine, and a graph, for a task that says that it is `timed`: its numbers are theirs. Of others they are no part."""
    graph = {"graph": True} if config.graph else {}
    return {"machine": hardware(config.device), **graph} if getattr(task, "timed", False) else {}


def topline(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the full model's cell beside a cell of these settings."""
    full = Full()
    return {**settings, "policy": _policy(full, full.rule()), "cache": None, "prefill": "stepwise", "positions": "original"}


def columns(parts: Parts, config: DictConfig) -> dict[str, Any]:
    """The row columns that are the same in all of the cell's rows, but for its id."""
    policy, rule = parts.policy, parts.rule
    knobs = _knobs(rule)
    shown = knobs if policy.evicts and rule.score is None and rule.seed is None else {"per": rule.per} if policy.evicts else {}
    if rule.fixed:
        shown = {**knobs, "memory": None}
    return {
        "task": parts.task.name, "dataset": parts.dataset.name, "model": parts.model.name, "weights": parts.model.weights,
        "policy": policy.name, **shown, "cache": parts.cache, "context": parts.context, **recorded(parts, config),
        "template": parts.task.template,
    }  # fmt: skip


def recorded(parts: Parts, config: DictConfig) -> dict[str, Any]:
    """The top-level settings that are columns, part of the id and told to the task alike."""
    found = {key: config[key] for key in ("seed", "dtype", "engine", "prefill", "positions")}
    if not parts.policy.evicts:
        found |= {"prefill": "stepwise", "positions": "original"}  # nothing is cut and no gap opens, so one cell serves all
    return found


def _policy(policy: Policy, rule: Rule) -> dict[str, Any]:
    """What of a policy can change the number: the resolved rule, and the source of one that is not ours."""
    knobs = _knobs(rule)
    known = {"name": policy.name, **(knobs if policy.evicts else {})}
    kind = type(policy)
    if not kind.__module__.startswith("msrnn_bench."):
        parts: list[Any] = [kind] if rule.elementwise is None else [kind, kind.score_state]  # type: ignore[attr-defined]
        files = dict.fromkeys(inspect.getfile(part) for part in parts)
        source = b"".join(Path(file).read_bytes() for file in files)
        known |= {"source": hashlib.sha256(source).hexdigest(), "class": kind.__qualname__}
    own = {k: v for k, v in vars(policy).items() if k not in knobs}
    return {**known, "settings": {k: v if isinstance(v, int | float | str | bool | None) else repr(v) for k, v in own.items()}}


def _knobs(rule: Rule) -> dict[str, Any]:
    return {"memory": rule.memory, "first": rule.first, "recent": rule.recent, "per": rule.per}

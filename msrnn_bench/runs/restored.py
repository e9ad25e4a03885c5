"""A manifest's configuration as this version has it: classes by their present names, younger settings at their defaults.

A manifest may be a stranger's. What in it would run code that is not this package's (a class from elsewhere, code beside a
model's weights, lm-eval's tasks in a folder) is refused until it is trusted; paths in it are read as what they are.
"""

from __future__ import annotations

import pydoc
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from msrnn_bench.errors import UsageError, shown
from msrnn_bench.results.differences import BOOKKEEPING
from msrnn_bench.runs.build import NEEDED
from msrnn_bench.runs.command import composed, targets
from msrnn_bench.runs.identity import ADDRESSES, SPEED
from msrnn_bench.runs.overrides import understood

PACKAGE = "msrnn_bench."
GIVEN = (ADDRESSES | SPEED) - {*BOOKKEEPING, "keep_tokens"}  # what may be said otherwise: where things lie, and how fast


def restored(manifest: Mapping[str, Any], given: Sequence[str], place: str, *, trust: bool) -> DictConfig:
    """The configuration, its results in `place`; `given` are settings after the cell (`dataset.path=...`), in the place of
    its own."""
    recorded = manifest.get("config")
    if not isinstance(recorded, Mapping) or not all(isinstance(recorded.get(group), Mapping) for group in NEEDED):
        raise UsageError("the cell's manifest holds no configuration, so it cannot be repeated: run it again by its command")
    _refuse_interpolations(recorded)
    measured = {key: value for key, value in recorded.items() if key not in BOOKKEEPING}  # where it is written is not its to say
    made = {**composed(()), **measured, "results_dir": place}
    chosen = manifest.get("chosen") or {}
    if "batch" in chosen:  # auto, what it was then: another number would change the last bits
        made["task"] = {**made["task"], "batch": chosen["batch"]}
    for text in understood(list(given), ["rerun", "CELL"], sweeps=False):
        _put(made, text)
    for group in NEEDED:
        made[group] = {**made[group], "_target_": _present(group, str(made[group].get("_target_")), trust=trust)}
    if not trust:
        _refuse_code(made)
    return OmegaConf.create(made)


def _put(made: dict[str, Any], text: str) -> None:
    """One setting in the place of the recorded one, if the number cannot depend on it."""
    override: Any = OverridesParser.create().parse_override(text)
    group, dot, key = str(override.key_or_group).rpartition(".")
    if key not in GIVEN or (dot and group not in NEEDED) or override.is_delete():
        raise UsageError(
            f"{shown(text)}: rerun repeats a cell as it was, and {override.key_or_group} is no matter of place or speed: leave "
            "it out (dataset.path=..., model.path=... and device=... may be given)"
        )
    if dot:
        made[group] = {**made[group], key: override.value()}
    else:
        made[key] = override.value()


def _refuse_interpolations(config: Mapping[str, Any]) -> None:
    """`${oc.env:...}` would be looked up here; a run records what such a thing stood for, never the thing itself."""
    for key, value in config.items():
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        if isinstance(value, str) and "${" in value:
            raise UsageError(
                f"the manifest's {key}={shown(value)} would be looked up here, and no run writes that: leave it alone"
            )
        _refuse_interpolations({f"{key}.{part}": item for part, item in inner})


def _present(group: str, target: str, *, trust: bool) -> str:
    """The name by which this version knows the class, whatever module of the package it stood in once."""
    if not target.startswith(PACKAGE):
        if not trust:
            raise UsageError(
                f"{group}._target_={shown(target)} is code from outside msrnn-bench, which rerun would call: look at it, then "
                "add trust=true"
            )
        return target
    named = [name for name in targets(group) if name.rpartition(".")[2] == target.rpartition(".")[2]]
    for name in [*named, target]:
        if _ours(group, name):
            return name
    raise UsageError(f"{group}._target_={shown(target)} is no {group} of this version of msrnn-bench: run it with its own")


def _ours(group: str, name: str) -> bool:
    """Whether it is a class of this package that can be the group's; not what one of its modules has imported."""
    try:
        made: Any = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return False
    ours = isinstance(made, type) and made.__module__.startswith(PACKAGE)
    return ours and all(hasattr(made, needed) for needed in NEEDED[group])


def _refuse_code(made: Mapping[str, Any]) -> None:
    """Classes of ours that run others' code."""
    if made["model"].get("trust_remote_code"):
        raise UsageError("model.trust_remote_code=true runs the code beside the weights: look at it, then add trust=true")
    if folder := made["task"].get("include_path"):
        raise UsageError(
            f"task.include_path={shown(folder)} is a folder of lm-eval's tasks, whose YAML may call functions: look at it, then "
            "add trust=true"
        )

"""Configurations to objects: what a group's `_target_` names, built from its settings, each checked.

The dotted `_target_` is the registry: this module knows no model, dataset or task, and only the user's own policies apart.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pydoc
import re
import sys
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from msrnn_bench.errors import UsageError, check, one_line, shown
from msrnn_bench.policies import Policy
from msrnn_bench.runs.compose import choices, config_dir, nearest

OURS = ("_target_", "_convert_")  # keys that are not the class's
NEEDED = {
    "model": ("name", "fingerprint", "context", "load"), "dataset": ("name", "fingerprint", "manifest", "documents"),
    "task": ("name", "template", "settings", "check", "rows"), "policy": ("name", "rule", "evicts"),
}  # fmt: skip


def build(config: DictConfig, group: str) -> Any:
    """The object behind a config group; what its class does not take, or not so, is refused."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    if plain.get("_convert_", "all") != "all":
        raise UsageError(f"{group}._convert_={shown(plain['_convert_'])} is none of its settings: leave it out")
    return _made(_named(plain["_target_"], group), {k: v for k, v in plain.items() if k not in OURS}, group)


def _made(made: Callable[..., Any], given: dict[str, Any], group: str) -> Any:
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError) as error:
        raise UsageError(f"{group}._target_ names {made!r}, which is no class with settings") from error
    for key in given:
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise UsageError(f"unknown setting '{group}.{key}'{nearest(key, list(parameters))}; {made.__name__} has: {known}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and parameter.kind not in (2, 4) and key not in given:
            raise UsageError(f"{group}.{key} is missing, which {made.__name__} needs: give {group}.{key}=...")
    try:
        result = made(**check(made, given, group))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{group} cannot be built ({_short(error)}): check its settings") from error
    lacking = [name for name in NEEDED[group] if not hasattr(result, name)]
    if lacking:
        raise UsageError(f"{group}._target_ names {made.__name__}, which is no {group}: it has no {lacking[0]}")
    return result


def _named(target: Any, group: str) -> Any:
    """What a dotted name stands for. Not by Hydra's `get_object`, which prints three lines where it finds nothing."""
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        raise UsageError(f"{group}._target_={target} must be the dotted name of a class")
    try:
        made = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        if isinstance(error.value, KeyboardInterrupt):
            raise error.value from error
        raise UsageError(f"{group}._target_={target} cannot be imported ({one_line(error.value or error)})") from error
    if made is None:
        raise UsageError(f"{group}._target_={target} does not exist: give the dotted name of a class")
    return made


def build_once(shared: dict[Any, Any], config: DictConfig, group: str) -> Any:
    """`build`, once for all cells with the same settings: they are frozen, and a grid has few of them."""
    key = ("built", group, OmegaConf.to_yaml(config))
    if key not in shared:
        shared[key] = build(config, group)
    return shared[key]


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
    if not (isinstance(made, type) and issubclass(made, Policy)):
        raise UsageError(f"policy._target_={target} must be a subclass of msrnn_bench.Policy")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return _made(made, {k: v for k, v in plain.items() if k not in OURS and k not in _replaced(target, overrides)}, "policy")


def _replaced(target: str, overrides: list[str]) -> set[str]:
    """The keys of packaged policies that are not the user's own: none where the YAML names the class, for its keys are meant."""
    files: list[Any] = [OmegaConf.load(config_dir() / "policy" / f"{name}.yaml") for name in choices("policy")]
    given = {o.lstrip("+").split("=")[0].removeprefix("policy.") for o in overrides if o.lstrip("+").startswith("policy.")}
    if "_target_" not in given and any(file.get("_target_") == target for file in files):
        return set()
    return {str(key) for file in files for key in file} - given


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"

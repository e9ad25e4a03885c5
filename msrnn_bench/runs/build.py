"""Configurations to objects: what a group's `_target_` names, built from its settings, unknown ones refused.

The dotted `_target_` is the registry: this module knows no model, dataset or task, and only the user's own policies apart.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pydoc
import sys
from collections.abc import Callable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from msrnn_bench.errors import UsageError, one_line
from msrnn_bench.policies import Policy
from msrnn_bench.runs.compose import choices, config_dir


def build(config: DictConfig, group: str) -> Any:
    """The object behind a config group, unknown keys refused."""
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        made = _named(plain["_target_"], group)
        _check_keys(made, {k: v for k, v in plain.items() if not k.startswith("_")}, group)
        return instantiate(config, _convert_="all")
    except UsageError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, UsageError):  # instantiate wraps what a constructor raises
            raise error.__cause__ from None
        raise UsageError(f"{group} cannot be built ({_short(error)}): check its settings") from error


def _named(target: str, group: str) -> Any:
    """What a dotted name stands for. Not by Hydra's `get_object`, which prints three lines where it finds nothing."""
    try:
        made = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise UsageError(f"{group}._target_={target} cannot be imported ({one_line(error.value or error)})") from error
    if made is None:
        raise UsageError(f"{group}._target_={target} does not exist: give the dotted name of a class")
    return made


def _check_keys(made: Callable[..., Any], given: dict[str, Any], group: str) -> None:
    known = list(inspect.signature(made).parameters)
    for key in given:
        if key not in known:
            raise UsageError(f"unknown setting '{group}.{key}'; {made.__name__} has: {', '.join(known) or 'none'}")


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
    given = {o.lstrip("+").split("=")[0].removeprefix("policy.") for o in overrides if o.lstrip("+").startswith("policy.")}
    packaged = {str(key) for name in choices("policy") for key in OmegaConf.load(config_dir() / "policy" / f"{name}.yaml")}
    own = {str(k): v for k, v in config.items() if k in given or k not in packaged}
    own.pop("_target_", None)
    if not (isinstance(made, type) and issubclass(made, Policy)):
        raise UsageError(f"policy._target_={target} must be a subclass of msrnn_bench.Policy")
    _check_keys(made, own, "policy")
    return made(**own)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"

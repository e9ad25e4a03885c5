"""From a cell's recorded configuration back to the command that measures it: the files of conf/ that come nearest, and what
differs from them. Looks at YAMLs only; builds and loads nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from msrnn_bench.runs.compose import GROUPS, choices, compose_one, config_dir
from msrnn_bench.runs.overrides import quoted

_CHOSEN = tuple(group for group in GROUPS if group != "experiment")
_NO_MATTER = ("workers", "shards", "force")  # how a run is made, not what it measures


def command(config: Mapping[str, Any], changes: Mapping[str, str]) -> str:
    """`msrnn-bench run ...` for the configuration of a manifest. `changes`: settings in the place of its own, such as
    {"cache": "64,128"}, or a group's choice."""
    given: list[str] = []
    base = composed(())
    for group in _CHOSEN:
        if group in changes:
            given.append(f"{group}={changes[group]}")
        elif config.get(group):
            given += _group(group, dict(config[group]), base[group])
    for key, default in base.items():
        if key not in GROUPS and key not in _NO_MATTER:
            value = changes.get(key, _value(config.get(key, default)))
            given += [f"{key}={value}"] if key in changes or config.get(key, default) != default else []
    several = ["-m"] if any("," in value for value in changes.values()) else []
    return " ".join(["msrnn-bench", "run", *several, *map(_shell, given)])


def _group(group: str, config: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """The choice of a group that comes nearest, and what differs from it."""
    target = str(config.get("_target_", ""))
    near = [name for name in choices(group) if _same(_target(group, name), target)]
    if not near:  # a class of the user's own: whatever the default's file lacks is said
        knobs = [f"{group}.{key}={_value(value)}" for key, value in config.items() if not key.startswith("_")]
        return [f"{group}._target_={target}", *knobs]
    made = {name: _differences(group, config, _of_choice(group, name)) for name in near}
    name = min(near, key=lambda name: (len(made[name]), _of_choice(group, name) != base, name))
    return ([] if _of_choice(group, name) == base else [f"{group}={name}"]) + made[name]


def _differences(group: str, config: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    """Settings of a cell that a choice has otherwise; what older cells lack and newer files dropped is left alone."""
    shared = [key for key in config if key in chosen and not key.startswith("_")]
    return [f"{group}.{key}={_value(config[key])}" for key in shared if config[key] != chosen[key]]


def targets(group: str) -> list[str]:
    """The classes that the files of a group name."""
    return sorted({_target(group, name) for name in choices(group)})


def _same(target: str, recorded: str) -> bool:
    """Whether it is the same class: those of the package are known by their own name, whatever module they stood in once."""
    if target.startswith("msrnn_bench.") and recorded.startswith("msrnn_bench."):
        return target.rpartition(".")[2] == recorded.rpartition(".")[2]
    return target == recorded


@cache
def _target(group: str, name: str) -> str:
    held: Any = OmegaConf.load(config_dir() / group / f"{name}.yaml")
    return str(held.get("_target_", ""))


def _of_choice(group: str, name: str) -> dict[str, Any]:
    return dict(composed((f"{group}={name}",))[group])


@cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The plain configuration under these overrides; a file that wants a setting keeps its `???`."""
    made: Any = OmegaConf.to_container(compose_one(list(overrides)), resolve=True)
    return dict(made)


def _value(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        plain = value and all(letter.isalnum() or letter in "_-./" for letter in value)
        return value if plain and not value.replace(".", "").replace("-", "").isdigit() else quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _shell(arg: str) -> str:
    return shlex.quote(arg)

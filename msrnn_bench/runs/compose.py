"""Command line to configurations: Hydra composes, this module says in one line what does not fit. Imports no torch.

Sweeps are expanded here with Hydra's own grammar, so that a grid runs in one process that loads the model once, and
all of it is checked before the first cell runs.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from msrnn_bench.errors import UsageError

GROUPS = ("model", "dataset", "policy", "task", "experiment")


def config_dir() -> Path:
    """`conf/`: inside an installed package, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UsageError(f"conf/config.yaml is missing beside {here}: install msrnn-bench again")


def choices(group: str) -> list[str]:
    """The names a config group offers, nested ones with their folder."""
    root = config_dir() / group
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def compose_one(overrides: list[str]) -> DictConfig:
    """The configuration of one run, without Hydra's own part."""
    with _hydra():
        return _compose(overrides)[0]


def compose_grid(overrides: list[str], *, experiment_grid: bool) -> list[tuple[list[str], DictConfig]]:
    """Every point of the sweep: the overrides that make it, and its configuration.

    Values joined by commas are swept, as in Hydra. With `experiment_grid` the experiment's `hydra.sweeper.params` are
    swept too, except where the command line sets the same key.
    """
    with _hydra():
        given = _parse(overrides)
        if experiment_grid:
            plain = [o.input_line for o in given if not o.is_sweep_override()]
            params = _compose(plain)[1]
            named = {o.get_key_element() for o in given}
            grid = [f"{key}={value}" for key, value in params.items() if key not in named]
            given = [*given, *_parse(grid)]
        axes = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override()
            else [o.input_line or ""]
            for o in given
        ]  # fmt: skip
        points = [list(point) for point in itertools.product(*axes)]
        made: dict[tuple[str, ...], DictConfig] = {}
        return [(point, _at_size(point, made)) for point in points]


def _at_size(point: list[str], made: dict[tuple[str, ...], DictConfig]) -> DictConfig:
    """The point's configuration; those that differ in `cache` alone are composed once, for composing is slow."""
    rest = tuple(o for o in point if not o.startswith("cache="))
    if rest not in made:
        made[rest] = _compose(list(rest))[0]
    config = copy.deepcopy(made[rest])
    for override in _parse([o for o in point if o.startswith("cache=")]):
        config.cache = override.value()
    return config


@contextmanager
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


def is_sweep(override: str) -> bool:
    """Whether an override has several values."""
    with _hydra():
        return bool(_parse([override])[0].is_sweep_override())


def _parse(overrides: list[str]) -> list[Any]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise UsageError(f"cannot read the override {error.override!r}: write key=value, such as cache=512") from error


def _compose(overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration and the experiment's grid."""
    try:
        config = compose("config", overrides, return_hydra_config=True)
        params = dict(config.hydra.sweeper.params or {})
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_one_line(error, overrides)) from error
    with open_dict(config):
        del config["hydra"]
    _refuse_added_keys(overrides)
    return config, {str(k): str(v) for k, v in params.items()}


def _refuse_added_keys(overrides: list[str]) -> None:
    """`+cash=3` would be accepted and ignored."""
    for override in overrides:
        key = override.lstrip("+").split("=")[0].split("@")[0]
        if override.startswith("+") and "." not in key and key not in GROUPS:
            raise UsageError(f"unknown setting {key!r}{_nearest(key, settings())}")


def settings() -> list[str]:
    """The top-level keys and the config groups."""
    keys = OmegaConf.load(config_dir() / "config.yaml")
    return [str(k) for k in keys if k not in ("defaults", "hydra")] + list(GROUPS)


def _one_line(error: Exception, overrides: list[str]) -> str:
    """Hydra's several lines as one that names the fix."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).partition("/")
        if group in GROUPS:
            name = name.removesuffix(".yaml")
            return f"unknown {group} {name!r}{_nearest(name, choices(group))}; there are: {', '.join(choices(group))}"
    text = str(error)
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Could not override '?([\w.@/]+)", text)
    if isinstance(error, ConfigCompositionException) and key:
        return _unknown_key(key.group(1), overrides)
    missing = re.search(r"Could not load '([^']+)'", text)
    if missing:
        return f"unknown setting in the override {missing.group(1)!r}; see msrnn-bench list"
    return " ".join(text.split())


def _unknown_key(key: str, overrides: list[str]) -> str:
    head, _, leaf = key.rpartition(".")
    if not head:
        return f"unknown setting {key!r}{_nearest(key, settings())}; there are: {', '.join(settings())}"
    chosen = next((o for o in overrides if o.startswith(f"{head}=")), None)
    where = f" of {chosen}" if chosen else ""
    try:
        node = OmegaConf.select(compose("config", [chosen] if chosen else []), head)
        known = [k for k in node if not k.startswith("_")]
    except (HydraException, OmegaConfBaseException, TypeError):
        known = []
    return f"unknown setting {key!r}{where}{_nearest(leaf, known)}; there are: {', '.join(known) or 'none'}"


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

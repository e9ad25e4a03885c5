"""Command line to configurations: Hydra composes, this module says in one line what does not fit. Imports no torch.

Sweeps are expanded here with Hydra's own grammar, so that a grid runs in one process that loads the model once, and
all of it is checked before the first cell runs.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, RangeSweep
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from msrnn_bench.errors import UsageError, one_line, shown

GROUPS = ("model", "dataset", "policy", "task", "experiment")
MOST = 10_000  # cells of one command: more is a slip of the hand


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
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def compose_one(overrides: list[str]) -> DictConfig:
    """The configuration of one run, without Hydra's own part."""
    with _hydra():
        return _composed(overrides)[0]


def compose_grid(overrides: list[str], *, experiment_grid: bool) -> list[tuple[list[str], DictConfig]]:
    """Every point of the sweep: the overrides that make it, and its configuration.

    Values joined by commas are swept, as in Hydra. With `experiment_grid` each experiment's `hydra.sweeper.params` are
    swept too, except where the command line sets the same key.
    """
    with _hydra():
        given = _parse(overrides)
        experiments = next((o for o in given if o.key_or_group == "experiment"), None)
        if experiments is None or not experiment_grid:
            return _points(given)
        rest = [o for o in given if o is not experiments]
        named = {o.key_or_group for o in given}
        points = []
        each = [f"experiment={name}" for name in _values(experiments)] if experiments.is_sweep_override() else None
        for name in each or [experiments.input_line or ""]:
            one = _parse([name])
            plain = [o.input_line or "" for o in [*rest, *one] if not o.is_sweep_override()]
            grid = [f"{key}={value}" for key, value in _composed(plain)[1].items() if key not in named]
            points += _points([*rest, *one, *_parse(grid)])
        return points


def _points(given: list[Override]) -> list[tuple[list[str], DictConfig]]:
    named = [o.key_or_group for o in given]
    for override in given:
        if override.is_sweep_override() and named.count(override.key_or_group) > 1:
            raise UsageError(f"{override.key_or_group} is given twice: give all its values at once, joined by commas")
    axes = [
        [f"{o.get_key_element()}={value}" for value in _values(o)] if o.is_sweep_override() else [o.input_line or ""]
        for o in given
    ]
    if math.prod(map(len, axes)) > MOST:
        raise UsageError(f"the sweep has {math.prod(map(len, axes))} cells, more than the {MOST} that one command measures")
    return [(list(point), _composed(list(point))[0]) for point in itertools.product(*axes)]


def _values(override: Override) -> list[str]:
    """The values of a swept setting, as texts."""
    value, found = override._value, []
    many = isinstance(value, RangeSweep) and not 0 < abs(value.step or 0) * MOST >= abs((value.stop or 0) - (value.start or 0))
    if not many:
        try:
            found = list(itertools.islice(override.sweep_string_iterator(), MOST + 1))
        except Exception as error:
            raise UsageError(f"{shown(override.input_line)} names no values one by one ({one_line(error)})") from error
    if many or len(found) > MOST:
        raise UsageError(f"{shown(override.input_line)} has more than the {MOST} values that one command measures")
    if not found:
        raise UsageError(f"{shown(override.input_line)} matches nothing: give its values, joined by commas")
    return found


def _composed(overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """What `_compose` makes of these, some twenty times as fast for a second point of the same choices.

    Hydra reads the chosen files first and puts the values on them last, so the files are read once and the values put on a
    copy. Whatever is more than names and values, and every mistake, is Hydra's.
    """
    with suppress(OverrideParseException, OmegaConfBaseException, UsageError):
        given = OverridesParser.create().parse_overrides(overrides)
        if all(map(_plain, given)):
            chosen = {o.key_or_group: o.input_line or "" for o in given if o.key_or_group in GROUPS}  # the last one counts
            config, grid = copy.deepcopy(_chosen(tuple(sorted(chosen.values())), _state()))
            for override in given:
                if override.key_or_group not in GROUPS:
                    OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
            return config, grid
    return _compose(overrides)


def _plain(override: Override) -> bool:
    """key=value, or a group's choice by one name."""
    if override.type is not OverrideType.CHANGE or override.package is not None or override.is_sweep_override():
        return False
    if override.key_or_group in GROUPS:
        return isinstance(override.value(), str | None)
    return "/" not in override.key_or_group and not override.is_hydra_override()


@lru_cache(maxsize=256)
def _chosen(choices: tuple[str, ...], state: tuple[tuple[Path, int], ...]) -> tuple[DictConfig, dict[str, Any]]:
    return _compose(list(choices))


def _state() -> tuple[tuple[Path, int], ...]:
    """Changes with every edit below conf/: a notebook may compose, edit a file and compose again."""
    return tuple((path, path.stat().st_mtime_ns) for path in config_dir().rglob("*.yaml"))


@contextmanager
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


def _parse(overrides: list[str]) -> list[Override]:
    """Hydra's reading, with which glob() finds the files of conf/."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        return parser.parse_overrides(overrides)
    except OverrideParseException as error:
        raise UsageError(f"cannot read the override {shown(error.override)!r}: write key=value, such as cache=512") from error


def _compose(overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration and the experiment's grid."""
    try:
        config = compose("config", overrides, return_hydra_config=True)
        params = dict(config.hydra.sweeper.params or {})
    except Exception as error:  # Hydra has bare ones too, for what it did not foresee
        raise UsageError(_one_line(error, overrides)) from error
    plain = any(o.startswith("hydra/launcher=") for o in overrides) or config.hydra.runtime.choices["hydra/launcher"] == "basic"
    if not plain or any(str(key).startswith("hydra") for key in params):
        raise UsageError(
            "an experiment says what is measured, not where: take hydra/launcher out of its YAML; add it behind sweep"
        )
    with open_dict(config):
        del config["hydra"]
    return config, {str(k): str(v) for k, v in params.items()}


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
            return f"unknown {group} {name!r}{nearest(name, choices(group))}; there are: {', '.join(choices(group))}"
    text = str(error)
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Could not override '?([\w.@/]+)", text)
    if isinstance(error, ConfigCompositionException) and key:
        return _unknown_key(key.group(1), overrides)
    missing = re.search(r"Could not load '([^']+)'", text)
    if missing:
        return f"unknown setting in the override {missing.group(1)!r}; see msrnn-bench list"
    if "Config group override" in text:
        return f"{', '.join(GROUPS)} are each chosen by one name: see msrnn-bench list ({one_line(error)})"
    return f"the settings do not go together: {one_line(error)}"


def unknown(key: str, known: list[str]) -> str:
    """What to say of a top-level key that is none of the known ones."""
    return f"unknown setting {key!r}{nearest(key, known)}; there are: {', '.join(known)}"


def _unknown_key(key: str, overrides: list[str]) -> str:
    head, _, leaf = key.rpartition(".")
    if not head:
        return unknown(key, settings())
    chosen = next((o for o in reversed(overrides) if o.startswith(f"{head}=")), None)
    where = " of " + chosen.replace("'", "") if chosen else ""
    try:
        node = OmegaConf.select(compose("config", [chosen] if chosen else []), head)
        if not isinstance(node, DictConfig):
            return f"unknown setting {key!r}: {head} is a single value, with nothing inside"
        known = [str(k) for k in node if not str(k).startswith("_")]
    except (HydraException, OmegaConfBaseException, TypeError):
        known = []
    return f"unknown setting {key!r}{where}{nearest(leaf, known)}; there are: {', '.join(known) or 'none'}"


def nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

"""The top-level settings of a run: their types and ranges, refused in one line before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msrnn_bench.errors import LARGEST, Count, Named, Seed, UsageError, check, one_line
from msrnn_bench.runs.compose import GROUPS, settings, unknown


@dataclass(frozen=True, kw_only=True)
class Settings:
    """conf/config.yaml without its groups; the comments there say what each is."""

    cache: Count
    context: Annotated[int, Ge(2), Le(LARGEST)] | None  # with 1 there is nothing to predict
    documents: Count | None
    tokens: Count | None
    seed: Seed
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    device: Named
    engine: Literal["scan", "recurrence"]
    prefill: Literal["stepwise", "oneshot"]
    positions: Literal["original", "compressed"]
    graph: bool
    streams: Literal[1, 2]
    keep_tokens: bool
    results_dir: Named
    workers: Count
    shards: Count
    force: bool
    retry: Literal["failed"] | None
    dry_run: bool


def check_values(config: DictConfig) -> None:
    """All of the top level: nothing unknown, nothing missing, `${...}` resolved, types and ranges."""
    top = [field.name for field in fields(Settings)]
    for key in map(str, config):
        if key not in (*top, *GROUPS) or key == "experiment":
            raise UsageError(unknown(key, settings()))
    try:
        OmegaConf.resolve(config)
        lacking = sorted(OmegaConf.missing_keys(config))
        if lacking:
            raise UsageError(f"{lacking[0]}=??? is left open: give it a value")
        given: Any = OmegaConf.to_container(config)
    except UsageError:
        raise
    except (OmegaConfBaseException, ValueError, RecursionError) as error:  # a resolver may raise what it likes
        raise UsageError(f"a ${{...}} among the settings cannot be resolved: {one_line(error)}") from error
    for key in (*top, *(group for group in GROUPS if group != "experiment")):
        if key not in given:
            raise UsageError(f"the setting {key} was taken away: leave out ~{key}, or give {key}=...")
    for group in ("model", "dataset", "policy", "task"):
        if not isinstance(given[group], dict) or "_target_" not in given[group]:
            raise UsageError(f"{group} must be the name of a file of conf/{group}: see msrnn-bench list {group}")
    check(Settings, {key: given[key] for key in top})

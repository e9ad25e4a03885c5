"""The top-level settings of a run: their types and ranges, refused in one line before anything is built."""

from __future__ import annotations

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from msrnn_bench.errors import UsageError, one_line


def check_values(config: DictConfig) -> None:
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
        raise UsageError(f"{type(error).__name__}: {one_line(error)}") from error

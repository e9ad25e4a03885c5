"""The same cell through `hydra.main`: for --cfg, --info, shell completion and sweepers of others."""

from __future__ import annotations

import sys
from typing import Any

import hydra

from msrnn_bench.errors import UsageError
from msrnn_bench.runs.build import build_once, build_policy
from msrnn_bench.runs.compose import compose_grid, config_dir
from msrnn_bench.runs.launched import measure_cell
from msrnn_bench.runs.values import check_values


def main(flags: list[str], overrides: list[str]) -> int:
    """Run Hydra's own command line, once its mistakes are found: it would say them in many lines."""
    if not {"--hydra-help", "--version", "--shell-completion", "-sc"} & set(flags):
        made: dict[Any, Any] = {}
        for point, config in compose_grid(overrides, experiment_grid=False):
            check_values(config)
            if not set(flags) - {"-m", "--multirun"}:  # it is going to run
                if config.dry_run:
                    raise UsageError("dry_run=true measures nothing, so no launcher is needed: leave hydra/launcher=... out")
                build_policy(config.policy, point)
                for group in ("model", "dataset", "task"):
                    build_once(made, config[group], group)
    sys.argv = ["msrnn-bench run", *flags, *overrides]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(measure_cell)()
    return 0

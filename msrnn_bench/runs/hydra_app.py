"""The same cell through `hydra.main`: for --cfg, --info, shell completion and launchers (Slurm, Ray)."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from msrnn_bench.runs.compose import config_dir
from msrnn_bench.runs.progress import CellProgress


def main(args: list[str]) -> int:
    """Run Hydra's own command line on `args`."""
    sys.argv = ["msrnn-bench run", *args]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(_job)()
    return 0


def _job(config: DictConfig) -> None:
    """One cell, in whatever process the launcher started."""
    from msrnn_bench.runs.cell import prepare
    from msrnn_bench.runs.execute import execute

    overrides = list(HydraConfig.get().overrides.task)
    with CellProgress(1) as progress:
        cell = prepare(config, overrides, progress, {})
        if not cell.done:
            progress.cell(1, cell.cell.label)
            execute(cell)
            progress.end("done")

"""`hydra/launcher=ray`: the cells of a sweep as Ray tasks, on this machine or a cluster (`pip install msrnn-bench[ray]`).

A thin launcher of our own over Ray's core API, since hydra-ray-launcher pins packages that exclude current ones. Knows nothing
of cells: a task that ends with its worker or node is told of, not started again, and ends no other.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class RayLauncherConf:
    """`address` null starts Ray here, "auto" joins a running cluster; `cpus` and `gpus` are what one job takes."""

    _target_: str = "hydra_plugins.msrnn_bench_ray_launcher.RayLauncher"
    address: Optional[str] = None  # noqa: UP045  (OmegaConf's structured configs)
    cpus: int = 1
    gpus: float = 0.0


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="msrnn_bench")


class RayLauncher(Launcher):
    """All jobs of a sweep at once; Ray starts as many as fit."""

    def __init__(self, address: str | None, cpus: int, gpus: float) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self.config: DictConfig
        self.context: HydraContext
        self.task: TaskFunction

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no tip on what it means to take no GPU
        import ray

        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
        # A worker of several threads beside others would spin them all to a crawl: threads are what the job was given, and they
        # are counted when a library is loaded, which a worker may do before it is told of its job.
        environment = {"env_vars": dict(self.config.hydra.job.env_set), "working_dir": None}
        remote: Any = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, runtime_env=environment)(_job)
        jobs = []
        for index, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = f"job_{index}", index
            jobs.append(remote.remote(self.context, config, self.task, Singleton.get_state(), os.getcwd()))
        try:
            return [_result(job) for job in jobs]
        finally:
            ray.shutdown()


def _result(job: Any) -> JobReturn:
    """What a job returned, or what became of it: its worker killed, its node lost."""
    import ray

    try:
        return ray.get(job)
    except ray.exceptions.RayError as error:
        return JobReturn(status=JobStatus.FAILED, _return_value=error)


def _job(context: HydraContext, config: DictConfig, task: TaskFunction, state: Any, folder: str) -> JobReturn:
    """One job in Ray's process, from the folder where the command was given."""
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )

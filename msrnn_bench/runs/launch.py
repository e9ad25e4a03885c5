"""A grid through one of Hydra's launchers: a job for each cell that is open, and again for those whose job ended too soon.

The cells are checked here before the first job, and collected here when the last is over. How jobs are started is the
launcher's; that two of them never measure one cell is the leases'.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from msrnn_bench.errors import MachineError, UsageError, one_line, shown
from msrnn_bench.hub import commits
from msrnn_bench.redact import names_a_secret
from msrnn_bench.results.leases import free
from msrnn_bench.runs import grid
from msrnn_bench.runs.cell import RUN, Prepared, begin_run, this_run
from msrnn_bench.runs.compose import compose_grid, config_dir, nearest
from msrnn_bench.runs.launched import LAUNCHER, job
from msrnn_bench.runs.measure import LOOK
from msrnn_bench.runs.overrides import quoted, understood
from msrnn_bench.runs.progress import CellProgress
from msrnn_bench.runs.shards import expand
from msrnn_bench.runs.submitted import attended

PROCESSES = "processes"  # the built-in one: `workers`
EXTRAS = {"ray": ("ray", "ray"), **dict.fromkeys(("slurm", "submitit_slurm", "submitit_local"), ("submitit", "slurm"))}
ROUNDS = 3  # launches after which nothing went on, and there is no use in another
HANDED = ("MSRNN_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_")  # what a job is told of the environment, but for secrets


def run(given: list[str], command: list[str]) -> int:
    """Run every cell that a command line names through the launcher that it names. Returns the exit code: 1 when a cell has no
    numbers."""
    overrides = understood(given, command, sweeps=True, hydra=True)
    settings = [o for o in overrides if re.match(r"[+~]*hydra\b", o)]
    rest = [o for o in overrides if o not in settings]
    name = _name(settings)
    if name == PROCESSES:
        if len(settings) > 1:
            raise UsageError(f"{settings[1]}: the launcher {PROCESSES} has one setting, such as workers=2")
        chosen = any(o.startswith("workers=") for o in rest)
        return grid.run([*rest, *([] if chosen else ["workers=2"])], experiment_grid=True, single=False)
    begin_run()
    points = compose_grid(rest, experiment_grid=True)
    if any(config.get("dry_run") for _, config in points):
        raise UsageError("dry_run=true measures nothing, so no launcher is needed: leave hydra/launcher=... out")
    if any(config.get("workers") != 1 for _, config in points):
        raise UsageError(f"workers are processes of this machine, which hydra/launcher={name} does not use: leave workers out")
    package, extra = EXTRAS.get(name, ("hydra", ""))
    if find_spec(package) is None:
        raise MachineError(f"hydra/launcher={name} needs a package that is not installed: pip install 'msrnn-bench[{extra}]'")
    cells = grid.prepared(points, CellProgress(len(points)))
    with _launcher(name, settings) as launcher:
        timed = [cell.task.name for cell in cells if getattr(cell.task, "timed", False)]
        if timed and name in ("ray", "submitit_local") and _at_once(launcher.config, name) != 1:
            raise UsageError(
                f"task={timed[0]} measures time, and several jobs slow each other down: hydra.sweeper.max_batch_size=1"
            )
        folder = Path(str(launcher.config.hydra.sweep.dir))
        _private(folder, {cell.cell.results_dir for cell in cells})
        if grid.announce(cells):
            print(f"a job for each through hydra/launcher={name}, which leave their logs in {folder}", flush=True)
            _until_settled(launcher, cells, name)
    return grid.close(cells)


def _until_settled(launcher: Any, cells: Sequence[Prepared], name: str) -> None:
    """Launch what is open until nothing is, or until ROUNDS launches have moved nothing."""
    stalled = 0
    while (open_ := _open(cells)) and stalled < ROUNDS:
        before = _moved(cells)
        reasons = _launched(launcher, [list(part.overrides) for part in expand(open_)], name)
        _let_others_end(cells)
        stalled = 0 if _moved(cells) != before else stalled + 1
        if left := len(_open(cells)):
            again = "launching them again" if stalled < ROUNDS else f"{ROUNDS} times nothing went on, so that was the last"
            why = f" ({reasons[-1]}, for one)" if reasons else ""
            print(f"{left} cells are not finished, though their jobs have ended{why}; {again}", file=sys.stderr, flush=True)


def _let_others_end(cells: Sequence[Prepared]) -> None:
    """Wait for the open cells that a process is at: another sweep's, or a dead one that is not known as such before its time."""
    told = False
    while busy := sum(not all(free(part.cell) for part in (cell, *expand([cell]))) for cell in _open(cells)):
        if not told:
            print(f"waiting for {busy} cells in the hands of other processes", file=sys.stderr, flush=True)
        told = True
        time.sleep(LOOK)


def _launched(launcher: Any, points: list[list[str]], name: str) -> list[str]:
    """Start jobs and wait for all of them; returns why some of them measured nothing, where they or their launcher told."""
    at_once = _at_once(launcher.config, name) or len(points)
    reasons = []
    try:
        for first in range(0, len(points), at_once):
            for ended in launcher.launch(points[first : first + at_once], initial_job_idx=first):
                reasons.append(_reason(ended))
    except KeyboardInterrupt:
        if "slurm" in name:
            print("what is in the queue goes on without this command; squeue shows it, scancel ends it", file=sys.stderr)
        raise
    except UsageError:
        raise
    except Exception as error:
        raise MachineError(f"hydra/launcher={name} could not start its jobs ({one_line(error)})") from error
    return [reason for reason in reasons if reason]


def _reason(ended: JobReturn) -> str | None:
    """One line of what a job left: what it returned, or what became of it; of several lines the first."""
    left = ended._return_value
    if not isinstance(left, Exception):
        return left
    return f"{type(left).__name__}: {(str(left).splitlines() or [''])[0][:200]}"


def _open(cells: Sequence[Prepared]) -> list[Prepared]:
    return [cell for cell in cells if not cell.settled]


def _moved(cells: Sequence[Prepared]) -> tuple[int, int]:
    """How far the cells are: those that are over, and what the others have written down."""
    journals = [part.cell.journal for part in expand(cells)]
    return len(cells) - len(_open(cells)), sum(path.stat().st_size for path in journals if path.is_file())


def _at_once(config: DictConfig, name: str) -> int | None:
    """How many jobs the launcher is given at a time: Hydra's own setting, and for processes of this machine what it can bear."""
    chosen: int | None = config.hydra.sweeper.get("max_batch_size")
    if chosen is None and name == "submitit_local":
        return max(1, (os.cpu_count() or 1) // (_cpus(config) or 1))
    return chosen


def _cpus(config: DictConfig) -> int | None:
    """What one job takes, by the names that launchers have for it."""
    launcher = config.hydra.launcher
    return launcher.get("cpus_per_task") or launcher.get("cpus")


def _name(settings: list[str]) -> str:
    """The launcher, which is one and for all cells, as are its settings."""
    for setting in settings:
        if OverridesParser.create().parse_override(setting).is_sweep_override():
            key = setting.partition("=")[0]
            raise UsageError(f"{shown(setting)} has several values, but all cells are launched one way: give {key} one")
        if re.match(r"[+~]*hydra[/.]sweeper\b(?!\.max_batch_size=)", setting):
            raise UsageError(f"{shown(setting)}: the grid is the command's own, so there is no sweeper to choose: leave it out")
    names = [o.partition("=")[2].strip("'\"") for o in settings if o.startswith("hydra/launcher=")]
    if len(names) != 1:
        raise UsageError("hydra/launcher is given twice: all cells are launched one way")
    if names[0] in ("", "null"):
        raise UsageError("hydra/launcher= names no launcher: leave it out, or see docs/clusters.md for what there is")
    return names[0]


@contextmanager
def _launcher(name: str, settings: list[str]) -> Iterator[Any]:
    """Hydra's launcher, ready to be given cells; jobs are told what they must know of this process."""
    with initialize_config_dir(str(config_dir()), job_name="msrnn-bench", version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        try:
            config = hydra.compose_config("config", settings, RunMode.MULTIRUN)
        except MissingConfigException as error:
            known = sorted({PROCESSES, *EXTRAS, *hydra.config_loader.get_group_options("hydra/launcher")})
            raise UsageError(f"unknown hydra/launcher {name!r}{nearest(name, known)}; there are: {', '.join(known)}") from error
        except Exception as error:
            raise UsageError(f"hydra/launcher={name} cannot be set so ({one_line(error)}): see docs/clusters.md") from error
        with read_write(config), open_dict(config):
            told = _handed(config, name)
            config.hydra.job.env_set.update(told)
            config.hydra.overrides.hydra += [f"++hydra.job.env_set.{key}={quoted(value)}" for key, value in told.items()]
        HydraConfig.instance().set_config(config)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        with attended() if "submitit" in OmegaConf.select(config, "hydra.launcher._target_") else nullcontext():
            yield Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)


def _handed(config: DictConfig, name: str) -> dict[str, str]:
    """What a job's environment says: its run, its threads, where models lie, which commits they are. No secrets: it is shown."""
    told = {key: value for key, value in os.environ.items() if key.startswith(HANDED) and not names_a_secret(key)}
    told |= {RUN: this_run(), **commits.environment()}
    threads = os.environ.get("OMP_NUM_THREADS") or _cpus(config) or (1 if name == "submitit_local" else None)
    if threads is not None:
        told |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if name == "submitit_local":
        told[LAUNCHER] = str(os.getpid())
    return told


def _private(folder: Path, results: set[Path]) -> None:
    """The jobs' own folder is for nobody else: what lies in it is unpickled. So it is none of results, which people share."""
    place = folder.resolve()
    for other in results:
        if place.is_relative_to(other.resolve()):
            raise UsageError(f"hydra.sweep.dir={folder} lies inside the results folder {other}: give jobs a folder of their own")
    if Path.cwd().is_relative_to(place):
        raise UsageError(f"hydra.sweep.dir={folder} is to be the jobs' alone (mode 0700): give them a folder of their own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise MachineError(f"cannot make {folder} ({error.strerror}): choose another with hydra.sweep.dir=FOLDER") from error

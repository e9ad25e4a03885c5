"""A grid through Hydra's launchers: the same cells, in processes that others start, and again where a job ended too soon."""

import json
import os
import pydoc
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import HELD_OUT, TINY_MODEL
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from msrnn_bench.cli.main import main
from msrnn_bench.results.cells import Cell
from msrnn_bench.results.leases import lease
from msrnn_bench.results.plans import plans
from msrnn_bench.runs import build, launch, launched
from msrnn_bench.runs.cell import this_run

GRID = [
    "experiment=smoke", "model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={HELD_OUT}", "context=64",
    "tokens=128", "documents=1", "policy=full,tova", "cache=8,16",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["msrnn-bench", "sweep", *GRID])
    return tmp_path


def sweep(*more):
    keys = {option.partition("=")[0] for option in more}
    return main(["sweep", *(option for option in GRID if option.partition("=")[0] not in keys), "results_dir=r", *more])


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("submitit_local", "hydra_plugins.hydra_submitit_launcher")])
def test_a_grid_through_a_launcher_of_processes(launcher, package, tmp_path):
    pytest.importorskip(package, reason="the launcher's package is not installed")
    options = ["policy=tova", "results_dir=r", f"hydra/launcher={launcher}"]
    given = [o for o in GRID if not o.startswith("policy")] + options
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "msrnn_bench.cli.main", "sweep", *given]
    for told in ("2 cells, 0 finished already", "2 cells, 2 finished already"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0 and told in done.stdout, done.stderr
        assert done.stdout.splitlines()[-1] == "r/summary.csv" and "Bypassing" not in done.stdout + done.stderr
    assert len({json.loads(p.read_text())["run"] for p in tmp_path.glob("r/cells/[!.]*.json")}) == 1  # one command, all its jobs
    assert len(list((tmp_path / "r/cells").glob("*.csv"))) == 2 and not list((tmp_path / "r/cells").glob(".*.lease"))
    assert (tmp_path / "multirun").stat().st_mode & 0o777 == 0o700


class Fake(Launcher):
    """A launcher whose jobs run here, but for those in `deaths`, which end before they do anything."""

    def __init__(self, deaths):
        self.deaths, self.batches = deaths, []

    def setup(self, *, hydra_context, task_function, config):
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        from hydra.core.utils import run_job

        self.batches.append([list(overrides) for overrides in job_overrides])
        done = []
        for overrides in job_overrides:
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            if self.deaths and self.deaths.pop():
                done.append(JobReturn(status=JobStatus.FAILED, _return_value=RuntimeError("a node is lost\nat 3 o'clock")))
            else:
                keys = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": None}
                done.append(run_job(hydra_context=self.context, task_function=self.task, config=config, **keys))
        return done


@pytest.fixture
def fake(monkeypatch):
    """Hydra's basic launcher replaced by a Fake, which is returned."""
    made = Fake([])

    def instantiate(self, hydra_context, task_function, config):
        made.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        return made

    monkeypatch.setattr("hydra.core.plugins.Plugins.instantiate_launcher", instantiate)
    return made


def test_what_is_open_is_launched_until_it_is_measured(here, fake, capfd):
    fake.deaths[:] = [True, False, True]
    assert sweep("hydra/launcher=basic") == 0
    out, err = capfd.readouterr()
    assert [len(batch) for batch in fake.batches] == [3, 2]
    assert "2 cells are not finished, though their jobs have ended (RuntimeError: a node is lost, for one)" in err
    assert out.splitlines()[-1] == "r/summary.csv" and len(list(Path("r/cells").glob("*.csv"))) == 3
    assert [len(plan.cells) for plan in plans(Path("r"))] == [3]
    assert sweep("hydra/launcher=basic", "hydra.sweeper.max_batch_size=1", "cache=8,16,32") == 0
    assert [len(batch) for batch in fake.batches] == [3, 2, 1] and "cache=32" in fake.batches[-1][0]


def test_a_shared_cell_is_a_job_for_each_part(here, fake, capfd):
    fake.deaths[:] = [True, True]
    assert sweep("hydra/launcher=basic", "policy=tova", "cache=8", "documents=2", "shards=2") == 0
    assert [len(batch) for batch in fake.batches] == [2, 2] and len(list(Path("r/cells").glob("*.csv"))) == 1


def test_it_ends_when_nothing_goes_on(here, fake, capfd):
    fake.deaths[:] = [True] * 9
    assert sweep("hydra/launcher=basic") == 1
    out, err = capfd.readouterr()
    assert len(fake.batches) == launch.ROUNDS and "nothing went on, so that was the last" in err
    assert out.count("not measured: ") == 3


def test_a_failure_is_its_cells_and_launched_once(here, fake, capfd, monkeypatch):
    from msrnn_bench.tasks.perplexity import Perplexity

    real = Perplexity.rows
    monkeypatch.setattr(Perplexity, "rows", lambda self, job: real(self, job) if job.cache != 8 else 1 / 0)
    assert sweep("hydra/launcher=basic") == 1
    out = capfd.readouterr().out
    assert [len(batch) for batch in fake.batches] == [3] and "failed: model heldout tova k=8 (ZeroDivisionError" in out
    assert sweep("hydra/launcher=basic") == 1 and len(fake.batches) == 1


def test_a_job_that_cannot_even_be_tried_says_why(here, fake, capfd, monkeypatch):
    monkeypatch.setattr("msrnn_bench.runs.launched.measure_cell", lambda config: 1 / 0)
    assert sweep("hydra/launcher=basic") == 1
    assert "(ZeroDivisionError: division by zero, for one)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["hydra/launcher=slrum"], "unknown hydra/launcher 'slrum' (did you mean 'slurm'?); there are: basic, processes"),
        (["hydra/launcher=ray,basic"], "all cells are launched one way: give hydra/launcher one"),
        (["hydra/launcher=ray", "hydra.launcher.cpus=1,2"], "all cells are launched one way: give hydra.launcher.cpus one"),
        (["hydra/launcher=ray", "hydra/launcher=basic"], "hydra/launcher is given twice"),
        (["hydra/launcher=ray", "hydra.launcher.cpu=1"], "hydra/launcher=ray cannot be set so"),
        (["hydra/launcher=processes", "hydra.launcher.cpus=1"], "the launcher processes has one setting, such as workers=2"),
        (["hydra/launcher=basic", "workers=2"], "leave workers out"),
        (["hydra/launcher=basic", "dry_run=true"], "leave hydra/launcher=... out"),
        (["hydra/launcher=basic", "polcy=tova,h2o"], "did you mean 'policy'"),
        (["hydra/launcher=basic", "documents=0"], "documents=0 must be"),
        (["hydra/launcher=basic", "hydra.sweep.dir=r/jobs"], "lies inside the results folder r"),
        (["hydra/launcher=basic", "hydra.sweep.dir=."], "give them a folder of their own"),
        (["hydra/launcher=null"], "hydra/launcher= names no launcher"),
        (["hydra/launcher=basic", "hydra/sweeper=basic"], "there is no sweeper to choose"),
        (["hydra.launcher.cpus=1"], "is Hydra's own, and this command has no use for it"),
    ],
)
def test_mistakes_are_found_before_anything_is_launched(given, says, here, fake, capfd, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: True)  # of the extras no more than their names is needed
    assert sweep(*given) == 2
    out, err = capfd.readouterr()
    assert says in err and err.count("\n") == 1 and not out and not fake.batches and list(here.iterdir()) == []


def test_a_launcher_whose_package_is_missing_names_the_extra(here, fake, capfd, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    for name, extra in (("ray", "ray"), ("slurm", "slurm"), ("submitit_local", "slurm")):
        assert sweep(f"hydra/launcher={name}") == 1
        assert (
            f"hydra/launcher={name} needs a package that is not installed: pip install 'msrnn-bench[{extra}]'"
            in capfd.readouterr().err
        )
    assert list(here.iterdir()) == []


def test_a_cell_in_other_hands_is_waited_for(here, fake, capfd, monkeypatch):
    """The fake's job would wait a minute for it, so this one finds it busy at once; then its owner gives it back."""
    owner = []

    def busy(config):
        if not owner:
            cell = Cell(Path("r"), "perplexity", "x", plans(Path("r"))[0].cells[0].id)
            owner.append(lease(cell))
            assert owner[0].__enter__()
            threading.Timer(1, owner[0].__exit__, (None, None, None)).start()
        else:
            real(config)

    real = launched.measure_cell
    monkeypatch.setattr("msrnn_bench.runs.launched.measure_cell", busy)
    monkeypatch.setattr(launch, "LOOK", 0.1)
    assert sweep("hydra/launcher=basic", "policy=tova", "cache=8") == 0
    assert "waiting for 1 cells in the hands of other processes" in capfd.readouterr().err and len(fake.batches) == 2


def test_what_measures_time_is_launched_alone(here, fake, capfd, monkeypatch):
    monkeypatch.setattr("msrnn_bench.tasks.perplexity.Perplexity.timed", True, raising=False)
    monkeypatch.setattr(launch, "find_spec", lambda name: True)
    assert sweep("hydra/launcher=ray") == 2 and not fake.batches
    assert "several jobs slow each other down: hydra.sweeper.max_batch_size=1" in capfd.readouterr().err
    assert sweep("hydra/launcher=ray", "hydra.sweeper.max_batch_size=1", "policy=tova") == 0
    assert [len(batch) for batch in fake.batches] == [1, 1]


def test_one_cell_needs_no_launcher(capfd):
    assert main(["run", "hydra/launcher=basic"]) == 2
    assert "add -m, or leave it out" in capfd.readouterr().err


@pytest.mark.parametrize(
    "yaml",
    [
        "# @package _global_\ndefaults:\n  - override /hydra/launcher: ray\n",
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      hydra/launcher: ray,basic\n",
    ],
)
def test_an_experiment_names_no_launcher(yaml, tmp_path, monkeypatch, capfd):
    import shutil

    from conftest import ROOT

    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf/experiment/mine.yaml").write_text(yaml)
    monkeypatch.setattr("msrnn_bench.runs.compose.config_dir", lambda: tmp_path / "conf")
    assert main(["sweep", "experiment=mine", "policy=tova", "cache=8"]) == 2
    assert "take hydra/launcher out of its YAML" in capfd.readouterr().err


def test_processes_are_workers_two_unless_told(monkeypatch):
    seen = []
    monkeypatch.setattr(launch.grid, "run", lambda overrides, **_: seen.append(overrides) or 0)
    assert sweep("hydra/launcher=processes") == 0 and main(["run", "-m", "hydra/launcher=processes", "workers=3"]) == 0
    assert "workers=2" in seen[0] and seen[1] == ["workers=3"]


def test_a_job_is_told_what_it_needs_and_no_secret(monkeypatch):
    from omegaconf import OmegaConf

    for key, value in {"MSRNN_JUDGE_URL": "u", "HF_HOME": "/h", "HF_TOKEN": "hf_x", "MSRNN_API_KEY": "k", "OTHER": "o"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = launch._handed(OmegaConf.create({"hydra": {"launcher": {"cpus": 3}}}), "ray")
    assert told["MSRNN_BENCH_RUN"] == this_run() and told["OMP_NUM_THREADS"] == told["MKL_NUM_THREADS"] == "3"
    assert told["HF_HOME"] == "/h" and told["MSRNN_JUDGE_URL"] == "u" and not {"HF_TOKEN", "MSRNN_API_KEY", "OTHER"} & set(told)
    alone = launch._handed(OmegaConf.create({"hydra": {"launcher": {}}}), "submitit_local")
    assert launched.LAUNCHER not in told and alone[launched.LAUNCHER] == str(os.getpid()) and alone["OMP_NUM_THREADS"] == "1"


def test_signals_in_a_job(tmp_path):
    """TERM gives the cell back; a signal whose handler fails, as submitit's does where it may not queue again, is no failure."""
    cell = Cell(tmp_path, "perplexity", "x", "0123456789abcdef")

    def refuses(number, frame):
        raise ValueError("timed-out too many times")

    before = signal.signal(signal.SIGUSR2, refuses), signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            with pytest.raises(KeyboardInterrupt), launched._given_back_on_signals(), lease(cell) as held:
                assert held and cell.lease.exists()
                signal.raise_signal(number)
            assert not cell.lease.exists()
        assert signal.getsignal(signal.SIGUSR2) is refuses and signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_a_job_that_is_queued_again_ends_as_submitit_wants(monkeypatch):
    """Even in the middle of an import, whose errors are told as the module's."""
    monkeypatch.setattr("msrnn_bench.runs.launched.measure_cell", lambda config: build._named("signalled.Task", "task"))
    monkeypatch.setattr("pydoc.safeimport", interrupted)
    before = signal.signal(signal.SIGUSR2, lambda *_: sys.exit(144))
    try:
        with pytest.raises(SystemExit) as end:
            launched.job(None)
        assert end.value.code == 144
    finally:
        signal.signal(signal.SIGUSR2, before)


def interrupted(path, *args):
    """pydoc's import of a module, during which the signal comes."""
    try:
        signal.raise_signal(signal.SIGUSR2)
    except BaseException:
        raise pydoc.ErrorDuringImport("signalled.py", sys.exc_info()) from None


def test_a_process_follows_one_that_is_not_its_parent():
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    code = f"""if True:
        import time
        from msrnn_bench.runs.children import follow
        follow({idle.pid}, 0.1)
        print("on", flush=True)
        time.sleep(600)"""
    follower = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout.readline() == "on\n" and follower.poll() is None
        idle.kill()
        idle.wait()
        assert follower.wait(60) == 1
    finally:
        for process in (idle, follower):
            process.kill()
            process.communicate()


def test_the_queue_tells_what_has_ended():
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    from msrnn_bench.runs.submitted import _queue

    queue = _queue()
    queue._registered = {"12_0", "12_1", "13"}
    assert queue._make_command()[0] == "squeue"
    assert queue.read_info("12_0 RUNNING\n    12_1 PENDING\n99 RUNNING\n") == {
        "12_0": {"State": "RUNNING"}, "12_1": {"State": "PENDING"}, "13": {"State": "ENDED"},
    }  # fmt: skip
    queue._info_dict = {"13": {"State": "ENDED"}, "12_0": {"State": "RUNNING"}}
    assert queue.is_done("13", "cache") and not queue.is_done("12_0", "cache") and not queue.is_done("7", "cache")


def test_the_slurm_preset_composes_and_would_be_taken_by_sbatch(here):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm` is not installed")
    from submitit.slurm.slurm import _make_sbatch_string

    with launch._launcher("slurm", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]) as launcher:
        params = dict(launcher.params)
    assert params["max_num_timeout"] == 100 and params["partition"] == "gpu"
    taken = ("partition", "gpus_per_node", "cpus_per_task", "signal_delay_s", "additional_parameters")
    flags = {key: params[key] for key in taken}
    script = _make_sbatch_string("true", "f", time=params["timeout_min"], array_parallelism=4, map_count=9, **flags)
    for line in ("--array=0-8%4", "--requeue", "--signal=USR2@120", "--time=240", "--gpus-per-node=1", "--partition=gpu"):
        assert f"#SBATCH {line}" in script

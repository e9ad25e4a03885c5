"""What fails is one cell; what a worker was at goes on elsewhere; nothing outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill
import pandas as pd
import psutil
import pytest
from conftest import HELD_OUT, TINY_MODEL

from msrnn_bench.cli.main import main
from msrnn_bench.errors import UsageError
from msrnn_bench.models.sources import LocalModel
from msrnn_bench.runs import children, measure, slots
from msrnn_bench.tasks.perplexity import Perplexity

GRID = {
    "experiment": "smoke", "model": "local", "model.path": TINY_MODEL, "dataset": "text", "dataset.path": HELD_OUT, "context": 64,
    "tokens": 128, "documents": 1, "policy": "full,tova", "cache": "8,16",
}  # fmt: skip


def grid(folder: Path, **changes: object) -> list[str]:
    settings = {**GRID, "results_dir": folder, **{key.replace("__", "."): value for key, value in changes.items()}}
    return ["sweep", *(f"{key}={value}" for key, value in settings.items())]


def sweep(folder: Path, **changes: object) -> int:
    return main(grid(folder, **changes))


@pytest.fixture
def failing(monkeypatch):
    """Perplexity that fails at k=8; returns what it raises, to be changed."""
    real, raises = Perplexity.rows, [RuntimeError("the roof is on fire")]

    def rows(self, job):
        if job.cache == 8 and raises:
            raise raises[0]
        return real(self, job)

    monkeypatch.setattr(Perplexity, "rows", rows)
    return raises


def test_a_cell_that_fails_ends_no_other_and_is_left_alone_until_it_is_to_be_retried(tmp_path, failing, capfd):
    assert sweep(tmp_path) == 1
    out = capfd.readouterr().out
    assert "3 cells, 0 finished already\n" in out and "failed: " in out and "RuntimeError: the roof is on fire" in out
    failed = [m for m in map(json.loads, (p.read_text() for p in tmp_path.glob("cells/[!.]*.json"))) if m["status"] == "failed"]
    assert len(failed) == 1 and "Traceback" in failed[0]["traceback"] and failed[0]["settings"]["cache"] == 8
    failing.clear()
    assert sweep(tmp_path) == 1
    assert "2 finished already, 1 failed earlier and are left alone (retry=failed tries them again)" in capfd.readouterr().out
    assert sweep(tmp_path, retry="failed") == 0
    assert sweep(tmp_path) == 0


def test_the_model_is_looked_at_once_and_before_anything_is_measured(tmp_path, monkeypatch, capfd):
    looked = []

    def check(model):
        looked.append(model.path)
        raise UsageError("this is no model")

    monkeypatch.setattr(LocalModel, "check", check)
    assert sweep(tmp_path) == 2 and "this is no model" in capfd.readouterr().err and not list(tmp_path.iterdir())
    monkeypatch.setattr(LocalModel, "check", lambda model: looked.append(model.path))
    looked.clear()
    assert sweep(tmp_path) == 0 and looked == [str(TINY_MODEL)]


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("DefaultCPUAllocator: not enough memory")])
def test_out_of_memory_is_the_cells_failure_with_what_to_do(tmp_path, failing, capfd, error):
    failing[0] = error
    assert sweep(tmp_path) == 1
    assert (
        "out of memory (" in (out := capfd.readouterr().out)
        and "or a smaller k" in out
        and len(list(tmp_path.glob("cells/*.csv"))) == 2
    )


def test_what_the_data_cannot_give_is_a_cells_failure_too(tmp_path, capfd):
    """A text too short for one of two contexts, which shows when it is read."""
    text = tmp_path / "short.txt"
    text.write_text("It was a dark and stormy night. " * 12)
    given = {
        "dataset__path": text,
        "context": "64,4096",
        "model__extrapolate": "true",
        "policy": "tova",
        "cache": 8,
        "tokens": 4096,
    }
    assert sweep(tmp_path / "r", **given) == 1
    out = capfd.readouterr().out
    assert out.count("failed: ") == 1 and len(list((tmp_path / "r/cells").glob("*.csv"))) == 1


def test_a_full_disk_ends_the_sweep_and_fails_no_cell(tmp_path, monkeypatch, capfd):
    from msrnn_bench.results import files

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_replace", full)
    assert sweep(tmp_path) == 1
    assert "No space left on device" in capfd.readouterr().err
    monkeypatch.undo()
    assert sweep(tmp_path) == 0


def test_workers_measure_all_again_under_force_to_the_same_table(tmp_path, capfd):
    """Each cell once: what this very run has measured counts."""

    def measured(*more: str) -> tuple[set[str], set[str], pd.DataFrame]:
        capfd.readouterr()
        assert kill.command([*given, *more]) == 0
        assert capfd.readouterr().err.count(": done") == 7
        manifests = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("cells/[!.]*.json")}
        table = pd.read_csv(tmp_path / "tidy.csv").drop(columns=kill.TIMINGS)
        return set(manifests), {manifest["run"] for manifest in manifests.values()}, table

    given = grid(tmp_path, policy="full,tova,h2o,random")
    cells, run, table = measured()
    again, other, same = measured("force=true", "workers=2")
    assert again == cells and len(run) == len(other) == 1 and run != other
    pd.testing.assert_frame_equal(same, table)


def test_a_cell_that_ends_its_processes_has_failed(tmp_path, monkeypatch, capsys):
    recorded = []
    monkeypatch.setattr(slots, "record_failure", lambda cell, error, reason: recorded.append(reason))
    cell = type("C", (), {"cell": type("D", (), {"label": "tiny tova", "told": "tiny tova"})()})()
    slots._judge(cell, -9, 1, False)
    slots._judge(cell, -11, 2, False)
    assert recorded == [] and "SIGSEGV; another goes on from there" in capsys.readouterr().err
    slots._judge(cell, -9, 3, False)
    slots._judge(cell, -9, 1, True)
    assert "ended 3 processes, the last with SIGKILL" in recorded[0] and "lack of memory" in recorded[1]
    with pytest.raises(RuntimeError, match="before they were at a cell"):
        slots._judge(None, -9, 3, False)


def test_gpus_are_shared_out_and_the_users_choice_is_kept(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in slots._environments(3)] == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert all("CUDA_VISIBLE_DEVICES" not in e for e in slots._environments(2))


def test_a_lease_that_was_lost_gives_the_cell_up_without_a_word_against_it(tmp_path, monkeypatch, capfd):
    def stolen(cell):
        for lease in tmp_path.glob("cells/.*.lease"):
            lease.unlink()
        for _ in range(400):
            time.sleep(0.05)

    monkeypatch.setattr("msrnn_bench.results.leases.BEAT", 0.05)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's workers ignore it, and so would we
    real, calls = measure.execute, []
    monkeypatch.setattr(measure, "execute", lambda cell: stolen(cell) if not calls and not calls.append(1) else real(cell))
    try:
        assert sweep(tmp_path, policy="tova", cache=8) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "another process took it over" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without these signals")
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]
)  # SIGKILL: test_shards.py too, and always; all of them, many times: make test-faults
def test_no_worker_outlives_its_parent(tmp_path, how):
    """However it dies, within 5 seconds; and the sweep goes on from there."""
    given = grid(tmp_path, cache="4,8,12,16,20,24,28,32", workers=2, engine="recurrence", tokens=4096)
    command = [sys.executable, "-m", "msrnn_bench.cli.main", *given]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers, deadline = [], time.monotonic() + 120
    while len(workers) < 2 or not list(tmp_path.glob("cells/.*.lease")):
        workers = psutil.Process(parent.pid).children()
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(how)
    parent.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=5 if how == signal.SIGKILL else 20)
    assert not alive


def test_a_child_ends_when_the_pipe_closes_where_the_kernel_does_not_help(monkeypatch):
    code = (
        "import sys; sys.platform = 'elsewhere'; from msrnn_bench.runs.children import follow_parent; import time\n"
        "follow_parent(); print('there', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, children.CHILD: str(os.getpid())}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert child.stdout.readline() == b"there\n" and child.poll() is None
    child.stdin.close()
    assert child.wait(30) == 1
    child.stdout.close()

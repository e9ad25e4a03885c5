"""`status`: the state of every cell, who is at it, what is left; from names, leases, plans and manifests alone."""

import json
import os
import pty
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import ROOT
from test_results import BASE

from msrnn_bench.cli import status
from msrnn_bench.cli.main import main
from msrnn_bench.results import leases, states
from msrnn_bench.results.cells import Cell, cell_id, write, write_failure
from msrnn_bench.results.leases import Holder, lease
from msrnn_bench.results.plans import write_plan
from msrnn_bench.results.states import Look, seconds_left


def cell(folder: Path, name: str) -> Cell:
    return Cell(folder, "perplexity", name, cell_id({"name": name}))


def done(folder: Path, name: str, seconds: float = 100.0) -> Cell:
    one = cell(folder, name)
    write(one, [replace(BASE, cell=one.id)], {"seconds": seconds})
    return one


def begun(folder: Path, name: str) -> Cell:
    one = cell(folder, name)
    one.journal.parent.mkdir(parents=True, exist_ok=True)
    one.journal.write_text('{"key": "a"}\n')
    return one


def elsewhere(one: Cell, **more) -> Holder:
    """A lease of another machine."""
    known = {
        "token": "t",
        "host": "gpu-7",
        "machine": "gpu-7 of others",
        "pid": 11,
        "born": 0.0,
        "since": "2026-01-01T10:00:00+00:00",
    }
    holder = Holder(**{**known, "task": one.task, "label": one.label, "done": 250, "total": 1000, **more})
    one.lease.parent.mkdir(parents=True, exist_ok=True)
    one.lease.write_text(json.dumps(asdict(holder)))
    return holder


def found(look: Look) -> dict[str, str]:
    return {one.label or one.id: one.state for one in look()}


@pytest.fixture
def clock(monkeypatch):
    """What states.py takes for the time, to be moved."""
    now = [0.0]
    monkeypatch.setattr(states.time, "monotonic", lambda: now[0])
    return now


def test_each_state(tmp_path):
    done(tmp_path, "a done one")
    write_failure(cell(tmp_path, "a failed one"), {"error": "out of memory"})
    planned = begun(tmp_path, "an unfinished one")
    alone = begun(tmp_path, "whose plan is gone")
    rowless, damaged, halfway = (done(tmp_path, name) for name in ("no rows", "damaged", "killed between its two files"))
    rowless.csv.unlink()
    damaged.manifest.write_text('{"status": "ok"')
    halfway.manifest.unlink()
    write_plan(
        tmp_path, ["sweep"], [planned, cell(tmp_path, "a missing one"), cell(tmp_path, "a done one"), rowless, damaged, halfway]
    )
    with lease(cell(tmp_path, "a running one")) as ours:
        assert ours is not None
        assert found(Look(tmp_path)) == {
            "a done one": "done", "a running one": "running", "a failed one": "failed", "an unfinished one": "unfinished",
            "no rows": "unfinished", "damaged": "unfinished", "killed between its two files": "unfinished",
            alone.id: "unfinished", "a missing one": "missing",
        }  # fmt: skip


def test_a_cell_that_is_measured_again_is_running(tmp_path):
    one = done(tmp_path, "forced")
    with lease(one):
        assert found(Look(tmp_path)) == {"forced": "running"}
    assert found(Look(tmp_path)) == {"forced": "done"}


def test_a_process_that_is_gone_is_at_nothing(tmp_path):
    one = begun(tmp_path, "killed")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    elsewhere(one, machine=leases.machine(), pid=ended.pid)
    assert list(found(Look(tmp_path)).values()) == ["unfinished"]


def test_an_owner_elsewhere_is_judged_by_its_beat_alone(tmp_path, clock):
    one = begun(tmp_path, "far away")
    look = Look(tmp_path)
    for beat, at, state, silence in (
        (1, 0, "running", 0), (1, 14, "running", 14), (2, 20, "running", 0), (2, 79, "running", 59), (2, 81, "unfinished", 0),
        (3, 90, "running", 0),
    ):  # fmt: skip
        elsewhere(one, beat=beat)
        clock[0] = float(at)
        (seen,) = look()
        assert (seen.state, seen.silence) == (state, silence), (beat, at)


def test_time_left_is_that_of_finished_cells_shared_by_those_at_work(tmp_path, clock):
    for n, seconds in enumerate((80.0, 100.0, 5000.0)):
        done(tmp_path, f"done {n}", seconds)
    missing = cell(tmp_path, "missing")
    write_plan(tmp_path, ["sweep"], [missing])
    look = Look(tmp_path)
    assert seconds_left(look()) is None, "nobody is at work"
    elsewhere(begun(tmp_path, "one"), done=250, total=1000)
    assert seconds_left(look()) == 100 * (0.75 + 1)
    elsewhere(begun(tmp_path, "two"), done=0, total=0)
    assert seconds_left(look()) == 100 * (0.75 + 1 + 1) / 2
    clock[0] = states.QUIET
    elsewhere(cell(tmp_path, "one"), done=250, total=1000, beat=1)
    assert seconds_left(look()) == 100 * (0.75 + 1 + 1), "who is silent does not work"


def test_a_manifest_is_read_again_when_it_is_another(tmp_path, monkeypatch):
    reads = Counter()
    original = states.read_manifest
    monkeypatch.setattr(states, "read_manifest", lambda path: reads.update([path.stem]) or original(path))
    kept, changed = done(tmp_path, "kept"), done(tmp_path, "changed")
    look = Look(tmp_path)
    assert set(found(look).values()) == {"done"}
    write_failure(changed, {"error": "no"})
    assert found(look) == {"kept": "done", "changed": "failed"}
    assert found(look) == {"kept": "done", "changed": "failed"}
    assert reads == {kept.id: 1, changed.id: 2}


# --- the command


def test_what_is_printed(tmp_path, capsys):
    done(tmp_path, "tova k=64", 600.0)
    write_failure(cell(tmp_path, "h2o k=64"), {"error": "RuntimeError: size\n\x1b[31mmismatch" + "x" * 300})
    begun(tmp_path, "tova k=9")
    write_plan(
        tmp_path,
        ["sweep", "experiment=laptop/fig3", "dataset.path=my texts"],
        [cell(tmp_path, f"tova k={k}") for k in (64, 9, 128, 16)],
    )
    assert main(["status", f"results_dir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: 5 cells, 1 done, 1 failed, 1 unfinished, 2 missing"
    assert lines[1].startswith("failed      h2o k=64  RuntimeError: size \ufffd[31mmismatchxxx") and len(lines[1]) < 190
    assert lines[2].startswith("unfinished  ") and lines[3:5] == ["missing     tova k=16", "missing     tova k=128"]
    assert "retry=failed" in lines[5]
    assert lines[6] == "nobody is at work; this goes on: msrnn-bench sweep experiment=laptop/fig3 'dataset.path=my texts'"
    one = cell(tmp_path, "tova k=128")
    with lease(one) as ours:
        ours.tell(12_288, 65_536)
        ours._over.set()  # its heart stands still
        one.lease.write_bytes(leases._line(ours.holder))
        assert main(["status", f"results_dir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1 missing; about 28 min left with 1 process at work")
    assert f"process {os.getpid()}, since " in lines[1] and lines[1].endswith("12,288 of 65,536 tokens (19%)")
    assert not any("nobody" in line for line in lines)


def test_an_owner_elsewhere_is_listened_to_before_it_is_told(tmp_path, capsys, monkeypatch, clock):
    one, beats = cell(tmp_path, "far away"), iter(range(1, 99))
    silent = cell(tmp_path, "nearly dead")
    elsewhere(one, beat=0)

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        elsewhere(one, beat=next(beats))

    monkeypatch.setattr(status.time, "sleep", sleep)
    assert main(["status", f"results_dir={tmp_path}"]) == 0
    assert clock[0] <= leases.BEAT and "no sign of life" not in capsys.readouterr().out
    elsewhere(silent)
    assert main(["status", f"results_dir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["no sign of life" in line for line in lines] == [False, False, True] and "nearly dead" in lines[2]


def test_many_cells_are_not_all_listed(tmp_path, capsys):
    write_plan(tmp_path, ["sweep"], [cell(tmp_path, f"tova k={k}") for k in range(50)])
    assert main(["status", f"results_dir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + status.SHOWN + 1 + 1 and lines[-2] == "missing     and 30 more"


@pytest.mark.parametrize(
    "args, said", [([], "has no cells"), (["watch=maybe"], "watch=maybe"), (["cache=3"], "results_dir=..., watch=...")]
)
def test_mistakes(args, said, tmp_path, capsys):
    assert main(["status", f"results_dir={tmp_path}", *args]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_watching_ends_when_nothing_is_left(tmp_path, capsys, monkeypatch, clock):
    write_plan(tmp_path, ["sweep"], [cell(tmp_path, name) for name in ("one", "two")])
    to_come = iter(["one", "two"])

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] % 20 == 0:
            done(tmp_path, next(to_come))

    monkeypatch.setattr(status.time, "sleep", sleep)
    assert main(["status", f"results_dir={tmp_path}", "watch=true"]) == 0
    lines = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["2 cells, 2 missing", "2 cells, 1 done, 1 missing", "2 cells, 2 done"]


def test_watching_is_left_with_ctrl_c(tmp_path, monkeypatch):
    write_plan(tmp_path, ["sweep"], [cell(tmp_path, "one")])

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupted)
    assert main(["status", f"results_dir={tmp_path}", "watch=true"]) == 0


def run(*args: str, **how) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "250"}  # a terminal that no path is too long for
    return subprocess.run([sys.executable, *args], env=environment, check=True, timeout=60, **how)


def test_a_terminal_gets_a_live_picture(tmp_path):
    done(tmp_path, "tova k=64")
    ours, theirs = pty.openpty()
    run("-m", "msrnn_bench.cli.main", "status", f"results_dir={tmp_path}", "watch=true", stdout=theirs)
    os.close(theirs)
    assert "1 cell, 1 done" in os.read(ours, 10_000).decode().replace("\r\n", "")


def test_nothing_heavy_is_imported_and_nothing_waits(tmp_path):
    """Neither torch nor pandas; and what is no file of ours, such as a pipe, is not opened."""
    done(tmp_path, "tova k=64")
    os.mkfifo(tmp_path / "cells" / "0000000000000000.json")
    (tmp_path / "cells" / "1111111111111111.json").symlink_to("/dev/zero")
    (tmp_path / "cells" / "2222222222222222.json").mkdir()
    code = (
        "import sys; from msrnn_bench.cli.main import main; main(['status', 'results_dir=' + sys.argv[1]]); "
        "assert not {'torch', 'pandas', 'numpy', 'hydra', 'rich'} & set(sys.modules)"
    )
    assert "1 cell, 1 done\n" in run("-c", code, str(tmp_path), capture_output=True, text=True).stdout

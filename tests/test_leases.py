"""A cell has one owner; one that died, here or elsewhere, loses it; nobody's clock matters."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from msrnn_bench.errors import StorageError
from msrnn_bench.results import leases
from msrnn_bench.results.cells import Cell
from msrnn_bench.results.leases import Holder, holders, lease, read


@pytest.fixture
def cell(tmp_path):
    (tmp_path / "cells").mkdir()
    return Cell(tmp_path, "perplexity", "a cell", "0" * 16)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    monkeypatch.setattr(leases, "PATIENCE", 0.3)
    monkeypatch.setattr(leases, "_watched", {})


def of(cell, **changes) -> Holder:
    """A lease of some other owner, written as its owner would."""
    holder = replace(leases._ours(cell), token="f" * 16, **changes)
    cell.lease.write_bytes(leases._line(holder))
    return holder


def test_one_of_several_has_it_and_gives_it_back(cell):
    with lease(cell) as first, lease(cell) as second:
        assert first is not None and second is None and first.ours
        (holder,) = holders(cell.results_dir).values()
        assert holder.pid == os.getpid() and holder.label == "a cell" and not holder.gone
    assert list((cell.results_dir / "cells").iterdir()) == []


def test_a_process_of_this_machine_that_is_gone_loses_it_at_once(cell):
    code = (
        "import os, sys; from pathlib import Path; from msrnn_bench.results.cells import Cell\n"
        "from msrnn_bench.results.leases import lease\n"
        "with lease(Cell(Path(sys.argv[1]), 'perplexity', 'a cell', '0' * 16)) as held:\n"
        "    assert held; os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(cell.results_dir)], check=False).returncode == -9
    assert cell.lease.is_file() and holders(cell.results_dir) == {}
    with lease(cell) as held:
        assert held is not None


def test_a_number_that_was_given_to_another_process_is_not_the_owner(cell):
    of(cell, born=1.0)
    with lease(cell) as held:
        assert held is not None


@pytest.mark.parametrize("since", ["1999-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"])
def test_an_owner_elsewhere_is_dead_when_its_beat_stands_still_whatever_its_clock_says(cell, fast, since):
    of(cell, machine="another", host="another", pid=1, since=since)
    begin = time.monotonic()
    while True:
        with lease(cell) as held:
            if held is not None:
                break
        assert time.monotonic() - begin < 20
        time.sleep(0.02)
    assert time.monotonic() - begin >= 0.3


def test_an_owner_elsewhere_keeps_it_while_its_beat_goes_on(cell, fast):
    holder = of(cell, machine="another", pid=1)
    begin = time.monotonic()
    while time.monotonic() - begin < 1.0:
        with lease(cell) as held:
            assert held is None
        holder = replace(holder, beat=holder.beat + 1)
        cell.lease.write_bytes(leases._line(holder))
        time.sleep(0.05)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"token": 1}', b"\xff\xfe", b"[" * 5000])
def test_a_lease_that_cannot_be_read_is_waited_for_and_then_taken(cell, fast, content):
    cell.lease.write_bytes(content)
    with lease(cell) as held:
        assert held is None
    time.sleep(0.35)
    with lease(cell) as held:
        assert held is not None


def test_an_owner_that_slept_too_long_finds_out_and_does_not_touch_the_new_one(cell, fast):
    lost = []
    with lease(cell, on_loss=lambda: lost.append(1)) as held:
        cell.lease.unlink()
        new = of(cell)
        deadline = time.monotonic() + 20
        while not lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert held.lost and not held.ours
    assert read(cell.lease) == new, "another's lease was removed or written over"


def test_of_two_who_judge_an_owner_dead_one_takes_it(cell):
    """The second looks with what it read before the first took it over."""
    old = of(cell, born=1.0)
    with lease(cell) as held:
        assert held is not None
        real, leases.read = leases.read, lambda path: old if path == cell.lease else real(path)
        try:
            assert not leases._abandoned(cell.lease)
        finally:
            leases.read = real
        assert held.ours


def test_a_beat_is_told_with_how_far_the_cell_is(cell, fast):
    with lease(cell) as held:
        held.tell(30, 120)
        deadline = time.monotonic() + 20
        while (seen := read(cell.lease)) is None or seen.beat < 2 or seen.done != 30:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert seen.total == 120 and len(cell.lease.read_bytes()) == leases.WIDTH


def test_a_long_name_does_not_break_the_line(cell):
    odd = Cell(cell.results_dir, "perplexity", "\N{SNOWMAN}" * 500, "1" * 16)
    with lease(odd):
        assert json.loads(odd.lease.read_bytes())["label"]
        assert list(holders(cell.results_dir)) == ["1" * 16]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "cells").write_text("a file")
    with pytest.raises(StorageError, match="choose another results_dir"), lease(Cell(tmp_path, "perplexity", "c", "0" * 16)):
        pass

"""A sweep survives SIGKILL, and several workers share a grid without measuring a cell twice."""

import os

import kill
import pandas as pd

from msrnn_bench.results.cells import Cell
from msrnn_bench.results.leases import lease


def test_killed_and_resumed_is_undisturbed(tmp_path, monkeypatch):
    monkeypatch.setattr(kill, "SWEEP", [*kill.SWEEP, "policy=full,baseline,tova,h2o,random"])
    assert "2 kills" in kill.compare(tmp_path, kills=2)


def test_workers_give_the_same_table(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(os.environ, "PYTHONPATH", "")
    few = [*kill.SWEEP, "policy=full,tova,h2o,random"]
    monkeypatch.setattr(kill, "SWEEP", few)
    one = kill.finish(tmp_path / "one", "8,32")
    monkeypatch.setattr(kill, "SWEEP", [*few, "workers=2"])
    two = kill.finish(tmp_path / "two", "8,32")
    pd.testing.assert_frame_equal(two.drop(columns=kill.TIMINGS), one.drop(columns=kill.TIMINGS))


def test_a_cell_is_leased_once(tmp_path):
    cell = Cell(tmp_path, "perplexity", "a cell", "0" * 16)
    with lease(cell) as first, lease(cell) as second:
        assert first and not second
    with lease(cell) as again:
        assert again
    assert not list((tmp_path / "cells").iterdir())

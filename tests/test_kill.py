"""A sweep survives SIGKILL, and a cell is measured by one process at a time."""

import kill

from msrnn_bench.results.cells import Cell
from msrnn_bench.results.leases import lease


def test_killed_and_resumed_is_undisturbed(tmp_path, monkeypatch):
    monkeypatch.setattr(kill, "SWEEP", [*kill.SWEEP, "policy=full,baseline,tova,h2o,random"])
    assert "2 kills" in kill.compare(tmp_path, kills=2)


def test_a_cell_is_leased_once(tmp_path):
    cell = Cell(tmp_path, "perplexity", "a cell", "0" * 16)
    with lease(cell) as first, lease(cell) as second:
        assert first and not second
    with lease(cell) as again:
        assert again
    assert not list((tmp_path / "cells").iterdir())

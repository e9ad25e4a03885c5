"""Any desk: nothing that only Unix has is needed. Windows is stood in for by hiding its modules, in a process of its own."""

import ast
import shlex
import subprocess
import sys

import pandas as pd
import pytest
from conftest import HELD_OUT, ROOT, TINY_MODEL

UNIX = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog")
HIDDEN = """
import psutil, shlex, signal, sys  # psutil's part for Linux needs `resource`; Windows has a part of its own
sys.modules["fcntl"] = sys.modules["resource"] = None  # an import of either raises ImportError
del signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
from msrnn_bench.cli import main as cli
one = cli.main
cli.main = lambda: max(one(shlex.split(line)) for line in sys.stdin)  # torch is imported once for all
cli.entry()
"""
TINY = ["model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={HELD_OUT}", "documents=1", "policy=tova"]


def test_cells_their_table_and_what_a_state_costs(tmp_path):
    read = ["run", *TINY, "context=64", "tokens=64", "cache=8", f"results_dir={tmp_path / 'read'}"]
    cost = ["task=efficiency", "context=64", "task.steps=4", "task.piece=8", "task.max_batch=2", "task.repeats=1", "cache=16"]
    lines = [read, read, ["collect", read[-1]], ["run", *TINY, *cost, f"results_dir={tmp_path / 'cost'}"]]
    typed = "\n".join(map(shlex.join, lines))
    done = subprocess.run([sys.executable, "-c", HIDDEN], input=typed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished already") == 1 and "perplexity" in done.stdout
    assert pd.read_csv(tmp_path / "read/tidy.csv")["peak_bytes"].gt(50_000_000).all()
    (cell,) = (tmp_path / "cost/cells").glob("*.csv")
    rows = pd.read_csv(cell)
    peaks = rows[rows["metric"] == "peak_bytes"]
    assert len(peaks) == 2 and peaks["status"].eq("ok").all() and peaks["total"].gt(50_000_000).all()


@pytest.mark.parametrize("folder", ["msrnn_bench", "hydra_plugins"])
def test_no_module_needs_unix_to_be_imported(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(UNIX), path


def test_peaks_of_other_systems(monkeypatch, tmp_path):
    """Windows tells the peak through psutil, macOS and the BSDs through `resource`, in units of their own."""
    import resource
    import types

    import psutil

    from msrnn_bench.tasks.cost import memory

    here = memory.peak_bytes()
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert told == pytest.approx(here, rel=0.1) and memory.peak_bytes() == pytest.approx(told, rel=0.1)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.peak_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(psutil, "Process", lambda: types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(peak_wset=7)))
    assert memory.peak_bytes() == 7

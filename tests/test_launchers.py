"""`run -m` through Hydra's launchers: the same cells, from processes that Hydra or Ray starts."""

import subprocess
import sys

import pytest
from test_cli import TINY


@pytest.mark.parametrize("launcher", ["basic", "ray"])
def test_launcher(launcher, tmp_path):
    if launcher == "ray":
        pytest.importorskip("ray", reason="the extra `ray` is not installed")
    (tmp_path / "a.txt").write_text(" ".join(map(str, range(400))))
    sweep = ["-m", "policy=tova,h2o", "cache=16", "dataset=text", "dataset.path=a.txt", f"hydra/launcher={launcher}"]
    command = [sys.executable, "-m", "msrnn_bench.cli.main", "run", *TINY, *sweep]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=240)
    assert len(list((tmp_path / "results/cells").glob("*.csv"))) == 2


def test_mistakes_are_found_before_anything_is_launched(tmp_path, capfd):
    from msrnn_bench.cli.main import main

    assert main(["run", "-m", "hydra/launcher=basic", "polcy=tova,h2o"]) == 2
    assert "did you mean 'policy'" in capfd.readouterr().err

"""Configurations by discovery, imports that point one way, packaging."""

import ast
import math
import re

import pytest
from conftest import ROOT
from hydra.utils import get_object

from msrnn_bench.compose import choices, compose_grid, compose_one, config_dir
from msrnn_bench.run import build, build_policy

PACKAGE = ROOT / "msrnn_bench"


@pytest.mark.parametrize("group", ["policy", "dataset", "model", "task"])
def test_every_yaml_builds_and_lists_every_field(group):
    for name in choices(group):
        config = compose_one([f"{group}={name}"])[group]
        made = build_policy(config, []) if group == "policy" else build(config, group)
        known = set(__import__("inspect").signature(get_object(config._target_)).parameters)
        listed = {key for key in config if not key.startswith("_")}
        assert listed == known, f"{group}/{name}"
        assert made is not None


def test_every_experiment_composes_its_whole_grid():
    names = choices("experiment")
    assert {"smoke", "laptop/fig3", "paper/fig3"} <= set(names)
    for name in names:
        needed = {"laptop/novels": ["dataset.path=x"], "laptop/stories": ["dataset.path=x", "model.path=x"]}.get(name, [])
        points = compose_grid([f"experiment={name}", *needed], experiment_grid=True)
        sizes = [len(re.split(r",(?![^\[]*\])", str(v))) for v in _grid(name).values()]  # a list is one value
        assert len(points) == math.prod(sizes) > 1
        assert f"experiment={name}" in (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()[1]


def _grid(name):
    import yaml

    return yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]


def test_command_line_wins_over_the_grid():
    points = compose_grid(["experiment=smoke", "policy=tova", "cache=7"], experiment_grid=True)
    assert len(points) == 1 and points[0][1].cache == 7


def test_the_smoke_sweep_covers_every_policy():
    assert set(_grid("smoke")["policy"].split(",")) == set(choices("policy"))


# Who may import whom inside the package; DESIGN: imports point one way, and nobody imports run but its callers.
ALLOWED = {
    "errors": set(), "files": {"errors"}, "policies": {"errors"},
    "job": {"datasets", "models", "policies", "results"}, "journal": {"errors"},
    "text": {"errors", "files"}, "chunks": {"errors", "datasets"}, "datasets": {"text", "chunks", "errors"},
    "model_files": {"errors", "files"}, "models": {"model_files", "model_hub", "errors"}, "model_hub": {"model_files", "errors"},
    "results": {"errors", "files"},
    "summary": {"errors", "files", "results"}, "multistate": {"errors", "policies", "multistate"},
    "tasks": {
        "chunks", "datasets", "errors", "job", "journal", "models", "multistate", "policies", "questions", "results", "tasks",
    },
    "questions": {"datasets", "errors", "text"}, "filler": {"datasets", "errors"},
    "figures": {"errors", "files", "figures", "results", "summary"}, "plotting": {"errors", "figures", "results", "summary"},
    "progress": set(), "provenance": set(),
    "tabletext": {"summary"}, "compose": {"errors"}, "listing": {"compose", "errors"},
    "run": {"", "compose", "errors", "files", "job", "models", "policies", "provenance", "results"},
    "grid": {"compose", "errors", "progress", "results", "run", "summary"}, "hydra_app": {"compose", "progress", "run"},
    "doctor": {"compose", "errors", "multistate", "policies", "provenance", "run"},
    "lm_eval_model": {"compose", "errors", "job", "results", "run", "tasks"},
    "cli": {"", "compose", "doctor", "errors", "grid", "hydra_app", "listing", "model_files", "plotting", "summary", "tabletext"},
    "__init__": {"errors", "multistate", "policies"},
}  # fmt: skip


def test_imports_point_one_way():
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _imported(node):
                assert name in ALLOWED[room], f"{path.relative_to(ROOT)} imports msrnn_bench.{name}"


def _imported(node):
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "msrnn_bench":
        parts = node.module.split(".")
        if len(parts) > 1:
            return [parts[1]]
        return [a.name if (PACKAGE / f"{a.name}.py").exists() or (PACKAGE / a.name).is_dir() else "" for a in node.names]
    if isinstance(node, ast.Import):
        return [a.name.split(".")[1] for a in node.names if a.name.startswith("msrnn_bench.")]
    return []


def test_the_recurrence_needs_torch_alone():
    """The definition must be readable and runnable without the compiled kernels or transformers."""
    import subprocess
    import sys

    code = (
        "import sys, torch, msrnn_bench as mb; x = torch.randn(1, 2, 9, 4); "
        "mb.recurrence(x, x, x, policy=mb.Tova(), state_size=4); "
        "assert not {'numba', 'transformers', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_configuration_ships():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'conf = "msrnn_bench/conf"' in text and '"/conf"' in text
    assert (config_dir() / "config.yaml").is_file()

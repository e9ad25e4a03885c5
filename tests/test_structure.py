"""Configurations by discovery, imports that point one way, packaging."""

import ast
import math
import re
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT
from hydra.utils import get_object
from omegaconf import OmegaConf

from msrnn_bench import moved
from msrnn_bench.errors import UsageError
from msrnn_bench.runs.build import build, build_policy
from msrnn_bench.runs.compose import choices, compose_grid, compose_one, config_dir

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


def test_every_experiment_composes_every_value_of_its_grid():
    """Each axis alone; that a grid is the product of its axes is the smoke sweep's to show."""
    names = choices("experiment")
    assert {"smoke", "laptop/fig3", "paper/fig3"} <= set(names)
    for name in names:
        needed = {"laptop/novels": ["dataset.path=x"], "laptop/stories": ["dataset.path=x", "model.path=x"]}.get(name, [])
        grid = {key: re.split(r",(?![^\[]*\])", str(values)) for key, values in _grid(name).items()}  # a list is one value
        assert math.prod(map(len, grid.values())) > 1 or name.startswith("paper/")  # a figure may be of one cell
        first = [f"{key}={values[0]}" for key, values in grid.items()]
        for key, values in grid.items():
            rest = [o for o in first if not o.startswith(f"{key}=")]
            if len(values) > 20:  # names of one kind, whose list has a test of its own: composing all takes a minute
                values = [*values[:3], *values[-3:]]
                rest.append(f"{key}={','.join(values)}")
            points = compose_grid([f"experiment={name}", *needed, *rest], experiment_grid=True)
            assert len(points) == len(values), f"{name}: {key}"
        assert f"experiment={name}" in (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()[1]


def test_a_grid_is_the_product_of_its_axes():
    points = compose_grid(["experiment=smoke"], experiment_grid=True)
    assert len(points) == math.prod(len(str(values).split(",")) for values in _grid("smoke").values())
    assert len({tuple(overrides) for overrides, _ in points}) == len(points)


def _grid(name):
    import yaml

    return yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]


def test_command_line_wins_over_the_grid():
    points = compose_grid(["experiment=smoke", "policy=tova", "cache=7"], experiment_grid=True)
    assert len(points) == 1 and points[0][1].cache == 7


def test_the_smoke_sweep_covers_every_policy():
    assert set(_grid("smoke")["policy"].split(",")) == set(choices("policy"))


# Who may import whom, room by room: a room is a file or a folder of the package. Imports point one way.
EVERYONE = {"errors", "policies", "results", "datasets", "models", "multistate", "job", "tasks", "figures", "report", "runs"}
FOR_ALL = {"errors", "redact"}  # left out of the picture; the second, below all, is left out here too
ALLOWED = {
    "redact": set(), "errors": set(), "moved": set(),
    "policies": {"errors"}, "results": {"errors"}, "datasets": {"errors"}, "models": {"errors", "multistate"},
    "multistate": {"errors", "policies"},
    "job": {"errors", "datasets", "models", "multistate", "policies", "results"},
    "tasks": {"errors", "policies", "results", "datasets", "models", "multistate", "job"},
    "figures": {"errors", "results"},
    "report": {"errors", "figures", "results"},
    "__init__": {"errors", "moved", "multistate", "policies"},
    "runs": {"__init__", "errors", "job", "policies", "results"},
    "cli": {"__init__", *EVERYONE},
}  # fmt: skip
# And inside tasks: what is shared knows no task.
SHARED_BY_TASKS = {
    "tasks.writing": {"tasks.writing"}, "tasks.staying": {"tasks.staying"}, "tasks.lm_eval": {"tasks.lm_eval", "tasks.writing"},
}  # fmt: skip


def test_imports_point_one_way():
    assert set(ALLOWED) == {module.split(".")[0] for module in MODULES}
    for module, others in MODULES.items():
        room = module.split(".")[0]
        for other in others:
            assert other.split(".")[0] in ALLOWED[room] | {room, "redact"}, f"msrnn_bench.{module} imports msrnn_bench.{other}"
            folder = ".".join(module.split(".")[:2])
            if folder in SHARED_BY_TASKS and other.startswith("tasks."):
                assert ".".join(other.split(".")[:2]) in SHARED_BY_TASKS[folder], f"msrnn_bench.{module} imports {other}"


def test_no_file_imports_in_a_circle():
    """Nor for its types only: what needs another's types stands above it."""
    graph = {module: {other for other in others if other != module} for module, others in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_module_is_longer_than_300_lines():
    assert {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 300} == {}


def test_each_room_says_what_it_is_and_may_import():
    for folder in sorted({p.parent for p in FILES} - {PACKAGE}):
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert "May import" in text and 2 <= len(text.splitlines()) <= 5, folder


def test_the_picture_of_the_house_is_true():
    """The diagram in CONTRIBUTING.md has every arrow between rooms, but those that all may have, and no other."""
    drawn = re.search(r"```mermaid\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)[1]
    arrows = set()
    for left, right in re.findall(r"^ *([\w &]+) --> ([\w &]+)$", drawn, flags=re.M):
        arrows |= {(a, b) for a in left.split(" & ") for b in right.split(" & ")}
    rooms = {(m.split(".")[0], o.split(".")[0]) for m, others in MODULES.items() for o in others}
    names = {"__init__": "api"}  # what `import msrnn_bench` gives
    true = {(names.get(a, a), names.get(b, b)) for a, b in rooms if a != b and b not in FOR_ALL}
    assert arrows == true


def _imported(path):
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "msrnn_bench":
            parent = node.module.removeprefix("msrnn_bench").strip(".")
            for alias in node.names:
                name = f"{parent}.{alias.name}".strip(".")
                yield name if name in NAMES else parent or "__init__"
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("msrnn_bench.") for alias in node.names if alias.name.startswith("msrnn_bench."))


FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
MODULES = {name: set(_imported(path)) for name, path in NAMES.items()}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import msrnn_bench.text", "msrnn_bench.text is now msrnn_bench.datasets.reading"),
        ("from msrnn_bench import model_hub", "msrnn_bench.model_hub is now msrnn_bench.models.hub"),
        ("from msrnn_bench.datasets import Text", "msrnn_bench.datasets.Text is now msrnn_bench.datasets.texts.Text"),
        ("from msrnn_bench.results import Row", "msrnn_bench.results.Row is now msrnn_bench.results.cells.Row"),
        ("from msrnn_bench.tasks.harness import Harness", "msrnn_bench.tasks.harness is now msrnn_bench.tasks.lm_eval.harness"),
        ("import msrnn_bench.lm_eval_model", "is now the command `msrnn-bench lm-eval`"),
    ],
)
def test_an_old_name_says_the_new_one(code, says):
    with pytest.raises(ModuleNotFoundError, match=re.escape(says)):
        exec(code, {})


def test_every_old_name_leads_somewhere():
    for new in moved.MODULES.values():
        assert new in NAMES, new
    assert moved.now("msrnn_bench.nothing") is None and moved.now("msrnn_bench.datasets.nothing") is None
    with pytest.raises(ImportError, match="cannot import name"):
        exec("from msrnn_bench.datasets import nothing", {})


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("msrnn_bench.models.LocalModel", "msrnn_bench.models.LocalModel is now msrnn_bench.models.sources.LocalModel"),
        ("msrnn_bench.models.sources.NoModel", "does not exist"),
        ("no_such_module.Model", "does not exist"),
    ],
)
def test_an_old_target_is_one_line(target, says, capfd):
    with pytest.raises(UsageError, match=re.escape(says)) as found:
        build(OmegaConf.create({"_target_": target, "path": "x"}), "model")
    assert f"model._target_={target}" in str(found.value) and "\n" not in str(found.value)
    assert capfd.readouterr() == ("", "")


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

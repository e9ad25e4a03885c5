"""Configurations by discovery, imports that point one way, packaging."""

import ast
import math
import re
import shutil
from functools import cache
from graphlib import TopologicalSorter

import pytest
import yaml
from conftest import ROOT
from hydra.utils import get_object
from omegaconf import OmegaConf

from msrnn_bench import moved
from msrnn_bench.errors import UsageError
from msrnn_bench.runs import compose
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
    """Each value beside the first ones of the other axes; that a grid is their product is the smoke sweep's to show. No
    experiment sets a key of a policy, so one that is there goes with it: of those the ends are composed, composing is slow."""
    names = choices("experiment")
    assert {"smoke", "laptop/fig3", "paper/fig3"} <= set(names)
    policies = {f"policy={name}" for name in choices("policy")}
    for name in names:
        needed = {"laptop/novels": ["dataset.path=x"], "laptop/stories": ["dataset.path=x", "model.path=x"]}.get(name, [])
        given = [f"experiment={name}", *needed]
        grid = {key: _swept(f"{key}={values}") for key, values in _grid(name).items()}
        assert math.prod(map(len, grid.values())) > 1 or name.startswith("paper/")  # a figure may be of one cell
        assert "policy" not in _experiment(name) and policies.issuperset(grid.get("policy", ())), name
        first = [values[0] for values in grid.values()]
        (point,) = compose_grid([*given, *first], experiment_grid=True)
        assert sorted(point[0]) == sorted([*given, *first]), name
        for key, values in grid.items():
            rest = [o for o in first if not o.startswith(f"{key}=")]
            ends = 1 if key == "policy" else 3 if len(values) > 20 else 0  # many names of one kind have a test of their own
            for value in [*values[:ends], *values[-ends:]] if ends else values:
                assert compose_one([*given, *rest, value]), f"{name}: {value}"
        assert f"experiment={name}" in (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()[1]


def _swept(override):
    """Its values, each as an override of its own, read as a sweep reads them."""
    with compose._hydra():
        (read,) = compose._parse([override])
        return [f"{read.key_or_group}={value}" for value in compose._values(read)] if read.is_sweep_override() else [override]


@pytest.mark.parametrize(
    "given",
    [
        ["cache=8"], ["policy=window4", "policy.first=2", "cache=9", "cache=7"], ["policy.per=head", "experiment=smoke"],
        ["task=stories", "dataset=none", "task.prompt='a, b'"], ["model.architecture={a: {b: 1}}", "model=gpt2"],
        ["task.buckets=[1,2]", "experiment=null"], ["+policy.more=1", "policy.more=2"], ["policy.first=1", "~policy.first"],
        ["policy={first: 3}"], ["results_dir=${seed}/x", "seed=3"], ["hydra.verbose=true"], ["policy=tova", "policy=h2o"],
        ["policy=h2o", "policy=tova"], ["cash=8"], ["policy.frist=1"], ["policy=nope", "cache=8"], ["cache.x=8"], ["cache=8,16"],
        ["cache="], ["cache"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_composed_quickly_is_what_hydra_composes(given):
    """Values on a copy of what was chosen before, or the same mistake."""

    def made(how):
        try:
            with compose._hydra():
                config, grid = how(given)
                return OmegaConf.to_yaml(config), grid
        except UsageError as error:
            return str(error)

    assert made(compose._composed) == made(compose._compose)


def test_an_edited_file_is_read_again(tmp_path, monkeypatch):
    shutil.copytree(config_dir(), tmp_path / "conf")
    monkeypatch.setattr(compose, "config_dir", lambda: tmp_path / "conf")
    assert compose_one(["policy=window4", "cache=8"]).policy.first == 4
    file = tmp_path / "conf/policy/window4.yaml"
    file.write_text(file.read_text().replace("first: 4", "first: 5"))
    first, second = (compose_one(["policy=window4", "cache=8"]).policy for _ in range(2))
    assert first == second and first.first == 5 and first is not second


def test_a_grid_is_the_product_of_its_axes():
    points = compose_grid(["experiment=smoke"], experiment_grid=True)
    assert len(points) == math.prod(len(str(values).split(",")) for values in _grid("smoke").values())
    assert len({tuple(overrides) for overrides, _ in points}) == len(points)


@cache
def _experiment(name):
    return yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())


def _grid(name):
    return _experiment(name)["hydra"]["sweeper"]["params"]


def test_command_line_wins_over_the_grid():
    points = compose_grid(["experiment=smoke", "policy=tova", "cache=7"], experiment_grid=True)
    assert len(points) == 1 and points[0][1].cache == 7


def test_the_smoke_sweep_covers_every_policy():
    assert set(_grid("smoke")["policy"].split(",")) == set(choices("policy"))


# Who may import whom, room by room: a room is a file or a folder of the package. Imports point one way.
EVERYONE = {"errors", "policies", "results", "datasets", "models", "multistate", "job", "tasks", "figures", "report", "runs"}
FOR_ALL = {"errors", "redact"}  # left out of the picture; the second, below all, is left out here too
ALLOWED = {
    "redact": set(), "errors": set(), "moved": set(), "hub": {"errors"},
    "elementwise": {"errors"}, "policies": {"elementwise", "errors"},
    "results": {"errors"}, "datasets": {"errors", "hub"}, "models": {"errors", "hub", "multistate"},
    "multistate": {"elementwise", "errors", "policies"},
    "job": {"errors", "datasets", "models", "multistate", "policies", "results"},
    "tasks": {"errors", "hub", "policies", "results", "datasets", "models", "multistate", "job"},
    "figures": {"errors", "results"},
    "report": {"errors", "figures", "results"},
    "__init__": {"errors", "moved", "multistate", "policies"},
    "runs": {"__init__", "errors", "hub", "job", "policies", "results"},
    "cli": {"__init__", "hub", *EVERYONE},
}  # fmt: skip
# And inside tasks: what is shared knows no task.
SHARED_BY_TASKS = {
    "tasks.writing": {"tasks.writing"}, "tasks.staying": {"tasks.staying"},
    "tasks.reading": {"tasks.reading", "tasks.writing"}, "tasks.lm_eval": {"tasks.lm_eval", "tasks.writing"},
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

"""CONTRIBUTING.md's tree is true, and what it tells contributors to write works as it stands."""

import re
import sys
import types
from functools import cache
from importlib import import_module

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, Silent, job, tiny
from omegaconf import OmegaConf

import msrnn_bench as mb
from msrnn_bench import figures
from msrnn_bench.models.sources import Loaded
from msrnn_bench.models.tokenizer import bytes_tokenizer
from msrnn_bench.runs.build import build

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def examples(kind: str) -> dict[str, str]:
    """The blocks of that language that name their file in the first line: file -> content."""
    blocks = re.findall(rf"```{kind}\n(# (\S+?\.\w+).*?)```", PAGE, flags=re.S)
    return {name: content for content, name in blocks}


@cache
def config(name: str):
    """The YAML block of that file."""
    return OmegaConf.create(yaml.safe_load(examples("yaml")[name]))


@pytest.fixture
def written(monkeypatch):
    """The Python blocks, as modules of the package."""
    for name, content in examples("python").items():
        dotted = name.removesuffix(".py").replace("/", ".")
        module = types.ModuleType(dotted)
        parent, _, last = dotted.rpartition(".")
        monkeypatch.setitem(sys.modules, dotted, module)
        monkeypatch.setattr(import_module(parent), last, module, raising=False)
        exec(compile(content, name, "exec"), module.__dict__)


def test_every_section_has_its_example():
    assert set(examples("python")) == {
        "msrnn_bench/datasets/zen.py", "msrnn_bench/tasks/entropy.py", "msrnn_bench/figures/evictions.py",
    }  # fmt: skip
    assert {"conf/policy/slow.yaml", "conf/dataset/zen.yaml", "conf/task/entropy.yaml"} == {
        name.rstrip(":") for name in examples("yaml")
    }


def test_the_policy():
    policy = build(config("conf/policy/slow.yaml"), "policy")
    q, k, v = (torch.randn(1, heads, 40, 8, dtype=torch.float64) for heads in (4, 2, 2))
    fast, state = mb.scan(q, k, v, policy=policy, state_size=16)
    slow, _ = mb.recurrence(q, k, v, policy=policy, state_size=16)
    torch.testing.assert_close(fast, slow)
    assert policy.rule(16).memory == 0.999 and state.alive == [16]


def test_the_dataset(written):
    dataset = build(config("conf/dataset/zen.yaml"), "dataset")
    (document,) = dataset.documents()
    assert "Beautiful is better than ugly." in document.text
    assert len(dataset.fingerprint()) == 64


def test_the_task(written):
    task = build(config("conf/task/entropy.yaml"), "task")
    dataset = build(config("conf/dataset/zen.yaml"), "dataset")
    model = tiny("llama-gqa", torch.float32)
    tokenizer = bytes_tokenizer()

    class Folded:
        """Bytes folded into the tiny model's vocabulary."""

        bos_token_id = None

        def __call__(self, text, **options):
            return {"input_ids": [i % 96 for i in tokenizer(text, add_special_tokens=False)["input_ids"]]}

    class Model:
        device_map = None

        def fingerprint(self, *, seed):
            return {}

        def load(self, **_):
            return Loaded(model, Folded(), {})

    columns = {
        "cell": "x", "task": task.name, "dataset": "zen", "model": "tiny", "weights": "random", "policy": "tova", "cache": 32,
        "context": 128, "seed": 0, "dtype": "float32", "engine": "scan", "prefill": "stepwise", "positions": "original",
    }  # fmt: skip
    told = job(mb.Tova(), 32, context=128)
    for key, value in {"columns": columns, "dataset": dataset, "model": Model(), "progress": Silent()}.items():
        object.__setattr__(told, key, value)
    rows = list(task.rows(told))
    assert len(rows) >= 5 and all(0 < row.total / row.count < torch.log(torch.tensor(96.0)) for row in rows)


def test_the_figure(written):
    table = pd.read_csv(ROOT / "results/novels/summary.csv")
    assert "evictions" not in figures.names()  # a file is what makes it one
    figure = sys.modules["msrnn_bench.figures.evictions"].plot(table, note="a note")
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    assert max(lines["tova"]) == 4096 - 64 and figure.get_supxlabel() == "a note"


def test_the_tree_names_every_file():
    tree = PAGE[PAGE.index("## The tree") : PAGE.index("## Add a policy")]
    for path in [*(ROOT / "msrnn_bench").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        if path.name != "__init__.py":
            folder = path.parent.name if path.parent != ROOT / "msrnn_bench" else "msrnn_bench"
            section = tree[tree.index(f"{folder}/") :]
            assert re.search(rf"\b{re.escape(path.name)}\b", section), f"the tree lacks {path.relative_to(ROOT)}"
    folders = ("msrnn_bench", "benchmarks", "hydra_plugins", "tests")
    there = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    for name in re.findall(r"\b([\w]+\.py)\b", tree):
        assert name in there, f"the tree has {name}, which does not exist"


def test_the_hooks_are_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    entries = {hook["entry"] for hook in hooks[0]["hooks"]}
    makefile = (ROOT / "Makefile").read_text()
    lint = makefile[makefile.index("lint: setup") : makefile.index("smoke: setup")]
    assert entries == {line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint.splitlines()[1:] if line}

"""Starting costs little: what is finished, refused or listed imports neither torch nor transformers. Which modules a command has
loaded is counted, not its seconds.
"""

import json
import subprocess
import sys

import pandas as pd
import pytest
from conftest import HELD_OUT, TINY_MODEL

from msrnn_bench.cli.main import main
from msrnn_bench.results.fresh import fresh
from msrnn_bench.runs.compose import choices

HEAVY = {"torch", "transformers", "numba", "datasets", "lm_eval", "sklearn", "scipy.stats", "matplotlib"}
TABLES = {"pandas", "pandera", "scipy"}
HERE = ["model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={HELD_OUT}", "documents=1", "policy=tova"]
READ = [*HERE, "context=64", "tokens=64"]
WRITE = [*HERE, "context=256", "task.new_tokens=2"]
KINDS = {
    "perplexity": ["run", *READ, "cache=8"],
    "retention": ["run", *READ, "task=retention", "cache=8"],
    "extrapolation": ["run", *HERE, "task=extrapolation", "tokens=64", "cache=8"],
    "retrieval": ["run", *WRITE, "task=retrieval", "task.lengths=[150]", "task.examples=1", "task.depths=[0.5]", "cache=40"],
    "stories": ["run", *WRITE, "task=stories", "task.stories=1", "cache=8"],
    "equivalence": ["run", *READ, "task=equivalence", "cache=8"],
}  # fmt: skip
CODE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from msrnn_bench.cli.main import main
for command in json.load(sys.stdin):
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        code = main(command)
    loaded = sorted(name for name in sys.modules if sys.modules[name] is not None)
    print(json.dumps([code, loaded, said.getvalue()]))
"""


def loaded(*commands: list[str]) -> list[tuple[int, set[str], str]]:
    """The commands in a process of their own, one after the other: the exit code, the modules that are loaded by then, what was
    said."""
    typed = json.dumps(commands)
    done = subprocess.run([sys.executable, "-c", CODE], input=typed, capture_output=True, text=True, check=True)
    return [(code, set(names), said) for code, names, said in map(json.loads, done.stdout.splitlines())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cell of each kind, and a sweep, measured once."""
    root = tmp_path_factory.mktemp("results")
    for name, command in KINDS.items():
        assert main([*command, f"results_dir={root / name}"]) == 0
    assert main(["run", "-m", *READ, "cache=8,16", f"results_dir={root / 'sweep'}"]) == 0
    return root


def test_a_finished_cell(folder):
    commands = {kind: [*command, f"results_dir={folder / kind}"] for kind, command in KINDS.items()}
    for kind, (code, names, said) in zip(commands, loaded(*commands.values()), strict=True):
        assert code == 0 and "finished already" in said, kind
        assert not names & HEAVY, kind


def test_a_finished_sweep_makes_no_table_again(folder):
    ((code, names, said),) = loaded(["run", "-m", *READ, "cache=8,16", f"results_dir={folder / 'sweep'}"])
    assert code == 0 and "2 cells, 2 finished already" in said and "summary.csv" in said
    assert not names & (HEAVY | TABLES)


def test_tables_are_made_again_where_they_are_not_fresh(folder, tmp_path):
    import shutil

    own = shutil.copytree(folder / "sweep", tmp_path / "own", copy_function=shutil.copy)
    assert not fresh(own)  # a copy's tables may be older than its cells
    sweep = ["run", "-m", *READ, "cache=8,16", f"results_dir={own}"]
    assert main(sweep) == 0 and fresh(own)
    before = (own / "summary.csv").stat().st_mtime_ns
    assert main(sweep) == 0 and (own / "summary.csv").stat().st_mtime_ns == before
    one = sorted((own / "cells").glob("*.csv"))[0]
    one.write_text(one.read_text())
    assert not fresh(own)
    assert main(sweep) == 0 and fresh(own)
    (own / "tidy.csv").unlink()
    assert not fresh(own)
    assert main(sweep) == 0 and fresh(own)
    for file in (one, one.with_suffix(".json")):
        file.rename(tmp_path / file.name)
    assert not fresh(own)
    assert main(["run", "-m", *READ, "cache=8,16", f"results_dir={own}"]) == 0
    assert len(pd.read_csv(own / "summary.csv")) == 2 and fresh(own)


def test_what_is_refused(folder):
    refused = {
        "cache=0": ["run", *READ, "cache=0"],
        "unknown policy": ["run", *READ, "cache=8", "policy=nope"],
        "more than the 512 positions": ["run", *READ, "cache=8", "context=9999"],
        "nowhere.txt": ["run", *READ, "cache=8", "dataset.path=nowhere.txt"],
        "unknown experiment": ["sweep", "experiment=nope"],
        "no finished cell": ["collect", "results_dir=nowhere"],
    }
    for says, (code, names, said) in zip(refused, loaded(*refused.values()), strict=True):
        assert code == 2 and says in said
        assert not names & HEAVY, says


def test_what_is_listed():
    for code, names, _ in loaded(["--help"], ["--version"], ["list"], ["list", "policy"]):
        assert code == 0 and not names & (HEAVY | TABLES)


def test_tables_need_no_model(folder):
    for code, names, _ in loaded(*([command, f"results_dir={folder / 'sweep'}"] for command in ("collect", "claims"))):
        assert code == 0 and not names & (HEAVY - {"matplotlib"})


def test_every_choice_is_made_without_them():
    """So that a new one does not bring them back."""
    named = [f"{group}={name}" for group in ("model", "dataset", "policy", "task") for name in choices(group)]
    code = """
import sys
from msrnn_bench.runs.build import build
from msrnn_bench.runs.compose import compose_one
for choice in sys.argv[1:]:
    group = choice.partition("=")[0]
    build(compose_one([choice])[group], group)
    print(choice, sorted({heavy} & set(sys.modules)))
""".replace("{heavy}", repr(HEAVY | TABLES))
    done = subprocess.run([sys.executable, "-c", code, *named], capture_output=True, text=True, check=True)
    assert [line.partition(" ")[2] for line in done.stdout.splitlines()] == ["[]"] * len(named), done.stdout

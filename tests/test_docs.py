"""README and docs/ say what is so: numbers come from results/, commands are accepted, links lead somewhere, pages that are
written by a script are as it writes them. docs/first-measurement.md has a test of its own for its commands."""

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, Silent, tiny

from msrnn_bench import figures
from msrnn_bench.cli import main as cli
from msrnn_bench.cli import paper
from msrnn_bench.errors import MachineError
from msrnn_bench.report.verdict import Verdict
from msrnn_bench.results import summary as summaries
from msrnn_bench.results.cells import COLUMNS
from msrnn_bench.results.finding import find
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import GROUPS, choices, compose_grid, compose_one, config_dir
from msrnn_bench.runs.overrides import understood
from msrnn_bench.runs.restored import restored

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted(
    path.parent.name for path in (ROOT / "results").glob("*/summary.csv") if path.parent.name not in ("demo", "smoke")
)
PLACEHOLDERS = re.compile(r"\b(FILE|FOLDER|NAME|KEY|VALUE)\b|dev\.jsonl")


def script(name: str):
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(name: str) -> str:
    """A page of docs/ with single spaces, so that a phrase is found wherever its line breaks."""
    return " ".join((ROOT / "docs" / f"{name}.md").read_text().split())


@cache
def table(folder: str, which: str = "summary") -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / folder / f"{which}.csv")


def line(folder: str, policy: str, metric: str, cache: int | None = None, **more) -> pd.Series:
    """The one line of a summary."""
    found = table(folder)
    found = found[(found["policy"] == policy) & (found["metric"] == metric)]
    found = found[found["cache"].isna() if cache is None else found["cache"] == cache]
    for key, value in more.items():
        found = found[found[key] == value]
    assert len(found) == 1
    return found.iloc[0]


# --- pages


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_readme_links_every_page():
    text = (ROOT / "README.md").read_text()
    for path in PAGES[1:]:
        assert f"](docs/{path.name})" in text, path.name


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), f"{path.name} links {target}"
        assert not anchor or anchor in anchors(found), f"{path.name} links {target}"


def test_settings_are_as_the_yamls_say():
    settings = script("settings")
    assert settings.page() == (ROOT / "docs/settings.md").read_text(), "run python docs/settings.py"
    assert settings.uncommented() == [], "a key without a comment, in a YAML or in one of the same _target_"


def test_settings_find_what_stands_beside_a_key(tmp_path):
    """Comments behind values, behind marks of long texts and behind keys of lists; none within quotes."""
    lines = ["# About.", "# More.", "_target_: a.B", 'a: "x # y" # one', "b: |- # two", "  text # no", "c: # three", "  - 1"]
    text = "\n".join([*lines, "d: 4", "e: [1, 2] # five"])
    (tmp_path / "x.yaml").write_text(text)
    file = script("settings").read(tmp_path / "x.yaml")
    assert (file.about, file.target) == ("About. More.", "a.B")
    assert {k: v.comment for k, v in file.keys.items()} == {"a": "one", "b": "two", "c": "three", "d": "", "e": "five"}
    assert file.keys["a"].shown == '`"x # y"`' and file.keys["e"].shown == "`[1, 2]`"


def test_every_column_is_explained():
    text = (ROOT / "docs/recorded.md").read_text()
    rows, summary = text.split("## The summary")
    summary, claims = summary.split("## Claims")
    told = {name for cell in re.findall(r"^\| (`.*?`) \|", claims, flags=re.M) for name in re.findall(r"`(\w+)`", cell)}
    assert told == {field.name for field in fields(Verdict)}
    assert re.findall(r"^\| `(\w+)` \|", rows, flags=re.M) == list(COLUMNS)
    named = {name for cell in re.findall(r"^\| (`.*?`) \|", summary, flags=re.M) for name in re.findall(r"`(\w+)`", cell)}
    both = {"count", "evictions", "max_states", "tokens_per_second", "status", "cell"}  # of rows too, but not as in rows
    assert named == set(summaries.SUMMARY_TYPES) - set(COLUMNS) | both
    assert "Kish's effective number" in text and "Jeffreys' interval" in text


def test_every_policy_and_task_has_its_line():
    for group, name in (("policy", "policies"), ("task", "tasks")):
        listed = " ".join(re.findall(r"^\| (`.*?) \|", (ROOT / f"docs/{name}.md").read_text(), flags=re.M))
        assert set(choices(group)) <= set(re.findall(r"`(\w+)`", listed))


# --- numbers


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs/results.md"], ids=lambda path: path.name)
def test_every_number_of_a_table_is_the_results(path):
    tables, text = script("tables"), path.read_text()
    marked = tables.MARKED.findall(text)
    assert marked and "".join(rows for *_, rows in marked).count("\n") == len(re.findall(r"^\|", text, flags=re.M))
    assert tables.written(text) == text, "run python docs/tables.py"


def test_the_tables_are_the_summaries():
    """Both files of a folder say the same; docs/tables.py reads perplexities from one and all else from the other."""
    for folder in ("novels", "pysource", "stories260k"):
        made = script("tables").perplexity(folder).splitlines()[2:]
        shown = {tuple(row.strip("| ").split(" | ")[:1]): row.strip("| ").split(" | ")[1:] for row in made}
        known = table(folder).dropna(subset="cache").sort_values("cache")
        for policy, lines in known.groupby("policy"):
            assert lines["value"].tolist() == pytest.approx([float(v) for v in shown[(policy,)]], abs=6e-4)


@pytest.mark.parametrize("folder", RESULTS)
def test_every_figure_is_shown_and_every_folder_has_its_commands(folder):
    text = (ROOT / "docs/results.md").read_text()
    drawn = sorted((ROOT / "results" / folder).glob("*.png"))
    for path in drawn:
        assert f"](../results/{folder}/{path.name})" in text
    for command in ("collect", "plot") if drawn else ("collect",):  # the theorem is a table
        assert f"msrnn-bench {command} results_dir=results/{folder}\n" in text


def test_the_sweeps_are_those_that_were_run():
    """The experiments beside the tables name the policies, sizes and settings of the committed cells."""
    found = {}
    sweeps = re.findall(r"^msrnn-bench sweep experiment=(laptop/\S+)(.*)", (ROOT / "docs/results.md").read_text(), flags=re.M)
    for name, given in sweeps:
        swept = yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
        policies = swept["policy"].split(",")  # two of them composed stand for all: no experiment has a key of a policy
        some = [] if "policy=" in given else [f"policy={policies[0]},{policies[-1]}"]
        for point, config in compose_grid([f"experiment={name}", *given.split(), *some], experiment_grid=True):
            seen = found.setdefault(Path(config.results_dir).name, {"policies": set(), "sizes": set(), "settings": set()})
            policy = dict(override.split("=", 1) for override in point)["policy"]
            seen["policies"] |= {*policies} if some else {policy}
            seen["sizes"] |= set() if policy == "full" else {config.cache}
            task = config.task._target_.split(".")[2]
            seen["settings"].add((task, config.dtype, config.context or config.tokens, config.seed))
    assert sorted(found) == RESULTS
    for folder, seen in found.items():
        lines = table(folder)
        assert set(lines["policy"]) == seen["policies"] and set(lines["cache"].dropna().astype(int)) == seen["sizes"], folder
        assert set(zip(lines["task"], lines["dtype"], lines["context"], lines["seed"], strict=True)) == seen["settings"], folder


def said(text: str, *phrases: str) -> None:
    for phrase in phrases:
        assert phrase in text, f"the results say: {phrase}"


def test_numbers_in_sentences_perplexity():
    text, readme = page("results"), " ".join((ROOT / "README.md").read_text().split())
    for folder in ("novels", "pysource", "stories260k"):
        said(text, f"full context {line(folder, 'full', 'nll')['value']:.3f}")
    said(readme, f"full context {line('novels', 'full', 'nll')['value']:.3f}")
    papers = ["window", "window1", "window4", "h2o", "h2o_layer", "tova", "tova1", "tova4", "tova_head"]
    novels, source = (
        table(name).dropna(subset="cache").pivot(index="policy", columns="cache", values="value")
        for name in ("novels", "pysource")
    )
    said(text, "TOVA leads the paper's policies at 64 and 128 states, H2O from 256 to 1,024")
    best = novels.loc[papers].idxmin()
    assert best[[64, 128]].str.startswith("tova").all() and (best[[256, 512, 1024]] == "h2o").all()
    said(text, "up to 1,024 states one decision per layer beats one per head for TOVA")
    to_1024 = [64, 128, 256, 512, 1024]
    assert (novels.loc["tova", to_1024] < novels.loc["tova_head", to_1024]).all()
    assert (novels.loc["h2o", to_1024] < novels.loc["h2o_layer", to_1024]).all()
    said(text, "all of the paper's policies but the window and the baseline are within 3% of the full model")
    near = novels[1024] <= 1.03 * line("novels", "full", "nll")["value"]
    assert set(near[near].index) == {*papers, "a2sf"} - {"window"}
    said(text, "is best of all from 64 to 512")
    assert (novels.idxmin()[[64, 128, 256, 512]] == "a2sf").all() and novels.idxmin()[1024] != "a2sf"
    said(text, "On source code TOVA leads the paper's policies up to 1,024 states, and H2O needs 512 to pass window+4")
    assert source.loc[papers].idxmin()[to_1024].str.startswith("tova").all()
    passed = source.loc["h2o"] < source.loc["window4"]
    assert not passed[[64, 128, 256]].any() and passed[512]


def test_numbers_in_sentences_stories():
    text = page("results")
    small = {p: {m: line("stories_stories260k", p, m, k) for m in ("length", "ended")}
             for p, k in (("full", None), ("tova", 64), ("window4", 64))}  # fmt: skip
    said(
        text, f"({small['tova']['length']['value']:.0f} tokens against {small['full']['length']['value']:.0f})",
        f"({small['window4']['ended']['value']:.0%} end by themselves, {small['full']['ended']['value']:.0%} of the full",
        "at 256 neither can be told from the full model",
    )  # fmt: skip
    at_256 = table("stories_stories260k").query("cache == 256")
    assert ((at_256["difference_low"] < 0) & (at_256["difference_high"] > 0)).all() and len(at_256) == 8
    texts = {key: stories("stories_stories260k", *key) for key in (("full", None), ("tova", 512), ("window4", 512))}
    assert len(set(map(tuple, texts.values()))) == 1, "at 512 they are its stories word for word"

    def of(policy: str, metric: str, size: int | None = None) -> pd.Series:
        return line("stories_smollm2", policy, metric, size)

    short, long, varied, odd = (of("window4", "length", 64), of("tova", "length", 256), of("tova", "distinct", 512),
                                of("tova", "nll", 512))  # fmt: skip
    said(
        text, f"writes {of('full', 'length')['value']:.0f} tokens a story and ends {of('full', 'ended')['value']:.0%} of them",
        f"shorter, by {-short['difference']:.0f} tokens [{-short['difference_high']:.0f}, {-short['difference_low']:.0f}], and "
        f"{of('window4', 'ended', 64)['value']:.0%} end; TOVA's are not",
        f"longer at 256, by {long['difference']:.0f} tokens [{long['difference_low']:.0f}, {long['difference_high']:.0f}]",
        f"by {varied['difference']:.3f} [{varied['difference_low']:.3f}, {varied['difference_high']:.3f}] in the share",
        f"{odd['difference']:.1f} [{odd['difference_low']:.1f}, {odd['difference_high']:.1f}] in perplexity, "
        f"on {of('full', 'nll')['value']:.1f}",
    )  # fmt: skip
    assert of("tova", "length", 64)["difference_low"] < 0 < of("tova", "length", 64)["difference_high"]
    for metric in ("length", "distinct", "nll"):
        for size in (256, 512):
            assert of("window4", metric, size)["difference_low"] < 0 < of("window4", metric, size)["difference_high"]
    assert all(of("tova", "distinct", size)["difference_low"] > 0 for size in (64, 256, 512))
    assert all(of("tova", "nll", size)["difference_low"] > 0 for size in (64, 512))
    untold = of("tova", "nll", 256)
    said(
        text, f"{untold['difference']:.1f} [{untold['difference_low']:.1f}, {untold['difference_high']:.1f}], which does not tell"
    )


def journal(folder: str, cell: str) -> list[dict]:
    lines = (ROOT / "results" / folder / "cells" / f"{cell}.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["key"])


def stories(folder: str, policy: str, size: int | None) -> list[str]:
    return [record["text"] for record in journal(folder, line(folder, policy, "length", size)["cell"])]


def test_numbers_in_sentences_answers():
    text = page("results")

    def found(prefill: str, size: int | None, length: int, policy: str = "tova") -> pd.Series:
        return line("retrieval", policy, "accuracy", size, prefill=prefill, length=length)

    def wide(found: pd.Series) -> str:
        return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"

    full = [found("stepwise", None, length, "full")["value"] for length in (1000, 4000, 8000)]
    before = {key: f"{found('stepwise', *key)['value']:.2f}" for key in ((256, 1000), (256, 4000), (1024, 4000), (1024, 8000))}
    said(
        text, "with full attention " + " / ".join(f"{value:.2f}" for value in full),
        f"{before[256, 1000]} and {before[256, 4000]} become {wide(found('oneshot', 256, 1000))} and "
        f"{wide(found('oneshot', 256, 4000))} at 256 states, in 4,000 and 8,000 tokens {before[1024, 4000]} and "
        f"{before[1024, 8000]} become {wide(found('oneshot', 1024, 4000))} and "
        f"{found('oneshot', 1024, 8000)['value']:.2f} at 1,024",
    )  # fmt: skip
    rows = table("retrieval", "tidy").query("prefill == 'stepwise' and cache < length")
    right = rows.groupby(["policy", "cache", "length", "depth"])["total"].sum().astype(int)
    at = [right["tova", *key, 0.75] for key in ((256, 1000), (1024, 4000), (1024, 8000))]
    said(text, f"{at[0]} of 5 with 256 states in 1,000 tokens, {at[1]} of 5 and {at[2]} of 5 with 1,024 in 4,000 and 8,000")
    back = rows[(rows["depth"] < 1) & ~((rows["cache"] == 1024) & (rows["length"] == 1000))]
    assert set(back.loc[back["total"] > 0, "policy"]) == {"tova"}, "TOVA alone keeps some"
    steps, ones = (table("retrieval").query(f"prefill == '{p}'").set_index(["policy", "cache", "length"])["value"]
                   for p in ("stepwise", "oneshot"))  # fmt: skip
    moved = ((ones - steps).dropna() * 25).abs().round()
    assert moved.drop("tova").max() == 1 and moved["tova"].max() > 1, "and no other by more than one answer"

    answer = line("squality", "full", "rouge")
    said(text, f"full context {answer['value']:.2f} [{answer['low']:.2f}, {answer['high']:.2f}]")
    words = {}
    for policy, size in (("full", None), ("tova", 256), ("baseline", 256)):
        cell = line("squality", policy, "rouge", size, prefill="stepwise")["cell"]
        words[policy] = pd.Series([len(record["prediction"].split()) for record in journal("squality", cell)])
    said(
        text, f"have {words['full'].mean():.0f} words on average and a median of {words['full'].median():.0f}, TOVA's at 256 "
        f"states {words['tova'].mean():.0f}, the baseline's {words['baseline'].mean():.0f}",
    )  # fmt: skip
    assert all(line("niah", "full", "accuracy", length=length)["value"] == 1 for length in (1024, 4096))


@pytest.mark.slow
def test_needles_are_counted_as_the_page_says():
    """`benchmarks/answers.py niah`, which reads RULER's texts again."""
    pytest.importorskip("wonderwords", reason="the extra `ruler` is not installed")
    told = subprocess.run([sys.executable, ROOT / "benchmarks/answers.py", "niah"], capture_output=True, text=True, check=True)
    back = dict(re.findall(r"^  (\w+ k=\d+, \S+) tokens: \d+ of \d+, (\d+ of \d+)$", told.stdout, flags=re.M))
    near = re.findall(r"tokens: (\d+) of (\d+),", told.stdout)
    assert len(near) == 12 and all(right == those for right, those in near)
    tova, window, h2o = ([back[f"{p} {key}"] for key in ("k=256, 1,024", "k=256, 4,096", "k=1024, 4,096")]
                         for p in ("tova", "window4", "h2o"))  # fmt: skip
    said(
        page("results"), f"TOVA answers {tova[0]} with 256 states in 1,024 tokens, {tova[1]} in 4,096, and {tova[2]} there",
        f"window+4 answers {window[0]}, {window[1]} and {window[2]}, H2O {h2o[0]}, {h2o[1]} and {h2o[2]}",
    )  # fmt: skip


# --- commands


def commands() -> Iterator[str]:
    """Every command line of ours that a page shows, but those of the page with a test of its own."""
    for path in PAGES:
        if path.name == "first-measurement.md":
            continue
        text = path.read_text()
        blocks = [entry for block in re.findall(r"```\w*\n(.*?)```", text, flags=re.S) for entry in block.splitlines()]
        inline = re.findall(r"`(msrnn-bench [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S).replace("\n", " "))
        for shown in [*blocks, *inline]:
            for part in shown.split("&&"):
                if part.strip().startswith("msrnn-bench ") and "..." not in part:
                    yield " ".join(shlex.split(part, comments=True))


COMMANDS = list(dict.fromkeys(commands()))


def test_commands_are_found():
    assert len(COMMANDS) > 50 and {c.split()[1] for c in COMMANDS} == {*cli.COMMANDS}


@cache
def configurations(command: str) -> list:
    """The points of a `run` or `sweep`; of an experiment's own grid, which test_structure composes, the experiment alone."""
    name, *given = command.split()[1:]
    flags = {arg for arg in given if arg.startswith("-")}
    overrides = [arg for arg in given if "=" in arg and not arg.startswith(("-", "hydra"))]
    overrides = understood(overrides, [name], sweeps=name == "sweep" or "-m" in flags)
    if name == "sweep":
        assert not flags and any(o.startswith("experiment=") for o in overrides)
    elif "-m" not in flags:
        return [(overrides, compose_one(overrides))]
    return compose_grid(overrides, experiment_grid=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command):
    name, *given = command.split()[1:]
    if name in ("run", "sweep"):
        assert configurations(command)
    elif name in ("status", "collect", "plot", "claims", "report"):
        options = vars(cli._options(name, given))
        assert options.get("figure") in (None, *figures.names())
        for folder in options["results_dir"].split(","):
            assert folder in ("results", "FOLDER") or (ROOT / folder / "summary.csv").is_file()
    elif name in ("diff", "rerun"):
        paths = [find(cell, [ROOT / "results"]) for cell in given if "=" not in cell]
        assert len(paths) == (2 if name == "diff" else 1)
        assert restored(json.loads(paths[0].read_text()), [arg for arg in given if "=" in arg], "results", trust=False)
    elif name == "paper":
        assert vars(cli._options(name, given))["scale"] in paper.SCALES
    elif name == "lm-eval":
        assert given[:3] == ["run", "--model", "msrnn"] and given[3] == "--model_args"
        pretrained, *settings = given[4].split(",")
        assert pretrained.startswith("pretrained=") and compose_one(["dataset=none", *settings])
    else:
        assert (name in ("list", "doctor") and set(given) <= set(GROUPS)) or (name == "convert" and len(given) == 2)


BUILT = [c for c in COMMANDS if c.split()[1] == "run" and not PLACEHOLDERS.search(c) and "model=" not in c]


def test_what_needs_nothing_of_the_users_gets_as_far_as_measuring(monkeypatch):
    """Built, checked and named: a context too short for its task's own lengths is refused there, not when composed."""
    monkeypatch.chdir(ROOT / "docs/examples")
    monkeypatch.syspath_prepend(ROOT / "docs/examples")
    assert len(BUILT) > 15
    shared: dict = {}
    for command in BUILT:
        for overrides, config in configurations(command)[:3]:
            try:
                assert prepare(config, overrides, Silent(), shared).cell.id, command
            except MachineError as error:
                pytest.skip(str(error))


# --- code


def test_the_python_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), flags=re.S)
    assert "from_pretrained" in blocks[0] and len(blocks) == 3
    ids = torch.randint(3, 96, (1, 40))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    space = {"model": tiny("llama-gqa", torch.float32), "prompt": given, "questions": [ids[:, :5], ids[:, :3]]}
    for block in blocks[1:]:
        exec(block, space)
    assert space["text"].shape[1] <= 80 and space["eight"].shape[0] == 8 and space["logits"].shape[1] == 40
    assert space["layer"].evictions.tolist() == [[24]] and len(space["answers"]) == 2


@pytest.mark.parametrize(("folder", "second"), [("results/novels", None), ("results/pysource", "full")])
def test_the_comparing_script_runs_as_it_stands(folder, second, tmp_path, monkeypatch, capsys):
    import matplotlib

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OUT", str(tmp_path / "pair.png"))
    if second:
        monkeypatch.setenv("RESULTS", folder)
        monkeypatch.setenv("SECOND", second)
    matplotlib.use("Agg")
    made = runpy.run_path("docs/examples/compare.py")
    assert made["RESULTS"] == Path(folder) and (tmp_path / "pair.png").stat().st_size > 10_000
    assert f"tova minus {second or 'window4'}, 8 documents" in capsys.readouterr().out
    found, known = made["table"].set_index("cache"), table(Path(folder).name)
    for size, row in found.iterrows():
        assert row["low"] <= row["difference"] <= row["high"] and (row["low"] < row["high"] or size == 4096)
        ours = known[(known["policy"] == "tova") & (known["cache"] == size)].iloc[0]
        theirs = known[known["policy"] == (second or "window4")]
        theirs = theirs[(theirs["cache"] == size) | theirs["cache"].isna()].iloc[0]
        assert row["difference"] == pytest.approx(ours["value"] - theirs["value"], abs=2e-4)
    assert made["OUT"].name == "pair.png" and len(found) == 7

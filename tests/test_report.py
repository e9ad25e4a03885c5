"""The report: one page that is whole, safe, legible and the same wherever it is made; and what it says is what was measured."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, committed
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from msrnn_bench.cli import main as cli
from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _published
from msrnn_bench.report import citing, drawing, escaping, inline, page, readings, readings_states, tables
from msrnn_bench.report.folders import named, read, together
from msrnn_bench.results.cells import Cell, Row, write, write_failure
from msrnn_bench.results.summary import SUMMARY_TYPES
from msrnn_bench.runs.command import command
from msrnn_bench.runs.compose import compose_one

DATASET = "<script>alert(1)</script> & \"quoted\" 'text'"
MODEL = "مرحبا\u202eevil $\\foo$ {x}_%"
LOSSES = {("full", None): 2.0, ("tova", 8): 2.3, ("tova", 16): 2.1, ("window", 8): 3.0}
SETTINGS = {
    "task": "perplexity", "dataset": DATASET, "model": MODEL, "weights": "pretrained", "context": 64, "seed": 0, "bos": False,
    "dtype": "float32", "engine": "scan", "prefill": "stepwise", "positions": "original",
}  # fmt: skip
VOID = {"meta", "br", "img", "link"}


def measure(folder: Path, policy: str, cache: int | None, loss: float, *, documents: int = 3, ident: str = "", **settings) -> str:
    """A finished cell of `documents` documents, 100 tokens each; returns its id."""
    name = ident or f"{policy}{cache or ''}".ljust(16, "0")
    known = {**SETTINGS, **settings}
    evictions = None if cache is None else 64 - cache
    rows = [
        Row(cell=name, policy=policy, cache=cache, document=f"d{n}", bucket_start=0, bucket_end=64, metric="nll",
            total=100 * loss + n, count=100, evictions=evictions, **known) for n in range(documents)
    ]  # fmt: skip
    write(Cell(folder, "perplexity", f"{policy} {cache}", name), rows, manifest(policy, cache))
    return name


def manifest(policy: str, cache: int | None) -> dict:
    config = OmegaConf.to_container(compose_one([f"policy={policy}", f"cache={cache or 512}", "context=64"]), resolve=True)
    settings = {"model": {"gguf": "b" * 64}, "dataset": "d" * 64, "task": {"name": "perplexity"}, "policy": {"settings": {}}}
    return {
        "config": config, "settings": settings, "seconds": 61.5, "finished": "2026-01-02T03:04:05+00:00",
        "dataset": {"name": DATASET, "documents": 3, "characters": 1234, "fingerprint": "f" * 64},
        "model": {"name": MODEL, "class": "LlamaForCausalLM", "parameters": 1_500_000},
        "versions": {"torch": "2.13.0"}, "git": {"commit": "c" * 40, "clean": True},
        "machine": {"system": "Linux", "processor": "AMD", "cores": 2, "threads": 1, "cuda": None},
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Names that mean mischief; window lacks a size, a cell failed, another was begun."""
    made = tmp_path_factory.mktemp("somewhere") / "results"
    for (policy, cache), loss in LOSSES.items():
        measure(made, policy, cache, loss)
    failure = {
        **manifest("h2o", 8),
        "error": "RuntimeError: <b>boom</b>\nand more",
        "row": {**SETTINGS, "policy": "h2o", "cache": 8},
    }
    write_failure(Cell(made, "perplexity", "the h2o cell", "f" * 16), failure)
    (made / "cells" / f"{'e' * 16}.jsonl").write_text('{"key": "0"}\n')
    return made


@pytest.fixture(scope="module")
def made(folder) -> Path:
    page.write(str(folder), None, command)
    return folder / "report.html"


class Page(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.text = ""
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)
        self.close()
        assert self.inside == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len({name for name, _ in attrs}), f"an attribute twice on {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.inside.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if "style" not in self.inside:
            self.text += data
        if any(re.fullmatch("h[1-6]", tag) for tag in self.inside):
            level, said = self.headings[-1]
            self.headings[-1] = level, said + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(made) -> Page:
    return Page(made)


# --- the page


def test_every_id_is_its_own_and_every_reference_leads_to_one(html):
    ids = [attrs["id"] for _, attrs in html.tags if attrs.get("id")]
    assert len(ids) == len(set(ids)) and len(ids) > 40
    found = []
    for _, attrs in html.tags:
        for name, value in attrs.items():
            found += re.findall(r"url\(#([^)]+)\)", value or "")
            if name == "href" and (value or "").startswith("#"):
                found.append(value[1:])
            if name in ("aria-labelledby", "aria-describedby"):
                found += (value or "").split()
    assert len(found) > 40 and set(found) <= set(ids)


def test_nothing_runs_and_nothing_is_fetched(html):
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "foreignobject"} & {tag for tag, _ in html.tags}
    for tag, attrs in html.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            if tag != "a" or name != "href":
                assert not re.search(r"https?:|//|javascript:|@import", value or "") or (value or "").startswith(
                    "data:image/png;base64,"
                )
            if name == "src":
                assert value.startswith("data:image/png;base64,")
    css = re.search(r"<style>(.*?)</style>", html.raw, flags=re.S)[1]
    assert not re.search(r"https?:|url\(|@import|@font-face", css)
    policy = next(attrs["content"] for attrs in html.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script" not in policy


def test_hostile_names_are_text(html, made):
    assert DATASET in html.text and "مرحبا[U+202E]evil $\\foo$ {x}_%" in html.text
    assert "\u202e" not in html.raw and "<b>boom</b> and more" in html.text
    said = (made.parent / "tables/results-01-perplexity-nll.tex").read_text()
    assert r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \& \symbol{34}quoted\symbol{34}" in said
    assert r"\$\textbackslash{}foo\$ \{x\}\_\%" in said and "\u202e" not in said


def test_latex_has_a_cell_for_each_column(made):
    files = sorted((made.parent / "tables").glob("*.tex"))
    assert [file.name for file in files] == ["claims.tex", "results-01-perplexity-nll.tex", "results-02-perplexity-excess.tex"]
    for file in files:
        body = [line for line in file.read_text().splitlines() if not line.startswith("%")]
        bare = re.sub(r"\\[\\{}%&#_$]", "", "\n".join(body))
        assert bare.count("{") == bare.count("}")
        if file.name != "claims.tex":
            columns = len(re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", body[0])[1])
            rows = [line for line in body if line.endswith(r"\\") and "multicolumn" not in line]
            assert rows and all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)


def test_headings_go_down_a_step_at_a_time(html):
    levels = [level for level, _ in html.headings]
    assert levels[0] == 1 and levels.count(1) == 1 and set(levels) == {1, 2, 3}
    assert all(after <= before + 1 for before, after in pairwise(levels))
    names = [text for level, text in html.headings if level == 2]
    assert names == ["The paper's claims", "Open choices", "What was run", "Results: results", "What is missing", "How to cite"]


def test_tables_and_pictures_say_what_they_are(html):
    shapes = [tag for tag, _ in html.tags]
    for tag in ("caption", "thead"):
        assert shapes.count(tag) == shapes.count("table") > 4
    assert all(attrs.get("scope") in ("col", "row", "rowgroup") for attrs in html.all("th"))
    assert html.all("svg") and all(a["role"] == "img" and a["aria-labelledby"] for a in html.all("svg"))
    assert all(len(attrs["alt"]) > 20 for attrs in html.all("img"))
    assert html.all("html")[0]["lang"] == "en" and html.all("header") and html.all("main") and html.all("nav")
    assert len(html.all("figcaption")) == len(html.all("figure")) > 0


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: of the relative luminances."""

    def luminance(color: str) -> float:
        parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_everything_can_be_read_in_light_and_in_dark():
    css = (ROOT / "msrnn_bench/report/page.css").read_text()
    blocks = [dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, flags=re.S)]
    assert len(blocks) == 3 and contrast("#000000", "#ffffff") == pytest.approx(21)  # light, dark, print
    for colors in blocks:
        grounds = [colors["ground"], colors["raised"]]
        pairs = [(colors[ink], ground) for ink in ("text", "muted", "link") for ground in grounds]
        pairs += [(colors[name], colors[f"{name}-ground"]) for name in ("good", "bad", "open", "none")]
        assert min(contrast(*pair) for pair in pairs) >= 4.5
    used = set(re.findall(r"var\(--([\w-]+)\)", css))
    assert used == set(blocks[0]) == set(blocks[1]), "every colour is one of those"
    assert not re.search(r"(?<!-)\b(color|background): (?!var)(?!.*scheme)[#a-z]", re.sub(r":root \{.*?\}", "", css, flags=re.S))
    assert blocks[1]["card"] == "#ffffff", "figures are drawn for white paper"


def test_the_same_results_give_the_same_bytes(folder, made, tmp_path):
    """Another process, another path, another order of hashing."""
    other = tmp_path / "elsewhere" / "results"
    shutil.copytree(folder / "cells", other / "cells")
    code = "import sys; from msrnn_bench.cli.main import main; sys.exit(main(['report', f'results_dir={sys.argv[1]}']))"
    env = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(other)], check=True, env=env, capture_output=True, cwd=tmp_path)
    files = sorted(
        path.relative_to(other) for path in other.rglob("*") if path.suffix in (".html", ".tex") or path.name == "claims.csv"
    )
    assert len(files) == 5
    for file in files:
        assert (other / file).read_bytes() == (folder / file).read_bytes(), file


def test_a_picture_that_is_too_large_is_drawn_smaller(monkeypatch, folder, made, tmp_path):
    assert made.stat().st_size < drawing.ROOM == 3_000_000
    drawn, _ = drawing.draw(read([folder])[0], "x-")

    def size() -> int:
        return sum(len(one.picture.html) for one in drawn)

    whole, kinds = size(), {one.picture.kind for one in drawn}
    monkeypatch.setattr(drawing, "ROOM", whole - 20_000)
    drawing.fit(drawn, size)
    assert kinds == {"svg"} and size() <= whole - 20_000 and "png" in {one.picture.kind for one in drawn}
    assert all("data:image/png" in one.picture.html for one in drawn if one.picture.kind == "png")
    monkeypatch.setattr(drawing, "ROOM", 10_000)
    with pytest.raises(UsageError, match=r"MB, more than 0\.01: report fewer folders"):
        page.write(str(folder), str(tmp_path / "small.html"), command)
    assert list(tmp_path.iterdir()) == [], "and nothing was written"


# --- what it says


def test_what_is_missing_is_named_with_its_command(html):
    for text in ("the h2o cell", "RuntimeError", "cell eeeeeeeeeeeeeeee", "window at k=16", "begun", "failed"):
        assert text in html.text
    commands = re.findall(r"<code>(msrnn-bench run [^<]*)</code>", html.raw.replace("&#39;", "'"))
    assert "msrnn-bench run policy=h2o cache=8 context=64" in commands
    assert (
        "msrnn-bench run -m policy=window cache=16 context=64" in commands
        or "msrnn-bench run policy=window cache=16 context=64" in commands
    )


def test_a_grid_without_its_topline_says_so(tmp_path):
    measure(tmp_path / "one", "tova", 8, 2.0)
    page.write(str(tmp_path / "one"), None, command)
    text = Page(tmp_path / "one/report.html").text
    assert "the topline" in text and "msrnn-bench run policy=full context=64" in text.replace("cache=8 ", "")
    assert "There is no topline to compare with." in text


def test_claims_come_first_and_are_those_of_the_csv(html, made):
    with (made.parent / "claims.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines and html.headings[1] == (2, "The paper's claims")
    for line in lines:
        assert line["sentence"] in html.text and line["verdict"] in html.text
    for verdict in ("reproduced", "not reproduced", "undecided", "not measured"):
        assert f"{sum(line['verdict'] == verdict for line in lines)} {verdict}" in html.text
    unmeasured = [line for line in lines if line["verdict"] == "not measured"]
    assert all(line["command"] and line["command"] in html.text for line in unmeasured) and unmeasured


def test_what_was_run_is_what_the_manifests_say(html):
    for text in ("LlamaForCausalLM, 1.5 million parameters, gguf bbbbbbbbbbbb",
                 "3 documents, 1,234 characters, hash ffffffffffff",
                 "4 finished, 1 failed, 1 begun", "4.1 minutes in all, 2026-01-02", "AMD, Linux, 2 cores, 1 thread a process",
                 "torch 2.13.0", "commit cccccccccccc", "8, 16"):  # fmt: skip
        assert text in html.text


def test_tables_are_the_summary(html, folder):
    (whole,) = read([folder])
    for _, line in whole.summary[whole.summary["value"].notna()].iterrows():
        assert tables.shown(line["value"]) in html.text
        assert f"{tables.shown(line['low'])} to {tables.shown(line['high'])}" in html.text


def test_published_numbers_stand_beside_ours():
    novels = pd.read_csv(ROOT / "results/novels/summary.csv").astype(SUMMARY_TYPES)
    values, excess = tables.make(novels)
    lines = {line.name: line for _, line in tables.rows(excess)}
    printed = _published.read()
    of = printed[(printed["experiment"] == "pg19_ablation_table3") & (printed["policy"] == "TOVA-layer")]
    assert len(of) == 7, "the paper's row"
    for entry, value in zip(lines["TOVA, published"].entries, of.sort_values("state_size")["value"], strict=True):
        assert entry.value == tables.shown(100 * (value / 7.16 - 1), 1) and not entry.interval
    ours = novels[novels["policy"] == "tova"].sort_values("cache")
    for entry, (_, line) in zip(lines["TOVA"].entries, ours.iterrows(), strict=True):
        assert entry.value == tables.shown(100 * line["difference"] / line["topline"], 1) and " to " in entry.interval
    assert next(line.kind for _, line in tables.rows(values)) == "topline" and len(values.sizes) == 7


def test_numbers_are_short_and_never_minus_nothing():
    shown = {
        0.0: "0.000",
        -0.00004: "0.000",
        9.0534: "9.053",
        34.07: "34.07",
        141.93: "141.9",
        4812.27: "4,812",
        2e16: "2.000e+16",
    }
    assert {value: tables.shown(value) for value in shown} == shown and tables.shown(float("nan")) == ""
    assert escaping.latex_number("-0.2 to 1e-3") == "$-$0.2 to 1e-3"


def test_a_reading_is_computed(folder):
    (whole,) = read([folder])
    first, second = readings.read("perplexity", whole.rows, whole.summary)
    values = whole.summary.set_index(["policy", "cache"])["value"]
    assert first == (
        f"At k=8 the lowest perplexity is {values['tova', 8]:.2f} (TOVA) and the highest is {values['window', 8]:.1f} (Window); "
        f"the topline's is {whole.summary.loc[whole.summary['policy'] == 'full', 'value'].iloc[0]:.2f}."
    ) or first.replace(f"{values['window', 8]:.1f}", f"{values['window', 8]:.2f}")
    assert second == "No policy is within 5% of the topline at any size."
    near = whole.summary.assign(difference=whole.summary["difference"].where(whole.summary["cache"] != 16, 0.1))
    assert "from k=16 on TOVA; at no size Window" in readings.read("perplexity", whole.rows, near)[1]


def made_rows(*lines: dict) -> pd.DataFrame:
    plain = {"task": "retention", "policy": "tova", "cache": 8, "status": "ok", "positions": "original", "bucket_start": 0,
             "bucket_end": 64, "subtask": None, "document": "d", "count": 10, "state_bytes": None}  # fmt: skip
    return pd.DataFrame([{**plain, **line} for line in lines])


NONE = pd.DataFrame(columns=list(SUMMARY_TYPES)).astype(SUMMARY_TYPES)


def test_readings_of_what_stays():
    rows = made_rows(
        {"metric": "lifetime", "subtask": "all", "total": 90.0},
        {"metric": "lifetime", "subtask": "class:char/digit", "total": 300.0},
        {"metric": "lifetime", "subtask": "class:char/letter", "total": 50.0},
        {"metric": "lifetime", "subtask": "position", "bucket_end": 1, "total": 640.0},
        {"metric": "lifetime", "subtask": "position", "bucket_start": 1, "bucket_end": 2, "total": 100.0},
        {"metric": "first_alive", "total": 9.0}, {"metric": "recent_share", "subtask": "all:full", "total": 7.5},
        {"metric": "needle_kept", "total": 2.0},
    )  # fmt: skip
    assert readings_states.token_classes(rows, NONE) == [
        "TOVA at k=8 keeps longest, in steps: char/digit 30.00 and char/letter 5.00 (all tokens 9.00)."
    ]
    assert readings_states.first_tokens(rows, NONE) == [
        "Token 0, and tokens 1 to 25 on average, are kept: TOVA at k=8 64.00 steps and 10.00.",
        "Token 0 is alive at the end in this share of documents and layers: TOVA 90%.",
    ]
    assert "TOVA at k=8 75%" in readings_states.retention_map(rows, NONE)[1]
    assert "TOVA at k=8 20%" in readings_states.needle(rows, NONE)[0]


def test_readings_of_reach_and_cost():
    common = {"task": "extrapolation", "metric": "nll"}
    rows = made_rows(
        {**common, "bucket_end": 10_000, "total": 20.0}, {**common, "bucket_start": 10_000, "bucket_end": 70_000, "total": 22.0},
        {**common, "positions": "compressed", "bucket_end": 10_000, "total": 20.0},
        {**common, "positions": "compressed", "bucket_start": 10_000, "bucket_end": 70_000, "total": 20.0},
    )  # fmt: skip
    told = readings_states.extrapolation(rows, NONE)
    assert told[0] == (
        "From 10,000 to 70,000 tokens the running perplexity moves: TOVA at k=8 (compressed positions) by +0.00 and TOVA at k=8 "
        "(original positions) by +0.78."
    )
    assert told[1].startswith("At the end the lowest is 7.39 (TOVA at k=8 (compressed positions)), the highest 8.17")
    lines = [
        {"task": "efficiency", "policy": "tova", "cache": 8, "metric": "state_bytes", "value": 3 * 2**20},
        {"task": "efficiency", "policy": "full", "cache": None, "metric": "state_bytes", "value": 2**30},
        {
            "task": "efficiency",
            "policy": "tova",
            "cache": 8,
            "metric": "decode_tokens_per_second",
            "subtask": "batch=max",
            "value": 12.5,
        },
    ]
    costs = pd.DataFrame(lines, columns=list(SUMMARY_TYPES)).astype(SUMMARY_TYPES)
    assert readings_states.efficiency(NONE, costs) == [
        "The states of one sequence take 3.00 MiB at k=8 (TOVA); with the full cache 1.00 GiB.",
        "Decoding at the largest batch makes 12.50 tokens/s at k=8 (TOVA).",
    ]


def test_readings_of_the_gap_and_of_memory(folder):
    (whole,) = read([folder])
    summary = whole.summary.assign(model="m", dataset="d")
    gap = readings_states.gap(whole.rows, summary)
    at = summary.set_index(["policy", "cache"])
    share = {policy: at.loc[(policy, 8), "difference"] / at.loc[(policy, 8), "topline"] for policy in ("tova", "window")}
    assert gap == [f"m on d, k=8: from {share['tova']:.1%} above the topline (TOVA) to {share['window']:.1%} (Window)."]
    held = whole.rows.assign(state_bytes=whole.rows["cache"].fillna(64).astype("Int64") * 1024)
    near = summary.assign(difference=summary["difference"].where(summary["cache"] != 16, 0.01))
    assert readings_states.quality_memory(held, near) == [
        "The full model's states take 64.00 KiB.", "The fewest bytes within 5% of the topline are 16.00 KiB: TOVA at k=16.",
    ]  # fmt: skip
    assert readings_states.gap(whole.rows, near)[1] == "Less than 0.4 above it, at the smallest size each: TOVA at k=16."


# --- folders


@pytest.mark.parametrize("given", ["{}/none", "{}/none,{}/none2", "{}"])
def test_no_results_is_one_line(given, tmp_path, capsys):
    assert cli.main(["report", f"results_dir={given.format(tmp_path, tmp_path)}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has no results" in said and "msrnn-bench sweep" in said


def test_a_folder_of_folders_names_them(tmp_path, capsys):
    measure(tmp_path / "inner", "tova", 8, 2.0)
    assert cli.main(["report", f"results_dir={tmp_path}"]) == 2
    assert f"inner inside it have (results_dir={tmp_path}/inner" in capsys.readouterr().err
    assert cli.main(["report", f"results_dir={tmp_path}/inner", f"out={tmp_path}"]) == 2
    assert "is no HTML file: write out=report.html" in capsys.readouterr().err


def test_how_folders_are_written(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert named(f"{tmp_path}/a,b") == [tmp_path / "a,b"]
    assert named("x,y") == named("[x, y]") == named("x,y,x") == [Path("x"), Path("y")]
    with pytest.raises(UsageError, match="names no folder"):
        named("[]")


def test_folders_stand_side_by_side_and_are_not_pooled(tmp_path):
    one, two = tmp_path / "a/results", tmp_path / "b/results"
    for folder, loss in ((one, 2.3), (two, 2.4)):
        measure(folder, "full", None, 2.0)
        measure(folder, "tova", 8, loss)
    measure(two, "tova", 16, 2.2)
    folders = read([one, two])
    assert [folder.name for folder in folders] == ["results (1)", "results (2)"]
    assert [len(folder.summary) for folder in folders] == [2, 3]
    whole = together(folders)
    assert len(whole.summary) == 3 and whole.twice == ["tova8".ljust(16, "0")], "the full model's rows are alike"
    first = folders[0].summary.query("policy == 'tova'")["value"].iloc[0]
    assert whole.summary.query("policy == 'tova' and cache == 8")["value"].tolist() == [first], "the first folder's count"
    page.write(f"{one},{two}", None, command)
    told = Page(one / "report.html").text
    assert "Results: results (1)" in told and "Results: results (2)" in told and "counted once" in told
    assert not (two / "report.html").exists()


def test_one_name_for_two_texts_is_told_apart_across_folders(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    measure(one, "tova", 8, 2.3, ident="a" * 16)
    measure(two, "tova", 8, 2.4, ident="b" * 16)
    path = two / "cells" / f"{'b' * 16}.json"
    held = json.loads(path.read_text())
    held["settings"]["dataset"] = "0" * 64
    path.write_text(json.dumps(held))
    assert set(together(read([one, two])).rows["dataset"]) == {f"{DATASET} (dddd)", f"{DATASET} (0000)"}


def test_tables_alone_are_enough(folder, tmp_path):
    (whole,) = read([folder])
    whole.rows.to_csv(tmp_path / "tidy.csv", index=False)
    (kept,) = read([tmp_path])
    assert kept.manifests == {} and len(kept.rows) == len(whole.rows)
    measured = whole.summary[whole.summary["value"].notna()].reset_index(drop=True)
    assert kept.summary["value"].tolist() == measured["value"].tolist()


def test_only_its_own_old_tables_are_removed(tmp_path):
    measure(tmp_path / "one", "tova", 8, 2.3)
    old = tmp_path / "one/tables"
    old.mkdir()
    (old / "mine.tex").write_text("mine")
    (old / "one-09-old.tex").write_text(page.latex.MARK + "\nold")
    page.write(str(tmp_path / "one"), None, command)
    assert (old / "mine.tex").is_file() and not (old / "one-09-old.tex").exists()


# --- parts


def test_two_drawings_of_one_figure_share_no_id():
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], marker="o")
    axes.fill_between([1, 2], [0, 1], hatch="//")
    axes.imshow([[0.0, 1.0]], extent=(1, 2, 1, 2))
    one, two = (inline.svg(figure, prefix, "A title & more", "It says <so>.").html for prefix in ("a-", "b-"))
    ids = {prefix: re.findall(r'\bid="([^"]+)"', text) for prefix, text in (("a-", one), ("b-", two))}
    assert all(name.startswith(prefix) for prefix, names in ids.items() for name in names) and len(ids["a-"]) > 10
    for text, prefix in ((one, "a-"), (two, "b-")):
        assert re.findall(r"url\(#", text) and set(re.findall(r"url\(#(..)", text)) == {prefix}
        assert set(re.findall(r'href="#(..)', text)) == {prefix}
        assert (
            "<style" not in text
            and "xlink" not in text
            and "<!--" not in text
            and "xmlns" not in text
            and "<metadata" not in text
        )
        assert "A title &amp; more" in text and "It says &lt;so&gt;." in text
    assert re.sub(r"\ba-", "b-", one) == two


def test_any_figure_is_found(monkeypatch, folder):
    """One that no task claims is drawn where it can be; one that a task claims, and lacks its table, is said to be missing."""
    from msrnn_bench import figures

    (whole,) = read([folder])
    drawn, undrawn = drawing.draw(whole, "x-")
    assert "perplexity" in [one.name for one in drawn] and not undrawn
    assert not {"stories", "depth", "judged", "score"} & {one.name for one in drawn}
    monkeypatch.setattr(figures, "SUITED", {**figures.SUITED, "perplexity": ["perplexity", "depth"]})
    _, undrawn = drawing.draw(whole, "x-")
    assert [one.name for one in undrawn] == ["depth"] and "run" in undrawn[0].reason


def test_the_citation_is_the_file():
    held = citing.read()
    assert held.works[1][1] == "https://arxiv.org/abs/2401.06104" and "Oren" in held.works[1][0]
    assert "@inproceedings{oren2024," in held.bibtex and "year = {2024}" in held.bibtex
    text = (ROOT / "pyproject.toml").read_text()
    assert '"CITATION.cff" = "msrnn_bench/CITATION.cff"' in text, "and ships"


def test_commands_measure_what_was_measured():
    """The command of a recorded cell composes to its configuration: one cell of each task, prefill and policy at least."""
    seen: set[tuple[str, str]] = set()
    for path in committed():
        held = json.loads(path.read_text())
        keys = {(held["task"], held["config"]["prefill"]), ("policy", held["settings"]["policy"]["name"])}
        if keys <= seen:
            continue
        seen |= keys
        said = shlex.split(command(held["config"], {}))
        again = OmegaConf.to_container(compose_one(said[2:]), resolve=True)
        for name, value in held["config"].items():
            if isinstance(value, dict):
                shared = {k: v for k, v in value.items() if k in again[name] and not k.startswith("_")}
                assert shared == {k: again[name][k] for k in shared}, f"{path}: {name}"
            elif name not in ("workers", "force"):
                assert again[name] == value, f"{path}: {name}"
    assert len(seen) > 15

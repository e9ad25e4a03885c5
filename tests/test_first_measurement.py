"""docs/first-measurement.md is run as it stands, against a hub on loopback with small repositories of the same names."""

import json
import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT
from hub import COMMIT_FILE, Hub, Repository

PAGE = (ROOT / "docs/first-measurement.md").read_text()
PREPARES = ("make ", "source ")  # what a reader of the page has behind them, and so has who runs this test
# The lines on standard input, their words as the console script gets them: importing torch once saves half the time.
IN_ONE_PROCESS = """
import shlex, sys
from msrnn_bench.cli.main import main
sys.exit(max(main(shlex.split(line)[1:]) for line in sys.stdin))
"""
MODELS = ("pythia-70m", "pythia-410m")
ROWS = ["", " = An article = \n", "", *(f" Line {i} of it : " + "a word , " * 60 + "\n" for i in range(8))]


def commands() -> list[str]:
    """Every line of every block that a reader would paste into a shell."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()]
    return [line for line in lines if not line.startswith(PREPARES)]


def make_models(folder: Path) -> None:
    """Pythia's architecture and positions, tiny; one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=257, max_position_embeddings=2048, **small))
    for name in MODELS:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def make_wikitext(folder: Path) -> None:
    """One row a line, many of them empty; a card that says which files are which configuration's."""
    names = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    card = "".join(f"- config_name: {name}\n  data_files: [{{split: test, path: {name}/test-*}}]\n" for name in names)
    for name in names:
        (folder / name).mkdir(parents=True)
        rows = pd.DataFrame({"text": ROWS if "-2-" in name else ["another text"]})
        rows.to_parquet(folder / name / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")


def make_pg19(folder: Path) -> str:
    """Books, at the commit that the configuration pins; returns it."""
    commit = re.findall(r"^revision: (\S+)", (ROOT / "conf/dataset/pg19.yaml").read_text(), flags=re.M)[0]
    books = {"short_book_title": ["One", "Two"], "text": [f"Book {i}\r\n" + "and so it went on " * 150 for i in range(2)]}
    (folder / "data").mkdir(parents=True)
    pd.DataFrame(books).to_parquet(folder / "data/test-00000-of-00001.parquet")
    (folder / COMMIT_FILE).write_text(commit)
    return commit


def environment(here: Path, hub: Hub) -> dict[str, str]:
    """Nothing of the user's caches, accounts or proxies."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(here / "hf"), "MSRNN_BENCH_CACHE": str(here / "cache")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, **own, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}


def run(lines: list[str], **options: Any) -> None:
    """Lines of one program, one after the other as they stand."""
    ours = lines[0].startswith("msrnn-bench ")
    command = [sys.executable, "-c", IN_ONE_PROCESS] if ours else ["bash", "-e"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{lines}\n{done.stdout}{done.stderr}"


def manifests(folder: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in Path(folder, "cells").glob("[!.]*.json")]


def test_the_pages_commands(tmp_path, monkeypatch):
    repositories = tmp_path / "repositories"
    make_models(repositories / "models/EleutherAI")
    make_wikitext(repositories / "datasets/Salesforce/wikitext")
    commits = {"pg19": make_pg19(repositories / "datasets/emozilla/pg19-test")}
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with Hub(repositories) as hub:
        for _, lines in groupby(commands(), key=lambda line: line.split()[0]):
            hub.requests.clear()
            run(list(lines), env=environment(tmp_path, hub))
        asked = [request for request in hub.requests if "EleutherAI" in request or "Salesforce" in request]
        assert not asked, "the page's last command is for machines without a hub"
    commits["wikitext2"] = Repository(repositories / "datasets/Salesforce/wikitext", "").commit()
    commits["pythia_410m"] = Repository(repositories / "models/EleutherAI/pythia-410m", "").commit()

    summary = pd.read_csv("results/summary.csv")
    assert summary["status"].eq("ok").all() and summary["context"].eq(2048).all()
    for dataset, lines in summary.groupby("dataset"):
        found = set(zip(lines["policy"], lines["cache"].fillna(0), lines["evictions"], strict=True))
        bounded = {(policy, k, 2048 - k) for policy in ("window4", "tova") for k in (256, 1024)}
        assert found == {("full", 0, 0), *bounded} and len(lines) == 5, dataset
        assert lines[["low", "high", "difference", "difference_low", "difference_high"]].notna().all(axis=None)
    documents = dict(zip(summary["dataset"], summary["documents"], strict=True))
    assert documents == {"pg19": 2, "wikitext2": len("\n\n".join(ROWS)) // 2048}
    assert all(Path(f"results/perplexity.{kind}").stat().st_size > 1_000 for kind in ("png", "pdf", "svg"))
    for manifest in manifests("results"):
        assert manifest["model"]["commit"] == manifest["settings"]["model"]["commit"] == commits["pythia_410m"]
        assert manifest["dataset"]["commit"] == commits[manifest["dataset"]["name"]]
        assert manifest["config"]["model"]["revision"] == "main"

    (trial,) = manifests("trial")
    assert trial["model"]["repo"] == "EleutherAI/pythia-70m" and trial["dataset"]["commit"] == commits["wikitext2"]

    copied = pd.read_csv("offline/summary.csv")
    pd.testing.assert_series_equal(
        copied["value"], summary.loc[summary["dataset"] == "wikitext2", "value"], check_index=False, rtol=1e-6
    )
    online = {m["dataset"]["fingerprint"] for m in manifests("results") if m["dataset"]["name"] == "wikitext2"}
    assert {m["dataset"]["fingerprint"] for m in manifests("offline")} == online


def test_wikitext2_is_one_text(tmp_path, monkeypatch):
    """Rows joined as others do, empty ones too; chunks as documents are the chunks of the one document."""
    import datasets
    from omegaconf import OmegaConf

    from msrnn_bench.datasets.chunks import chunks
    from msrnn_bench.datasets.texts import Hub as HubText

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_wikitext(tmp_path / "wikitext")
    settings = dict(OmegaConf.load(ROOT / "conf/dataset/wikitext2.yaml"))
    settings = {**settings, "repo": str(tmp_path / "wikitext")}
    settings.pop("_target_")
    packed, whole = HubText(**settings), HubText(**{**settings, "pack": False})
    (text,) = packed.documents()
    assert text.text == "\n\n".join(ROWS)

    def tokenizer(text, **_):
        return {"input_ids": list(text.encode())}

    tokenizer.bos_token_id = None
    cut = [chunks(dataset, tokenizer, context=2048) for dataset in (packed, whole)]
    assert [c.ids for c in cut[0]] == [c.ids for c in cut[1]] and len({c.document for c in cut[0]}) == len(cut[0]) > 1
    assert {c.document for c in cut[1]} == {"test"}
    by_row = HubText(**{**settings, "join": None}).documents()
    assert [row.text for row in by_row] == [row for row in ROWS if row.strip()]


def test_what_the_page_says_of_defaults():
    config = (ROOT / "conf/config.yaml").read_text()
    assert re.search(r"^documents: 8\b", config, flags=re.M) and re.search(r"^tokens: 4096\b", config, flags=re.M)
    assert "the jackknife with Student's t" in PAGE


@pytest.mark.parametrize("link", re.findall(r"\]\(#([a-z-]+)\)", PAGE))
def test_links_within_the_page(link):
    assert link in [heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", PAGE, flags=re.M)]

"""Two things of one name are told apart in table, summary and figure, by the shortest setting or hash that does."""

import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_results import BASE, FULL

from msrnn_bench.figures.perplexity import plot
from msrnn_bench.results.cells import Cell, cell_id, write
from msrnn_bench.results.summary import collect
from msrnn_bench.results.tables import markdown


def put(
    folder: Path, row, *, sha="a" * 64, documents=1, dataset=None, model=None, task=None, policy=None, numerics=1, versions=None
):
    """A finished cell whose manifest says what it was measured on."""
    settings = {
        "numerics": numerics, "task": {"name": row.task, **(task or {})},
        "model": {"gguf": "1", "weights": "pretrained", **(model or {})},
        "policy": {"name": row.policy, "settings": {}, **(policy or {})}, "dataset": sha + str(documents) + str(dataset),
        "cache": row.cache,
    }  # fmt: skip
    identifier = cell_id(settings)
    cell = Cell(folder, row.task, "x", identifier)
    listed = [{"sha256": f"{n}{sha}"[:64]} for n in range(documents)]
    manifest = {
        "settings": settings, "config": {"dataset": dataset or {}}, "dataset": {"listed": listed}, "versions": versions or {},
    }  # fmt: skip
    rows = [replace(row, cell=identifier, document=f"{sha[:1]}{n}") for n in range(documents)]
    write(cell, rows, manifest)
    return identifier


def shown(folder: Path, column: str) -> set[str]:
    _, summary = collect(folder)
    plot(summary)
    return set(summary[column])


def test_two_texts_of_one_name_have_each_their_topline(tmp_path):
    for sha, total in (("ab" * 32, 10.0), ("cd" * 32, 20.0)):
        put(tmp_path, replace(FULL, total=total), sha=sha, documents=2)
        put(tmp_path, replace(BASE, total=total + 5), sha=sha, documents=2)
    rows, summary = collect(tmp_path)
    first, second = sorted(set(summary["dataset"]))
    assert first.startswith(f"{BASE.dataset} (") and len(first) - len(BASE.dataset) == 7
    for name, lines in summary.groupby("dataset"):
        assert set(lines["policy"]) == {"full", "tova"} and lines["topline"].nunique() == 1, name
    assert markdown(summary).count("| tova |") == 2 and len(plot(summary).axes) == 2


def test_more_of_the_same_text_is_the_same_text(tmp_path):
    put(tmp_path, FULL, documents=4)
    put(tmp_path, BASE, documents=2)
    assert shown(tmp_path, "dataset") == {BASE.dataset}


def test_the_same_text_read_from_another_place(tmp_path):
    put(tmp_path, FULL)
    put(tmp_path, BASE, dataset={"skip": 100})
    assert shown(tmp_path, "dataset") == {f"{BASE.dataset} (from its beginning)", f"{BASE.dataset} (skip 100)"}


def test_two_models_of_one_name(tmp_path):
    put(tmp_path, BASE, model={"gguf": "1"})
    put(tmp_path, BASE, model={"gguf": "2"})
    assert len(shown(tmp_path, "model")) == 2
    put(tmp_path / "hub", BASE, model={"commit": "123456789" + "0" * 31})
    put(tmp_path / "hub", BASE, model={"commit": "123467890" + "0" * 31})
    assert shown(tmp_path / "hub", "model") == {f"{BASE.model} (12345)", f"{BASE.model} (12346)"}


def test_swept_knobs_and_editions_of_ones_own_policy(tmp_path):
    mine = replace(BASE, policy="loudest")
    for fade in (0.1, 0.5, 0.9):
        put(tmp_path, mine, policy={"settings": {"fade": fade, "recent": 8}, "source": "1" * 64})
    assert shown(tmp_path, "policy") == {"loudest (fade 0.1)", "loudest (fade 0.5)", "loudest (fade 0.9)"}
    for source in ("ab" * 32, "ac" * 32):
        put(tmp_path / "edited", mine, policy={"source": source})
    assert {name.partition("(")[2][:6] for name in shown(tmp_path / "edited", "policy")} == {"source"}


def test_another_prompt_is_another_line(tmp_path):
    story = replace(BASE, task="squality", metric="rouge1", dataset="squality")
    for prompt in ("short one", "a prompt that is longer than anybody would want to read in a table"):
        put(tmp_path, story, task={"prompt": prompt, "buckets": [1]})
    _, summary = collect(tmp_path)
    assert summary["variant"].nunique() == 2 and summary["variant"].str.startswith("prompt ").all()
    assert all(len(text) < 20 for text in summary["variant"])


def test_how_rows_are_cut_is_no_variant(tmp_path):
    put(tmp_path, FULL, task={"buckets": [1]})
    put(tmp_path, BASE, task={"buckets": [1, 2], "agreement": True})
    _, summary = collect(tmp_path)
    assert summary["variant"].isna().all() and summary["topline"].notna().all()


def test_numerics_part_and_versions_are_said(tmp_path, caplog):
    put(tmp_path, FULL, numerics=1, versions={"transformers": "5.23.0"})
    put(tmp_path, BASE, numerics=2, versions={"transformers": "5.24.0"})
    with caplog.at_level(logging.WARNING):
        _, summary = collect(tmp_path)
    assert set(summary["variant"]) == {"numerics 1", "numerics 2"}
    assert summary.loc[summary["policy"] == "tova", "topline"].isna().all(), "another numerics' full model is no topline"
    assert "different versions of transformers stand side by side: 5.23.0: " in caplog.text


@pytest.mark.parametrize("change", [{"memory": 0.5}, {"seed": 3}, {"first": 2}])
def test_the_table_shows_both_of_two_lines_at_one_size(tmp_path, change):
    put(tmp_path, replace(BASE, total=10.0))
    put(tmp_path, replace(BASE, total=12.0, **change), policy=change)
    text = markdown(collect(tmp_path)[1])
    rows = [line for line in text.splitlines() if line.startswith("| tova")]
    (key,) = change
    assert len(rows) == 2 and all(f"({key} " in row for row in rows)


def test_committed_results_need_no_telling_apart():
    from conftest import ROOT

    from msrnn_bench.results.reading import read_cells

    for folder in sorted((ROOT / "results").glob("*/summary.csv")):
        rows = read_cells(folder.parent).rows
        assert rows["variant"].dropna().eq("on cpu").all(), folder  # of what is timed, the device
        names = pd.concat([rows[column] for column in ("dataset", "model", "policy")]).str.removesuffix(" (twin)")
        assert not names.str.contains(" (", regex=False).any(), folder

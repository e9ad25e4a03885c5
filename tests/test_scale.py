"""Folders of many cells: read, summed and written all at once, and the numbers are those of each cell by itself."""

import csv
import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_results import BASE, FULL, put

from benchmarks import folders
from msrnn_bench.cli.main import main
from msrnn_bench.results import intervals, reading
from msrnn_bench.results.cells import RENAMED, read_manifest
from msrnn_bench.results.reading import read_cells
from msrnn_bench.results.spreadsheet import harmless
from msrnn_bench.results.summary import collect, tables
from msrnn_bench.results.tidy import as_csv

COMMITTED = sorted(path.parent for path in (ROOT / "results").glob("*/summary.csv") if path.with_name("cells").is_dir())


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_tables_come_out_to_the_byte(folder):
    rows, summary = tables(folder)
    assert as_csv(rows) == (folder / "tidy.csv").read_bytes()
    assert as_csv(rows).decode() == rows.to_csv(index=False, lineterminator="\n")
    text = summary.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    assert text == (folder / "summary.csv").read_text()


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_a_line_is_that_of_its_cell_alone(folder):
    """Values and intervals of all cells at once against plain loops over the rows of one file after the other."""
    _, summary = tables(folder)
    of = {key: line for key, line in summary.assign(length=summary["length"].astype("str")).groupby(["cell", "metric"])}
    for path in sorted((folder / "cells").glob("[!.]*.csv"))[:12]:
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
        for metric in {row["metric"] for row in rows}:
            for _, line in of[path.stem, RENAMED.get(metric, metric)].iterrows():
                wanted = ("" if pd.isna(line["subtask"]) else line["subtask"], "" if line["length"] == "<NA>" else line["length"])
                part = [r for r in rows if r["metric"] == metric and (r.get("subtask", ""), r.get("length", "")) == wanted]
                sums = {row["document"]: [0.0, 0] for row in part}
                for row in part:
                    sums[row["document"]][0] += float(row["total"])
                    sums[row["document"]][1] += int(row["count"])
                if not sums:
                    continue
                ours = np.array([sums[name] for name in sorted(sums)], dtype="float64")
                mean = ours[:, 0].sum() / ours[:, 1].sum()
                assert line["value"] == pytest.approx(math.exp(mean) if metric.startswith("nll") else mean, rel=1e-12)
                assert (line["documents"], line["count"]) == (len(ours), ours[:, 1].sum())
                alone = intervals.interval(line["metric"], ours)
                assert [line["low"], line["high"]] == pytest.approx(alone[:2] if alone else [math.nan] * 2, rel=1e-9, nan_ok=True)


def test_a_folder_comes_out_whatever_the_order_of_its_cells(tmp_path, monkeypatch):
    folders.make(tmp_path, 60, 3)
    rows, summary = collect(tmp_path)
    assert (rows["cell"].nunique(), len(rows), len(summary)) == (60, 60 * 30, 60)
    assert summary["topline"].notna().all() and summary["variant"].isna().all()
    before = [(tmp_path / f"{name}.csv").read_bytes() for name in ("tidy", "summary")]
    shuffled = lambda paths: random.Random(1).sample(list(paths), len(list(paths)))  # noqa: E731
    monkeypatch.setattr(reading, "sorted", lambda paths: shuffled(sorted(paths)), raising=False)
    collect(tmp_path)
    assert [(tmp_path / f"{name}.csv").read_bytes() for name in ("tidy", "summary")] == before


ODD = [
    "plain",
    'a "quote"',
    "a, comma",
    "two\nlines",
    "two\r\nlines",
    "=1+1",
    "é ü 漢",
    "'",
    " spaces ",
    "NA",
    "nan",
    "x\\n",
    "#",
]


def test_text_that_csv_has_to_quote_stands_beside_text_that_it_has_not(tmp_path):
    for n, name in enumerate(ODD):
        put(tmp_path, f"one {n}", [replace(BASE, document=name), replace(BASE, document="b", subtask=name, total=1 / 3)])
        put(tmp_path, f"two {n}", [replace(FULL, dataset=name, document=name)])
    rows, _ = collect(tmp_path)
    assert Counter(rows["document"]) == {**dict.fromkeys(ODD, 2), "b": len(ODD)}
    assert set(rows["subtask"].dropna()) == set(ODD) and set(rows["dataset"]) == {*ODD, BASE.dataset}
    with (tmp_path / "tidy.csv").open(newline="", encoding="utf-8") as file:
        again = list(csv.DictReader(file))
    assert [row["document"] for row in again] == harmless(rows)["document"].tolist()
    assert (tmp_path / "tidy.csv").read_bytes() == harmless(rows).to_csv(index=False, lineterminator="\n").encode()


def older(rows: Path) -> Path:
    """A file whose manifest does not hold its hash, as before there was one: what is changed in it must be seen."""
    manifest = json.loads(rows.with_suffix(".json").read_text())
    del manifest["rows_sha256"]
    rows.with_suffix(".json").write_text(json.dumps(manifest))
    return rows


@pytest.mark.parametrize(
    "odd", [lambda line: line + ",", lambda line: line.rpartition(",")[0], lambda line: "", lambda line: '"' + line]
)
def test_the_one_file_of_many_that_does_not_fit_is_named(tmp_path, odd):
    folders.make(tmp_path, 40, 2)
    bad = older(sorted((tmp_path / "cells").glob("[!.]*.csv"))[17])
    lines = bad.read_text().splitlines()
    lines[9] = odd(lines[9])
    bad.write_text("\n".join(lines) + "\n")
    with pytest.raises(reading.UsageError, match=bad.name):
        read_cells(tmp_path)


@pytest.mark.parametrize(
    "column, text",
    [
        ("seed", "1"),
        ("total", "x"),
        ("count", "-1"),
        ("count", "3.5"),
        ("peak_bytes", "9" * 30),
        ("document", ""),
        ("status", ""),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_its_file(tmp_path, column, text):
    folders.make(tmp_path, 40, 2)
    bad = older(sorted((tmp_path / "cells").glob("[!.]*.csv"))[17])
    with bad.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[11][column] = text
    with bad.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    said = "not all under the same settings" if column == "seed" else f"{column} = {repr(text) if text else 'nothing'}"
    with pytest.raises(reading.UsageError, match=f"{bad.name}: .*{said}"):
        read_cells(tmp_path)


def test_plot_reads_a_folder_once_and_writes_figures_alone(tmp_path, monkeypatch, capsys):
    folders.make(tmp_path, 200, 2)
    reads = Counter()
    monkeypatch.setattr(reading, "read_manifest", lambda path: reads.update([path]) or read_manifest(path))
    assert main(["plot", f"results_dir={tmp_path}"]) == 0
    assert set(reads.values()) == {1} and len(reads) == 202
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "perplexity.pdf", "perplexity.png", "perplexity.svg"]


def test_the_made_up_cells_are_as_the_package_writes_them(tmp_path):
    folders.make(tmp_path / "made", 2, 1)
    put(tmp_path / "real", "tova", [BASE])
    made, real = (next((tmp_path / kind / "cells").glob("[!.0]*.csv")).read_text() for kind in ("made", "real"))
    assert made.splitlines()[0] == real.splitlines()[0] and len(made.splitlines()) == 1 + len(folders.EDGES) - 1
    committed = json.loads(next((ROOT / "results/novels/cells").glob("*.json")).read_text())
    manifest = next(path for path in (tmp_path / "made/cells").glob("[!.0]*.json"))
    assert set(committed) - set(json.loads(manifest.read_text())) == set()


@pytest.mark.slow
@pytest.mark.parametrize("cells, documents", folders.SHAPES)
def test_ten_thousand_cells(cells, documents, tmp_path):
    """Seconds of the processor, for others may be at work on it."""
    folders.make(tmp_path, cells, documents)
    used = {command: folders.took(command, tmp_path) for command in folders.COMMANDS}
    assert used["collect"].cpu < 20 and used["status"].cpu < 3 and used["plot"].cpu < 10, used
    assert len(pd.read_csv(tmp_path / "summary.csv")) == cells + cells // 100
    assert sum(1 for _ in (tmp_path / "tidy.csv").open()) == 1 + cells * documents * (len(folders.EDGES) - 1)
    assert all((Path(tmp_path) / f"perplexity.{kind}").stat().st_size > 10_000 for kind in ("png", "pdf", "svg"))

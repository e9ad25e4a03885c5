"""Rows to disk and back, what a kill leaves, and the arithmetic of the summary against numbers worked out by hand."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.results.cells import (
    COLUMNS,
    SETTINGS,
    Cell,
    Row,
    cell_id,
    check_writable,
    finished,
    write,
    write_failure,
)
from msrnn_bench.results.reading import read_cells
from msrnn_bench.results.summary import SUMMARY_TYPES, collect, summarise

BASE = Row(
    cell="c", task="perplexity", dataset="texts", model="tiny", weights="pretrained", policy="tova", memory=0.0,
    first=0, recent=0, per="layer", cache=8, context=32, seed=0, bos=True, dtype="float32", engine="scan",
    prefill="stepwise", positions="original", document="a", bucket_start=0, bucket_end=32, metric="nll",
    total=10.0, count=31, evictions=24, first_eviction=8, max_states=8, seconds=0.5, tokens_per_second=64.0,
    peak_bytes=1, state_bytes=2,
)  # fmt: skip
FULL = replace(BASE, policy="full", memory=None, first=None, recent=None, per=None, cache=None, evictions=0, first_eviction=None)


def put(folder: Path, name: str, rows: list[Row]) -> Cell:
    cell = Cell(folder, "perplexity", name, cell_id({"name": name}))
    write(cell, [replace(row, cell=cell.id) for row in rows], {"config": {"cache": 8}})
    return cell


def older(cell: Cell) -> None:
    """As before manifests held the hash of their rows."""
    manifest = json.loads(cell.manifest.read_text())
    del manifest["rows_sha256"]
    cell.manifest.write_text(json.dumps(manifest))


def sums(template: Row, **documents: tuple[float, int]) -> list[Row]:
    return [replace(template, document=name, total=total, count=count) for name, (total, count) in documents.items()]


def line(summary: pd.DataFrame, policy: str) -> pd.Series:
    (only,) = [row for _, row in summary.iterrows() if row["policy"] == policy]
    return only


# --- rows, cells, files


def test_cell_id_stands_for_the_settings_and_nothing_else():
    one = cell_id({"a": 1, "b": {"c": [1.0, "x", None], "d": True}})
    assert one == cell_id({"b": {"d": True, "c": (1, "x", None)}, "a": 1.0})
    assert len(one) == 16 and int(one, 16) >= 0
    assert len({one, cell_id({}), cell_id({"a": 1}), cell_id({"a": "1"}), cell_id({"a": True}), cell_id({"a": 2})}) == 6
    with pytest.raises(ValueError):
        cell_id({"a": math.nan})


def test_row_refuses_a_number_that_was_not_measured():
    for total, count in ((None, 3), (math.nan, 3), (math.inf, 3), (1.0, 0)):
        with pytest.raises(ValueError, match="status"):
            replace(BASE, total=total, count=count)
    assert replace(BASE, total=None, count=0, status="too_short").total is None


def test_rows_survive_the_disk_exactly(tmp_path: Path):
    odd = replace(FULL, document='NA, "null"\n01', total=0.1 + 0.2, seconds=None)
    missing = replace(FULL, document="b", total=None, count=0, status="too_short")
    numpy = replace(FULL, document="c", total=np.float64(1 / 3))
    cell = put(tmp_path, "one", [odd, missing, numpy])
    rows, failures = read_cells(tmp_path)
    assert failures == [] and tuple(rows.columns) == (*COLUMNS, "variant") and len(rows) == 3
    for found, row in zip(rows.to_dict("records"), [odd, missing, numpy], strict=True):
        for column, value in found.items():
            wanted = cell.id if column == "cell" else getattr(row, column, None)  # `variant` is no field of a row
            assert pd.isna(value) if wanted is None else value == wanted, column
    assert "nan" not in cell.csv.read_text() and "None" not in cell.csv.read_text()
    assert json.loads(cell.manifest.read_text())["status"] == "ok"


def test_finished_needs_both_files_and_a_manifest_that_says_ok(tmp_path: Path):
    cell = put(tmp_path, "one", [BASE])
    assert finished(cell)
    manifest, rows = cell.manifest.read_text(), cell.csv.read_text()
    cell.csv.unlink()
    assert not finished(cell) and read_cells(tmp_path).rows.empty
    cell.csv.write_text(rows)
    for broken in ("", manifest[: len(manifest) // 2], "[]", "null"):
        cell.manifest.write_text(broken)
        assert not finished(cell) and read_cells(tmp_path).rows.empty
    cell.manifest.unlink()  # killed between the two files
    assert not finished(cell) and read_cells(tmp_path).rows.empty
    put(tmp_path, "one", [BASE])
    assert finished(cell) and len(read_cells(tmp_path).rows) == 1


def test_failure_has_a_manifest_only_and_a_later_success_takes_its_place(tmp_path: Path):
    cell = put(tmp_path, "one", [BASE])
    write_failure(cell, {"error": "out of memory"})
    assert not finished(cell) and not cell.csv.exists()
    rows, failures = read_cells(tmp_path)
    assert rows.empty and failures[0]["error"] == "out of memory" and failures[0]["cell"] == cell.id
    put(tmp_path, "one", [BASE])
    assert finished(cell) and read_cells(tmp_path).failures == []


def test_write_refuses_no_rows_and_rows_of_another_cell(tmp_path: Path):
    cell = Cell(tmp_path, "perplexity", "x", "0" * 16)
    for rows in ([], [BASE], [replace(BASE, cell=cell.id), replace(BASE, cell=cell.id, seed=1)]):
        with pytest.raises(ValueError, match="rows of its own"):
            write(cell, rows, {})
    assert not tmp_path.joinpath("cells").exists()


def test_a_kill_in_the_middle_of_writing_leaves_nothing_that_counts(tmp_path: Path):
    cell = put(tmp_path, "one", [BASE])
    before = cell.csv.read_text()
    code = (
        "import os, signal, sys; from pathlib import Path; from msrnn_bench.results import files\n"
        "files.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomically(Path(sys.argv[1]), 'half')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", code, str(cell.csv)], env=environment)
    assert killed.returncode < 0
    assert len(list(cell.csv.parent.iterdir())) == 3  # the leftover
    assert cell.csv.read_text() == before and len(read_cells(tmp_path).rows) == 1
    put(tmp_path, "one", [BASE])
    assert sorted(path.name for path in cell.csv.parent.iterdir()) == sorted([cell.csv.name, cell.manifest.name])


def test_unwritable_results_folder_is_the_machines_fault(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for attempt in (lambda: check_writable(blocked), lambda: put(blocked, "one", [BASE])):
        with pytest.raises(MachineError, match="results_dir") as error:
            attempt()
        assert "\n" not in str(error.value)
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new" / "cells").iterdir()) == []


@pytest.mark.parametrize(
    "old, new",
    [
        ("bos", "boss"),
        (",31,", ",many,"),
        (",31,", ",-1,"),
        (",31,", ","),
        (",True,", ",maybe,"),
        (",pretrained,", ",,"),
        (",pretrained,", ",trained,"),
        ("ok\n", 'ok"\n"'),
    ],
)
def test_a_csv_that_does_not_fit_is_named(tmp_path: Path, old: str, new: str):
    put(tmp_path, "good", [BASE])
    bad = put(tmp_path, "bad", [BASE])
    text = bad.csv.read_text()
    assert old in text
    older(bad)
    bad.csv.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=bad.csv.name) as error:
        collect(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "tidy.csv").exists()


def test_a_csv_under_another_cells_name_and_an_empty_one_are_named(tmp_path: Path):
    one, two = put(tmp_path, "one", [BASE]), put(tmp_path, "two", [BASE])
    older(two)
    two.csv.write_text(one.csv.read_text())
    with pytest.raises(UsageError, match=two.csv.name):
        read_cells(tmp_path)
    two.csv.write_text("")
    with pytest.raises(UsageError, match=two.csv.name):
        read_cells(tmp_path)


# --- the summary


def test_perplexity_sums_buckets_and_documents_before_it_divides(tmp_path: Path):
    rows = [
        replace(BASE, document="a", bucket_start=0, bucket_end=4, total=4.0, count=4),
        replace(BASE, document="a", bucket_start=4, bucket_end=8, total=12.0, count=4),
        replace(BASE, document="b", bucket_start=0, bucket_end=4, total=2.0, count=2, tokens_per_second=128.0),
        replace(BASE, document="b", metric="kl", total=0.5, count=2),
    ]
    put(tmp_path, "tova", rows)
    _, summary = collect(tmp_path)
    nll, kl = (summary[summary["metric"] == metric].iloc[0] for metric in ("nll", "kl"))
    assert nll["value"] == pytest.approx(math.exp(18 / 10))
    assert (nll["documents"], nll["count"], nll["evictions"], nll["max_states"]) == (2, 10, 24, 8)
    assert nll["tokens_per_second"] == 96.0
    # leaving out one of two: 1 and 2 nats, so an error of half a nat; documents of 8 and 2 tokens weigh as 100/68 alike ones
    half = stats.t.ppf(0.975, 100 / 68 - 1) * 0.5
    assert nll["low"] == pytest.approx(math.exp(1.8 - half)) and nll["high"] == pytest.approx(math.exp(1.8 + half))
    assert nll["interval"] == "jackknife-t"
    assert kl["value"] == 0.25 and kl["documents"] == 1 and pd.isna(kl["low"]) and pd.isna(kl["high"])
    assert nll[["topline", "difference", "difference_low"]].isna().all()  # nothing to compare with: empty, not 0


def test_difference_is_paired_over_the_same_documents(tmp_path: Path):
    # nats per token: full 1, 3, 9 and tova half a nat more, everywhere: exp differs, the paired ratio would not
    put(tmp_path, "full", sums(FULL, a=(10.0, 10), b=(30.0, 10), unread=(90.0, 10)))
    put(tmp_path, "tova", sums(BASE, b=(35.0, 10), a=(15.0, 10)))
    _, summary = collect(tmp_path)
    tova, full = line(summary, "tova"), line(summary, "full")
    assert tova["value"] == pytest.approx(math.exp(2.5))
    assert tova["topline"] == pytest.approx(math.exp(2.0)) and full["value"] == pytest.approx(math.exp(13 / 3))
    assert tova["difference"] == pytest.approx(math.exp(2.5) - math.exp(2.0))
    # leaving out one of two: exp(1.5) - exp(1) and exp(3.5) - exp(3)
    half = stats.t.ppf(0.975, 1) * 0.5 * ((math.exp(3.5) - math.exp(3)) - (math.exp(1.5) - math.exp(1)))
    assert tova["difference_low"] == pytest.approx(math.exp(2.5) - math.exp(2.0) - half)
    assert tova["difference_high"] == pytest.approx(math.exp(2.5) - math.exp(2.0) + half)
    assert full["difference"] == full["difference_low"] == full["difference_high"] == 0


def test_a_constant_difference_of_means_has_no_spread(tmp_path: Path):
    documents = {f"d{i}": (float(i), 10) for i in range(20)}
    put(tmp_path, "full", [replace(row, metric="kl") for row in sums(FULL, **documents)])
    shifted = {name: (total + 5, count) for name, (total, count) in documents.items()}
    put(tmp_path, "tova", [replace(row, metric="kl") for row in sums(BASE, **shifted)])
    tova = line(collect(tmp_path)[1], "tova")
    assert tova["high"] - tova["low"] > 0.2
    assert tova[["difference", "difference_low", "difference_high"]].astype(float).to_numpy() == pytest.approx(0.5)


def test_interval_agrees_with_the_normal_theory(tmp_path: Path):
    nats = np.random.default_rng(0).normal(3.0, 0.2, size=400)
    put(tmp_path, "tova", sums(BASE, **{f"d{i:03d}": (float(x) * 100, 100) for i, x in enumerate(nats)}))
    tova = line(collect(tmp_path)[1], "tova")
    spread = 1.96 * nats.std() / math.sqrt(len(nats))
    assert math.log(tova["low"]) == pytest.approx(nats.mean() - spread, abs=0.15 * spread)
    assert math.log(tova["high"]) == pytest.approx(nats.mean() + spread, abs=0.15 * spread)


def test_summary_does_not_depend_on_the_order_of_rows_or_of_cells(tmp_path: Path):
    documents = {f"d{i}": (float(i * i), 10 + i) for i in range(1, 9)}
    for folder, step in (("one", 1), ("two", -1)):
        for name, template in [("full", FULL), ("tova", BASE), ("h2o", replace(BASE, policy="h2o", memory=1.0))][::step]:
            put(tmp_path / folder, name, sums(template, **dict(list(documents.items())[::step])))
        collect(tmp_path / folder)
    assert (tmp_path / "one" / "summary.csv").read_text() == (tmp_path / "two" / "summary.csv").read_text()
    rows = read_cells(tmp_path / "one").rows
    shuffled = rows.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(summarise(rows, []), summarise(shuffled, []))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"}, {"context": 64}, {"bos": False}, {"seed": 1}, {"weights": "random"}, {"model": "other"},
        {"dataset": "other"}, {"document": "other"}, {"count": 30},
    ],
)  # fmt: skip
def test_no_topline_where_the_full_model_saw_something_else(tmp_path: Path, change: dict):
    put(tmp_path, "full", [replace(FULL, **change)])
    put(tmp_path, "tova", [BASE])
    tova = line(collect(tmp_path)[1], "tova")
    assert tova["value"] > 0 and tova[["topline", "difference", "difference_low"]].isna().all()


def test_stories_are_paired_by_seed_however_long_they_are(tmp_path: Path):
    # nats per token by seed: full 1 and 2, tova 2 and 3 over twice and half as many tokens
    full, tova = replace(FULL, task="stories"), replace(BASE, task="stories")
    put(tmp_path, "full", sums(full, a=(10.0, 10), b=(40.0, 20)))
    put(tmp_path, "tova", sums(tova, a=(40.0, 20), b=(30.0, 10)))
    ours = line(collect(tmp_path)[1], "tova")
    assert ours["difference"] == pytest.approx(math.exp(70 / 30) - math.exp(50 / 30))
    # leaving out one of two seeds: the difference of the same seed's values, exp(2) - exp(1) and exp(3) - exp(2)
    error = 0.5 * ((math.exp(3) - math.exp(2)) - (math.exp(2) - math.exp(1)))
    half = stats.t.ppf(0.975, 1 / max((2 / 3) ** 2 + (1 / 3) ** 2, 0) - 1) * error
    assert ours["difference_low"] == pytest.approx(ours["difference"] - half)
    assert ours["difference_high"] == pytest.approx(ours["difference"] + half)
    put(tmp_path, "h2o", sums(replace(tova, policy="h2o", memory=1.0), a=(40.0, 20), unwritten=(30.0, 10)))
    assert pd.isna(line(collect(tmp_path)[1], "h2o")["difference"])


def test_engine_prefill_and_positions_do_not_part_a_line_from_its_topline(tmp_path: Path):
    put(tmp_path, "full", [replace(FULL, engine="recurrence", total=8.0)])
    put(tmp_path, "tova", [replace(BASE, prefill="oneshot", positions="compressed")])
    assert line(collect(tmp_path)[1], "tova")["topline"] == pytest.approx(math.exp(8 / 31))
    put(tmp_path, "full, same engine", [replace(FULL, total=9.0)])
    assert line(collect(tmp_path)[1], "tova")["topline"] == pytest.approx(math.exp(9 / 31))


def test_two_toplines_that_disagree_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    put(tmp_path, "full", [FULL])
    put(tmp_path, "full before the text was edited", [replace(FULL, total=11.0)])
    tova = put(tmp_path, "tova", [BASE])
    summary = collect(tmp_path)[1]
    assert pd.isna(line(summary, "tova")["topline"]) and f"cell {tova.id} has no topline" in caplog.text
    assert summary[summary["policy"] == "full"]["difference"].tolist() == [0, 0]  # each is its own


def test_cells_that_only_their_id_tells_apart_are_not_pooled(tmp_path: Path):
    put(tmp_path, "first edition of my_policy.py", sums(BASE, a=(10.0, 10)))
    put(tmp_path, "second edition", sums(BASE, a=(20.0, 10)))
    summary = collect(tmp_path)[1]
    assert sorted(summary["value"]) == pytest.approx([math.exp(1), math.exp(2)])
    assert summary["cell"].nunique() == 2 and summary["documents"].tolist() == [1, 1]


def test_what_failed_is_listed_and_in_no_mean(tmp_path: Path):
    lost = replace(BASE, document="b", total=None, count=0, status="not_scored")
    put(tmp_path, "tova", [replace(BASE, total=10.0, count=10), lost])
    put(tmp_path, "h2o", [replace(lost, policy="h2o")])
    cell = Cell(tmp_path, "perplexity", "window", cell_id({"name": "window"}))
    row = {name: getattr(replace(BASE, policy="window", cache=64), name) for name in SETTINGS}
    write_failure(cell, {"row": row, "error": "killed"})
    write_failure(Cell(tmp_path, "perplexity", "?", "f" * 16), {"error": "before any setting was known"})
    _, summary = collect(tmp_path)
    tova, h2o, window = (line(summary, policy) for policy in ("tova", "h2o", "window"))
    assert (tova["status"], tova["documents"], tova["value"]) == ("partial", 1, pytest.approx(math.e))
    assert h2o["status"] == "not_scored" and h2o[["value", "documents", "low"]].isna().all()
    assert (window["status"], window["cache"], window["cell"]) == ("failed", 64, cell.id)
    assert window[["value", "documents", "count", "topline", "evictions"]].isna().all()
    assert (summary["status"] == "failed").sum() == 2
    text = (tmp_path / "summary.csv").read_text()
    assert text.splitlines()[0] == ",".join(SUMMARY_TYPES) and "nan" not in text and "<NA>" not in text


def test_collect_writes_what_it_returns_and_tidies_in_one_order(tmp_path: Path):
    put(tmp_path, "tova", sums(BASE, z=(1.0, 1), a=(2.0, 1)))
    put(tmp_path, "full", [FULL])
    put(tmp_path, "h2o 16", [replace(BASE, policy="h2o", cache=16)])
    put(tmp_path, "h2o 8", [replace(BASE, policy="h2o", cache=8)])
    tidy, _ = collect(tmp_path)
    assert tidy["policy"].tolist() == ["full", "h2o", "h2o", "tova", "tova"]
    assert tidy["cache"].dropna().tolist() == [8, 16, 8, 8]
    assert tidy["document"].tolist()[3:] == ["z", "a"]  # as measured
    assert pd.read_csv(tmp_path / "tidy.csv", dtype="str").shape == tidy.shape
    first = (tmp_path / "tidy.csv").read_bytes()
    collect(tmp_path)
    assert (tmp_path / "tidy.csv").read_bytes() == first


def test_collect_of_nothing_says_what_to_run(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="msrnn-bench run policy=tova cache=512"):
            collect(folder)
        assert not (folder / "tidy.csv").exists()


def test_importing_results_is_light():
    code = "import sys, msrnn_bench.results.cells; print([m for m in ('torch', 'pandas', 'pandera') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("change", [lambda text: text[:-9], lambda text: text.replace("10.0", "9.0"), lambda text: text + "\n"])
def test_rows_that_are_not_those_that_were_written_are_measured_again(tmp_path, caplog, change):
    """Cut short or edited by hand: no number of theirs comes into a table."""
    cell = Cell(tmp_path, "perplexity", "a cell", "c" * 16)
    write(cell, [replace(BASE, cell=cell.id)], {})
    assert finished(cell)
    cell.csv.write_text(change(cell.csv.read_text()))
    assert not finished(cell) and read_cells(tmp_path).rows.empty
    assert "not those that were written" in caplog.text and "its next run redoes it" in caplog.text

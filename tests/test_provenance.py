"""`diff`, `rerun` and what `collect` says of versions: where a number comes from, and whether it comes again."""

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_cli import TINY
from test_results import BASE, FULL
from test_variants import put

from msrnn_bench.cli.main import main
from msrnn_bench.results.agreement import ROUNDING, agreement
from msrnn_bench.results.cells import Cell, write
from msrnn_bench.results.reading import read_rows
from msrnn_bench.results.summary import collect


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two texts, and three cells of them with every token's loss; each test has a copy."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "texts").mkdir()
    for name, first in (("a", 0), ("b", 500)):
        (folder / "texts" / f"{name}.txt").write_text(" ".join(f"word{i}" for i in range(first, first + 400)))
    given = [*TINY, "dataset=text", f"dataset.path={folder}/texts", f"results_dir={folder}/results", "keep_tokens=true"]
    assert main(["run", *given, "policy=tova", "cache=8"]) == 0
    assert main(["run", *given, "policy=tova", "cache=16"]) == 0
    assert main(["run", *given, "policy=full"]) == 0
    return folder


@pytest.fixture
def here(measured, tmp_path, monkeypatch):
    """An empty folder to work in, with those cells in results/."""
    shutil.copytree(measured / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells() -> dict[str, Path]:
    """The manifests, by policy and size."""
    found = {}
    for path in Path("results/cells").glob("*.json"):
        settings = json.loads(path.read_text())["settings"]
        found[f"{settings['policy']['name']} {settings['cache']}"] = path
    return found


def edit(path: Path, change) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, *args: str) -> str:
    """The one line of a command that is refused."""
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("msrnn-bench: ") and not out
    return err


# --- which cell


def test_a_cell_is_its_id_the_beginning_of_it_or_its_path(here, capsys):
    a, b = cells()["tova 8"], cells()["tova 16"]
    shutil.copytree("results", "other/sub")
    asked = [[a.stem, b.stem], [a.stem[:9], b.stem[:9]], [str(a), str(b.with_suffix(".csv"))]]
    told = []
    for pair in asked:
        assert main(["diff", *pair]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]
    assert main(["diff", a.stem, b.stem, "results_dir=other"]) == 0, "a folder right below is looked into"
    assert "other/sub/cells" in capsys.readouterr().out


def test_what_names_no_cell_is_one_line(here, capsys):
    a = cells()["tova 8"].stem
    assert "no cell begins with 0000" in refused(capsys, "diff", "0000", a)
    assert "names no cell" in refused(capsys, "diff", "../cells", a)
    assert "there is no x.json" in refused(capsys, "diff", "x.json", a)
    assert "two cells, got 1" in refused(capsys, "diff", a)
    os.mkfifo("results/cells/0123456789abcdef.json")
    assert "no cell begins with 0123" in refused(capsys, "diff", "0123", a), "which would be waited for"
    os.unlink("results/cells/0123456789abcdef.json")
    assert "rerun which cell?" in refused(capsys, "rerun", "device=cpu")
    shutil.copytree("results", "again")
    assert "give its path" in refused(capsys, "diff", a, a, "results_dir=results,again")
    shutil.copy(f"results/cells/{a}.json", f"results/cells/{a[:15]}{'0' if a[15] != '0' else '1'}.json")
    assert "give more of its id" in refused(capsys, "diff", a[:15], a)


# --- side by side


def test_diff_shows_what_differs_and_the_numbers(here, capsys):
    assert main(["collect"]) == 0
    summary = pd.read_csv("results/summary.csv").set_index("cache")["value"]
    capsys.readouterr()
    assert main(["diff", str(cells()["tova 8"]), str(cells()["tova 16"])]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  cache +8 +16$", out, flags=re.M) and "the same: versions, data, model, machine" in out
    assert len(re.findall(r"^  \S+ ", out.split("numbers")[0], flags=re.M)) == 1, "and nothing else differs"
    (a, b, difference, low, high) = map(float, re.search(r"perplexity +(\S+) +(\S+) +(\S+) +(\S+) to (\S+)", out).groups())
    assert (a, b) == pytest.approx((summary[8], summary[16]), rel=1e-4)
    assert difference == pytest.approx(summary[16] - summary[8], abs=1e-3) and low <= difference <= high


def test_diff_of_other_texts_machines_and_versions(here, capsys):
    ours = cells()["tova 8"]

    def other(manifest):
        manifest["versions"]["torch"] = "1.0"
        manifest["git"] = {"commit": "f" * 40, "clean": False}
        manifest["machine"]["processor"] = "abacus\x1b[31m"
        manifest["dataset"]["listed"][0]["sha256"] = manifest["dataset"]["fingerprint"] = "0" * 64
        del manifest["versions"]["numba"]

    shutil.copytree("results", "other")
    edit(Path("other/cells", ours.name), other)
    assert main(["diff", str(ours), f"other/cells/{ours.name}"]) == 0
    out = capsys.readouterr().out
    for said in ("1.0", "ffffffffffff with changes", "abacus", "text a", "000000000000", "the same: settings, model"):
        assert said in out
    assert "\x1b" not in out and "numba" not in out, "what one of the two does not say is no difference"


def test_diff_of_a_failed_cell_tells_the_reason(here, capsys):
    failed, whole = cells()["tova 8"], cells()["tova 16"]
    edit(failed, lambda manifest: manifest.update(status="failed", error="RuntimeError: no room"))
    assert main(["diff", str(failed), str(whole)]) == 0
    assert "A failed: RuntimeError: no room" in capsys.readouterr().out
    assert "failed, there is no number" in refused(capsys, "rerun", str(failed))


# --- the same number again?


def test_a_fresh_cell_comes_again_bit_for_bit_and_leaves_nothing(here, capsys, monkeypatch):
    scratch = here / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = everything(here)
    assert main(["rerun", cells()["tova 8"].stem]) == 0
    out = capsys.readouterr().out
    # two rows of six numbers, and the losses of 63 targets each
    numbers = int(re.search(r"the same, bit for bit: (\d+) numbers in 2 rows", out)[1])
    assert numbers == 2 * (6 + 63) and "here it is cell" not in out
    assert everything(here) == before and not list(scratch.iterdir())


def test_what_is_asked_for_is_kept(here, capsys):
    cell = cells()["full None"]
    assert main(["rerun", str(cell), "keep=kept"]) == 0
    assert f"kept/cells/{cell.stem}.csv" in capsys.readouterr().out
    moments = ["seconds", "tokens_per_second", "peak_bytes"]
    kept, recorded = (pd.read_csv(f"{folder}/cells/{cell.stem}.csv").drop(columns=moments) for folder in ("kept", "results"))
    pd.testing.assert_frame_equal(kept, recorded, check_exact=True)
    assert "holds something already" in refused(capsys, "rerun", str(cell), "keep=kept")


def change_total(manifest: Path, factor: float) -> None:
    path = manifest.with_suffix(".csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, "total"] = repr(float(table.loc[0, "total"]) * factor)
    table.to_csv(path, index=False, lineterminator="\n")
    edit(manifest, lambda manifest: manifest.pop("rows_sha256"))  # older ones have none


def test_edited_rows_are_no_recorded_numbers(here, capsys):
    cell, other = cells()["tova 8"], cells()["tova 16"]
    rows = cell.with_suffix(".csv")
    rows.write_text(rows.read_text().replace("56", "57"))
    for args in (["rerun", str(cell)], ["diff", str(other), str(cell)]):
        assert main(args) == 2
        assert f"{rows} is not what was written: run the cell again" in capsys.readouterr().err


def test_rounding_is_told_from_another_number(here, capsys):
    near, far = cells()["tova 8"], cells()["tova 16"]
    change_total(near, 1 + 1e-9)
    assert main(["rerun", str(near)]) == 0
    assert "the same to rounding (relative 1e-06): of 138 numbers in 2 rows 1 differ\n  1 of nll" in capsys.readouterr().out
    change_total(far, 1 + 1e-3)
    assert main(["rerun", str(far)]) == 1
    out = capsys.readouterr().out
    assert "not the same: of 138 numbers in 2 rows 1 differ\n  1 of nll, the farthest (relative 0.001) nll of a, positions" in out


def test_an_edited_text_is_another_number_and_said_to_be(here, measured, capsys):
    shutil.copytree(measured / "texts", "edited")
    Path("edited/b.txt").write_text(Path("edited/b.txt").read_text().replace("word503 ", "word504 "))
    assert main(["rerun", str(cells()["tova 8"]), "dataset.path=edited"]) == 1
    out = capsys.readouterr().out
    assert "not the same" in out and "here it is cell" in out and re.search(r"^  text b +\w{12} +\w{12}$", out, flags=re.M)
    Path("edited/b.txt").rename("edited/c.txt")
    assert main(["rerun", str(cells()["tova 8"]), "dataset.path=edited"]) == 1
    assert "1 rows came out no more, the first nll of b, positions 0 to 64" in capsys.readouterr().out


def test_data_that_is_not_here_is_named_and_may_be_given(here, measured, capsys):
    cell = cells()["tova 8"]
    edit(cell, lambda manifest: manifest["config"]["dataset"].update(path="gone/texts"))
    assert "dataset.path=gone/texts is not here: give dataset.path=PATH after the cell" in refused(capsys, "rerun", str(cell))
    assert main(["rerun", str(cell), f"dataset.path={measured}/texts", "device=cpu"]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["cache=4", "results_dir.x=1", "policy.first=2", "~device", "task.buckets=[1]", "workers=2"])
def test_what_the_number_hangs_on_is_not_given_anew(here, capsys, given):
    assert "rerun repeats a cell as it was" in refused(capsys, "rerun", str(cells()["tova 8"]), given)


def test_a_manifest_of_an_earlier_version(here, capsys):
    """Classes where they stood then, without the settings that are younger; each committed one is sent the same way by
    test_ids.py."""
    cell = cells()["tova 8"]

    def old(manifest):
        config = manifest["config"]
        for key in ("positions", "dry_run", "retry"):
            config.pop(key, None)
        config["model"]["_target_"] = "msrnn_bench.models.HubModel"
        config["dataset"]["_target_"] = "msrnn_bench.datasets.Text"
        config["model"].pop("facts", None)
        config["policy"] = {"_target_": "msrnn_bench.policies.Tova"}

    edit(cell, old)
    assert main(["rerun", str(cell)]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def frame(tmp_path: Path, name: str, rows) -> tuple[Path, pd.DataFrame]:
    cell = Cell(tmp_path / name, BASE.task, "x", BASE.cell)
    write(cell, rows, {})
    return cell.csv, read_rows(cell.csv)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"total": BASE.total * (1 + ROUNDING / 2)}, True),
        ({"total": BASE.total * (1 + ROUNDING * 2)}, False),
        ({"count": BASE.count + 1}, False),
        ({"evictions": 10**9 + 1}, False),
        ({"total": None, "status": "failed"}, False),
        ({"document": "another"}, False),
        ({"seconds": 99.0, "peak_bytes": 7, "tokens_per_second": 1.0}, True),
    ],
)
def test_numbers_are_held_against_each_other_by_kind(tmp_path, change, same):
    base = replace(BASE, evictions=10**9)
    path, recorded = frame(tmp_path, "a", [base])
    other, again = frame(tmp_path, "b", [replace(base, **change)])
    assert agreement(path, other, recorded, again).same == same
    assert agreement(path, path, recorded, recorded).exact


def test_younger_columns_metrics_and_times_are_not_the_cells(tmp_path):
    speed = replace(BASE, metric="decode_tokens_per_second", total=5.0)
    path, recorded = frame(tmp_path, "a", [replace(BASE, state_bytes=None), speed])
    more = [replace(BASE, state_bytes=8), replace(speed, total=6.0), replace(BASE, metric="kl", total=1.0)]
    other, again = frame(tmp_path, "b", more)
    told = agreement(path, other, recorded, again)
    assert told.exact and (told.rows, told.moments) == (1, 1)
    assert not agreement(other, path, again, recorded).same, "what came out then and not now is a difference"


def test_arrays_are_numbers_too(tmp_path):
    (path, recorded), (other, again) = (frame(tmp_path, name, [BASE]) for name in "ab")
    losses, deaths = np.array([1.0, 2.0]), np.array([3, 4])
    np.savez(path.with_suffix(".npz"), nll=losses, death=deaths)
    for found, exact, same in (
        ({"nll": losses, "death": deaths}, True, True),
        ({"nll": losses * (1 + 1e-9), "death": deaths}, False, True),
        ({"nll": losses, "death": deaths + 1}, False, False),
        ({"nll": losses}, False, False),
        ({"nll": losses[:1], "death": deaths}, False, False),
    ):
        np.savez(other.with_suffix(".npz"), **found)
        told = agreement(path, other, recorded, again)
        assert (told.exact, told.same) == (exact, same)


# --- a stranger's manifest


HOSTILE = {
    "policy": "evil.Policy", "dataset": "evil.Text", "model": "evil.Model", "task": "evil.Task",
}  # fmt: skip


@pytest.mark.parametrize("group", HOSTILE)
def test_classes_of_others_are_not_called(here, capsys, group):
    Path("evil.py").write_text("open('called', 'w')\n")
    cell = cells()["tova 8"]
    edit(cell, lambda manifest: manifest["config"][group].update(_target_=HOSTILE[group]))
    assert f"{group}._target_={HOSTILE[group]} is code from outside msrnn-bench" in refused(capsys, "rerun", str(cell))
    assert not Path("called").exists()


@pytest.mark.parametrize(
    "target",
    [
        "msrnn_bench.runs.build.os.system", "msrnn_bench.models.convert.convert", "msrnn_bench.results.cells.Cell",
        "msrnn_bench.models.sources.Path", "msrnn_bench.policies.Tova", "msrnn_bench.nothing.Model", "msrnn_bench.filler.X",
    ],
)  # fmt: skip
def test_what_is_no_model_of_ours_is_not_called_as_one(here, capsys, target):
    """What a module of ours imports, its functions, and classes of another kind."""
    cell = cells()["tova 8"]
    edit(cell, lambda manifest: manifest["config"]["model"].update(_target_=target, path="x"))
    assert f"{target} is no model of this version" in refused(capsys, "rerun", str(cell))


@pytest.mark.parametrize(
    ("group", "setting", "says"),
    [
        ("model", {"trust_remote_code": True}, "add trust=true"),
        ("task", {"include_path": "tasks"}, "add trust=true"),
        ("dataset", {"path": "${oc.env:HOME}/a.txt"}, "would be looked up here"),
        ("task", {"buckets": [1, "${oc.env:HOME}"]}, "would be looked up here"),
    ],
)
def test_what_runs_code_or_looks_things_up_is_refused(here, capsys, group, setting, says):
    cell = cells()["tova 8"]
    edit(cell, lambda manifest: manifest["config"][group].update(setting))
    assert says in refused(capsys, "rerun", str(cell))


def test_a_manifest_says_nowhere_what_is_written(here, capsys):
    """Neither its results folder nor the id it claims."""
    cell = cells()["tova 8"]
    edit(cell, lambda m: (m["config"].update(results_dir=str(here / "x"), force=True, workers=9), m.update(cell="../../x")))
    before = everything(here)
    assert main(["rerun", str(cell)]) == 0
    assert everything(here) == before and not (here / "x").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "cannot be read: run the cell again"),
        ([], "cannot be read: run the cell again"),
        ({}, "holds no configuration"),
        ({"model": 1}, "cannot be read: run the cell again"),
        ({"model": {}, "dataset": {}, "policy": {}, "task": None}, "holds no configuration"),
    ],
)
def test_a_manifest_without_a_configuration_is_one_line(here, capsys, config, says):
    cell = cells()["tova 8"]
    edit(cell, lambda manifest: manifest.update(config=config))
    assert says in refused(capsys, "rerun", str(cell))


@pytest.mark.parametrize("knobs", [[], ["policy.recent=4"], ["policy.fade=0.25"]])
def test_a_policy_of_ones_own_comes_again_when_trusted(here, measured, monkeypatch, capsys, knobs):
    """Also where a policy that it replaced has left a setting of the same name in the manifest."""
    shutil.copy(ROOT / "docs/examples/my_policy.py", "mine.py")
    monkeypatch.syspath_prepend(here)
    given = [*TINY, "dataset=text", f"dataset.path={measured}/texts", "policy._target_=mine.Loudest", "cache=16", *knobs]
    assert main(["run", *given, "results_dir=own"]) == 0
    (cell,) = Path("own/cells").glob("*.json")
    capsys.readouterr()
    assert "trust=true" in refused(capsys, "rerun", str(cell))
    assert main(["rerun", str(cell), "trust=true"]) == 0
    out = capsys.readouterr().out
    assert "the same, bit for bit" in out and "here it is cell" not in out


# --- what collect says


def warned(folder: Path, caplog) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        collect(folder)
    return [record.getMessage() for record in caplog.records if "side by side" in record.getMessage()]


def test_collect_names_cells_of_unlike_versions(tmp_path, caplog):
    new = put(tmp_path, FULL, versions={"torch": "2.13.0", "transformers": "5.23.0", "msrnn-bench": "0.1.0"})
    old = put(tmp_path, BASE, versions={"torch": "2.12.0", "transformers": "5.23.0", "msrnn-bench": "0.2.0"})
    code, torch = warned(tmp_path, caplog)
    assert f"versions of msrnn-bench stand side by side: 0.1.0: {new}; 0.2.0: {old}" in code
    assert f"versions of torch stand side by side: 2.12.0: {old}; 2.13.0: {new}" in torch


def test_collect_names_cells_of_unlike_commits(tmp_path, caplog):
    ids = [put(tmp_path, row, documents=2) for row in (FULL, BASE, replace(BASE, cache=16))]
    for cell, commit, clean in zip(ids, "aab", (True, True, False), strict=True):
        edit(tmp_path / f"cells/{cell}.json", lambda m, c=commit, clean=clean: m.update(git={"commit": c * 40, "clean": clean}))
    (line,) = warned(tmp_path, caplog)
    assert f"aaaaaaa: {', '.join(sorted(ids[:2]))}; bbbbbbb with changes: {ids[2]}" in line


def test_collect_names_cells_of_unlike_texts(tmp_path, caplog):
    ids = [put(tmp_path, BASE, sha=sha * 32) for sha in ("ab", "cd")]
    (line,) = warned(tmp_path, caplog)
    assert f"versions of the data {BASE.dataset} stand side by side" in line and all(cell in line for cell in ids)


def test_cells_of_different_tables_are_nobodys_neighbours(tmp_path, caplog):
    put(tmp_path, BASE, versions={"torch": "2.13.0"})
    put(tmp_path, replace(BASE, model="another"), versions={"torch": "2.12.0"})
    assert warned(tmp_path, caplog) == []

"""A killed cell of long documents goes on at the document it was in: the same rows, and no document measured twice."""

import multiprocessing
import os
import signal

import numpy as np
import pandas as pd
import pytest
from conftest import HELD_OUT, TINY_MODEL, Silent
from kill import TIMINGS

from msrnn_bench.cli.main import main
from msrnn_bench.results.journal import Journal, packed, unpacked
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.runs.execute import execute
from msrnn_bench.tasks.reading import losses as reading

TOGETHER: dict = {}


@pytest.fixture
def told(tmp_path):
    """Overrides for a cell of three documents, two chunks each."""
    text = HELD_OUT.read_text()
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(text[2000 * number :][:2000])
    return lambda folder, *more: [
        "model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={tmp_path}/*.txt", "device=cpu", "context=128",
        "tokens=256", "documents=3", "policy=tova", "cache=32", f"results_dir={tmp_path / folder}", *more,
    ]  # fmt: skip


def cell(overrides):
    return prepare(compose_one(overrides), overrides, Silent(), TOGETHER)


def table(prepared):
    return pd.read_csv(prepared.cell.csv).drop(columns=TIMINGS)


@pytest.fixture
def counted(monkeypatch):
    """How many chunks were measured; `stop` is the one that never ends."""
    honest, seen = reading.losses, {"chunks": 0, "stop": 0}

    def losses(*args):
        seen["chunks"] += 1
        if seen["chunks"] == seen["stop"]:
            raise KeyboardInterrupt
        return honest(*args)

    monkeypatch.setattr(reading, "losses", losses)
    return seen


@pytest.mark.parametrize("task", ["perplexity", "retention"])
@pytest.mark.parametrize("keep", ["false", "true"])
def test_interrupted_and_resumed_is_undisturbed(task, keep, told, counted):
    more = (f"task={task}", f"keep_tokens={keep}", *(["task.classes=[char]"] if task == "retention" else []))
    whole, broken = cell(told("whole", *more)), cell(told("broken", *more))
    assert whole.cell.id == broken.cell.id
    execute(whole)
    assert counted["chunks"] == 6
    counted.update(chunks=0, stop=4)  # the second chunk of the second document
    with pytest.raises(KeyboardInterrupt):
        execute(broken)
    assert not broken.cell.csv.exists() and len(Journal(broken.cell.journal).records) == 1
    counted.update(chunks=0, stop=0)
    execute(cell(told("broken", *more, "task.chunk=64")))  # what is no part of the id may change
    assert counted["chunks"] == 4, "the first document was not measured again"
    pd.testing.assert_frame_equal(table(broken), table(whole), check_exact=False, rtol=1e-5)
    assert not broken.cell.journal.exists() and not whole.cell.journal.exists()
    kept = {"nll": (6, 127)} if keep == "true" else {}
    kept |= {"death": (5, 1, 128)} if task == "retention" else {}
    assert whole.tokens_file.exists() == bool(kept)
    if kept:
        with np.load(broken.tokens_file) as ours, np.load(whole.tokens_file) as theirs:
            assert {name: ours[name].shape for name in ours} == kept == {name: theirs[name].shape for name in theirs}
            for name in kept:
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)


def test_what_is_to_be_kept_and_was_not_is_measured_again(told, counted):
    """Losses of tokens that an earlier run did not keep cannot be had from its sums."""
    plain, keeping = (cell(told("one", "task=retention", "task.classes=[]", f"keep_tokens={keep}")) for keep in ("false", "true"))
    counted["stop"] = 5
    with pytest.raises(KeyboardInterrupt):
        execute(plain)
    counted.update(chunks=0, stop=0)
    execute(keeping)
    assert counted["chunks"] == 6
    with np.load(keeping.tokens_file) as data:
        assert data["nll"].shape == (6, 127) and data["death"].shape == (5, 1, 128)
        rows = pd.read_csv(keeping.cell.csv)
        assert data["nll"].sum() == pytest.approx(rows[rows["metric"] == "nll"]["total"].sum(), rel=1e-12)


def test_a_finished_cell_that_kept_other_arrays_alone_is_not_done_with_its_tokens(told, counted):
    plain, keeping = (cell(told("one", "task=retention", "task.classes=[]", f"keep_tokens={keep}")) for keep in ("false", "true"))
    execute(plain)
    assert plain.done and plain.tokens_file.is_file() and not keeping.done
    execute(keeping)
    assert keeping.done and plain.done and counted["chunks"] == 12
    keeping.tokens_file.unlink()
    assert plain.done and not keeping.done


def test_killed_in_the_middle_and_resumed(told, counted, monkeypatch):
    """kill -9, in a process of its own, which is this one's copy."""
    overrides = told("killed")
    with monkeypatch.context() as patch:
        honest, chunks = reading.losses, []

        def losses(*args):
            chunks.append(1)
            if len(chunks) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(*args)

        patch.setattr(reading, "losses", losses)
        copy = multiprocessing.get_context("fork").Process(target=main, args=(["run", *overrides],))
        copy.start()
        copy.join()
    assert copy.exitcode == -signal.SIGKILL
    ours = cell(overrides)
    assert sorted(Journal(ours.cell.journal).records) == ["00000 0", "00001 1"]
    execute(ours)
    assert counted["chunks"] == 2
    whole = cell(told("whole"))
    execute(whole)
    pd.testing.assert_frame_equal(table(ours), table(whole))


def test_force_measures_all_again(told, counted):
    ours = cell(told("forced"))
    counted["stop"] = 5
    with pytest.raises(KeyboardInterrupt):
        execute(ours)
    counted.update(chunks=0, stop=0)
    execute(cell(told("forced", "force=true")))
    assert counted["chunks"] == 6


def test_arrays_come_back_bit_for_bit():
    arrays = {"a": np.array([[0.1, -0.0, 5e-324]]), "b": np.arange(6, dtype=np.int32).reshape(1, 2, 3)}
    again = unpacked(packed(arrays))
    assert list(again) == ["a", "b"]
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].tobytes() == array.tobytes()

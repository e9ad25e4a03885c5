"""Chunks and documents read together are what each is alone: who leaves when, rows, arrays, after a kill and in parts too."""

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HELD_OUT, TINY_MODEL, Silent, evicting, policies, tiny
from kill import TIMINGS
from transformers import AutoTokenizer

import msrnn_bench as mb
from msrnn_bench.datasets.chunks import Chunk, together
from msrnn_bench.errors import LESS_MEMORY, UsageError
from msrnn_bench.job import load
from msrnn_bench.multistate.naming import carried
from msrnn_bench.results.journal import Journal
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.runs.execute import execute
from msrnn_bench.runs.measure import measure, why
from msrnn_bench.runs.progress import CellProgress
from msrnn_bench.runs.shards import expand
from msrnn_bench.tasks import extrapolation, perplexity
from msrnn_bench.tasks.extrapolation import Extrapolation
from msrnn_bench.tasks.perplexity import Perplexity, inputs
from msrnn_bench.tasks.reading import losses as reading
from msrnn_bench.tasks.retention import Retention

BATCHES = (1, 2, 3, 8)
CHUNKS = (1, 1, 4, 1, 2, 1)  # of each document: batches of several, of one, of a part of one
CONTEXT = 40
SHARED: dict = {}  # the model, loaded once


def documents(*lengths: list[int]) -> list[list[Chunk]]:
    return [[Chunk(str(n), i, [0] * size, False) for i, size in enumerate(sizes)] for n, sizes in enumerate(lengths)]


def test_who_is_read_together():
    found = documents(*([4] * count for count in CHUNKS))
    assert together(found, 1) == [[0], [1], [2], [3], [4], [5]], "each alone, in order: parts are documents as ever"
    assert together(found, 2) == [[0, 1], [2], [3], [4], [5]]
    assert together(found, 3) == [[0, 1], [2], [3, 4], [5]]
    assert together(found, 8) == [[0, 1, 2, 3], [4, 5]]
    assert together(documents([4], [4], [5], [5], [5], [4]), 2) == [[0, 1], [2, 3], [4], [5]], "rows of a batch have one length"
    for batch in range(1, 12):
        groups = together(found, batch)
        assert [number for group in groups for number in group] == list(range(len(CHUNKS)))
        assert all(len(group) == 1 or sum(CHUNKS[number] for number in group) <= batch for group in groups)


# -- who leaves, in float64


STATES = [*((name, "original") for name in evicting()), *((name, "compressed") for name in ("tova", "h2o", "random"))]


@pytest.mark.parametrize(("name", "positions"), STATES)
def test_the_states_of_a_row_are_those_it_has_alone(name, positions):
    """Who is kept at the end and at which step each one left, in pieces, whatever stands beside it."""
    model = tiny("llama-gqa")
    ids = torch.randint(3, 96, (8, 60), generator=torch.Generator().manual_seed(3))
    alone = [read(model, name, positions, ids[[row]], [row]) for row in range(8)]
    for batch in BATCHES[1:]:
        for at in range(0, 8, batch):
            rows = list(range(at, min(at + batch, 8)))
            found = read(model, name, positions, ids[rows], rows)
            for row, (kept, deaths, logits) in zip(rows, zip(*found, strict=True), strict=True):
                (wanted,), (left,), (said,) = alone[row]
                assert torch.equal(kept, wanted) and torch.equal(deaths, left)
                torch.testing.assert_close(logits, said, atol=1e-9, rtol=0)


def read(model, name, positions, ids, numbers):
    """Per row: the positions kept and the steps of death, [L, ...], and the logits."""
    numbers = [1000 + 7 * number for number in numbers]
    with mb.bounded(model, policies()[name], 12, positions=positions, documents=numbers, deaths=True) as states:
        first = model(ids[:, :40]).logits
        logits = torch.cat([first, model(ids[:, 40:], **carried(model, states.current)).logits], dim=1)
    kept = [torch.stack([layer.kept[row] for layer in states.layers]) for row in range(len(ids))]
    return kept, list(torch.stack(states.deaths, dim=1)), list(logits)


def test_the_random_policy_draws_otherwise_for_another_chunk():
    """So that the equality above says something of documents' numbers."""
    model, ids = tiny("llama-gqa"), torch.randint(3, 96, (1, 60)).expand(2, -1)
    one, other = read(model, "random", "original", ids, [0, 1])[0]
    assert not torch.equal(one, other)


# -- rows


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Documents of so many chunks; each chunk begins with a mark."""
    folder, text, tokenizer = tmp_path_factory.mktemp("texts"), HELD_OUT.read_text(), AutoTokenizer.from_pretrained(TINY_MODEL)
    for number, count in enumerate(CHUNKS):
        part = text[1000 * number :][:1000]
        _, end = tokenizer(part, return_offsets_mapping=True)["offset_mapping"][count * (CONTEXT - 1) + 8]
        (folder / f"{number}.txt").write_text(part[:end])
    return folder


@cache
def composed(folder, task, more):
    told = [
        f"task={task}", "model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={folder}", "device=cpu",
        f"context={CONTEXT}", "documents=null", "tokens=null", "policy=random", "cache=8", *more,
    ]  # fmt: skip
    told = list({override.partition("=")[0]: override for override in told}.values())
    return told, compose_one(told)


def cell(folder, place, *more, task="perplexity", batch=1, **changes):
    told, config = composed(folder, task, more)
    config = config.copy()
    config.task.batch = batch
    for key, value in {"results_dir": str(place), **changes}.items():
        config[key] = value
    return prepare(config, told, Silent(), SHARED)


def measured(folder, place, made, policy="random", *more, task="perplexity", positions="original"):
    """The rows of a task in float64, what it keeps and stores beside them, and how many rows each call of the model had."""
    job = cell(folder, place, *more, task=task).job
    load(job).model.double()
    arrays: dict = {}
    job = replace(
        job, policy=policies()[policy], cache=None if policy == "full" else 8, keep=arrays.__setitem__, positions=positions,
        store=arrays.__setitem__, journal=place / f"{made.batch}.{policy}.jsonl",
    )  # fmt: skip
    return pd.DataFrame([vars(row) for row in made.rows(job)]).drop(columns=TIMINGS), arrays


def same(found, wanted):
    (rows, arrays), (others, kept) = found, wanted
    pd.testing.assert_frame_equal(rows, others, check_exact=False, rtol=1e-10, atol=1e-10)
    assert arrays.keys() == kept.keys() and kept
    for name in arrays:
        np.testing.assert_allclose(arrays[name], kept[name], atol=1e-9)


@pytest.fixture
def calls(monkeypatch):
    """How many rows each text reading had."""
    honest, found = reading.losses, []

    def losses(model, ids, *args):
        found.append(len(ids))
        return honest(model, ids, *args)

    monkeypatch.setattr(reading, "losses", losses)
    return found


NOW = ("full", "baseline", "tova", "h2o", "random", "window4")  # of the others the states are compared, above


@pytest.mark.parametrize(
    "policy", [*NOW, *(pytest.param(name, marks=pytest.mark.slow) for name in policies() if name not in NOW)]
)
def test_the_rows_are_the_same_to_rounding(texts, tmp_path, policy, calls):
    """Evictions, first eviction, occupancy and bytes are equal, sums and kept losses to rounding, rows in the same order."""
    wanted = measured(texts, tmp_path, Perplexity(), policy)
    assert list(wanted[0]["document"].unique()) == [str(n) for n in range(len(CHUNKS))]
    assert calls == [] if policy == "baseline" else [1] * 10
    for batch, shape in {2: [2, 2, 2, 1, 2, 1], 3: [2, 3, 1, 3, 1], 8: [7, 3]}.items():
        calls.clear()
        same(measured(texts, tmp_path, Perplexity(batch=batch), policy), wanted)
        assert calls == ([] if policy == "baseline" else shape)


def test_beside_the_full_model_and_under_compressed_positions(texts, tmp_path):
    for number, (more, positions) in enumerate((({"agreement": True}, "original"), ({}, "compressed"))):
        one, other = (
            measured(texts, tmp_path / f"{number}{batch}", Perplexity(batch=batch, **more), "tova", positions=positions)
            for batch in (1, 3)
        )
        same(other, one)


def test_which_tokens_stay_is_the_same(texts, tmp_path):
    for policy in ("tova_head", "random"):
        one, other = (
            measured(texts, tmp_path / f"{batch}", Retention(batch=batch, classes=("char",)), policy, task="retention")
            for batch in (1, 3)
        )
        same(other, one)
        assert (one[1]["death"] == other[1]["death"]).all() and one[1]["death"].any()


def test_long_texts_of_one_length_are_read_together(texts, tmp_path, calls):
    more = ("context=null", "tokens=60")
    made = [Extrapolation(every=16, least=30, chunk=24, batch=batch) for batch in (1, 2, 8)]
    one, two, eight = (measured(texts, tmp_path, task, "random", *more, task="extrapolation")[0] for task in made)
    for other in (two, eight):
        pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-10)
    lengths = one.groupby("document", sort=False)["count"].sum().tolist()
    assert len(lengths) == len(CHUNKS) and 59 in lengths and min(lengths) < 59 and max(calls) > 1


# -- killed, and in parts


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("before", "after", "still"), [(1, 3, 8), (3, 1, 4), (2, 8, 10)])
def test_killed_and_gone_on_with_another_batch(texts, tmp_path, monkeypatch, calls, before, after, still):
    """What is in the journal stays as it is; the rest is read in batches of the other size, `still` chunks: at most a batch
    holds some that are finished."""
    whole = cell(texts, tmp_path / "whole", keep_tokens=True)
    execute(whole)
    counted = reading.losses
    broken = cell(texts, tmp_path / "broken", batch=before, keep_tokens=True)
    assert whole.cell.id == broken.cell.id

    def losses(*args):
        if len(calls) == 3:  # in the fourth
            raise Killed
        return counted(*args)

    calls.clear()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reading, "losses", losses)
        execute(broken)
    known = [row for record in Journal(broken.cell.journal).records.values() for row in record["rows"]]
    assert known
    calls.clear()
    again = cell(texts, tmp_path / "broken", batch=after, keep_tokens=True)
    execute(again)
    assert sum(calls) == still and again.done and not again.cell.journal.exists()
    one, other = (pd.read_csv(made.cell.csv) for made in (whole, again))
    assert list(other["seconds"])[: len(known)] == [row["seconds"] for row in known]
    one, other = one.drop(columns=TIMINGS), other.drop(columns=TIMINGS)
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-5)
    with np.load(whole.tokens_file) as ours, np.load(again.tokens_file) as theirs:
        np.testing.assert_allclose(ours["nll"], theirs["nll"], atol=1e-3)


def test_parts_and_a_kill_between_documents_of_a_batch_change_no_bit(texts, tmp_path, monkeypatch):
    """What is read together is dealt out together, and read together again where a record of it is missing."""
    alone = cell(texts, tmp_path / "alone", batch=3)
    execute(alone)
    wanted = pd.read_csv(alone.cell.csv, dtype=str).drop(columns=TIMINGS)
    for shards in (2, 3):
        shared = cell(texts, tmp_path / str(shards), batch=3, shards=shards)
        measure(expand([shared]), CellProgress(1))
        pd.testing.assert_frame_equal(pd.read_csv(shared.cell.csv, dtype=str).drop(columns=TIMINGS), wanted)
    real, killed = Journal.add, cell(texts, tmp_path / "killed", batch=3)

    def add(self, key, record):
        if key.startswith("00004"):
            raise Killed
        return real(self, key, record)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Journal, "add", add)
        execute(killed)
    assert len(Journal(killed.cell.journal).records) == 4
    execute(killed)
    pd.testing.assert_frame_equal(pd.read_csv(killed.cell.csv, dtype=str).drop(columns=TIMINGS), wanted)


def test_the_seconds_of_a_batch_are_shared(texts, tmp_path):
    """Documents' seconds add up to the reading's, and each one's rate is its tokens by its share."""
    told = cell(texts, tmp_path, batch=8)
    inputs(told.job)
    begin = time.perf_counter()
    rows = list(told.task.rows(told.job))
    took = time.perf_counter() - begin
    each = {row.document: row.seconds for row in rows}
    assert all(row.tokens_per_second == pytest.approx(CHUNKS[int(row.document)] * CONTEXT / row.seconds) for row in rows)
    assert sum(each.values()) <= took
    assert [round(each[str(n)] / each["0"], 6) for n in range(4)] == [1, 1, 4, 1], "one batch: by chunks"


# -- what is said


@pytest.mark.parametrize("task", [Perplexity, Retention, Extrapolation])
@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (-2, "-2"), (2.5, "2.5"), (None, "null"), ("many", "many"), (True, "true")]
)
def test_a_batch_of_nothing_is_refused(task, value, shown):
    with pytest.raises(UsageError, match=f"^task.batch={shown} must be a whole number of 1 or more or auto$"):
        task(batch=value)


def test_it_is_refused_before_anything_is_read(texts, tmp_path):
    with pytest.raises(UsageError, match=r"^task.batch=0 must be a whole number of 1 or more or auto$"):
        cell(texts, tmp_path, batch=0)


def test_a_dry_run_knows_of_the_rows(texts, tmp_path):
    job = cell(texts, tmp_path, "tokens=40", "documents=5").job
    work = Perplexity(chunk=24, batch=3).work(job)
    assert (work.rows, work.logits) == (3, 72)
    assert Perplexity(chunk=24, batch=50).work(job).rows == 5, "no more than there are chunks"
    assert Perplexity(chunk=24).work(job).rows == 1, "auto is a matter of the machine's memory: at least"
    work = Perplexity(batch=3).work(replace(job, policy=mb.Baseline()))
    assert (work.rows, work.logits) == (1, CONTEXT)


def test_a_batch_that_does_not_fit_names_the_setting(texts, tmp_path, monkeypatch):
    def losses(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(reading, "losses", losses)
    with pytest.raises(torch.OutOfMemoryError) as error:
        execute(cell(texts, tmp_path, batch=8))
    assert "task.batch=1" in why(error.value) and LESS_MEMORY in why(error.value)


# -- auto


def test_auto_is_one_on_a_cpu_to_the_last_bit(texts, tmp_path, calls, caplog):
    for task, kind, more in (("perplexity", Perplexity, ()), ("extrapolation", Extrapolation, ("context=null", "tokens=60"))):
        options = {"every": 16, "least": 30} if kind is Extrapolation else {}
        assert kind().batch == "auto" == cell(texts, tmp_path, *more, task=task, batch="auto").task.batch
        one, auto = (
            measured(texts, tmp_path / f"{task}{batch}", kind(batch=batch, **options), "random", *more, task=task)
            for batch in (1, "auto")
        )
        pd.testing.assert_frame_equal(one[0], auto[0], check_exact=True)
        assert all((one[1][name] == auto[1][name]).all() for name in one[1])
    assert set(calls) == {1} and "task.batch" not in caplog.text


@pytest.mark.parametrize("task", ["perplexity", "retention", "extrapolation"])
def test_what_was_chosen_is_what_is_read(texts, tmp_path, monkeypatch, calls, task):
    more = ("context=null", "tokens=60", "task.every=16", "task.least=30") if task == "extrapolation" else ()
    more = ("task.classes=[char]",) if task == "retention" else more
    module = extrapolation if task == "extrapolation" else perplexity
    wanted = cell(texts, tmp_path / "one", *more, task=task, batch=3)
    execute(wanted)
    shapes = [*calls]
    calls.clear()
    monkeypatch.setattr(module, "chosen", lambda batch, *_, **__: 3 if batch == "auto" else batch)
    auto = cell(texts, tmp_path / "auto", *more, task=task, batch="auto")
    execute(auto)
    assert calls == shapes and max(shapes) > 1 and auto.cell.id == wanted.cell.id
    one, other = (pd.read_csv(made.cell.csv).drop(columns=TIMINGS) for made in (wanted, auto))
    pd.testing.assert_frame_equal(one, other, check_exact=True)

"""A cell shared by several processes is the cell of one: rows, their order, arrays, journal and manifest, whatever happened on
the way; and nothing is measured twice."""

import json
import os
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import kill
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import HELD_OUT, TINY_MODEL

from msrnn_bench.cli.main import main
from msrnn_bench.errors import UsageError
from msrnn_bench.results import sharing
from msrnn_bench.results.journal import Journal
from msrnn_bench.results.leases import lease
from msrnn_bench.runs import measure as measuring
from msrnn_bench.runs.build import build
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import choices, compose_one
from msrnn_bench.runs.measure import measure, measure_part
from msrnn_bench.runs.progress import CellProgress
from msrnn_bench.runs.shards import expand
from msrnn_bench.tasks.perplexity import Perplexity
from msrnn_bench.tasks.writing.answers import Writer

DOCUMENTS = 5
SHARED: dict = {}  # the model, loaded once
TEXT = ["dataset=text", "dataset.path=texts", "context=48", "tokens=96", f"documents={DOCUMENTS}"]
CASES = {
    "perplexity": [*TEXT, "keep_tokens=true"],
    "retention": [*TEXT, "task.classes=[char]"],
    "extrapolation": [*TEXT, "context=null", "task.every=32"],
    "stories": ["context=400", "task.stories=5", "task.new_tokens=8", "task.batch=2", "task.judge=local"],
    "retrieval": [
        *TEXT, "context=256", "task.lengths=[120,200]", "task.depths=[0,1]", "task.examples=3", "task.new_tokens=4",
        "task.needle=true",
    ],
    "squality": ["dataset.path=stories.jsonl", "context=256", "task.new_tokens=8", "task.batch=2", "task.questions=null"],
    "qasper": ["dataset.path=papers.jsonl", "context=256", "task.new_tokens=4", "task.batch=1"],
    "lm_eval": [
        "context=512", "task.include_path=tasks", "task.tasks=[chosen,rolling,written]", "task.batch_size=2",
        "task.num_fewshot=1",
    ],
}  # fmt: skip
TIMED = ["seconds", "tokens_per_second", "peak_bytes"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Five of everything."""
    folder, text = tmp_path_factory.mktemp("inputs"), HELD_OUT.read_text()
    pieces = [text[4000 * n :][:1200] for n in range(DOCUMENTS)]
    for name in ("texts", "tasks"):
        (folder / name).mkdir()
    for number, piece in enumerate(pieces):
        (folder / f"texts/{number}.txt").write_text(piece)
    asked = [{"question_text": f"Who {n}?", "responses": [{"response_text": "A man."}]} for n in range(2)]
    answer = {"answer": {"unanswerable": False, "extractive_spans": ["self"], "free_form_answer": "", "yes_no": None}}
    questions = [{"question": f"{word}?", "question_id": word, "answers": [answer]} for word in ("What", "Why")]
    with (folder / "stories.jsonl").open("w") as stories, (folder / "papers.jsonl").open("w") as papers:
        for number, piece in enumerate(pieces):
            story = {"document": piece, "metadata": {"passage_id": str(number)}, "questions": asked}
            sections = [{"section_name": "S", "paragraphs": [piece]}]
            mine = [{**one, "question_id": f"{one['question_id']}{number}"} for one in questions]
            stories.write(json.dumps(story) + "\n")
            paper = {"id": f"p{number}", "title": "T", "abstract": "A", "full_text": sections, "qas": mine}
            papers.write(json.dumps(paper) + "\n")
    lines = [{"text": piece[:300], "a": " x", "b": " %%~", "right": n % 2} for n, piece in enumerate(pieces)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = {
        "chosen": "multiple_choice\ndoc_to_choice: ['{{a}}', '{{b}}']\ndoc_to_target: right\nmetric_list: [{metric: acc}]",
        "written": "generate_until\ndoc_to_target: '{{a}}'\nmetric_list: [{metric: exact_match}]\n"
                   "generation_kwargs: {until: ['\\n'], max_gen_toks: 4}",
        "rolling": "loglikelihood_rolling\ndoc_to_target: '{{text}}'\nmetric_list: [{metric: byte_perplexity}]",
    }  # fmt: skip
    for name, kind in kinds.items():
        said = "" if name == "rolling" else "{{text}}"
        (folder / f"tasks/{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/lines.jsonl}}}}\n"
            f"test_split: test\ndoc_to_text: '{said}'\noutput_type: {kind}\n"
        )
    return folder


@pytest.fixture(autouse=True)
def _here(inputs, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(measuring, "LOOK", 0.0)
    monkeypatch.chdir(inputs)


@cache
def composed(task):
    given = [f"task={task}", "model=local", f"model.path={TINY_MODEL}", "device=cpu", "policy=random", "cache=16", *CASES[task]]
    given = list({override.partition("=")[0]: override for override in given}.values())
    return given, compose_one(given)


def cell(folder, task="perplexity", **changes):
    """A cell; `changes` are made to the composed configuration, for composing anew is slow."""
    given, config = composed(task)
    config = config.copy()
    for key, value in {"results_dir": str(folder), **changes}.items():
        config[key] = value
    return prepare(config, given, CellProgress(1), SHARED)


def run(folder, task="perplexity", **changes):
    one = cell(folder, task, **changes)
    measure(expand([one]), CellProgress(1))
    return one


def rows(one) -> pd.DataFrame:
    return pd.read_csv(one.cell.csv, dtype=str, keep_default_na=False).drop(columns=TIMED)


def told(one) -> dict:
    """The manifest but for when, where and by how many."""
    manifest = json.loads(one.cell.manifest.read_text())
    config = {key: value for key, value in manifest["config"].items() if key not in ("shards", "results_dir")}
    vary = dict.fromkeys(("finished", "run", "machine", "git", "rows_sha256"))
    return {**manifest, **vary, "config": config, "seconds": manifest["seconds"] > 0}


def same(one, other) -> None:
    pd.testing.assert_frame_equal(rows(one), rows(other))
    assert told(one) == told(other)
    assert one.tokens_file.is_file() == other.tokens_file.is_file()
    if one.tokens_file.is_file():
        ours, theirs = np.load(one.tokens_file), np.load(other.tokens_file)
        assert sorted(ours) == sorted(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert one.cell.journal.is_file() == other.cell.journal.is_file()
    assert Journal(one.cell.journal).records.keys() == Journal(other.cell.journal).records.keys()
    for folder in (one.cell.results_dir, other.cell.results_dir):
        assert [path.name for path in (folder / "cells").glob(".*")] == []


@pytest.fixture(scope="module")
def alone(tmp_path_factory, inputs):
    """The perplexity of one process."""
    before = Path.cwd()
    os.chdir(inputs)
    try:
        return run(tmp_path_factory.mktemp("alone"))
    finally:
        os.chdir(before)


@pytest.fixture
def counted(monkeypatch):
    """The documents that perplexity measures, in order."""
    real, found = Perplexity._measure, []

    def measured(self, loaded, pieces, job):
        found.extend((piece.document, piece.index) for piece in pieces)
        return real(self, loaded, pieces, job)

    monkeypatch.setattr(Perplexity, "_measure", measured)
    return found


class Killed(BaseException):
    pass


def killed(monkeypatch, after: int, folder, shards: int) -> None:
    """A run that ends as if killed, once it has written so many records."""
    real, left = Journal.add, [after]

    def add(self, key, record):
        added = real(self, key, record)
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return added

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Journal, "add", add)
        run(folder, shards=shards)


def another_run(monkeypatch, name: str) -> None:
    monkeypatch.setenv("MSRNN_BENCH_RUN", name)


def sharing_tasks() -> set[str]:
    return {name for name in choices("task") if getattr(build(compose_one([f"task={name}"]).task, "task"), "shares", False)}


def test_every_task_that_shares_is_tried_here():
    assert sharing_tasks() == set(CASES)


@pytest.mark.parametrize("task", CASES)
def test_the_rows_of_several_are_those_of_one(tmp_path, task):
    """Bit for bit, the last bits of sums included; also with more parts than there are documents."""
    one = run(tmp_path / "1", task)
    assert one.done, one.failure
    for shards in (2, 3, 16) if task in ("perplexity", "stories") else (2, 3):
        same(run(tmp_path / str(shards), task, shards=shards), one)


def test_each_part_measures_its_documents_and_nobody_others(tmp_path, counted, alone):
    one = cell(tmp_path, shards=2)
    first, second = expand([one])
    progress = CellProgress(2)
    assert measure_part(second, progress) == "busy" and not one.done
    assert counted == [(f"{n}", index) for n in (1, 3) for index in (0, 1)]
    counted.clear()
    assert measure_part(second, progress) == "busy" and counted == []
    assert measure_part(first, progress) == "done" and one.done
    assert counted == [(f"{n}", index) for n in (0, 2, 4) for index in (0, 1)]
    same(one, alone)


def test_killed_anywhere_it_goes_on_with_any_number(tmp_path, monkeypatch, counted, alone):
    killed(monkeypatch, 2, tmp_path, shards=1)
    killed(monkeypatch, 2, tmp_path, shards=2)
    killed(monkeypatch, 3, tmp_path, shards=3)
    one = run(tmp_path, shards=2)
    assert sorted(counted) == sorted((f"{n}", index) for n in range(DOCUMENTS) for index in (0, 1))
    same(one, alone)


@pytest.mark.parametrize("after", [1, 4, 6, 8, 10, 12])  # while measuring, between the parts, while they are put together
def test_what_parts_have_left_serves_one_process(tmp_path, monkeypatch, counted, alone, after):
    killed(monkeypatch, after, tmp_path, shards=2)
    one = run(tmp_path, shards=1)
    assert len(counted) == 2 * DOCUMENTS == len(set(counted))
    same(one, alone)


def test_a_journal_that_was_cut_loses_a_document(tmp_path, counted, alone):
    one = cell(tmp_path, shards=2)
    first, second = expand([one])
    measure_part(first, CellProgress(1))
    content = first.cell.journal.read_bytes()
    first.cell.journal.write_bytes(content[: content.rindex(b'"key": "00004') + 20])
    counted.clear()
    measure([first, second], CellProgress(1))
    assert {name for name, _ in counted} == {"1", "3", "4"}
    same(one, alone)


def test_the_seconds_are_those_of_all_parts(tmp_path):
    one = cell(tmp_path, shards=2)
    first, second = expand([one])
    measure_part(first, CellProgress(1))
    sharing.end(first.cell, 1000.0, "a run")
    measure_part(second, CellProgress(1))
    assert 1000 < json.loads(one.cell.manifest.read_text())["seconds"] < 1100


def test_run_measures_all_parts_itself(tmp_path, capsys):
    given = ["task=perplexity", "model=local", f"model.path={TINY_MODEL}", "cache=16", "policy=random", *CASES["perplexity"]]
    assert main(["run", *given, f"results_dir={tmp_path}", "shards=3"]) == 0
    assert "perplexity" in capsys.readouterr().out and cell(tmp_path).done


def test_of_a_part_one_process_and_of_a_cell_one_way(tmp_path, counted, alone):
    one = cell(tmp_path, shards=2)
    (first, second), (other, *_), progress = expand([one]), expand([cell(tmp_path, shards=3)]), CellProgress(1)
    with ExitStack() as elsewhere:
        elsewhere.enter_context(lease(first.cell))
        assert measure_part(first, progress) == "busy", "another process is at this part"
        assert measure_part(cell(tmp_path), progress) == "busy", "nor is it measured whole meanwhile"
        assert measure_part(other, progress) == "busy" and counted == [], "nor in three"
        assert measure_part(second, progress) == "busy" and len(counted) == 4
    with lease(one.cell):
        assert measure_part(first, progress) == "busy" and len(counted) == 4, "another process is at the whole"
    assert measure_part(first, progress) == "done"
    same(one, alone)


def test_a_part_that_fails_is_the_cells_failure(tmp_path, monkeypatch, counted, alone):
    real = Perplexity._measure

    def failing(self, loaded, pieces, job):
        if pieces[0].document == "3":
            raise RuntimeError("the roof is on fire")
        return real(self, loaded, pieces, job)

    with monkeypatch.context() as patch:
        patch.setattr(Perplexity, "_measure", failing)
        one = run(tmp_path, shards=2)
    assert not one.done and one.failure == "RuntimeError: the roof is on fire"
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {
        one.cell.manifest.name, *(part.cell.journal.name for part in expand([one]))
    }  # fmt: skip
    another_run(monkeypatch, "another")
    before = len(counted)
    assert run(tmp_path, shards=2).failure and len(counted) == before, "left alone"
    assert run(tmp_path, retry="failed", shards=2).done
    assert {name for name, _ in counted[before:]} == {"3"}
    pd.testing.assert_frame_equal(rows(one), rows(alone))


def test_force_measures_all_again(tmp_path, monkeypatch, counted):
    killed(monkeypatch, 2, tmp_path, shards=3)  # its leftovers are older than the command
    run(tmp_path, shards=1)
    counted.clear()
    another_run(monkeypatch, "another")
    one = run(tmp_path, force=True, shards=2)
    assert len(counted) == 2 * DOCUMENTS == len(set(counted)) and one.done
    assert not list((tmp_path / "cells").glob(".*"))


@pytest.mark.parametrize(
    ("task", "why"), [("efficiency", "measures time"), ("equivalence", "does not write down each document's numbers")]
)
def test_a_task_that_cannot_share_says_so(tmp_path, task, why):
    given = [f"task={task}", "model=local", f"model.path={TINY_MODEL}", "shards=2", *TEXT]
    with pytest.raises(UsageError, match=f"task={task} {why}.*: set shards=1") as error:
        prepare(compose_one(given), given, CellProgress(1), SHARED)
    assert "\n" not in str(error.value)


def test_batches_stay_whole(tmp_path, monkeypatch):
    """What is answered in one batch in one process is so in several, and after a kill too: its last bits depend on it."""
    real, batches = Writer.answers, []

    def answers(self, asked):
        batches.append(tuple(one.ids[-12:] for one in asked) and tuple(str(one.ids) for one in asked))
        return real(self, asked)

    monkeypatch.setattr(Writer, "answers", answers)
    run(tmp_path / "1", "squality")
    whole = list(batches)
    assert [len(batch) for batch in whole] == [2] * DOCUMENTS
    batches.clear()
    run(tmp_path / "2", "squality", shards=2)
    assert batches == [*whole[0::2], *whole[1::2]]


def test_workers_share_a_cell_end_with_a_killed_sweep_and_it_goes_on(tmp_path, alone):
    """Real processes: two workers on the parts of one cell, the sweep killed at some moment, then the rest in three parts."""
    given = [
        "run", "-m", "task=perplexity", "model=local", f"model.path={TINY_MODEL}", "device=cpu", "policy=random", "cache=16",
        f"results_dir={tmp_path}", *CASES["perplexity"],
    ]  # fmt: skip
    parent = kill.start([*given, "shards=2", "workers=2"])
    begin, workers = time.monotonic(), []
    while parent.is_alive() and not list(tmp_path.glob("cells/.*.jsonl")) and time.monotonic() - begin < 300:
        workers = workers if len(workers) == 2 else psutil.Process(parent.pid).children()
        time.sleep(0.01)
    parent.kill()
    parent.join()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert len(workers) == 2 and not alive
    assert main([*given, "shards=3"]) == 0
    one = cell(tmp_path)
    pd.testing.assert_frame_equal(rows(one), rows(alone))
    assert not list((tmp_path / "cells").glob(".*shard*"))

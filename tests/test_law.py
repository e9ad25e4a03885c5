"""What a cell's identity must see (and chance, which belongs to a request and to nothing else)."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Silent
from transformers import GenerationConfig

from msrnn_bench.datasets.texts import Nothing
from msrnn_bench.errors import UsageError
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks.lm_eval.files import digests
from msrnn_bench.tasks.writing import prompts
from msrnn_bench.tasks.writing.sampling import sampling_warpers

TINY = ROOT / "tests/tiny/model"


def identifier(*overrides: str) -> str:
    return prepare(compose_one(list(overrides)), list(overrides), Silent(), {}).cell.id


# --- files that a task of lm-eval needs


@pytest.fixture
def lm_tasks(tmp_path: Path) -> Path:
    """A task whose base YAML, function and two data files of one name lie outside its folder."""
    for name in ("tasks", "common", "data/test", "data/train"):
        (tmp_path / name).mkdir(parents=True)
    for split in ("test", "train"):
        (tmp_path / f"data/{split}/0.jsonl").write_text(json.dumps({"text": split}) + "\n")
    (tmp_path / "common/more.yaml").write_text("doc_to_target: x\n")
    (tmp_path / "common/helpers.py").write_text("def process(doc):\n    return doc\n")
    (tmp_path / "common/base.yaml").write_text(
        "include: more.yaml\noutput_type: generate_until\nprocess_docs: !function helpers.process\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path}/data/test/0.jsonl\n    train: {tmp_path}/data/train/0.jsonl\n"
    )
    (tmp_path / "tasks/mine.yaml").write_text("include: ../common/base.yaml\ntask: mine\n")
    return tmp_path


@pytest.mark.parametrize(
    "file",
    ["tasks/mine.yaml", "common/base.yaml", "common/more.yaml", "common/helpers.py", "data/test/0.jsonl", "data/train/0.jsonl"],
)
def test_every_file_that_can_change_the_number_is_in_the_identity(lm_tasks, file):
    before = digests(lm_tasks / "tasks")
    (lm_tasks / file).write_text((lm_tasks / file).read_text() + "\n# edited\n")
    after = digests(lm_tasks / "tasks")
    assert before.keys() == after.keys() and sum(before[name] != after[name] for name in before) == 1
    assert not any(str(lm_tasks) in name for name in before)


def test_base_files_that_include_each_other_end(lm_tasks):
    (lm_tasks / "common/more.yaml").write_text("include: base.yaml\n")
    assert digests(lm_tasks / "tasks")


# --- chat templates that print the date


class Dated:
    chat_template = "{{ 'Today: ' + strftime_now('%d %b %Y %H:%M:%S') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_chat_template_is_given_one_day():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = Dated.chat_template
    head, tail = prompts.frame(tokenizer, "{document} What?", chat=True)
    said = tokenizer.decode(head + tail)
    assert f"Today: {prompts.TODAY:%d %b %Y %H:%M:%S}" in said
    assert prompts.dated(AutoTokenizer.from_pretrained(TINY)) == {}
    tokenizer.chat_template = '{%- if strftime_now is defined %}{% set d = strftime_now("%Y") %}{% endif %}{{ d }}'
    assert str(prompts.TODAY.year) in tokenizer.decode(prompts.frame(tokenizer, "{document} What?", chat=True)[1])
    tokenizer.chat_template = "{% set form = '%Y' %}{{ strftime_now(form) }}"
    with pytest.raises(UsageError, match="fixed to one day"):
        prompts.frame(tokenizer, "{document} What?", chat=True)


# --- text that a task brings itself


def test_a_mark_of_beginning_is_part_of_a_tasks_own_text():
    ids = {bos: identifier("task=stories", "dataset=none", f"dataset.bos={bos}") for bos in ("auto", "never")}
    assert ids["auto"] != ids["never"]
    assert Nothing().fingerprint() == "none"  # as every cell so far has it


@pytest.mark.parametrize("setting", [{"start": 0.5}, {"skip": 3}, {"pack": True}])
def test_what_cuts_text_is_refused_where_there_is_none(setting):
    with pytest.raises(UsageError, match="this dataset has none"):
        Nothing(**setting)


# --- sampling under lm-eval


def test_warpers_are_the_librarys():
    """Temperature, top-k and top-p as `generate` itself applies them, with its defaults."""
    scores, ids = torch.randn(2, 200), torch.zeros(2, 1, dtype=torch.long)
    options = {"temperature": 0.7, "top_p": 0.9}
    made = sampling_warpers(options, GenerationConfig())
    assert options == {} and [type(w).__name__ for w in made] == [
        "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper",
    ]  # fmt: skip
    for warper in made:
        scores = warper(ids, scores)
    assert int(scores.isfinite().sum(-1).max()) <= 50
    assert sampling_warpers({"top_k": 0}, GenerationConfig()) == []
    with pytest.raises(UsageError, match="min_p"):
        sampling_warpers({"min_p": 0.1}, GenerationConfig())

"""The law of a cell's identity: a key of its configuration changes the id, or never the number. Every key is tried.

And what the law needs: chance belongs to a request and to nothing else, templates do not print the date.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, Silent, choice
from omegaconf import OmegaConf
from transformers import GenerationConfig

from msrnn_bench.datasets.texts import Nothing
from msrnn_bench.errors import UsageError
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import choices, compose_one
from msrnn_bench.runs.identity import ADDRESSES, LABELS, SPEED
from msrnn_bench.tasks.lm_eval.files import digests
from msrnn_bench.tasks.writing import prompts
from msrnn_bench.tasks.writing.sampling import sampling_warpers

TINY = ROOT / "tests/tiny/model"


# --- every key of every task

TEXT = ROOT / "tests/tiny/heldout.txt"
BASE = {
    "perplexity": ["dataset=text", f"dataset.path={TEXT}", "context=128", "tokens=128", "documents=1"],
    "retention": ["dataset=text", f"dataset.path={TEXT}", "context=128", "tokens=128", "documents=1"],
    "extrapolation": ["dataset=text", f"dataset.path={TEXT}", "tokens=128", "documents=1"],
    "efficiency": ["dataset=text", f"dataset.path={TEXT}", "context=128", "tokens=128", "documents=1", "task.piece=32"],
    "equivalence": ["dataset=text", f"dataset.path={TEXT}", "context=128", "tokens=128", "documents=1"],
    "stories": ["context=256", "task.new_tokens=32"],
    "retrieval": ["context=512", "task.lengths=[300]"],
    "squality": ["dataset.path=questions.jsonl", "context=512", "task.new_tokens=32"],
    "qasper": ["dataset.path=paper.jsonl", "context=512", "task.new_tokens=32"],
    "lm_eval": ["context=512", "task.tasks=[mine]", "task.include_path=mine"],
}
# Two values of a key, where its type does not supply the second: (what must be set for it to matter, one, another).
VALUES: dict[str, tuple[list[str], str, str]] = {
    "dtype": ([], "float32", "bfloat16"),
    "engine": ([], "scan", "recurrence"),
    "device": ([], "auto", "cpu"),
    "prefill": ([], "stepwise", "oneshot"),
    "positions": ([], "original", "compressed"),
    "results_dir": ([], "one", "two"),
    "retry": ([], "null", "failed"),
    "cache": ([], "16", "32"),
    "context": ([], "128", "96"),
    "tokens": ([], "128", "256"),
    "documents": ([], "1", "null"),
    "dataset.bos": ([], "auto", "never"),
    "dataset.start": ([], "0.0", "0.25"),
    "dataset.path": ([], str(TEXT), "other.txt"),
    "dataset.encoding": (["dataset.path=legacy.txt"], "cp1252", "cp1250"),
    "dataset.separator": ([], "null", "def"),
    "dataset.field": (["dataset.path=lines.jsonl"], "text", "title"),
    "dataset.name": ([], "one", "two"),
    "dataset.strip_gutenberg": (["dataset.path=book.txt"], "false", "true"),
    "dataset.min_characters": (["dataset.separator=def", "documents=null"], "0", "400"),
    "dataset.modules": (["dataset=pysource"], "[textwrap]", "[shlex]"),
    "dataset.parts": (["dataset=pydocs"], "8", "4"),
    "dataset.sentences": ([], "[One.]", "[Two.]"),
    "dataset.repeats": ([], "2000", "3000"),
    "model.path": ([], str(TINY), "another"),
    "model.name": ([], "one", "two"),
    "model.weights": ([], "pretrained", "random"),
    "model.device_map": ([], "null", "auto"),
    "model.extrapolate": ([], "false", "true"),
    "model.architecture": (["model.weights=random"], "{model_type: gpt2, n_layer: 2}", "{model_type: gpt2, n_layer: 3}"),
    "policy.per": (["policy=tova"], "layer", "head"),
    "policy.memory": (["policy=eviction"], "0.5", "0.9"),
    "policy.recent": (["policy=h2o"], "null", "3"),
    "policy.seed": (["policy=random"], "0", "1"),
    "task.buckets": ([], "[64]", "[32,64]"),
    "task.classes": ([], "auto", "[char]"),
    "task.prompt": ([], "", ""),
    "task.judge": ([], "none", "local"),
    "task.judge_prompt": (["task.judge=local"], "'{first} {second}'", "'{second} {first}'"),
    "task.judge_model": (["task.judge=endpoint"], "a", "b"),
    "task.judge_path": (["task.judge=local"], str(TINY), "another"),
    "task.judge_temperature": (["task.judge=endpoint", "task.judge_model=a"], "0.0", "0.5"),
    "task.judge_timeout": (["task.judge=endpoint", "task.judge_model=a"], "60", "30"),
    "task.temperature": ([], "1.0", "0.5"),
    "task.top_p": ([], "1.0", "0.5"),
    "task.stop": ([], "[x]", "[y]"),
    "task.kinds": ([], "[single]", "[lookup]"),
    "task.lengths": ([], "[300]", "[200]"),
    "task.depths": ([], "[0]", "[1]"),
    "task.tasks": ([], "[mine]", "[other]"),
    "task.include_path": ([], "mine", "edited"),
    "task.questions": ([], "1", "null"),
    "task.limit": ([], "null", "1"),
    "task.num_fewshot": ([], "null", "0"),
    "task.new_tokens": ([], "16", "24"),
    "task.hops": (["task.kinds=[variables]"], "2", "3"),
    "task.every": ([], "1000", "64"),
    "task.least": ([], "null", "200"),
    "task.length": ([], "null", "100"),
    "task.memory": ([], "null", "1GiB"),
    "task.needles": (["task.kinds=[multi]"], "2", "3"),
}
OTHERWISE = {  # for a task alone
    ("squality", "dataset.path"): ("questions.jsonl", "asked.jsonl"), ("qasper", "dataset.path"): ("paper.jsonl", "papers.jsonl"),
    **{(task, "context"): ("512", "500") for task in ("squality", "qasper", "retrieval", "lm_eval", "stories")},
    **{(task, "task.batch"): ("auto", "8") for task in ("perplexity", "retention", "extrapolation")},
}  # fmt: skip
ONE_VALUE = {  # others are refused
    *((task, "prefill") for task in ("perplexity", "retention", "extrapolation", "efficiency", "equivalence")),
    ("extrapolation", "context"), ("lm_eval", "dataset.bos"), ("efficiency", "workers"), ("equivalence", "positions"),
    ("efficiency", "shards"), ("equivalence", "shards"),
}  # fmt: skip
PROMPTS = {"retrieval": "{document} {question}", "squality": "{document} {question}", "qasper": "{document} {question}"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Small inputs of every shape, the second of each with other content."""
    import shutil

    folder = tmp_path_factory.mktemp("law")
    (folder / "other.txt").write_text("def other(): pass\n" * 400)
    (folder / "legacy.txt").write_bytes(("abc \xe8 \xb3 def\n" * 400).encode("latin-1"))
    (folder / "book.txt").write_text("*** START OF THE PROJECT GUTENBERG EBOOK X ***\n" + "a long book\n" * 400)
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": "a" * 900, "title": "b" * 900}) + "\n" for _ in range(3)))
    asked = [{"question_text": f"Who {n}?", "responses": [{"response_text": "A man."}]} for n in range(2)]
    story = {"document": "A story. " * 40, "metadata": {"passage_id": "1"}, "questions": asked}
    (folder / "questions.jsonl").write_text(json.dumps(story) + "\n")
    (folder / "asked.jsonl").write_text(json.dumps({**story, "questions": asked[1:]}) + "\n")
    answers = [{"answer": {"unanswerable": True}}]
    paper = {
        "id": "p", "title": "T", "abstract": "A", "full_text": [{"section_name": "S", "paragraphs": ["text " * 40]}],
        "qas": [{"question": f"{word}?", "question_id": word, "answers": answers} for word in ("What", "Why")],
    }  # fmt: skip
    (folder / "paper.jsonl").write_text(json.dumps(paper) + "\n")
    (folder / "papers.jsonl").write_text(json.dumps({**paper, "title": "U"}) + "\n")
    for name, target in (("mine", "x"), ("edited", "y")):
        (folder / name).mkdir()
        for task in ("mine", "other"):
            (folder / name / f"{task}.yaml").write_text(
                f"task: {task}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/lines.jsonl}}}}\n"
                f"test_split: test\noutput_type: generate_until\ndoc_to_text: '{{{{text}}}}'\ndoc_to_target: {target}\n"
                "metric_list: [{metric: exact_match}]\n"
            )
    shutil.copytree(TINY, folder / "another")
    config = json.loads((folder / "another/config.json").read_text())
    (folder / "another/config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    return folder


MADE: dict = {}


@cache
def composed(overrides: tuple[str, ...]):
    return compose_one(list(overrides))


def identifier(*overrides: str, **changes: str) -> str:
    """The id of a cell; `changes` are made to the composed configuration, and what is built of a configuration is built once,
    as for a grid: making either anew is slow."""
    config = composed(overrides).copy()
    for key, value in changes.items():
        OmegaConf.update(config, key, yaml.safe_load(value), force_add=True)
    return prepare(config, list(overrides), Silent(), MADE).cell.id


def keys(config) -> Iterator[str]:
    """Top-level keys and those of the groups, as they are written on the command line."""
    for key in config:
        if key in ("model", "dataset", "policy", "task"):
            yield from (f"{key}.{inner}" for inner in config[key] if not str(inner).startswith("_"))
        elif key != "experiment":
            yield str(key)


def second(value, key: str) -> tuple[str, str]:
    """Two values of a key by its type."""
    if isinstance(value, bool):
        return str(value).lower(), str(not value).lower()
    if isinstance(value, int | float):
        return str(value), str(value + 1)
    raise KeyError(f"tests/test_law.py: VALUES lacks {key}")


def cases() -> Iterator[tuple[str, list[str], str, str, str]]:
    """(task, what is set, key, one value, another) for every task and key, datasets' and policies' own among them."""
    local = ["model=local", f"model.path={TINY}", "cache=16"]
    for task in choices("task"):
        base = [f"task={task}", *local, *BASE[task]]
        for key in keys(composed(tuple(base))):
            if tells(task, key):
                yield task, base, key, *values(composed(tuple(base)), task, key)
    base = ["task=perplexity", *local, "context=128", "tokens=128", "documents=1"]
    for group in ("dataset", "policy"):
        for name in choices(group):
            if name in ("hub", "pg19", "wikitext2", "none", "squality", "qasper", "text"):
                continue  # of the hub; of tasks above
            own = [*base, f"{group}={name}", *([] if group == "dataset" else ["dataset=pysource", "dataset.modules=[textwrap]"])]
            config = composed(tuple(own))
            for key in (f"{group}.{inner}" for inner in config[group] if not str(inner).startswith("_")):
                if tells("perplexity", key):
                    yield "perplexity", own, key, *values(config, "perplexity", key)


def tells(task: str, key: str) -> bool:
    """Not: keys of one value only, those that cut text where a task has none to cut (refused, and tested as such), and
    addresses of the hub beside a path."""
    group, _, name = key.rpartition(".")
    if (task, key) in ONE_VALUE or (key == "keep_tokens" and task not in ("perplexity", "retention")):
        return False
    cuts = group == "dataset" and name in ("start", "skip", "pack") and task not in ("perplexity", "retention", "extrapolation")
    return not cuts and not (name in ADDRESSES and key not in VALUES)


def values(config, task: str, key: str) -> tuple[str, str]:
    if key == "task.prompt":
        plain = PROMPTS.get(task, "Write.")
        return f"'{plain} One'", f"'{plain} Two'"
    if (task, key) in OTHERWISE:
        return OTHERWISE[task, key]
    if key in VALUES:
        return VALUES[key][1:]
    group, _, name = key.rpartition(".")
    return second(config[group][name] if group else config[key], key)


def test_the_law(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setenv("MSRNN_JUDGE_URL", "http://127.0.0.1:9/v1")
    tried, refused, broken = 0, [], []
    for task, base, key, one, other in cases():
        setup = VALUES.get(key, ([],))[0]
        try:
            ids = {identifier(*_without(base, key, setup), *setup, **{key: value}) for value in (one, other)}
        except UsageError as error:
            refused.append(f"{task} {key}: {error}")
            continue
        tried += 1
        timed = task == "efficiency" and key == "graph"  # what it measures is speed
        if len(ids) != (1 if key.rpartition(".")[2] in SPEED | LABELS and not timed else 2):
            broken.append(f"{task} {key}={one}|{other}: {len(ids)} ids")
    with capsys.disabled():
        print(f"\nthe law: {tried} pairs of task and key tried, {len(broken)} exceptions")
    assert broken == [] and refused == [] and tried > 150


def _without(base: list[str], key: str, setup: list[str]) -> list[str]:
    """The overrides but those that set the same keys."""
    taken = {key, *(o.split("=")[0] for o in setup)}
    return [o for o in base if o.split("=")[0] not in taken]


def test_content_counts_wherever_it_lies(files, monkeypatch, tmp_path):
    import shutil

    monkeypatch.chdir(files)
    shutil.copytree(TINY, tmp_path / "renamed")
    shutil.copy(TEXT, tmp_path / "renamed.txt")
    base = ["context=128", "tokens=128", "documents=1", "dataset=text", "model=local"]
    one, other = (
        identifier(*base, f"model.path={model}", f"dataset.path={text}")
        for model, text in ((TINY, TEXT), (tmp_path / "renamed", tmp_path / "renamed.txt"))
    )
    assert one == other


def test_a_time_belongs_to_its_machine(monkeypatch):
    """Processor, threads and device are part of the id where a task is timed, and of no other's."""
    from msrnn_bench.results import provenance
    from msrnn_bench.runs import identity

    local = ["model=local", f"model.path={TINY}", "cache=16"]
    bases = {task: (f"task={task}", *local, *BASE[task]) for task in ("efficiency", "perplexity")}
    here = {task: identifier(*base) for task, base in bases.items()}
    facts = provenance.hardware("cpu")
    assert set(facts) == {"processor", "threads", "device"} and facts["threads"] == torch.get_num_threads()
    for fact, other in (("processor", "another"), ("threads", facts["threads"] + 1), ("device", "Some GPU")):
        monkeypatch.setattr(identity, "hardware", lambda _, changed={fact: other}: {**facts, **changed})
        assert identifier(*bases["efficiency"]) != here["efficiency"], fact
        assert identifier(*bases["perplexity"]) == here["perplexity"], fact
    monkeypatch.setattr(identity, "hardware", lambda device: {**facts, "device": device})
    assert len({identifier(*bases["efficiency"], device=name) for name in ("cpu", "cuda:0")}) == 2
    with pytest.raises(UsageError, match=r"task=efficiency measures time.*workers=1"):
        identifier(*bases["efficiency"], workers="2")


def test_the_lists_name_what_there_is():
    """No entry of a list that no configuration has: a key renamed would leave the law's exceptions too wide."""
    there = {key.rpartition(".")[2] for key in keys(composed(()))}
    there |= {str(key) for kind in ("task", "dataset", "model") for name in choices(kind) for key in choice(kind, name)}
    assert there >= SPEED | LABELS | ADDRESSES


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


def test_losses_are_kept_where_there_are_losses():
    """A cell whose losses never come would never count as finished."""
    with pytest.raises(UsageError, match="task=stories does not measure"):
        identifier("task=stories", "keep_tokens=true")


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


def test_lm_evals_sampling_belongs_to_the_request():
    """The same words alone, in a batch, in another order, and beside requests that are answered already; others for
    another seed, another request, and the same request asked twice."""
    from lm_eval.api.instance import Instance

    from msrnn_bench.cli.lm_eval import Msrnn

    texts = ["def __init__(self):", "def read(self, size=-1):", "def close(self):"]
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}

    def written(batch: int, order: list[int], seed: int = 0) -> dict[int, str]:
        lm = Msrnn(str(TINY), policy="tova", cache=16, context=256, batch_size=batch, device="cpu", seed=seed)
        requests = [Instance("generate_until", {}, (texts[n], options), 0, ("mine", n, 1)) for n in order]
        return dict(zip(order, lm.generate_until(requests), strict=True))

    alone = written(1, [0, 1, 2])
    assert written(3, [0, 1, 2]) == alone == written(2, [2, 0, 1])
    assert written(1, [1])[1] == alone[1]
    assert written(1, [0, 1, 2], seed=1) != alone and len(set(alone.values())) == 3


@pytest.mark.slow
def test_what_settings_of_speed_change_in_float32(tmp_path, capsys):
    """In float64 nothing but rounding (test_perplexity.py, test_answers.py); here what it amounts to on the default model."""

    def rows(*overrides: str) -> list:
        cell = prepare(compose_one(list(overrides)), list(overrides), Silent(), shared)
        object.__setattr__(cell.job, "journal", tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl")
        return list(cell.task.rows(cell.job))

    shared: dict = {}
    told = []
    plain = ["context=1024", "tokens=1024", "documents=2", "policy=tova", "cache=128", "device=cpu"]
    for name, one, other, base in (
        ("task.chunk", "1024", "100", plain),
        ("task.batch", "2", "1", plain),
        ("task.batch", "4", "1", ["task=stories", "task.stories=4", "task.new_tokens=32", "task.chat=true", *plain[-3:]]),
    ):
        found = [rows(*base, f"{name}={value}") for value in (one, other)]
        for metric in sorted({row.metric for row in found[0]} & {"nll", "length"}):
            a, b = ([row.total / row.count for row in part if row.metric == metric] for part in found)
            told.append(
                f"{name}={one}|{other}: {metric} differs by at most {max(abs(x - y) for x, y in zip(a, b, strict=True)):.1e}"
            )
            assert a == pytest.approx(b, abs=2e-3)
    with capsys.disabled():
        print("\n" + "\n".join(told))

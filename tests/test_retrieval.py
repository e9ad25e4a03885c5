"""Retrieval: what is hidden and where it stands, how answers score, one reading for many questions, the whole way, the map."""

import dataclasses
import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY_MODEL, sentencepiece

from msrnn_bench import figures
from msrnn_bench.cli.main import main
from msrnn_bench.datasets.filler import Filler
from msrnn_bench.errors import UsageError
from msrnn_bench.figures.depth import plot
from msrnn_bench.models.sources import bytes_tokenizer
from msrnn_bench.results.cells import COLUMN_TYPES, COLUMNS
from msrnn_bench.runs.build import build
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks import retrieval
from msrnn_bench.tasks.retrieval import Retrieval
from msrnn_bench.tasks.writing import answers as written
from msrnn_bench.tasks.writing import needles
from msrnn_bench.tasks.writing.answers import Writer

PROSE = Filler(sentences=("The mill stands still.", "Is it late?", "A cart rolls by in the rain."), repeats=2000)
SOURCE = "\n".join(f"def f{i}(x):\n    y = x + {i}\n    return y\n" for i in range(3000))
WRAPPED = "\n".join("and so the story goes on and on\nwithout an end in sight. Then came day\nand" for _ in range(2000))
DEPTHS = (0, 0.25, 0.5, 0.75, 1)


def hidden(kind, depths=DEPTHS, seed=0, length=1000, example=0, hops=2):
    return needles.hide(kind, depths, seed=seed, length=length, example=example, hops=hops)


@cache
def tokenizer(name):
    """Bytes; merges of whole words as in GPT-2; the sentencepiece kind, which puts a space before a text."""
    if name == "bytes":
        return bytes_tokenizer()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    if name == "sentencepiece":  # which has no token for the end of a line, but its byte
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        lines = [line for text in TEXTS.values() for line in text()[:20_000].splitlines()]
        core.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=300, show_progress=False))
        return sentencepiece(json.loads(core.to_str())["model"]["merges"])
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=letters, show_progress=False, special_tokens=["<end>"])
    core.train_from_iterator([text()[:20_000] for text in TEXTS.values()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


TEXTS = {"filler": lambda: next(PROSE.read()).text, "source": lambda: SOURCE, "wrapped": lambda: WRAPPED}


# --- what is hidden


@pytest.mark.parametrize("kind", needles.KINDS)
def test_a_haystack_is_a_function_of_its_place_and_the_seed(kind):
    one = hidden(kind)
    assert one == hidden(kind) and len(one.hidden) == len(DEPTHS)
    values = {h.value for h in one.hidden}
    for other in (hidden(kind, seed=1), hidden(kind, example=1), hidden(kind, length=4000)):
        assert values.isdisjoint(h.value for h in other.hidden)
    for depth, h in zip(DEPTHS, one.hidden, strict=True):
        assert h.planted[h.asked][0] == depth and h.value in h.planted[h.asked][1]
        assert h.value.isdigit() and len(h.value) == 7 and h.value not in h.question
        assert [d for d, _ in h.planted] == sorted(d for d, _ in h.planted)


def test_known_draws_stay_what_they_are():
    """Results on disk rest on them: who changes what is drawn raises needles.VERSION and this."""
    assert needles.VERSION == 1
    assert hidden("single").hidden[0].planted[0][1] == "The secret number of the ticket is 2596569."
    assert len(set(needles.WORDS)) == len(needles.WORDS) > 100


def test_single_asks_one_thing_at_every_depth_whatever_the_depths():
    assert len({(h.question, h.value, h.planted[0][1]) for h in hidden("single").hidden}) == 1
    assert hidden("single", depths=(0.5,)).hidden[0] == hidden("single").hidden[2]


def test_multi_and_lookup_hide_all_at_once():
    for kind in ("multi", "lookup"):
        found = hidden(kind).hidden
        assert len({h.planted for h in found}) == 1 and len({h.value for h in found}) == len({h.question for h in found}) == 5
    lines = hidden("lookup", length=8000).text.splitlines()
    assert len(lines) > 8000 / 6 and len({line.split(":")[0] for line in lines}) == len(lines)
    assert not any(h.value in line for h in hidden("lookup").hidden for line in hidden("lookup").text.splitlines())


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_variables_lead_from_the_asked_name_to_the_value(hops):
    for h in hidden("variables", hops=hops).hidden:
        given = dict(s.removeprefix("VAR ").removesuffix(".").split(" = VAR ") for _, s in h.planted if " = VAR " in s)
        name, steps = h.question.removesuffix("?").split("VAR ")[1], 0
        while name in given:
            name, steps = given[name], steps + 1
        assert steps == hops and h.planted[h.asked][1] == f"VAR {name} = {h.value}."
        numbers = [s for _, s in h.planted if s[-2].isdigit()]
        assert len(numbers) == 2 and len(h.planted) == 2 * (hops + 1) and h.planted[-1][0] == 1
    assert len({h.planted[0][1] for n in range(9) for h in hidden("variables", example=n).hidden}) > 5


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" 1234567", True), ("It is 1234567.", True), ("1234567, I think", True), ("no. 1234567\n", True), ("x1234567y", True),
        ("12345678", False), ("91234567", False), ("1234567.5", False), ("0.1234567", False), ("1,234,567", True),
        ("It is 1 234 567.", True), ("1.234.567, I think", True), ("1’234’567", True), ("12 1,234,567", True),
        ("1. 1234567", True),
        ("1,234.567", False), ("1,234,567,000", False), ("0,1,234,567", False), ("1,2345,67", False), ("1,234,5678", False),
        ("1234567,000", False), ("123456", False), ("123 4567", False), ("", False),
    ],
)  # fmt: skip
def test_a_value_counts_as_a_whole_number_only(answer, right):
    assert needles.found("1234567", answer) is right


# --- where it stands


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("reader", ["bytes", "words", "sentencepiece"])
def test_sentences_stand_at_their_depths_and_at_seams(reader, text):
    tok, size, sentence = tokenizer(reader), 700, "The secret number of the ticket is 2596569."
    hay = needles.parts(tok, TEXTS[text](), size, 2)[1]
    for depth in DEPTHS:
        ids, (place,) = needles.plant(tok, hay, [(depth, sentence)], size)
        start = place.start
        assert tok.decode(ids[start : place.stop]).strip() == sentence
        length = len(tok(sentence)["input_ids"])
        assert len(ids) == size and ids[:start] == hay[:start]
        assert abs(start - depth * (size - length)) <= needles.REACH + 4
        before, after = tok.decode(ids).split(sentence)
        assert not before.strip() or before.rstrip()[-1] in ".?" or "\n" in (before + "\n")[-1] + after[:1] or text == "source"
        assert not before or before[-1].isspace(), "the sentence keeps its distance"
        assert not after or after[0].isspace()
        if text == "source":
            assert before in ("",) or before.endswith("\n")
        if text == "wrapped" and before:
            assert before.rstrip(" \n").endswith("."), "a sentence's end is preferred to a line's"


def test_several_sentences_keep_their_order_and_the_size():
    tok = tokenizer("words")
    hay = needles.parts(tok, TEXTS["filler"](), 400, 1)[0]
    planted = [(0, "One is 1."), (0.5, "Two is 2."), (0.5, "Three is 3."), (1, "Four is 4.")]
    ids, places = needles.plant(tok, hay, planted, 400)
    starts = [place.start for place in places]
    text = tok.decode(ids)
    assert len(ids) == 400 and starts == sorted(starts) and starts[0] == 0
    assert [text.index(s) for _, s in planted] == sorted(text.index(s) for _, s in planted)
    for start, (_, sentence) in zip(starts, planted, strict=True):
        assert tok.decode(ids[start : start + 40]).lstrip().startswith(sentence)
    with pytest.raises(UsageError, match="cannot hold"):
        needles.plant(tok, hay, planted, 10)


def test_a_text_without_seams_takes_the_sentence_at_its_depth():
    tok = tokenizer("bytes")
    ids, (place,) = needles.plant(tok, tok("x" * 500)["input_ids"], [(0.5, "A is 1.")], 408)
    assert place.start == 200 and len(ids) == 408


def test_examples_take_different_parts_and_documents_are_joined():
    tok = tokenizer("bytes")
    text = "\n\n".join(f"Text {i} is here." for i in range(100))
    cut = [tok.decode(part) for part in needles.parts(tok, text, 300, 5)]
    assert all(part.startswith("Text ") for part in cut)
    assert [text.index(part) // 300 for part in cut] == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match=r"part 6 of 10 of 300 tokens.*more documents"):
        needles.parts(tok, text, 300, 10)


# --- the task


def composed(*overrides):
    given = ["task=retrieval", "model=local", f"model.path={TINY_MODEL}", "context=512", "task.examples=2"]
    config = compose_one([*given, "policy=full", "task.lengths=[200,300]", "task.depths=[0,0.5,1]", *overrides])
    return prepare(config, [], Silent(), {})


class Silent:
    def __init__(self):
        self.total = self.done = 0

    def start(self, tokens):
        self.total = tokens

    def advance(self, tokens):
        self.done += tokens

    restored = advance


def cases(prepared, kind="single", length=300):
    loaded = prepared.job.model.load(dtype="float32", device="cpu", seed=0)
    return loaded.tokenizer, list(prepared.task._cases(prepared.job, loaded.tokenizer, kind, length))


def test_the_yaml_says_the_defaults():
    assert build(compose_one(["task=retrieval"]).task, "task") == Retrieval()
    assert compose_one(["task=retrieval"]).dataset.name == "filler"
    assert compose_one(["task=retrieval", "dataset=pydocs"]).dataset.name == "pydocs"
    assert compose_one(["experiment=laptop/retrieval", "dataset=pysource"]).dataset.name == "pysource"


@pytest.mark.parametrize("kind", needles.KINDS)
def test_prompts_have_exactly_the_length(kind):
    tok, found = cases(composed("task.prompt='{document}\n{question}'", "task.hops=1"), kind)
    lengths = [len(case.prompt.ids) for case in found]
    assert max(lengths) == 300 and (min(lengths) == 300 or kind in ("multi", "lookup")) and min(lengths) > 290
    assert len({case.document for case in found}) == 2 and len({case.key for case in found}) == 6
    for case in found:
        text = tok.decode(case.prompt.ids)
        assert case.hidden.planted[case.hidden.asked][1] in text and text.endswith(case.hidden.question)
        before = case.prompt.ids[: len(case.prompt.head) + case.at.start]
        assert case.hidden.value not in tok.decode(before) and case.read <= case.prompt.reading
    one, two, three = found[:3]
    beginning = min(one.read, two.read)
    assert two.prompt.ids[:beginning] == one.prompt.ids[:beginning]
    assert (one.read < two.read < three.read) == (kind in ("single", "variables"))


def test_the_baseline_loses_what_stands_behind_k():
    prepared = composed("policy=baseline", "cache=250")
    tok, found = cases(prepared)
    assert [len(case.prompt.ids) for case in found[:3]] == [250] * 3 and found[0].prompt.cut == 50
    assert [case.hidden.value in tok.decode(case.prompt.ids) for case in found[:3]] == [True, True, False]
    assert all(case.prompt.ids[-20:] == found[0].prompt.ids[-20:] for case in found[:3]), "the question stays"
    assert all(case.read <= case.prompt.reading for case in found)


@pytest.mark.parametrize(
    ("kind", "policy"),
    [*((kind, "tova") for kind in needles.KINDS), *(("single", policy) for policy in ("h2o", "random", "full", "baseline"))],
)
def test_a_shared_reading_answers_as_a_reading_anew(kind, policy, tmp_path, monkeypatch):
    """In float64, where the order of sums flips no choice; and it reads no token twice."""
    short = ["task.prompt='{document}\n{question}'", "task.hops=1", "task.lengths=[260]", "task.new_tokens=6"]
    prepared = composed(f"policy={policy}", "cache=120", f"task.kinds=[{kind}]", *short, f"results_dir={tmp_path}")
    job = prepared.job
    loaded = job.model.load(dtype="float32", device="cpu", seed=0)
    loaded = dataclasses.replace(loaded, model=loaded.model.double())
    monkeypatch.setattr(retrieval, "load", lambda job: loaded)
    forward, read = written.read_on, []

    def counted(model, ids, states):
        read.append(len(ids))
        return forward(model, ids, states)

    answers, asked = Writer.answers, []
    monkeypatch.setattr(written, "read_on", counted)
    monkeypatch.setattr(Writer, "answers", lambda self, some: (asked.extend(some), answers(self, some))[1])
    rows = list(prepared.task.rows(job))
    once = [json.loads(line) for line in job.journal.read_text().splitlines()]
    shared_parts = {one.document: one.read for one in asked}  # the last of a haystack's depths shares most
    assert len(shared_parts) == 2 and sum(read) == sum(shared_parts.values()) + sum(len(o.ids) - 1 - o.read for o in asked)
    assert job.progress.done == job.progress.total > 0
    read.clear()
    job.journal.unlink()
    anew_too = lambda self, some: answers(self, [dataclasses.replace(one, read=0) for one in some])  # noqa: E731
    monkeypatch.setattr(Writer, "answers", anew_too)
    list(prepared.task.rows(job))
    anew = [json.loads(line) for line in job.journal.read_text().splitlines()]
    assert sum(read) == sum(len(one.ids) - 1 for one in asked)
    assert [r["answer"]["tokens"] for r in once] == [r["answer"]["tokens"] for r in anew]
    assert [r["answer"]["evictions"] for r in once] == [r["answer"]["evictions"] for r in anew]
    assert len(rows) == len(once) == 6


@pytest.mark.parametrize(("policy", "together"), [("tova", True), ("h2o", False), ("random", True), ("full", True)])
def test_a_batch_of_prompts_is_each_alone(policy, together, tmp_path, monkeypatch):
    """In float64: answers, evictions, and when the needle's states left; two of three depths and then one. What is missing of a
    batch is asked with the rest of it."""
    real, asked = written.reads_together, []
    monkeypatch.setattr(written, "reads_together", lambda *_: (asked.append(1), real(*_[:2], together))[1])
    found = []
    for batch in (1, 2):
        short = ["task.prompt='{document}\n{question}'", "task.lengths=[130]", "task.new_tokens=4", "task.needle=true"]
        prepared = composed(f"policy={policy}", "cache=60", *short, f"task.batch={batch}", f"results_dir={tmp_path / str(batch)}")
        job = prepared.job
        loaded = job.model.load(dtype="float32", device="cpu", seed=0)
        loaded = dataclasses.replace(loaded, model=loaded.model.double())
        monkeypatch.setattr(retrieval, "load", lambda job, loaded=loaded: loaded)
        rows = list(prepared.task.rows(job))
        records = [json.loads(line) for line in job.journal.read_text().splitlines()]
        found.append([(one["answer"]["tokens"], one["answer"]["evictions"], one["needle_held"]) for one in records])
        assert job.progress.done == job.progress.total > 0
    assert found[0] == found[1] and len(found[0]) == 6 and len(asked) == 6 + 4
    lines = job.journal.read_text().splitlines(keepends=True)
    job.journal.write_text("".join(lines[:1]))
    answers, sizes = Writer.answers, []
    monkeypatch.setattr(Writer, "answers", lambda self, some: (sizes.append(len(some)), answers(self, some))[1])
    again = list(prepared.task.rows(job))
    assert [row.total for row in again] == [row.total for row in rows] and sizes == [2, 1, 2, 1]


# --- the whole way


def run(tmp_path, *overrides, command="run"):
    given = ["task=retrieval", "model=local", f"model.path={TINY_MODEL}", "context=512", "task.examples=2",
             "task.lengths=[120,200]", "task.depths=[0,0.5,1]", "task.new_tokens=6", "task.prompt='{document} {question}'",
             f"results_dir={tmp_path}"]  # fmt: skip
    return main([command, *given, *overrides])


def tidy(folder):
    (path,) = Path(folder, "cells").glob("*.csv")
    return pd.read_csv(path)


def test_a_grid_by_the_command_line(tmp_path, capsys):
    assert (
        run(tmp_path, "-m", "policy=full,baseline,tova,window4", "prefill=stepwise,oneshot", "cache=80", "task.new_tokens=3") == 0
    )
    table = pd.read_csv(tmp_path / "tidy.csv")
    assert len(table["cell"].unique()) == 6 and len(table) == 6 * 12, "full and baseline have no prefill"
    assert set(table["length"]) == {120, 200} and set(table["depth"]) == {0, 0.5, 1}
    assert set(table["document"]) == {f"single/{n}/{i:04d}" for n in (120, 200) for i in (0, 1)}
    assert table["total"].isin([0, 1]).all() and table["count"].eq(1).all() and table["template"].eq("plain").all()
    assert table["dataset"].eq("filler").all() and table["bos"].all()
    evicting = table[table["policy"].isin(["tova", "window4"])]
    assert (evicting["evictions"] == evicting["bucket_end"] - 1 - 80).all() and (evicting["max_states"] == 80).all()
    cut = table["policy"].eq("baseline")
    assert table["bucket_start"].eq(table["length"].where(~cut, 80)).all()
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert len(summary) == 6 * 2 and summary["documents"].eq(2).all() and summary["difference"].notna().all()
    journal = next((tmp_path / "cells").glob("*.jsonl")).read_text().splitlines()
    record = json.loads(journal[0])
    assert record["key"] == "single/120/0/0000" and record["value"] in record["needle"] and record["answer"]["text"]
    assert record["correct"] == needles.found(record["value"], record["answer"]["text"])
    capsys.readouterr()
    assert run(tmp_path, "policy=tova", "cache=80", "task.new_tokens=3") == 0 and "finished already" in capsys.readouterr().out
    assert main(["plot", f"results_dir={tmp_path}", "figure=depth"]) == 0 and (tmp_path / "depth.png").stat().st_size > 10_000


def test_all_kinds_in_one_cell_of_the_user_s_text(tmp_path):
    (tmp_path / "a.txt").write_text("Once there was a cat. It sat on a mat.\n" * 200)
    given = ["dataset=text", f"dataset.path={tmp_path / 'a.txt'}", "task.kinds=[single,multi,lookup,variables]", "task.hops=1"]
    assert run(tmp_path, *given, "policy=tova", "cache=64", "task.lengths=[250]") == 0
    table = tidy(tmp_path)
    assert table.groupby("subtask").size().to_dict() == dict.fromkeys(needles.KINDS, 6) and table["dataset"].eq("a").all()


def test_a_killed_cell_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    given = ["policy=h2o", "cache=64", "task.lengths=[120]"]
    assert run(tmp_path / "whole", *given) == 0
    answers, calls = Writer.answers, []

    def failing(self, *args, **options):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the power went")
        return answers(self, *args, **options)

    monkeypatch.setattr(Writer, "answers", failing)
    assert run(tmp_path / "cut", *given) == 1 and "the power went" in capsys.readouterr().err
    assert run(tmp_path / "cut", *given) == 0
    assert len(calls) == 5 + 6 - 4, "four answers were there"
    same = [name for name in COLUMNS if name not in ("seconds", "tokens_per_second")]
    pd.testing.assert_frame_equal(tidy(tmp_path / "cut")[same], tidy(tmp_path / "whole")[same])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.kinds=[double]"], r"task\.kinds=\[double\] must be a list .* single, multi, lookup or variables"),
        (["task.kinds=[]"], "nothing twice"),
        (["task.kinds=single"], "must be a list"),
        (["task.depths=[0,1.5]"], "number from 0 to 1"),
        (["task.depths=[0.5,0.5]"], "nothing twice"),
        (["task.lengths=[0]"], r"task\.lengths=\[0\]"),
        (["task.examples=0"], r"task\.examples=0 must be a whole number of 1 or more"),
        (["task.hops=21"], "from 1 to 20"),
        (["task.chat=1"], "true or false"),
        (["task.prompt='{document}'"], "leaves out question"),
        (["task.lengths=[600]"], r"600, with task\.new_tokens=6 more than context=512: set context=606"),
        (["task.lengths=[10]"], r"task\.lengths has 10, and the prompt without its document has \d+ tokens"),
        (["task.lengths=[45]"], r"tokens of a haystack cannot hold"),
        (["task.kinds=[multi]", f"task.depths=[{','.join(str(i / 200) for i in range(150))}]"], "words to hide"),
        (["task.chat=true"], "no chat template"),
        (["dataset.skip=3"], r"dataset\.skip=0"),
        (["dataset.repeats=3"], "the dataset's text ends in part"),
        (["dataset.repeats=0"], r"dataset\.repeats=0 must be a whole number from 1"),
        (["dataset.sentences=[]"], "must be a list of sentences"),
        (["dataset=none"], "holds no text"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, capsys, overrides, message):
    assert run(tmp_path, "policy=full", *overrides) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert re.search(message, line), line


# --- the map


def rows(policy, cache, right, *, examples=4, **changes):
    """`right`: how many of the examples are, by (length, depth)."""
    base = {
        "cell": f"{policy}-{cache}-{sorted(changes.items())}-{examples}", "task": "retrieval", "dataset": "filler", "model": "m",
        "weights": "pretrained", "policy": policy, "cache": cache, "context": 8192, "seed": 0, "bos": False, "dtype": "bfloat16",
        "engine": "scan", "prefill": "stepwise", "positions": "original", "template": "plain", "subtask": "single",
        "bucket_start": 0, "bucket_end": 1, "metric": "accuracy", "count": 1, "status": "ok", **changes,
    }  # fmt: skip
    return [
        {**base, "length": length, "depth": depth, "document": f"{length}/{i}", "total": float(i < right(length, depth))}
        for length in (1000, 4000)
        for depth in (0.0, 0.5, 1.0)
        for i in range(examples)
    ]


def table(*parts):
    frame = pd.DataFrame([row for part in parts for row in part], columns=list(COLUMNS))
    return frame.astype({name: kind for name, (kind, _) in COLUMN_TYPES.items()})


def maps(figure):
    return [ax for ax in figure.axes if ax.images]


def numbers(ax):
    return [text.get_text() for text in ax.texts]


def caption(figure):
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


def test_the_map_shows_every_field_with_its_number():
    figure = plot(
        table(
            rows("full", None, lambda length, depth: 4),
            rows("tova", 64, lambda length, depth: 3 if depth == 1 else 1 if length == 1000 else 0, per="layer", memory=0.0),
            rows("tova", 256, lambda length, depth: 4, per="layer", memory=0.0),
            rows("window4", 64, lambda length, depth: 0, first=4),
        ),
        note="A note.",
    )
    full, small, large, window = maps(figure)
    assert numbers(full) == ["100"] * 6 and numbers(window) == ["0"] * 6
    assert numbers(small) == ["25", "0", "25", "0", "75", "75"], "depths down, lengths across"
    assert [t.get_text() for t in window.get_xticklabels()] == ["1,000", "4,000"] and not small.get_xticklabels()
    assert [t.get_text() for t in small.get_yticklabels()] == ["0%", "50%", "100%"]
    assert [ax.get_title() for ax in (small, large, window)] == ["k = 64", "k = 256", ""]
    assert [ax.get_ylabel() for ax in (full, small, large, window)] == ["Topline\n(full context)", "TOVA", "", "Window+4"]
    assert full.get_title(loc="left") == "m on filler"
    assert "4 examples per field" in caption(figure) and "A note." in caption(figure) and "stepwise" in caption(figure)
    small_ink = [text.get_color() for text in small.texts]
    assert small_ink == ["black"] * 4 + ["white"] * 2


def test_one_hue_that_darkens_evenly():
    """Read in grey: the luminance falls with every step."""
    figure = plot(table(rows("full", None, lambda length, depth: 2)))
    colours = maps(figure)[0].images[0].cmap([i / 20 for i in range(21)])
    grey = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in colours]
    assert all(a - b > 0.01 for a, b in pairwise(grey)) and grey[0] - grey[-1] > 0.75


def test_variants_blocks_and_what_was_not_measured():
    parts = [
        rows("tova", 64, lambda length, depth: 1),
        rows("tova", 64, lambda length, depth: 2, prefill="oneshot"),
        rows("tova", 64, lambda length, depth: 4, subtask="multi"),
        [row for row in rows("h2o", 64, lambda length, depth: 4, recent=32) if (row["length"], row["depth"]) != (4000, 1.0)],
        rows("h2o", 128, lambda length, depth: 4, recent=64),
    ]
    figure = plot(table(*parts))
    labels = [ax.get_ylabel() for ax in maps(figure) if ax.get_ylabel()]
    assert labels == ["TOVA", "H2O\nstepwise", "TOVA\nstepwise", "TOVA\noneshot"]
    titles = [ax.get_title(loc="left") for ax in maps(figure) if ax.get_title(loc="left")]
    assert titles == ["m on filler (multi)\n", "m on filler (single)\n"]
    assert numbers(maps(figure)[1]) == ["100"] * 5 + ["–"]


def test_a_place_means_the_same_in_every_map():
    """A line of fewer lengths or depths leaves places open instead of stretching over them."""
    short = [row for row in rows("tova", 64, lambda length, depth: 2, prefill="oneshot") if row["length"] == 4000]
    figure = plot(table(rows("tova", 64, lambda length, depth: 4), [row for row in short if row["depth"] < 1]))
    assert [numbers(ax) for ax in maps(figure)] == [["100"] * 6, ["–", "50", "–", "50", "–", "–"]]


def test_seeds_are_more_examples_and_the_larger_cell_counts():
    once = rows("tova", 64, lambda length, depth: 2)
    more = rows("tova", 64, lambda length, depth: 2, examples=8)
    other = rows("tova", 64, lambda length, depth: 6, examples=8, seed=1)
    figure = plot(table(once, more, other))
    assert numbers(maps(figure)[0]) == ["50"] * 6 and "16 examples per field" in caption(figure)
    with pytest.raises(UsageError, match=r"tova of m at cache 64, length 1000, depth 0 has several results"):
        plot(table(once, [{**row, "cell": "another", "total": 0.0} for row in once]))


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(UsageError, match="task=retrieval"):
        plot(table([{**row, "metric": "nll"} for row in rows("tova", 64, lambda length, depth: 1)]))
    with pytest.raises(UsageError, match=r"lacks .*depth"):
        plot(table(rows("tova", 64, lambda length, depth: 1)).drop(columns="depth"))
    random = plot(table(rows("tova", 64, lambda length, depth: 1, weights="random")))
    assert "RANDOM WEIGHTS" in maps(random)[0].get_title(loc="left")
    assert figures.table_of("depth") == "tidy"

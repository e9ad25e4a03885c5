"""Questions on documents: what is read, how an answer is scored, and both tasks the whole way, killed and resumed."""

import json
import random
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, TINY_MODEL

from msrnn_bench.cli.main import main
from msrnn_bench.datasets.questions import Qasper, Squality
from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.runs.build import build
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks import qasper, squality
from msrnn_bench.tasks.writing import answers as written
from msrnn_bench.tasks.writing.answers import Answer, Writer
from msrnn_bench.tasks.writing.scores import f1, normal, rouge

DAY = "Once upon a time there was a little girl named Lily. She loved to play in the park with her red ball. "


QUESTIONS = ["Who plays in the park?", "What is it that the little girl loved to play with, and who else is in the park?"]


def story(name: str, text: str = DAY * 30) -> dict:
    answers = [{"response_text": "Lily.", "uid": "u"}, {"response_text": DAY, "uid": "v"}]
    asked = [{"question_text": question, "question_number": 7, "responses": answers} for question in QUESTIONS]
    return {"metadata": {"passage_id": name}, "document": text, "questions": asked}


def annotated(**given) -> dict:
    empty = {"unanswerable": False, "extractive_spans": [], "yes_no": None, "free_form_answer": "", "evidence": ["e"]}
    return {"answer": {**empty, **given}, "worker_id": "w"}


def paper(**changes) -> dict:
    sections = [
        {"section_name": "Introduction", "paragraphs": ["Balls are round.", "They roll."]},
        {"section_name": None, "paragraphs": ["The end."]},
    ]
    answers = {
        "What rolls?": [annotated(extractive_spans=["Balls", "They"]), annotated(free_form_answer="All balls")],
        "Are they red?": [annotated(unanswerable=True), annotated(yes_no=False)],
        "Are they round?": [annotated(yes_no=True)],
    }
    qas = [{"question": q, "question_id": f"q{i}", "answers": a} for i, (q, a) in enumerate(answers.items(), start=1)]
    return {"title": "On balls", "abstract": "We throw them.", "full_text": sections, "qas": qas, **changes}


def columnar(record: dict) -> dict:
    """The hub's form of a paper: lists of objects as objects of lists."""

    def turned(rows):
        return {key: [row[key] for row in rows] for key in rows[0]}

    asked = [{**q, "answers": turned(q["answers"])} for q in record["qas"]]
    return {**record, "full_text": turned(record["full_text"]), "qas": turned(asked)}


@pytest.fixture
def write(tmp_path):
    def write(name, *records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


def refusal(call, *args, kind=UsageError, **kwargs) -> str:
    with pytest.raises(UsageError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert type(caught.value) is kind and "\n" not in message and 10 < len(message) < 500
    return message


# --- datasets ---


def test_squality_reads_documents_and_what_is_asked(write):
    dataset = Squality(path=write("a.jsonl", story("s1"), story("s2", text="A\r\nB")), name="squality")
    first, second, third, _ = dataset.examples()
    assert (first.id, second.id, third.document) == ("s1/1", "s1/2", "s2")
    assert first.question == "Who plays in the park?" and first.references == ("Lily.", DAY) and first.text == DAY * 30
    assert third.text == "A\nB" and [(d.name, d.text) for d in dataset.documents(1)] == [("s1", DAY * 30)]
    assert [example.document for example in dataset.examples(1)] == ["s1", "s1"]
    assert dataset.manifest(1)["questions"] == 2 and dataset.manifest()["documents"] == 2
    unnamed = {key: value for key, value in story("x").items() if key != "metadata"}
    assert [d.name for d in Squality(path=write("b.jsonl", unnamed, unnamed)).documents()] == ["0000", "0001"]


def test_a_development_set_of_the_released_shape(write):
    """All fields that a record of SQuALITY v1.3 has: 5 questions a story, 4 responses each, the same first question."""

    def released(number: int) -> dict:
        questions = [
            {
                "question_text": "What is the plot of the story?" if n == 1 else f"Who is person {n} of story {number}?",
                "question_number": n,
                "responses": [
                    {"worker_id": str(w), "uid": f"{number:04x}{n}{w}", "response_text": f"It is {w}, in {number}.\nSo."}
                    for w in range(4)
                ],
            }
            for n in range(1, 6)
        ]
        metadata = {"passage_id": str(60_000 + number), "uid": f"{number:032x}", "license": "This eBook is for “anyone”."}
        document = f"The Ship {number}\n \n\n By A. WRITER, JR.\n \n \n " + 'She said —"Stand by!"\n \n ' * 900
        return {"metadata": metadata, "document": document, "questions": questions}

    dataset = Squality(path=write("dev.jsonl", *map(released, range(25, 0, -1))))
    examples = dataset.examples()
    assert len(dataset.documents()) == 25 and len(examples) == 125 and {len(e.references) for e in examples} == {4}
    assert examples[0].id == "60025/1" and examples[0].question == "What is the plot of the story?"
    assert examples[5].document == "60024" and len({e.id for e in examples}) == 125
    assert examples[-1].references == tuple(f"It is {w}, in 1.\nSo." for w in range(4))
    assert examples[-1].text == released(1)["document"] and dataset.manifest()["questions"] == 125


def test_identity_covers_questions_and_references(write):
    def fingerprint(*records, limit=None, **settings):
        return Squality(path=write("a.jsonl", *records), **settings).fingerprint(limit)

    base, changed = story("s1"), []
    for key in ("question_text", "responses"):
        other = json.loads(json.dumps(base))
        other["questions"][1][key] = "Who?" if key == "question_text" else [{"response_text": "Tim."}]
        changed.append(fingerprint(other))
    changed += [fingerprint({**base, "document": "x"}), fingerprint(base, story("s2")), fingerprint(base, bos="never")]
    assert len({fingerprint(base), *changed}) == 6
    assert fingerprint(base) == Squality(path=write("elsewhere.jsonl", base)).fingerprint()
    assert fingerprint(base) == fingerprint(base, story("s2"), limit=1)


@pytest.mark.parametrize("form", ["released", "lines", "hub", "list"])
def test_qasper_reads_every_form_of_a_paper(tmp_path, form):
    name, content = {
        "released": ("q.json", json.dumps({"p1": paper()})),
        "lines": ("q.jsonl", json.dumps(paper(id="p1"))),
        "hub": ("q.jsonl", json.dumps(columnar(paper(id="p1")))),
        "list": ("q.json", json.dumps([paper(id="p1")])),
    }[form]
    (tmp_path / name).write_text(content)
    examples = Qasper(path=str(tmp_path / name)).examples()
    assert [e.id for e in examples] == ["p1/q1", "p1/q2", "p1/q3"] and {e.document for e in examples} == {"p1"}
    assert examples[0].text == "On balls\n\nWe throw them.\n\nIntroduction\nBalls are round.\nThey roll.\n\nThe end."
    assert [e.references for e in examples] == [("Balls, They", "All balls"), ("unanswerable", "no"), ("yes",)]


def test_a_folder_of_the_hubs_shape(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "qasper").mkdir()
    pd.DataFrame([columnar(paper(id="p1"))]).to_parquet(tmp_path / "qasper" / "validation-0.parquet")
    plain = tmp_path / "q.json"
    plain.write_text(json.dumps({"p1": paper()}))
    found, same = Qasper(path=str(tmp_path / "qasper")), Qasper(path=str(plain))
    assert found.examples() == same.examples() and found.fingerprint() == same.fingerprint()
    assert "nope" in refusal(Qasper(path=str(tmp_path / "qasper"), split="nope").examples)


def test_without_network_the_file_is_named_at_once(monkeypatch):
    from huggingface_hub import HfApi

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    for name in ("squality", "qasper"):
        dataset = build(compose_one([f"dataset={name}", "dataset.revision=nowhere"]).dataset, "dataset")
        message = refusal(dataset.examples, kind=MachineError)
        assert "dataset.path=FILE" in message and dataset.repo in message and "not known" in message
    assert "dataset.path" in refusal(Squality().examples)


def broken(**changes):
    return {**story("s1"), **changes}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "x", "title": "t"}, "line 1: the field 'document' is missing; there are text, title"),
        (broken(document=3), "the field 'document' is of another kind"),
        (broken(document=" \n"), "document 's1' is empty"),
        (broken(questions=[{"question": "?"}]), "question 1: the field 'responses' is missing; there are question"),
        (broken(questions=[{"question_text": "Who?", "responses": []}]), "question 1 has no reference answer"),
        (broken(questions=[{"question_text": " ", "responses": [{"response_text": "a"}]}]), "question 1 is empty"),
        (broken(questions=["Who?"]), "not of the shape of Squality's records"),
        (broken(questions=[]), "holds no questions"),
        ([1], "no JSON object"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(write, record, says):
    assert says in refusal(Squality(path=write("a.jsonl", record)).examples)


def test_bad_files_and_settings(write, tmp_path):
    (tmp_path / "cut.jsonl").write_text(json.dumps(story("a")) + '\n{"document": ')
    assert "line 2 is not JSON" in refusal(Squality(path=str(tmp_path / "cut.jsonl")).fingerprint)
    assert "'s1' before" in refusal(Squality(path=write("a.jsonl", story("s1"), story("s1"))).examples)
    assert "does not exist" in refusal(Squality(path=str(tmp_path / "gone.jsonl")).fingerprint)
    assert "holds no questions" in refusal(Squality(path=write("b.jsonl")).examples)
    nothing = {"extractive_spans": [], "free_form_answer": "", "yes_no": None, "unanswerable": False}
    odd = paper(qas=[{"question": "?", "question_id": "q", "answers": [{"answer": nothing}]}])
    assert "none of unanswerable" in refusal(Qasper(path=write("c.jsonl", odd)).examples)
    twice = paper(qas=[paper()["qas"][0]] * 2)
    assert "same question_id" in refusal(Qasper(path=write("d.jsonl", twice)).examples)
    for bad in ({"start": 0.5}, {"skip": 1}, {"pack": True}):
        assert "whole documents" in refusal(Squality, **bad)


def test_reading_questions_imports_no_torch(write):
    code = (
        "import sys; from msrnn_bench.datasets.questions import Squality;"
        f"assert len(Squality(path={write('a.jsonl', story('s1'))!r}).examples()) == 2;"
        "assert not {'torch', 'transformers', 'datasets', 'rouge_score'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- scores ---


def test_rouge_by_hand():
    said, near = "the cat sat on the mat", "The cat lay on the mat."
    scores = rouge(said, [near])  # 5 of 6 words, 3 of 5 pairs, 5 of 6 in order
    assert scores == pytest.approx(
        {"rouge1": 500 / 6, "rouge2": 60, "rougeL": 500 / 6, "rouge_per_answer": (500 / 6 * 60 * 500 / 6) ** (1 / 3)}
    )
    backwards = "mat the on sat cat the"  # every word, no pair, 3 of 6 in order
    assert rouge(said, [backwards]) == pytest.approx({"rouge1": 100, "rouge2": 0, "rougeL": 50, "rouge_per_answer": 0})
    best = rouge(said, [near, backwards])  # each from the reference it is largest for
    assert best == pytest.approx(
        {"rouge1": 100, "rouge2": 60, "rougeL": 500 / 6, "rouge_per_answer": (100 * 60 * 500 / 6) ** (1 / 3)}
    )
    assert set(rouge("", [near]).values()) == {0.0} and list(rouge(near, [near]).values()) == pytest.approx([100] * 4)
    assert rouge("cats", ["cat"])["rouge1"] == 0 and rouge("running", ["run"], stemmer=True)["rouge1"] == 100


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_agrees_with_the_package_and_with_counting(stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    draw, words = random.Random(7), ["the", "a", "cat", "cats", "sat", "sitting", "mat", "ran", "running", "red"]

    def text():
        return " ".join(draw.choices(words, k=draw.randint(1, 25)))

    def counted(ours, theirs, n):
        ours, theirs = (Counter(zip(*(t.split()[i:] for i in range(n)), strict=False)) for t in (ours, theirs))
        return 200 * (ours & theirs).total() / max(1, ours.total() + theirs.total())

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer)
    for _ in range(100):
        said, references = text(), [text() for _ in range(draw.randint(1, 4))]
        scores = rouge(said, references, stemmer=stemmer)
        theirs = {kind: 100 * score.fmeasure for kind, score in scorer.score_multi(references, said).items()}
        assert {kind: scores[kind] for kind in theirs} == pytest.approx(theirs)
        assert scores["rouge_per_answer"] ** 3 == pytest.approx(theirs["rouge1"] * theirs["rouge2"] * theirs["rougeL"])
        if not stemmer:
            assert scores["rouge1"] == pytest.approx(max(counted(said, reference, 1) for reference in references))
            assert scores["rouge2"] == pytest.approx(max(counted(said, reference, 2) for reference in references))


@pytest.mark.parametrize(
    ("said", "references", "points"),
    [
        ("The Eiffel Tower, in Paris.", ["Eiffel tower"], 200 / 3),  # precision 2/4, recall 1
        ("The Eiffel Tower, in Paris.", ["London", "an Eiffel tower in paris"], 100),
        ("b b c", ["b d"], 40),  # one b counts once: 2 * 1 / (3 + 2)
        ("Unanswerable.", ["unanswerable"], 100),
        ("It does not say.", ["unanswerable"], 0),
        ("yes", ["no", "Yes"], 100),
        ("", ["yes"], 0),
        ("the", ["a"], 0),  # both are empty once normalised
        ("state-of-the-art", ["state of the art"], 0),  # punctuation joins
    ],
)
def test_f1_by_hand(said, references, points):
    assert f1(said, references) == pytest.approx(points)


def test_normalisation_is_squads():
    assert normal("  The THEATRE, an `act`;\ta\nthe  ") == ["theatre", "act"]


# --- tasks ---


@pytest.fixture
def here(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write("two.jsonl", story("s1"), story("s2", text=DAY[::-1] * 30))
    return tmp_path


def run(*overrides, task="squality", path="two.jsonl"):
    given = [
        f"task={task}",
        f"dataset.path={path}",
        "model=local",
        f"model.path={TINY_MODEL}",
        "context=512",
        "task.new_tokens=6",
    ]
    return main(["run", *given, "cache=150", *overrides])


def predictions(folder="results"):
    (file,) = Path(folder, "cells").glob("*.jsonl")
    return {record["key"]: record for record in map(json.loads, file.read_text().splitlines())}


@pytest.mark.parametrize("prefill", ["stepwise", "oneshot"])
@pytest.mark.parametrize("policy", ["full", "baseline", "tova", "window4"])
def test_two_stories_end_to_end(here, policy, prefill):
    assert run(f"policy={policy}", f"prefill={prefill}", "task.questions=null", "task.new_tokens=20") == 0
    assert main(["collect", "results_dir=results"]) == 0
    rows, summary = pd.read_csv("results/tidy.csv"), pd.read_csv("results/summary.csv").set_index("metric")
    records = predictions()
    assert set(records) == {"s1/1", "s1/2", "s2/1", "s2/2"}
    assert set(rows["metric"]) == {"rouge_per_answer", "rouge1", "rouge2", "rougeL"} and len(rows) == 4 * 4
    assert list(summary["documents"]) == [2] * 5 and list(summary["count"]) == [4] * 5  # and `rouge`, of the means
    assert set(rows["template"]) == {"plain"} and set(rows["task"]) == {"squality"} and rows["bos"].all()
    means = {metric: sum(r["scores"][metric] for r in records.values()) / 4 for metric in set(rows["metric"])}
    means["rouge"] = (means["rouge1"] * means["rouge2"] * means["rougeL"]) ** (1 / 3)
    assert summary["value"].to_dict() == pytest.approx(means, abs=1e-4)
    room = 150 if policy == "baseline" else 492
    evicts = policy in ("tova", "window4")
    for record in records.values():
        answer = Answer(**record["answer"])
        assert record["prompt_tokens"] == room == answer.prompt_tokens and record["document_tokens_cut"] > 100
        assert record["scores"] == rouge(record["prediction"], record["references"])
        assert answer.max_states == (150 if evicts else room + len(answer.tokens) - 1)
        assert answer.evictions == (room + len(answer.tokens) - 1 - 150 if evicts else 0)
    assert set(rows["bucket_start"]) == {room} and rows["bucket_end"].max() <= room + 20


def captured(monkeypatch, fail_at=None):
    """What is asked of the writer, batch by batch; the `fail_at`-th batch raises."""
    calls, answers = [], Writer.answers

    def watched(self, asked):
        if len(calls) == fail_at:
            raise RuntimeError("the power went")
        calls.append(asked)
        return answers(self, asked)

    monkeypatch.setattr(Writer, "answers", watched)
    return calls


def test_a_killed_run_goes_on_from_its_journal(here, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        assert len(captured(patch, fail_at=1)) == 0
        assert run("task.questions=null", "task.batch=3") == 1
    assert "the power went" in capsys.readouterr().err and len(predictions()) == 3
    before = predictions()
    with monkeypatch.context() as patch:
        calls = captured(patch)
        assert run("task.questions=null", "task.batch=2") == 0
    assert [[one.document for one in batch] for batch in calls] == [[zlib.crc32(b"s2")] * 2], "a batch is answered whole"
    after = predictions()
    assert {key: after[key] for key in before} == before and set(after) - set(before) == {"s2/2"}
    assert run("task.questions=null", "results_dir=whole") == 0
    for key, record in predictions("whole").items():
        assert (record["prediction"], record["scores"]) == (after[key]["prediction"], after[key]["scores"])
    with monkeypatch.context() as patch:
        calls = captured(patch)
        assert run("task.questions=null") == 0 and calls == []


@pytest.mark.parametrize("policy", ["tova", "full"])
def test_a_story_is_read_once_and_the_answers_are_those_of_reading_it_anew(here, monkeypatch, policy):
    read, forward, answers = [], written.read_on, Writer.answers

    def counting(model, ids, states):
        read.append(len(ids))
        return forward(model, ids, states)

    with monkeypatch.context() as patch:
        calls = captured(patch)
        patch.setattr(written, "read_on", counting)
        assert run(f"policy={policy}", "task.questions=null") == 0
    (asked,) = calls
    (length,) = {one.read for one in asked}  # as far as every question leaves room
    assert {len(one.ids) for one in asked} == {506} and asked[0].ids[:length] == asked[1].ids[:length] and 300 < length < 506
    assert read.count(length) == 2 and sum(read) == 2 * length + 4 * (505 - length), "once for each story, and the questions"
    shared_answers = {key: record["answer"]["tokens"] for key, record in predictions().items()}
    monkeypatch.setattr(Writer, "answers", lambda self, asked: answers(self, [replace(one, read=0) for one in asked]))
    assert run(f"policy={policy}", "task.questions=null", "results_dir=anew") == 0
    assert {key: record["answer"]["tokens"] for key, record in predictions("anew").items()} == shared_answers


def test_the_documents_end_is_cut_and_the_instruction_stays(here, monkeypatch):
    from transformers import AutoTokenizer

    calls = captured(monkeypatch)
    assert run("policy=baseline") == 0 and run("policy=tova", "documents=1") == 0
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    for ids, room in zip((calls[0][0].ids, calls[-1][0].ids), (150, 506), strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert len(ids) == room and ids[0] == tokenizer.bos_token_id
        assert text.lstrip().startswith(DAY[:40]) and text.endswith("Question:\nWho plays in the park?\n\nAnswer:\n")
        assert "The text above is a story." in text and DAY * 30 not in text


def test_qasper_end_to_end(here, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps({"p1": paper(), "p2": paper(title="Again")}))
    assert run("task.questions=2", task="qasper", path="q.json") == 0
    records = predictions()
    assert set(records) == {"p1/q1", "p1/q2", "p2/q1", "p2/q2"}
    assert all("\n" not in record["prediction"] for record in records.values())
    assert main(["collect", "results_dir=results"]) == 0
    (line,) = pd.read_csv("results/summary.csv").to_dict("records")
    assert (line["metric"], line["count"], line["documents"], line["dataset"]) == ("f1", 4, 2, "qasper")
    wanted = [f1(record["prediction"], record["references"]) for record in records.values()]
    assert line["value"] == pytest.approx(sum(wanted) / 4, abs=1e-4)


def test_answers_are_scored_as_they_were_given(here, monkeypatch):
    """A right answer scores 100, the best of its references counts, and the mean is over all questions."""
    answers = Writer.answers
    said = iter(["Lily.", DAY, "nothing of it", "Lily."])
    monkeypatch.setattr(Writer, "answers", lambda self, asked: [replace(a, text=next(said)) for a in answers(self, asked)])
    assert run("task.questions=null") == 0 and main(["collect", "results_dir=results"]) == 0
    summary = pd.read_csv("results/summary.csv").set_index("metric")
    assert summary["value"].to_dict() == pytest.approx(
        {"rouge1": 75, "rouge2": 25, "rougeL": 75, "rouge_per_answer": 25, "rouge": (75 * 25 * 75) ** (1 / 3)}
    )  # one word has no pair
    assert [round(r["scores"]["rouge1"]) for r in predictions().values()][::3] == [100, 100]


@pytest.mark.parametrize(
    ("said", "reference", "words"),
    [
        ("мир и война", "Война и мир.", 100), ("我爱北京", "我爱上海", 50), ("हिन्दी भाषा", "हिन्दी", 200 / 3),
        ("ภาษา", "ภาษา", 100),
        ("ένας σκύλος", "Ένας ΣΚΎΛΟΣ", 100), ("שלום עולם", "שלום", 200 / 3), ("nothing of it", "ничего", 0),
    ],
)  # fmt: skip
def test_rouge_of_other_scripts_is_no_zero(said, reference, words):
    assert rouge(said, [reference])["rouge1"] == pytest.approx(words)
    assert rouge(reference, [reference])["rougeL"] == pytest.approx(100)


def test_rouge_of_english_is_the_packages_own():
    """Also with an accent, a Greek letter, or a foreign answer."""
    from rouge_score.rouge_scorer import RougeScorer

    plain = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for said, reference in [
        ("a café, naïve α", "The café was α-naïve."),
        ("война", "war and peace"),
        ("1 2 3", "2 3 4"),
        ("", "x"),
    ]:
        wanted = {kind: 100 * score.fmeasure for kind, score in plain.score(reference, said).items()}
        assert {k: v for k, v in rouge(said, [reference]).items() if k in wanted} == pytest.approx(wanted)


def test_a_first_story_without_questions(here, tmp_path, capsys):
    (tmp_path / "late.jsonl").write_text("\n".join(json.dumps(s) for s in ({**story("a"), "questions": []}, story("b"))) + "\n")
    assert run("documents=1", path="late.jsonl") == 2
    assert "documents=1 of squality have no question: take documents=2 or more" in capsys.readouterr().err
    assert run("documents=2", path="late.jsonl") == 0 and {key.partition("/")[0] for key in predictions()} == {"b"}


@pytest.mark.parametrize("name", ["squality", "qasper"])
def test_the_yaml_says_what_the_class_does_and_the_command_line_wins(name, capfd, monkeypatch):
    made = {"squality": squality.Squality, "qasper": qasper.Qasper}[name]()
    config = compose_one([f"task={name}"])
    assert build(config.task, "task") == made and config.dataset.name == name
    assert made.settings()["stop"] == list(made.stop) and json.dumps(made.settings())
    for order in (["dataset=pydocs", f"task={name}"], [f"task={name}", "dataset=pydocs"]):
        assert compose_one(order).dataset.name == "pydocs"
    assert compose_one([f"task={name}", "dataset.path=x"]).dataset.path == "x"
    chosen = compose_one([f"task={name}", "task.chat=true"]).task
    assert build(chosen, "task").template == "chat" and made.template == "plain"
    monkeypatch.setattr(sys, "argv", sys.argv)  # which Hydra's own command line is told
    assert main(["run", "--cfg", "job", f"task={name}", "dataset.path=mine.jsonl"]) == 0
    shown = capfd.readouterr().out
    assert f"msrnn_bench.datasets.questions.{name.capitalize()}" in shown and "path: mine.jsonl" in shown


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dataset=pydocs"], "dataset=pydocs has no questions"),
        (["task.prompt='{question}'"], "leaves out document"),
        (["task.prompt='{document} {question} {story}'"], "names 'story'"),
        (["task.new_tokens=0"], "task.new_tokens=0 must be a whole number"),
        (["task.questions=0"], "task.questions=0 must be a whole number of 1 or more or null"),
        (["task.stop=x"], "task.stop=x must be a list"),
        (["task.stop=['']"], "must be a list of which each is a text"),
        (["task.chat=maybe"], "task.chat=maybe must be true or false"),
        (["task.stemmer=maybe"], "task.stemmer=maybe must be true or false"),
        (["task.new_tokens=512"], "leaves nothing of context=512"),
        (["task.new_tokens=460"], "the prompt without its document has"),
        (["policy=baseline", "cache=40"], "more than the 40 there is room for"),
        (["task.chat=true"], "no chat template"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(here, capsys, overrides, says):
    path = [] if "dataset=pydocs" not in overrides else ["task=squality", "model=local", f"model.path={TINY_MODEL}"]
    code = main(["run", *path, "context=512", *overrides]) if path else run(*overrides)
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and says in error[-1] and error[-1].startswith("msrnn-bench: ")
    assert not list(here.glob("results/cells/*.csv"))

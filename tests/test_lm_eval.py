"""lm-eval through bounded(): its answers against plain computations, whole runs on local files, what is refused."""

import dataclasses
import functools
import json
import math
import shutil
import socket
import sys
import types

import pandas as pd
import pytest
import torch
from conftest import HELD_OUT, TINY_MODEL, policies
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import msrnn_bench as mb
from msrnn_bench.cli.lm_eval import Msrnn
from msrnn_bench.cli.main import main
from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.multistate.naming import carried
from msrnn_bench.tasks.lm_eval import scoring as harness_scoring
from msrnn_bench.tasks.lm_eval import tasks as harness_tasks
from msrnn_bench.tasks.lm_eval.harness import Harness, _warn_of_cuts
from msrnn_bench.tasks.lm_eval.metrics import Share, plain, shares
from msrnn_bench.tasks.lm_eval.model import BoundedLM
from msrnn_bench.tasks.lm_eval.scoring import Doings, Scorer, Target
from msrnn_bench.tasks.lm_eval.tasks import Subtask, Wanted
from msrnn_bench.tasks.reading.losses import losses

EXACT = {"abs": 1e-4, "rel": 1e-4}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Everything here works offline: who tries to connect fails. Datasets are cached in the test's folder."""
    import datasets

    def refuse(*_):
        raise OSError("a test tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@functools.cache
def pretrained():
    """The model and a job of it, composed and loaded once."""
    lm = Msrnn(str(TINY_MODEL), context=512, device="cpu")
    return lm.loaded, lm.job


def model(policy="tova", cache=64, batch_size=1, truncate=False, **settings):
    loaded, job = pretrained()
    chosen = {"policy": policies()[policy], "cache": None if policy == "full" else cache, **settings}
    return BoundedLM(loaded, dataclasses.replace(job, **chosen), batch_size=batch_size, truncate=truncate)


def ask(kind, *arguments):
    return [Instance(kind, {}, args, 0, ("mine", number, 1)) for number, args in enumerate(arguments)]


def texts_of(count):
    """Pieces of some 250 to 450 tokens that the model was not trained on."""
    whole = HELD_OUT.read_text()
    return [whole[5000 * n :][:800].strip() for n in range(count)]


def ids_of(lm, text):
    return lm.tok_encode(text, add_special_tokens=False)


def bounded_logits(lm, ids):
    with mb.bounded(lm.model, lm.job.policy, lm.job.cache), torch.no_grad():
        return lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)


def logprob(lm, context, target):
    """A plain computation: one pass, nothing padded, nothing shared."""
    logits = bounded_logits(lm, [*context, *target][:-1])[-len(target) :]
    wanted = torch.tensor(target)
    return float(logits.gather(-1, wanted[:, None]).double().sum()), bool((logits.argmax(-1) == wanted).all())


# -- rolling --


@pytest.mark.parametrize(("policy", "cache"), [("full", 1), ("tova", 64), ("h2o", 64)])
def test_rolling_is_our_own_perplexity(policy, cache):
    """One window, its prefix token the mark of beginning; texts shorter than k and longer, padded in one batch."""
    lm = model(policy, cache, batch_size=3)
    texts = [text[:length] for text, length in zip(texts_of(3), (90, 900, 400), strict=True)]
    found_all = lm.loglikelihood_rolling(ask("loglikelihood_rolling", *[(t,) for t in texts]))
    for text, found in zip(texts, found_all, strict=True):
        ids = torch.tensor([[lm.prefix_token_id, *ids_of(lm, text)]])
        assert ids.shape[1] <= 512
        ours = losses(lm.model, ids, 1024, mb.bounded(lm.model, lm.job.policy, lm.job.cache), None)["nll"][0]
        assert math.exp(-found / ours.size) == pytest.approx(math.exp(ours.mean()), abs=1e-4)
    windows = [window for request in ask("x", *[(t,) for t in texts]) for window in lm._windows(request)]
    unmasked = HFLM._loglikelihood_tokens(lm, [(None, list(w.context), list(w.ids)) for w in windows], disable_tqdm=True)
    assert [a for a, _ in unmasked] == pytest.approx(found_all, **EXACT)


def test_rolling_reads_disjoint_windows_each_from_an_empty_state():
    lm = model("tova", 16, context=100, batch_size=4)
    texts = texts_of(3)
    found = lm.loglikelihood_rolling(ask("loglikelihood_rolling", *[(t,) for t in texts]))
    for text, total in zip(texts, found, strict=True):
        ids = [lm.prefix_token_id, *ids_of(lm, text)]
        whole = (len(ids) - 1) // 100
        parts = [(ids[100 * n : 100 * n + 1], ids[100 * n + 1 : 100 * n + 101]) for n in range(whole)]
        if rest := len(ids) - 1 - 100 * whole:  # lm-eval gives the last window as much context as it has room for
            parts.append((ids[-101:-rest] if whole else ids[:1], ids[-rest:]))
        assert whole >= 2 and total == pytest.approx(sum(logprob(lm, *part)[0] for part in parts), **EXACT)


def test_the_whole_way_equals_the_perplexity_task(tmp_path):
    lm = model()
    text = texts_of(1)[0][:700]
    (tmp_path / "text").mkdir()
    (tmp_path / "text/story.txt").write_text(text)
    tokens = len(ids_of(lm, text)) + 1
    folder = task_folder(tmp_path, "rolling", [{"text": text}], "loglikelihood_rolling", ROLLING, doc_to_target="{{text}}")
    common = ["policy=tova", "cache=64", f"context={tokens}"]
    ours = run(tmp_path, *common, "task=perplexity", "dataset=text", f"dataset.path={tmp_path}/text", f"tokens={tokens}")
    theirs = run(tmp_path, *common, f"task.include_path={folder}", "task.tasks=[rolling]")
    shown = {metric: rows.iloc[0] for metric, rows in theirs.groupby("metric")}
    nll = shown["nll"]
    assert math.exp(nll.total / nll["count"]) == pytest.approx(math.exp(ours.total.sum() / ours["count"].sum()), abs=1e-4)
    assert nll["count"] == ours["count"].sum() == tokens - 1
    assert shown["nll_per_word"].total == pytest.approx(nll.total) and shown["nll_per_word"]["count"] == len(text.split())
    bits = shown["bits_per_byte"]
    assert bits.total == pytest.approx(nll.total / math.log(2)) and bits["count"] == len(text.encode())
    assert (theirs.evictions == tokens - 1 - 64).all() and (theirs.max_states == 64).all() and theirs.bos.all()


# -- loglikelihood --

CHOICES = [
    ("Once upon a time, there was a little girl named Lily. She", " was very happy"),
    ("Once upon a time, there was a little girl named Lily. She", " had a big red ball. She liked to play with it."),
    ("Once upon a time, there was a little girl named Lily. She", " ate"),
    ("The dog", " ran to the park and then"),
    ("The dog ran and ran until the sun went down and it was dark. Then", " it"),
    ("", "One day a boy went to the park."),
]


@pytest.mark.parametrize("name", sorted(set(policies()) - {"baseline", "eviction"}))
def test_a_batch_of_requests_equals_each_alone(name):
    """Contexts of several lengths, some shared, continuations of one token and of many. baseline reads less (its own
    test), and eviction's defaults are tova."""
    requests = ask("loglikelihood", *CHOICES)
    many, one = model(name, 12, batch_size=4), model(name, 12, batch_size=1)
    found = many.loglikelihood(requests)
    for answer, request in zip(found, requests, strict=True):
        alone = one.loglikelihood([request])[0]
        assert answer[0] == pytest.approx(alone[0], **EXACT) and answer[1] == alone[1]
        if name != "random":  # whose draw depends on the context
            context, target = ids_of(many, request.args[0]), ids_of(many, request.args[0] + request.args[1])
            context = [many.prefix_token_id, *context]
            assert answer[0] == pytest.approx(logprob(many, context, [many.prefix_token_id, *target][len(context) :])[0], **EXACT)


@pytest.mark.parametrize("policy", ["full", "window4", "tova"])
def test_lm_evals_own_scoring_without_a_mask_agrees(policy):
    """It pads on the right and gives no mask, so padding enters the states: behind the last token that counts."""
    lm = model(policy, 12, batch_size=6)
    targets = map(lm._target, ask("x", *CHOICES))
    pairs = [(args, list(t.context), list(t.ids)) for args, t in zip(CHOICES, targets, strict=True)]
    theirs, ours = HFLM._loglikelihood_tokens(lm, pairs, disable_tqdm=True), lm.loglikelihood(ask("loglikelihood", *CHOICES))
    assert [a for a, _ in theirs] == pytest.approx([a for a, _ in ours], **EXACT)
    assert [g for _, g in theirs] == [g for _, g in ours]


@pytest.mark.parametrize("policy", ["full", "window4", "h2o"])
def test_the_tokens_of_a_pass_do_not_matter(policy, monkeypatch):
    """Passes so short that a row's are all padding at its beginning, or at its end."""
    wanted = model(policy, 12, batch_size=4).loglikelihood(ask("loglikelihood", *CHOICES))
    monkeypatch.setattr(harness_scoring, "PASS", 12)
    found = model(policy, 12, batch_size=4).loglikelihood(ask("loglikelihood", *CHOICES))
    assert [a for a, _ in found] == pytest.approx([a for a, _ in wanted], **EXACT)


def test_full_is_lm_evals_plain_model():
    lm = model("full", 1, batch_size=4)
    plain_lm = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, backend="causal", max_length=512, batch_size=4)
    requests = ask("loglikelihood", *CHOICES)
    ours, theirs = lm.loglikelihood(requests), plain_lm.loglikelihood(requests, disable_tqdm=True)
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], **EXACT)
    assert [g for _, g in ours] == [g for _, g in theirs]
    prompts = ask("generate_until", *[(context, {"until": ["."], "max_gen_toks": 24}) for context, _ in CHOICES[2:5]])
    assert lm.generate_until(prompts) == plain_lm.generate_until(prompts, disable_tqdm=True)
    assert lm.model.config._attn_implementation != "msrnn_bounded"


def test_oneshot_cuts_between_context_and_continuation():
    lm = model("tova", 12, prefill="oneshot", batch_size=4)
    stepwise = model("tova", 12, batch_size=4).loglikelihood(ask("loglikelihood", *CHOICES))
    found = lm.loglikelihood(ask("loglikelihood", *CHOICES))
    for (total, _), request in zip(found, ask("loglikelihood", *CHOICES), strict=True):
        target = lm._target(request)
        with mb.bounded(lm.model, lm.job.policy, 12, prefill="oneshot") as states, torch.no_grad():
            logits = [lm.model(torch.tensor([target.context])).logits[0, -1:]]
            if len(target.ids) > 1:
                logits.append(lm.model(torch.tensor([target.ids[:-1]]), **carried(lm.model, states.current)).logits[0])
        rows = torch.cat(logits).log_softmax(-1)
        assert total == pytest.approx(float(rows[range(len(target.ids)), list(target.ids)].sum()), **EXACT)
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, stepwise, strict=True)) > 0.01
    with pytest.raises(UsageError, match="rolling"):
        lm.loglikelihood_rolling(ask("loglikelihood_rolling", ("a text",)))


def test_what_the_states_did_is_checked_and_told():
    lm = model("tova", 8)
    targets = [Target((1, 300, 301), tuple(range(310, 320))), Target(tuple(range(300, 320)), (5,)), Target((1,), (9, 9))]
    scorer = Scorer(lm.model, lm.job, 2)
    told = {index: spent for index, _, _, spent in scorer.score([[target] for target in targets])}
    assert [(told[n].start, told[n].end, told[n].tokens) for n in range(3)] == [(3, 13, 10), (20, 21, 1), (1, 3, 2)]
    states = [(told[n].evictions, told[n].first_eviction, told[n].max_states) for n in range(3)]
    assert states == [(4, 8, 8), (12, 8, 8), (0, None, 2)]
    one = lm.model.config.num_key_value_heads * lm.model.config.head_dim * 2 * 4 * lm.model.config.num_hidden_layers
    assert [told[n].state_bytes for n in range(3)] == [8 * one, 8 * one, 2 * one]
    wrong = Scorer(lm.model, dataclasses.replace(lm.job, cache=7), 2)
    object.__setattr__(wrong.job, "policy", types.SimpleNamespace(evicts=True, name="tova", rule=lambda k: mb.Tova().rule(k + 1)))
    with pytest.raises(RuntimeError, match="did not act"):
        list(wrong.score([[targets[0]]]))


# -- generation --


@pytest.mark.parametrize("policy", ["full", "tova", "h2o"])
@pytest.mark.parametrize("together", [None, True])
def test_generation_is_bounded_and_batches_do_not_matter(policy, together):
    lm = model(policy, 16, batch_size=3)
    lm.together = together
    texts = ["Once upon a time", "The dog ran and ran until the sun went down and it was dark. Then he", "Tim had a"]
    options = {"until": ["\n"], "max_gen_toks": 24, "do_sample": False}
    found = lm.generate_until(ask("generate_until", *[(text, options) for text in texts]))
    for text, written in zip(texts, found, strict=True):
        ids = torch.tensor([lm.tok_encode(text)])
        with mb.bounded(lm.model, lm.job.policy, lm.job.cache) as states:
            out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert written == lm.tok_decode(out[0, ids.shape[1] :]).split("\n")[0]
        assert policy == "full" or max(states.layers[0].largest) == 16
    assert found == model(policy, 16).generate_until(ask("generate_until", *[(text, options) for text in texts]))


def test_what_the_random_policy_draws_by_goes_with_the_row():
    texts = ["Once upon a time there was a dog and a cat and a red ball", "The dog ran and ran until", "T"]
    asked = ask("generate_until", *[(text, {"until": [], "max_gen_toks": 16, "do_sample": False}) for text in texts])
    alone = model("random", 12).generate_until(asked)
    for together in (None, True):
        lm = model("random", 12, batch_size=2)
        lm.together = together
        assert lm.generate_until(asked) == alone
    assert len(set(alone)) == 3 and alone != model("full").generate_until(asked)


@pytest.mark.parametrize("option", ["num_beams", "num_return_sequences"])
def test_several_answers_are_refused(option):
    with pytest.raises(UsageError, match=f"{option}=2; lm-eval's tasks are answered once"):
        model().generate_until(ask("generate_until", ("Once upon", {"until": [], option: 2})))


def test_prompts_are_read_one_by_one_and_answered_together():
    lm, shapes = model("tova", 16, batch_size=2), []
    asked = [("Once upon a time there was", {"until": [], "max_gen_toks": 4}), ("The dog", {"until": [], "max_gen_toks": 4})]
    with lm.model.register_forward_pre_hook(
        lambda _, args, named: shapes.append(tuple((*args, *named.values())[0].shape)), with_kwargs=True
    ):
        lm.generate_until(ask("generate_until", *asked))
        one_by_one = shapes[:]
        shapes.clear()
        lm.together = True
        lm.generate_until(ask("generate_until", *asked))
    long, short = (len(lm.tok_encode(text)) - 1 for text, _ in asked)
    assert one_by_one == [(1, long), (1, short), *[(2, 1)] * 4]
    assert shapes == [(2, short), (1, long - short), *[(2, 1)] * 4], "as on CUDA"


def test_until_and_options_are_heeded():
    lm = model("tova", 16, batch_size=4)
    asked = [("Once upon a time", {"until": [","], "max_gen_toks": 30}), ("Once upon a time", {"max_gen_toks": 3, "until": []})]
    short, three = lm.generate_until(ask("generate_until", *asked))
    assert "," not in short and len(ids_of(lm, three)) <= 4


def test_oneshot_reads_the_prompt_at_once():
    lm = model("tova", 12, prefill="oneshot", batch_size=2)
    texts = [CHOICES[0][0], CHOICES[4][0]]
    found = lm.generate_until(ask("generate_until", *[(text, {"until": [], "max_gen_toks": 12}) for text in texts]))
    for text, written in zip(texts, found, strict=True):
        ids = torch.tensor([lm.tok_encode(text)])
        with mb.bounded(lm.model, lm.job.policy, 12, prefill="oneshot") as states:
            out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert written == lm.tok_decode(out[0, ids.shape[1] :])
        assert all((layer.first_eviction == ids.shape[1] - 1).all() for layer in states.layers)


def test_baseline_keeps_the_last_k_tokens():
    """No policy: the full model on the request's last k tokens."""
    full = model("full")
    k = len(full._target(ask("x", CHOICES[1])[0]).ids) + 5
    lm = model("baseline", k)
    target = lm._target(ask("x", CHOICES[1])[0])
    assert len(target.context) + len(target.ids) == k + 1 and target.cut > 0
    assert lm.loglikelihood(ask("x", CHOICES[1]))[0][0] == pytest.approx(logprob(full, target.context, target.ids)[0], **EXACT)
    prompt = lm._prompt(ask("x", (texts_of(1)[0][:300], {"max_gen_toks": 5}))[0])
    assert list(prompt.ids) == lm.tok_encode(texts_of(1)[0][:300])[-k:]
    with pytest.raises(UsageError, match="leaves no room"):
        model("baseline", 4).loglikelihood(ask("x", CHOICES[1]))


# -- whole runs on local files --

ROLLING = ["word_perplexity", "byte_perplexity", "bits_per_byte"]


def task_folder(tmp_path, name, rows, kind, metrics=("acc",), more="", **templates):
    """A folder with one task in lm-eval's format and its data."""
    folder = tmp_path / f"tasks_{name}"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"task: {name}", "dataset_path: json", "test_split: test", f"output_type: {kind}"]
    lines += [f"dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}"]
    lines += [f'{key}: "{value}"' for key, value in {"doc_to_text": "", **templates}.items()]
    text = "\n".join([*lines, "metric_list:", *[f"  - metric: {metric}" for metric in metrics], more])
    (folder / f"{name}.yaml").write_text(text)
    return folder


def run(tmp_path, *overrides, code=0):
    """`msrnn-bench run`, and the rows it wrote."""
    cells = tmp_path / "results/cells"
    before = set(cells.glob("*.csv"))
    common = ["task=lm_eval", "model=local", f"model.path={TINY_MODEL}", "context=512", "device=cpu"]
    keys = {o.split("=")[0] for o in overrides}
    common = [o for o in common if o.split("=")[0] not in keys]
    assert main(["run", *common, f"results_dir={tmp_path}/results", *overrides]) == code
    new = set(cells.glob("*.csv")) - before
    return pd.read_csv(new.pop(), dtype={"document": str}) if len(new) == 1 else None


ENDS = [" = x", " %%~ QZX", " }}@ 7!"]
STARTS = ["def __init__(self, x):\n    self.x", "def put(self, x):\n    self.item", "x = 0\nfor x in range(10):\n    y"]
RIGHT = [0, 0, 1]  # what the last one is said to be no model of the language prefers
QUESTIONS = [{"start": start, "ends": ENDS, "right": right} for start, right in zip(STARTS, RIGHT, strict=True)]


def questions(tmp_path, metrics=("acc", "acc_norm"), **more):
    templates = {"doc_to_text": "{{start}}", "doc_to_choice": "{{ends}}", "doc_to_target": "right"}
    return task_folder(tmp_path, "mine", QUESTIONS, "multiple_choice", metrics, **templates, **more)


def test_multiple_choice_from_a_local_file(tmp_path, capfd, caplog):
    folder = questions(tmp_path, ("acc", "acc_norm", "mcc"))
    rows = run(tmp_path, f"task.include_path={folder}", "task.tasks=[mine]", "cache=12")
    printed = capfd.readouterr()
    assert (
        "acc" in printed.out
        and "it/s" not in printed.err
        and "lm_eval" not in printed.err.replace(f"{TINY_MODEL.name} lm_eval", "")
    )
    assert set(rows.metric) == {"acc", "acc_norm"} and set(rows.subtask) == {"mine"}
    assert list(rows.document.unique()) == ["0000", "0001", "0002"]
    assert (rows["count"] == 1).all() and list(rows[rows.metric == "acc"].total) == [1, 1, 0] and (rows.template == "plain").all()
    assert (rows.evictions > 0).any() and (rows.max_states <= 12).all()
    assert "mcc is no sum" in caplog.text
    records = [json.loads(line) for line in next((tmp_path / "results/cells").glob("*.jsonl")).read_text().splitlines()]
    assert sum("answer" in r for r in records) == 9 and sum("scores" in r for r in records) == 3
    assert [r["scores"]["acc"] for r in records if "scores" in r] == [1.0, 1.0, 0.0]


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    folder = questions(tmp_path)
    settings = (f"task.include_path={folder}", "task.tasks=[mine]", "cache=12")
    rows = run(tmp_path, *settings)
    cell = next((tmp_path / "results/cells").glob("*.csv"))
    journal = cell.with_suffix(".jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:5]) + lines[5][:20])
    cell.unlink()
    cell.with_suffix(".json").unlink()
    scored = []
    batches = Scorer._batches
    monkeypatch.setattr(Scorer, "_batches", lambda self, targets: scored.extend(targets) or batches(self, targets))
    again = run(tmp_path, *settings, "task.batch_size=1")  # the batch is no part of the identity
    assert len(scored) == 9 and cell.exists()  # of each context an answer was missing, and a batch is answered whole
    timed = ["seconds", "tokens_per_second"]
    pd.testing.assert_frame_equal(rows.drop(columns=timed), again.drop(columns=timed))
    records = [{k: v for k, v in json.loads(line).items() if k != "state_bytes"} for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))  # as an earlier version wrote it
    cell.unlink()
    cell.with_suffix(".json").unlink()
    assert run(tmp_path, *settings).state_bytes.equals(rows.state_bytes) and len(scored) == 9 + 9


def test_the_identity_is_the_content(tmp_path):
    def identity(folder, **settings):
        return Harness(tasks=("mine",), include_path=str(folder), **settings).settings()

    folder, elsewhere, outside = questions(tmp_path), tmp_path / "elsewhere", tmp_path / "outside.jsonl"
    first = identity(folder)
    assert identity(folder, batch_size=3) == first and identity(folder, limit=1) != first
    shutil.copytree(folder, elsewhere)
    assert identity(elsewhere) == first  # by content, never by path
    (elsewhere / "mine.yaml").write_text((folder / "mine.yaml").read_text() + "\ndescription: 'Read: '\n")
    assert identity(elsewhere) != first
    (elsewhere / "mine.jsonl").rename(outside)
    (elsewhere / "mine.yaml").write_text((folder / "mine.yaml").read_text().replace(f"{folder}/mine.jsonl", str(outside)))
    before = identity(elsewhere)
    outside.write_text(outside.read_text().replace("QZX", "ZXQ"))
    assert identity(elsewhere) != before


def test_generation_from_a_local_file(tmp_path):
    lm = model("tova", 8)
    prompt = "Once upon a time"
    options = {"until": ["."], "max_gen_toks": 20}
    written = lm.generate_until(ask("generate_until", (prompt, options)))[0]
    more = "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 20"
    folder = task_folder(
        tmp_path, "write", [{"q": prompt, "a": written}, {"q": prompt, "a": "no"}], "generate_until", metrics=("exact_match",),
        more=more, doc_to_text="{{q}}", doc_to_target="{{a}}",
    )  # fmt: skip
    rows = run(tmp_path, f"task.include_path={folder}", "task.tasks=[write]", "cache=8")
    assert list(rows.total) == [1, 0] and set(rows.metric) == {"exact_match"}
    assert (rows.bucket_start == len(lm.tok_encode(prompt))).all()
    assert (rows.evictions > 0).all() and (rows.max_states == 8).all()
    assert rows.tokens_per_second.to_list() == pytest.approx((rows.bucket_end / rows.seconds).to_list())


def test_chat_templates_are_recorded_and_needed(tmp_path, capsys):
    folder = questions(tmp_path)
    settings = (f"task.include_path={folder}", "task.tasks=[mine]", "cache=12", "task.apply_chat_template=true")
    run(tmp_path, *settings, code=2)
    assert "no chat template" in capsys.readouterr().err
    chatty = tmp_path / "chatty"
    shutil.copytree(TINY_MODEL, chatty)
    (chatty / "chat_template.jinja").write_text("{% for m in messages %}User: {{ m.content }}\n{% endfor %}Then:")
    rows = run(tmp_path, *settings, f"model.path={chatty}")
    assert (rows.template == "chat").all()
    plain_rows = run(tmp_path, *settings[:3], f"model.path={chatty}")
    assert (rows.bucket_start.to_numpy() > plain_rows.bucket_start.to_numpy()).all()


def test_shots_come_from_the_task(tmp_path):
    folder = questions(tmp_path, more="fewshot_split: test")
    none = run(tmp_path, f"task.include_path={folder}", "task.tasks=[mine]", "cache=12")
    two = run(tmp_path, f"task.include_path={folder}", "task.tasks=[mine]", "cache=12", "task.num_fewshot=2")
    assert (two.bucket_start.to_numpy() > none.bucket_start.to_numpy() + 10).all()


# -- RULER --


@pytest.fixture
def few_words(monkeypatch):
    """RULER's module sorts six million words when it is imported; a few will do."""
    pytest.importorskip("wonderwords")
    words = {"nouns": ["dog", "cat", "ball"], "adjectives": ["red", "big"], "verbs": ["run"]}
    monkeypatch.setattr("wonderwords.RandomWord", lambda: types.SimpleNamespace(_categories=words))
    yield
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ruler.")]:
        del sys.modules[name]


def needle(tmp_path):
    settings = ["task.tasks=[niah_single_1]", "task.limit=1", "task.lengths=[640,768]", "context=900", "cache=32"]
    return run(tmp_path, *settings, "model.extrapolate=true")


def check_needle(rows):
    assert list(rows.length) == [640, 768]
    assert set(rows.metric) == {"accuracy"} and set(rows.subtask) == {"niah_single_1"}
    assert rows.total.between(0, 1).all() and (rows.max_states == 32).all()
    assert (rows.evictions == rows.bucket_end - 1 - 32).all()
    prompts = rows.bucket_start + 128
    assert (prompts > 0.7 * rows.length).all() and (prompts < rows.length + 60).all()


def test_a_needle_of_ruler_offline(tmp_path, few_words):
    check_needle(needle(tmp_path))


@pytest.mark.slow
def test_a_needle_of_ruler_with_all_its_words(tmp_path):
    pytest.importorskip("wonderwords")
    check_needle(needle(tmp_path))


def test_rulers_texts_depend_on_nothing_but_seed_and_length(few_words):
    wanted = Wanted(("niah_single_1",), lengths=(768,), tokenizer=TINY_MODEL)
    text = harness_tasks.build(wanted)[0].task.eval_docs[0]["input"]
    both = dataclasses.replace(wanted, lengths=(640, 768))
    made = harness_tasks.build(both)
    assert [subtask.label for subtask in made] == ["niah_single_1@640", "niah_single_1@768"]
    assert made[1].task.eval_docs[0]["input"] == text
    assert harness_tasks.build(dataclasses.replace(wanted, seed=1))[0].task.eval_docs[0]["input"] != text


# -- what is refused --


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), "which of lm-eval's tasks"),
        (("task.tasks=[niah_singel_1]",), "did you mean 'niah_single_1'"),
        (("task.tasks=niah_single_1",), "must be a list"),
        (("task.tasks=[niah_single_1]",), "give task.lengths"),
        (("task.tasks=[niah_single_1]", "task.lengths=[4096]"), "raise context"),
        (("task.tasks=[niah_single_1]", "task.limit=0"), "whole number of 1"),
        (("task.tasks=[niah_single_1]", "task.batch_size=auto"), "whole number of 1"),
        (("task.tasks=[niah_single_1]", "task.include_path=/nowhere"), "is no folder"),
        (("task.tasks=[niah_single_1]", "dataset=pydocs"), "leave dataset=none"),
    ],
)
def test_mistakes_are_one_line_at_once(tmp_path, capsys, settings, said):
    run(tmp_path, *settings, code=2)
    error = capsys.readouterr().err.splitlines()
    assert said in error[-1] and error[-1].startswith("msrnn-bench: ") and sum("msrnn-bench: " in line for line in error) == 1
    assert not list(tmp_path.glob("results/cells/*.json"))


def test_missing_words_of_ruler_are_named(monkeypatch):
    monkeypatch.setattr(harness_tasks, "RULER_NEEDS", ("nltk", "no_such_words"))
    wanted = Wanted(("ruler_cwe",), lengths=(1024,), tokenizer=TINY_MODEL)
    with pytest.raises(MachineError, match=r"no_such_words: python -m pip install 'msrnn-bench\[ruler\]'"):
        harness_tasks.check(wanted)


def test_a_task_of_the_hub_without_a_network_is_one_line(tmp_path, capsys):
    folder = questions(tmp_path)
    lines = (folder / "mine.yaml").read_text().replace("json", "some/where").splitlines()
    (folder / "mine.yaml").write_text("\n".join(line for line in lines if "data_files" not in line))
    run(tmp_path, f"task.include_path={folder}", "task.tasks=[mine]", code=1)
    assert "on the hub, which does not answer" in capsys.readouterr().err.splitlines()[-1]


def test_what_is_here_is_read_before_the_hub_is_asked(monkeypatch):
    import datasets

    asked = []

    def load(names):
        asked.append(datasets.config.HF_HUB_OFFLINE)
        if datasets.config.HF_HUB_OFFLINE and names == ["far"]:
            raise ConnectionError("offline")
        return {"tasks": {names[0]: names}}

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(harness_tasks, "_hub_answers", lambda: True)
    manager = types.SimpleNamespace(load=load)
    assert harness_tasks._load(manager, "near", 0) == {"near": ["near"]} and asked == [True]
    assert harness_tasks._load(manager, "far", 0) == {"far": ["far"]} and asked == [True, True, False]
    with pytest.raises(UsageError, match="runs the code"):
        harness_tasks._refuse(Subtask("human", None, types.SimpleNamespace(UNSAFE_CODE=True)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mine.jsonl", "gone.jsonl", "not there"),
        ("test_split: test", "test_split: other", "cannot be built"),
        ("{{start}}", "{{start", "cannot be built"),
        ("multiple_choice", "guessing", "cannot be built"),
    ],
)
def test_a_broken_task_is_one_line(tmp_path, capsys, old, new, said):
    folder = questions(tmp_path)
    (folder / "mine.yaml").write_text((folder / "mine.yaml").read_text().replace(old, new))
    run(tmp_path, f"task.include_path={folder}", "task.tasks=[mine]", code=2)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_what_is_too_long_or_empty_is_refused_or_cut():
    long = ask("x", ("The dog ran. " * 20, " It"))
    with pytest.raises(UsageError, match=r"document 0 of task mine has \d+ tokens where context=32 has room for 3\d: raise"):
        model("tova", 8, context=32).loglikelihood(long)
    lm = model("tova", 8, context=32, truncate=True)
    target = lm._target(long[0])
    assert len(target.context) + len(target.ids) == 33 and target.cut > 0
    assert lm.loglikelihood(long)[0][0] == pytest.approx(logprob(lm, target.context, target.ids)[0], **EXACT)
    with pytest.raises(UsageError, match="raise context"):
        model("tova", 8, context=32).generate_until(ask("x", ("The dog ran. " * 20, {"max_gen_toks": 4})))
    with pytest.raises(UsageError, match="leaves no room"):
        lm.generate_until(ask("x", ("The dog", {"max_gen_toks": 40})))
    with pytest.raises(UsageError, match="empty text"):
        lm.loglikelihood_rolling(ask("x", ("",)))
    with pytest.raises(UsageError, match="without tokens"):
        lm.loglikelihood(ask("x", ("The dog", "")))


def test_what_was_cut_is_told(caplog):
    spent = {
        n: Doings(1, 9, tokens=8, cut=n, length=9, evictions=0, first_eviction=None, max_states=8, state_bytes=5)
        for n in range(3)
    }
    _, job = pretrained()
    _warn_of_cuts(Subtask("mine", None, None), spent, job)
    assert "mine: 2 of 3 documents lost their beginning to context=512" in caplog.text
    together = Doings.together([spent[1], dataclasses.replace(spent[2], start=0, evictions=3, first_eviction=4, seconds=2.0)])
    assert together == Doings(0, 9, 16, 3, 18, 3, 4, 8, 5, 2.0)


# -- metrics --


def sample(document, chosen="none", doc=(), **metrics):
    return {"doc_id": document, "filter": chosen, "metrics": list(metrics), "doc": dict(doc), **metrics}


def test_metrics_become_sums_that_give_lm_evals_number():
    pairs = [(-10.0, 4), (-2.0, 1)]
    shown = [{"acc": float(n), "word_perplexity": p, "bits_per_byte": p, "perplexity": p[0]} for n, p in enumerate(pairs)]
    samples = [sample(n, **metrics, f1=(0, 1)) for n, metrics in enumerate(shown)]
    numbers = {
        "acc,none": 0.5, "word_perplexity,none": math.exp(12 / 5), "bits_per_byte,none": 12 / 5 / math.log(2),
        "perplexity,none": math.exp(6), "f1,none": 0.3,
    }  # fmt: skip
    found = list(shares(samples, numbers))
    assert [s for s in found if isinstance(s, str)] == ["f1"]
    kept = {name: [(s.document, s.total, s.count) for s in found if isinstance(s, Share) and s.metric == name] for name in NAMES}
    assert kept["acc"] == [(0, 0.0, 1), (1, 1.0, 1)] and kept["nll"] == [(0, 10.0, 1), (1, 2.0, 1)]
    assert kept["nll_per_word"] == [(0, 10.0, 4), (1, 2.0, 1)]
    assert sum(t for _, t, _ in kept["bits_per_byte"]) / 5 == pytest.approx(numbers["bits_per_byte,none"])


NAMES = ("acc", "nll", "nll_per_word", "bits_per_byte")


def test_filters_and_rulers_lengths_are_told_apart():
    samples = [sample(0, "strict", exact_match=1.0), sample(0, "loose", exact_match=0.0)]
    found = list(shares(samples, {"exact_match,strict": 1.0, "exact_match,loose": 0.0}))
    assert [(s.metric, s.total) for s in found] == [("exact_match,strict", 1.0), ("exact_match,loose", 0.0)]
    ruler = [sample(n, doc={"max_length": 1024}, **{"4096": -1.0, "1024": float(n)}) for n in range(2)]
    found = list(shares(ruler, {"4096,none": -1, "1024,none": 0.5}))
    assert found == [Share(0, "accuracy", 0.0, 1, 1024), Share(1, "accuracy", 1.0, 1, 1024)]


def test_a_mean_that_is_none_is_left_out():
    samples = [sample(n, best=float(n)) for n in range(3)]
    for number in (2.0, float("nan"), "N/A"):
        assert list(shares(samples, {"best,none": number})) == ["best"]
    assert plain({"a": (1, float("nan"), torch.tensor(2)), "b": {3}}) == {"a": [1, None, 2], "b": "{3}"}


# -- lm-eval's own command line --


def test_lm_eval_knows_the_model_by_name(tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(questions(tmp_path)), include_defaults=False)
    arguments = {"pretrained": str(TINY_MODEL), "policy": "tova", "cache": 12, "context": 512}
    found = lm_eval.simple_evaluate(model="msrnn", model_args=arguments, tasks=["mine"], task_manager=manager, device="cuda:0",
                                    batch_size=4, bootstrap_iters=0, log_samples=False)  # fmt: skip
    assert found["results"]["mine"]["acc,none"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    import subprocess

    folder = questions(tmp_path)
    command = [
        sys.executable,
        "-m",
        "msrnn_bench.cli.main",
        "lm-eval",
        "run",
        "--model",
        "msrnn",
        "--tasks",
        "mine",
        "--device",
        "cpu",
    ]
    command += ["--include_path", str(folder), "--model_args"]
    arguments = f"pretrained={TINY_MODEL},policy=tova,cache=12,context=512"
    done = subprocess.run([*command, arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "|acc" in done.stdout
    failed = subprocess.run([*command, arguments.replace("tova", "tofu")], capture_output=True, text=True)
    assert failed.returncode == 2 and "unknown policy 'tofu'" in failed.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pretrained": "no_such_model"}, "is no folder, no hub repository"),
        ({"policy": "tofu"}, "unknown policy 'tofu'"),
        ({"cache": 0}, "cache=0 must be"),
        ({"batch_size": "auto"}, "batch_size=auto"),
        ({"colour": "red"}, "unknown setting 'colour'"),
    ],
)
def test_mistaken_model_arguments_are_one_line(arguments, said):
    with pytest.raises(UsageError, match=said):
        Msrnn(**{"pretrained": str(TINY_MODEL), "context": 512, **arguments})

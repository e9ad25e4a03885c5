"""The extrapolation task: its sums against a plain computation, pieces, the control, a killed cell, what it refuses."""

import logging
import math
import sys
from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
from conftest import GOLDEN, HELD_OUT, TINY_MODEL, Silent, policies
from transformers import AutoModelForCausalLM, AutoTokenizer

from msrnn_bench.datasets.chunks import beginnings
from msrnn_bench.errors import UsageError
from msrnn_bench.job import load
from msrnn_bench.results.intervals import value
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.runs.execute import execute
from msrnn_bench.tasks.reading import losses as reading

sys.path.insert(0, str(GOLDEN))
import compressed_tiny as loop

TOKENS = 560  # the tiny model has 512 positions
TOGETHER: dict = {}  # the model is loaded once
TIMINGS = ("seconds", "tokens_per_second", "peak_bytes")
MODEL = ["model=local", f"model.path={TINY_MODEL}", "model.extrapolate=true"]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def novels(tmp_path_factory):
    """Two texts from the held-out one, of more than TOKENS tokens, and between them one of fewer."""
    folder, text = tmp_path_factory.mktemp("novels"), HELD_OUT.read_text()
    for name, part in (("a", text[:2500]), ("b", text[2500:3500]), ("c", text[3500:6000])):
        (folder / f"{name}.txt").write_text(part)
    return folder


def cell(novels, folder, *overrides, model=MODEL):
    given = {
        "task": "extrapolation", "task.every": "200", "dataset": "text", "dataset.path": str(novels), "tokens": str(TOKENS),
        "documents": "null", "device": "cpu", "policy": "tova", "cache": "32", "results_dir": str(folder),
    }  # fmt: skip
    given |= dict(o.split("=", 1) for o in (*model, *overrides))
    told = [f"{key}={value}" for key, value in given.items()]
    return prepare(compose_one(told), told, Silent(), TOGETHER)


def rows(novels, folder, *overrides):
    made = cell(novels, folder, *overrides)
    load(made.job).model.double()
    return list(made.task.rows(made.job))


def plainly(novels):
    """The two long texts as ids [1, TOKENS], and the model, without a task."""
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    return model, [torch.tensor([tokenizer((novels / f"{n}.txt").read_text())["input_ids"][:TOKENS]]) for n in "ac"]


def by_hand(model, ids, policy, positions):
    """Each token's loss [T - 1] of a bounded model: by the library's cache with rows deleted, or by the loop in numpy."""
    if positions == "compressed":
        return torch.tensor(loop.losses(loop.read(TINY_MODEL, ids[0].tolist(), policy, 32)[0], ids[0].tolist())[1:])
    logits = oracle.bounded_logits(model, ids, policies()[policy], 32)[0]
    return torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")


@pytest.mark.parametrize("positions", ["original", "compressed"])
@pytest.mark.parametrize("policy", ["tova", "window4"])
def test_running_perplexity_beyond_the_models_positions_by_hand(policy, positions, novels, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for key in [key for key in TOGETHER if key[0] == "chunks"]:
            del TOGETHER[key]
        found = rows(novels, tmp_path, f"policy={policy}", f"positions={positions}")
    assert "1 of 3 documents have fewer than 560 tokens and are left out: b (" in caplog.text
    model, texts = plainly(novels)
    assert [r.document for r in found] == ["a"] * 3 + ["c"] * 3
    for ids, own in zip(texts[:1], (found[:3],), strict=True):
        wanted = by_hand(model, ids, policy, positions)
        assert [(r.bucket_start, r.bucket_end, r.count) for r in own] == [
            (0, 200, 199), (200, 400, 200), (400, 560, 160),
        ]  # fmt: skip
        for upto, n in enumerate((200, 400, 560), start=1):
            sums = np.array([sum(r.total for r in own[:upto]), sum(r.count for r in own[:upto])])
            assert float(value("nll", sums)) == pytest.approx(math.exp(wanted[: n - 1].mean()), rel=1e-5)
        assert {(r.evictions, r.first_eviction, r.max_states) for r in own} == {(TOKENS - 32, 32, 32)}
    assert {(r.context, r.cache, r.metric, r.status, r.bos, r.positions) for r in found} == {
        (TOKENS, 32, "nll", "ok", True, positions)
    }
    assert all(r.seconds > 0 and r.state_bytes > 0 and r.peak_bytes > 0 for r in found)
    assert found[0].tokens_per_second == pytest.approx(TOKENS / found[0].seconds)


@pytest.mark.parametrize(
    ("chunk", "positions"), [(1, "original"), (37, "original"), (299, "original"), (5000, "original"), (37, "compressed")]
)
def test_streamed_in_pieces_of_any_size(chunk, positions, novels, tmp_path):
    same = ["tokens=300", f"task.least={TOKENS}", "policy=tova", f"positions={positions}"]
    one = rows(novels, tmp_path / "one", *same)
    other = rows(novels, tmp_path / "other", *same, f"task.chunk={chunk}")
    assert [r.document for r in one] == [r.document for r in other] == ["a"] * 2 + ["c"] * 2
    assert [r.count for r in one] == [r.count for r in other]
    np.testing.assert_allclose([r.total for r in other], [r.total for r in one], rtol=1e-11)


def test_the_control_is_the_full_model_on_fresh_chunks_over_the_same_targets(novels, tmp_path):
    found = rows(novels, tmp_path, "policy=baseline", "cache=256")
    model, texts = plainly(novels)
    for ids, own in zip(texts, (found[:3], found[3:]), strict=True):
        wanted = []
        for begin, end in pairwise([0, 256, 512, TOKENS - 1]):
            logits = model(ids[:, begin:end]).logits[0]
            wanted.append(torch.nn.functional.cross_entropy(logits, ids[0, begin + 1 : end + 1], reduction="none"))
        np.testing.assert_allclose([r.total for r in own], [p.sum() for p in torch.cat(wanted).split([199, 200, 160])])
        assert {(r.evictions, r.max_states, r.cache, r.context) for r in own} == {(None, 256, 256, TOKENS)}
    assert [r.count for r in found] == [r.count for r in rows(novels, tmp_path, "policy=tova")]


def test_within_the_models_positions_it_is_the_full_model(novels, tmp_path):
    sizes = ["tokens=300", f"task.least={TOKENS}"]
    full = rows(novels, tmp_path, "policy=full", *sizes)
    for policy, cache in (("tova", 300), ("baseline", 300)):
        same = rows(novels, tmp_path, f"policy={policy}", f"cache={cache}", *sizes)
        np.testing.assert_allclose([r.total for r in same], [r.total for r in full], rtol=1e-9)
    assert full[0].cache is None and full[0].evictions == 0 and full[0].max_states == 300


class Killed(BaseException):
    pass


def test_a_killed_cell_goes_on_at_the_document(novels, tmp_path, monkeypatch):
    """Killed in the second document, its line half written: the first is not read again, and the rows are the same."""
    calm = cell(novels, tmp_path / "calm")
    execute(calm)
    read, kills, losses = [], [2], reading.losses

    def counted(model, ids, *rest):
        read.append(ids.shape[1])
        if len(read) in kills:
            raise Killed
        return losses(model, ids, *rest)

    monkeypatch.setattr(reading, "losses", counted)
    killed = cell(novels, tmp_path / "killed")
    with pytest.raises(Killed):
        execute(killed)
    assert not killed.done and len(killed.cell.journal.read_text().splitlines()) == 1
    with killed.cell.journal.open("a") as file:
        file.write('{"key": "0001/c", "buckets": [[0, 200, 1.')
    execute(cell(novels, tmp_path / "killed"))
    assert read == [TOKENS] * 3 and killed.done

    def table(made):
        lines = [line.split(",") for line in made.cell.csv.read_text().splitlines()]
        left = [at for at, name in enumerate(lines[0]) if name not in TIMINGS]
        return [[line[at] for at in left] for line in lines]

    assert table(calm) == table(killed) and len(table(calm)) == 7
    read.clear()
    kills.clear()
    execute(cell(novels, tmp_path / "killed", "force=true"))
    assert read == [TOKENS] * 2, "force=true begins anew"


def test_progress_counts_every_token_once(novels, tmp_path):
    class Counting(Silent):
        total = read = 0

        def start(self, tokens):
            self.total = tokens

        def advance(self, tokens):
            self.read += tokens

        restored = advance

    for policy in ("tova", "baseline"):
        for _ in ("measured", "from the journal"):
            made = cell(novels, tmp_path, f"policy={policy}", "task.chunk=100")
            object.__setattr__(made.job, "progress", Counting())
            list(made.task.rows(made.job))
            assert made.job.progress.total == 2 * TOKENS
            assert 2 * TOKENS - 2 <= made.job.progress.read <= 2 * TOKENS  # the baseline reads no last token


def test_lengths_of_documents(novels, tmp_path):
    short = rows(novels, tmp_path, "task.least=2", "tokens=5000", "documents=2", "task.every=1000")
    assert [r.document for r in short] == ["a"] * 2 + ["b"], "one of fewer tokens is read to its end"
    ends = [r.bucket_end for r in short]
    assert ends[0] == 1000 and 1000 < ends[1] < 5000 and ends[2] < TOKENS
    assert [r.evictions for r in short] == [ends[1] - 32] * 2 + [ends[2] - 32] and short[2].count == ends[2] - 1
    joined = rows(novels, tmp_path, "dataset.pack=true", "tokens=900", "documents=2")
    assert [r.document for r in joined] == [f"pack#{n:04d}" for n in range(2) for _ in range(5)]
    with pytest.raises(UsageError, match=r"no text of 5000 tokens: the longest document has \d+, so take fewer"):
        rows(novels, tmp_path, "tokens=5000")
    with pytest.raises(UsageError, match=r"no text of 9000 tokens: all documents together have \d+, so take fewer"):
        rows(novels, tmp_path, "dataset.pack=true", "tokens=9000")


def test_beginnings_have_their_mark_and_skip_what_is_told(novels):
    from msrnn_bench.datasets.texts import Text

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    whole = tokenizer((novels / "a.txt").read_text(), add_special_tokens=False)["input_ids"]
    for skip in (0, 5):
        found, short = beginnings(Text(path=str(novels), skip=skip), tokenizer, tokens=50, least=TOKENS)
        assert [one.document for one in found] == ["a", "c"] and list(short) == ["b"]
        assert found[0].ids == [1, *whole[skip : skip + 49]] and found[0].bos
    length = 1 + len(tokenizer((novels / "b.txt").read_text(), add_special_tokens=False)["input_ids"])
    assert beginnings(Text(path=str(novels)), tokenizer, tokens=50, least=length)[1] == {}
    assert beginnings(Text(path=str(novels)), tokenizer, tokens=50, least=length + 1)[1] == {"b": length}


SMALL = "hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, vocab_size: 300"
GPT2 = "{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, vocab_size: 300, n_positions: 512}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prefill=oneshot"], "extrapolation is stepwise by definition"),
        (["context=560"], "reads no chunks: leave context=null, and give tokens=560"),
        (["tokens=null"], "such as tokens=70000"),
        (["tokens=1"], "such as tokens=70000"),
        (["keep_tokens=true"], "task=extrapolation does not measure"),
        (["model.extrapolate=false"], "560 is more than the 512 positions of model: positions=compressed stays"),
        (["policy=full"], "the full model cannot read it: its control is policy=baseline cache=512"),
        (["policy=baseline", "cache=513"], "model has 512 positions: take cache=512 or less"),
        (["model.weights=random", f"model.architecture={GPT2}"], "table of 512 positions, it cannot extrapolate: take tokens"),
        (["model.weights=random", f"model.architecture={GPT2}", "positions=compressed"], "it cannot extrapolate"),
        (
            ["model.weights=random", f"model.architecture={{model_type: mistral, sliding_window: 520, {SMALL}}}"],
            "sliding window of model would bind beyond 520 tokens",
        ),
        (
            [
                "model.weights=random", f"model.architecture={{model_type: llama, max_position_embeddings: 512, {SMALL}, "
                "rope_parameters: {rope_type: dynamic, factor: 2.0, rope_theta: 10000.0}}",
            ],
            "dynamic rotation of model depends on the length of the text beyond 512 tokens",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(overrides, message, novels, tmp_path):
    with pytest.raises(UsageError, match=message):
        cell(novels, tmp_path, *overrides)


@pytest.mark.parametrize("overrides", [["policy=full", "tokens=512"], ["model.extrapolate=false", "tokens=512"],
                                       ["model.extrapolate=false", "policy=baseline", "cache=512"],
                                       ["model.extrapolate=false", "positions=compressed"]])  # fmt: skip
def test_what_is_not(overrides, novels, tmp_path):
    assert cell(novels, tmp_path, *overrides).job.context == int(dict(o.split("=") for o in overrides).get("tokens", TOKENS))


def test_the_control_has_no_positions_to_compress(novels, tmp_path):
    """A grid over both kinds of positions measures it once."""
    kinds = {cell(novels, tmp_path, "policy=baseline", f"positions={kind}").cell.id for kind in ("original", "compressed")}
    assert len(kinds) == 1
    assert cell(novels, tmp_path, "positions=compressed").cell.id != cell(novels, tmp_path).cell.id


def test_where_one_reads_is_no_part_of_who_the_cell_is(novels, tmp_path):
    """What can change the number changes the id: `every` and `least` do, pieces do not."""
    plain = cell(novels, tmp_path).cell.id
    assert cell(novels, tmp_path, "task.chunk=5").cell.id == plain
    for override in ("task.every=100", "task.least=561", "tokens=550"):
        assert cell(novels, tmp_path, override).cell.id != plain

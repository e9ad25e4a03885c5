"""Prompts read together are what each is alone: who is kept, who left when, the answers; in fewer passes, and nothing twice."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import Letters, evicting, job, policies, tiny

import msrnn_bench as mb
from msrnn_bench.models.sources import Loaded
from msrnn_bench.multistate.state import oldest_first
from msrnn_bench.tasks.writing import staircase
from msrnn_bench.tasks.writing.answers import Asked, Writer
from msrnn_bench.tasks.writing.staircase import read_apart, read_together, reads_together

SIZE = 12


def drawn(seed: int, tokens: int) -> list[int]:
    return torch.randint(3, 96, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompts() -> tuple[list[list[int]], list[int]]:
    """Rows and documents: of 1 and 2 tokens, of one length, the same on two documents, and on document 1 two that share 20
    tokens, one that is the beginning of another, and one that shares nothing."""
    begin = drawn(0, 20)
    rows = [drawn(1, 40), drawn(2, 1), drawn(3, 2), drawn(4, 63), drawn(5, 63), drawn(4, 63)]
    documents = [10, 11, 12, 13, 14, 15]
    shared = [begin + drawn(6, 30), begin + drawn(7, 9), begin, drawn(8, 25)]
    return [*rows, *shared], [*documents, 1, 1, 1, 1]


@pytest.fixture
def passes():
    """The shapes of all passes of the tiny model."""
    found: list[tuple[int, ...]] = []
    with tiny("llama-gqa").register_forward_pre_hook(
        lambda _, args, named: found.append(tuple((*args, *named.values())[0].shape)), with_kwargs=True
    ):
        yield found


def session(name, positions="original"):
    return mb.bounded(tiny("llama-gqa"), policies()[name], SIZE, positions=positions, deaths=True)


def same(found, wanted):
    """Two states of one row."""
    for ours, theirs in zip(found.layers_, wanted.layers_, strict=True):
        assert torch.equal(ours.kept()[0], theirs.kept()[0])
        for name in ("evictions", "first_eviction", "seen", "alive", "largest", "farthest", "documents"):
            assert torch.equal(torch.as_tensor(getattr(ours, name)), torch.as_tensor(getattr(theirs, name))), name
        told = 4 if found.rules[0].remembers else 3  # keys, values, positions; scores where the next ones are made of them
        torch.testing.assert_close(oldest_first(ours)[:told], oldest_first(theirs)[:told], atol=1e-9, rtol=0)
    assert all(map(torch.equal, found.deaths(), wanted.deaths())) and found.columns == wanted.columns


WAYS = [*((name, "original") for name in evicting()), *((name, "compressed") for name in ("tova", "h2o", "random"))]


@pytest.mark.parametrize(("name", "positions"), WAYS)
def test_rows_read_together_are_read_as_alone(name, positions, passes):
    rows, documents = prompts()
    apart = read_apart(tiny("llama-gqa"), session(name, positions), rows, documents)
    alone = len(passes)
    passes.clear()
    together = read_together(tiny("llama-gqa"), session(name, positions), rows, documents)
    for ours, theirs in zip(together, apart, strict=True):
        same(ours, theirs)
    assert len(passes) < alone == len(rows) and max(passes)[0] >= 7
    assert sum(n * tokens for n, tokens in passes) == sum(map(len, rows)) - 2 * 20, "what is shared is read once"
    if name == "random":
        assert not torch.equal(apart[3].layers_[0].kept()[0], apart[5].layers_[0].kept()[0]), "one text, two documents"


def test_passes_are_no_larger_than_they_may_be(monkeypatch, passes):
    rows, documents = prompts()
    whole = read_together(tiny("llama-gqa"), session("h2o"), rows, documents)
    passes.clear()
    monkeypatch.setattr(staircase, "PIECE", 8)
    monkeypatch.setattr(staircase, "PASS", 24)
    for ours, theirs in zip(read_together(tiny("llama-gqa"), session("h2o"), rows, documents), whole, strict=True):
        same(ours, theirs)
    assert max(tokens for _, tokens in passes) == 8 and max(n * tokens for n, tokens in passes) == 24


def test_a_document_that_was_begun_is_gone_on_with(passes):
    rows, documents = prompts()
    ours = session("random")
    (begun,) = read_apart(tiny("llama-gqa"), ours, [rows[6][:15]], [1])
    passes.clear()
    found = read_together(tiny("llama-gqa"), ours, rows, documents, (1, rows[6][:15], begun))
    assert sum(n * tokens for n, tokens in passes) == sum(map(len, rows)) - 2 * 20 - 15
    for one, other in zip(found, read_apart(tiny("llama-gqa"), session("random"), rows, documents), strict=True):
        same(one, other)
    assert begun.layers_[0].seen == [15], "as it was"


def test_an_end_mark_in_a_prompt_ends_nothing():
    """Rows that end one behind the other are read a token at a time, and two of the tokens are an end mark and padding."""
    begin = drawn(0, 9)
    rows = [begin[:6], [*begin[:6], 2], [*begin[:6], 2, 0], [*begin[:6], 2, 0, 5, 6], drawn(9, 12)]
    found = read_together(tiny("llama-gqa"), session("tova"), rows, [0, 1, 2, 3, 4])
    for ours, theirs in zip(found, read_apart(tiny("llama-gqa"), session("tova"), rows, [0, 1, 2, 3, 4]), strict=True):
        same(ours, theirs)


# -- answers


def asked() -> list[Asked]:
    """Two batches of questions; the last document of the first goes on in the second."""
    rows = [Asked(drawn(n, tokens), document=n) for n, tokens in enumerate((40, 5, 2))]
    begin = drawn(20, 30)
    rows += [Asked(begin + drawn(30 + n, 7 + n), read=28 + n, document=20) for n in range(4)]
    return [*rows, Asked(drawn(9, 33), read=20, document=21)]


def written(policy, together, **changes):
    chosen = policies()[policy]
    loaded = Loaded(tiny("llama-gqa"), Letters(), {})
    writer = Writer(loaded, job(chosen, 24 if chosen.evicts else None, **changes), 12, deaths=True, together=together)
    found = []
    for batch in (asked()[:5], asked()[5:]):
        found += [(replace(answer, seconds=0), [x[n] for x in writer.left]) for n, answer in enumerate(writer.answers(batch))]
    return found


@pytest.mark.parametrize("policy", ["full", "tova", "tova_head", "window4", "h2o", "a2sf", "random"])
def test_answers_are_those_of_reading_one_by_one(policy, passes):
    """Everything that an answer tells, its time aside, and when each state left."""
    apart = written(policy, None)  # on a CPU
    alone = [tokens for rows, tokens in passes if rows == 1]
    passes.clear()
    together = written(policy, True)
    assert [answer for answer, _ in together] == [answer for answer, _ in apart]
    for (_, ours), (_, theirs) in zip(together, apart, strict=True):
        assert all(map(torch.equal, ours, theirs))
    read = [shape for shape in passes if shape not in ((5, 1), (3, 1))]
    assert sum(n * tokens for n, tokens in read) <= sum(alone) and max(read)[0] == 4


def test_one_prompt_or_oneshot_is_read_as_ever(passes):
    loaded = Loaded(tiny("llama-gqa"), Letters(), {})
    writer = Writer(loaded, job(mb.Tova(), 24), 2, together=True)
    writer.answer(asked()[3])
    assert [tokens for _, tokens in passes] == [28, 36 - 28, 1, 1], "it and then what it shares with nobody yet"
    passes.clear()
    rows = [Asked([7], document=1), *asked()[:2]]
    assert len(writer.answers(rows)) == 3, "a prompt of one token has nothing to read ahead"
    passes.clear()
    replace(writer, job=job(mb.Tova(), 24, prefill="oneshot")).answers(asked()[:2])
    assert passes == [(2, 40), (2, 1)]


def test_the_seconds_of_reading_are_shared_by_tokens():
    loaded = Loaded(tiny("llama-gqa"), Letters(), {})
    answers = Writer(loaded, job(mb.Tova(), 24), 1, together=True).answers([Asked(drawn(0, 401)), Asked(drawn(1, 2), document=1)])
    assert answers[0].seconds > answers[1].seconds > 0


def test_where_rows_are_read_together():
    """By default on CUDA; not one row; and not where each needs one piece."""
    rows, rope = [[1] * 40, [1] * 70], {"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 64}

    def model(device, **more):
        config = SimpleNamespace(**more)
        config.get_text_config = lambda: config
        return SimpleNamespace(device=torch.device(device), config=config)

    assert reads_together(model("cuda:1"), rows) and not reads_together(model("cpu"), rows)
    assert reads_together(model("cpu"), rows, True) and not reads_together(model("cuda"), rows, False)
    assert not reads_together(model("cuda"), rows[:1])
    assert not reads_together(model("cuda", **rope), rows) and reads_together(model("cuda", **rope), [rows[0]] * 2)

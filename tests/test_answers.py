"""Answers written in one batch are those that each prompt gets alone, and alone they are the definition's."""

from dataclasses import replace

import pytest
import torch
from conftest import Letters, job, policies, tiny

import msrnn_bench as mb
from msrnn_bench.models.sources import Loaded
from msrnn_bench.tasks.writing.answers import Asked, Writer

NEW = 24


def asked() -> list[Asked]:
    """Prompts of unlike length on unlike documents, the second and third on one, which they share 20 tokens of."""
    draw = torch.Generator().manual_seed(5)
    shared = torch.randint(3, 96, (20,), generator=draw).tolist()
    texts = [torch.randint(3, 96, (length,), generator=draw).tolist() for length in (40, 5, 33, 63, 2, 17)]
    rows = [Asked(ids, document=number) for number, ids in enumerate(texts)]
    rows[1:3] = [Asked(shared + one.ids, read=20, document=1) for one in rows[1:3]]
    return rows


def writer(policy: str, **changes) -> Writer:
    chosen = policies()[policy]
    model = tiny("llama-gqa")
    return Writer(Loaded(model, Letters(), {}), job(chosen, 24 if chosen.evicts else None, **changes), NEW)


@pytest.mark.parametrize("prefill", ["stepwise", "oneshot"])
@pytest.mark.parametrize("policy", ["full", "tova", "tova_head", "window4", "h2o", "a2sf", "random"])
def test_a_batch_is_its_rows(policy, prefill):
    """Everything that an answer tells, its time aside."""
    prompts = asked()
    together = [replace(answer, seconds=0) for answer in writer(policy, prefill=prefill).answers(prompts)]
    lengths = [len(answer.tokens) for answer in together]
    assert len({tuple(answer.tokens) for answer in together}) == len(prompts) and max(lengths) == NEW
    apart = [replace(writer(policy, prefill=prefill).answer(one), seconds=0) for one in prompts]
    assert together == apart
    turned = writer(policy, prefill=prefill).answers(prompts[::-1])
    assert [answer.tokens for answer in turned[::-1]] == [answer.tokens for answer in apart]


def test_some_rows_end_before_others():
    """Else the test above would not see what the padding behind a finished row does."""
    lengths = [len(answer.tokens) for policy in ("full", "tova", "h2o") for answer in writer(policy).answers(asked())]
    assert min(lengths) < NEW == max(lengths)


def test_a_prompt_of_one_token_has_nothing_to_read_ahead():
    prompts = [*asked()[:2], Asked([7], document=9)]
    together = [answer.tokens for answer in writer("tova").answers(prompts)]
    assert together == [writer("tova").answer(one).tokens for one in prompts]


@pytest.mark.parametrize("prefill", ["stepwise", "oneshot"])
@pytest.mark.parametrize("policy", ["full", "tova", "h2o", "random"])
def test_the_scan_answers_as_the_recurrence(policy, prefill):
    fast, slow = (writer(policy, prefill=prefill, engine=engine).answers(asked()) for engine in ("scan", "recurrence"))
    assert [replace(answer, seconds=0) for answer in fast] == [replace(answer, seconds=0) for answer in slow]


def test_states_of_two_blocks_are_no_batch():
    states = []
    for _ in range(2):
        with mb.bounded(tiny("llama-gqa"), mb.Tova(), 8) as session:
            session.model(torch.tensor([[1, 5, 9]]))
        states.append(session.fork())
    with pytest.raises(mb.UsageError, match="cannot be one batch"):
        mb.multistate.cache.MultiState.join(states)

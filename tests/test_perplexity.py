"""The perplexity task: its sums against a plain computation, its buckets, the baseline, real numbers where they are."""

import math
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, shared, tiny

import msrnn_bench as mb
from msrnn_bench.models.sources import LocalModel
from msrnn_bench.tasks.perplexity import Perplexity, baseline_losses, losses

sys.path.insert(0, str(ROOT))
from benchmarks import tables


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def plain(model, ids):
    logits = model(ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()


@pytest.mark.parametrize("chunk", [1, 7, 33, 64, 100])
def test_the_pass_size_never_changes_the_result(chunk):
    model, ids = tiny("llama-gqa"), torch.randint(3, 96, (1, 65))
    np.testing.assert_allclose(
        losses(model, ids, chunk, mb.bounded(model, mb.Full()), None)["nll"], plain(model, ids), atol=1e-10
    )
    for policy in (mb.Tova(), mb.H2O(), mb.Window(first=4), mb.Random()):
        one = losses(model, ids, 65, mb.bounded(model, policy, 12), None)["nll"]
        np.testing.assert_allclose(losses(model, ids, chunk, mb.bounded(model, policy, 12), None)["nll"], one, atol=1e-10)


@pytest.mark.parametrize("size", [1, 5, 16, 64, 200])
def test_baseline_is_independent_chunks_scoring_the_same_targets(size):
    model, ids = tiny("llama-gqa"), torch.randint(3, 96, (1, 65))
    ours = baseline_losses(model, ids, size)["nll"]
    wanted = []
    for begin in range(0, 64, size):
        part = ids[:, begin : min(begin + size, 64)]
        logits = model(part).logits[0]
        wanted.append(torch.nn.functional.cross_entropy(logits, ids[0, begin + 1 : begin + 1 + part.shape[1]], reduction="none"))
    np.testing.assert_allclose(ours, torch.cat(wanted).numpy(), atol=1e-10)


def rows(policy, k, **options):
    shared("models/stories260k")
    task = Perplexity(**options)
    return list(task.rows(tables.stories_job(policy, k, {}, documents=2)))


def test_buckets_partition_the_targets():
    coarse = rows(mb.Tova(), 64, buckets=(512,))
    fine = rows(mb.Tova(), 64, buckets=(1, 10, 64, 65, 500, 4096))
    assert sum(r.count for r in coarse) == sum(r.count for r in fine) == 2 * 511
    assert sum(r.total for r in coarse) == pytest.approx(sum(r.total for r in fine), rel=1e-12)
    first = [r for r in fine if r.document == fine[0].document]
    assert [(r.bucket_start, r.bucket_end, r.count) for r in first] == [
        (1, 10, 9), (10, 64, 54), (64, 65, 1), (65, 500, 435), (500, 512, 12),
    ]  # fmt: skip
    assert all(r.evictions == 448 and r.first_eviction == 64 and r.max_states == 64 for r in fine)


def test_recorded_numbers_of_the_stories_model():
    """Exact token-by-token eviction by an independent prototype: a column of the shared table."""
    shared("models/stories260k")
    together: dict = {}
    assert tables.stories(mb.Full(), None, together) == pytest.approx(4.747, abs=0.003)
    for policy, wanted in ((mb.Window(first=4), 5.704), (mb.H2O(), 5.874), (mb.Tova(), 5.464)):
        assert tables.stories(policy, 16, together) == pytest.approx(wanted, abs=0.003)


def test_agreement_with_the_full_model():
    found = rows(mb.Tova(), 16, agreement=True)
    sums = {
        m: sum(r.total for r in found if r.metric == m) / sum(r.count for r in found if r.metric == m)
        for m in ("nll", "kl", "top1_agreement")
    }
    assert 0 < sums["kl"] < 1 and 0.5 < sums["top1_agreement"] < 1 and math.exp(sums["nll"]) > 4
    same = rows(mb.Tova(), 512, agreement=True)
    assert max(abs(r.total) for r in same if r.metric == "kl") < 1e-3
    assert all(r.total == r.count for r in same if r.metric == "top1_agreement")


def test_the_random_model_is_seeded(tmp_path):
    tiny("llama-gqa").config.save_pretrained(tmp_path)
    a, b, c = (
        next(LocalModel(path=str(tmp_path), weights="random").load(dtype="float32", device="cpu", seed=s).model.parameters())
        for s in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)

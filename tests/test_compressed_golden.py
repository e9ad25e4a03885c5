"""The loop behind tests/golden/compressed_tiny.npz: it is what the file holds, another loop's numbers are its own, and both
engines give them."""

import math
import sys

import numpy as np
import pytest
import torch
from conftest import GOLDEN, SHARED, policies
from transformers import AutoModelForCausalLM

import msrnn_bench as mb
from msrnn_bench.multistate.naming import carried

sys.path.insert(0, str(GOLDEN))
import compressed_tiny as loop

OTHER = SHARED / "golden/compressed_stories260k.npz"


def test_gaps():
    """spec 2.4: 10 -> 10, 11 -> 11, 20 -> 11, 100 -> 12, 1,000 -> 12, 70,000 -> 13, one after the other."""
    assert loop.places(np.array([7, 8, 18, 29, 49, 149, 1149, 71149])).tolist() == [0, 1, 11, 22, 33, 45, 57, 70]


def test_without_a_gap_and_an_eviction_it_is_the_model():
    ids = loop.text()[:100]
    found, death, _ = loop.read(loop.TINY / "model", ids, "tova", 100)
    model = AutoModelForCausalLM.from_pretrained(loop.TINY / "model").double()
    with torch.no_grad():
        wanted = model(torch.tensor(ids)[None]).logits[0].numpy()
    assert (death == -1).all()
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # the library rotates in float32


@pytest.mark.parametrize(("policy", "k"), loop.CASES)
def test_the_file_is_what_the_loop_gives(policy, k):
    golden, name = np.load(GOLDEN / "compressed_tiny.npz"), f"{policy}_{k}"
    assert golden["ids"].tolist() == loop.text().tolist() and golden["steps"][-1] == loop.LENGTH - 1
    logits, death, margin = loop.read(loop.TINY / "model", golden["ids"], policy, k)
    np.testing.assert_allclose(logits[golden["steps"]], golden[f"logits_{name}"], atol=1e-5)
    np.testing.assert_allclose(loop.losses(logits, golden["ids"]), golden[f"nll_{name}"], atol=1e-9)
    assert np.array_equal(death, golden[f"death_{name}"]) and (death < 0).sum(1).tolist() == [k] * 5
    assert margin > 4e-5 and math.isclose(margin, golden[f"margin_{name}"], rel_tol=1e-6)


@pytest.mark.skipif(not OTHER.exists(), reason="../shared, which holds the other loop's numbers, is not there")
@pytest.mark.parametrize(("policy", "k"), loop.CASES)
def test_another_loop_on_another_model_gives_the_same(policy, k):
    other, name = np.load(OTHER), f"{policy}_{k}"
    logits, death, _ = loop.read(SHARED / "models/stories260k", other["ids"], policy, k)
    np.testing.assert_allclose(logits, other[f"logits_{name}"], atol=2e-6)
    assert np.flatnonzero(death[-1] < 0).tolist() == other[f"kept_{name}"].tolist()


@pytest.mark.parametrize(
    ("engine", "dtype", "cases"),
    [("scan", torch.float64, loop.CASES), ("scan", torch.float32, loop.CASES), ("recurrence", torch.float64, [("tova", 16)])],
)
def test_bounded_gives_the_loops_numbers(engine, dtype, cases):
    """Beyond the model's 512 positions, in one call and in pieces, with the states carried on."""
    golden = np.load(GOLDEN / "compressed_tiny.npz")
    model, ids = AutoModelForCausalLM.from_pretrained(loop.TINY / "model").to(dtype), torch.tensor(golden["ids"].astype(int))
    for policy, k in cases:
        name = f"{policy}_{k}"
        with mb.bounded(model, policies()[policy], k, positions="compressed", engine=engine) as states:
            logits = model(ids[None]).logits[0]
        kept = [sorted(layer.kept[0].flatten().tolist()) for layer in states.layers]
        assert kept == [np.flatnonzero(death < 0).tolist() for death in golden[f"death_{name}"]]
        np.testing.assert_allclose(logits[golden["steps"]].double(), golden[f"logits_{name}"], atol=1e-4)
        with mb.bounded(model, policies()[policy], k, positions="compressed", engine=engine) as states:
            pieces = [model(part[None], **carried(model, states.current)).logits[0] for part in ids.split(250)]
        found = loop.losses(torch.cat(pieces).double().numpy(), golden["ids"])
        np.testing.assert_allclose(found[1:], golden[f"nll_{name}"][1:], atol=1e-4)

"""The perplexity task: its sums against a plain computation, its buckets, the baseline, and agreement on a real model."""

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from conftest import HELD_OUT, TINY_MODEL, Silent, policies, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import msrnn_bench as mb
from msrnn_bench.job import load
from msrnn_bench.models.sources import LocalModel
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks.perplexity import Perplexity
from msrnn_bench.tasks.reading.losses import baseline_losses, losses


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
        losses(model, ids, chunk, mb.bounded(model, mb.Full()), None)["nll"][0], plain(model, ids), atol=1e-10
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


TOGETHER: dict = {}  # the model is loaded once


def rows(policy, k, context=512, **options):
    """Of the tests' pretrained model, in float64, on two chunks it was not trained on."""
    overrides = [
        "model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={HELD_OUT}", "dataset.pack=true",
        f"context={context}", "documents=2", "tokens=null", "device=cpu", f"policy={policy}", f"cache={k}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # a journal of its own
        return _rows([*overrides, f"results_dir={folder}"], options)


def _rows(overrides, options):
    told = prepare(compose_one(overrides), overrides, Silent(), TOGETHER).job
    loaded = load(told)
    loaded.model.double()
    return list(Perplexity(**options).rows(told))


@cache
def read_plainly(context):
    """The same two chunks, cut by hand, and the model, without a task."""
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL).double().eval()
    ids = AutoTokenizer.from_pretrained(TINY_MODEL)(HELD_OUT.read_text())["input_ids"][: 2 * context]
    return model, torch.tensor(ids).view(2, context)  # packed: one mark of beginning, at the text's


def test_buckets_partition_the_targets():
    coarse = rows("tova", 64, buckets=(512,))
    fine = rows("tova", 64, buckets=(1, 10, 64, 65, 500, 4096))
    assert sum(r.count for r in coarse) == sum(r.count for r in fine) == 2 * 511
    assert sum(r.total for r in coarse) == pytest.approx(sum(r.total for r in fine), rel=1e-12)
    first = [r for r in fine if r.document == fine[0].document]
    assert [(r.bucket_start, r.bucket_end, r.count) for r in first] == [
        (1, 10, 9), (10, 64, 54), (64, 65, 1), (65, 500, 435), (500, 512, 12),
    ]  # fmt: skip
    assert all(r.evictions == 448 and r.first_eviction == 64 and r.max_states == 64 for r in fine)


@pytest.mark.parametrize("policy", ["full", "tova", "h2o", "window4"])
def test_the_sums_of_a_real_model_are_the_oracles(policy):
    """From a model folder and a text file to rows, against transformers alone and the oracle's own eviction."""
    model, chunks = read_plainly(128)
    made = policies()[policy]
    found = rows(policy, 16, context=128, buckets=(128,))
    for row, ids in zip(found, chunks, strict=True):
        logits = oracle.bounded_logits(model, ids[None], made, 16)[0] if made.evicts else model(ids[None]).logits[0]
        wanted = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
        assert row.count == 127 and row.total == pytest.approx(float(wanted), rel=1e-6)


def test_agreement_with_the_full_model():
    found = rows("tova", 16, agreement=True)
    model, chunks = read_plainly(512)
    full = model(chunks).logits[:, :-1].log_softmax(-1)
    with mb.bounded(model, mb.Tova(), 16):
        ours = model(chunks).logits[:, :-1].log_softmax(-1)
    wanted = {
        "nll": -ours.gather(-1, chunks[:, 1:, None]).sum(),
        "kl": (full.exp() * (full - ours)).sum(),
        "top1_agreement": (full.argmax(-1) == ours.argmax(-1)).sum(),
    }
    for metric, total in wanted.items():
        assert sum(r.total for r in found if r.metric == metric) == pytest.approx(float(total), rel=1e-9)
        assert sum(r.count for r in found if r.metric == metric) == 2 * 511
    assert wanted["kl"] > 1 and 511 < wanted["top1_agreement"] < 2 * 511
    same = rows("tova", 512, agreement=True)
    assert max(abs(r.total) for r in same if r.metric == "kl") < 1e-9
    assert all(r.total == r.count for r in same if r.metric == "top1_agreement")


def test_the_random_model_is_seeded(tmp_path):
    tiny("llama-gqa").config.save_pretrained(tmp_path)
    a, b, c = (
        next(LocalModel(path=str(tmp_path), weights="random").load(dtype="float32", device="cpu", seed=s).model.parameters())
        for s in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


GROWTH = """
import torch, transformers, msrnn_bench as mb
from msrnn_bench.tasks.reading.losses import baseline_losses, losses
config = transformers.LlamaConfig(vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16384)
model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
ids = torch.randint(0, 49152, (1, 2560))
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
for read in (lambda n: losses(model, ids[:, :n], 256, mb.bounded(model, mb.Tova(), 64), None),
             lambda n: baseline_losses(model, ids[:, :n], 512)):
    read(1024)
    before = held()
    read(2560)
    print((held() - before) // 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the process's pages")
def test_memory_does_not_grow_with_the_text():
    # 1,536 tokens more are 288 MiB of logits in float32, which small tensors kept among them would pin
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", GROWTH], capture_output=True, text=True, check=True)
    streamed, chunks = map(int, done.stdout.split())
    assert streamed < 100 and chunks < 100, done.stdout

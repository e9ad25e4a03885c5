"""`task.batch=auto`: how many rows fit, by known numbers; on a device that is said to be there."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, job
from transformers import GPT2Config, LlamaConfig

import msrnn_bench as mb
from msrnn_bench.results.shape import misfit
from msrnn_bench.runs.restored import restored
from msrnn_bench.tasks.cost.batch import chosen, fitting
from msrnn_bench.tasks.cost.memory import left


@pytest.mark.parametrize(
    ("config", "states", "full", "per_row"),
    [
        (LlamaConfig(), 512, 0, 2 * 32 * 32 * 128 * 2 * 608 + 1024 * 65792 * 2 + 32 * 768 * 608 * 4 + 1024 * 32000 * 4),
        (LlamaConfig(), 64, 4096, 2 * 32 * 32 * 128 * 2 * 4256 + 1024 * 65792 * 2 + 32 * 768 * 4096 * 4 + 2048 * 32000 * 4),
        (GPT2Config(), 512, 0, 2 * 12 * 12 * 64 * 2 * 608 + 1024 * 15360 * 2 + 12 * 768 * 608 * 4 + 1024 * 50257 * 4),
    ],
    ids=["7B", "beside the full model", "gpt2"],
)
def test_what_fits_is_a_matter_of_arithmetic(config, states, full, per_row):
    """Keys and values, a layer's activations, a block's attention, logits; twice over."""

    def fit(free, states=states, tokens=1024):
        return fitting(config, torch.bfloat16, free, states=states, tokens=tokens, full=full)

    assert [fit(free) for free in (0, 2 * per_row, 4 * per_row - 1, 4 * per_row, 10 * per_row, 10**15)] == [1, 1, 1, 2, 5, 16]
    rising = [fit(free) for free in range(0, 40 * per_row, per_row)]
    falling = [fit(20 * per_row, states, 1024) for states in range(64, 20_000, 500)]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True) and min(falling) < max(falling)
    assert fit(20 * per_row, tokens=256) >= fit(20 * per_row) == 10


def test_a_configuration_that_does_not_tell_is_read_row_by_row():
    config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(hidden_size=64))
    assert fitting(config, torch.float32, 10**15, states=64, tokens=64) == 1


def test_what_torch_keeps_at_hand_is_free(monkeypatch):
    """Else the second cell of a process would find the memory full that the first has done with."""
    told = {"mem_get_info": (100, 1000), "memory_reserved": 700, "memory_allocated": 300}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert left(torch.device("cuda", 0)) == 100 + 700 - 300


@pytest.fixture
def card(monkeypatch):
    """A model that says it is on two CUDA devices; `card[device]` bytes are free there."""
    free = {0: 10**15, 1: 10**15}
    monkeypatch.setattr("msrnn_bench.tasks.cost.batch.left", lambda device: free[device.index])
    parameters = [SimpleNamespace(device=torch.device("cuda", number)) for number in (0, 1, 1)]
    return SimpleNamespace(parameters=lambda: iter(parameters), config=LlamaConfig(), dtype=torch.bfloat16, free=free)


def test_on_cuda_memory_decides_and_a_line_says_so(card, caplog):
    told = job(mb.Tova(), 512, context=4096)
    assert chosen("auto", card, told, texts=30, chunk=1024) == 16
    assert "task.batch=auto is 16 here: 30 texts, 909 TiB free" in caplog.text
    assert chosen("auto", card, told, texts=3, chunk=1024) == 3, "no more than there are"
    assert told.notes == {"batch": 3}, "the manifest says it"
    card.free[1] = 8 * 2**30
    assert chosen("auto", card, told, texts=30, chunk=1024) == 6, "of several devices the fullest decides"
    assert chosen("auto", card, replace(told, context=300), texts=30, chunk=1024) > 6
    assert chosen("auto", card, told, texts=30, chunk=1024, beside=True) < 6
    assert chosen("auto", card, replace(told, streams=2), texts=30, chunk=1024) < 6
    assert chosen(9, card, told, texts=30, chunk=1024) == 9, "a number is a number"
    assert chosen("auto", card, job(mb.Baseline(), 512), texts=30, chunk=1024) == 1


def test_rerun_takes_what_auto_was():
    """From the manifest of a committed cell, as though it had been measured on a GPU."""
    manifest = json.loads(min((ROOT / "results/novels/cells").glob("*.json")).read_text())
    manifest["config"]["task"]["batch"] = "auto"
    assert restored(manifest, [], "results", trust=False).task.batch == "auto"
    assert restored({**manifest, "chosen": {"batch": 6}}, [], "results", trust=False).task.batch == 6
    assert misfit({**manifest, "chosen": {"batch": "six"}}, {}) == "has in chosen.batch what no manifest has there"


def test_with_shards_auto_is_one_and_says_what_to_do(card, caplog):
    assert chosen("auto", card, job(mb.Tova(), 512, share=(0, 2)), texts=30, chunk=1024) == 1
    assert "task.batch=auto is 1 with shards" in caplog.text and "give a number" in caplog.text

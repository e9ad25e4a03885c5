"""benchmarks/gpu.py without a GPU: it runs through small, its check finds what is wrong, and no line takes the others with it."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import msrnn_bench as mb
from benchmarks import cost_model, gpu_gate, gpu_lines
from benchmarks import gpu as script
from benchmarks.gpu_lines import ARCHITECTURE, TINY, Bench, Line, Sizes
from msrnn_bench.multistate import fallback
from msrnn_bench.policies import Rule

CPU = torch.device("cpu")


@pytest.fixture
def short(monkeypatch):
    """Fewer tokens yet."""
    sizes = replace(TINY, tokens=96, long=128, chunk=32, k=12, rounds=1, steps=1, loop=1, table=((12, 2),))
    for module in (script, gpu_lines):
        monkeypatch.setattr(module, "TINY", sizes)
    return sizes


def test_it_runs_through(short, tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    assert script.main(["--tiny", "--out", str(out)]) == 0
    told, written = capsys.readouterr().out, json.loads(out.read_text())
    assert "NO GPU NUMBERS" in told.splitlines()[1] and "torch fallback" in told and "MISSED" not in told
    assert [line["line"] for line in written["lines"]] == [line.name for line in gpu_lines.lines(short)]
    assert not any("failed" in line or "skipped" in line for line in written["lines"])
    assert "EXTRAPOLATED from 1 steps" in told and written["path"] == "torch fallback"
    assert written["machine"]["processor"] and written["versions"]["torch"] == torch.__version__


def test_without_a_gpu_it_is_one_line(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert script.main(["--out", str(tmp_path / "x.json")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "--tiny" in said.err


def test_with_a_gpu_it_is_the_same_script(short, tmp_path, capsys, monkeypatch):
    """All that a GPU's run passes through, but that the device is the CPU and the sizes are small."""
    waits = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(script, "GPU", "cpu")
    assert script.llama()["hidden_size"] == 4096 and script.llama()["num_hidden_layers"] == 32
    monkeypatch.setattr(script, "llama", lambda: ARCHITECTURE)
    monkeypatch.setattr(script, "Sizes", lambda: replace(short, dtype=torch.bfloat16))
    with gpu_gate.fallback():  # nothing that is compiled for a CPU
        assert script.main(["--out", str(tmp_path / "x.json")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("NVIDIA H100") and "NO GPU NUMBERS" not in told and ("met" in told or "MISSED" in told)
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["machine"]["cuda"] and written["lines"][1]["predicted"] > 0 and len(waits) > 50
    assert [line["line"] for line in written["lines"]] == [line.name for line in gpu_lines.lines(short)]


@pytest.mark.parametrize("policy", [mb.Tova(), mb.H2O()])
def test_the_checks_data_are_far_from_ties(policy):
    """Noise a hundred times a float32's rounding changes nobody's leaving, so what differs on a GPU is a fault."""
    assert gpu_gate.faults(policy, CPU) is None
    q, k, v = gpu_gate.drawn(CPU)
    kept = gpu_gate.read(mb.recurrence, q, k, v, policy)[1]
    for seed in range(3):
        noise = 1e-5 * torch.randn(q.shape, generator=torch.Generator().manual_seed(seed))
        shaken = gpu_gate.read(mb.recurrence, q * (1 + noise), k, v, policy)[1]
        assert all(torch.equal(a, b) for a, b in zip(kept, shaken, strict=True))


def test_a_wrong_choice_is_found_and_ends_with_1(short, tmp_path, capsys, monkeypatch):
    real = fallback.evict

    def wrong(logits, positions, scores, keys, values, seeds, rule, state, start):
        return real(logits, positions, scores, keys, values, seeds, Rule(rule.state_size, recent=2, per=rule.per), state, start)

    monkeypatch.setattr(fallback, "evict", wrong)
    assert script.main(["--tiny", "--out", str(tmp_path / "x.json")]) == 1
    told = capsys.readouterr().out
    assert told.count("CHECK FAILED, not timed: tova keeps other states than the recurrence (after piece 1 of 14") == 10
    assert "SOMETHING FAILED" in told.splitlines()[-1]


def test_a_wrong_output_is_found(monkeypatch):
    real = gpu_gate.read

    def shifted(engine, *rest):
        out, kept = real(engine, *rest)
        return out + 1e-3 * (engine is mb.recurrence), kept

    monkeypatch.setattr(gpu_gate, "read", shifted)
    assert "outputs differ from those of the recurrence by 1.0e-03" in gpu_gate.faults(mb.Tova(), CPU)


def test_two_streams_that_keep_other_states_are_not_timed(monkeypatch):
    bench = Bench(replace(TINY, tokens=96, k=12, rounds=1), CPU, 9, ARCHITECTURE)
    bench.load()
    ids = bench.ids(2, 96)
    with gpu_gate.fallback():
        assert gpu_lines.shared(bench, mb.Tova(), ids, 32) == 1
        real = gpu_lines.overlapped
        monkeypatch.setattr(gpu_lines, "overlapped", lambda model, states, chunks: real(model, states, [chunks[0], *chunks[:2]]))
        told = gpu_lines.reading(bench, mb.Tova(), 2, 96, chunk=32)
    assert told["failed"].startswith("CHECK FAILED, not timed: of the states of one chunk")


def test_a_line_that_breaks_is_alone(monkeypatch, tmp_path, capsys):
    def full(bench):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def broken(bench):
        raise ValueError("a kernel\ndid not compile")

    def fine(bench):
        return gpu_lines.summary([1.25, 1.0, 1.5], 1.5)

    works = (full, broken, fine)
    monkeypatch.setattr(script, "lines", lambda sizes: [Line(work.__name__, mb.Tova(), 10, work) for work in works])
    monkeypatch.setattr(script, "faults", lambda policy, device: None)
    assert not script.run(Bench(Sizes(), CPU, 100, {}), tmp_path / "x.json")
    assert capsys.readouterr().out.splitlines() == [
        "| full | skipped: out of memory | | | |",
        "| broken | FAILED: ValueError: a kernel did not compile | | | |",
        "| fine | 1.25 [1.00, 1.50] | 1.5 met |  |  |",
    ]
    assert script.run(Bench(Sizes(), CPU, 5, {}), tmp_path / "x.json") is not False
    assert "s of the budget are left, this takes about 10" in capsys.readouterr().out


def test_a_line_stops_at_the_budget():
    bench = Bench(replace(TINY, tokens=24, k=8, rounds=9), CPU, 0.0, ARCHITECTURE)
    bench.load()
    with gpu_gate.fallback():
        assert gpu_lines.reading(bench, mb.Tova(), 1, 24)["rounds"] == 1


def test_targets_are_held_from_the_right_side():
    assert gpu_lines.summary([0.9], 0.8, above=True)["met"] and not gpu_lines.summary([0.7], 0.8, above=True)["met"]
    assert gpu_lines.summary([0.7], 0.8)["met"] and gpu_lines.summary([0.7], None)["met"] is None


def test_a_calculated_number_stands_beside_an_h100s_alone(monkeypatch):
    told = partial(gpu_lines.predicted, share=lambda m, gpu: cost_model.plain(m, 4, 4096, gpu).seconds)
    assert told(Bench(Sizes(), CPU, 1, {})) is None
    monkeypatch.setattr(gpu_lines, "machine", lambda: {"cuda": "NVIDIA H100 80GB HBM3"})
    assert told(Bench(Sizes(), CPU, 1, {})) > 0.1
    assert told(Bench(TINY, CPU, 1, {})) is None

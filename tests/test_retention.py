"""Which tokens stay: hand-checked cases, sums that are the whole, the loss that is the perplexity cell's, what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HELD_OUT, TINY_MODEL, Silent, evicting, policies
from test_deaths import PUBLISHED, from_trace, recording
from test_engines import inputs

import msrnn_bench as mb
from msrnn_bench.cli.main import main
from msrnn_bench.job import load
from msrnn_bench.multistate.recurrence import recurrence
from msrnn_bench.multistate.scan import scan
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks.staying import lifetimes as arithmetic

T, K, L, P = 256, 32, 5, 4  # the tiny model has 5 layers and 4 KV heads
BASE = [
    "model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={HELD_OUT}", "device=cpu", f"context={T}",
    "documents=1", f"tokens={2 * T}", f"cache={K}",
]  # fmt: skip
TOGETHER: dict = {}


def measured(tmp_path, *overrides, task="retention"):
    given = [*BASE, f"task={task}", f"results_dir={tmp_path}", *overrides]
    cell = prepare(compose_one(given), given, Silent(), TOGETHER)
    stored: dict = {}
    object.__setattr__(cell.job, "store", stored.__setitem__)
    rows = pd.DataFrame(map(vars, cell.task.rows(cell.job)))
    return rows, stored


def part(rows, metric, subtask=None):
    found = rows[rows["metric"] == metric]
    return found if subtask is None else found[found["subtask"] == subtask]


def ratio(rows):
    return float(rows["total"].sum() / rows["count"].sum())


def deaths(policy, tokens, k, **shape):
    _, state = scan(*inputs(tokens=tokens, **shape), policy=policy, state_size=k, state=recording())
    return state.deaths.numpy()


# --- arithmetic


def test_a_windows_share_of_recent_states_is_one():
    assert (arithmetic.recent_share(deaths(mb.Window(), 60, 10), 10) == 1).all()


def test_a_window_with_sinks_by_hand():
    """After step t the four first are held, and of the last k positions the k - 4 last; the first four are among them until
    they are k old."""
    k, tokens = 10, 40
    died = deaths(mb.Window(first=4), tokens, k)
    share = arithmetic.recent_share(died, k)[0]
    wanted = [1.0] * k + [(k - min(4, t - k + 1)) / k for t in range(k, tokens)]
    np.testing.assert_allclose(share, wanted, atol=1e-15)
    assert wanted[-1] == (k - 4) / k and arithmetic.first_alive(died).tolist() == [1]
    assert arithmetic.first_alive(deaths(mb.Window(), tokens, k)).tolist() == [0]
    held = arithmetic.steps_held(died, k)[0]
    assert held[:4].tolist() == [tokens - k] * 4 and held.sum() == k * (tokens - k)


@pytest.mark.parametrize("name", evicting())
def test_shares_and_steps_are_those_of_the_trace(name):
    k, tokens, policy = 12, 70, policies()[name]
    _, state = scan(*inputs(tokens=tokens), policy=policy, state_size=k, state=recording(), trace=True)
    died, trace = state.deaths.numpy(), state.trace[0].numpy()  # [P, T, k]
    ago = np.arange(tokens)[:, None] - trace
    wanted = ((trace >= 0) & (ago < k)).sum(-1) / (trace >= 0).sum(-1)
    np.testing.assert_allclose(arithmetic.recent_share(died, k)[0], wanted.mean(0), atol=1e-15)
    counts = np.stack([(trace[:, k:] == token).sum((1, 2)) for token in range(tokens)], axis=-1)
    np.testing.assert_allclose(arithmetic.steps_held(died, k)[0], counts.mean(0), atol=1e-15)


@pytest.mark.parametrize("size", PUBLISHED)
def test_mean_lifetimes_are_the_papers(size):
    """Its Table 2 prints 249, 481, 897, 1537."""
    died = deaths(mb.Tova(), 4096, size, heads=2, size=2, dtype=torch.float32)
    assert round(float(arithmetic.lifetimes(died).mean()), 2) == PUBLISHED[size]


def test_buckets():
    assert arithmetic.position_buckets(300) == [(n, n + 1) for n in range(26)] + [(26, 64), (64, 128), (128, 256), (256, 300)]
    assert arithmetic.position_buckets(10) == [(n, n + 1) for n in range(10)]
    assert arithmetic.step_buckets(512, 4096) == [(512, 1024), (1024, 2048), (2048, 4095), (4095, 4096)]
    assert arithmetic.step_buckets(100, 101) == [(100, 101)] and arithmetic.step_buckets(100, 102) == [(100, 101), (101, 102)]


# --- the task


@pytest.mark.parametrize("policy", ["tova", "h2o"])
def test_every_sum_is_the_whole(policy, tmp_path):
    rows, stored = measured(tmp_path, f"policy={policy}")
    chunks = 2
    times, share = part(rows, "lifetime"), part(rows, "recent_share")
    (whole,) = part(rows, "lifetime", "all").to_dict("records")
    assert whole["count"] == chunks * L * T and (whole["bucket_start"], whole["bucket_end"]) == (0, T)
    assert whole["total"] / whole["count"] == pytest.approx(sum(min(t, K + 1) for t in range(1, T + 1)) / T, rel=1e-12)
    for prefix in ("position", "layer:", "class:char/", "class:pos/"):
        some = times[times["subtask"].str.startswith(prefix)]
        assert some["count"].sum() == whole["count"] and some["total"].sum() == pytest.approx(whole["total"], rel=1e-12), prefix
    assert list(times[times["subtask"].str.startswith("layer:")]["subtask"]) == [f"layer:{n:02d}" for n in range(L)]
    assert part(rows, "lifetime", "class:char/first")["count"].item() == chunks * L
    steps = [(32, 64), (64, 128), (128, 255), (255, 256)]
    every = part(rows, "recent_share", "all")
    assert list(zip(every["bucket_start"], every["bucket_end"], strict=True)) == steps
    (full,) = part(rows, "recent_share", "all:full").to_dict("records")
    layers = share[share["subtask"].str.startswith("layer:")]
    assert full["count"] == chunks * L * (T - K) == every["count"].sum() == layers["count"].sum()
    assert full["total"] == pytest.approx(every["total"].sum(), rel=1e-12) == pytest.approx(layers["total"].sum(), rel=1e-12)
    (longer,) = part(rows, "recent_share", "all:every").to_dict("records")
    assert longer["total"] == pytest.approx(full["total"] + chunks * L * K, rel=1e-12) and longer["count"] == chunks * L * T
    held = part(rows, "composition")
    assert held["count"].unique().tolist() == [chunks * L * K * (T - K)]
    for scheme in ("char", "pos"):
        assert held[held["subtask"].str.startswith(f"class:{scheme}/")]["total"].sum() == pytest.approx(
            held["count"].iloc[0], rel=1e-12
        )
    assert part(rows, "first_alive")["count"].item() == chunks * L
    died = stored["death"]
    assert died.dtype == np.int32 and died.shape == (L, P if policy == "h2o" else 1, T)
    assert ((died >= 0).sum(-1) == T - K).all()
    first = part(rows, "lifetime", "position").head(1)
    both = arithmetic.lifetimes(died)[:, 0].sum()
    assert both <= first["total"].item() <= both + L * T and first["count"].item() == chunks * L


def test_the_times_are_the_definitions(tmp_path):
    """What is stored, and rows made of it by hand, against the recurrence's own trace of the same text."""
    tokens = 80
    given = [f"context={tokens}", f"tokens={tokens}", "policy=tova", "engine=recurrence"]
    rows, stored = measured(tmp_path, *given)
    given = [*BASE, f"results_dir={tmp_path}", *given]
    job = prepare(compose_one(given), given, Silent(), TOGETHER).job
    loaded, traces = load(job), []

    def traced(*tensors, **options):
        out, state = recurrence(*tensors, **options, trace=True)
        traces.append(state.trace)
        return out, state

    ids = loaded.tokenizer(HELD_OUT.read_text())["input_ids"][:tokens]
    with mb.bounded(loaded.model, mb.Tova(), K, engine="recurrence") as states:
        states.engine = traced
        loaded.model(torch.tensor([ids]))
    wanted = torch.cat([from_trace(trace) for trace in traces])
    assert np.array_equal(stored["death"], wanted.numpy())
    end = np.where(wanted < 0, tokens - 1, wanted)[:, 0]
    by_hand = (end - np.arange(tokens) + 1).sum(1)
    layers = part(rows, "lifetime")[part(rows, "lifetime")["subtask"].str.startswith("layer:")]
    assert layers["total"].tolist() == by_hand.tolist()


def test_windows_in_a_model(tmp_path):
    plain, _ = measured(tmp_path, "policy=window")
    sinks, _ = measured(tmp_path, "policy=window4")
    assert ratio(part(plain, "recent_share")) == 1 and ratio(part(plain, "first_alive")) == 0
    last = part(sinks, "recent_share", "all").iloc[-1]
    assert last["total"] / last["count"] == pytest.approx((K - 4) / K, rel=1e-12) and ratio(part(sinks, "first_alive")) == 1


@pytest.mark.parametrize("policy", ["tova", "random"])
def test_the_loss_is_the_perplexity_cells(policy, tmp_path):
    ours, _ = measured(tmp_path, f"policy={policy}", "task.classes=[]")
    theirs, _ = measured(tmp_path, f"policy={policy}", task="perplexity")
    columns = ["document", "bucket_start", "bucket_end", "metric", "total", "count", "evictions", "max_states", "state_bytes"]
    pd.testing.assert_frame_equal(part(ours, "nll")[columns], theirs[columns], check_dtype=False, check_exact=True)
    assert not ours["subtask"].fillna("").str.startswith("class:").any() and set(ours["metric"]) > {"nll", "lifetime"}


def test_a_class_that_a_document_lacks_holds_nothing_of_it(tmp_path):
    text = HELD_OUT.read_text()
    (tmp_path / "a.txt").write_text("word " * 600)
    (tmp_path / "b.txt").write_text(text[:4000])
    rows, _ = measured(tmp_path / "r", "policy=tova", f"dataset.path={tmp_path}/*.txt", "documents=2", f"tokens={T}")
    held = part(rows, "composition")
    assert set(held["document"]) == {"a", "b"} and (held.groupby("subtask").size() == 2).all()
    assert (held[held["document"] == "a"]["total"] == 0).any()
    for _, one in held[held["subtask"].str.startswith("class:pos/")].groupby("document"):
        assert one["total"].sum() == pytest.approx(one["count"].iloc[0], rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy=full"], "policy=full none does"),
        (["policy=baseline"], "policy=baseline none does"),
        (["prefill=oneshot"], "stepwise by definition"),
        ([f"cache={T}"], f"holds all of context={T}"),
        (["task.classes=[words]"], "char, pos or token"),
        (["task.classes=char"], r"task.classes=\[char\]"),
    ],
)
def test_what_cannot_be_asked_is_refused(overrides, message, tmp_path):
    given = [*BASE, "task=retention", f"results_dir={tmp_path}", *overrides]
    with pytest.raises(mb.UsageError, match=message):
        prepare(compose_one(given), given, Silent(), TOGETHER)


def test_the_whole_way(tmp_path, capsys):
    """Run, stored beside the rows, collected; a source text gets Python's tokens."""
    given = [*BASE, "task=retention", f"results_dir={tmp_path}", "dataset=pysource", "dataset.modules=[textwrap,shlex]",
             "documents=2", f"tokens={T}", "policy=tova,h2o"]  # fmt: skip
    given.remove(f"dataset.path={HELD_OUT}")
    given.remove("dataset=text")
    assert main(["run", "-m", *given]) == 0
    for path in (tmp_path / "cells").glob("*.csv"):
        with np.load(path.with_suffix(".npz")) as data:
            assert data.files == ["death"] and data["death"].shape[0] == L
    assert not list((tmp_path / "cells").glob("*.jsonl"))
    summary = pd.read_csv(tmp_path / "summary.csv")
    token = summary[summary["subtask"].fillna("").str.startswith("class:token/") & (summary["policy"] == "tova")]
    assert {"class:token/name", "class:token/string", "class:token/comment"} <= set(token["subtask"])
    shares = token[token["metric"] == "composition"]
    assert shares["value"].sum() == pytest.approx(1, rel=1e-4) and (shares["documents"] == 2).all()
    assert main(["run", *given[:-1], "policy=tova"]) == 0
    said = capsys.readouterr().out
    assert "perplexity" in said and "recent_share" in said and len(said.splitlines()) < 40

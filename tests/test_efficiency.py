"""What a state costs, with known answers: bytes by arithmetic and as allocated, the largest batch, repeats, the figures."""

import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import HELD_OUT, TINY_MODEL, Silent, tiny

import msrnn_bench as mb
from msrnn_bench import figures
from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.figures import _costs
from msrnn_bench.multistate.footprint import exact_bytes, footprint
from msrnn_bench.multistate.state import State
from msrnn_bench.results.cells import COLUMN_TYPES
from msrnn_bench.results.summary import summarise
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks.cost import clock, memory
from msrnn_bench.tasks.cost.search import largest
from msrnn_bench.tasks.efficiency import CAPPED, NONE_FITS, TOO_MUCH, Efficiency

BASE = ["task=efficiency", "model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={HELD_OUT}",
        "context=160", "task.steps=3", "task.piece=8", "task.repeats=2", "task.memory=1MiB"]  # fmt: skip
PER_STATE = 2 * 5 * 4 * 8 * 4  # of the tiny model: keys and values, layers, KV heads, head size, bytes


def job(*overrides: str, shared: dict | None = None):
    return prepare(compose_one([*BASE, *overrides]), [], Silent(), {} if shared is None else shared)


@pytest.fixture(scope="module")
def shared() -> dict[Any, Any]:
    """The model, loaded once."""
    return {}


def measured(shared, *overrides: str) -> pd.DataFrame:
    cell = job(*overrides, shared=shared)
    rows = [vars(row) for row in cell.task.rows(cell.job)]
    types = {name: kind for name, (kind, _) in COLUMN_TYPES.items()}
    return pd.DataFrame(rows)[list(types)].astype(types).assign(variant=pd.NA)


def one(rows: pd.DataFrame, metric: str, subtask: str | None = None) -> Any:
    found = rows[(rows["metric"] == metric) & (rows["subtask"].isna() if subtask is None else rows["subtask"] == subtask)]
    assert len(found) == 1, (metric, subtask)
    return found.iloc[0]


# --- bytes


def test_arithmetic_is_what_is_allocated_when_exactly_full():
    """The definition keeps exactly k slots: its keys and values are the arithmetic, with nothing over."""
    for name in ("llama-gqa", "llama-mqa", "qwen3", "gpt2", "gpt-neox"):
        for dtype in (torch.float64, torch.float32):
            model = tiny(name, dtype)
            with mb.bounded(model, mb.Tova(), 12, engine="recurrence") as states:
                model(torch.randint(3, 96, (2, 30)))
            found = footprint(states.current)
            assert found.held == 2 * exact_bytes(model.config, dtype, 12) and found.slots == 0, name
    known = tiny("llama-gqa").config
    assert exact_bytes(known, torch.bfloat16, 100) == 2 * 2 * 2 * 16 * 2 * 100  # by hand
    assert exact_bytes(type("C", (), {"get_text_config": lambda self, **_: object()})(), torch.float32, 1) is None


def test_llama_2_as_the_paper_has_it():
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32)
    assert exact_bytes(config, torch.bfloat16, 1) == 512 * 1024
    assert exact_bytes(config, torch.bfloat16, 256) == pytest.approx(0.134e9, rel=2e-3)


def test_every_tensor_is_counted_and_none_twice():
    x = torch.zeros(1, 2, 10, 4)
    state = State()
    state.start(x, 1, 10)
    state.alive = [7]
    whole = type("States", (), {"layers_": [state]})()
    found = footprint(whole)
    books = 10 * 8 + 10 * 4 + 8 + 8  # positions, scores, evictions, first_eviction
    assert (found.held, found.slots, found.books) == (2 * 2 * 4 * 4 * 7, 2 * 2 * 4 * 4 * 3, books)
    assert found.total == 2 * 2 * 4 * 4 * 10 + books
    state.values = state.keys[:, :, 2:]  # a view: the storage it holds on to is counted, once
    assert footprint(whole).held + footprint(whole).slots == 2 * 4 * 4 * 10


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 * 1024**3), ("2 gib", 2 * 1024**3), ("500MB", 500_000_000), ("1.5KiB", 1536), ("4096", 4096), ("7 B", 7)],
)
def test_a_budget_is_read_with_its_unit(text, size):
    assert memory.parsed(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2 gigs", "-1GB", "0", "1e9", "2GiB free"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match=r"no amount of memory: write 2GiB"):
        Efficiency(memory=text)


def test_bytes_for_people():
    assert [memory.shown(n) for n in (12, 1536, 2 * 1024**3, 5 * 1024**5)] == ["12 bytes", "1.5 KiB", "2 GiB", "5.12e+03 TiB"]


PEAK = """
import torch
from msrnn_bench.tasks.cost import memory
device = torch.device("cpu")
memory.forget_peak(device)
before = memory.peak(device)
if before is not None:
    block = torch.ones(256 * 2**20, dtype=torch.uint8)
    held = memory.peak(device)
    del block
    memory.forget_peak(device)
    print((held - before) // 2**20, (held - memory.peak(device)) // 2**20)
"""


def test_the_peak_is_counted_anew():
    """In a process of its own: in one that has freed as much, new memory need not be new pages."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PEAK], capture_output=True, text=True, check=True)
    if not done.stdout:
        pytest.skip("this system does not count a peak anew")
    grown, given_back = map(int, done.stdout.split())
    assert grown > 200 and given_back > 200


# --- the search


@pytest.mark.parametrize("most", [1, 2, 7, 64])
@pytest.mark.parametrize("guess", [0, 1, 3, 40, 1000])
def test_the_largest_batch_is_exact_whatever_the_guess(most, guess):
    for answer in range(most + 3):
        tried = []

        def fits(n, answer=answer, tried=tried):
            tried.append(n)
            return n <= answer

        found = largest(fits, guess=guess, most=most)
        assert found == min(answer, most)
        assert len(tried) == len(set(tried)) and all(1 <= n <= most for n in tried)
        assert found == 0 or found in tried
        assert found == most or found + 1 in tried


def test_a_good_guess_tries_nothing_much_larger():
    tried = []
    assert largest(lambda n: tried.append(n) or n <= 10, guess=10, most=1000) == 10 and tried == [10, 11]


# --- the task


def test_rows(shared):
    rows = measured(shared, "policy=tova", "cache=32")
    assert one(rows, "state_bytes_exact")["total"] == 32 * PER_STATE
    parts = [one(rows, "state_bytes", part)["total"] for part in (None, "slots", "books")]
    assert parts[0] == 32 * PER_STATE + parts[1] + parts[2] and min(parts) > 0
    batch = one(rows, "batch")
    assert batch["status"] == "ok"
    assert batch["total"] * parts[0] <= 2**20 < (batch["total"] + 1) * parts[0]  # a row more has as many bytes as each
    for metric, tokens in (("decode_tokens_per_second", 3), ("prefill_tokens_per_second", 8)):
        for subtask, width in (("batch=1", 1), ("batch=max", batch["total"])):
            found = rows[(rows["metric"] == metric) & (rows["subtask"] == subtask)]
            assert list(found["document"]) == ["repeat 1", "repeat 2"] and (found["count"] == 1).all()
            assert found["total"].to_numpy() == pytest.approx((width * tokens / found["seconds"]).to_numpy())
            assert (found["bucket_end"] - found["bucket_start"] == tokens).all() and (found["bucket_end"] == 160).all()
    timed = rows[rows["metric"].str.endswith("second")]
    kinds = list(zip(timed["metric"].str[:6], timed["subtask"], strict=True))
    assert kinds[:4] == kinds[4:] and len(set(kinds)) == 4  # the kinds take turns
    assert (rows["evictions"] == 160 - 32).all() and (rows["max_states"] == 32).all() and (rows["length"] == 160).all()


def test_the_full_cache_holds_all_tokens_and_takes_a_smaller_batch(shared):
    full, small = measured(shared, "policy=full"), measured(shared, "policy=tova", "cache=32")
    assert one(full, "state_bytes_exact")["total"] == 160 * PER_STATE
    assert one(full, "batch")["total"] < one(small, "batch")["total"]
    assert full["cache"].isna().all() and (full["evictions"] == 0).all()
    lines = summarise(pd.concat([full, small]), []).set_index(["policy", "metric", "subtask"])
    line = lines.loc[("tova", "decode_tokens_per_second", "batch=max")]
    values = small[(small["metric"] == "decode_tokens_per_second") & (small["subtask"] == "batch=max")]["total"]
    assert line["value"] == pytest.approx(values.mean()) and line["documents"] == 2  # the mean of the repeats
    assert line["topline"] == pytest.approx(lines.loc[("full", "decode_tokens_per_second", "batch=max"), "value"])


def test_a_batch_that_memory_did_not_limit_says_so(shared):
    rows = measured(shared, "policy=tova", "cache=32", "task.max_batch=2")
    assert one(rows, "batch")["total"] == 2 and one(rows, "batch")["status"] == CAPPED
    line = summarise(rows, []).set_index("metric").loc["batch"]
    assert pd.isna(line["value"]) and line["status"] == CAPPED  # a bound is no value


def test_a_budget_that_holds_no_row_leaves_its_rates_missing(shared):
    rows = measured(shared, "policy=tova", "cache=32", "task.memory=1KiB")
    assert one(rows, "batch")["total"] == 0
    wide = rows[rows["subtask"].eq("batch=max").fillna(False).astype(bool)]
    assert len(wide) == 4 and wide["total"].isna().all() and (wide["status"] == NONE_FITS).all()
    assert rows.loc[rows["subtask"].eq("batch=1").fillna(False).astype(bool), "total"].notna().all()


def test_out_of_memory_is_caught_and_only_that(shared, monkeypatch):
    """A pass over too many rows: the search goes on below, a timed run is missing; any other error is one."""
    real = clock.Bench._call

    def limited(self, ids, states):
        if ids.shape[0] * ids.shape[1] > 6:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")
        return real(self, ids, states)

    made = clock.Bench.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        monkeypatch.setattr(clock.Bench, "_call", limited)

    monkeypatch.setattr(clock.Bench, "__init__", init)
    rows = measured(shared, "policy=tova", "cache=32", "task.piece=4", "task.memory=1GiB", "task.max_batch=9")
    assert one(rows, "batch")["total"] == 6 and one(rows, "batch")["status"] == "ok"
    wide = rows[rows["subtask"].eq("batch=max").fillna(False).astype(bool) & (rows["metric"] != "peak_bytes")]
    missing = wide[wide["total"].isna()]
    assert set(missing["metric"]) == {"prefill_tokens_per_second"} and (missing["status"] == TOO_MUCH).all()
    assert len(wide) == 4 and len(missing) == 2

    def broken(self, ids, states):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(clock.Bench, "__init__", made)
    monkeypatch.setattr(clock.Bench, "_call", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        measured(shared, "policy=tova", "cache=32")


def test_a_machine_is_not_exhausted(shared, monkeypatch):
    monkeypatch.setattr(memory, "left", lambda device: 400_000)
    with pytest.raises(MachineError, match=r"rows of states need .* has 391 KiB left: set task.memory"):
        measured(shared, "policy=tova", "cache=32", "task.memory=1GiB")


def test_a_policy_that_did_not_evict_is_an_error(shared, monkeypatch):
    real = clock.job_session

    def lazy(model, job):
        session = real(model, job)
        session.rules = [mb.Full().rule()] * len(session.rules)
        return session

    monkeypatch.setattr(clock, "job_session", lazy)
    with pytest.raises(RuntimeError, match="it did not act as it should"):
        measured(shared, "policy=tova", "cache=32")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["policy=baseline"], "policy=baseline keeps no states"),
        (["prefill=oneshot"], "take prefill=stepwise"),
        (["task.length=200"], r"task.length=200 is more than context=160: set context=200"),
        (["task.piece=160"], "leave nothing of 160 tokens"),
        (["cache=153"], "cache=153 is not full after 152 tokens"),
        (["task.memory=much"], "no amount of memory"),
        (["task.repeats=0"], "task.repeats=0"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, says):
    with pytest.raises(UsageError, match=says):
        job("policy=tova", *(given if "cache" in given[0] else ["cache=32", *given]))
    assert job("policy=tova", "cache=152").job.cache == 152


# --- the figures


def table(values: dict[tuple[str, int | None], dict[str, list[float]]], **changes: Any) -> pd.DataFrame:
    rows = []
    for (policy, cache), metrics in values.items():
        for name, totals in metrics.items():
            metric, _, subtask = name.partition(" ")
            for repeat, total in enumerate(totals, 1):
                rows.append({
                    "cell": f"{policy}-{cache}", "task": "efficiency", "dataset": "d", "model": "m", "weights": "pretrained",
                    "policy": policy, "cache": cache, "context": 4096, "seed": 0, "bos": True, "dtype": "float32",
                    "engine": "scan", "prefill": "stepwise", "positions": "original", "document": f"repeat {repeat}",
                    "subtask": subtask or None, "length": 4096, "bucket_start": 0, "bucket_end": 4096, "metric": metric,
                    "total": total, "count": 1, "status": "ok", **changes,
                })  # fmt: skip
    types = {name: kind for name, (kind, _) in COLUMN_TYPES.items()}
    return pd.DataFrame(rows, columns=list(types)).astype(types).assign(variant=pd.NA)


def speeds(*rates: float) -> dict[str, list[float]]:
    return {"decode_tokens_per_second batch=max": list(rates), "decode_tokens_per_second batch=1": [rates[0] / 2]}


COSTS = {
    ("full", None): {"batch": [8.0], "state_bytes": [4e6], "state_bytes_exact": [4e6], **speeds(9.0, 10.0, 20.0)},
    ("tova", 512): {"batch": [60.0], "state_bytes": [6e5], "state_bytes_exact": [5e5], **speeds(40.0, 50.0, 100.0)},
}


def test_the_figure_takes_medians_and_the_ends_of_the_repeats():
    (costs,) = _costs.read(table(COSTS))
    rate = costs.of("decode_tokens_per_second", "batch=max").set_index("policy")
    assert list(rate.loc["tova", ["value", "low", "high", "repeats"]]) == [50, 40, 100, 3]
    ratio = costs.relative("batch=max").iloc[0]
    assert (ratio["value"], ratio["low"], ratio["high"]) == (5.0, 40 / 20, 100 / 9)
    assert costs.sizes == [512] and rate.loc["full", "cache"] == 4096


def test_the_figure_and_the_papers_table_beside():
    figure = figures.draw("efficiency", table(COSTS), note="A note.")
    assert len(figure.axes) == 8 and figures.table_of("efficiency") == "tidy"
    ours, theirs = figure.axes[1], figure.axes[5]

    def line(ax, label):
        return next(list(zip(*part[0].get_data(), strict=True)) for part in ax.containers if part.get_label() == label)

    assert line(ours, "TOVA") == [(512, 60)] and line(ours, "_full") == [(4096, 8)]
    assert line(theirs, "TOVA") == [(256, 139), (512, 70), (1024, 35), (2048, 17)] and line(theirs, "_full") == [(4096, 8)]
    assert line(figure.axes[6], "TOVA") == [(256, 8.5), (512, 4.8), (1024, 3.1), (2048, 1.7)]
    assert line(figure.axes[4], "TOVA")[0] == (256, pytest.approx(0.15e9))
    said = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert "medians of 3 repeats" in said and said.endswith("A note.") and "no more rows" not in said
    assert len(figures.draw("efficiency", table(COSTS), published=False).axes) == 4


def test_the_figure_says_what_is_a_bound_and_what_is_missing():
    rows = table(COSTS)
    rows.loc[(rows["policy"] == "tova") & (rows["metric"] == "batch"), "status"] = CAPPED
    gap = (rows["policy"] == "tova") & (rows["document"] == "repeat 3")
    rows.loc[gap, ["total", "status"]] = [None, TOO_MUCH]
    figure = figures.draw("efficiency", rows, published=False)
    assert [text.get_text() for text in figure.axes[1].texts] == ["≥"]
    said = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert "≥: no more rows were tried" in said and "1 row without a value" in said


def test_two_machines_are_two_rows():
    both = pd.concat([table(COSTS).assign(variant=f"machine {name}") for name in ("a", "b")])
    assert len(_costs.read(both)) == 2 and "variant machine a" in _costs.read(both)[0].title
    random = figures.draw("efficiency", table(COSTS, weights="random"), published=False)
    assert "RANDOM WEIGHTS" in random.subfigs[0].get_suptitle()


def test_a_table_without_efficiency_is_refused():
    with pytest.raises(UsageError, match="no efficiency to draw"):
        figures.draw("efficiency", table(COSTS, task="perplexity"))
    with pytest.raises(UsageError, match=r"it lacks .*give tidy.csv"):
        figures.draw("efficiency", pd.DataFrame({"task": []}))


def losses(values: dict[tuple[str, int | None], tuple[float, int | None]]) -> pd.DataFrame:
    made = {key: {"nll": [100 * loss, 110 * loss]} for key, (loss, _) in values.items()}
    rows = table(made, task="perplexity", length=None).assign(count=100)
    rows["state_bytes"] = rows["cell"].map({f"{p}-{k}": size for (p, k), (_, size) in values.items()}).astype("Int64")
    return rows.astype({name: kind for name, (kind, _) in COLUMN_TYPES.items()})


def test_quality_stands_over_bytes_of_state():
    import math

    values = {("full", None): (2.0, 4_000_000), ("tova", 256): (2.2, 250_000), ("tova", 512): (2.1, 500_000),
              ("window", 256): (2.5, 250_000), ("baseline", 256): (2.6, None)}  # fmt: skip
    figure = figures.draw("quality_memory", losses(values), note="A note.")
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert list(lines["TOVA"].get_xdata()) == [250_000, 500_000]
    assert list(lines["TOVA"].get_ydata()) == pytest.approx([math.exp(1.05 * 2.2), math.exp(1.05 * 2.1)])
    assert list(lines["_full"].get_xdata()) == [4_000_000] and "Baseline" not in lines
    said = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert "baseline keeps no states" in said and said.endswith("A note.")
    with pytest.raises(UsageError, match="no perplexity with the bytes of its states"):
        figures.draw("quality_memory", losses({("baseline", 256): (2.6, None)}))

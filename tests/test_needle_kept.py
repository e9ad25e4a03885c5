"""What became of the needle: shares that are known for a window, that the states themselves confirm for the others."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY_MODEL, Silent

from msrnn_bench.cli.main import main
from msrnn_bench.multistate.attention import bounded
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks.writing.held import behind, held_after

GIVEN = ["task=retrieval", "model=local", f"model.path={TINY_MODEL}", "context=512", "task.examples=2", "task.lengths=[200]",
         "task.depths=[0,0.5,1]", "task.new_tokens=4", "task.prompt='{document} {question}'", "task.needle=true"]  # fmt: skip
METRICS = ["accuracy", "needle_kept", "needle_kept_by_layer", "needle_kept_by_step"]


def measured(folder, *overrides):
    """The rows and the records of one cell."""
    assert main(["run", *GIVEN, f"results_dir={folder}", *overrides]) == 0
    (path,) = Path(folder, "cells").glob("*.csv")
    records = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return pd.read_csv(path), records


def cases(*overrides):
    """The cell's prompts, and its job."""
    prepared = prepare(compose_one([*GIVEN, *overrides]), [], Silent(), {})
    loaded = prepared.job.model.load(dtype="float32", device="cpu", seed=0)
    return loaded.model, prepared.job, list(prepared.task._cases(prepared.job, loaded.tokenizer, "single", 200))


def test_where_to_look():
    assert behind(1) == [1] and behind(2) == [1, 2] and behind(5) == [1, 2, 4, 5] and behind(8) == [1, 2, 4, 8]


def test_a_state_is_held_until_the_step_at_which_it_leaves():
    deaths = [torch.tensor([[[5, -1, 3, 9, -1], [-1, -1, -1, 4, 5]]]), torch.tensor([[[2, 2, 2, 3, 4]] * 2])]
    # tokens 1 to 3, seen 1 and 2 tokens behind the last of them: after steps 4 and 5
    assert held_after(deaths, range(1, 4), [1, 2]) == ([[4, 4], [0, 0]], 2)
    assert held_after(deaths, range(2, 3), [1, 3]) == ([[1, 1], [0, 0]], 2)  # after steps 3 and 5
    assert held_after(deaths, range(2, 2), [4]) == ([[0], [0]], 2)


def test_a_window_forgets_the_needle_when_it_has_passed(tmp_path):
    rows, records = measured(tmp_path, "policy=window", "cache=60")
    _, _, prompts = cases("policy=window", "cache=60")
    assert sorted(set(rows["metric"])) == METRICS and [r["key"] for r in records] == [case.key for case in prompts]
    for case, record in zip(prompts, records, strict=True):
        begin = len(case.prompt.head)
        places = [begin + place for place in case.at]
        trace = record["needle_held"]
        for n, held in zip(trace["behind"], zip(*trace["held"], strict=True), strict=True):
            now = places[-1] + n
            assert set(held) == {sum(now - place < 60 for place in places)}, "what is among the last k, and nothing else"
        assert trace["behind"][-1] == len(case.prompt.ids) - 1 - places[-1] and trace["of"] == len(places)
        row = rows[rows["metric"].eq("needle_kept") & rows["document"].eq(case.document) & rows["depth"].eq(case.depth)].iloc[0]
        assert (row["bucket_start"], row["bucket_end"]) == (places[0], places[-1] + 1)
        assert row["total"] / row["count"] == pytest.approx(trace["held"][0][-1] / len(places))
    steps = rows[rows["metric"] == "needle_kept_by_step"]
    shares = steps.groupby("bucket_start")[["total", "count"]].sum()
    assert (shares.loc[[1, 8], "total"] == shares.loc[[1, 8], "count"]).all() and shares.loc[64, "total"] == 0
    assert shares.loc[1, "count"] == 3 * 2 * len(trace["held"]) > shares.loc[128, "count"], "depths that reach so far"


@pytest.mark.parametrize(("policy", "prefill"), [("tova", "stepwise"), ("h2o", "stepwise"), ("tova", "oneshot")])
def test_what_is_held_is_what_the_states_hold(policy, prefill, tmp_path):
    """At the question's end, against the positions kept when each prompt is read on its own."""
    given = [f"policy={policy}", "cache=60", f"prefill={prefill}"]
    rows, records = measured(tmp_path, *given)
    model, job, prompts = cases(*given)
    shares = {}
    for case, record in zip(prompts, records, strict=True):
        begin = len(case.prompt.head)
        needle = {begin + place for place in case.at}
        with bounded(model, job.policy, 60, prefill=prefill) as states:
            model(torch.tensor([case.prompt.ids]))
        for number, layer in enumerate(states.layers):
            kept = [len(needle & set(positions)) for positions in layer.kept[0].tolist()]
            assert record["needle_held"]["held"][number][-1] == sum(kept)
            shares.setdefault((case.document, number), []).append(sum(kept) / len(kept) / len(needle))
        if prefill == "oneshot":
            assert {n for layer in record["needle_held"]["held"] for n in layer[:-1]} == {record["needle_held"]["of"]}
    by_layer = rows[rows["metric"] == "needle_kept_by_layer"]
    found = {(row.document, int(row.subtask.rpartition(":")[2])): row.total for row in by_layer.itertuples()}
    assert found == pytest.approx({key: sum(parts) for key, parts in shares.items()}) and by_layer["count"].eq(3).all()
    whole = rows[rows["metric"] == "needle_kept"]
    assert whole["total"].sum() == pytest.approx(by_layer["total"].sum())


def test_the_full_model_holds_all_and_the_baseline_what_it_reads(tmp_path):
    rows, _ = measured(tmp_path / "full", "policy=full")
    kept = rows[rows["metric"].isin(METRICS[1:])]
    assert (kept["total"] == kept["count"]).all() and set(kept["metric"]) == set(METRICS[1:])
    rows, _ = measured(tmp_path / "baseline", "policy=baseline", "cache=150")
    kept = rows[rows["metric"] == "needle_kept"].set_index("depth")
    assert (kept.loc[0, "total"] == kept.loc[0, "count"]).all() and (kept.loc[1, "total"] == 0).all()
    assert "needle_kept_by_step" not in set(rows["metric"]), "nothing leaves while it reads"


def test_a_killed_cell_has_the_same_rows(tmp_path):
    rows, _ = measured(tmp_path, "policy=tova", "cache=60")
    (journal,) = Path(tmp_path, "cells").glob("*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2]) + lines[2][:40])
    for path in Path(tmp_path, "cells").glob("*.csv"):
        path.with_suffix(".json").unlink()
    again, _ = measured(tmp_path, "policy=tova", "cache=60")
    same = ["metric", "document", "subtask", "depth", "bucket_start", "total", "count"]
    pd.testing.assert_frame_equal(rows[same], again[same])


def test_left_out_nothing_changes(tmp_path):
    """No row and no id of the task without it."""
    plain, asked = (prepare(compose_one([*GIVEN, f"task.needle={value}"]), [], Silent(), {}) for value in ("false", "true"))
    assert "needle" not in plain.settings["task"] and asked.settings["task"]["needle"] is True
    rows, records = measured(tmp_path, "policy=tova", "cache=60", "task.needle=false")
    assert set(rows["metric"]) == {"accuracy"} and "needle_held" not in records[0]

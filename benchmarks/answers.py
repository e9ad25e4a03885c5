"""What docs/results.md and docs/log.md say of committed answers beyond their scores, counted again from results/.

    python benchmarks/answers.py           # both; `niah` or `squality` for one

`niah`: of the needles that stand among a cell's recent states and of those further back, how many were answered.
`squality`: words of each cell's answers, and how the ROUGE of an answer goes with its words.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from msrnn_bench.results.journal import Journal
from msrnn_bench.runs.cell import Prepared, prepare
from msrnn_bench.runs.compose import compose_grid
from msrnn_bench.runs.progress import CellProgress
from msrnn_bench.tasks.lm_eval.context import quiet
from msrnn_bench.tasks.lm_eval.model import request_keys
from msrnn_bench.tasks.lm_eval.tasks import Wanted, build

RESULTS = Path(__file__).resolve().parents[1] / "results"


def needles(tokenizer: Any, wanted: Wanted, limit: int) -> dict[str, tuple[int | None, int, str]]:
    """By request: the length asked for, the token at which the needle's value begins, the value."""
    found = {}
    for subtask in build(wanted):
        with quiet():
            subtask.task.build_all_requests(limit=limit)
        for request in subtask.task.instances:
            text, (value,) = request.args[0], request.doc["outputs"]
            at = text.rindex(value)
            spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            token = next(n for n, (begin, end) in enumerate(spans) if begin <= at < end)
            (key,) = request_keys(request.request_type, [request])
            found[key] = (subtask.length, token, value)
    return found


def recent(cell: Prepared) -> int:
    """How many of the youngest states a cell holds whatever is attended to; of a policy that protects none, k."""
    assert cell.job.cache is not None
    return cell.job.policy.rule(cell.job.cache).recent or cell.job.cache


def niah() -> None:
    shared: dict[Any, Any] = {}
    grid = compose_grid(["experiment=laptop/niah", f"results_dir={RESULTS / 'niah'}"], experiment_grid=True)
    cells: list[Prepared] = [prepare(config, overrides, CellProgress(1), shared) for overrides, config in grid]
    first = cells[0]
    tokenizer = first.job.model.load(dtype="float32", device="cpu", seed=0).tokenizer
    task: Any = first.task
    wanted = Wanted(task.tasks, lengths=task.lengths, tokenizer=first.job.model.folder(weights=False), seed=first.job.seed)
    places = needles(tokenizer, wanted, task.limit)
    print("niah: needles answered among the recent states, and further back")
    for cell in {cell.cell.id: cell for cell in cells if cell.job.policy.evicts}.values():
        records = Journal(cell.job.journal).records
        rows = [
            (length, token >= records[key]["end"] - recent(cell), value in records[key]["answer"])
            for key, (length, token, value) in places.items()
        ]
        table = pd.DataFrame(rows, columns=["length", "near", "right"])
        for length, some in table.groupby("length"):
            told = [f"{part['right'].sum()} of {len(part)}" for part in (some[some["near"]], some[~some["near"]])]
            print(f"  {cell.job.policy.name} k={cell.job.cache}, {length:,} tokens: {told[0]}, {told[1]}")


def squality() -> None:
    print("squality: words an answer (mean, median), and their correlation with its ROUGE")
    rows = pd.read_csv(RESULTS / "squality" / "tidy.csv")
    for cell, some in rows[rows["metric"] == "rouge"].groupby("cell", sort=False):
        records = Journal(RESULTS / "squality" / "cells" / f"{cell}.jsonl").records.values()
        words = pd.Series({str(record["document"]): len(record["prediction"].split()) for record in records})
        scores = some.set_index(some["document"].astype(str))["total"]
        one = some.iloc[0]
        name = one["policy"] if pd.isna(one["cache"]) else f"{one['policy']} {one['prefill']} k={one['cache']:.0f}"
        told = f"{words.mean():.0f}, {words.median():.0f}, {scores.corr(words):.2f}"
        print(f"  {name}: ROUGE {scores.mean():.2f}; {told}")


SECTIONS = {"niah": niah, "squality": squality}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()

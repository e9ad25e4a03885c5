"""The paper's own numbers: every one that arXiv 2401.06104v2 prints, in `published.csv` next to this file, one a line.

`read` gives them in the paper's words; `tables` those that we measure too, in the columns of our own tables.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from msrnn_bench.results.cells import COLUMN_TYPES
from msrnn_bench.results.summary import TIDY_TYPES, summarise

FILE = Path(__file__).with_name("published.csv")
CONTEXT = 4096  # of everything that is printed
READ = {"perplexity": 100, "stories": 100, "retention": 31, "efficiency": 512}  # books, pairs, chunks, sequences: means over them
DOCUMENT = "as printed"  # in the place of documents: a printed number is a mean over them all

_CLASSES = {"”": "quote_close", "\\n": "newline"}  # the paper's tags that are no Penn tags, as ours


def read() -> pd.DataFrame:
    """Columns experiment, model, policy, state_size, metric, value, source, in the paper's words; printed_size and
    printed_value are the two as printed. `state_size` and `value` are numbers, missing where the paper prints none
    but a bound, a range or words ("<=0.4", "73-76"): such a claim is read in the printed columns."""
    table = pd.read_csv(FILE, dtype=str, keep_default_na=False)
    table["printed_size"], table["printed_value"] = table["state_size"], table["value"]
    table["state_size"] = pd.to_numeric(table["printed_size"], errors="coerce").astype("Int64")
    table["value"] = pd.to_numeric(table["printed_value"], errors="coerce").astype("float64")
    return table


def own_name(name: str) -> str:
    """The paper's name to ours: its TOVA-layer+4 is tova4, its H2O-head is h2o."""
    plain = name.lower().replace("+", "").replace("tova-layer", "tova").replace("h2o-head", "h2o")
    return plain.replace(" vs full", "").replace("-", "_")


def tables(printed: pd.DataFrame | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The numbers of Tables 1, 3 and 5, of Figure 6 and of the stories' lengths as tidy rows, and their summary.

    One document, "as printed", and so no interval. A perplexity is kept as the loss it is the exponential of; the
    topline of Table 3 is what all its policies have at 4,096. `printed`: other numbers than `read()`'s, for tests."""
    found = rows(printed)
    summary = summarise(found, [])
    return found, summary.assign(documents=summary["task"].map(READ).astype("Int64"))


def rows(printed: pd.DataFrame | None = None) -> pd.DataFrame:
    """The first of `tables`, which is soon made; the summary takes longer."""
    if printed is None:
        return _own_rows().copy()
    return pd.DataFrame(list(_rows(printed)), columns=list(TIDY_TYPES)).astype(TIDY_TYPES)


@functools.cache
def _own_rows() -> pd.DataFrame:
    return rows(read())


def _rows(printed: pd.DataFrame) -> Iterator[dict[str, Any]]:
    line: Any
    for line in printed[printed["value"].notna()].itertuples(index=False):
        size = None if pd.isna(line.state_size) else int(line.state_size)
        name = own_name(str(line.policy))
        if line.experiment == "pg19_ablation_table3":
            yield _row(line, "perplexity", "pg19", name, size, "nll", math.log(line.value))
            if name == "baseline" and size == CONTEXT:
                yield _row(line, "perplexity", "pg19", "full", None, "nll", math.log(line.value))
        elif line.experiment == "efficiency_table1" and line.metric in _COSTS:
            metric, subtask, unit = _COSTS[line.metric]
            made = _row(line, "efficiency", "none", name, None if name == "full" else size, metric, unit * line.value, subtask)
            yield {**made, "variant": "on V100"}
        elif line.experiment == "story_generation":
            yield _row(line, "stories", "none", name, size, "length", line.value)
        elif line.experiment == "story_gpt4_fig6":
            metric = {"tova_win_pct": "win", "tie_pct": "tie", "topline_win_pct": "loss"}[line.metric]
            yield _row(line, "stories", "none", name, size, metric, line.value / 100)
        elif line.experiment == "pos_lifetime_table5" and (tag := re.fullmatch(r"mean_steps_kept\[tag=(.*)\]", line.metric)):
            what = "all" if tag[1] == "Avg." else f"class:pos/{_CLASSES.get(tag[1], tag[1])}"
            yield _row(line, "retention", "pg19", name, size, "lifetime", line.value, what)


_COSTS = {  # the paper's metric -> ours, of which subtask, in which unit
    "kv_memory_GB_batch1": ("state_bytes", None, 1e9), "max_batch_size": ("batch", None, 1.0),
    "relative_throughput": ("decode_tokens_per_second", "batch=max", 1.0),
}  # fmt: skip


def _row(line: Any, task: str, dataset: str, name: str, size: int | None, metric: str, value: float, subtask: str | None = None
         ) -> dict[str, Any]:  # fmt: skip
    """A row of our own schema; the cell is the experiment's, the policy's and the size's."""
    return {
        **dict.fromkeys(COLUMN_TYPES), "cell": f"{line.experiment}-{name}-{size}", "task": task, "dataset": dataset,
        "model": line.model, "weights": "pretrained", "policy": name, "cache": size, "context": CONTEXT, "seed": 0,
        "bos": True, "dtype": "bfloat16", "engine": "scan", "prefill": "stepwise", "positions": "original",
        "document": DOCUMENT, "subtask": subtask, "bucket_start": 0, "bucket_end": CONTEXT, "metric": metric,
        "total": float(value), "count": 1, "status": "ok",
    }  # fmt: skip

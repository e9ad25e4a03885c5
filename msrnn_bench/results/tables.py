"""The summary as Markdown tables, policy by state size: what README shows and `collect` prints."""

from __future__ import annotations

from functools import reduce

import pandas as pd

from msrnn_bench.results.summary import quantity

PANEL = [
    "task", "metric", "subtask", "length", "model", "weights", "dataset", "context", "dtype", "engine", "prefill",
    "template", "variant",
]  # fmt: skip

_TELLING = ["memory", "first", "recent", "per", "seed", "documents", "count"]


def markdown(summary: pd.DataFrame) -> str:
    """One table per model, dataset and way of measuring; a cell without a value is empty."""
    known = summary[summary["status"].isin(["ok", "partial"])]
    texts = [known[key].astype("str").fillna("") for key in PANEL]
    keys = reduce(lambda before, text: before + "\0" + text, texts)
    return "\n\n".join(_panel(lines) for _, lines in known.groupby(keys, sort=True))


def _panel(lines: pd.DataFrame) -> str:
    head = _head(lines)
    sized = lines[lines["cache"].notna()]
    if sized.empty:
        return head
    table = sized.assign(policy=labels(sized)).pivot(index="policy", columns="cache", values="value")
    table = table.sort_values(table.columns[len(table.columns) // 2])
    rows = [["policy", *(str(size) for size in table.columns)], ["---"] * (len(table.columns) + 1)]
    rows += [
        [str(policy), *(_number(value) for value in values)] for policy, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join([head, "", *("| " + " | ".join(row) + " |" for row in rows)])


def labels(lines: pd.DataFrame) -> pd.Series:
    """The policy of each line, and what tells it from another of its name at the same size, the cell's id if nothing else."""
    labels = lines["policy"].astype("str")
    for column in [*_TELLING, "cell"]:
        twice = pd.DataFrame({"label": labels, "cache": lines["cache"]}).duplicated(keep=False)
        if not twice.any():
            break
        for _, same in lines[twice].groupby(labels[twice]):
            if same.groupby("cache")[column].nunique(dropna=False).max() > 1:
                labels[same.index] += [f" ({column} {value})" for value in same[column].astype("str")]
    return labels


def _head(lines: pd.DataFrame) -> str:
    """What was measured, and the full model's value: its own line's with an interval, else the others' topline."""
    one = lines.iloc[0]
    what = quantity(str(one["metric"]))
    named = (("subtask", ""), ("length", " tokens"), ("variant", ""))
    parts = "".join(f", {one[key]}{unit}" for key, unit in named if pd.notna(one[key]))
    ways = [str(one["dtype"]), *([f"{one['template']} prompts, {one['prefill']}"] if pd.notna(one["template"]) else [])]
    text = (
        f"{one['model']} on {one['dataset'] if one['dataset'] != 'none' else one['task']}"
        f"{', RANDOM WEIGHTS' if one['weights'] == 'random' else ''}{parts}: {what}, {int(lines['documents'].max())} documents, "
        f"{'chunks' if one['task'] == 'perplexity' else 'context'} of {one['context']} tokens, {', '.join(ways)}"
    )
    full = lines[lines["cache"].isna()]
    if len(full):
        line = full.iloc[0]
        interval = f" (95% {line['low']:.2f} to {line['high']:.2f}, {line['interval']})" if pd.notna(line["low"]) else ""
        return f"{text}; full {line['value']:.3f}{interval}"
    toplines = lines["topline"].dropna()
    return f"{text}; full {toplines.iloc[0]:.3f}" if len(toplines) else text


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}" if value < 1000 else f"{value:.0f}"

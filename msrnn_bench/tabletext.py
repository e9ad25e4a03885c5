"""The summary as Markdown tables, policy by state size: what README shows and `collect` prints."""

from __future__ import annotations

import pandas as pd

PANEL = ["task", "metric", "model", "weights", "dataset", "context", "dtype", "engine"]


def markdown(summary: pd.DataFrame) -> str:
    """One table per model, dataset and way of measuring; a cell without a value is empty."""
    fine = summary[summary["status"] == "ok"]
    return "\n\n".join(_panel(dict(zip(PANEL, key, strict=True)), lines) for key, lines in fine.groupby(PANEL, sort=True))


def _panel(what: dict[str, object], lines: pd.DataFrame) -> str:
    name = "perplexity" if what["metric"] == "nll" else str(what["metric"])
    random = ", RANDOM WEIGHTS" if what["weights"] == "random" else ""
    head = (
        f"{what['model']} on {what['dataset']}{random}: {name}, {int(lines['documents'].max())} documents, chunks of "
        f"{what['context']} tokens, {what['dtype']}"
    )
    full = lines[lines["cache"].isna()]
    if len(full):
        one = full.iloc[0]
        interval = f" ({one['low']:.2f} to {one['high']:.2f})" if pd.notna(one["low"]) else ""
        head += f"; full {one['value']:.3f}{interval}"
    sized = lines[lines["cache"].notna()]
    if sized.empty:
        return head
    table = sized.pivot_table(index="policy", columns="cache", values="value", aggfunc="first")
    middle = table.columns[len(table.columns) // 2]
    table = table.sort_values(middle)
    rows = [["policy", *(str(size) for size in table.columns)], ["---"] * (len(table.columns) + 1)]
    rows += [
        [str(policy), *(_number(value) for value in values)] for policy, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join([head, "", *("| " + " | ".join(row) + " |" for row in rows)])


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}" if value < 1000 else f"{value:.0f}"

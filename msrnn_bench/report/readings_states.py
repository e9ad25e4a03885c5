"""Readings of the figures whose tables are rows: what stays, how far it reaches, what it costs (see readings.py)."""

from __future__ import annotations

import math

import pandas as pd

from msrnn_bench.report.telling import label, listed, number, sentence

_SMALL_GAP = 0.4  # the paper's bound on the perplexity above the topline
_NEAR = 0.05
_MOST = 4
_RUN = ["policy", "positions", "cache"]


def gap(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """Of each model and text: who is less than 0.4 above the topline, and what each exceeds it by at the smallest size."""
    known = _measured(summary, "nll")
    known = known[known["cache"].notna() & known["topline"].notna()]
    if known.empty:
        return ["There is no topline to compare with."]
    told = []
    for (model, dataset), lines in known.groupby(["model", "dataset"], sort=True):
        size = lines["cache"].min()
        at = lines[lines["cache"] == size].assign(share=lambda line: line["difference"] / line["topline"])
        low, high = at.sort_values("share", kind="stable").iloc[[0, -1]].to_dict("records")
        told.append(
            f"{model} on {dataset}, k={size:,}: from {low['share']:.1%} above the topline ({label(low['policy'])}) to "
            f"{high['share']:.1%} ({label(high['policy'])})."
        )
        least = lines[lines["difference"] < _SMALL_GAP].groupby("policy")["cache"].min()
        names = [f"{label(str(policy))} at k={size:,}" for policy, size in least.sort_values(kind="stable").items()]
        told.append(f"Less than {_SMALL_GAP} above it, at the smallest size each: {listed(names)}." if names else "")
    return [line for line in told if line][:_MOST]


def quality_memory(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """The fewest bytes with which a policy comes within 5% of the topline."""
    known = _measured(summary, "nll")
    held = rows[rows["state_bytes"].notna()].groupby("cell")["state_bytes"].max()
    known = known.assign(bytes=known["cell"].map(held)).dropna(subset=["bytes", "topline"])
    full = known.loc[known["policy"] == "full", "bytes"]
    near = known[known["cache"].notna() & (known["difference"] <= _NEAR * known["topline"])]
    whole = f"The full model's states take {in_bytes(full.max())}." if len(full) else "The full model was not measured."
    if near.empty:
        return [whole, f"No policy is within {_NEAR:.0%} of the topline."]
    best = near.sort_values("bytes", kind="stable").iloc[0]
    named = f"{label(best['policy'])} at k={best['cache']:,}"
    return [whole, f"The fewest bytes within {_NEAR:.0%} of the topline are {in_bytes(best['bytes'])}: {named}."]


def extrapolation(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """How far each running perplexity moves from a seventh of the length to its end."""
    known = rows[(rows["task"] == "extrapolation") & (rows["metric"] == "nll") & (rows["status"] == "ok")]
    end = int(known["bucket_end"].max())
    early = min(known.loc[known["bucket_end"] >= end / 7, "bucket_end"])
    moved, last = [], {}
    for _, lines in known.groupby(_RUN, dropna=False, sort=True):
        if lines["bucket_end"].max() < end:
            continue
        one, first, whole = lines.iloc[0], _running(lines, early), _running(lines, end)
        size = f" at k={one['cache']:,}" if pd.notna(one["cache"]) else ""
        name = f"{label(one['policy'])}{size} ({one['positions']} positions)"
        moved.append(f"{name} by {whole - first:+.2f}")
        last[name] = whole
    if not last:
        return ["No policy read the whole length."]
    low, high = min(last, key=lambda name: last[name]), max(last, key=lambda name: last[name])
    told = [f"From {early:,} to {end:,} tokens the running perplexity moves: {listed(moved)}."]
    return [*told, f"At the end the lowest is {number(last[low])} ({low}), the highest {number(last[high])} ({high})."]


def efficiency(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """Bytes and speed of the smallest and the largest state, against the full cache."""
    known = summary[(summary["task"] == "efficiency") & summary["value"].notna()]
    told = []
    for metric, subtask, what, unit in (
        ("state_bytes", None, "the states of one sequence take", in_bytes),
        (
            "decode_tokens_per_second",
            "batch=max",
            "decoding at the largest batch makes",
            lambda value: f"{number(value)} tokens/s",
        ),
    ):
        lines = known[(known["metric"] == metric) & (known["subtask"].eq(subtask) if subtask else known["subtask"].isna())]
        sized = lines[lines["cache"].notna()].sort_values(["cache", "policy"], kind="stable")
        if sized.empty:
            continue
        ends = [sized.iloc[0], sized.iloc[-1]][: sized["cache"].nunique()]
        parts = [f"{unit(line['value'])} at k={line['cache']:,} ({label(line['policy'])})" for line in ends]
        full = lines.loc[lines["policy"] == "full", "value"]
        told.append(sentence(f"{what} {listed(parts)}" + (f"; with the full cache {unit(full.iloc[0])}" if len(full) else "")))
    return told or ["No costs of a bounded state were measured."]


def first_tokens(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """How many steps token 0 is kept, and those behind it."""
    known = rows[(rows["metric"] == "lifetime") & (rows["subtask"] == "position") & (rows["bucket_end"] <= 26)]
    told = []
    for (policy, cache), lines in known.groupby(["policy", "cache"], sort=True):
        first, others = lines[lines["bucket_start"] == 0], lines[lines["bucket_start"] > 0]
        told.append(f"{label(str(policy))} at k={cache:,} {number(_mean(first))} steps and {number(_mean(others))}")
    alive = rows[rows["metric"] == "first_alive"].groupby("policy")[["total", "count"]].sum()
    still = [f"{label(str(policy))} {line['total'] / line['count']:.0%}" for policy, line in alive.iterrows()]
    kept = f"Token 0, and tokens 1 to 25 on average, are kept: {listed(told[:6])}" + (
        "; the rest is in the tables." if told[6:] else "."
    )
    return [kept, *([f"Token 0 is alive at the end in this share of documents and layers: {listed(still)}."] if still else [])]


def token_classes(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """The five classes that each policy keeps longest, at the smallest size, and the mean over all tokens."""
    known = rows[(rows["metric"] == "lifetime") & rows["subtask"].notna()]
    size = known["cache"].min()
    known = known[known["cache"] == size]
    told = []
    for policy, lines in known.groupby("policy", sort=True):
        classes = lines[lines["subtask"].str.startswith("class:")]
        sums = classes.groupby("subtask")[["total", "count"]].sum()
        longest = (sums["total"] / sums["count"]).sort_values(ascending=False, kind="stable").head(5)
        named = [f"{str(name).removeprefix('class:')} {number(value)}" for name, value in longest.items()]
        mean = lines[lines["subtask"] == "all"]
        average = f" (all tokens {number(_mean(mean))})" if len(mean) else ""
        told.append(f"{label(str(policy))} at k={size:,} keeps longest, in steps: {listed(named)}{average}.")
    return told[:_MOST]


def retention_map(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """Which share of the state is among the last k positions."""
    known = rows[(rows["metric"] == "recent_share") & (rows["subtask"] == "all:full")]
    shares = _shares(known)
    if not shares:
        return ["Across: tokens; down: steps; dark where a token's state is held."]
    return [
        "Across: tokens; down: steps; dark where a token's state is held.",
        f"Share of a full state that is among the last k tokens, over all steps and layers: {listed(shares[:8])}.",
    ]


def needle(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """How much of what was hidden is still held when the question has been read."""
    known = rows[rows["metric"] == "needle_kept"]
    shares = _shares(known)
    return [f"Share of the needle's tokens that are still held when the question has been read: {listed(shares[:8])}."]


def in_bytes(value: float) -> str:
    """A number of bytes in the unit that leaves it between 1 and 1,024."""
    power = min(max(int(math.log2(value) // 10), 0), 4) if value > 0 else 0
    return f"{number(value / 1024**power)} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _shares(rows: pd.DataFrame) -> list[str]:
    """The mean of these rows by policy and size, in percent."""
    sums = rows.groupby(["policy", "cache"], as_index=False)[["total", "count"]].sum()
    return [f"{label(line['policy'])} at k={line['cache']:,} {line['total'] / line['count']:.0%}" for _, line in sums.iterrows()]


def _running(lines: pd.DataFrame, at: int) -> float:
    read = lines[lines["bucket_end"] <= at]
    return math.exp(read["total"].sum() / read["count"].sum())


def _mean(lines: pd.DataFrame) -> float:
    return float(lines["total"].sum() / lines["count"].sum()) if len(lines) else math.nan


def _measured(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    return summary[(summary["metric"] == metric) & (summary["task"] == "perplexity") & summary["value"].notna()]

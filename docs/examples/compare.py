"""Two policies of a results folder against each other: a table, and a figure with the interval of their difference.

    python docs/examples/compare.py                                     # from the root of the repository, as it is
    RESULTS=results/pysource FIRST=tova SECOND=h2o OUT=pair.png python docs/examples/compare.py

Or cell by cell, in an editor that knows `# %%`. The folder has one model and one text, measured by task=perplexity.
`summary.csv` has each policy's difference to the full model; policy against policy is computed here, from the sums of each
document in `tidy.csv`: the same documents are left out of both, so what a document adds to both drops out.
"""

# %% What to compare
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from msrnn_bench.results import intervals

RESULTS = Path(os.environ.get("RESULTS", "results/novels"))
FIRST, SECOND = os.environ.get("FIRST", "tova"), os.environ.get("SECOND", "window4")
OUT = Path(os.environ.get("OUT", f"{FIRST}-{SECOND}.png"))

summary = pd.read_csv(RESULTS / "summary.csv")
rows = pd.read_csv(RESULTS / "tidy.csv")
rows = rows[(rows["metric"] == "nll") & (rows["status"] == "ok")]

# %% Each against the full model, as the summary has it
columns = ["policy", "cache", "documents", "value", "difference", "difference_low", "difference_high"]
print(summary.loc[summary["policy"].isin([FIRST, SECOND]), columns].to_string(index=False))


# %% One against the other, document by document
def sums(policy: str, size: int) -> pd.DataFrame:
    """Loss and number of tokens of each document, in the order of their names; the full model has no size."""
    mine = rows[(rows["policy"] == policy) & ((rows["cache"] == size) | rows["cache"].isna())]
    return mine.groupby("document")[["total", "count"]].sum()


def compared(size: int) -> dict[str, float]:
    """Both perplexities at a state size, their difference, and its 95% interval over documents: the summary's own method."""
    one, other = sums(FIRST, size), sums(SECOND, size)
    assert one.index.equals(other.index) and one["count"].equals(other["count"]), "not the same tokens of the same documents"
    ours, theirs = one.to_numpy("float64"), other.to_numpy("float64")
    values = {FIRST: float(intervals.value("nll", ours.sum(0))), SECOND: float(intervals.value("nll", theirs.sum(0)))}
    paired = intervals.difference("nll", ours, theirs)
    assert paired is not None, "one document has no interval"
    better = int((one["total"] < other["total"]).sum())
    difference = values[FIRST] - values[SECOND]
    return {"cache": size, **values, "difference": difference, "low": paired.low, "high": paired.high, "better in": better}


sizes = [set(rows.loc[rows["policy"] == policy, "cache"].dropna().astype(int)) for policy in (FIRST, SECOND) if policy != "full"]
table = pd.DataFrame([compared(size) for size in sorted(set.intersection(*sizes))])
print(f"\n{FIRST} minus {SECOND}, {rows['document'].nunique()} documents; below 0 {FIRST} is better")
print(table.to_string(index=False, float_format="%.3f"))

# %% The figure
figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(6, 6), layout="constrained")
for policy in (FIRST, SECOND):
    above.plot(table["cache"], table[policy], marker="o", label=policy)
above.axhline(summary.loc[summary["policy"] == "full", "value"].iloc[0], color="black", linestyle="--", label="full")
above.set(xscale="log", ylabel="perplexity", title=f"{rows['model'].iloc[0]} on {rows['dataset'].iloc[0]}")
above.legend()
below.fill_between(table["cache"], table["low"], table["high"], alpha=0.2)
below.plot(table["cache"], table["difference"], marker="o")
below.axhline(0, color="black", linewidth=0.8)
below.set(xlabel="state size k", ylabel=f"{FIRST} minus {SECOND}", xticks=table["cache"], xticklabels=table["cache"])
below.minorticks_off()
figure.savefig(OUT, dpi=150)
print(f"\n{OUT}")

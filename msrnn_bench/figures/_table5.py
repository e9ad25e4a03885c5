"""The paper's mean steps kept by part of speech (its Tables 2 and 5), beside the classes of ours that mean the same."""

from __future__ import annotations

import pandas as pd

from msrnn_bench.figures import _published, _tags

TOKENS = 4096  # length of the paper's texts
AVERAGE = "Avg."
SAME = {ours: tag for tag, ours in _tags.SAME_MEANING.items()}


def lifetimes() -> pd.DataFrame:
    """[tag, k]: the mean steps kept that the paper prints, for each tag and state size; TOVA, LLaMA-2-7B, PG-19."""
    rows = _published.read()
    rows = rows[rows["experiment"] == "pos_lifetime_table5"]
    tags = rows["metric"].str.removeprefix("mean_steps_kept[tag=").str.removesuffix("]")
    table = pd.DataFrame({"tag": tags, "k": rows["state_size"].astype(int), "value": rows["value"]})
    return table.pivot(index="tag", columns="k", values="value")


def same_share(cache: float, context: int) -> int | None:
    """The paper's state size that is the same share of its text as `cache` is of `context`; None where it has none."""
    size = cache * TOKENS / context
    return int(size) if size in lifetimes().columns else None


def beside(classes: pd.Series, size: int | None) -> pd.DataFrame:
    """For each of our classes the paper's tag, size and steps, and the multiple of its average; missing where it has none."""
    if size is None:
        columns = ("published_k", "published_steps", "published_average", "published_multiple")
        nothing = pd.DataFrame(float("nan"), index=classes.index, columns=columns)
        return nothing.assign(published_tag=pd.Series(pd.NA, index=classes.index, dtype="str"))
    column = lifetimes()[size]
    tags = classes.map(SAME).astype("str")
    steps = tags.map(column).astype("float64")
    return pd.DataFrame(
        {"published_tag": tags, "published_k": float(size), "published_steps": steps, "published_average": column[AVERAGE],
         "published_multiple": steps / column[AVERAGE]}
    ).where(steps.notna())  # fmt: skip

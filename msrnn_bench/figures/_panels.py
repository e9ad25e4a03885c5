"""From the summary table to the panels of a figure over state sizes: what belongs on one pair of axes, as which line.

A panel holds what shares a topline. Knows columns, no colours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from msrnn_bench.errors import UsageError
from msrnn_bench.figures._published import own_name

_NUMBERS = ["cache", "value", "low", "high", "topline", "difference", "difference_low", "difference_high", "count"]
SHARED = ("task", "model", "dataset", "weights", "context", "bos", "dtype", "positions", "seed", "template", "variant")
EITHER = ("full", "baseline")  # policies that evict nothing: no prefill cuts, no gap opens
_VARIANTS = ["memory", "first", "recent", "per", "seed", "engine", "prefill"]
_NEEDED = {*_NUMBERS, *SHARED, *_VARIANTS, "subtask", "policy", "metric", "documents", "status", "cell"}
_WHERE = ["task", "model", "dataset"]
_SAID = {  # how a title says what parts its panel from others; the rest by name and value
    "dtype": "{}", "task": "{}", "subtask": "{}", "length": "{:,} tokens", "template": "{} prompt", "prefill": "{}",
    "variant": "{}",
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Points have `cache`, `value` and the band's `bottom` and `top` (NaN where there is none)."""

    settings: dict[str, object]
    topline: pd.Series | None
    lines: dict[str, pd.DataFrame]
    documents: tuple[int, int]  # fewest and most that a line was measured on
    title: str
    paired: bool  # whether the bands are intervals of the difference to the topline
    failed: int  # cells of this model and dataset without a value

    @property
    def random(self) -> bool:
        return self.settings["weights"] == "random"

    @property
    def banded(self) -> bool:
        return any(points["bottom"].notna().any() for points in self.lines.values())

    def methods(self, paired: bool) -> set[str]:
        """How the intervals were made: of the differences, or of the values themselves."""
        column = "difference_interval" if paired else "interval"
        return {str(name) for points in self.lines.values() for name in points.get(column, pd.Series(dtype=str)).dropna()}

    @property
    def sizes(self) -> list[float]:
        return sorted({float(size) for points in self.lines.values() for size in points["cache"]})

    def shown(self, setting: str) -> str:
        value = self.settings[setting]
        return f"{int(str(value)):,}" if setting == "context" else str(value)

    @property
    def base(self) -> float:
        """Where the loss of a policy is counted from: the topline, or without one the best value there is."""
        if self.topline is not None:
            return float(self.topline["value"])
        return min(float(points["value"].min()) for points in self.lines.values())


def read(table: pd.DataFrame, metric: str = "nll", shared: Sequence[str] = SHARED) -> list[Panel]:
    """The panels of a summary table, one for each combination of `shared` settings, in their order; refuses a table
    that has none."""
    lacking = sorted({*_NEEDED, *shared} - set(table.columns))
    if lacking:
        raise UsageError(f"not a summary table, it lacks {', '.join(lacking)}: give what `msrnn-bench collect` writes")
    lost = table[table["value"].isna() & (table["status"] != "ok")]
    table = table[table["metric"].eq(metric).fillna(False).astype(bool) & table["value"].notna()].copy()
    table[_NUMBERS] = table[_NUMBERS].apply(pd.to_numeric).astype("float64")
    table = in_each(table, "positions", shared)
    keys = table[list(shared)].astype("object")
    keys.loc[table["weights"] != "random", "seed"] = None  # elsewhere a seed changes a policy, not the model
    groups = [group for _, group in table.groupby([keys[name] for name in shared], dropna=False)]
    groups = [group for group in groups if (group["policy"] != "full").any()]
    if not groups:
        what = "perplexity" if metric == "nll" else metric
        raise UsageError(f"no policy's {what} to draw: run `msrnn-bench run policy=tova cache=512`, then collect")
    return [_panel(group, groups, lost, shared) for group in groups]


def in_each(table: pd.DataFrame, setting: str, shared: Sequence[str]) -> pd.DataFrame:
    """The table with the lines of full model and baseline, which evict nothing and so have no such setting of their own, once
    for each value of it that a policy beside them was run under."""
    either = table["policy"].isin(EITHER) & table["value"].notna()
    beside = [name for name in shared if name not in (setting, "seed")]
    parts = [table[~either]]
    for _, group in table.groupby([table[name].astype("object") for name in beside], dropna=False):
        plain = group["policy"].isin(EITHER) & group["value"].notna()
        found = group.loc[~plain & group["value"].notna(), setting].unique()
        parts += [group[plain].assign(**{setting: value}) for value in found] if len(found) else [group[plain]]
    return pd.concat(parts, ignore_index=True)


def _panel(group: pd.DataFrame, groups: list[pd.DataFrame], lost: pd.DataFrame, shared: Sequence[str]) -> Panel:
    full = group[group["policy"] == "full"]
    # any engine gives the same topline: the one over the most tokens stands for all, of those the lines' own
    usual = group.loc[group["policy"] != "full", "engine"].mode()[0]
    toplines = [_unique(same.assign(cache=0)).iloc[0] for _, same in full.groupby(["engine", "prefill", "seed"])]
    topline = max(toplines, key=lambda line: (line["count"], line["engine"] == usual), default=None)
    paired = topline is not None and bool(group.loc[group["policy"] != "full", "difference"].notna().any())
    lines = {}
    for policy, points in group[group["policy"] != "full"].groupby("policy"):
        for name, variant in variants(str(policy), points):
            lines[name] = _banded(_unique(variant), paired)
    return Panel(
        settings={name: _first(group, name) for name in shared},
        topline=topline,
        lines=lines,
        documents=(int(group["documents"].min()), int(group["documents"].max())),
        title=_title(group, groups, shared),
        paired=paired,
        failed=int((lost[_WHERE] == group[_WHERE].iloc[0]).all(axis=1).sum()),
    )


def variants(policy: str, points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A policy run under several settings is several lines. `recent` follows k by itself: it parts only equal k."""
    parts = []
    for name in _VARIANTS:
        counted = points.groupby("cache")[name] if name == "recent" else points[name]
        distinct = counted.nunique(dropna=False)
        if (distinct.max() if isinstance(distinct, pd.Series) else distinct) > 1:
            parts.append(name)
    if not parts:
        return [(policy, points)]
    named = []
    for values, variant in points.groupby([points[name].astype("object") for name in parts], dropna=False):
        what = ", ".join(f"{name} {_plain(value)}" for name, value in zip(parts, values, strict=True))
        named.append((f"{policy} ({what})", variant))
    return named


def _plain(value: Any) -> str:
    return "-" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def _unique(points: pd.DataFrame) -> pd.DataFrame:
    """One point a size: where a size was measured again on more tokens, the larger measurement stands for it."""
    points = points.sort_values(["cache", "count"], ascending=[True, False])
    points = points[points["count"] == points.groupby("cache")["count"].transform("max")]
    several = points.groupby("cache")["value"].nunique()
    for size in several[several > 1].index[:1]:
        same = points[points["cache"] == size]
        line, cells = same.iloc[0], ", ".join(sorted(same["cell"].astype(str)))
        what = f"{line['policy']} of {line['model']} on {line['dataset']}, cache {size:g}"
        raise UsageError(f"{what} has several results (cells {cells}): delete the stale ones and collect again")
    return points.drop_duplicates("cache")


def _banded(points: pd.DataFrame, paired: bool) -> pd.DataFrame:
    shift = points["value"] - points["difference"] if paired else 0.0
    low, high = ("difference_low", "difference_high") if paired else ("low", "high")
    return points.assign(bottom=points[low] + shift, top=points[high] + shift)


def _title(group: pd.DataFrame, groups: list[pd.DataFrame], shared: Sequence[str]) -> str:
    """Model and dataset (or subtask or task, where it brings its own text), and what else parts this panel from others of
    them."""
    _, model, dataset = (str(group[name].iloc[0]) for name in _WHERE)
    siblings = [g for g in groups if (str(g["model"].iloc[0]), str(g["dataset"].iloc[0])) == (model, dataset)]
    named = "dataset" if dataset != "none" else "subtask" if _first(group, "subtask") else "task"
    extras = []
    for name in shared:
        values = [_first(g, name) for g in (group, *siblings)]
        if len(set(values)) > 1 and values[0] is not None and name not in ("weights", "model", "dataset", named):
            extras.append(_SAID.get(name, f"{name} {{}}").format(values[0]))
    title = f"{model.rsplit('/', 1)[-1]} on {_first(group, named)}"
    return f"{title} ({', '.join(extras)})" if extras else title


def _first(group: pd.DataFrame, name: str) -> Any:
    """A setting that is the same in all of the group; None for missing."""
    value = group[name].iloc[0]
    return None if pd.isna(value) else value


def published(paper: pd.DataFrame | None, panel: Panel, metric: str = "perplexity") -> dict[str, pd.DataFrame]:
    """The paper's numbers of this panel's model, dataset and policies, by policy; empty where it has none."""
    if paper is None:
        return {}
    model = _letters(str(panel.settings["model"]).rsplit("/", 1)[-1])
    dataset = _letters(str(panel.settings["dataset"]))
    same_model = paper["model"].map(lambda name: model in (_letters(str(name)), _letters(str(name)) + "hf"))
    same_text = paper["experiment"].map(lambda name: _letters(str(name)).startswith(dataset))
    rows = paper[(paper["metric"] == metric) & same_model & same_text]
    points = pd.DataFrame(
        {
            "policy": [own_name(str(name)) for name in rows["policy"]],
            "cache": pd.to_numeric(rows["state_size"], errors="coerce"),
            "value": pd.to_numeric(rows["value"], errors="coerce"),
        }
    ).dropna()
    groups = points.sort_values("cache").groupby("policy")
    return {str(policy): group for policy, group in groups if policy in panel.lines}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

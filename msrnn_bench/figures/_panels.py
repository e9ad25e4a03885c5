"""From the summary table to the panels of a perplexity figure: what belongs on one pair of axes, and as which line.

A panel holds what shares a topline. Knows columns, no colours.
"""

import re
from dataclasses import dataclass

import pandas as pd

from msrnn_bench.errors import UsageError

_NUMBERS = ["cache", "value", "low", "high", "topline", "difference", "difference_low", "difference_high", "count"]
_SHARED = ["task", "model", "dataset", "weights", "context", "bos", "dtype", "positions", "seed"]
_VARIANTS = ["memory", "first", "recent", "per", "seed", "engine", "prefill"]
_NEEDED = {*_NUMBERS, *_SHARED, *_VARIANTS, "policy", "metric", "documents", "status", "cell"}


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Points have `cache`, `value` and the band's `bottom` and `top` (NaN where there is none)."""

    settings: dict[str, object]
    topline: pd.Series | None
    lines: dict[str, pd.DataFrame]
    documents: tuple[int, int]
    title: str
    paired: bool  # whether the bands are intervals of the difference to the topline

    @property
    def base(self) -> float:
        """Where the loss of a policy is counted from: the topline, or without one the best value there is."""
        if self.topline is not None:
            return float(self.topline["value"])
        return min(float(points["value"].min()) for points in self.lines.values())


def read(table: pd.DataFrame) -> list[Panel]:
    """The panels of a summary table, in the order of model and dataset; refuses a table that has none."""
    lacking = sorted(_NEEDED - set(table.columns))
    if lacking:
        raise UsageError(f"not a summary table, it lacks {', '.join(lacking)}: give what `msrnn-bench collect` writes")
    table = table[(table["metric"] == "nll").fillna(False).astype(bool) & table["value"].notna()].copy()
    table[_NUMBERS] = table[_NUMBERS].apply(pd.to_numeric).astype("float64")
    keys = table[_SHARED].astype("object")
    keys.loc[table["weights"] != "random", "seed"] = None  # elsewhere a seed changes a policy, not the model
    groups = [group for _, group in table.groupby([keys[name] for name in _SHARED], dropna=False)]
    groups = [group for group in groups if (group["policy"] != "full").any()]
    if not groups:
        raise UsageError("no policy's perplexity to draw: run `msrnn-bench run policy=tova cache=512`, then collect")
    return [_panel(group, groups) for group in groups]


def _panel(group: pd.DataFrame, groups: list[pd.DataFrame]) -> Panel:
    full = group[group["policy"] == "full"]
    topline = _unique(full.assign(cache=0)).iloc[0] if len(full) else None
    paired = topline is not None and bool(group["difference"].notna().all())
    lines = {}
    for policy, points in group[group["policy"] != "full"].groupby("policy"):
        for name, variant in _variants(str(policy), points):
            lines[name] = _banded(_unique(variant), paired)
    return Panel(
        settings={name: group[name].iloc[0] for name in _SHARED},
        topline=topline,
        lines=lines,
        documents=(int(group["documents"].min()), int(group["documents"].max())),
        title=_title(group, groups),
        paired=paired,
    )


def _variants(policy: str, points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A policy run under several settings is several lines. `recent` follows k by itself: it parts only equal k."""
    parts = []
    for name in _VARIANTS:
        counted = points.groupby("cache")[name] if name == "recent" else points[name]
        distinct = counted.nunique(dropna=False)
        if (distinct.max() if isinstance(distinct, pd.Series) else distinct) > 1:
            parts.append(name)
    if not parts:
        return [(policy, points)]
    keys = [points[name].astype("object") for name in parts]
    named = []
    for values, variant in points.groupby(keys, dropna=False):
        named.append((f"{policy} ({', '.join(f'{n} {_plain(v)}' for n, v in zip(parts, values, strict=True))})", variant))
    return named


def _plain(value: object) -> str:
    return "-" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)  # type: ignore[call-overload]


def _unique(points: pd.DataFrame) -> pd.DataFrame:
    """One point a size: where a size was measured again on more tokens, the larger measurement stands for it."""
    points = points.sort_values(["cache", "count"], ascending=[True, False])
    points = points[points["count"] == points.groupby("cache")["count"].transform("max")]
    for size, same in points.groupby("cache"):
        if same["value"].nunique() > 1:
            line, cells = same.iloc[0], ", ".join(sorted(same["cell"].astype(str)))
            what = f"{line['policy']} of {line['model']} on {line['dataset']}, cache {size:g}"
            raise UsageError(f"{what} has several results (cells {cells}): delete the stale ones and collect again")
    return points.drop_duplicates("cache")


def _banded(points: pd.DataFrame, paired: bool) -> pd.DataFrame:
    shift = points["value"] - points["difference"] if paired else 0.0
    low, high = ("difference_low", "difference_high") if paired else ("low", "high")
    return points.assign(bottom=points[low] + shift, top=points[high] + shift)


def _title(group: pd.DataFrame, groups: list[pd.DataFrame]) -> str:
    """Model and dataset, and what else parts this panel from others of the same two."""
    model, dataset = group["model"].iloc[0], group["dataset"].iloc[0]
    siblings = [g for g in groups if (g["model"].iloc[0], g["dataset"].iloc[0]) == (model, dataset)]
    extras = []
    for name in _SHARED:
        if len({g[name].iloc[0] for g in siblings}) > 1 and name not in ("weights", "model", "dataset"):
            value = group[name].iloc[0]
            extras.append(str(value) if name in ("dtype", "task") else f"{name} {value}")
    title = f"{str(model).rsplit('/', 1)[-1]} on {dataset}"
    return f"{title} ({', '.join(extras)})" if extras else title


def published(paper: pd.DataFrame | None, panel: Panel) -> dict[str, pd.DataFrame]:
    """The paper's perplexities of this panel's model, dataset and policies, by policy; empty where it has none."""
    if paper is None:
        return {}
    model = _letters(str(panel.settings["model"]).rsplit("/", 1)[-1])
    dataset = _letters(str(panel.settings["dataset"]))
    rows = paper[paper["metric"] == "perplexity"]
    rows = rows[[model.startswith(_letters(str(name))) for name in rows["model"]]]
    rows = rows[[_letters(str(name)).startswith(dataset) for name in rows["experiment"]]]
    points = pd.DataFrame(
        {
            "policy": [_policy(str(name)) for name in rows["policy"]],
            "cache": pd.to_numeric(rows["state_size"], errors="coerce"),
            "value": pd.to_numeric(rows["value"], errors="coerce"),
        }
    ).dropna()
    groups = points.sort_values("cache").groupby("policy")
    return {str(policy): group for policy, group in groups if policy in panel.lines}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _policy(name: str) -> str:
    """The paper's name to ours: its TOVA-layer and H2O-head are tova and h2o."""
    return re.sub(r"^tova-layer|^h2o-head", lambda found: found[0].split("-")[0], name.lower().replace("+", "")).replace("-", "_")

"""From all rows to what the efficiency figure draws: per model and machine, per policy and size, medians over repeats and their
spread. Knows columns, no colours."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _published

SHARED = ["model", "weights", "dataset", "context", "length", "dtype", "engine", "variant"]  # what is one row of the figure
NEEDED = [*SHARED, "task", "policy", "cache", "metric", "subtask", "total", "status"]
CAPPED = "at least"  # how the status of a batch that memory did not limit begins


@dataclass(frozen=True)
class Costs:
    """One model on one machine. `points` has columns policy, cache (the full model's: its tokens), metric, subtask, value (a
    median), low, high (the smallest and largest repeat), repeats, capped; `random`: random weights."""

    title: str
    points: pd.DataFrame
    random: bool = False
    published: bool = False

    def of(self, metric: str, subtask: str | None = None) -> pd.DataFrame:
        """The points of one quantity."""
        asked = self.points["subtask"].isna() if subtask is None else self.points["subtask"] == subtask
        return self.points[(self.points["metric"] == metric) & asked].sort_values("cache")

    @property
    def sizes(self) -> list[float]:
        return sorted({float(k) for k in self.points.loc[self.points["policy"] != "full", "cache"]})

    @property
    def policies(self) -> list[str]:
        return [name for name in dict.fromkeys(self.points["policy"]) if name != "full"]

    def relative(self, subtask: str) -> pd.DataFrame:
        """Decoding speed as a multiple of the full cache's at the same kind of batch: medians; the ends are the worst repeat
        over the full cache's best, and the reverse. Empty where the full cache was not measured."""
        found = self.of("decode_tokens_per_second", subtask)
        full = found[found["policy"] == "full"]
        rest = found[found["policy"] != "full"]
        if full.empty:
            return rest.iloc[:0]
        one = full.iloc[0]
        return rest.assign(value=rest["value"] / one["value"], low=rest["low"] / one["high"], high=rest["high"] / one["low"])


def read(table: pd.DataFrame) -> list[Costs]:
    """One for each model, machine and length; refuses a table that has none."""
    lacking = sorted(set(NEEDED) - set(table.columns))
    if lacking:
        raise UsageError(f"not a table of rows, it lacks {', '.join(lacking)}: give tidy.csv, which `msrnn-bench collect` writes")
    rows = table[table["task"].eq("efficiency").fillna(False).astype(bool)]
    rows = rows[rows["total"].notna()]
    if rows.empty:
        raise UsageError(
            "no efficiency to draw: run `msrnn-bench run -m task=efficiency policy=full,tova cache=64,256`, then collect"
        )
    keys = [rows[name].astype("object").where(rows[name].notna(), None) for name in SHARED]
    groups = [group for _, group in rows.groupby(keys, dropna=False, sort=False)]
    return [_costs(group, groups) for group in groups]


def _costs(group: pd.DataFrame, groups: list[pd.DataFrame]) -> Costs:
    one = group.iloc[0]
    apart = [name for name in SHARED[2:] if len({str(g[name].iloc[0]) for g in groups}) > 1 and not pd.isna(one[name])]
    extras = ", ".join(f"{name} {one[name]}" for name in apart if name not in ("dataset", "dtype"))
    title = f"{str(one['model']).rsplit('/', 1)[-1]}, {one['dtype']}, {int(one['length']):,} tokens"
    size = group["cache"].astype("float64").fillna(float(one["length"]))
    capped = group["status"].str.startswith(CAPPED).fillna(False).astype(bool)
    keyed = group.assign(cache=size, capped=capped, total=group["total"].astype("float64"))
    by = ["policy", "cache", "metric", "subtask"]
    points = keyed.groupby(by, dropna=False, sort=False).agg(
        value=("total", "median"),
        low=("total", "min"),
        high=("total", "max"),
        repeats=("total", "size"),
        capped=("capped", "any"),
    )
    return Costs(f"{title} ({extras})" if extras else title, points.reset_index(), one["weights"] == "random")


def published() -> Costs:
    """The paper's Table 1 in the same form: its memory is in GB of 1000^3, its throughput relative to the full cache's."""
    table = _published.read()
    table = table[table["experiment"] == "efficiency_table1"]
    names = {
        "kv_memory_GB_batch1": ("state_bytes", None, 1e9), "max_batch_size": ("batch", None, 1.0),
        "relative_throughput": ("decode_tokens_per_second", "batch=max", 1.0),
    }  # fmt: skip
    rows = []
    for _, line in table.iterrows():
        metric, subtask, unit = names[line["metric"]]
        value = float(line["value"]) * unit
        rows.append((line["policy"].lower(), float(line["state_size"]), metric, subtask, value, value, value, 1, False))
    columns = ["policy", "cache", "metric", "subtask", "value", "low", "high", "repeats", "capped"]
    return Costs("LLaMA-2-7B, bfloat16, 4,096 tokens, one V100 (published)", pd.DataFrame(rows, columns=columns), published=True)

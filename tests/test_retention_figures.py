"""The figures of what stays, from death times whose answers are known: a window is a band, a protected token a column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_figures import caption

from msrnn_bench import figures
from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _pixels, style
from msrnn_bench.results.summary import TIDY_TYPES

TOKENS, SIZE, LAYERS = 96, 12, 3


def deaths(first: int = 0, *, tokens: int = TOKENS, size: int = SIZE, chance: int | None = None) -> np.ndarray:
    """Death times [T] of a window of `size` states of which the `first` stay; with `chance` any other state leaves."""
    found, alive, draw = np.full(tokens, -1), [], np.random.default_rng(chance)
    for step in range(tokens):
        alive.append(step)
        if len(alive) > size:
            found[alive.pop(first if chance is None else int(draw.integers(first, size + 1)))] = step
    return found


def layered(*layers: np.ndarray) -> np.ndarray:
    """[L, 1, T] of one decision a layer."""
    return np.stack(layers)[:, None]


WINDOW, WINDOW4 = layered(*[deaths()] * LAYERS), layered(*[deaths(4)] * LAYERS)
CHANCE = layered(*(deaths(1, chance=layer) for layer in range(LAYERS)))


def rows(policy: str, death: np.ndarray, document: str = "one", size: int = SIZE, **changes: Any) -> list[dict[str, Any]]:
    """A cell's rows as task=retention has them, from the death times of one document: of every token, and by position."""
    layers, _, tokens = death.shape
    kept = (np.where(death < 0, tokens - 1, death) - np.arange(tokens) + 1).mean(1).sum(0)  # [T], summed over layers
    settings = {
        "cell": f"{policy}-{size}-{'-'.join(map(str, changes.values()))}", "task": "retention", "dataset": "pysource",
        "model": "smollm2", "weights": "pretrained", "policy": policy, "memory": 0.0, "first": 0, "per": "layer",
        "cache": size, "context": tokens, "seed": 0, "bos": False, "dtype": "float32", "engine": "scan",
        "prefill": "stepwise", "positions": "original", "document": document, "metric": "lifetime", "status": "ok", **changes,
    }  # fmt: skip
    parts = [("all", 0, tokens), *(("position", at, at + 1) for at in range(26)), ("position", 26, tokens)]
    return [
        {**settings, "subtask": part, "bucket_start": begin, "bucket_end": end, "total": float(kept[begin:end].sum()),
         "count": layers * (end - begin)}
        for part, begin, end in parts
    ]  # fmt: skip


def table(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part], columns=list(TIDY_TYPES)).astype(TIDY_TYPES)


def classed(policy: str, lifetimes: dict[str, float], document: str = "one", scheme: str = "pos", size: int = 256, **changes: Any) -> list[dict[str, Any]]:
    """A cell's rows by class: 20 tokens of each in every one of two layers, with these mean lifetimes, in a text of 2,048."""
    common = rows(policy, WINDOW, document, size, **{"context": 2048, **changes})[0]
    parts = [
        {**common, "subtask": f"class:{scheme}/{name}", "bucket_end": 2048, "total": 40.0 * steps, "count": 40}
        for name, steps in lifetimes.items()
    ]
    whole = {"bucket_end": 2048, "total": 10.0 * sum(lifetimes.values()), "count": 20 * len(lifetimes)}
    return parts + [{**common, **whole, "subtask": f"layer:{layer:02}"} for layer in range(2)]

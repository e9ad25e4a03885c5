"""The two tables of exact token-by-token eviction that an independent prototype measured, measured again with ours.

    python benchmarks/tables.py            # both; `stories` or `smollm2` for one

Needs the folder of shared data (MSRNN_BENCH_SHARED, default ../shared). Prints ours and the deviation of every cell,
and exits with 1 where one is beyond the tolerance: 0.003 for stories260k, 0.3% for SmolLM2.
"""

import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import msrnn_bench as mb
from msrnn_bench.runs.build import build
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks.reading.losses import losses

SHARED = Path(os.environ.get("MSRNN_BENCH_SHARED", Path(__file__).resolve().parents[1] / "../shared"))
POLICIES = {
    "full": "full", "window": "window", "window+1": "window1", "window+4": "window4", "h2o": "h2o", "h2o-layer": "h2o_layer",
    "tova": "tova", "tova+4": "tova4", "tova-head": "tova_head",
}  # fmt: skip
STORIES = """
k window window+1 window+4 h2o tova tova-head
8 6.045 6.202 6.884 6.815 5.774 5.790
16 5.556 5.588 5.704 5.874 5.464 5.497
32 5.266 5.284 5.305 5.352 5.293 5.353
64 4.976 4.985 5.007 5.054 5.065 5.149
128 4.781 4.781 4.785 4.832 4.814 4.922
256 4.748 4.748 4.748 4.753 4.751 4.773
"""
SMOLLM2 = """
k window window+1 window+4 h2o h2o-layer tova tova+4 tova-head
64 247.363 45.500 45.544 45.563 46.280 43.955 43.858 44.274
256 69.659 38.439 38.378 37.840 38.054 38.168 38.183 38.345
1024 50.781 36.619 36.616 36.354 36.433 36.516 36.512 36.615
"""


class Silent:
    """Progress that nobody watches."""

    def start(self, tokens: int) -> None: ...
    def advance(self, tokens: int) -> None: ...
    def restored(self, tokens: int) -> None: ...


def stories(policy: str, k: int, shared: dict[Any, Any]) -> float:
    """Token perplexity of stories260k on 24 chunks of 512 tokens of stories of more than 200 characters, a beginning mark
    before each story."""
    overrides = [
        "model=local", f"model.path='{SHARED / 'models/stories260k'}'", "dataset=text", "dataset.separator='<|endoftext|>'",
        f"dataset.path='{SHARED / 'data/tinystories/stories.txt'}'", "dataset.min_characters=200", "dataset.pack=true",
        "context=512", "documents=24", "tokens=null", "device=cpu", f"policy={POLICIES[policy]}", f"cache={k}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        overrides.append(f"results_dir={folder}")
        cell = prepare(compose_one(overrides), overrides, Silent(), shared)
        rows = list(cell.task.rows(cell.job))
    return math.exp(sum(row.total for row in rows) / sum(row.count for row in rows))


def smollm2(policy: str, k: int, shared: dict[Any, Any]) -> float:
    """SmolLM2, float32, no BOS: the first 2,048 tokens from character len // 3 of two novels."""
    if not shared:
        loaded = build(compose_one(["model=smollm2"]).model, "model").load(dtype="float32", device="cpu", seed=0)
        chunks = []
        for name in ("pg1342_pride_and_prejudice", "pg2701_moby_dick"):
            text = (SHARED / f"data/books/{name}.txt").read_text(encoding="utf-8", errors="ignore")
            ids = loaded.tokenizer(text[len(text) // 3 :], add_special_tokens=False, verbose=False)["input_ids"]
            chunks.append(torch.tensor([ids[:2048]]))
        shared.update(model=loaded.model, chunks=chunks)
    model, made = shared["model"], build(compose_one([f"policy={POLICIES[policy]}"]).policy, "policy")
    states = mb.bounded(model, made, k if made.evicts else None)
    nll = [losses(model, ids, 1024, states, None)["nll"][0] for ids in shared["chunks"]]
    return math.exp(sum(x.sum() for x in nll) / sum(x.size for x in nll))


def compare(
    name: str, table: str, full: float, measure: Callable[[str, int, dict[Any, Any]], float], tolerance: float, relative: bool
) -> bool:
    """Print the table with each cell's deviation; whether all are within tolerance."""
    header, *lines = (line.split() for line in table.strip().splitlines())
    shared: dict[Any, Any] = {}
    worst = 0.0

    def off(got: float, want: float) -> float:
        return abs(got - want) / want if relative else abs(got - want)

    got = measure("full", 1, shared)
    worst = off(got, full)
    print(f"{name}: full {got:.3f} (expected {full})", flush=True)
    for k, *wanted in lines:
        cells = []
        for policy, want in zip(header[1:], map(float, wanted), strict=True):
            got = measure(policy, int(k), shared)
            worst = max(worst, off(got, want))
            cells.append(f"{policy} {got:.3f} ({got - want:+.4f})")
        print(f"  k={k}: " + ", ".join(cells), flush=True)
    unit = f"{worst:.4%} of {tolerance:.1%}" if relative else f"{worst:.4f} of {tolerance}"
    print(f"  largest deviation {unit} allowed: {'met' if worst <= tolerance else 'NOT MET'}")
    return worst <= tolerance


if __name__ == "__main__":
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} does not exist: set MSRNN_BENCH_SHARED to the folder of shared data")
    which = sys.argv[1:] or ["stories", "smollm2"]
    fine = True
    if "stories" in which:
        fine &= compare("stories260k", STORIES, 4.747, stories, 0.003, relative=False)
    if "smollm2" in which:
        fine &= compare("SmolLM2", SMOLLM2, 36.294, smollm2, 0.003, relative=True)
    sys.exit(0 if fine else 1)

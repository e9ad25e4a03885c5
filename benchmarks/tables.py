"""The two tables of exact token-by-token eviction that an independent prototype measured, measured again with ours.

    python benchmarks/tables.py            # both; `stories` or `smollm2` for one

Needs the folder of shared data (MSRNN_BENCH_SHARED, default ../shared). Prints ours and the deviation of every cell,
and exits with 1 where one is beyond the tolerance: 0.003 for stories260k, 0.3% for SmolLM2.
"""

import math
import os
import sys
from pathlib import Path

import torch

import msrnn_bench as mb
from msrnn_bench.compose import compose_one
from msrnn_bench.datasets import Text
from msrnn_bench.job import Job
from msrnn_bench.models import Loaded, LocalModel
from msrnn_bench.run import build
from msrnn_bench.tasks.perplexity import Perplexity, losses

SHARED = Path(os.environ.get("MSRNN_BENCH_SHARED", Path(__file__).resolve().parents[1] / "../shared"))
POLICIES = {
    "window": mb.Window(), "window+1": mb.Window(first=1), "window+4": mb.Window(first=4), "h2o": mb.H2O(),
    "h2o-layer": mb.H2O(per="layer"), "tova": mb.Tova(), "tova+4": mb.Tova(first=4), "tova-head": mb.Tova(per="head"),
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


def stories_job(policy: mb.Policy, k: int | None, shared: dict, documents: int = 24) -> Job:
    """stories260k on chunks of 512 tokens of stories of more than 200 characters, BOS before each story."""
    model = LocalModel(path=str(SHARED / "models/stories260k"))
    path = str(SHARED / "data/tinystories/stories.txt")
    dataset = Text(path=path, separator="<|endoftext|>", min_characters=200, pack=True)
    columns = dict.fromkeys(("task", "dataset", "model", "policy", "engine", "prefill", "positions", "cell"), "")
    settings = {"context": 512, "seed": 0, "dtype": "float32"}
    return Job(
        columns={**columns, **settings, "weights": "pretrained"}, policy=policy, model=model, dataset=dataset, cache=k,
        documents=documents, tokens=None, device="cpu", engine="scan", prefill="stepwise", positions="original",
        progress=Silent(), shared=shared, journal=Path(), topline=Path(), **settings,
    )  # fmt: skip


def stories(policy: mb.Policy, k: int | None, shared: dict) -> float:
    """Its token perplexity."""
    rows = list(Perplexity().rows(stories_job(policy, k, shared)))
    return math.exp(sum(row.total or 0 for row in rows) / sum(row.count for row in rows))


def smollm2(policy: mb.Policy, k: int | None, shared: dict) -> float:
    """SmolLM2, float32, no BOS: the first 2,048 tokens from character len // 3 of two novels."""
    if not shared:
        loaded: Loaded = build(compose_one(["model=smollm2"]).model, "model").load(dtype="float32", device="cpu", seed=0)
        chunks = []
        for name in ("pg1342_pride_and_prejudice", "pg2701_moby_dick"):
            text = (SHARED / f"data/books/{name}.txt").read_text(encoding="utf-8", errors="ignore")
            ids = loaded.tokenizer(text[len(text) // 3 :], add_special_tokens=False, verbose=False)["input_ids"]
            chunks.append(torch.tensor([ids[:2048]]))
        shared.update(model=loaded.model, chunks=chunks)
    nll = [losses(shared["model"], ids, 1024, mb.bounded(shared["model"], policy, k), None)["nll"] for ids in shared["chunks"]]
    return math.exp(sum(x.sum() for x in nll) / sum(x.size for x in nll))


def compare(name: str, table: str, full: float, measure, tolerance: float, relative: bool) -> bool:
    """Print the table with each cell's deviation; whether all are within tolerance."""
    header, *lines = (line.split() for line in table.strip().splitlines())
    shared: dict = {}
    worst = 0.0

    def off(got: float, want: float) -> float:
        return abs(got - want) / want if relative else abs(got - want)

    got = measure(mb.Full(), None, shared)
    worst = off(got, full)
    print(f"{name}: full {got:.3f} (expected {full})", flush=True)
    for k, *wanted in lines:
        cells = []
        for policy, want in zip(header[1:], map(float, wanted), strict=True):
            got = measure(POLICIES[policy], int(k), shared)
            worst = max(worst, off(got, want))
            cells.append(f"{policy} {got:.3f} ({got - want:+.4f})")
        print(f"  k={k}: " + ", ".join(cells), flush=True)
    unit = f"{worst:.4%} of {tolerance:.1%}" if relative else f"{worst:.4f} of {tolerance}"
    print(f"  largest deviation {unit} allowed: {'met' if worst <= tolerance else 'NOT MET'}")
    return worst <= tolerance


if __name__ == "__main__":
    which = sys.argv[1:] or ["stories", "smollm2"]
    fine = True
    if "stories" in which:
        fine &= compare("stories260k", STORIES, 4.747, stories, 0.003, relative=False)
    if "smollm2" in which:
        fine &= compare("SmolLM2", SMOLLM2, 36.294, smollm2, 0.003, relative=True)
    sys.exit(0 if fine else 1)

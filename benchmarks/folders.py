"""How long the commands take that read a results folder, on folders of made-up cells: `python benchmarks/folders.py`.

    python benchmarks/folders.py                             # 10,000 cells of 8 documents, 1,000 cells of 100
    python benchmarks/folders.py --make FOLDER 10000 8       # such a folder alone, to look at

A cell is one of `perplexity`, of 10 ranges of positions a document: 80 or 1,000 rows. There are three models, four texts, eleven
policies and as many state sizes as it takes: twelve panels in the figure. Beside them one cell in a hundred is failed, one in
two hundred unfinished, and a plan names another hundred. The numbers mean nothing; files and manifests are as the package
writes them. Wall and CPU seconds and the largest memory are each command's own process's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msrnn_bench.results.cells import COLUMNS, cell_id

EDGES = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
POLICIES = ("window", "window4", "tova", "tova4", "tova-head", "h2o", "h2o-layer", "a2sf", "random", "slow", "slow4")
SHAPES = ((10_000, 8), (1_000, 100))  # cells, documents
COMMANDS = ("collect", "status", "plot")
CONTEXT = 32768
Point = tuple[str, str, str, int | None]  # model, text, policy, cache


def points(cells: int) -> list[Point]:
    """The grid, cut where there are enough."""
    sizes = range(16, CONTEXT, 16)
    groups = [(f"model-{m}", f"text-{t}") for m, t in product(range(3), range(4))]
    full = [(*group, "full", None) for group in groups]
    return list(islice(chain(full, ((*group, policy, k) for k in sizes for policy in POLICIES for group in groups)), cells))


def make(folder: Path, cells: int, documents: int) -> None:
    """Finished cells, as many as asked for, and beside them failed, unfinished and planned ones."""
    (folder / "cells").mkdir(parents=True)
    random = np.random.default_rng(0)
    texts = [f"document_{n:03d}" for n in range(documents)]
    difficulty = random.normal(3.0, 0.2, size=(documents, 1))
    for point in points(cells):
        settings, manifest = _manifest(point, texts)
        identifier = cell_id(settings)
        gap = 0.0 if point[3] is None else 40 / point[3] ** 0.8
        losses = difficulty + gap + random.normal(0, 0.05, size=(documents, len(EDGES) - 1))
        stem = folder / "cells" / identifier
        rows = _rows(identifier, point, texts, losses).encode()
        stem.with_suffix(".csv").write_bytes(rows)
        told = {"cell": identifier, "task": "perplexity", "label": _label(point), "status": "ok", **manifest}
        told["rows_sha256"] = hashlib.sha256(rows).hexdigest()
        stem.with_suffix(".json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    beside = [(f"{n:016x}", f"model-0 text-0 tova k={n}") for n in range(cells // 100 + cells // 200 + 100)]
    failed, unfinished = beside[: cells // 100], beside[cells // 100 : -100]
    for identifier, label in failed:
        told = {"cell": identifier, "task": "perplexity", "label": label, "status": "failed", **manifest}
        told |= {"error": "OutOfMemoryError: CUDA out of memory", "traceback": "Traceback (most recent call last): ..."}
        (folder / "cells" / f"{identifier}.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    for identifier, _ in unfinished:
        (folder / "cells" / f"{identifier}.jsonl").write_text('{"key": "document_000", "nll": 3.0}\n', encoding="utf-8")
    listed = [{"id": identifier, "task": "perplexity", "label": label} for identifier, label in beside]
    plan = {"command": ["sweep", "experiment=paper/fig3"], "cells": listed, "started": "2026-01-01T00:00:00+00:00"}
    (folder / "cells" / ".plan-0.json").write_text(json.dumps(plan), encoding="utf-8")


def _label(point: Point) -> str:
    model, text, policy, cache = point
    return " ".join([model, text, policy, *([f"k={cache}"] if cache else [])])


def _manifest(point: Point, texts: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the manifest, with as much in it as those of results/ have."""
    model, text, policy, cache = point
    sha = f"{sum(map(ord, text)):x}".ljust(64, "0")
    buckets = list(EDGES[1:])
    settings = {
        "numerics": 1, "task": {"name": "perplexity", "buckets": buckets, "agreement": False},
        "policy": {"name": policy, "memory": 0.0, "first": 4, "recent": 0, "per": "layer", "settings": {}},
        "model": {"commit": model.ljust(40, "0"), "weights": "pretrained"}, "dataset": sha, "cache": cache, "context": CONTEXT,
        "documents": len(texts), "tokens": None, "seed": 0, "dtype": "bfloat16", "engine": "scan", "prefill": "stepwise",
        "positions": "original",
    }  # fmt: skip
    config = {
        **{key: settings[key] for key in ("cache", "context", "documents", "tokens", "seed", "dtype", "engine", "prefill")},
        "device": "auto", "positions": "original", "keep_tokens": False, "results_dir": "results", "workers": 1, "force": False,
        "model": {"_target_": "msrnn_bench.models.Hub", "name": model, "repo": f"someone/{model}", "revision": "0" * 40},
        "dataset": {
            "_target_": "msrnn_bench.datasets.Text", "name": text, "path": "books", "field": "text", "encoding": "auto",
            "strip_gutenberg": False, "separator": None, "min_characters": 0, "start": 0.333, "skip": 0, "bos": "auto",
            "pack": False,
        },
        "policy": {"_target_": "msrnn_bench.policies.Eviction", "memory": 0.0, "first": 4, "recent": 0, "per": "layer"},
        "task": {"_target_": "msrnn_bench.tasks.perplexity.Perplexity", "buckets": buckets, "chunk": 1024, "agreement": False},
    }  # fmt: skip
    listed = [{"name": t, "characters": 469695, "sha256": f"{n:04x}{sha[4:]}", "encoding": "utf-8"} for n, t in enumerate(texts)]
    packages = ("torch", "transformers", "tokenizers", "numba", "numpy", "datasets", "hydra-core", "gguf", "msrnn-bench")
    return settings, {
        "config": config, "settings": settings,
        "dataset": {"name": text, "fingerprint": sha, "documents": len(texts), "listed": listed},
        "model": {"class": "LlamaForCausalLM", "layers": 32, "heads": 32, "kv_heads": 32, "vocabulary": 32000},
        "versions": {"python": "3.11.7", **dict.fromkeys(packages, "1.0.0")}, "git": {"commit": "0" * 40, "clean": True},
        "machine": {"system": "Linux", "processor": "a processor", "cores": 32, "threads": 1, "cuda": "a GPU"},
        "finished": "2026-01-01T00:00:00+00:00", "seconds": 25.4,
    }  # fmt: skip


def _rows(identifier: str, point: Point, texts: list[str], losses: Any) -> str:
    model, text, policy, cache = point
    knobs = ",,,," if cache is None else f"0.0,4,{cache - 4},layer,{cache}"
    head = f"{identifier},perplexity,{text},{model},pretrained,{policy},{knobs},{CONTEXT},0,True,bfloat16,scan,stepwise,original,"
    out = "" if cache is None else cache
    left = 0 if cache is None else CONTEXT - cache
    tail = f"{left},{out},{cache or CONTEXT},25.3775,161.40273692516982,1696559104,23592960,ok\n"
    lines = [",".join(COLUMNS) + "\n"]
    for name, row in zip(texts, losses.tolist(), strict=True):
        for start, end, loss in zip(EDGES, EDGES[1:], row, strict=False):
            lines.append(f"{head},{name},,,,{start},{end},nll,{loss * (end - start)!r},{end - start},{tail}")
    return "".join(lines)


class Took(NamedTuple):
    wall: float
    cpu: float
    gigabytes: float


def took(command: str, folder: Path) -> Took:
    """One command in a process of its own."""
    begin = time.perf_counter()
    arguments = [sys.executable, "-m", "msrnn_bench.cli.main", command, f"results_dir={folder}"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return Took(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", nargs=3, metavar=("FOLDER", "CELLS", "DOCUMENTS"))
    given = parser.parse_args().make
    if given:
        return make(Path(given[0]), int(given[1]), int(given[2]))
    print("| finished cells | rows per cell | command | seconds (wall) | seconds (CPU) | memory, GB |\n|---|---|---|---|---|---|")
    for cells, documents in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), cells, documents)
            for command in COMMANDS:
                used = took(command, Path(folder))
                rows = documents * (len(EDGES) - 1)
                numbers = f"{used.wall:.1f} | {used.cpu:.1f} | {used.gigabytes:.2f}"
                print(f"| {cells:,} | {rows:,} | {command} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()

"""`make bench-gpu`: exact eviction on a GPU in one run that nobody watches: check, time, write `bench-gpu.json` and a table.

    python benchmarks/gpu.py                 # on the GPU, at most 8 minutes; --budget 450 seconds, --out bench-gpu.json
    python benchmarks/gpu.py --tiny          # the whole script on a CPU, with two small layers: no GPU's numbers

Before each line is timed, its path is held against another on the same device (gpu_gate.py): a line whose check fails is not
timed, says so, and the run ends with exit code 1. Lines are in order of worth; one that would begin when the budget is spent is
skipped, one that runs out of memory says so, and the file is written after each. Ratios are medians of runs in turn, the plain
SDPA forward before and after each. Targets are the project's; a missed one is told and changes no exit code.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_gate import fallback, faults, path
from benchmarks.gpu_lines import ARCHITECTURE, TINY, Bench, Line, Sizes, lines, release
from msrnn_bench.errors import one_line, out_of_memory
from msrnn_bench.results.provenance import git, machine, versions
from msrnn_bench.runs.build import build
from msrnn_bench.runs.compose import compose_one

GPU = "cuda"


def llama() -> dict[str, Any]:
    """The architecture of conf/model/llama2_7b.yaml."""
    return dict(build(compose_one(["model=llama2_7b"]).model, "model").architecture)


def run(bench: Bench, out: Path) -> bool:
    """Every line; whether none failed."""
    found: list[dict[str, Any]] = []
    for line in lines(bench.sizes):
        found.append({"line": line.name, **outcome(bench, line)})
        if bench.sizes is TINY:
            found[-1] |= {"target": None, "met": None}  # a GPU's
        release()
        out.write_text(json.dumps({**record(bench), "lines": found}, indent=1) + "\n", encoding="utf-8")
        print(told(found[-1]), flush=True)
    return not any("failed" in result for result in found)


def outcome(bench: Bench, line: Line) -> dict[str, Any]:
    """What was found, or why it was not."""
    if bench.left <= (0 if bench.sizes is TINY else line.lasts):
        return {"skipped": f"{max(0.0, bench.left):.0f} s of the budget are left, this takes about {line.lasts:.0f}"}
    try:
        if found := faults(line.policy, bench.device):
            return {"failed": f"CHECK FAILED, not timed: {found}"}
        return line.work(bench)
    except Exception as error:  # nobody watches: the next line may still say something
        if out_of_memory(error):
            return {"skipped": "out of memory"}
        return {"failed": f"FAILED: {type(error).__name__}: {one_line(error)}"}


def told(result: dict[str, Any]) -> str:
    """A row of the table."""
    if "failed" in result or "skipped" in result:
        return f"| {result['line']} | {result.get('failed') or 'skipped: ' + result['skipped']} | | | |"
    middle = f"{result['median']:.2f} [{result['low']:.2f}, {result['high']:.2f}]" if "median" in result else ""
    target = "" if result.get("target") is None else f"{result['target']} {'met' if result['met'] else 'MISSED'}"
    expected = "" if result.get("predicted") is None else f"{result['predicted']:.2f}"
    note = result.get("note") or ", ".join(f"{name} {result[name]:.3g}" for name in result if name.endswith(("_seconds", "_ms")))
    return f"| {result['line']} | {middle or result.get('said', '')} | {target} | {expected} | {note} |"


def record(bench: Bench) -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "machine": machine(), "versions": {**versions(), "triton": _triton(), "cuda": torch.version.cuda}, "git": git(),
        "path": path(bench.device), "sizes": {**asdict(bench.sizes), "dtype": str(bench.sizes.dtype)},
        "seconds": round(bench.budget - bench.left, 1),
    }  # fmt: skip


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="on the CPU, two small layers: to see that the script works")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds after which no line begins")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.json"), help="where the results go")
    given = parser.parse_args(arguments)
    given.out.resolve().parent.mkdir(parents=True, exist_ok=True)  # before anything is timed
    if not given.tiny and not torch.cuda.is_available():
        print("no GPU is here: python benchmarks/gpu.py --tiny runs the script through on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if given.tiny else GPU)
    bench = Bench(TINY if given.tiny else Sizes(), device, given.budget, ARCHITECTURE if given.tiny else llama())
    bench.load()
    about = machine()
    print(f"{about['processor'] if given.tiny else about['cuda']}, {bench.sizes.title}; {path(device)}")
    if given.tiny:
        print("NO GPU NUMBERS: a small model on the CPU's torch path, to show that the script runs.")
    print("\n| | median [smallest, largest] | target | calculated | |\n|---|---|---|---|---|", flush=True)
    with fallback() if given.tiny else nullcontext():
        fine = run(bench, given.out)
    print(f"\n{bench.budget - bench.left:.0f} s; written to {given.out}" + ("" if fine else "; SOMETHING FAILED"))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

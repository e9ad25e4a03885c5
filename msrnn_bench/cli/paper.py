"""`msrnn-bench paper`: every figure and table of the paper, step by step, and the report; a step that is finished is skipped.

A step is a command of its own, printed before it runs, so that any of them can be run alone. Measures nothing itself.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msrnn_bench.errors import UsageError
from msrnn_bench.runs import children


@dataclass(frozen=True)
class Step:
    """A sweep. `path`: the option that names its text, without which it is left out; `instead`: the option
    with which it is left out, for the text named there takes its place; `alone`: it measures time, so one process runs it."""

    experiment: str
    overrides: tuple[str, ...] = ()
    path: str | None = None
    instead: str | None = None
    alone: bool = False


BELOW = "cache=64,128,256,512,1024,2048"  # with k = context nothing leaves: one policy shows it for all
LAPTOP = (
    Step("laptop/equivalence"),
    Step("laptop/equivalence_gpt2"),
    Step("laptop/equivalence_twins"),
    Step("laptop/fig3", (BELOW,)),
    Step("laptop/fig3", ("policy=tova", "cache=4096")),
    Step("laptop/retention", ("cache=512",)),  # the size of all its figures and tables
    Step("laptop/retention_prose"),
    Step("laptop/needles"),
    Step("laptop/stories50"),
    Step("laptop/efficiency", alone=True),
    Step("laptop/extrapolation", instead="novels"),
    Step("laptop/extrapolation", ("policy=baseline", "cache=8192", "positions=original"), instead="novels"),
    Step("laptop/extrapolation_novels", path="novels"),
    Step("laptop/extrapolation_novels", ("policy=baseline", "cache=8192", "positions=original"), path="novels"),
    Step("laptop/squality", path="squality"),
    Step("laptop/qasper", path="qasper"),
)
PAPER = (
    Step("paper/fig3"), Step("paper/table3"), Step("paper/fig4"), Step("paper/fig5"), Step("paper/fig6"), Step("paper/fig7"),
    Step("paper/fig7", ("policy=baseline", "cache=4096", "positions=original")), Step("paper/table1", alone=True),
    Step("paper/table2"), Step("paper/table5"), Step("paper/fig8"), Step("paper/fig9"), Step("paper/fig10"),
    Step("paper/fig11"), Step("paper/fig12"), Step("paper/fig13"),
)  # fmt: skip
SCALES = {"laptop": LAPTOP, "paper": PAPER}


def main(options: Namespace) -> int:
    """All steps of a scale, what they left collected and drawn, the report, and how long each took. 1 if a step failed."""
    if options.scale not in SCALES:
        raise UsageError(f"paper scale={options.scale}? There are: {', '.join(SCALES)}")
    if options.dry_run not in ("true", "false"):
        raise UsageError(f"dry_run={options.dry_run} must be true or false")
    options.results_dir = str(Path(options.results_dir).expanduser())
    steps, failed = list(SCALES[options.scale]), []
    steps = [step for step in steps if step.instead is None or not getattr(options, step.instead)]
    todo = [step for step in steps if step.path is None or getattr(options, step.path)]
    for number, step in enumerate(todo, start=1):
        print(f"\npaper {number}/{len(todo)}", flush=True)
        if _run(sweep(step, options)) != 0:
            failed.append(step)
    if options.dry_run == "true":
        return 1 if failed else 0
    folders = list(dict.fromkeys(str(folder(step, options)) for step in todo))
    there = [name for name in folders if any(Path(name, "cells").glob("[!.]*.json"))]
    for name in there:
        _run(["collect", f"results_dir={name}"], quiet=True)
        _run(["plot", f"results_dir={name}"])
    for line in spent(todo, options):
        print(line)
    for step in steps:
        if step not in todo:
            print(f"not measured: {_shown(sweep(step, options))}")
    for step in failed:
        print(f"failed: {_shown(sweep(step, options))}")
    code = _run(["report", f"results_dir={','.join(there)}", f"out={Path(options.results_dir) / 'report.html'}"])
    return 1 if failed else code


def sweep(step: Step, options: Namespace) -> list[str]:
    """The command of a step: what msrnn-bench is given."""
    given = [f"experiment={step.experiment}", *step.overrides]
    if step.path is not None:
        given.append(f"dataset.path={getattr(options, step.path) or step.path.upper()}")
    given.append(f"results_dir={folder(step, options)}")
    given.append(f"workers={1 if step.alone else options.workers}")
    return ["sweep", *given, *(["dry_run=true"] if options.dry_run == "true" else [])]


def folder(step: Step, options: Namespace) -> Path:
    """Where a step's cells go: the experiment's own folder, below the one that was chosen."""
    from msrnn_bench.runs.compose import compose_one

    return Path(options.results_dir) / Path(compose_one([f"experiment={step.experiment}"]).results_dir).name


def spent(steps: list[Step], options: Namespace) -> Iterator[str]:
    """The seconds in the manifests of each step's cells; a cell that two steps share counts once."""
    from msrnn_bench.results.cells import read_manifest
    from msrnn_bench.runs.compose import compose_grid
    from msrnn_bench.runs.overrides import understood
    from msrnn_bench.runs.plan import plan

    seen: set[Path] = set()
    total = 0.0
    yield "\nseconds of one process, from the manifests:"
    for step in steps:
        name = " ".join([step.experiment, *step.overrides])
        try:
            cells = plan(compose_grid(understood(sweep(step, options)[1:], ["sweep"], sweeps=True), experiment_grid=True))
        except UsageError as error:  # what a run refuses too, and has said
            yield f"  {'?':>10}  {name} ({error})"
            continue
        ours = {cell.manifest for cell in cells if cell.manifest is not None} - seen
        seconds = sum((read_manifest(path) or {}).get("seconds") or 0 for path in ours)
        seen |= ours
        total += seconds
        more = f", {len(cells)} cells in all" if len(ours) < len(cells) else ""
        yield f"  {seconds:10,.0f}  {name} ({len(ours)} cells{more})"
    yield f"  {total:10,.0f}  together, {total / 3600:.1f} hours (several processes at a time take less)"


def _run(args: list[str], quiet: bool = False) -> int:
    """One command in a process of its own, so that its model is let go; a Ctrl-C ends all."""
    print(_shown(args), flush=True)
    child = children.start(args, quiet=quiet)
    try:
        code = child.wait()
    finally:
        children.end(child)
    if code == 130:
        raise KeyboardInterrupt
    return code


def _shown(args: list[str]) -> str:
    return shlex.join(["msrnn-bench", *args])

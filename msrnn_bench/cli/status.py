"""`msrnn-bench status`: what has become of the cells of a results folder, who is at them, and how long the rest will take."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msrnn_bench.errors import UsageError
from msrnn_bench.redact import printable
from msrnn_bench.results.leases import BEAT
from msrnn_bench.results.plans import plans
from msrnn_bench.results.states import QUIET, STATES, Look, State, seconds_left

SHOWN = 20  # cells of a state that are listed
EVERY = 2.0  # seconds between two looks
LINE_EVERY = 15.0  # between two lines where there is no terminal


def main(options: Namespace) -> int:
    """Print the states of `options.results_dir`; with `options.watch` again and again, until nothing is left to do."""
    if options.watch not in ("true", "false"):
        raise UsageError(f"watch={options.watch} must be true (until nothing is left to do, or Ctrl-C) or false")
    folder = Path(options.results_dir).expanduser()
    look = Look(folder)
    states = look()
    if not states:
        raise UsageError(f"{folder} has no cells: run `msrnn-bench run` or `msrnn-bench sweep` first, or give another folder")
    if options.watch == "true":
        with contextlib.suppress(KeyboardInterrupt):
            _watch(look, states)
        return 0
    for line in told(folder, _listened(look, states)):
        print(line)
    return 0


def _listened(look: Look, states: list[State]) -> list[State]:
    """The states once every owner on another machine was heard, or was silent for long enough to say so."""
    first = {one.id: one.holder.beat for one in states if one.holder and not one.holder.here}
    begin = time.monotonic()
    while time.monotonic() - begin < QUIET + BEAT / 5:
        if all(one.holder is None or first.get(one.id) != one.holder.beat for one in states):
            break
        time.sleep(BEAT / 5)
        states = look()
    return states


def _watch(look: Look, first: list[State]) -> None:
    """A live picture on a terminal; elsewhere the first line, now and then, when it says something new."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(), auto_refresh=False) as live:
            for states in _looks(look, first):
                live.update(Text("\n".join(told(look.folder, states)), overflow="fold"), refresh=True)
        return
    last, spoken = "", time.monotonic() - LINE_EVERY
    for states in _looks(look, first):
        line = next(told(look.folder, states))
        if line != last and (time.monotonic() - spoken >= LINE_EVERY or _settled(states)):
            print(line, flush=True)
            last, spoken = line, time.monotonic()


def _looks(look: Look, states: list[State]) -> Iterator[list[State]]:
    while True:
        yield states
        if _settled(states):
            return
        time.sleep(EVERY)
        states = look()


def _settled(states: list[State]) -> bool:
    return all(one.state in ("done", "failed") for one in states)


def told(folder: Path, states: list[State]) -> Iterator[str]:
    """One line of all, then a line for each cell that is not simply done, and what can be done about them."""
    count = Counter(one.state for one in states)
    working = sum(one.state == "running" and one.silence < QUIET for one in states)
    left = seconds_left(states)
    about = f"; about {_duration(left)} left with {working} process{'es' * (working > 1)} at work" if left is not None else ""
    counts = ", ".join(f"{count[name]} {name}" for name in STATES if count[name])
    yield f"{folder}: {len(states)} cell{'s' * (len(states) != 1)}, {counts}{about}"
    for name in STATES[1:]:
        listed = [one for one in states if one.state == name]
        width = max((len(_name(one)) for one in listed[:SHOWN]), default=0)
        for one in listed[:SHOWN]:
            yield f"{name:<10}  {_name(one):<{width}}  {_detail(one)}".rstrip()
        if len(listed) > SHOWN:
            yield f"{name:<10}  and {len(listed) - SHOWN} more"
    if count["failed"]:
        yield "a sweep leaves failed cells alone; retry=failed measures them again"
    if (count["unfinished"] or count["missing"]) and not working:
        known = {one.id for one in states if one.state in ("unfinished", "missing")}
        for plan in plans(folder):
            if known & {cell.id for cell in plan.cells}:
                yield f"nobody is at work; this goes on: {_plain(shlex.join(['msrnn-bench', *plan.command]))}"


def _name(one: State) -> str:
    return _plain(one.label) or _plain(one.id)


def _detail(one: State) -> str:
    if one.holder is not None:
        at = one.holder
        share = f"{at.done:,} of {at.total:,} tokens ({100 * at.done / at.total:.0f}%)" if at.total > 0 else "loading"
        quiet = f", no sign of life for {one.silence:.0f} s" if one.silence >= QUIET else ""
        return f"{_plain(at.host)}, process {at.pid}, since {_plain(at.since)}, {share}{quiet}"
    return _plain(one.reason)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _plain(text: str) -> str:
    """What a file says, fit for one line of a terminal."""
    text = " ".join(printable(text).split())
    return text if len(text) <= 160 else text[:157] + "..."

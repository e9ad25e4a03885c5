"""How far a run is: tokens, tokens/s, time left. A live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WORKER = "MSRNN_BENCH_WORKER"  # set in the processes of `workers`, which share one terminal: lines, no bars
EVERY = 15.0  # seconds between lines where there is no terminal


class CellProgress:
    """Cells of a grid and the tokens of the one that runs. Used as a context manager."""

    def __init__(self, cells: int) -> None:
        self.cells, self.number, self.label = cells, 0, ""
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal and WORKER not in os.environ
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, disable=not self.live,
        )  # fmt: skip
        self.all: TaskID | None = None
        self.one: TaskID | None = None
        self.begin = self.spoken = time.monotonic()
        self.tokens = self.total = self.earlier = 0
        self.remaining: Callable[[], int] = lambda: self.cells - self.number  # grid.py knows of other processes' cells
        self.at_first = (time.monotonic(), cells)
        self.tell: Callable[[int, int], None] = lambda done, total: None  # to those who look from elsewhere

    def __enter__(self) -> CellProgress:
        self.bars.start()
        if self.cells > 1:
            self.all = self.bars.add_task("cells", total=self.cells, rate="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def cell(self, number: int, label: str, tell: Callable[[int, int], None] | None = None) -> None:
        """The `number`-th cell begins; `tell(done, total)` hears of its tokens too."""
        self.tell = tell or self.tell
        self.number, self.label = number, label
        self.begin = self.spoken = time.monotonic()
        self.tokens = self.total = self.earlier = 0
        self.one = self.bars.add_task(label, total=None, rate="loading")
        self._say("loading")

    def start(self, tokens: int) -> None:
        """The cell will read this many tokens."""
        self.begin = time.monotonic()
        self.total = tokens
        if self.one is not None:
            self.bars.update(self.one, total=tokens)

    def advance(self, tokens: int) -> None:
        self.tokens += tokens
        rate = self._rate()
        self.tell(self.tokens, self.total)
        if self.one is not None:
            self.bars.update(self.one, completed=self.tokens, rate=f"{rate:,.0f} tokens/s")
        if time.monotonic() - self.spoken > EVERY:
            left = f", {rate:,.0f} tokens/s, {(self.total - self.tokens) / rate:.0f} s left" if rate else ""
            self._say(f"{self.tokens:,} of {self.total:,} tokens{left}")

    def restored(self, tokens: int) -> None:
        """They are done, by an earlier run: no part of this one's pace."""
        self.earlier += tokens
        self.advance(tokens)

    def _rate(self) -> float:
        """Tokens a second of what this run has read."""
        return (self.tokens - self.earlier) / max(time.monotonic() - self.begin, 1e-9)

    def end(self, outcome: str) -> None:
        """The cell is over; `outcome` is what to say of it."""
        if self.one is not None:
            self.bars.remove_task(self.one)
        if self.all is not None:
            self.bars.update(self.all, completed=self.number)
        rate = f", {self._rate():,.0f} tokens/s" if self.tokens > self.earlier else ""
        self._say(f"{outcome}{rate}{self._left()}", always=True)

    def _left(self) -> str:
        """How long the rest will take at the pace so far, other workers' cells counted."""
        if self.cells < 2 or self.live:
            return ""
        begin, cells = self.at_first
        left = self.remaining()
        seconds = (time.monotonic() - begin) * left / max(1, cells - left)
        about = f", about {seconds / 60:.0f} min" if seconds > 90 else ""
        return f"; {left} cells left{about}" if left else ""

    def _say(self, text: str, always: bool = False) -> None:
        self.spoken = time.monotonic()
        if always or not self.live:
            where = f"[{self.number}/{self.cells}] " if self.cells > 1 else ""
            line = f"{where}{self.label}: {text}"
            if self.live:
                self.console.print(line, markup=False, highlight=False)
            else:
                print(line, file=sys.stderr, flush=True)

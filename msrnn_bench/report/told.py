"""Verdicts as tables: `claims.csv` for machines, a few lines a claim for a terminal."""

from __future__ import annotations

import csv
import io
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from msrnn_bench.report.verdict import VERDICTS, Verdict
from msrnn_bench.results.spreadsheet import guarded

COLUMNS = tuple(field.name for field in fields(Verdict))


def as_csv(verdicts: Sequence[Verdict]) -> str:
    """A line a verdict, its columns Verdict's fields; missing is empty, numbers have six digits."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_text(getattr(verdict, name)) for name in COLUMNS] for verdict in verdicts)
    return lines.getvalue()


def _text(value: str | float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else guarded(value)


def as_text(verdicts: Sequence[Verdict], width: int = 100) -> str:
    """What a terminal shows: each claim once, its verdicts below it; last, how many there are of each."""
    blocks = []
    for name in dict.fromkeys(verdict.claim for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.claim == name]
        head = f"{name}: {own[0].sentence} {own[0].place}. Bound: {own[0].bound}. Published: {own[0].published}."
        lines = [line for verdict in own for line in _lines(verdict, width)]
        blocks.append("\n".join([*textwrap.wrap(head, width), *lines]))
    count = Counter(verdict.verdict for verdict in verdicts)
    return "\n\n".join([*blocks, ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS)])


def _lines(verdict: Verdict, width: int) -> list[str]:
    scope = f" ({verdict.scope})" if verdict.scope else ""
    found = textwrap.wrap(f"{verdict.verdict.upper()}{scope}: {verdict.reason}", width - 4)
    if not verdict.scope:
        found.append(f"needs {verdict.needs}")
        found += verdict.command.split("; ")
    return [f"  {'' if n == 0 else '  '}{line}" for n, line in enumerate(found)]

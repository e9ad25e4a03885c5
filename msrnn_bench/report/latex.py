"""The page's tables for a paper: one .tex file each, a `tabular` between booktabs' rules, every name escaped."""

from __future__ import annotations

from collections.abc import Sequence

from msrnn_bench.report.escaping import latex, latex_number, slug
from msrnn_bench.report.tables import Entry, Line, Table
from msrnn_bench.report.telling import number
from msrnn_bench.report.verdict import Verdict

MARK = "% Written by `msrnn-bench report`; needs \\usepackage{booktabs}. XeLaTeX or LuaLaTeX where names go beyond Latin."


def files(folder: str, tables: Sequence[Table]) -> dict[str, str]:
    """File name -> content, of a folder's tables."""
    made = {}
    for place, table in enumerate(tables, start=1):
        name = f"{slug(folder)}-{place:02d}-{slug(table.task)}-{slug(table.metric)}.tex"
        made[name] = _table(table)
    return made


def claims(verdicts: Sequence[Verdict]) -> str:
    """The claims: sentence, verdict, statistic with its interval, bound, scope."""
    rows = [[latex(v.sentence), v.verdict, latex_number(measured(v)), latex(v.bound), latex(v.scope)] for v in verdicts]
    head = ["Claim", "Verdict", "Measured", "Bound [published]", "On"]
    lines = [r"\begin{tabular}{p{0.3\linewidth}lp{0.14\linewidth}p{0.2\linewidth}p{0.18\linewidth}}", r"\toprule", _row(head)]
    return _file([*lines, r"\midrule", *map(_row, rows), r"\bottomrule", r"\end{tabular}"])


def measured(verdict: Verdict) -> str:
    """The statistic with its interval, as text."""
    if verdict.statistic is None:
        return ""
    interval = f" [{number(verdict.low)}, {number(verdict.high)}]" if verdict.low is not None and verdict.high is not None else ""
    return number(verdict.statistic) + interval


def _table(table: Table) -> str:
    width = len(table.sizes)
    lines = [f"% {latex(table.caption)}", rf"\begin{{tabular}}{{l{'r' * width}}}", r"\toprule"]
    lines += [_row(["Policy", *table.sizes]), r"\midrule"]
    for place, group in enumerate(table.groups):
        if group.title:
            lines += [r"\midrule"] * (place > 0)
            lines.append(rf"\multicolumn{{{width + 1}}}{{l}}{{\emph{{{latex(group.title)}}}}} \\")
        for line in group.lines:
            lines += _line(line, width)
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {latex(note)}" for note in table.notes)]
    if table.left_out:
        lines.append(f"% {table.left_out} more lines are in summary.csv")
    return _file(lines)


def _line(line: Line, width: int) -> list[str]:
    """The values, and below them their intervals, small."""
    name = rf"\emph{{{latex(line.name)}}}" if line.kind == "published" else latex(line.name)
    if line.kind == "topline":
        entry = line.entries[0]
        interval = rf" {{\footnotesize ({latex_number(entry.interval)})}}" if entry.interval else ""
        return [rf"{name} & \multicolumn{{{max(width, 1)}}}{{l}}{{{latex_number(entry.value)}{interval}}} \\"]
    made = [_row([name, *(latex_number(entry.value) for entry in line.entries)])]
    if any(entry.interval for entry in line.entries):
        made.append(_row(["", *(_small(entry) for entry in line.entries)]))
    return made


def _small(entry: Entry) -> str:
    return rf"{{\footnotesize {latex_number(entry.interval)}}}" if entry.interval else ""


def _row(entries: Sequence[str]) -> str:
    return " & ".join(entries) + r" \\"


def _file(lines: Sequence[str]) -> str:
    return "\n".join([MARK, *lines]) + "\n"

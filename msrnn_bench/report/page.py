"""Results folders to one HTML file, claims.csv and tables/*.tex beside it. The same results give the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from msrnn_bench import figures
from msrnn_bench.errors import UsageError
from msrnn_bench.redact import printable, redacted
from msrnn_bench.report import choices, citing, claims, drawing, inventory, latex, missing, tables, telling, told
from msrnn_bench.report.drawing import Drawn
from msrnn_bench.report.folders import Folder, Together, named, read, together
from msrnn_bench.report.missing import Command
from msrnn_bench.report.tables import Printed, Table
from msrnn_bench.report.verdict import VERDICTS, Verdict
from msrnn_bench.results.files import write_atomically
from msrnn_bench.results.guarded import RefusedError, contents, no_link

TITLE = "Transformers as bounded multi-state RNNs: what was measured"


@dataclass(frozen=True)
class Part:
    """What the page shows of one folder."""

    id: str
    folder: Folder
    inventory: list[tuple[str, list[str]]]
    drawn: list[Drawn]
    tables: list[Table]
    printed: list[Printed]
    note: str | None

    @property
    def more(self) -> int:
        return sum(not table.first for table in self.tables)

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(f"{table.task} {table.metric}" for table in self.tables if not table.first))


def write(results_dir: str, out: str | None, command: Command) -> list[Path]:
    """Read the folders of `results_dir`, write the page (to `out`, else report.html in the first folder) and what stands
    beside it; returns the paths. `command` says what would measure a cell. Refuses a page that would be too large."""
    paths = named(results_dir)
    file = Path(out).expanduser() if out else paths[0] / "report.html"
    if file.is_dir() or file.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"out={out} is no HTML file: write out=report.html")
    folders = read(paths)
    whole = together(folders)
    verdicts = claims.judge(whole.rows, whole.summary)
    parts, page = _page(folders, whole, verdicts, command)
    if len(page.encode()) > drawing.ROOM:
        raise UsageError(
            f"the report would have {len(page.encode()) / 1e6:.1f} MB, more than {drawing.ROOM / 1e6:g}: report fewer folders "
            "at a time, results_dir=A"
        )
    made = {f"tables/{name}": text for part in parts for name, text in latex.files(part.folder.name, part.tables).items()}
    made |= {"claims.csv": told.as_csv(verdicts), "tables/claims.tex": latex.claims(verdicts)}
    _remove_stale(no_link(file.parent / "tables"), set(made))
    for name, text in made.items():
        write_atomically(file.parent / name, redacted(text))
    write_atomically(file, redacted(page))
    return [file, *(file.parent / name for name in sorted(made))]


def _page(folders: Sequence[Folder], whole: Together, verdicts: Sequence[Verdict], command: Command) -> tuple[list[Part], str]:
    parts, undrawn = [], []
    for place, folder in enumerate(folders, start=1):
        drawn, lost = drawing.draw(folder, f"f{place}-")
        undrawn += lost
        note = figures.note(folder.summary)
        shown = tables.make(folder.summary), tables.printed(folder.summary)
        parts.append(Part(f"results-{place}", folder, inventory.read(folder), drawn, *shown, note))
    shared = drawing.draw_together(folders, whole, {one.name for part in parts for one in part.drawn})
    undrawn = [one for one in undrawn if one.name not in {drawn.name for drawn in shared}]
    known = {
        "title": TITLE, "css": _beside("page.css"), "lead": _lead(folders, whole), "claims": _by_claim(verdicts), "parts": parts,
        "shared": shared, "missing": missing.find(folders, whole, undrawn, command), "citation": citing.read(),
        "counts": [(name, sum(verdict.verdict == name for verdict in verdicts)) for name in VERDICTS],
        "unmeasured": sum(verdict.verdict == VERDICTS[-1] for verdict in verdicts), "choices": choices.choices(whole.rows),
        "contents": _contents(parts, bool(shared)), "beside": "claims.csv, tables/*.tex",
    }  # fmt: skip
    template = _environment().get_template("page.html.jinja")
    pictures = [one for part in parts for one in part.drawn] + shared
    drawing.fit(pictures, lambda: len(template.render(known).encode()))
    return parts, template.render(known)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=_finalized,
    )  # fmt: skip
    environment.filters |= {"made": Markup, "measured": latex.measured, "number": telling.number}
    return environment


def _finalized(value: Any) -> Any:
    """Every text that is not markup of our own, without what would steer the page."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _contents(parts: Sequence[Part], shared: bool) -> list[tuple[str, str]]:
    before = [("claims", "The paper's claims"), ("choices", "Open choices"), ("run", "What was run")]
    before += [("together", "Across folders")] if shared else []
    results = [(part.id, f"Results: {part.folder.name}") for part in parts]
    return [*before, *results, ("missing", "What is missing"), ("cite", "How to cite")]


def _lead(folders: Sequence[Folder], whole: Together) -> list[str]:
    """What the page is made of, in two sentences."""
    cells = whole.rows["cell"].nunique()
    models = telling.several(sorted(set(whole.rows["model"]), key=lambda name: (str(name).endswith("(twin)"), name)))
    tasks = sorted(set(whole.rows["task"]))
    names = ", ".join(folder.name for folder in folders)
    number = "one folder" if len(folders) == 1 else f"{len(folders)} folders, side by side and not pooled"
    return [
        f"{cells:,} finished cell{'s' * (cells != 1)} of {models or 'no model'} ({', '.join(tasks) or 'no task'}) "
        f"from {number}: {names}.",
        "Intervals are 95% intervals over documents; of another model, seed or kind of text they say nothing.",
    ]


def _by_claim(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Verdicts on the same claim together, in the order given."""
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.claim, []).append(verdict)
    return list(found.values())


def _remove_stale(folder: Path, names: set[str]) -> None:
    """Tables that an earlier report wrote and this one does not: their numbers would be old ones."""
    for file in sorted(folder.glob("*.tex")):
        if f"tables/{file.name}" in names:
            continue
        with contextlib.suppress(RefusedError):  # no file that a report wrote
            if contents(file).startswith(latex.MARK.encode()):
                file.unlink()


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")

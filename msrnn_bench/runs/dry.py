"""`dry_run=true`: the plan of a grid as plain lines, with the arithmetic behind every number that is not a count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from msrnn_bench.runs.plan import Planned, plan, rate

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
GROUPED = ("policy", "cache", "model", "dataset", "task", "experiment")  # overrides that a line's place already says


def show(points: list[tuple[list[str], DictConfig]]) -> int:
    """Print the plan; returns the exit code."""
    cells = plan(points)
    for line in lines(cells, points[0][1].workers):
        print(line)
    return 0


def lines(cells: list[Planned], workers: int) -> Iterator[str]:
    """Everything there is to say."""
    done = sum(cell.finished for cell in cells)
    yield "dry run: nothing is loaded, fetched, converted or written"
    yield f"{len(cells)} cells, {done} finished already, {len(cells) - done} to do"
    groups: dict[tuple[str, ...], list[Planned]] = defaultdict(list)
    for cell in cells:
        job = cell.job
        groups[(str(cell.folder), cell.name, job.dataset.name, job.model.name, job.dtype, str(job.context))].append(cell)
    for group in groups.values():
        yield ""
        yield from _group(group, workers)
    notes = _notes(cells)
    if notes:
        yield ""
        yield from (f"note: {note}" for note in notes)


def _group(cells: list[Planned], workers: int) -> Iterator[str]:
    """The cells of one task, dataset, model, dtype and context."""
    job, todo = cells[0].job, [cell for cell in cells if not cell.finished]
    what = f"task={cells[0].name}" + ("" if job.dataset.name == "none" else f", {job.dataset.name}")
    yield f"{job.model.name}, {what}, {job.dtype}, context {job.context:,} ({cells[0].folder})"
    yield from _sizes(cells)
    if todo:
        yield from (f"  {line}" for line in (_tokens(todo), *_memory(todo), _download(todo[0].facts), _hours(todo, workers)))


def _sizes(cells: list[Planned]) -> Iterator[str]:
    """A line for each policy and each other setting that is swept."""
    table: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    swept = _swept(cells)
    for cell in cells:
        more = " ".join(o for o in cell.point if o.partition("=")[0] in swept)
        label = f"{cell.job.policy.name} {more}".strip()
        table[label][cell.finished].append("whole" if cell.job.cache is None else str(cell.job.cache))
    width = max(map(len, table))
    for label, sizes in table.items():
        told = [f"{word} {', '.join(sizes[done])}" for done, word in ((False, "to do:"), (True, "finished:")) if sizes[done]]
        yield f"  {label:{width}}  {'; '.join(told)}"


def _swept(cells: list[Planned]) -> set[str]:
    values: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        for override in cell.point:
            key, _, value = override.partition("=")
            values[key].add(value)
    return {key for key, found in values.items() if len(found) > 1} - set(GROUPED)


def _total(cells: list[Planned]) -> int | None:
    known = [cell.work for cell in cells]
    return None if None in known else sum(work.tokens for work in known if work is not None)


def _tokens(todo: list[Planned]) -> str:
    total = _total(todo)
    if total is None:
        return "tokens: not known (the task does not tell, or its text is not here)"
    hows = sorted({cell.work.how for cell in todo if cell.work is not None})
    return f"tokens: {total:,} ({'; '.join(hows)})"


def _memory(todo: list[Planned]) -> Iterator[str]:
    """Weights, states and logits by arithmetic; what operations need in between is not in it."""
    job, facts = todo[0].job, todo[0].facts
    size = BYTES[job.dtype]
    if facts.parameters is None:
        yield "memory: the model's size is not known before its files are here"
        return
    parts, total = [f"{facts.parameters:,} parameters x {size} bytes"], facts.parameters * size
    largest = max(todo, key=lambda cell: _states(cell))
    works = [cell.work for cell in todo if cell.work is not None]
    if facts.per_state is not None:
        numbers = _states(largest)
        total += numbers * facts.per_state * size
        parts.append(f"{numbers:,} states x {facts.per_state:,} numbers x {size} bytes")
    else:
        parts.append("states not known")
    if works and facts.vocabulary:
        rows = max(work.logits for work in works)
        total += rows * facts.vocabulary * size
        parts.append(f"logits of {rows:,} tokens x {facts.vocabulary:,} x {size} bytes")
    yield f"memory: at least {_bytes(total)} ({' + '.join(parts)})"


def _states(cell: Planned) -> int:
    """States held at a time in a layer: of all rows of a batch."""
    held = cell.job.context if cell.job.cache is None else min(cell.job.cache, cell.job.context)
    return held * (cell.work.rows if cell.work is not None else 1)


def _download(facts: Any) -> str:
    size = "size not known here" if facts.download is None else _bytes(facts.download) if facts.download else "nothing"
    gated = "; gated: accept its licence on its hub page, then `hf auth login`" if facts.gated else ""
    return f"download: {size}{gated}"


def _hours(todo: list[Planned], workers: int) -> str:
    """Tokens by the rate of finished cells, or of older ones; where no tokens are told, cells by their seconds."""
    job, total = todo[0].job, _total(todo)
    found = rate(todo[0].folder, todo[0].name, job.model.name, job.dtype, job.context)
    known = todo[0].facts.rates.get(todo[0].name) if todo[0].facts.rates_of.get("dtype") == job.dtype else None
    if found is not None and total is not None and found.tokens:
        per_second = found.tokens / found.seconds
        what = f"{found.tokens:,} tokens in {found.seconds:,.0f} s of {found.cells} finished cells of the folder"
        return f"hours: about {_time(total / per_second, workers)}, at {per_second:,.0f} tokens/s: {what}"
    if found is not None:
        each = found.seconds / found.cells
        return f"hours: about {_time(len(todo) * each, workers)}, at {each:,.0f} s a cell, as {found.cells} finished ones here"
    if known and total is not None:
        return f"hours: about {_time(total / known, workers)}, at {known:,.0f} tokens/s: {todo[0].facts.rates_of['where']}"
    return "hours: no estimate, for no cell of this task, model, dtype and context has finished here"


def _time(seconds: float, workers: int) -> str:
    hours = seconds / 3600
    shared = f" (workers={workers}: {hours / workers:,.1f})" if workers > 1 else ""
    return f"{hours:,.1f} of one process{shared}"


def _notes(cells: list[Planned]) -> list[str]:
    """What a run would fetch or convert, and what follows for this page; each once."""
    notes: list[str] = []
    for cell in cells:
        notes += cell.facts.notes
        if cell.absent is not None:
            notes += [cell.absent, f"what is finished in {cell.folder} was told by its configuration, for an id needs that"]
        data = getattr(cell.job.dataset, "facts", None)
        if cell.absent is not None and data:
            notes.append(
                f"dataset {cell.job.dataset.name}: {_bytes(int(data['download']))} to download, {data['documents']} documents "
                f"(as looked up on {data['looked_up']})"
            )
    return list(dict.fromkeys(notes))


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} bytes"

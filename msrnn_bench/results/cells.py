"""What a measurement leaves on disk: rows, the cell they belong to, its manifest; and how they come back.

Knows the schema and the files, not what was measured, how rows become a perplexity (summary.py does) or torch.
Imports no pandas: skipping finished cells stays fast.
"""

import csv
import hashlib
import io
import json
import logging
import math
import secrets
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from msrnn_bench.errors import MachineError
from msrnn_bench.redact import redacted, redacted_values, redactor
from msrnn_bench.results.files import TEMPORARY, write_atomically
from msrnn_bench.results.guarded import RefusedError, contents, name_of, no_link, plain
from msrnn_bench.results.shape import misfit

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric over one position bucket of one document: sufficient statistics, and what they were measured under.

    mean = sum(total) / sum(count) over any set of rows; perplexity = exp of the mean of `nll`. None is missing: an
    empty field in the file, never 0. This class is the schema of the writer, the reader and the tests.
    """

    cell: str
    task: str
    dataset: str
    model: str
    weights: str  # pretrained | random
    policy: str
    memory: float | None = None
    first: int | None = None
    recent: int | None = None
    per: str | None = None  # layer | head
    cache: int | None = None  # the state size k; None for the full model, whose one topline serves all sizes
    context: int
    seed: int
    bos: bool
    dtype: str
    engine: str
    prefill: str
    positions: str
    template: str | None = None  # plain | chat: how a task's prompt is worded to the model; None where there is no prompt
    document: str
    subtask: str | None = None  # which of a task's kinds (retrieval, lm_eval)
    length: int | None = None  # tokens of a haystack
    depth: float | None = None  # where in it the answer stands, 0 its beginning, 1 its end
    bucket_start: int  # target positions [start, end) inside the chunk; of an answer, those of its tokens
    bucket_end: int
    metric: str  # nll | kl | top1_agreement | accuracy | f1 | rouge1 | ...
    total: float | None
    count: int
    evictions: int | None = None  # per layer
    first_eviction: int | None = None  # counted from 0
    max_states: int | None = None  # after eviction, so at most k
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    state_bytes: int | None = None
    status: str = "ok"

    def __post_init__(self) -> None:
        measured = self.total is not None and math.isfinite(self.total) and self.count > 0
        if self.status == "ok" and not measured:
            raise ValueError(
                f"{self.metric} of {self.document!r} is {self.total} over {self.count}: what could not be measured "
                "needs a status that says so"
            )


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Row))
SETTINGS: tuple[str, ...] = COLUMNS[: COLUMNS.index("document")]  # constant within a cell
RENAMED = {"rouge": "rouge_per_answer"}  # a metric's name in older cells -> today's; `rouge` is made of three by the summary
LATER = ("template", "subtask", "length", "depth")  # columns younger than the first cells: absent is empty


def _column_types() -> dict[str, tuple[str, bool]]:
    """Column -> (pandas dtype, may be empty), read off Row's annotations."""
    names = {str: "str", int: "Int64", float: "float64", bool: "boolean"}
    columns = {}
    for column, hint in typing.get_type_hints(Row).items():
        options = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
        columns[column] = (names[options[0]], type(None) in options)
    return columns


COLUMN_TYPES = _column_types()
_KINDS = {"str": (str,), "Int64": (int,), "float64": (int, float), "boolean": (bool,)}
_ROW = {column: (*_KINDS[kind], type(None)) for column, (kind, _) in COLUMN_TYPES.items()}  # as a manifest has them


def cell_id(settings: Mapping[str, Any]) -> str:
    """16 hex digits that stand for these settings; 1 and 1.0 are the same setting, the order of keys is none."""
    text = json.dumps(_canonical(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@dataclass(frozen=True)
class Cell:
    """One point of the grid and its two files; `label` is for people and in no path. A `shard` (i, n) is the i-th part of n,
    counted from 0: its lease and its journal are its own, all else is the cell's."""

    results_dir: Path
    task: str
    label: str
    id: str
    shard: tuple[int, int] | None = None

    @property
    def csv(self) -> Path:
        return self.results_dir / "cells" / f"{self.id}.csv"

    @property
    def manifest(self) -> Path:
        return self.results_dir / "cells" / f"{self.id}.json"

    @property
    def lease(self) -> Path:
        return self.results_dir / "cells" / f".{self._part}.lease"

    @property
    def journal(self) -> Path:
        return self.results_dir / "cells" / (f"{self.id}.jsonl" if self.shard is None else f".{self._part}.jsonl")

    @property
    def whole(self) -> "Cell":
        """The cell that it is a part of."""
        return replace(self, shard=None)

    @property
    def told(self) -> str:
        """The label, and which part of the cell."""
        return self.label if self.shard is None else f"{self.label}, part {self.shard[0] + 1} of {self.shard[1]}"

    @property
    def _part(self) -> str:
        return self.id if self.shard is None else f"{self.id}.shard-{self.shard[0] + 1}-of-{self.shard[1]}"


def finished(cell: Cell) -> bool:
    """Whether the cell needs no work: its manifest says ok and its rows are there, as they were written."""
    manifest = read_manifest(cell.manifest) or {}
    return manifest.get("status") == "ok" and intact(cell.csv, manifest)


def intact(rows: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the rows are those that the manifest was written for: not cut short, not edited. Older manifests cannot tell."""
    try:
        known = manifest.get("rows_sha256")
        return hashlib.sha256(contents(rows)).hexdigest() == known if known else plain(rows)
    except (OSError, RefusedError):
        return False


def write(cell: Cell, rows: Iterable[Row], manifest: Mapping[str, Any]) -> None:
    """Rows first, manifest last: the manifest's appearance is what makes the cell finished."""
    rows = list(rows)
    settings = {tuple(getattr(row, name) for name in SETTINGS) for row in rows}
    if len(settings) != 1 or rows[0].cell != cell.id:
        raise ValueError(f"cell {cell.id} ({cell.label}) needs rows of its own, all under the same settings")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    clean = cache(redactor())  # of names, which repeat
    writer.writerows([_text(getattr(row, column), clean) for column in COLUMNS] for row in rows)
    data = lines.getvalue().encode("utf-8", "backslashreplace")
    write_atomically(cell.csv, data)
    _write_manifest(cell, {**manifest, "rows_sha256": hashlib.sha256(data).hexdigest()}, status="ok")


def write_failure(cell: Cell, manifest: Mapping[str, Any]) -> None:
    """Only a manifest, whose `row` holds the cell's SETTINGS so that the summary can name what failed."""
    _write_manifest(cell, manifest, status="failed")
    cell.csv.unlink(missing_ok=True)  # rows of an earlier success would contradict the manifest


def _text(value: Any, clean: Callable[[str], str]) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return clean(value)
    return repr(float(value)) if isinstance(value, float) else str(value)  # float(): numpy's repr names its type


def _write_manifest(cell: Cell, manifest: Mapping[str, Any], status: str) -> None:
    named = {"cell": cell.id, "task": cell.task, "label": cell.label, "status": status}
    told = {**redacted_values({**named, **manifest}), **named, "label": redacted(cell.label)}
    text = json.dumps(told, indent=2, default=lambda held: redacted(str(held)), allow_nan=False)
    write_atomically(cell.manifest, text + "\n")


def check_writable(results_dir: Path) -> None:
    """Find out before an hour of computing, not after it. Tried, not asked: permission bits are not the whole story."""
    probe = no_link(results_dir / "cells") / f".probe.{secrets.token_hex(4)}{TEMPORARY}"
    write_atomically(probe, "")
    probe.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What a manifest holds; None where there is none, or one that cannot be used, which is said, once a process.

    It may be anybody's: only an ordinary file is opened (guarded.py), and only what has a manifest's shape comes back."""
    try:
        manifest = json.loads(contents(path).decode(), parse_constant=_no_number, parse_float=_number)
        wrong = misfit(manifest, _ROW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RefusedError as error:
        wrong = str(error)
    except (ValueError, RecursionError):
        wrong = "is damaged"
    except OSError as error:
        raise MachineError(f"cannot read {path} ({error.strerror}): check the folder's permissions") from error
    if wrong:
        unfinished(path, wrong)
        return None
    return dict(manifest)


@cache
def unfinished(path: Path, wrong: str) -> None:
    """Say why a cell that is begun does not count; once a process, however often it is looked at."""
    log.warning("%s %s: the cell counts as unfinished, its next run redoes it", name_of(path), wrong)


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")

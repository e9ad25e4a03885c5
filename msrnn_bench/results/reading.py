"""The cells of a results folder, read back: every row typed and checked, or the file named that does not fit.

Knows the schema of cells.py and the files, not what was measured.
"""

import csv
import io
import typing
from pathlib import Path
from typing import Any, NamedTuple

from msrnn_bench.errors import UsageError
from msrnn_bench.results.cells import COLUMN_TYPES, COLUMNS, LATER, RENAMED, SETTINGS, intact, read_manifest, unfinished
from msrnn_bench.results.guarded import listed, opened, plain
from msrnn_bench.results.shape import impossible

if typing.TYPE_CHECKING:
    import pandas as pd


class Cells(NamedTuple):
    """What a results folder holds: the rows of its finished cells, the manifests of those that failed."""

    rows: "pd.DataFrame"
    failures: list[dict[str, Any]]


def read_cells(results_dir: Path, *others: Path) -> Cells:
    """All cells, in an order that depends on nothing but what they hold. Unfinished ones are left to the next run.

    Rows have a column more than in a cell's file, `variant` (variants.py). Of a cell in several folders the first's count."""
    from msrnn_bench.results.variants import TELLING, tell_apart, warn_of_versions

    paths, failures = [], []
    manifests: dict[str, dict[str, Any]] = {}
    for path in [path for folder in (results_dir, *others) for path in listed(folder, ".json")]:
        manifest = None if path.stem in manifests else read_manifest(path)
        if manifest is None:
            continue
        rows = path.with_suffix(".csv")
        if manifest.get("status") != "ok":
            failures.append({**manifest, "cell": path.stem})
        elif intact(rows, manifest):
            paths.append(rows)
            manifests[path.stem] = {key: manifest[key] for key in TELLING if key in manifest}
        else:
            unfinished(path, "has beside it rows that are not those that were written" if plain(rows) else "has no file of rows")
    frame = _typed([(path, line) for path in paths for line in _read_lines(path)])
    if odd := impossible(frame):
        raise _misfit(next(path for path in paths if path.stem == odd[0]), odd[1])
    warn_of_versions(manifests)
    frame = tell_apart(frame, manifests)
    order = [*SETTINGS[1:], "variant", "cell"]  # the rows of a cell keep the order in which they were measured
    failures = [failure for failure in failures if failure["cell"] not in manifests]
    return Cells(frame.sort_values(order, kind="stable", ignore_index=True), failures)


def _read_lines(path: Path) -> list[list[str]]:
    try:
        with io.TextIOWrapper(opened(path), encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        raise _misfit(path, f"not a table ({error})") from error
    wanted = [column for column in COLUMNS if column in header or column not in LATER]
    if header != wanted:
        odd = sorted(set(header) ^ set(wanted)) or ["their order"]
        raise _misfit(path, f"its columns are not those of this version ({', '.join(odd)})")
    if not lines or any(len(line) != len(header) for line in lines):
        raise _misfit(path, "rows are missing or cut short")
    place = [header.index(column) if column in header else None for column in COLUMNS]
    return [["" if at is None else line[at] for at in place] for line in lines]


def _misfit(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path}: {reason}; delete it with its .json and run the cell again")


def _typed(lines: list[tuple[Path, list[str]]]) -> "pd.DataFrame":
    """Text to typed columns, all cells at once; the first value that does not fit is blamed on its file."""
    import pandas as pd
    import pandera.pandas as pa

    frame = pd.DataFrame([line for _, line in lines], columns=list(COLUMNS), dtype="str")
    frame = frame.mask(frame == "")
    frame["metric"] = frame["metric"].replace(RENAMED)
    frame["bos"] = frame["bos"].map({"True": True, "False": False}).astype("boolean")
    columns = {name: pa.Column(kind, nullable=empty, coerce=True) for name, (kind, empty) in COLUMN_TYPES.items()}
    columns["weights"].checks = [pa.Check.isin(["pretrained", "random"])]
    columns["per"].checks = [pa.Check.isin(["layer", "head"])]
    columns["count"].checks = [pa.Check.ge(0)]
    columns["cell"].checks = [pa.Check(lambda cells: cells == [path.stem for path, _ in lines], name="own file")]
    try:
        return pa.DataFrameSchema(columns, strict=True, ordered=True).validate(frame, lazy=True)
    except pa.errors.SchemaErrors as errors:
        first = errors.failure_cases.dropna(subset="index").iloc[0]
        found = f"{first['column']} = {first['failure_case']!r} fails {first['check']}"
        raise _misfit(lines[int(first["index"])][0], found) from errors

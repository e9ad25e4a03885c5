"""The cells of a results folder, read back: every row typed and checked, or the file named that does not fit.

Knows the schema of cells.py and the files, not what was measured. Made for ten thousand cells: what the rows of a cell share is
read once for all of them, the rest of all cells in one pass, and a text that stands in many rows is converted once.
"""

import contextlib
import csv
import gc
import io
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msrnn_bench.errors import UsageError
from msrnn_bench.results.cells import COLUMN_TYPES, COLUMNS, LATER, RENAMED, SETTINGS, intact, read_manifest, unfinished
from msrnn_bench.results.guarded import contents, listed, opened, plain
from msrnn_bench.results.shape import impossible

if typing.TYPE_CHECKING:
    import pandas as pd

OWN = COLUMNS[len(SETTINGS) :]  # what of a row is its own; the settings before it are the same in all rows of a cell
_HEADER = ",".join(COLUMNS)


class Cells(NamedTuple):
    """What a results folder holds: the rows of its finished cells, the manifests of those that failed."""

    rows: "pd.DataFrame"
    failures: list[dict[str, Any]]


class _File(NamedTuple):
    """A cell's file as text: the settings that its rows share, and each row's own part."""

    path: Path
    settings: str
    rows: list[str]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cycles, which would go through ten thousand manifests again and again (a tenth of the time)."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@uncollected()
def read_cells(results_dir: Path, *others: Path) -> Cells:
    """All cells, in an order that depends on nothing but what they hold. Unfinished ones are left to the next run.

    Rows have a column more than in a cell's file, `variant` (variants.py). Of a cell in several folders the first's count."""
    import pandas as pd

    from msrnn_bench.results.variants import TELLING, tell_apart, warn_of_versions

    files, failures = [], []
    manifests: dict[str, dict[str, Any]] = {}
    for path in [path for folder in (results_dir, *others) for path in listed(folder, ".json")]:
        manifest = None if path.stem in manifests else read_manifest(path)
        if manifest is None:
            continue
        rows = path.with_suffix(".csv")
        if manifest.get("status") != "ok":
            failures.append({**manifest, "cell": path.stem})
        elif intact(rows, manifest):
            files.append(_read(rows))
            manifests[path.stem] = {key: manifest[key] for key in TELLING if key in manifest}
        else:
            unfinished(path, "has beside it rows that are not those that were written" if plain(rows) else "has no file of rows")
    cells = _typed(SETTINGS, [file.settings for file in files], [file.path for file in files])
    warn_of_versions(cells, manifests)
    cells = tell_apart(cells, manifests).sort_values([*SETTINGS[1:], "variant", "cell"], kind="stable")
    files = [files[n] for n in cells.index]  # the rows of a cell keep the order in which they were measured
    own = _typed(OWN, [row for file in files for row in file.rows], [file.path for file in files for _ in file.rows])
    shared = cells.loc[cells.index.repeat([len(file.rows) for file in files])].reset_index(drop=True)
    frame = pd.concat([shared[list(SETTINGS)], own, shared["variant"]], axis=1)
    if odd := impossible(frame):
        raise _misfit(next(file.path for file in files if file.path.stem == odd[0]), odd[1])
    return Cells(frame, [failure for failure in failures if failure["cell"] not in manifests])


def read_rows(path: Path) -> "pd.DataFrame":
    """The rows of one cell's file, as `read_cells` has them; what its namesakes in the folder are plays no part."""
    import pandas as pd

    file = _read(path)
    settings = _typed(SETTINGS, [file.settings] * len(file.rows), [path] * len(file.rows))
    own = _typed(OWN, file.rows, [path] * len(file.rows))
    return pd.concat([settings, own], axis=1).assign(variant=pd.Series(pd.NA, dtype="str"))


def _read(path: Path) -> _File:
    """The text of a cell's file, seen to have all fields of all rows."""
    try:
        return _plain(path, contents(path).decode("utf-8")) or _parsed(path)
    except (OSError, ValueError, csv.Error) as error:
        raise _misfit(path, f"not a table ({error})") from error


def _plain(path: Path, text: str) -> _File | None:
    """Of a file as `write` makes them today, without a quote, which nearly all are: its settings stand alike at the beginning of
    every line and are cut off. None of any other."""
    header, _, body = text.removesuffix("\n").partition("\n")
    settings = ",".join(body.split(",", len(SETTINGS))[:-1])
    before, *rows = f"\n{body}".split(f"\n{settings},")
    whole = before == "" and len(rows) == body.count("\n") + 1 and {row.count(",") for row in rows} == {len(OWN) - 1}
    plain = header == _HEADER and not any(mark in text for mark in '"\r\0')
    return _File(path, settings, rows) if whole and plain else None


def _parsed(path: Path) -> _File:
    """The same of any other file: of an older version, or with text that CSV has to quote."""
    with io.TextIOWrapper(opened(path), encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file, strict=True)
    wanted = [column for column in COLUMNS if column in header or column not in LATER]
    if header != wanted:
        odd = sorted(set(header) ^ set(wanted)) or ["their order"]
        raise _misfit(path, f"its columns are not those of this version ({', '.join(odd)})")
    if not lines or any(len(line) != len(header) for line in lines):
        raise _misfit(path, "rows are missing or cut short")
    place = [header.index(column) if column in header else None for column in COLUMNS]
    full = [["" if at is None else line[at] for at in place] for line in lines]
    settings = {_line(line[: len(SETTINGS)]) for line in full}
    if len(settings) > 1:
        raise _misfit(path, "its rows are not all under the same settings")
    return _File(path, settings.pop(), [_line(line[len(SETTINGS) :]) for line in full])


def _line(fields: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL).writerow(fields)
    return text.getvalue()


def _misfit(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path}: {reason}; delete it with its .json and run the cell again")


def _typed(columns: Sequence[str], lines: Sequence[str], paths: Sequence[Path]) -> "pd.DataFrame":
    """Lines of text to typed columns; the first value of a column that does not fit is blamed on its line's file."""
    import numpy as np
    import pandas as pd

    content = io.BytesIO("\n".join(lines or ["," * (len(columns) - 1)]).encode())
    how: Any = {"header": None, "index_col": False, "dtype": "object", "keep_default_na": False, "na_values": [""]}
    table = pd.read_csv(content, names=list(columns), **how).iloc[: len(lines)]
    for name in columns:
        kind: Any
        kind, may_be_empty = COLUMN_TYPES[name]
        parse = _PARSE.get(name, _PARSE[kind])
        codes, uniques = pd.factorize(table[name])  # numbered as they first stand there, -1 where the field is empty
        texts, values = uniques.tolist(), []
        with contextlib.suppress(ValueError, KeyError):
            for text in texts:
                values.append(parse(text))
        wrong = codes == len(values)  # the first that could not be read
        if not may_be_empty:
            wrong |= codes == -1
        if name == "cell":
            wrong |= np.array([path.stem for path in paths], dtype="object") != table[name].to_numpy("object")
        if wrong.any():
            at = int(wrong.argmax())
            found = repr(texts[codes[at]]) if codes[at] >= 0 else "nothing"
            raise _misfit(paths[at], f"{name} = {found} is not what may stand there")
        table[name] = pd.array([*values, None], dtype=kind).take(codes)
    return table


def _whole(text: str) -> int:
    value = int(text)
    if abs(value) >= 2**63:
        raise ValueError("no room for it in a column")
    return value


def _some(text: str) -> int:
    if _whole(text) < 0:
        raise ValueError("fewer than none")
    return int(text)


# What a field may say: by its column's type, or as its column has it.
_PARSE: dict[str, Callable[[str], Any]] = {
    "str": str, "Int64": _whole, "float64": float, "boolean": {"True": True, "False": False}.__getitem__,
    "weights": {name: name for name in ("pretrained", "random")}.__getitem__,
    "per": {name: name for name in ("layer", "head")}.__getitem__, "metric": lambda text: RENAMED.get(text, text), "count": _some,
}  # fmt: skip

"""Tables as CSV in which no spreadsheet finds a formula, and back.

A field that begins with = + - or @ is run by a spreadsheet that opens the file, though it is the name of a document. Such a
text gets an apostrophe in front; numbers, negative ones too, are left alone. `read` takes the apostrophe off again.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from msrnn_bench.results.guarded import contents

# Where a field begins, be it in a country whose spreadsheets separate fields by ; or a tab; and what begins a formula there.
_BEGIN, _FORMULA = r"(^|[;\t\r\n])", "[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]"
_RISKY = re.compile(f"{_BEGIN}('*)(?={_FORMULA})")
_GUARDED = re.compile(f"{_BEGIN}('*)'(?={_FORMULA})")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def guarded(text: str) -> str:
    """A text that is one in every spreadsheet."""
    return text if _NUMBER.fullmatch(text) else _RISKY.sub(r"\1\2'", text)


def unguarded(text: str) -> str:
    """What `guarded` was given."""
    return _GUARDED.sub(r"\1\2", text)


def harmless(table: pd.DataFrame) -> pd.DataFrame:
    """The table, to be written: its texts guarded."""
    return mapped(table, guarded)


def read(path: Path) -> pd.DataFrame:
    """What `harmless` was given, from a file, without its types. OSError and ValueError as pandas raises them."""
    return mapped(pd.read_csv(io.BytesIO(contents(path))), unguarded)


def mapped(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with its texts changed; each is looked at once, for a column repeats few."""
    made: dict[str, pd.Series] = {}
    for name, column in table.items():
        if pd.api.types.is_string_dtype(column.dtype) or pd.api.types.is_object_dtype(column.dtype):
            texts = {text for text in column.unique() if isinstance(text, str)}
            changed = {text: new for text in texts if (new := change(text)) != text}
            if changed:
                made[str(name)] = column.replace(changed)
    return table.assign(**made) if made else table

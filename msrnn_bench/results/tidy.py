"""A large table as CSV, byte for byte what pandas writes, in less time and memory: a value that stands in many rows is turned to
text once. Knows nothing of what is in the table."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pandas as pd

BLOCK = 20_000  # rows that are text at a time


def as_csv(table: pd.DataFrame) -> bytes:
    """What `table.to_csv(index=False, lineterminator="\\n")` is, encoded."""
    columns = [_texts(table[name]) for name in table]
    written = [(",".join(map(_quoted, table.columns)) + "\n").encode()]
    for begin in range(0, len(table), BLOCK):
        fields = (texts[codes[begin : begin + BLOCK]] for codes, texts in columns)
        lines = "\n".join(map(",".join, zip(*fields, strict=True)))
        written.append(f"{lines}\n".encode("utf-8", "backslashreplace"))
    return b"".join(written)


def _texts(column: pd.Series) -> tuple[Any, Any]:
    """For each row the place of its text, and the texts; the last is that of what is missing, whose place is -1."""
    codes, values = pd.factorize(column)
    make = _quoted if column.dtype == "str" else str
    return codes, np.array([*map(make, values.tolist()), ""], dtype="object")


def _quoted(text: str) -> str:
    if not any(mark in text for mark in ',"\r\n'):
        return text
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow((text, ""))
    return line.getvalue()[: -len(",\n")]

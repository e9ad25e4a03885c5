"""What a cell has done so far, an example or a document a line: a killed run goes on from it. When the cell is finished it
stays as the file of predictions beside the rows, or goes where the rows say all of it (`keeps_journal = False` of a task).
Knows nothing of what the records mean.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn_bench.errors import StorageError, UsageError
from msrnn_bench.redact import redacted, redacted_values
from msrnn_bench.results.guarded import RefusedError, contents, name_of

if TYPE_CHECKING:
    import numpy as np


class Journal:
    """Records by key, in `path` (JSON lines). A line is there whole or, after a kill in the middle of it, ignored.

    `earlier`: other journals of the same cell, the first before the next; what is asked for and stands in one of them is taken
    over, so that `path` has all that was asked for, in that order. They are only read."""

    def __init__(self, path: Path, earlier: Sequence[Path] = ()) -> None:
        self.path = path
        self.records, self.whole = _read(path)
        self.earlier: dict[str, dict[str, Any]] = {}
        for other in reversed(earlier):
            self.earlier |= _read(other)[0]

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of that key, or None where it is still to be made."""
        key = redacted(key)
        if key not in self.records and key in self.earlier:
            return self.add(key, self.earlier.pop(key))
        return self.records.get(key)

    def add(self, key: str, record: dict[str, Any]) -> dict[str, Any]:
        """Write a record; it is on the disk when this returns. Returns it as it would be read back."""
        key, record = redacted(key), redacted_values(record)
        line = json.dumps({"key": key, **record}, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(self.whole)
                file.seek(self.whole)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"cannot write {self.path} ({error.strerror}): free some space or choose another results_dir"
            ) from error
        self.whole += len(line.encode())
        self.records[key] = {k: v for k, v in json.loads(line).items() if k != "key"}
        return self.records[key]


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The records of a file, and its bytes up to the end of the last whole line."""
    records: dict[str, dict[str, Any]] = {}
    whole = 0
    try:
        content = contents(path)
    except FileNotFoundError:
        return records, whole
    except RefusedError as error:
        raise UsageError(f"{name_of(path)} {error}: delete it and run the cell again") from error
    except OSError as error:
        raise StorageError(f"cannot read {path} ({error.strerror}): check the folder's permissions") from error
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("key"), str):
            break
        records[record.pop("key")] = record
        whole += len(line)
    return records, whole


def packed(arrays: Mapping[str, np.ndarray]) -> str:
    """Arrays as text for a record, bit for bit."""
    import numpy as np

    data = io.BytesIO()
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(data.getvalue()).decode()


def unpacked(text: str) -> dict[str, np.ndarray]:
    """What `packed` was given."""
    from msrnn_bench.results import arrays

    return arrays.unpacked(io.BytesIO(base64.b64decode(text)))

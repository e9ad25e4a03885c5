"""Files that are there whole or not at all. Knows nothing of what is in them."""

import contextlib
import os
import secrets
import time
from pathlib import Path

from msrnn_bench.errors import StorageError

TEMPORARY = ".msrnn-tmp"  # no other program ends its files so: ours are safe to remove


def write_atomically(path: Path, content: str | bytes) -> None:
    """The whole file or none of it, whatever kills the process; what earlier kills left is cleaned up."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:  # not mkstemp, whose files nobody else may read
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _clean(path)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"cannot write {path} ({reason}): make room or choose another results_dir") from error


def _replace(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except FileNotFoundError:  # a process writing the same file was faster and took ours for a leftover
        if not path.exists():
            raise


def _clean(path: Path) -> None:
    """Remove what killed writers of this file left, and what any left a day ago: younger ones may be at work."""
    for leftover in path.parent.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):  # gone already, or a folder that somebody called so: no reason to fail
            if leftover.name.startswith(f".{path.name}.") or time.time() - leftover.lstat().st_mtime > 86_400:
                leftover.unlink()

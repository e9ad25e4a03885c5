"""Which process is at which cell: of several, one."""

import contextlib
import fcntl
from collections.abc import Iterator

from msrnn_bench.errors import MachineError
from msrnn_bench.results.cells import Cell


@contextlib.contextmanager
def lease(cell: Cell) -> Iterator[bool]:
    """Whether this process may measure the cell: of several, one. The lease ends with the process, however it ends."""
    path = cell.lock
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise MachineError(f"cannot write {path} ({error.strerror}): choose another results_dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)

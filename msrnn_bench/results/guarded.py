"""A results folder that one may have got from somebody: its ordinary files are read, and nothing else is opened.

A link may lead anywhere, a FIFO keeps its reader waiting for ever, a file may be larger than the memory. Knows nothing of what
is in the files.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from msrnn_bench.errors import UsageError
from msrnn_bench.redact import printable

MB = 1_000_000
# Bytes that no real file comes near: manifests and tables have some 20 KB; rows 300 bytes each, arrays what memory holds.
MOST = {".json": 8 * MB, ".tex": 8 * MB, ".lease": MB}
MOST_OF_OTHERS = 4_000 * MB

_KINDS = {
    stat.S_IFDIR: "is a directory", stat.S_IFIFO: "is a FIFO", stat.S_IFSOCK: "is a socket", stat.S_IFLNK: "is a symbolic link",
    stat.S_IFCHR: "is a device", stat.S_IFBLK: "is a device",
}  # fmt: skip
# Opened, a FIFO would wait for a writer and a link lead away. Where the system has no such flags it is looked at first.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class RefusedError(ValueError):
    """A file that is not read; the message says what it is, and is to stand behind the file's name."""


def opened(path: Path) -> BinaryIO:
    """An ordinary file, to be read. RefusedError where it is anything else or too large, OSError as ever."""
    if not hasattr(os, "O_NOFOLLOW"):
        _look(path.lstat(), path)
    try:
        number = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK, errno.EOPNOTSUPP):  # a link, a socket, as systems differ
            _look(path.lstat(), path)
        raise
    try:
        _look(os.fstat(number), path)
    except BaseException:
        os.close(number)
        raise
    return os.fdopen(number, "rb")


def contents(path: Path) -> bytes:
    """All of an ordinary file."""
    with opened(path) as file:
        return file.read()


def plain(path: Path) -> bool:
    """Whether there is an ordinary file."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def listed(results_dir: Path, suffix: str) -> list[Path]:
    """The files of its cells that end so, in order."""
    cells = no_link(results_dir / "cells")
    return sorted(cells.glob(f"[!.]*{suffix}"))


def no_link(folder: Path) -> Path:
    """A folder inside a results folder: what is read or written in it lies where it seems to."""
    if folder.is_symlink():
        raise UsageError(f"{folder} is a symbolic link, which is not followed: put the folder itself there")
    return folder


def name_of(path: Path) -> str:
    """A file's name for a message, whatever it holds."""
    return printable(str(path)).replace("\n", "\ufffd")


def _look(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise RefusedError(_KINDS.get(stat.S_IFMT(found.st_mode), "is no file"))
    most = MOST.get(path.suffix, MOST_OF_OTHERS)
    if found.st_size > most:
        raise RefusedError(f"has {found.st_size / MB:,.0f} MB, more than the {most / MB:,.0f} that such a file may have")

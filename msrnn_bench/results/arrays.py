"""Arrays that cells keep beside their rows, `cells/<id>.npz`, by name. Knows nothing of what is in them.

Nothing is unpickled, and how large an array would be is read before it is unpacked: a few kilobytes may stand for all memory.
"""

from __future__ import annotations

import logging
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from msrnn_bench.errors import UsageError
from msrnn_bench.results.guarded import MB, RefusedError, listed, name_of, opened

log = logging.getLogger(__name__)

ROOM = 4_000 * MB  # of all arrays that are read at once
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as numpy does
BROKEN = (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)  # what a damaged file raises


def read_arrays(results_dir: Path, name: str) -> dict[str, Any]:
    """Of every cell that kept an array of that name: cell -> the array. What is no file of arrays is left out and named."""
    found: dict[str, Any] = {}
    for path in listed(results_dir, ".npz"):
        try:
            with opened(path) as file:
                room = ROOM - sum(array.nbytes for array in found.values())
                held = unpacked(file, room, name)
            if name in held:
                found[path.stem] = held[name]
        except RefusedError as error:
            log.warning("%s %s: its arrays are left out", name_of(path), error)
        except BROKEN as error:
            raise UsageError(f"{path} is damaged ({error}): delete it with its .json and run the cell again") from error
    return found


def unpacked(file: IO[bytes], room: int | None = None, name: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz, or the one of that name; RefusedError where they need more than `room` (ROOM) bytes."""
    room = ROOM if room is None else room
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if name is None or member.filename == f"{name}.npy"]
        if any(member.compress_type not in _PACKED for member in members):
            raise ValueError("packed as numpy packs nothing")
        need = sum(_size(archive, member) for member in members)
        if need > room:
            raise RefusedError(f"would take {need / MB:,.0f} MB, more than the {room / MB:,.0f} there is for arrays")
        return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}


def _size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of an array as its header says, which must be those that the archive says."""
    with archive.open(member) as held:
        version = np.lib.format.read_magic(held)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError("an array of a later format")
        shape, _, kind = read(held)
        need = math.prod(shape) * kind.itemsize
        if kind.hasobject or min(shape, default=0) < 0 or need != member.file_size - held.tell():
            raise ValueError("an array that is not what its header says")
        return need


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as held:
        return np.asarray(np.lib.format.read_array(held, allow_pickle=False))

"""Arrays that cells keep beside their rows, `cells/<id>.npz`, by name. Knows nothing of what is in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from msrnn_bench.errors import UsageError


def read_arrays(results_dir: Path, name: str) -> dict[str, Any]:
    """Of every cell that kept an array of that name: cell -> the array."""
    found = {}
    for path in sorted((results_dir / "cells").glob("[!.]*.npz")):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if name in arrays:
                    found[path.stem] = arrays[name]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UsageError(f"{path} is damaged ({error}): delete it with its .json and run the cell again") from error
    return found

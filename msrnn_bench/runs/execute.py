"""A prepared cell, measured and written: rows and a manifest, or a manifest that says what failed."""

from __future__ import annotations

import io
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msrnn_bench.errors import UsageError
from msrnn_bench.results.cells import check_writable, write, write_failure
from msrnn_bench.results.files import write_atomically
from msrnn_bench.results.provenance import git, machine, versions
from msrnn_bench.runs.cell import Prepared


def execute(prepared: Prepared) -> None:
    """Measure and write. What goes wrong while measuring leaves a manifest that says so; what the user or the machine
    could not give leaves nothing."""
    cell, job = prepared.cell, prepared.job
    check_writable(cell.results_dir)
    if prepared.force:
        cell.journal.unlink(missing_ok=True)
    arrays: dict[str, Any] = {}
    object.__setattr__(job, "store", arrays.__setitem__)
    if prepared.keep_tokens:
        object.__setattr__(job, "keep", arrays.__setitem__)
    begin = time.perf_counter()
    try:
        rows = list(prepared.task.rows(job))
    except (UsageError, KeyboardInterrupt):
        raise
    except Exception as error:
        failure = {**_manifest(prepared, begin), "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        write_failure(cell, {**failure, "row": {"bos": False, **job.columns}})
        raise
    if arrays:
        _write_arrays(prepared.tokens_file, arrays)
    write(cell, rows, _manifest(prepared, begin))
    if not getattr(prepared.task, "keeps_journal", True):
        cell.journal.unlink(missing_ok=True)


def _manifest(prepared: Prepared, begin: float) -> dict[str, Any]:
    """All that is needed to say where a number comes from."""
    job = prepared.job
    loaded = next((v for k, v in job.shared.items() if k[0] == "model"), None)
    return {
        "config": prepared.config, "settings": prepared.settings, "dataset": job.dataset.manifest(job.documents),
        "model": None if loaded is None else loaded.info, "versions": versions(), "git": git(), "machine": machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - begin, 3),
    }  # fmt: skip


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_atomically(path, data.getvalue())

"""A prepared cell, measured and written: rows and a manifest, or a manifest that says what failed."""

from __future__ import annotations

import io
import time
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msrnn_bench.job import Job
from msrnn_bench.results import sharing
from msrnn_bench.results.cells import check_writable, write, write_failure
from msrnn_bench.results.files import write_atomically
from msrnn_bench.results.provenance import git, machine, versions
from msrnn_bench.runs.cell import Prepared, this_run


def execute(prepared: Prepared) -> None:
    """Measure and write; a part of a cell has a journal alone. Whatever goes wrong is raised, and leaves nothing but that."""
    cell = prepared.cell
    check_writable(cell.results_dir)
    if prepared.force and not sharing.ended(cell, this_run()):
        cell.journal.unlink(missing_ok=True)
    arrays: dict[str, Any] = {}
    earlier = sharing.earlier(cell, this_run() if prepared.force else None)
    job = replace(
        prepared.job, journal=cell.journal, earlier=earlier, share=cell.shard, store=arrays.__setitem__,
        keep=arrays.__setitem__ if prepared.keep_tokens else None,
    )  # fmt: skip
    begin = time.perf_counter()
    rows = list(prepared.task.rows(job))
    seconds = time.perf_counter() - begin
    if cell.shard is not None:
        sharing.end(cell, seconds, this_run())
        return
    if arrays:
        _write_arrays(prepared.tokens_file, arrays)
    write(cell, rows, {**_manifest(prepared), "seconds": round(seconds + sharing.seconds(earlier), 3)})
    if not getattr(prepared.task, "keeps_journal", True):
        cell.journal.unlink(missing_ok=True)
    sharing.forget(cell)


def record_failure(prepared: Prepared, error: BaseException, reason: str) -> None:
    """A manifest that says what failed, in place of rows; `reason` is one line."""
    trace = "".join(traceback.format_exception(error))
    row = {"bos": False, **prepared.job.columns}
    write_failure(prepared.cell, {**_manifest(prepared), "error": reason, "traceback": trace, "row": row})


def _data(job: Job) -> dict[str, Any] | None:
    """What the data are; None where the data are what could not be read."""
    try:
        return job.dataset.manifest(job.documents)
    except Exception:  # whatever kept the cell from them
        return None


def _manifest(prepared: Prepared) -> dict[str, Any]:
    """All that is needed to say where a number comes from."""
    job = prepared.job
    loaded = next((v for k, v in job.shared.items() if k[0] == "model"), None)
    return {
        "config": prepared.config, "settings": prepared.settings, "dataset": _data(job),
        "model": None if loaded is None else loaded.info, "versions": versions(), "git": git(), "machine": machine(),
        "chosen": job.notes, "finished": datetime.now(UTC).isoformat(timespec="seconds"), "run": this_run(),
    }  # fmt: skip


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_atomically(path, data.getvalue())

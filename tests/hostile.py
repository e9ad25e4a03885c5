"""A results folder that somebody prepared for whoever opens it: good cells, and among them all that a file may be.

Every case is one function that puts one thing into a folder; `outside` is a folder beside it, which nothing may read or write.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from msrnn_bench.report.latex import MARK
from msrnn_bench.results.cells import SETTINGS, Cell, Row, cell_id, write, write_failure

SECRET = "what stands outside"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
ROW = Row(
    cell="", task="perplexity", dataset="texts", model="tiny", weights="pretrained", policy="tova", memory=0.0, first=0, recent=0,
    per="layer", cache=8, context=32, seed=0, bos=True, dtype="float32", engine="scan", prefill="stepwise", positions="original",
    document="a", bucket_start=0, bucket_end=32, metric="nll", total=10.0, count=31, evictions=24, first_eviction=8, max_states=8,
    seconds=0.5, tokens_per_second=64.0, peak_bytes=1, state_bytes=2,
)  # fmt: skip
FULL = replace(ROW, policy="full", memory=None, first=None, recent=None, per=None, cache=None, evictions=0, first_eviction=None)
BAD, WORSE = "b" * 16, "c" * 16  # the ids of cells that are not what they should be


def good(folder: Path) -> list[str]:
    """Three finished cells and one that failed; their ids."""
    made = []
    for name, row in (("full", FULL), ("tova 8", ROW), ("tova 16", replace(ROW, cache=16, total=9.5))):
        cell = Cell(folder, "perplexity", f"tiny texts {name}", cell_id({"name": name}))
        rows = [replace(row, cell=cell.id, document=letter, total=row.total + n / 10) for n, letter in enumerate("abcd")]
        write(cell, rows, manifest(folder, row))
        made.append(cell.id)
    failed = Cell(folder, "perplexity", "tiny texts window k=8", cell_id({"name": "failed"}))
    row = {name: getattr(replace(ROW, policy="window"), name) for name in SETTINGS} | {"cell": failed.id}
    write_failure(failed, {**manifest(folder, ROW), "row": row, "error": "MemoryError: killed", "traceback": "Traceback"})
    return [*made, failed.id]


def manifest(folder: Path, row: Row) -> dict[str, Any]:
    """As a run writes it, in short."""
    policy = {"name": row.policy, "memory": row.memory, "first": row.first, "recent": row.recent, "per": row.per, "settings": {}}
    return {
        "config": {
            "cache": row.cache, "results_dir": str(folder),
            "model": {"_target_": "msrnn_bench.models.sources.RandomModel", "_convert_": "all", "name": "tiny"},
            "dataset": {"_target_": "msrnn_bench.datasets.texts.PySource", "_convert_": "all", "skip": 0, "pack": True},
            "policy": {"_target_": "msrnn_bench.policies.Tova", "recent": 0},
            "task": {"_target_": "msrnn_bench.tasks.perplexity.Perplexity"},
        },
        "settings": {
            "numerics": 1, "task": {"name": "perplexity"}, "policy": policy, "model": {"files": {}, "weights": "pretrained"},
            "dataset": "d" * 64, "cache": row.cache,
        },
        "dataset": {"name": "texts", "fingerprint": "d" * 64, "documents": 4, "listed": [{"name": "a", "sha256": "e" * 64}]},
        "model": {"name": "tiny", "class": "LlamaForCausalLM", "parameters": 1000}, "versions": {"torch": "2.13.0"},
        "git": {"commit": "c" * 40, "clean": True}, "machine": {"cores": 2, "threads": 1},
        "finished": "2026-11-26T00:00:00+00:00", "seconds": 1.5,
    }  # fmt: skip


# --- one thing each: `put(folder, outside)`


def _file(name: str, content: str | bytes) -> Callable[[Path, Path], None]:
    return lambda folder, _: (folder / "cells" / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _changed(**changes: Any) -> Callable[[Path, Path], None]:
    """A cell with its rows, and a manifest that has these in the place of its own."""

    def put(folder: Path, outside: Path) -> None:
        write(Cell(folder, "perplexity", "odd", BAD), [replace(ROW, cell=BAD, cache=64)], manifest(folder, ROW))
        path = folder / "cells" / f"{BAD}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return put


def _within(**changes: Any) -> Callable[[Path, Path], None]:
    """The same inside one of its objects: settings__model=... is settings.model."""

    def put(folder: Path, outside: Path) -> None:
        _changed()(folder, outside)
        path = folder / "cells" / f"{BAD}.json"
        held = json.loads(path.read_text())
        for place, value in changes.items():
            *way, last = place.split("__")
            inner = held
            for step in way:
                inner = inner.setdefault(step, {})
            inner[last] = value
        path.write_text(json.dumps(held))

    return put


def _link(name: str, to: str) -> Callable[[Path, Path], None]:
    def put(folder: Path, outside: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(outside / to)

    return put


def _made(name: str, make: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    return lambda folder, _: make(folder / name) and None


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may be short only
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50_000_000_000)


def _rows(make: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    """A manifest that says ok, and beside it no file of rows."""

    def put(folder: Path, outside: Path) -> None:
        _changed()(folder, outside)
        path = folder / "cells" / f"{BAD}.csv"
        path.unlink()
        make(path)

    return put


def _rows_linked(folder: Path, outside: Path) -> None:
    _rows(lambda path: path.symlink_to(outside / "rows.csv"))(folder, outside)


def _bomb(path: Path) -> None:
    """40 GB of zeros in 40 MB would be slow to make: the archive's and the array's header say so, the data is short."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (5_000_000_000,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("death.npy", header.getvalue() + bytes(1000))
    size, told = header.tell() + 1000, header.tell() + 40_000_000_000
    data = path.read_bytes()
    assert data.count(size.to_bytes(4, "little")) == 2  # in both of its headers, where no more than 4 GB can be said
    path.write_bytes(data.replace(size.to_bytes(4, "little"), min(told, 2**32 - 2).to_bytes(4, "little")))


def _real_bomb(path: Path) -> None:
    """50 MB of zeros, honestly declared, packed to 50 KB: more than the test lets there be."""
    np.savez_compressed(path, death=np.zeros(50_000_000, dtype=np.int8))


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _pickled(folder: Path, outside: Path) -> None:
    np.savez(folder / "cells" / f"{BAD}.npz", death=np.array([Trap(outside / "unpickled")], dtype=object))


def _pickle(folder: Path, outside: Path) -> None:
    """Where arrays, a table and a manifest should be."""
    for suffix in ("npz", "json", "jsonl"):
        (folder / "cells" / f"{BAD}.{suffix}").write_bytes(pickle.dumps(Trap(outside / "unpickled")))


def _names(folder: Path, outside: Path) -> None:
    """Texts that would steer a terminal, in every place of a cell that is shown."""
    cell = Cell(folder, "perplexity", f"la{ESCAPE}bel", BAD)
    row = replace(
        ROW, cell=BAD, model=f"mo{ESCAPE}del", dataset=f"da{ESCAPE}ta", policy=f"po{ESCAPE}licy", document=f"do{ESCAPE}c"
    )
    write(cell, [replace(row, document=f"{n}{ESCAPE}") for n in range(3)], manifest(folder, ROW))
    failed = Cell(folder, "perplexity", f"fai{ESCAPE}led\nmsrnn-bench: all is well", WORSE)
    told = {name: getattr(row, name) for name in SETTINGS} | {"cell": failed.id}
    write_failure(
        failed, {**manifest(folder, ROW), "row": told, "error": f"{ESCAPE}\nmsrnn-bench: all is well\r", "traceback": ESCAPE}
    )
    (folder / "cells" / f"{ESCAPE[5:]}\nmsrnn-bench: all is well.json").write_text("[]")


FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-1+cmd|x", "@SUM(1)", "\t=1+1", "a;=1+1", "'=1", "\uff1d1+1")


def _formulas(folder: Path, outside: Path) -> None:
    cell = Cell(folder, "perplexity", FORMULAS[0], BAD)
    row = replace(ROW, cell=BAD, dataset=FORMULAS[0], model=FORMULAS[1])
    write(cell, [replace(row, document=text, total=-1.5) for text in FORMULAS], manifest(folder, ROW))


def _paths(folder: Path, outside: Path) -> None:
    """A manifest whose every path leads outside."""
    away = f"../{outside.name}/rows"
    _changed(cell=away, label=away, results_dir=str(outside), journal=away, csv=away)(folder, outside)
    _within(config__results_dir=str(outside), config__dataset__path=str(outside / "rows.csv"), row={"cell": away})(
        folder, outside
    )


def _deep(levels: int) -> str:
    return f'{{"status": "ok", "settings": {"[" * levels}{"]" * levels}}}'


def _number(**changes: Any) -> Callable[[Path, Path], None]:
    """Rows of which one has another number, under a manifest that has their hash."""

    def put(folder: Path, outside: Path) -> None:
        rows = [replace(ROW, cell=BAD, cache=64), replace(ROW, cell=BAD, cache=64, document="b")]
        for name, value in changes.items():
            for row in rows if name in SETTINGS else rows[1:]:
                object.__setattr__(row, name, value)
        write(Cell(folder, "perplexity", "odd", BAD), rows, manifest(folder, ROW))

    return put


J = f"{BAD}.json"
# What is left out, said in one line with these words in it, while the rest is served.
LEFT_OUT: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "manifest is a link": (_link(f"cells/{J}", "secret.txt"), "is a symbolic link"),
    "manifest is a link to a manifest": (_link(f"cells/{J}", "manifest.json"), "is a symbolic link"),
    "manifest is a link to nothing": (_link(f"cells/{J}", "nothing"), "is a symbolic link"),
    "manifest is a link to a FIFO": (_link(f"cells/{J}", "fifo"), "is a symbolic link"),
    "manifest is a FIFO": (_made(f"cells/{J}", os.mkfifo), "is a FIFO"),
    "manifest is a socket": (_made(f"cells/{J}", _socket), "is a socket"),
    "manifest is a folder": (_made(f"cells/{J}", Path.mkdir), "is a directory"),
    "manifest is huge": (_made(f"cells/{J}", _sparse), "has 50,000 MB, more than the 8 that such a file may have"),
    "manifest is too deep to parse": (_file(J, _deep(200_000)), "is damaged"),
    "manifest is too deep to follow": (_file(J, _deep(100)), "is nested more than 40 deep"),
    "manifest has NaN": (_changed(seconds=float("nan")), "is damaged"),
    "manifest has infinity": (_file(J, '{"status": "ok", "seconds": 1e999}'), "is damaged"),
    "manifest has a number of 5,000 digits": (_file(J, '{"status": "ok", "seconds": ' + "9" * 5000 + "}"), "is damaged"),
    "manifest has a number no table takes": (_changed(seconds=2**70), "has in seconds what"),
    "manifest is no text": (_file(J, b"\xff\xfe\x00"), "is damaged"),
    "manifest is empty": (_file(J, ""), "is damaged"),
    "manifest is a list": (_file(J, "[1, 2]"), "is no object"),
    "manifest is null": (_file(J, "null"), "is no object"),
    "status is a list": (_changed(status=["ok"]), "has no status"),
    "status is another": (_changed(status=f"ok{ESCAPE}"), "has no status"),
    "label is a list": (_changed(label=["x"]), "has in label what"),
    "config is a text": (_changed(config="x"), "has in config what"),
    "config.model is a text": (_within(config__model="x"), "has in config.model what"),
    "config.dataset is a number": (_within(config__dataset=5), "has in config.dataset what"),
    "settings is a list": (_changed(settings=[]), "has in settings what"),
    "settings is empty": (_changed(settings={}), "lacks settings.model"),
    "settings.policy is a text": (_within(settings__policy="x"), "has in settings.policy what"),
    "settings.task.machine is a text": (_within(settings__task__machine="x"), "has in settings.task.machine what"),
    "dataset is a list": (_changed(dataset=[]), "has in dataset what"),
    "dataset.listed is a text": (_within(dataset__listed="x"), "has in dataset.listed what"),
    "dataset.listed holds numbers": (_within(dataset__listed=[1]), "has in dataset.listed what"),
    "dataset.documents is a text": (_within(dataset__documents="many"), "has in dataset.documents what"),
    "model is a text": (_changed(model="x"), "has in model what"),
    "model.parameters is a list": (_within(model__parameters=[1]), "has in model.parameters what"),
    "versions is a list": (_changed(versions=["2"]), "has in versions what"),
    "a version is a list": (_within(versions__torch=["2"]), "has in versions.torch what"),
    "git is a text": (_changed(git="x"), "has in git what"),
    "git is empty": (_changed(git={}), "lacks git.commit"),
    "machine.cores is a text": (_within(machine__cores="two"), "has in machine.cores what"),
    "seconds is a text": (_changed(seconds="long"), "has in seconds what"),
    "error is a list": (_changed(status="failed", error=["x"]), "has in error what"),
    "row is a list": (_changed(status="failed", row=["x"]), "has in row what"),
    "row.cache is a text": (_changed(status="failed", row={"cache": "x"}), "has in row.cache what"),
    "row.model is a list": (_changed(status="failed", row={"model": ["x"]}), "has in row.model what"),
    "rows are a link": (_rows_linked, "has no file of rows"),
    "rows are a FIFO": (_rows(os.mkfifo), "has no file of rows"),
    "rows are a socket": (_rows(_socket), "has no file of rows"),
    "rows are a folder": (_rows(Path.mkdir), "has no file of rows"),
    "rows are huge": (_rows(_sparse), "are not those that were written"),
}
# Arrays, which only some figures read.
ARRAYS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "arrays are a link": (_link(f"cells/{BAD}.npz", "arrays.npz"), "is a symbolic link"),
    "arrays are a FIFO": (_made(f"cells/{BAD}.npz", os.mkfifo), "is a FIFO"),
    "arrays are a folder": (_made(f"cells/{BAD}.npz", Path.mkdir), "is a directory"),
    "arrays are huge": (_made(f"cells/{BAD}.npz", _sparse), "has 50,000 MB"),
    "arrays unpack to more than the memory": (_made(f"cells/{BAD}.npz", _real_bomb), "would take 50 MB"),
}
DAMAGED_ARRAYS: dict[str, Callable[[Path, Path], None]] = {
    "arrays say more than there is": _made(f"cells/{BAD}.npz", _bomb),
    "arrays are pickled": _pickled,
    "arrays are a pickle": _pickle,
    "arrays are no archive": _file(f"{BAD}.npz", b"\x93NUMPY\x01\x00v\x00"),
}
# Rows that end a command, in one line that names their file: a table without them would be another.
NUMBERS: dict[str, Callable[[Path, Path], None]] = {
    "infinite": _number(total=float("inf")),
    "minus infinity": _number(total=float("-inf")),
    "no number": _number(total=float("nan")),
    "too large to sum": _number(total=1e308),
    "of nothing": _number(count=0),
    "more than can be counted": _number(count=2**62),
    "more than a column takes": _number(count=2**70),
    "a state size below 1": _number(cache=-8),
    "a speed without end": _number(tokens_per_second=float("inf")),
}
# What nothing has to be said of.
SILENT: dict[str, Callable[[Path, Path], None]] = {
    "names that steer a terminal": _names,
    "formulas": _formulas,
    "paths": _paths,
    "summary.csv is a link": _link("summary.csv", "secret.txt"),
    "tidy.csv is a link": _link("tidy.csv", "secret.txt"),
    "claims.csv is a link": _link("claims.csv", "secret.txt"),
    "report.html is a link": _link("report.html", "secret.txt"),
    "a figure is a link": _link("perplexity.png", "secret.txt"),
    "tidy.csv is a FIFO": _made("tidy.csv", os.mkfifo),
    "leftovers are folders": _made("cells/.x.msrnn-tmp", Path.mkdir),
    "leftovers of ours are folders": _made(".summary.csv.0.msrnn-tmp", Path.mkdir),
    "a journal is a FIFO": _made(f"cells/{BAD}.jsonl", os.mkfifo),
    "a lease is a FIFO": _made(f"cells/.{BAD}.lease", os.mkfifo),
    "a plan is a FIFO": _made(f"cells/.plan-{BAD}.json", os.mkfifo),
    "a plan is a link": _link(f"cells/.plan-{BAD}.json", "secret.txt"),
}


def outside(folder: Path) -> Path:
    """What lies beside a results folder, and is none of its business."""
    folder.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    (folder / "manifest.json").write_text(json.dumps({"status": "ok", "label": SECRET}))
    (folder / "rows.csv").write_text(SECRET)
    (folder / "cells").mkdir()
    (folder / "cells" / "x.json").write_text(SECRET)
    (folder / "tables").mkdir()
    (folder / "tables" / "old.tex").write_text(f"{MARK}\n")  # as a report wrote it
    np.savez(folder / "arrays.npz", death=np.zeros((1, 1, 4), dtype=np.int32))
    os.mkfifo(folder / "fifo")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, to see that it stayed."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# --- what a process does while it looks at the folder


_watched: list[tuple[Path, list[str]]] = []
_TOUCHES = ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir")
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class", "socket.connect")


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watched:
        return
    forbidden, seen = _watched[-1]
    if event in _RUNS:
        seen.append(f"{event} {args[0]!r}")
    elif event in _TOUCHES and isinstance(args[0], str | os.PathLike):
        path = os.fspath(args[0])
        follows = event in ("os.listdir", "os.scandir") or (event == "open" and not args[2] & os.O_NOFOLLOW)
        folder, name = os.path.split(path)
        real = os.path.realpath(path) if follows else os.path.join(os.path.realpath(folder), name)
        if real == str(forbidden) or real.startswith(f"{forbidden}{os.sep}"):
            seen.append(f"{event} {path}")


@cache
def _listen() -> None:
    sys.addaudithook(_hook)  # which cannot be taken off again


@contextmanager
def watched(forbidden: Path) -> Iterator[list[str]]:
    """What meanwhile was opened, listed or removed in a folder, and what was run: a list that should stay empty."""
    _listen()
    seen: list[str] = []
    _watched.append((forbidden.resolve(), seen))
    try:
        yield seen
    finally:
        _watched.pop()

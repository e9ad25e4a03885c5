"""Cells that share a name but not what it stands for, told apart in the tables and so in every figure.

Two texts `test.txt`, two model folders `final`, a policy of the user's own under several knobs, a task asked with another
prompt: each is another measurement, and beside the other under one name it would be compared with the wrong topline. What
differs is read off the manifests; a name gets the shortest setting or hash that tells it from its namesakes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

log = logging.getLogger(__name__)

TELLING = ("settings", "config", "dataset", "versions", "git")  # what of a manifest tells cells apart
LETTERS = 4  # of a hash, where so few tell it from the others
# What of a task is a column of the rows, or changes no line of the summary: how rows are cut, what is measured beside.
NO_VARIANT = {"name", "tasks", "lengths", "kinds", "buckets", "agreement", "needle"}
LIBRARIES = ("torch", "transformers", "tokenizers", "numba")
TABLE = ["task", "dataset", "model", "weights", "context", "dtype"]  # cells that agree in these stand in one table
NAMED = 3  # cells of a version that are named, where there are more


def tell_apart(rows: pd.DataFrame, manifests: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The rows with `dataset`, `model` and `policy` extended where one name stands for several things, and a column
    `variant` for what else of a task differs; of cells without a manifest nothing is said."""
    cells = rows.drop_duplicates("cell").set_index("cell")
    known = [cell for cell in cells.index if "settings" in manifests.get(cell, {})]
    names: dict[str, dict[str, str]] = {"dataset": {}, "model": {}, "policy": {}, "variant": {}}
    for column, differ in (("dataset", _texts), ("model", _models), ("policy", _policies)):
        for name, group in cells.loc[known].groupby(column):
            for cell, label in differ({cell: manifests[cell] for cell in group.index}).items():
                names[column][cell] = f"{name} ({label})"
    told = rows.assign(variant=pd.Series(pd.NA, index=rows.index, dtype="str"))
    for column in ("dataset", "model", "policy"):
        told[column] = told["cell"].map(names[column]).fillna(told[column]).astype("str")
    named = told.drop_duplicates("cell").set_index("cell").loc[known]
    for _, group in named.groupby(["task", "dataset", "model"]):
        names["variant"] |= _tasks({cell: manifests[cell] for cell in group.index})
    told["variant"] = told["cell"].map(names["variant"]).astype("str")
    return told.assign(variant=told["variant"].where(told["cell"].isin(names["variant"].keys())))


def warn_of_versions(rows: pd.DataFrame, manifests: Mapping[str, Mapping[str, Any]]) -> None:
    """Say which cells of unlike versions of code, libraries and data stand side by side in one table. `rows` have the names
    that they came with, under which two texts are one dataset."""
    cells = rows.drop_duplicates("cell")
    tables = [list(group["cell"]) for _, group in cells.groupby(TABLE) if len(group) > 1]
    for what, version in (("msrnn-bench", _code), *((library, _library(library)) for library in LIBRARIES)):
        found: dict[str, list[str]] = {}
        for table in tables:
            of = {cell: version(manifests[cell]) for cell in table if cell in manifests}
            if len({one for one in of.values() if one}) > 1:
                for cell, one in of.items():
                    found.setdefault(one or "", []).append(cell)
        _warn(what, {one: named for one, named in found.items() if one})
    for name, group in cells.groupby("dataset"):
        texts = _texts({cell: manifests[cell] for cell in group["cell"] if "settings" in manifests.get(cell, {})})
        found = {}
        for cell, label in texts.items():
            found.setdefault(label, []).append(cell)
        if any(re.fullmatch("[0-9a-f]+", label) for label in found):  # else it is one text, read from two places
            _warn(f"the data {name}", found)


def _warn(what: str, cells: Mapping[str, list[str]]) -> None:
    if len(cells) > 1:
        told = "; ".join(f"{version}: {_several(sorted(named))}" for version, named in sorted(cells.items()))
        log.warning("cells of different versions of %s stand side by side: %s (msrnn-bench diff CELL CELL)", what, told)


def _several(cells: list[str]) -> str:
    more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    return ", ".join(cells[:NAMED]) + more


def _code(manifest: Mapping[str, Any]) -> str | None:
    """The commit, where it ran from a checkout; else the package's version."""
    git = manifest.get("git") or {}
    if git.get("commit"):
        return str(git["commit"])[:7] + ("" if git.get("clean") else " with changes")
    return (manifest.get("versions") or {}).get("msrnn-bench")


def _library(name: str) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda manifest: (manifest.get("versions") or {}).get(name)


def _texts(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Cell -> label, empty where all read the same text, be it more or less of it."""
    kinds: list[tuple[dict[str, Any], list[str], list[str]]] = []  # settings, hashes of the documents, cells
    for cell, manifest in sorted(manifests.items()):
        given = manifest.get("config", {}).get("dataset") or {}
        cut = {key: given[key] for key in ("skip", "pack") if given.get(key)}
        read = [entry["sha256"] for entry in (manifest.get("dataset") or {}).get("listed", []) if "sha256" in entry]
        hashes = read or [str(manifest["settings"]["dataset"])]
        for settings, documents, cells in kinds:
            if settings == cut and (set(hashes) <= set(documents) or set(documents) <= set(hashes)):
                documents[:] = hashes if len(hashes) > len(documents) else documents
                cells.append(cell)
                break
        else:
            kinds.append((cut, hashes, [cell]))
    if len(kinds) < 2:
        return {}
    heads = [documents[0] for _, documents, _ in kinds]  # a label stays when more documents are read
    marks = [_hash(sorted(read)) if heads.count(head) > 1 else head for head, (_, read, _) in zip(heads, kinds, strict=True)]
    if len(set(marks)) == 1:  # the same text, read otherwise
        labels = [", ".join(f"{k} {v}" for k, v in cut.items()) or "from its beginning" for cut, _, _ in kinds]
    else:
        labels = _shortened(marks)
    return {cell: label for label, (_, _, cells) in zip(labels, kinds, strict=True) for cell in cells}


def _models(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By content; weights (pretrained or random) and seed have columns of their own."""
    content = {
        cell: {k: v for k, v in manifest["settings"]["model"].items() if k not in ("weights", "seed")}
        for cell, manifest in manifests.items()
    }
    if len({_hash(model) for model in content.values()}) < 2:
        return {}
    marks = [str(model.get("commit") or _hash(model)) for model in content.values()]
    return dict(zip(content, _shortened(marks), strict=True))


def _policies(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A user's own policy by its knobs and its source; those of the family have columns of their own."""
    found = {}
    for cell, manifest in manifests.items():
        policy = manifest["settings"]["policy"]
        knobs = {key: value for key, value in policy.get("settings", {}).items() if key != "seed"}
        found[cell] = {**knobs, "source": policy.get("source"), "class": policy.get("class")}
    return _differences(found)


def _tasks(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """How else it was asked, and under which numerics. What is timed always says on which device, for its numbers are the
    machine's, and two machines of one name are told apart."""
    found, devices = {}, {}
    for cell, manifest in manifests.items():
        settings = manifest["settings"]
        task = {key: value for key, value in settings["task"].items() if key not in NO_VARIANT}
        found[cell] = {**task, "numerics": settings.get("numerics")}
        if "machine" in task:
            devices[cell] = f"on {task['machine'].get('device')}"
    labels = _differences(found)
    return {cell: ", ".join(filter(None, [devices.get(cell), labels.get(cell)])) for cell in {**devices, **labels}}


def _differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Cell -> what of its settings others do not have; empty where all agree."""
    keys = sorted({key for one in settings.values() for key in one})
    differing = [key for key in keys if len({_hash(one.get(key)) for one in settings.values()}) > 1]
    if not differing:
        return {}
    shown = {key: _plainly([one.get(key) for one in settings.values()]) for key in differing}
    return {cell: ", ".join(f"{key} {shown[key][n]}" for key in differing) for n, cell in enumerate(settings)}


def _plainly(values: list[Any]) -> list[str]:
    """Values as they are where they are short, else the beginning of their hash."""
    plain = [json.dumps(value) if not isinstance(value, str) else value for value in values]
    return plain if all(len(text) <= 24 and "\n" not in text for text in plain) else _shortened([_hash(v) for v in values])


def _shortened(hashes: Iterable[str]) -> list[str]:
    """The fewest first letters, at least LETTERS, that tell unlike ones apart."""
    hashes = list(hashes)
    cut: Callable[[int], list[str]] = lambda n: [text[:n] for text in hashes]  # noqa: E731
    length = next((n for n in range(LETTERS, 65) if len(set(cut(n))) == len(set(hashes))), None)
    return cut(length) if length else hashes


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

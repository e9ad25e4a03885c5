"""What was run, from the manifests: models, texts, sizes, settings, machine, versions, time. Nothing that is not recorded."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from msrnn_bench.figures import style
from msrnn_bench.report.folders import Folder

_SETTINGS = ("context", "dtype", "engine", "prefill", "positions", "seed", "template", "per", "bos")


def read(folder: Folder) -> list[tuple[str, list[str]]]:
    """Heading and entries, each entry a line of the page; several where cells differ, with the number of cells."""
    manifests = list(folder.manifests.values())
    finished = [manifest for manifest in manifests if manifest.get("status") == "ok"]
    made = [
        ("Tasks", _values(folder.summary["task"])),
        ("Models", [*_count(_model(manifest) for manifest in manifests), *_random(folder.summary)]),
        ("Text", _count(_text(manifest) for manifest in manifests)),
        ("Policies", [", ".join(_policies(folder.summary))]),
        ("State sizes", [", ".join(f"{size:,}" for size in sorted(set(folder.summary["cache"].dropna()))) or "none"]),
        ("Settings", ["; ".join(f"{name} {', '.join(found)}" for name in _SETTINGS if (found := _values(folder.summary[name])))]),
        ("Cells", [_cells(folder, len(finished))]),
        ("Time", _time(finished)),
        ("Machine", _count(_machine(manifest.get("machine") or {}) for manifest in manifests)),
        ("Versions", _versions(manifests)),
        ("Code", _count(_code(manifest) for manifest in manifests)),
    ]
    return [(heading, [entry for entry in entries if entry]) for heading, entries in made if any(entries)]


def _values(column: pd.Series) -> list[str]:
    values = sorted(set(column.dropna()), key=lambda value: (isinstance(value, str), value))
    return [f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value) for value in values]


def _policies(summary: pd.DataFrame) -> list[str]:
    there = set(summary["policy"].dropna())
    known = [name for name in style.LOOKS if name in there]
    return [style.looks([name])[name].label for name in [*known, *sorted(there - set(known))]]


def _model(manifest: Mapping[str, Any]) -> str:
    """Name, class, parameters and what its bytes are known by."""
    model = manifest.get("model") or {}
    config = (manifest.get("config") or {}).get("model") or {}
    identity = (manifest.get("settings") or {}).get("model") or {}
    parts = [str(model.get("name") or config.get("name") or "")]
    parts += [str(model["class"])] if model.get("class") else []
    parts += [f"{model['parameters'] / 1e6:,.1f} million parameters"] if model.get("parameters") else []
    mark = next((f"{key} {_hash(identity[key])}" for key in ("commit", "gguf", "files") if identity.get(key)), "")
    return ", ".join([part for part in parts if part] + ([mark] if mark else []))


def _hash(known: Any) -> str:
    """The beginning of a hash, or of one over several files' hashes."""
    text = known if isinstance(known, str) else hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return text[:12]


def _random(summary: pd.DataFrame) -> list[str]:
    drawn = sorted(set(summary.loc[summary["weights"] == "random", "model"].dropna()))
    return [f"RANDOM WEIGHTS: {', '.join(drawn)}"] if drawn else []


def _text(manifest: Mapping[str, Any]) -> str:
    """Name, number of documents and characters, and the hash of all of it."""
    text = manifest.get("dataset") or {}
    if not text.get("documents"):
        return ""
    more = f", {text['characters']:,} characters" if text.get("characters") else ""
    several = f", {text['questions']:,} questions" if text.get("questions") else ""
    number = f"{text['documents']:,} document{'s' if text['documents'] > 1 else ''}"
    return f"{text.get('name')}: {number}{several}{more}, hash {str(text.get('fingerprint'))[:12]}"


def _cells(folder: Folder, finished: int) -> str:
    if not folder.manifests:
        return f"{folder.rows['cell'].nunique():,}, of which only the tables were kept"
    failed = f", {len(folder.failures):,} failed" if folder.failures else ""
    begun = f", {len(folder.unfinished):,} begun" if folder.unfinished else ""
    return f"{finished:,} finished{failed}{begun}"


def _time(manifests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Seconds of the finished cells, and the days on which they ended."""
    known = [manifest for manifest in manifests if manifest.get("seconds") is not None]
    if not known:
        return []
    seconds = sum(float(manifest["seconds"]) for manifest in known)
    days = sorted({str(manifest["finished"])[:10] for manifest in known if manifest.get("finished")})
    shown = (
        f"{seconds / 3600:.1f} hours"
        if seconds >= 3600
        else f"{seconds / 60:.1f} minutes"
        if seconds >= 60
        else f"{seconds:.1f} seconds"
    )
    return [f"{shown} in all" + (f", {days[0]}" if days else "") + (f" to {days[-1]}" if len(days) > 1 else "")]


def _machine(machine: Mapping[str, Any]) -> str:
    told = [str(machine[key]) for key in ("cuda", "processor", "system") if machine.get(key)]
    cores, threads = machine.get("cores"), machine.get("threads")
    if cores and threads:
        told.append(f"{cores} core{'s' * (cores > 1)}, {threads} thread{'s' * (threads > 1)} a process")
    return ", ".join(told)


def _versions(manifests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Package by package; several versions with the number of cells that were measured with each."""
    found: dict[str, Counter[str]] = {}
    for manifest in manifests:
        for package, version in (manifest.get("versions") or {}).items():
            if version:
                found.setdefault(str(package), Counter())[str(version)] += 1
    told = []
    for package, versions in sorted(found.items()):
        several = len(versions) > 1
        told.append(f"{package} " + ", ".join(f"{v} ({n} cells)" if several else v for v, n in sorted(versions.items())))
    return [", ".join(told)] if told else []


def _code(manifest: Mapping[str, Any]) -> str:
    git = manifest.get("git")
    if not git:
        return "an installed package"
    return f"commit {str(git['commit'])[:12]}" + ("" if git.get("clean") else ", with changes")


def _count(entries: Iterable[str]) -> list[str]:
    """The unlike entries, with the number of cells where there are several."""
    found = Counter(entry for entry in entries if entry)
    return [entry if len(found) == 1 else f"{entry} ({number} cells)" for entry, number in sorted(found.items())]

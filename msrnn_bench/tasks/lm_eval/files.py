"""What a cell of lm-eval's tasks is identified by: the bytes of the user's files, the versions of the packages."""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PACKAGES = ("lm_eval", "nltk", "wonderwords")


@functools.cache
def versions() -> dict[str, str]:
    """Of lm-eval and of what its RULER tasks draw their words from, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder, and of the data files elsewhere that its YAML files name."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if "__pycache__" not in path.parts}
    for path in [path for path in files.values() if path.suffix == ".yaml"]:
        files |= {f"{path.name}: {named.name}": named for named in _data_files(path)}
    return {name: _digest(path, path.stat().st_mtime_ns, path.stat().st_size) for name, path in sorted(files.items())}


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Loader(yaml.SafeLoader):
    """Reads `!function` and whatever other tag as nothing."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _data_files(path: Path) -> Iterator[Path]:
    """The local files a task's YAML names as its data; what cannot be read is lm-eval's to refuse."""
    try:
        config = yaml.load(path.read_text(errors="replace"), _Loader)
    except yaml.YAMLError:
        return
    if isinstance(config, dict):
        for word in _strings([config.get("dataset_path"), config.get("dataset_kwargs")]):
            found = [Path(name) for name in sorted(glob.glob(word, recursive=True))]
            yield from (inner for name in found for inner in (name.rglob("*") if name.is_dir() else [name]) if inner.is_file())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)

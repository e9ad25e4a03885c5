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
    """sha256 of every file below the folder, and of the files elsewhere that its YAML files name: base YAML files, the
    modules of `!function`, data. Those are named by who names them, and a number: a path is no part of an identity."""
    inside = {path.resolve() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    files = {path.relative_to(folder.resolve()).as_posix(): path for path in inside}
    for path in sorted(inside):
        if path.suffix in (".yaml", ".yml"):
            named = dict.fromkeys(_named_files(path, set()))
            files |= {f"{path.name}: {number} {other.name}": other for number, other in enumerate(named)}
    return {name: _digest(path, path.stat().st_mtime_ns, path.stat().st_size) for name, path in sorted(files.items())}


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Loader(yaml.SafeLoader):
    """Reads `!function module.name` as that text behind a mark, and whatever other tag as nothing."""


_FUNCTION = "!function "
_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
_Loader.add_constructor("!function", lambda loader, node: f"{_FUNCTION}{node.value}")


def _named_files(path: Path, seen: set[Path]) -> Iterator[Path]:
    """The local files a task's YAML needs, as lm-eval finds them; what cannot be read is lm-eval's to refuse."""
    seen.add(path)
    try:
        config = yaml.load(path.read_text(errors="replace"), _Loader)
    except (OSError, yaml.YAMLError):
        return
    if not isinstance(config, dict):
        return
    for word in _strings([config.get("dataset_path"), config.get("dataset_kwargs")]):
        for name in sorted(glob.glob(word, recursive=True)):
            found = Path(name)
            inner = sorted(found.rglob("*")) if found.is_dir() else [found]
            yield from (file.resolve() for file in inner if file.is_file())
    for word in _strings(config):
        if word.startswith(_FUNCTION):
            module = (path.parent / word.removeprefix(_FUNCTION).rpartition(".")[0]).with_suffix(".py")
            if module.is_file():
                yield module.resolve()
    includes = config.get("include") or []
    for name in includes if isinstance(includes, list) else [includes]:
        base = (path.parent / str(name)).resolve()
        if base.is_file() and base not in seen:
            yield base
            yield from _named_files(base, seen)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)

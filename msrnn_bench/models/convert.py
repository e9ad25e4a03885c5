"""Pickled weights (pytorch_model*.bin) made into safetensors, once, name by name, and seen to be a whole model.

Loading and saving with transformers would do it too, and drop in silence what it has no place for: the fault would be gone
from the file, and stay in every number. Nothing pickled but tensors is read.
"""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from msrnn_bench.errors import MachineError, UsageError, one_line
from msrnn_bench.models import files, headers


def convert(source: Path, target: Path) -> Path:
    """A new folder with the same tensors under the same names; nothing is left of it where they are no whole model."""
    pickles = _pickles(source)
    if target.exists():
        raise UsageError(f"{target} exists already: give a new folder")
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        scratch.mkdir(parents=True)
        for pattern in (*files.SETTINGS, *files.VOCABULARY, "*.py"):
            for path in source.glob(pattern):
                shutil.copy(path, scratch)
        _write(pickles, scratch)
        _check(source, scratch)
        scratch.rename(target)
    except OSError as error:
        raise MachineError(f"{target} cannot be written ({one_line(error)}): give a folder with room") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _pickles(source: Path) -> list[Path]:
    """The files that make up the pickled checkpoint: all that its index names, or the one there is."""
    if not (source / "config.json").is_file():
        raise UsageError(f"{source} has no config.json: give a model folder in the transformers format")
    files.refuse_adapter(source)
    index = source / "pytorch_model.bin.index.json"
    names = files.indexed(index) if index.is_file() else ["pytorch_model.bin"]
    for name in names:
        if not (source / name).is_file():
            raise UsageError(f"{source} lacks {name}: give a folder with all of its pickled weights (pytorch_model*.bin)")
    return [source / name for name in names]


def _write(pickles: list[Path], folder: Path) -> None:
    """A file of safetensors for each pickle. What shares memory there is written under each of its names: equal tensors
    are tied again on loading, where the configuration ties them."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    total = 0
    for number, pickle in enumerate(pickles, start=1):
        tensors = _tensors(pickle)
        name = "model.safetensors" if len(pickles) == 1 else f"model-{number:05}-of-{len(pickles):05}.safetensors"
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(pickles) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _tensors(pickle: Path) -> dict[str, Any]:
    """The tensors of a pickle, which may hold nothing else."""
    import torch

    try:
        held = torch.load(pickle, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # pickles fail in every way there is
        raise UsageError(f"{pickle} cannot be read as weights alone ({one_line(error)}): download it again") from error
    others = (
        [str(key) for key, value in held.items() if not isinstance(value, torch.Tensor)] if isinstance(held, dict) else ["all"]
    )
    if others:
        raise UsageError(
            f"{pickle} holds other things than tensors ({headers.named(others)}): give the weights of the model alone"
        )
    return dict(held)


def _check(source: Path, folder: Path) -> None:
    """The same look at it as before every measurement; code beside the weights is not run for it."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in settings:
        return
    with headers.quiet():
        try:
            headers.read_weights(folder, files.weight_files(folder), dtype="auto", local_files_only=True)
        except UsageError as error:
            raise UsageError(str(error).replace(str(folder), str(source))) from error
        except Exception as error:  # as many ways as there are models
            raise UsageError(f"{source} is no model that transformers reads ({one_line(error)}): check its files") from error

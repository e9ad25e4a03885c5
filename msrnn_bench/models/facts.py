"""What can be said of a model before it is loaded, fetched or converted: from its files' headers where they are here, else
from what its YAML notes of the hub's page. For a dry run; it draws, reads and downloads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from msrnn_bench.errors import NotHereError, looking
from msrnn_bench.models import files, headers
from msrnn_bench.models.limits import max_positions

# Buffers that files hold beside a model's parameters.
BUFFERS = (headers.MASK, headers.FREQUENCIES, headers.POSITIONS)


@dataclass(frozen=True)
class Facts:
    """None is not known here.

    parameters: numbers in the weights. per_state: numbers that one state holds in all layers together, 2 x KV heads x head
    size summed over them. download: bytes that a run would fetch, 0 where its files are here. rates: task -> tokens per
    second of one process where they were measured before, `rates_of` says where and in which dtype.
    """

    parameters: int | None = None
    per_state: int | None = None
    vocabulary: int | None = None
    positions: int | None = None
    download: int | None = 0
    gated: bool = False
    notes: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    rates_of: dict[str, str] = field(default_factory=dict)


def about(model: Any) -> Facts:
    """The facts of a model of sources.py."""
    given: dict[str, Any] = getattr(model, "facts", None) or {}
    with looking():
        config, notes = _config(model), []
        known: dict[str, Any] = {} if config is None else _shape(config)
        if model.random:  # drawn, not fetched; what the YAML notes is of the pretrained one
            return Facts(**known, parameters=None if config is None else _drawn(model, config))
        parameters, download = given.get("parameters"), given.get("download")
        try:
            header = headers.read_header(files.weight_files(model.folder(weights=True)))
            own = [entry for name, entry in header.items() if not any(buffer.search(name) for buffer in BUFFERS)]
            parameters, download = sum(prod(entry.shape) for entry in own), 0
        except NotHereError as error:
            notes.append(str(error))
            if given.get("pickled"):
                notes.append(
                    f"{model.name}'s repository holds pickled weights, which are not loaded: download it, then "
                    "msrnn-bench convert FOLDER OUT, and model=local model.path=OUT"
                )
            if not hasattr(model, "repo"):
                download = 0  # a GGUF file is here, only not converted
            elif given.get("looked_up"):
                notes.append(f"{model.name}: sizes and licence as looked up on {given['looked_up']}, not asked now")
            elif given:
                notes.append(f"{model.name}: sizes and licence are noted from memory, not held against its page")
    gated = bool(given.get("gated")) and download != 0
    rates = {key: given.get(key, {}) for key in ("rates", "rates_of")}
    return Facts(**known, parameters=parameters, download=download, gated=gated, notes=tuple(notes), **rates)


def _config(model: Any) -> Any:
    """The model's own configuration, else the one that its YAML gives for random weights: the same shapes."""
    try:
        return model.config()
    except NotHereError:
        from transformers import AutoConfig

        return AutoConfig.for_model(**model.architecture) if model.architecture else None


def _shape(config: Any) -> dict[str, Any]:
    text = config.get_text_config(decoder=True)
    layers, heads = getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None)
    if size is None and isinstance(heads, int) and isinstance(getattr(text, "hidden_size", None), int):
        size = text.hidden_size // heads
    numbers = [value for value in (layers, kv_heads, size) if isinstance(value, int)]
    per_state = 2 * prod(numbers) if len(numbers) == 3 else None  # one that differs by layer is a list: not known
    return {"per_state": per_state, "vocabulary": getattr(text, "vocab_size", None), "positions": max_positions(config)}


def _drawn(model: Any, config: Any) -> int:
    """Parameters of a model to be drawn, counted on its skeleton, which holds no numbers."""
    import torch

    with torch.device("meta"), headers.quiet():
        return sum(parameter.numel() for parameter in model.skeleton(config).parameters())

"""Every tensor that a checkpoint's header lists has a place in the model, and every place its tensor; else a UsageError.

transformers drops what finds no place, fills what is missing with random numbers, and filters its own report of both by
patterns of the model's class. A measurement must do neither: here the names of the files themselves are followed, through
the library's renamings, into the model that came out.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from msrnn_bench.errors import UsageError, one_line

MASK = re.compile(r"(^|\.)(attn|attention)\.(bias|masked_bias|causal_mask)$")
FREQUENCIES = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
POSITIONS = re.compile(r"(^|\.)position_ids$")
AHEAD = re.compile(r"(^|\.)mtp[._]")
ANNOUNCE = "announce them in config.json (attention_bias, for biases), or remove them from the file"
SENSES = re.compile(r"^(model\.)?(visual|vision_tower|vision_model|audio_tower|multi_modal_projector|embed_(vision|audio))\.")
LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class Entry:
    """A line of a header: what is stored, and in which file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_header(paths: Iterable[Path]) -> dict[str, Entry]:
    """Name -> entry of all safetensors among these files, without reading a tensor."""
    found: dict[str, Entry] = {}
    for path in paths:
        if path.suffix != ".safetensors":
            continue
        for name, line in _lines(path).items():
            if name in found:
                raise UsageError(f"{path.parent}: {name} is in {found[name].file.name} and in {path.name}: remove one of them")
            found[name] = Entry(line["dtype"], tuple(line["shape"]), path)
    return found


def _lines(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            lines = json.loads(file.read(min(size, path.stat().st_size)))
        return {name: line for name, line in lines.items() if name != "__metadata__"}
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path} cannot be loaded: its header is damaged ({one_line(error)}): download it again") from error


def listed(paths: list[Path], hashes: dict[str, str]) -> dict[str, Any]:
    """For the manifest: each file with its size and, where known, its hash; how many tensors of each type they hold. The
    hub's cache calls a large file by its hash."""
    lines = []
    for path in paths:
        blob = path.resolve().name
        known = hashes.get(path.name) or (blob if re.fullmatch("[0-9a-f]{64}", blob) else None)
        lines.append({"file": path.name, "size": path.stat().st_size, "sha256": known})
    return {"files": lines, "dtypes": dict(sorted(Counter(entry.dtype for entry in read_header(paths).values()).items()))}


def read_weights(folder: Path, paths: list[Path], **settings: Any) -> Any:
    """A causal LM from a folder, with all that its weight files hold and nothing else."""
    if other := getattr(settings.get("config"), "transformers_weights", None):
        raise UsageError(f"{folder}: its config.json names other weights (transformers_weights: {other}): remove that line")
    header = read_header(paths)
    model, report = load(folder, **settings, use_safetensors=True)
    refuse_lacks(report, str(folder))
    check(model, report, header, folder)
    return model


def load(folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A model as transformers reads it, and transformers' report: mismatched shapes among it, rather than an error."""
    from transformers import AutoModelForCausalLM

    reader: Any = AutoModelForCausalLM
    model, report = reader.from_pretrained(str(folder), **settings, output_loading_info=True, ignore_mismatched_sizes=True)
    return model, report


def refuse_lacks(report: dict[str, Any], where: str) -> None:
    """transformers fills what a checkpoint lacks with random numbers and only warns."""
    lacks = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if lacks:
        raise UsageError(
            f"{where}: {len(lacks)} of its tensors are missing or of another shape than the configuration says "
            f"({named(lacks)}): copy or download it again, or correct its configuration"
        )


def check(model: Any, report: dict[str, Any], header: dict[str, Entry], folder: Path) -> None:
    """Refuse by name what the files hold and the model does not, and what two tensors claim or a class may lack."""
    if getattr(model, "hf_quantizer", None) is not None:  # its tensors have names of their own; the report is what there is
        refuse_leftovers(sorted(report["unexpected_keys"]), str(folder))
        return
    places = landing(model, list(header))
    state = model.state_dict()
    refuse_leftovers([name for name in header if places[name] is None and not harmless(name, header[name], model)], str(folder))
    reached = {place for place in places.values() if place}
    may_lack = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    tied = getattr(model, "all_tied_weights_keys", {})
    lacks = {key for key in state.keys() - reached - tied.keys() if any(re.search(pattern, key) for pattern in may_lack)}
    refuse_lacks({"missing_keys": lacks, "mismatched_keys": ()}, str(folder))
    refuse_untied(model, str(folder))


def refuse_leftovers(names: list[str], where: str, remedy: str = ANNOUNCE) -> None:
    """One line for tensors of the file that would be dropped in silence."""
    if names:
        raise UsageError(
            f"{where}: {len(names)} of the tensors in the file have no place in the model, which would be measured without them "
            f"({named(names)}): {remedy}"
        )


def refuse_untied(model: Any, where: str) -> None:
    """A configuration that ties two tensors, and a file that holds different ones: which is meant, nobody can tell."""
    if not hasattr(model, "get_expanded_tied_weights_keys"):
        return
    declared = model.get_expanded_tied_weights_keys(all_submodels=True)
    if untied := sorted(declared.keys() - model.all_tied_weights_keys.keys()):
        raise UsageError(
            f"{where}: {named(untied)} differs in the file from {declared[untied[0]]}, to which the configuration ties it: "
            'write "tie_word_embeddings": false into config.json if the file is right, or remove the tensor from it'
        )


def landing(model: Any, names: list[str], mapping: list[Any] | None = None) -> dict[str, str | None]:
    """Name in the file -> name in the model, by the rules that transformers loads by; None where there is no place."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model) if mapping is None else mapping
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state: dict[str, Any] = dict.fromkeys(model.state_dict(), True)
    prefix = model.base_model_prefix
    places: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    for name in sorted(names, key=dot_natural_key):
        place, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if place not in state and name in state:
            place, pattern = rename_source_key(name, [], [], prefix, state)
        places[name] = place if place in state else None
        if pattern is None and taken.setdefault(place, name) != name and place in state:
            raise UsageError(f"{taken[place]} and {name} of the file are the same tensor of the model: remove one of them")
    return places


def harmless(name: str, entry: Entry, model: Any) -> bool:
    """The closed list of what a file may hold beside a model's own tensors, each with its reason."""
    if MASK.search(name):  # the causal mask of GPT-2, GPT-J and GPT-NeoX, or the number it masks with: no weights
        square = len(entry.shape) == 4 and entry.shape[-1] == entry.shape[-2]
        return square or (name.endswith("masked_bias") and prod(entry.shape) == 1)
    if POSITIONS.search(name):  # 0, 1, 2, ...: what every model counts for itself
        return entry.dtype in ("I64", "I32")
    if FREQUENCIES.search(name):  # what follows from the configuration, where it does
        return _same_frequencies(name, entry, model)
    if SENSES.search(name):  # what turns pictures and sounds into embeddings: a text has none
        return True
    return is_ahead(name, model.config)


def is_ahead(name: str, config: Any) -> bool:
    """A layer that predicts tokens after the next (MTP): no logit of the next token passes through it."""
    text = config.get_text_config(decoder=True)
    layer = LAYER.search(name)
    more = getattr(text, "num_nextn_predict_layers", 0) or 0
    beyond = layer is not None and 0 <= int(layer[2]) - text.num_hidden_layers < more
    return bool(AHEAD.search(name)) or beyond


def _same_frequencies(name: str, entry: Entry, model: Any) -> bool:
    """Whether stored rotary frequencies are the model's, or those it scales; old files hold them in half precision."""
    import torch
    from safetensors import safe_open

    with safe_open(entry.file, framework="pt") as file:
        stored = file.get_tensor(name).float()
    known = [buffer.float().cpu() for key, buffer in model.named_buffers() if key.endswith("inv_freq")]
    theta = (getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}).get("rope_theta")
    if theta:
        size = 2 * stored.numel()
        known.append(1 / theta ** (torch.arange(0, size, 2).float() / size))
    return any(stored.shape == own.shape and torch.allclose(stored, own, rtol=1e-2, atol=1e-6) for own in known)


def named(names: list[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and warnings, put back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

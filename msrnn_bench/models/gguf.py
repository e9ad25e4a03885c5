"""A GGUF file made into a standard folder, with nothing of it passed over.

transformers reads of a GGUF's metadata what it knows and drops the rest: scaled rotations, frequencies stored as a tensor,
biases. Here what is known to be dropped is applied (`settle`), and then every setting of the architecture is held against
the configuration that came out, every tensor against the model; what is left over is refused by name. `metadata.py` has the
list of settings, `gguf_tokenizer.py` looks at the tokenizer.
"""

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

from msrnn_bench.errors import MachineError, UsageError, one_line, out_of_memory
from msrnn_bench.models import headers
from msrnn_bench.models.gguf_tokenizer import check_tokenizer, nearly
from msrnn_bench.models.metadata import check_settings, settle

SOURCE = "source.json"  # beside the converted weights: what they were made of
EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|up|down)_exps\.weight")
FREQUENCIES = "rope_freqs.weight"


def convert(file: Path, folder: Path) -> None:
    """Dequantise to float32 safetensors. The tensors go into a model without the quantisation entry in its config,
    because transformers saves no model that carries one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    gguf = {"gguf_file": file.name, "local_files_only": True}
    with headers.quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar heeds no setting
        with _readable(file):
            metadata, tensors = _read(file)
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **gguf)
            config = AutoConfig.from_pretrained(str(file.parent), **gguf)
            applied = settle(config, metadata, tensors.get(FREQUENCIES))
            check_settings(config, metadata, file.name)
            loaded, report = headers.load(file.parent, **gguf, config=config, dtype=torch.float32)
        headers.refuse_lacks(report, file.name)
        _check_tensors(loaded, tensors, {FREQUENCIES} if "rotary frequencies" in applied else set(), file.name)
        config.dtype = torch.float32
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with _readable(file):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            check_tokenizer(tokenizer, metadata, plain.get_input_embeddings().weight.shape[0], file.name)
    types = Counter(tensor.tensor_type.name for tensor in tensors.values())
    note = {"file": file.name, "size": file.stat().st_size, "dtypes": types, "applied": applied, "otherwise": nearly(metadata)}
    (folder / SOURCE).write_text(json.dumps(note))
    for path in folder.iterdir():  # safetensors writes for its owner only; a cache may be shared
        path.chmod((folder / "config.json").stat().st_mode)


def source(folder: Path) -> dict[str, Any]:
    """What a converted folder was made of, as `convert` noted it."""
    return dict(json.loads((folder / SOURCE).read_text(encoding="utf-8")))


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings and all tensors of the file, by name; long lists of words among them."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    if metadata.get("general.type", "model") != "model":
        kind = metadata["general.type"]
        raise UsageError(
            f"{file.name} holds no model but one's {kind}: give the GGUF file of a whole model (merge a LoRA into it)"
        )
    if metadata.get("split.count", 1) > 1:
        parts = metadata["split.count"]
        raise UsageError(f"{file.name} is one of {parts} parts: join them first (llama-gguf-split --merge FIRST_PART OUT)")
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Whatever a damaged byte leads the readers to, as one line."""
    import transformers

    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise MachineError(f"{file} does not fit into memory as float32: take a smaller model") from error
        readable = f"one that transformers {transformers.__version__} does not read"
        raise UsageError(
            f"{file} cannot be read as a model ({one_line(error)}): "
            f"the file is cut off or damaged (download it again), or its architecture is {readable}"
        ) from error


def _check_tensors(model: Any, tensors: dict[str, Any], spent: set[str], where: str) -> None:
    """By name where transformers' table of names is known, and by the number of weights in any case: renaming,
    transposing and fusing keep it, dropping does not."""
    headers.refuse_untied(model, where)
    names = _names(model, tensors)
    unused = {name for name in tensors if name in spent or _is_ahead(name, model.config)}
    left = [name for name in tensors if name not in names | unused]
    headers.refuse_leftovers(left, where, "give the original folder (model=local), whose configuration can announce them")
    stored = sum(prod(int(n) for n in tensor.shape) for name, tensor in tensors.items() if name not in unused)
    kept = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    tied = sum(prod(int(n) for n in tensors[n_].shape) for n_ in _twice(model, tensors))
    if stored - tied != sum(kept.values()):
        raise UsageError(
            f"{where} holds {stored - tied} weights, the model made of it {sum(kept.values())}: "
            "this architecture is not read whole; give the original folder (model=local)"
        )


def _names(model: Any, tensors: Iterable[str]) -> set[str]:
    """Which names of the file transformers puts into this model."""
    from transformers.integrations.gguf import get_gguf_conversion_mapping, is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    header = getattr(model.hf_quantizer, "header", None)
    if header is not None and is_gguf_arch_supported(header.architecture):
        mapping = get_gguf_conversion_mapping(header.architecture, model.config)
        return {name for name, place in headers.landing(model, list(tensors), mapping).items() if place}
    kind = model.config.model_type.replace("_", "")
    processor = next((value for key, value in TENSOR_PROCESSORS.items() if key.replace("-", "") == kind), TensorProcessor)
    known = get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    return {name for name in tensors if name in known or (EXPERTS.fullmatch(name) and name.removesuffix(".weight") in known)}


def _is_ahead(name: str, config: Any) -> bool:
    return headers.is_ahead(name.replace("blk.", "layers.", 1), config)


def _twice(model: Any, tensors: dict[str, Any]) -> list[str]:
    """The output layer, where the file repeats the embedding to which the model ties it."""
    return [name for name in tensors if name == "output.weight" and model.config.get_text_config().tie_word_embeddings]

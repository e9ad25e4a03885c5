"""A GGUF file of a tiny model of transformers, written by the format's own package: what its loader must give back."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
}
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = {
    "model": "gpt2", "tokens": [*ALPHABET, "ab", "<|endoftext|>"], "token_type": [1] * 257 + [3], "merges": ["a b"],
    "eos_token_id": 257, "padding_token_id": 257,
}  # fmt: skip
PIECES = {  # sentencepiece: three control tokens, the bytes, a few letters
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "a", "b", "▁a", "ab"],
    "token_type": [2, 3, 3, *[6] * 256, *[1] * 5], "scores": [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, -5.0],
    "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
}  # fmt: skip


def settings(model: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a configuration."""
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rotation = getattr(text, "rope_parameters", None) or {}
    rotation = rotation.get("full_attention") or rotation
    epsilon = next(
        getattr(text, k)
        for k in ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
        if hasattr(text, k)
    )
    named = {
        "context_length": getattr(text, "max_position_embeddings", 128),
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": 1
        if text.model_type == "falcon"
        else getattr(text, "num_key_value_heads", text.num_attention_heads),
        "attention.layer_norm_rms_epsilon" if hasattr(text, "rms_norm_eps") else "attention.layer_norm_epsilon": float(epsilon),
    }
    if rotation:
        turned = int(head * rotation.get("partial_rotary_factor", 1))
        named |= {"rope.freq_base": float(rotation["rope_theta"]), "rope.dimension_count": turned}
    if text.model_type in ("qwen3", "qwen3_moe", "gemma2", "gemma3_text"):
        named |= {"attention.key_length": head, "attention.value_length": head}
    if text.model_type in ("gemma2", "gemma3_text", "phi3") and text.sliding_window:
        named |= {"attention.sliding_window": text.sliding_window}
    if hasattr(text, "num_experts"):
        named |= {"expert_count": text.num_experts, "expert_used_count": text.num_experts_per_tok}
        named |= {"expert_feed_forward_length": text.moe_intermediate_size}
    if hasattr(text, "shared_expert_intermediate_size"):
        named |= {"expert_shared_feed_forward_length": text.shared_expert_intermediate_size}
    return named


def tensors(model: Any) -> dict[str, np.ndarray]:
    """The weights under the names, and in the forms, that llama.cpp's converter gives them."""
    text = model.config.get_text_config()
    kind = text.model_type
    arch = ARCHITECTURES.get(kind, kind)
    names = gguf.get_tensor_name_map(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch), text.num_hidden_layers)
    heads, groups = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    found = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and text.tie_word_embeddings:
            continue
        value = tensor.float().numpy()
        stem, _, suffix = key.rpartition(".")
        if "experts.gate_up_proj" in key:
            block = f"blk.{key.split('.')[2]}"
            found[f"{block}.ffn_gate_exps.weight"], found[f"{block}.ffn_up_exps.weight"] = np.split(value, 2, axis=1)
            continue
        if "experts.down_proj" in key:
            stem, suffix = key, "weight"
        name = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
        assert name, key
        name = f"{name}.{suffix}"
        if arch == "llama" and ("attn_q." in name or "attn_k." in name):
            n = heads if "attn_q." in name else groups
            value = value.reshape(n, 2, value.shape[0] // n // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if kind in ("gemma2", "gemma3_text", "nemotron") and name.endswith("norm.weight"):
            value = value + 1
        if kind == "gpt2" and any(part in name for part in ("attn_qkv.w", "attn_output.w", "ffn_up.w", "ffn_down.w")):
            value = value.T
        if kind == "bloom" and "attn_qkv" in name:
            value = value.reshape(heads, 3, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
        if name.endswith("ffn_gate_inp_shexp.weight"):
            value = value[0]
        found[name] = np.ascontiguousarray(value)
    return found


def write(
    path: Path, model: Any, *, change: dict[str, Any] | None = None, tokenizer: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None, without: str = "", name: str = "tiny",
) -> Path:  # fmt: skip
    """The model as a file. change: settings of the architecture, other or more (None: left out); tokenizer: of the
    tokenizer; more: further tensors."""
    kind = model.config.get_text_config().model_type
    arch = ARCHITECTURES.get(kind, kind)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    for key, value in {**settings(model), **(change or {})}.items():
        _add(writer, key if key.startswith(("general.", "split.")) else f"{arch}.{key}", value)
    for key, value in {**BYTES, **(tokenizer or {})}.items():
        _add(writer, f"tokenizer.{key}" if "template" in key else f"tokenizer.ggml.{key}", value)
    for key, value in {**tensors(model), **(more or {})}.items():
        if key != without:
            writer.add_tensor(key, np.asarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        add[type(value)](key, value)


def model(kind: str, **more: Any) -> Any:
    """A tiny model of that kind, in float32, whose weights are all of some size: biases and norms too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {
        "vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind in ("gpt2", "bloom", "falcon"):
        del common["num_key_value_heads"], common["intermediate_size"]
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**common, **more})).eval()
    for parameter in made.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    made.tie_weights()
    return made

"""A twin: a model's own class and flags with everything shrunk, weights drawn at random, in float64 on the CPU.

What bounded() gets wrong it gets wrong in the small too, so a twin stands for a model of any size, dtype or placement.
Sizes shrink by the names that configurations have for them; flags stay. `tight` shrinks every length at which a model
changes its ways (windows, sparse top-k, the lengths a rotation scales with) below the text that is tried.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY, HEADS, HEAD, WIDTH = 128, 4, 16, 64
THRESHOLD, FAR = 12, 64  # tokens; a tight twin's windows and scalings begin at the one, a plain twin's not before the other
_SPECIAL = {"pad": 0, "bos": 1, "eos": 2}

# The first pattern that matches a setting's whole name says what its positive whole number becomes (None: stays).
_SIZES: list[tuple[str, int | None]] = [
    (r"type_vocab_size|task_type_vocab_size", None),
    (r"vocab_size|.*_vocab_size|.*_vocab|vocab_size_per_layer_input|num_embeddings|vocab_offset", VOCABULARY),
    (r"ngram_vocab_size_base", 101),
    (r"split_ngram_parts|make_ngram_vocab_size_divisible_by", 2),
    (r".*max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|max_source_positions|model_max_length|"
     r"context_length|.*position_bias_max_distance", None),
    (r"num_hidden_layers|n_layers?|num_layers|decoder_layers|encoder_layers|attention_layers|num_(de|en)coder_layers|num_blocks|"
     r"depth", 2),
    (r"(\w+_)?num_attention_heads|attention_heads|n_heads?|num_heads|(de|en)coder_attention_heads|num_(de|en)coder_attention_heads|"
     r"index_n_heads|linear_num_heads|n_mamba_heads|num_query_groups", HEADS),
    (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads", HEADS),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", HEADS),
    (r"qk_rope_head_dim|rotary_dim", HEAD // 2),
    (r"num_layers_per_stack", 1),
    (r"qk_nope_head_dim", HEAD // 2),
    (r"head_dim|.*_head_dim|v_head_dim|qk_head_dim|kv_channels|d_kv|dim_head|d_head|attention_head_(dim|size)|"
     r"mamba_head_?dim", HEAD),
    (r"moe_intermediate_size|.*expert.*(intermediate|ffn).*size|intermediate_size_mlp|mlp_dim", 32),
    (r".*intermediate_size|.*ffn_dim|.*ffn_hidden_size|d_ff|dff|dim_ff|feed_forward_size|d_inner|n_inner", 96),
    (r".*lora_rank|.*_rank|hc_lowrank|rank|time_step_rank|mamba_dt_rank", HEAD),
    (r"zero_expert_num", 2),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|o_groups", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|num_kv_shared_layers|num_nextn_predict_layers", 1),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head", HEAD),
    (r"mamba_d_ssm", 128),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"(mamba_)?chunk_size|mamba_chunk_size", 8),
    (r"image_size|crop_size", 28),
    (r"patch_size", 14),
    (r"hidden_size_per_layer_input|ple_embed_dim|altup_.*|laurel_rank|embedding_size|.*_embedding_size|.*_embed_dim", 32),
    (r"hidden_size|hidden_size_global|d_model|n_embd|embed_dim|emb_dim|dim|dim_model|dim_model_base|embedding_dim|hidden_dim|"
     r"word_embed_proj_dim|lru_width|.*hidden_size|model_dim", WIDTH),
]  # fmt: skip
_SIZES_BY_NAME = [(re.compile(pattern), size) for pattern, size in _SIZES]
_PER_LAYER = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")
_THRESHOLDS = re.compile(
    r"(\w+_)?sliding_window(_size)?|window_size|attention_window_size|local_attention|local_attention_window_len|keep_window_size|"
    r"attention_chunk_size|index_topk|floor_scale|log_scaling_n_floor|original_max_position_embeddings|rel_extent|"
    r"max_window_layers_size|.*_attn_chunk_length"
)


def shrunk(config: PreTrainedConfig, *, tight: bool, depth: int | None = None) -> PreTrainedConfig:
    """The twin's configuration, of `depth` layers where it is given. Raises what its own class raises."""
    given = copy.deepcopy(config.to_dict())
    given.pop("quantization_config", None)
    return type(config).from_dict(_shrink(given, tight, layers(given) if depth is None else depth))


def layers(settings: dict[str, Any]) -> int:
    """As many as show every kind of layer, at least 2."""
    count = next((settings[k] for k in _PER_LAYER if isinstance(settings.get(k), int)), 2)
    needed = 2
    for value in settings.values():
        if isinstance(value, list) and len(value) == count and count > 2 and all(isinstance(x, str | int) for x in value):
            needed = max(needed, *(value.index(kind) + 1 for kind in set(value)))
    return min(needed, count, 8) if count else needed


def _shrink(settings: dict[str, Any], tight: bool, depth: int) -> dict[str, Any]:
    count = next((settings[k] for k in _PER_LAYER if isinstance(settings.get(k), int)), 0)
    made: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "per_layer_config" and isinstance(value, dict):
            made[name] = {k: _shrink(v, tight, depth) for k, v in value.items() if int(k) < depth}
        elif isinstance(value, dict):
            made[name] = _shrink(value, tight, layers(value) if name.endswith("config") else depth)
        elif isinstance(value, list):
            made[name] = _shrink_list(name, value, count, depth)
        elif isinstance(value, bool) or not isinstance(value, int):
            made[name] = value
        elif name.endswith(("_token_id", "_token_index")) or name in ("pad_index", "mask_index"):
            made[name] = _SPECIAL.get(name.split("_")[0], VOCABULARY - 1 - sum(map(ord, name)) % 20)
        elif value > 0 and _is_threshold(name, settings):
            made[name] = min(value, THRESHOLD) if tight else max(value, FAR)
        else:
            made[name] = _shrink_number(name, value, settings, depth)
    return made


def _is_threshold(name: str, settings: dict[str, Any]) -> bool:
    """Whether the model does otherwise beyond that many tokens."""
    if name == "max_position_embeddings":
        return "dynamic" in repr(settings.get("rope_parameters") or settings.get("rope_scaling"))
    return _THRESHOLDS.fullmatch(name) is not None


def _shrink_number(name: str, value: int, settings: dict[str, Any], depth: int) -> int:
    size = next((size for pattern, size in _SIZES_BY_NAME if pattern.fullmatch(name)), None)
    if size is None or value <= 0:
        return value
    if name in _PER_LAYER:
        return min(value, depth)
    if name == "mamba_d_ssm":
        return min(settings["mamba_n_heads"], 8) * min(settings["mamba_d_head"], HEAD)
    if name == "head_dim" and "qk_rope_head_dim" in settings:  # of latent attention: the rotated part
        return min(value, HEAD // 2)
    if name.endswith(("key_value_heads", "kv_heads", "kv_n_heads")):
        heads = next((settings[k] for k in ("num_attention_heads", "n_head", "num_heads", "n_heads") if k in settings), value)
        return 1 if value == 1 else HEADS if value == heads else HEADS // 2
    return min(value, size)


def _shrink_list(name: str, value: list[Any], count: int, depth: int) -> list[Any]:
    if name == "mrope_section":  # its sum is half the rotated part of a head
        return [HEAD // 4, HEAD // 8, HEAD // 8]
    if name.endswith(("_token_id", "_token_ids")):
        return [_SPECIAL["eos"]] if value else value
    if name == "attention_types":
        return [[value[0][0], max(1, depth // max(1, len(value[0][0])))]]
    if count and len(value) == count:
        return value[:depth]
    return value


def build(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 7) -> PreTrainedModel:
    """A model of this class, its weights enlarged so that attention is peaked; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in (config, *(getattr(config, name) for name in getattr(config, "sub_configs", {}) if hasattr(config, name))):
            if isinstance(part, PreTrainedConfig):
                part._attn_implementation = "eager"
                part._experts_implementation = "eager"
        model = kind(config).double()
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                parameter.normal_(0, 0.02)
            if parameter.dim() > 1:
                parameter.mul_(_gain(name, parameter))
    return model.eval().requires_grad_(False)


def _gain(name: str, parameter: torch.Tensor) -> float:
    """Up to a deviation of about 0.1: attention decides, and nothing overflows."""
    spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
    return min(6.0, max(1.0, 0.12 / spread)) if spread > 0 else 1.0


def threshold(config: PreTrainedConfig) -> int:
    """The smallest length at which the model's settings say that it changes its ways: up to there the plain twin speaks."""
    return min(_thresholds(config.to_dict()), default=0)


def _thresholds(settings: dict[str, Any]) -> list[int]:
    found = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _thresholds(value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0 and _is_threshold(name, settings):
            found.append(value)
    return found


class Wide(TorchFunctionMode):
    """Keeps a float64 model in float64 where its code asks for float32 (softmax, norms, rotations), so that two ways to
    compute one attention agree to rounding of float64, and 1e-9 tells right from wrong."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        elif func in (torch.Tensor.to, torch.Tensor.type):
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return func(*args, **kwargs)

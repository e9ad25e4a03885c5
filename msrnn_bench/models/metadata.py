"""What the settings of a GGUF file mean for a configuration of transformers: applied where it is dropped, then compared.

Every key of the architecture is either equal to what the configuration says, or known to change nothing, or refused by
name. The names are those of the format's specification; the values where a key is absent are llama.cpp's.
"""

from math import isclose
from typing import Any

from msrnn_bench.errors import UsageError

# Key of the file -> attributes of configurations that mean the same, any of which may be there.
SAME = {
    "vocab_size": ("vocab_size",),
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads", "num_attention_heads"),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual", "parallel_attn"),
    "full_attention_interval": ("full_attention_interval",),
    "shortconv.l_cache": ("conv_L_cache",),
    "logit_scale": ("logit_scale",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "ssm.conv_kernel": ("linear_conv_kernel_dim",),
    "ssm.state_size": ("linear_key_head_dim",),
    "ssm.group_count": ("linear_num_key_heads",),
    "ssm.time_step_rank": ("linear_num_value_heads",),
}
# Wrong values of these give tensors of another shape, which is refused, also where no attribute has their name.
SHAPES = {
    "vocab_size", "embedding_length", "block_count", "feed_forward_length", "expert_feed_forward_length",
    "expert_shared_feed_forward_length", "ssm.inner_size",
}  # fmt: skip
# How the file was written, or a limit that no logit depends on.
SILENT = {"tensor_data_layout", "rope.scaling.finetuned", "context_length"}
# With these values a key asks for nothing, whether or not the model knows it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,), "expert_used_count": (0,), "expert_shared_count": (0,), "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,), "attention.causal": (True,), "attention.clamp_kqv": (0,), "attention.max_alibi_bias": (0,),
    "attention.sliding_window": (0,), "attn_logit_softcapping": (0,), "final_logit_softcapping": (0,), "pooling_type": (0,),
    "logit_scale": (0, 1), "embedding_scale": (0, 1), "residual_scale": (0, 1), "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1), "rope.scaling.attn_factor": (0, 1),
}  # fmt: skip
ABSENT = {"rope.freq_base": 10000.0}  # what llama.cpp takes where the file is silent


def settle(config: Any, metadata: dict[str, Any], frequencies: Any) -> list[str]:
    """Apply what transformers drops and what its configurations express exactly; the names of what was applied."""
    text, applied = config.get_text_config(), []
    arch = metadata["general.architecture"]
    has = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    for key, attribute, architectures in (
        ("attention.key_length", "head_dim", ("qwen3", "qwen2", "llama", "nemotron")),
        ("attention.sliding_window", "sliding_window", ("phi3",)),
        ("context_length", "n_positions", ("gpt2",)),
        ("expert_feed_forward_length", "moe_intermediate_size", ("qwen2moe", "qwen3moe")),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size", ("qwen2moe",)),
    ):
        if arch in architectures and key in has and getattr(text, attribute, None) != has[key]:
            setattr(text, attribute, has[key])
            applied.append(key)
    if arch in ("gemma2", "gemma3"):  # llama.cpp's rule: the largest of each family has another scale of attention
        largest = has["block_count"] == {"gemma2": 46, "gemma3": 62}[arch]
        width = has["embedding_length"] // has["attention.head_count"] if largest else text.head_dim
        if text.query_pre_attn_scalar != width:
            text.query_pre_attn_scalar = width
            applied.append("attention scale")
    if has.get("rope.scaling.type") == "linear" and has.get("rope.scaling.factor", 0) not in (0, 1):
        _rotate(text, {"rope_type": "linear", "factor": float(has["rope.scaling.factor"])})
        applied.append("rope.scaling")
    if frequencies is not None:
        applied += _settle_frequencies(text, frequencies, scaled=has.get("rope.scaling.type", "none") != "none")
    return applied


def check_settings(config: Any, metadata: dict[str, Any], where: str) -> None:
    """Refuse by name what is set in the file and otherwise, or not at all, in the configuration."""
    arch = metadata["general.architecture"]
    text = config.get_text_config()
    settings = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    rotates = _rotation(text).get("rope_theta") is not None
    wrong = []
    for key, value in {**(ABSENT if rotates else {}), **settings}.items():
        means = meaning(text, key, settings)
        equal = means is not None and same(value, means)
        neutral = value in NEUTRAL.get(key, ()) and (means in (None, False) or means in NEUTRAL[key])
        if not (equal or neutral or (means is None and key in SHAPES) or key in SILENT):
            wrong.append(f"{arch}.{key}={value} ({'unknown' if means is None else f'read as {means}'})")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(
            f"{where}: {', '.join(wrong[:3])}{more}: transformers does not apply this setting of the file, and the numbers "
            "would be another model's; give the original folder (model=local) or another file"
        )


def meaning(text: Any, key: str, settings: dict[str, Any]) -> Any:
    """What the configuration says about a key of the file; None where it says nothing."""
    rotation = _rotation(text)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if key == "rope.freq_base":
        return rotation.get("rope_theta")
    if key == "rope.dimension_count":
        share = rotation.get("partial_rotary_factor", getattr(text, "partial_rotary_factor", None)) or 1.0
        return int(head * share) if rotation else None
    if key.startswith("rope.scaling."):
        return _scaling(rotation, key)
    if key == "rope.freq_base_swa":
        return (_nested(text).get("sliding_attention") or {}).get("rope_theta")
    if key in ("attention.key_length", "attention.value_length"):
        return getattr(text, "global_head_dim", None) or head
    if key == "rope.dimension_sections":
        return [*rotation["mrope_section"], 0] if "mrope_section" in rotation else None
    if key == "ssm.inner_size" and hasattr(text, "linear_value_head_dim"):
        return text.linear_value_head_dim * text.linear_num_value_heads
    if key == "expert_gating_func":  # softmax, sigmoid
        return {"softmax": 1, "sigmoid": 2}.get(getattr(text, "scoring_func", "softmax"))
    if key == "block_count":
        return text.num_hidden_layers + settings.get("nextn_predict_layers", 0)
    if key == "nextn_predict_layers":  # counted among the blocks, and left out of the model
        return settings["block_count"] - text.num_hidden_layers
    if key == "attention.head_count_kv" and getattr(text, "multi_query", False):
        return 1 if not getattr(text, "new_decoder_architecture", False) else text.num_kv_heads
    declared = {*type(text)().to_dict(), *text.attribute_map}  # a configuration takes any name, and means only its own
    found = (getattr(text, name, None) for name in SAME.get(key, ()) if name in declared)
    return next((value for value in found if value is not None), None)


def same(value: Any, means: Any) -> bool:
    """Equal to the precision of a file's float32; a list with a value for each layer agrees where its parts do."""
    if isinstance(value, list):
        if isinstance(means, list):
            return len(value) == len(means) and all(map(same, value, means))
        return all(same(part, means) for part in value if part)
    if isinstance(value, float) and isinstance(means, int | float):
        return isclose(value, means, rel_tol=1e-6)
    return bool(value == means)


def _nested(text: Any) -> dict[str, Any]:
    return getattr(text, "rope_parameters", None) or {}


def _rotation(text: Any) -> dict[str, Any]:
    """The rotation's parameters; of the layers with full attention where each kind has its own."""
    return _nested(text).get("full_attention") or _nested(text)


def _scaling(rotation: dict[str, Any], key: str) -> Any:
    """A scaling other than the linear one says more than is compared here, and so stays unknown."""
    kind = rotation.get("rope_type", "default")
    if kind not in ("default", "linear"):
        return None
    return {"rope.scaling.type": "none" if kind == "default" else kind, "rope.scaling.factor": rotation.get("factor")}.get(key)


def _rotate(text: Any, change: dict[str, Any]) -> None:
    whole = _nested(text)
    inner = {**_rotation(text), **change}
    text.rope_parameters = {**whole, "full_attention": inner} if "full_attention" in whole else inner


def _settle_frequencies(text: Any, tensor: Any, *, scaled: bool) -> list[str]:
    """`rope_freqs.weight` holds by what each frequency is divided. Ones divide nothing; those of Llama 3.1 and 3.2 follow
    from one number, 8 or 32. Others are left, and refused as a tensor without a place."""
    import copy

    import numpy as np
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    factors = torch.from_numpy(np.array(tensor.data, dtype=np.float32)).flatten()
    if torch.equal(factors, torch.ones_like(factors)):
        return ["rotary frequencies"]
    if scaled or "full_attention" in _nested(text):
        return []
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    plain = 1 / _rotation(text)["rope_theta"] ** (torch.arange(0, head, 2).float() / head)
    for factor in (8.0, 32.0):
        trial = copy.deepcopy(text)
        limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        _rotate(trial, {"rope_type": "llama3", "factor": factor, **limits})
        inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](trial)
        if inverse.shape == factors.shape and torch.allclose(inverse, plain / factors, rtol=1e-6, atol=0):
            text.rope_parameters = trial.rope_parameters
            return ["rotary frequencies"]
    return []

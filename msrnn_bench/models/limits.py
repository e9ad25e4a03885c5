"""What a configuration alone tells of a model: whether it is a causal language model, and how far its positions reach.

Reads no weights; transformers' tables are imported where they are asked.
"""

from typing import Any

from msrnn_bench.errors import UsageError


def check_supported(config: Any) -> None:
    """Refuse what is no left-to-right language model (attention itself is checked where it is replaced)."""
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder:
        raise UsageError(f"{kind} is an encoder-decoder: only decoder-only causal language models can be measured")
    if kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not own_code:
        raise UsageError(f"transformers has no causal language model for {kind}: give a decoder-only model")
    if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UsageError(f"{kind} reads in both directions (a masked language model): give a decoder-only model")


def max_positions(config: Any) -> int | None:
    """How many positions the configuration declares; None where it declares no limit. A scaling of the rotary
    embedding counts only as far as max_position_embeddings includes it."""
    text = config.get_text_config(decoder=True)
    for field in ("max_position_embeddings", "n_positions"):
        if isinstance(value := getattr(text, field, None), int) and value > 0:
            return value
    return None


def is_rotary(config: Any) -> bool:
    """Whether positions enter by rotation, and so can go beyond the declared ones."""
    text = config.get_text_config(decoder=True)
    rotates = bool(getattr(text, "rope_parameters", None) or getattr(text, "rotary_dim", None))
    return rotates and not getattr(text, "alibi", False)

"""Which models can be bounded exactly, read off their configuration; the rest are refused with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msrnn_bench.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "msrnn_bounded"  # of our attention, to the library
_OTHER_LAYERS = {"linear_attention", "chunked_attention", "mamba", "conv", "recurrent"}


def check_supported(model: PreTrainedModel) -> None:
    """Raise UsageError where keeping k states would not be all that changes."""
    config = model.config.get_text_config()
    name = type(model).__name__
    if model.config._attn_implementation == NAME:
        raise UsageError("bounded() inside bounded(): leave the outer block first")
    if model.training:
        raise UsageError("the model is in training mode; call model.eval() first")
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"{name} is an encoder-decoder; only decoder-only models are multi-state RNNs")
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "") == "alibi":
        raise UsageError(f"{name} uses ALiBi: its attention depends on distances that bounded() does not compute")
    if getattr(config, "attn_logit_softcapping", None):
        raise UsageError(f"{name} caps its attention logits (soft-capping), which bounded() does not compute")
    if getattr(config, "reorder_and_upcast_attn", False):
        raise UsageError(f"{name} has reorder_and_upcast_attn, which goes around the attention interface; set it to False")
    other = _OTHER_LAYERS & set(getattr(config, "layer_types", None) or ())
    if other:
        raise UsageError(f"{name} has layers of type {', '.join(sorted(other))}, whose state is not a key-value cache")


def layer_count(model: PreTrainedModel) -> int:
    """How many layers have states."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(count, int) or count < 1:
        raise UsageError(
            f"the configuration of {type(model).__name__} does not say how many layers it has (num_hidden_layers), so "
            "they cannot be bounded; take a decoder-only model"
        )
    return count


def sliding_window(config: Any) -> int | None:
    """The model's own window in tokens, None where it has none; inert as long as the text is not longer."""
    config = config.get_text_config()
    types = getattr(config, "layer_types", None)
    if types is not None and "sliding_attention" not in types:
        return None
    if types is None and getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)

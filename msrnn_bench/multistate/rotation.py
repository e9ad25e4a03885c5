"""Rotations that depend on how long the text read is (`dynamic`, `longrope`): beyond the length they were trained on, a
text read in pieces is rotated otherwise than the whole text, and a short row otherwise beside a long one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msrnn_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def stretches(config: Any) -> tuple[str, int] | None:
    """The kind of rotation that changes with the text's length, and the tokens beyond which it does; None where none."""
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    found = []
    for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        kind = one.get("rope_type", "default")
        original = one.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        if kind in ("dynamic", "longrope"):
            found.append((kind, int((original if kind == "longrope" else None) or config.max_position_embeddings)))
    return min(found, key=lambda pair: pair[1], default=None)


def piece_of(config: Any, tokens: int, piece: int) -> int:
    """Tokens of a call where a text of `tokens` could be read `piece` by piece: all of them where its rotation needs that."""
    own = stretches(config)
    return tokens if own is not None and tokens > own[1] else piece


def check_rotation(config: Any, before: list[int], after: list[int]) -> None:
    """Refuse a call whose rows, with `before` tokens read and `after` in the end, would not all have their own rotation."""
    own = stretches(config)
    if own is None or max(after, default=0) <= own[1]:
        return
    kind, limit = own
    if any(before) and not (kind == "longrope" and min(before) > limit):
        raise UsageError(
            f"this model's {kind} rotation depends on the length of the text beyond {limit} tokens, so a longer text cannot be "
            f"read in pieces or written on: read it in one call, or stay within {limit} tokens"
        )
    if len(set(after)) > 1 and not (kind == "longrope" and min(after) > limit):
        raise UsageError(
            f"this model's {kind} rotation depends on the length of the text beyond {limit} tokens, so rows of "
            f"{min(after)} and {max(after)} tokens cannot be one batch: read them one by one"
        )


def forget_lengths(model: nn.Module) -> None:
    """A `dynamic` rotation remembers the longest text it has read and rotates the next by it; a new text starts anew."""
    for module in model.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            prefix, first = name.removesuffix("max_seq_len_cached"), getattr(module, "original_max_seq_len", None)
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if first is not None and original is not None and getattr(module, name) > first:
                setattr(module, name, first)
                buffer = getattr(module, f"{prefix}inv_freq")
                module.register_buffer(f"{prefix}inv_freq", original.to(buffer.device), persistent=False)

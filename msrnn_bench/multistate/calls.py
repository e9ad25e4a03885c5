"""What a call of a bounded model may say: masks, positions, marks. What would be measured wrongly is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function, sdpa_mask

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.support import sliding_window

BLOCK = 1024  # rows of a mask that are looked at together


def marks(model: PreTrainedModel) -> tuple[set[int], int | None]:
    """The ids that end a text, and the one that `generate` feeds rows that have ended (an end mark where none is named)."""
    config = getattr(model, "generation_config", None) or model.config
    named = config.eos_token_id
    ends = [] if named is None else list(named) if isinstance(named, list | tuple) else [int(named)]
    return set(ends), config.pad_token_id if config.pad_token_id is not None else next(iter(ends), None)


def real_tokens(mask: Tensor | None, seen: int, new: int) -> Tensor | None:
    """[B, T] True at real tokens from the caller's mask [B, seen + T]; None where all are."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise UsageError("attention_mask must be 2-D (batch, tokens): a 4-D mask says which states to attend to, the policy does")
    if mask.shape[1] != seen + new:
        raise UsageError(f"attention_mask covers {mask.shape[1]} tokens, but {seen} were read and {new} are new")
    real = mask[:, seen:].bool()
    return None if bool(real.all()) else real


def check_positions(positions: Tensor | None, padding: Tensor | None, seen: list[int]) -> None:
    """Refuse packed sequences (several texts in one row would share a state), and positions that do not go on from what
    was read: `generate` cuts what it takes for read off the text it is given, whatever that text is."""
    if positions is None or positions.dim() != 2 or not positions.shape[1]:
        return
    falls = positions[:, 1:] <= positions[:, :-1]
    if padding is not None:
        falls = falls & padding[:, 1:] & padding[:, :-1]
    if bool(falls.any()):
        raise UsageError("position_ids start again inside a row (packed sequences); give each text a row of its own")
    begin = positions[:, 0] if padding is None else positions.gather(1, padding.int().argmax(-1, keepdim=True))[:, 0]
    for row, position in enumerate(begin.tolist()):
        due = seen[row] if seen else 0
        if position != due and (padding is None or bool(padding[row].any())):
            raise UsageError(
                f"position_ids begin at {position} where the states have read {due} tokens: give generate the whole text so far, "
                "the new part behind it; without states to go on from a text begins at 0"
            )


def check_window(config: Any, end: int) -> None:
    """Refuse a call that ends beyond the model's own window: its attention would not be the whole text's."""
    window = sliding_window(config)
    if window is not None and end > window:
        raise UsageError(
            f"the model's own sliding window of {window} tokens would bind at {end} tokens; "
            f"stay within {window} tokens (set context={window} or less)"
        )


def placed(model: str, positions: Tensor, padding: Tensor | None, seen: int, *, named: bool) -> dict[str, Tensor]:
    """What hands over each row's true positions [B, T]; a model whose forward names none counts columns, which must then be the
    same."""
    if named:
        return {"position_ids": positions}
    columns = seen + torch.arange(positions.shape[1], device=positions.device)
    differs = (positions != columns) if padding is None else (positions != columns) & padding
    if bool(differs.any()):
        raise UsageError(f"{model} takes no position_ids and counts padding as text: pad on the right, or read rows one by one")
    return {}


def own_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function, device: Any = "cpu", **kwargs: Any,
) -> Tensor | None:  # fmt: skip
    """Called by transformers where it would build a mask. A bounded state knows one order, the causal one: None for that; for
    any mask that shows a token more or less (images read in both directions, blocks, windows that bind) a stand-in,
    which our attention refuses where a layer uses it.

    Padding is not in it; it reaches the states as `MultiState.padding`.
    """
    if mask_function is causal_mask_function:
        return None
    columns = torch.arange(kv_length, device=device) + kv_offset
    for at in range(0, q_length, BLOCK):
        rows = min(BLOCK, q_length - at)
        shown = sdpa_mask(
            batch_size=batch_size, q_length=rows, kv_length=kv_length, q_offset=q_offset + at, kv_offset=kv_offset,
            mask_function=mask_function, attention_mask=None, allow_is_causal_skip=False, device=device,
            use_vmap=kwargs.get("use_vmap", False),
        )  # fmt: skip
        causal = columns <= torch.arange(q_offset + at, q_offset + at + rows, device=device)[:, None]
        if shown is not None and not bool((shown == causal).all()):
            return torch.zeros(1, 1, 1, 1, device=device).expand(batch_size, 1, q_length, kv_length)
    return None

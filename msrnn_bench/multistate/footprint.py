"""What states occupy, as allocated: the storage of every tensor that a state carries from token to token.

The float32 mirrors that the scan multiplies with (products.py) live for one call and are none of it; a peak sees them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from msrnn_bench.multistate.cache import MultiState


@dataclass(frozen=True)
class Footprint:
    """Bytes over all layers and rows. `held`: keys and values of the states alive; `slots`: keys' and values' storage beyond
    them, room for states to come; `books`: positions, scores and whatever else a state carries."""

    held: int
    slots: int
    books: int

    @property
    def total(self) -> int:
        return self.held + self.slots + self.books


def footprint(states: MultiState) -> Footprint:
    """Of the states as they are now; two tensors of one storage count once."""
    held = sum(state.nbytes for state in states.layers_)
    large: dict[int, int] = {}
    small: dict[int, int] = {}
    for state in states.layers_:
        for item in fields(state):
            value = getattr(state, item.name)
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor) and tensor.numel():
                    storage = tensor.untyped_storage()
                    place = large if item.name in ("keys", "values") else small
                    place[storage.data_ptr()] = storage.nbytes()
    return Footprint(held, sum(large.values()) - held, sum(small.values()))


def exact_bytes(config: object, dtype: torch.dtype, states: int) -> int | None:
    """2 L G D bytes k: of `states` states of one row by a configuration's arithmetic; None where it does not say."""
    text = config.get_text_config(decoder=True)  # type: ignore[attr-defined]
    layers, heads = getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None)
    groups = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "hidden_size", None)
    size = getattr(text, "head_dim", None) or (width // heads if isinstance(width, int) and isinstance(heads, int) else None)
    if not all(isinstance(n, int) for n in (layers, groups, size)):
        return None
    return 2 * layers * groups * size * dtype.itemsize * states  # type: ignore[operator]

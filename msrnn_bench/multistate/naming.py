"""What this library calls its key-value cache: `past_key_values` up to transformers 5.23, `cache` from 5.24 on.

Read off signatures and fields, not off a version: remote code keeps the old name for years.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

NAMES = ("cache", "past_key_values")
LIBRARYS = next(name for name in NAMES if name in CausalLMOutputWithPast.__dataclass_fields__)


def cache_name(model: nn.Module) -> str:
    """The argument of `model.forward`, and of `generate`, that carries the states on."""
    parameters = inspect.signature(model.forward).parameters
    return LIBRARYS if LIBRARYS in parameters else next((name for name in NAMES if name in parameters), LIBRARYS)


def carried(model: nn.Module, states: Any) -> dict[str, Any]:
    """`model(ids, **carried(model, states))`: the call goes on from `states`, by the name this model has for them."""
    return {cache_name(model): states}


def cache_in(output: Any) -> Any:
    """The states in what a model's call returned."""
    return output[next(name for name in NAMES if name in output)]


def given_cache(call: dict[str, Any]) -> Any:
    """What a call was given to go on from, under either name, taken out of it."""
    given = [call.pop(name) for name in NAMES if name in call]
    return next((cache for cache in given if cache is not None), None)

"""What a user's own policy may answer."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from msrnn_bench.errors import UsageError

ARGUMENTS = frozenset({"attention", "keys", "values", "positions", "query_position", "previous", "layer"})
NAN = "the policy's score returned NaN, which ranks nothing"


def checked_scores(answer: Tensor, scores: Tensor) -> Tensor:
    """What a user's `score` returned, refused when it cannot rank the states."""
    found = shaped_scores(answer, scores)
    if torch.isnan(found).any():
        raise UsageError(NAN)
    return found


def shaped_scores(answer: Tensor, scores: Tensor) -> Tensor:
    """The same without a look at the numbers."""
    if not isinstance(answer, Tensor) or answer.shape != scores.shape:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UsageError(
            f"the policy's score must return a tensor of shape {tuple(scores.shape)}, got {got}; "
            'set per = "head" on the policy to decide per KV head'
        )
    return answer.to(scores.dtype)


def unread(score: Callable[..., Any]) -> frozenset[str]:
    """The arguments of `score` that it cannot read, for it takes them by a `**rest` that its code never mentions."""
    return _unread(getattr(score, "__func__", score))


@lru_cache(maxsize=64)
def _unread(function: Callable[..., Any]) -> frozenset[str]:
    if not isinstance(function, FunctionType):
        return frozenset()
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    rest = next((one.name for one in parameters if one.kind is one.VAR_KEYWORD), None)
    mentioned = set(function.__code__.co_names) & {"locals", "vars", "eval", "exec", "dir", "_getframe", "currentframe"}
    for step in dis.get_instructions(function.__code__):
        if rest in (step.argval if isinstance(step.argval, tuple) else (step.argval,)):  # two at once, from Python 3.13 on
            mentioned.add("**")
    return frozenset() if rest is None or mentioned else ARGUMENTS - {one.name for one in parameters}

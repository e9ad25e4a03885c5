"""CUDA streams: what one has made, another must not take without waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

from msrnn_bench.multistate.state import State


def remembered(most: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """`lru_cache` for functions whose last argument is the device that their tensor is on: each stream of it has its own."""

    def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @lru_cache(maxsize=most)
        def kept(stream: int, *arguments: Any) -> Tensor:
            return function(*arguments)

        @wraps(function)
        def remembering(*arguments: Any) -> Tensor:
            return kept(_stream(arguments[-1]), *arguments)

        return remembering

    return decorated


def receive(state: State, mark: Any) -> None:
    """This stream goes on behind `mark`, an event of another; the memory of the state is not given away while it may still be
    read here."""
    stream = torch.cuda.current_stream(state.positions.device)
    stream.wait_event(mark)
    for x in vars(state).values():
        if isinstance(x, Tensor) and x.device == state.positions.device:
            x.record_stream(stream)


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0

"""What a model's rotary modules answer while it runs, and what they would answer at other positions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msrnn_bench.multistate import twin


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a rotary module; `answer` is its cos and sin [rows, width]."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: tuple[Tensor, Tensor]

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [n, pairs] at places [n], in float64 whatever the model's dtype: rounded once, where they are used.
        A scaling of attention (YaRN's) is not in them: it is in the q and k that the model gives at position 0."""
        inputs = [x for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor)]
        device = inputs[0].device
        module = copy.deepcopy(self.module).double()
        with torch.no_grad(), twin.Wide():
            args = [_placed(x, places.to(device)) for x in self.args]
            output = module(*args, **{name: _placed(x, places.to(device)) for name, x in self.kwargs.items()})
        answer = _circle(output)
        assert answer is not None
        return self.pairs((answer[0].double(), answer[1].double()))

    def pairs(self, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One column a pair of dimensions and a circle of radius 1, from a table [n, width] shaped as the answer is."""
        given = self.answer[0]
        half = given.shape[-1] // 2
        step: Any = slice(None)
        if given.shape[-1] % 2 == 0 and torch.equal(given[:, :half], given[:, half:]):
            step = slice(0, half)
        elif given.shape[-1] % 2 == 0 and torch.equal(given[:, 0::2], given[:, 1::2]):
            step = slice(0, None, 2)
        cos, sin = (x[:, step] if x.dtype == torch.float64 else x[:, step].float() for x in table)
        radius = (cos.double() ** 2 + sin.double() ** 2).mean().sqrt().to(cos.dtype)
        return cos / radius, sin / radius


@contextmanager
def overheard(model: nn.Module, calls: list[Call]) -> Iterator[None]:
    """Note every call of a module that answers cosines and sines, whatever the module is called."""

    def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        answer = _circle(output)
        if answer is not None:
            calls.append(Call(module, args, kwargs, answer))

    hooks = [module.register_forward_hook(listen, with_kwargs=True) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _placed(x: Any, places: Tensor) -> Any:
    """An argument of a call for other places [n]: positions are whole numbers; hidden states tell dtype and device alone."""
    if not isinstance(x, Tensor):
        return x
    if x.is_floating_point():
        return torch.zeros(1, len(places), 1, dtype=torch.float64, device=x.device)
    return places.expand(*x.shape[:-2], 1, len(places))


def _circle(output: Any) -> tuple[Tensor, Tensor] | None:
    """cos and sin [rows, width] where that is what `output` holds; of several kinds of positions (of pictures) the first."""
    if isinstance(output, Tensor) and output.is_complex():
        output = (output.real, output.imag)
    if not isinstance(output, tuple | list) or len(output) != 2 or not all(isinstance(x, Tensor) for x in output):
        return None
    cos, sin = output
    if cos.shape != sin.shape or not cos.is_floating_point() or cos.dim() < 2:
        return None
    radius = cos.double() ** 2 + sin.double() ** 2
    if not bool((radius - radius.mean()).abs().max() <= 0.02 * radius.mean()):
        return None
    while cos.dim() > 3:
        cos, sin = cos[0], sin[0]
    return cos.reshape(-1, cos.shape[-1]), sin.reshape(-1, sin.shape[-1])

"""How a model rotates its queries and keys, layer by layer: found by running it, and held against what it does.

In a probe every layer's attention answers zeros, so that no layer's input depends on positions unless the model puts them
elsewhere too. Then a layer's q and k at position 0 are unrotated, and those at position p must be our rotation of them, with
the cos and sin that the model's own rotary module gave. What is not so is refused with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from msrnn_bench.errors import UsageError, one_line
from msrnn_bench.multistate import probe, twin
from msrnn_bench.multistate.cache import MultiState
from msrnn_bench.multistate.naming import carried
from msrnn_bench.multistate.overheard import Call, overheard
from msrnn_bench.multistate.positions import Rotation, rotate
from msrnn_bench.multistate.rotation import stretches
from msrnn_bench.multistate.session import Session
from msrnn_bench.multistate.support import layer_count, sliding_window
from msrnn_bench.policies import Full

TOKENS = 3  # of each position
# How far, of the largest entry, rounding may part two ways to rotate a vector.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
Seen = tuple[Tensor, Tensor, Tensor]  # q, k, v [B, heads, D] of a layer

_known: WeakKeyDictionary[PreTrainedModel, dict[str, tuple[int, list[Rotation]]]] = WeakKeyDictionary()


def rotations(model: PreTrainedModel, longest: int) -> list[Rotation]:
    """One a layer, checked up to place `longest`; from memory where it was asked before. UsageError with the reason where the
    model's positions cannot be compressed."""
    adapters = model.active_adapters() if getattr(model, "_hf_peft_config_loaded", False) else None
    key = repr((str(model.dtype), adapters, model.config.to_dict()))
    known = _known.setdefault(model, {})
    if key not in known or known[key][0] < longest:
        known[key] = longest, _found(model, longest)
    return known[key][1]


def _found(model: PreTrainedModel, longest: int) -> list[Rotation]:
    name = type(model).__name__
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise _refusal(name, "it takes no position_ids, by which they would be given")
    own = stretches(model.config)
    if own is not None:
        raise _refusal(name, f"its {own[0]} rotation has frequencies that depend on the length of the text")
    trained = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    at = sorted({0, 1, 17, longest, *([trained + 1] if isinstance(trained, int) else [])})
    window = sliding_window(model.config)
    close = CLOSE.get(model.dtype, 3e-2)
    with torch.no_grad(), probe.without_hooks(model), twin.Wide() if model.dtype == torch.float64 else nullcontext():
        listener = Listener(model)
        ids = probe.ordinary_ids(model, 1, TOKENS)[0].repeat(len(at))[:, None]  # [B, 1], B = positions x TOKENS
        rows = torch.tensor(at, device=ids.device).repeat_interleave(TOKENS)[:, None]
        try:
            still, _ = listener.run(ids, torch.zeros_like(rows), 0)
            later, _ = listener.run(ids, torch.zeros_like(rows), min(longest, window - 1) if window else longest)
            for here in (rows.clamp(max=1), rows):  # a table of positions may end before the farthest
                moved, calls = listener.run(ids, here, 0)
                _check_values(name, still, moved, close)
        except UsageError:
            raise
        except Exception as error:  # a class that calls its attention in a way that we do not know
            raise _refusal(name, f"it cannot be asked how it rotates ({type(error).__name__}: {one_line(error)})") from error
    found: list[Rotation] = []  # layers that turn alike share one, and its tables
    for layer in still:
        found.append(_fitting(name, layer, (still[layer], later[layer], moved[layer]), rows[:, 0], calls, close, found))
    return found


def _check_values(name: str, still: dict[int, Seen], moved: dict[int, Seen], close: float) -> None:
    """A value is rotated by nobody: where it changes with the position, the layer's input did."""
    for layer, (_, _, value) in still.items():
        if not _equal(value, moved[layer][2], close):
            raise _refusal(name, f"positions enter before its layer {layer}, not by rotation alone (learned positions)")


def _fitting(
    name: str, layer: int, seen: tuple[Seen, Seen, Seen], rows: Tensor, calls: list[Call], close: float, known: list[Rotation]
) -> Rotation:
    """The rotation, by one of the calls, that makes of the layer's q and k at position 0 those at every other position; one of
    those known where it is the same. `seen` is at position 0, there with many tokens read, and at positions `rows`."""
    still, later, moved = seen
    if not all(_equal(a, b, close) for a, b in zip(still, later, strict=True)):
        raise _refusal(name, f"its layer {layer} looks at how many tokens were read, not at position_ids alone")
    size = still[0].shape[-1]
    for call in calls:
        cos, sin = call.pairs(call.answer)
        if 2 * cos.shape[-1] > size or len(cos) != len(rows) or _equal(sin, torch.zeros_like(sin), 1e-9):
            continue
        for order in _orders(size, cos.shape[-1]):
            arranged = [x[..., order.to(x.device)].to(cos.dtype) for x in (*still[:2], *moved[:2])]
            turned = [rotate(x, cos[:, None], sin[:, None]) for x in arranged[:2]]
            if all(_equal(a, b, close) for a, b in zip(turned, arranged[2:], strict=True)):
                for ours, theirs in zip(call.at(rows), (cos, sin), strict=True):
                    # a float32 angle is off by half its last place, which grows with the position
                    if not bool(((ours - theirs).abs() <= close + 2.0**-22 * rows[:, None]).all()):
                        raise _refusal(name, f"the rotation of its layer {layer} depends on more than the position")
                made = Rotation(call.at, None if torch.equal(order, torch.arange(size)) else order)
                return next((one for one in known if one.make == made.make and _same(one.order, made.order)), made)
    raise _refusal(name, f"its layer {layer} {_why(still, moved, close)}")


def _refusal(name: str, reason: str) -> UsageError:
    return UsageError(f"the positions of {name} cannot be compressed: {reason}; use positions=original")


class Listener(Session):
    """A session whose attention notes what each layer brings and answers zeros."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, Full(), [Full().rule()] * layer_count(model), "scan", "stepwise", None)
        self.seen: dict[int, Seen] = {}
        self.calls: list[Call] = []

    def run(self, ids: Tensor, rows: Tensor, read: int) -> tuple[dict[int, Seen], list[Call]]:
        """One token a row at positions `rows` [B, 1], as though `read` tokens had been read before: what every layer was
        given, and what the rotary modules answered."""
        states = MultiState(self.rules, None)
        states.columns = [read] * len(self.rules)
        self.seen, self.calls = {}, []
        with self, overheard(self.model, self.calls):
            probe.call(self.model, ids, position_ids=rows, **carried(self.model, states), use_cache=True)
        return dict(sorted(self.seen.items())), self.calls

    def _before_call(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    def _after_call(self, _: nn.Module, __: Any, ___: Any) -> None:
        pass

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        self.seen[layer] = q[:, :, 0].clone(), k[:, :, 0].clone(), v[:, :, 0].clone()
        return torch.zeros_like(q)


def _orders(size: int, pairs: int) -> Iterator[Tensor]:
    """Which of a head's dimensions may be paired: halves or neighbours, of the first ones or of the last; and, with the two of a
    pair exchanged, the other way round."""
    every = torch.arange(size)
    spans = [(0, 2 * pairs), (size - 2 * pairs, size)]
    for begin, end in spans[: 1 if 2 * pairs == size else 2]:
        turned, rest = every[begin:end], torch.cat([every[:begin], every[end:]])
        for first, second in ((turned[:pairs], turned[pairs:]), (turned[0::2], turned[1::2])):
            yield torch.cat([first, second, rest])
            yield torch.cat([second, first, rest])


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _why(still: Seen, moved: Seen, close: float) -> str:
    if all(_equal(a, b, close) for a, b in zip(still[:2], moved[:2], strict=True)):
        return "does not rotate its queries and keys (a layer without positions)"
    growth = moved[0].double().norm(dim=-1) / still[0].double().norm(dim=-1)  # [B, heads]
    if bool(((growth - 1).abs() <= close).all()):
        return "rotates by something that is no rotary module, or pairs dimensions in a way that is not known here"
    if bool(((growth - growth[:, :1]).abs() <= close).all()):
        return "scales its queries by their position"
    return "does more to its queries and keys than to rotate them (a norm behind the rotation)"


def _equal(ours: Tensor, theirs: Tensor, close: float) -> bool:
    return float((ours.double() - theirs.double()).abs().max()) <= close * max(float(theirs.double().abs().max()), 1e-9)

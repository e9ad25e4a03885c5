"""The model itself, on a few ordinary tokens: with room for all states it answers as it does on its own, up to rounding.

A twin (guard.py) says whether the code is right; this says whether these weights, on this device and in this dtype, are.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from msrnn_bench.errors import UsageError, one_line
from msrnn_bench.multistate.naming import cache_in, carried
from msrnn_bench.multistate.session import Session
from msrnn_bench.multistate.support import layer_count, sliding_window
from msrnn_bench.multistate.verdict import Verdict
from msrnn_bench.policies import Full, Policy, Window

TOKENS = 32
# How far, in standard deviations of the logits, rounding may part the two ways of computing one attention.
CLOSE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def checked(model: PreTrainedModel, verdict: Verdict) -> Verdict:
    """The verdict, with what the model itself says; a refusal where it differs from its own forward by more than rounding."""
    if "whole" in verdict.limits and verdict.limits["whole"] == 0:
        return verdict
    made = replace(verdict, limits=dict(verdict.limits), reasons=dict(verdict.reasons), record=dict(verdict.record))
    try:
        with torch.no_grad(), without_hooks(model):
            found = _differences(model)
    except UsageError:
        return made  # the user's own call says it
    except Exception as error:  # the model alone fails on plain text: a text model would not
        made.record["probe"] = f"not possible: {one_line(error)}"
        return made
    bound = max(4 * found["noise"], CLOSE.get(model.dtype, 5e-2))
    made.record["probe"] = {**{k: float(f"{v:.3g}") for k, v in found.items()}, "bound": float(f"{bound:.3g}")}
    made.record["probe"]["sensitive"] = bool(found["fault"] > bound)
    if not found["difference"] <= bound:
        made.refuse(
            "whole", f"with room for all states its logits are {found['difference']:.2g} standard deviations off its own on "
            f"{TOKENS} tokens, where rounding explains {bound:.2g}",
        )  # fmt: skip
    return made


def _differences(model: PreTrainedModel) -> dict[str, float]:
    """In standard deviations of the model's logits: bounded against its own, its own in pieces against whole, and bounded to
    half the states, which must show."""
    window = sliding_window(model.config)
    tokens = TOKENS if window is None else min(TOKENS, window)
    ids, half = ordinary_ids(model, 1, tokens), tokens // 2
    alone = call(model, ids, use_cache=False).logits
    first = call(model, ids[:, :half], use_cache=True)
    again = [first.logits]
    with contextlib.suppress(Exception):  # a model without a cache has no pieces
        again.append(call(model, ids[:, half:], **carried(model, cache_in(first)), use_cache=True).logits)
    noise = _apart(torch.cat(again, dim=1), alone) if len(again) == 2 else 0.0
    return {
        "difference": _apart(_bounded(model, ids, Full(), None), alone),
        "noise": noise,
        "fault": _apart(_bounded(model, ids, Window(), half), alone),
    }


def _bounded(model: PreTrainedModel, ids: Tensor, policy: Policy, size: int | None) -> Tensor:
    rules = [policy.rule(size)] * layer_count(model)  # type: ignore[arg-type]
    with Session(model, policy, rules, "scan", "stepwise", None):
        return call(model, ids).logits


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The 99th percentile over positions of the largest difference of centred logits, in their standard deviations."""
    ours, theirs = ours[0].float(), theirs[0].float()
    parted = (ours - ours.mean(-1, keepdim=True)) - (theirs - theirs.mean(-1, keepdim=True))
    return float(parted.abs().amax(-1).quantile(0.99) / theirs.std().clamp(min=1e-12))


def ordinary_ids(model: PreTrainedModel, rows: int, tokens: int) -> Tensor:
    """[rows, tokens] ids of plain text: no mark, image or padding; not from the global generator."""
    config = model.config.get_text_config()
    weight: Any = model.get_input_embeddings().weight
    vocabulary = int(getattr(config, "vocab_size", 0) or weight.shape[0])
    special = set(special_ids(model.config.to_dict()))
    usual = torch.tensor([i for i in range(min(vocabulary, 20_000)) if i not in special])
    draw = torch.Generator().manual_seed(1)
    return usual[torch.randint(0, len(usual), (rows, tokens), generator=draw)].to(weight.device)


def special_ids(settings: dict[str, Any]) -> Iterator[int]:
    """The ids that a configuration names: marks, images, padding."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from special_ids(value)
        elif "token_id" in str(name) or "token_index" in str(name):
            yield from (int(i) for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))


def call(model: PreTrainedModel, ids: Tensor, **options: Any) -> Any:
    """The model on `ids`, with the options that it knows."""
    known = inspect.signature(model.forward).parameters
    options = {k: v for k, v in options.items() if k in known or k != "use_cache"}
    return model(ids, **options)


@contextlib.contextmanager
def without_hooks(model: PreTrainedModel) -> Iterator[None]:
    """The user's hooks do not see the probe."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(module, name, getattr(module, name)) for module in model.modules() for name in names if getattr(module, name)]
    for module, name, hooks in kept:
        setattr(module, name, type(hooks)())
    try:
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)

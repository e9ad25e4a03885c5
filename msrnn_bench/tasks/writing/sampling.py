"""Sampling whose chance belongs to a row and not to its batch: greedy decoding of scores to which noise was added.

The token with the largest log probability plus Gumbel noise is an exact draw from the distribution. The noise is a
function of (seed, number of the row, step), so what a row draws depends on its own logits alone; two models that are
given the same numbers are paired, and differ only where their logits do. Knows no model and no policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from msrnn_bench.errors import UsageError


class Sampler(LogitsProcessor):
    """Samples under `generate(do_sample=False)`. `numbers` has one number per row; `prompt` is the prompt's length in
    tokens, from which steps are counted; `temperature` > 0; `top_p` in (0, 1], 1 keeps the whole vocabulary."""

    def __init__(self, *, seed: int, numbers: Sequence[int], prompt: int, temperature: float = 1.0, top_p: float = 1.0) -> None:
        self.seed, self.numbers, self.prompt = seed, tuple(numbers), prompt
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Perturbed log probabilities [B, vocabulary], float64, whose argmax is the sample."""
        step, vocabulary = input_ids.shape[1] - self.prompt, scores.shape[-1]
        noise = torch.stack([gumbel(self.seed, number, step, vocabulary) for number in self.numbers])
        return nucleus(log_probabilities(scores, self.temperature), self.top_p) + noise.to(scores.device)


class Chance(LogitsProcessor):
    """Gumbel noise on what `generate`'s own processors left of the scores, so that `generate(do_sample=False)` samples.
    `numbers` and `prompt` as in `Sampler`; `warpers` are the library's, applied first as it would."""

    def __init__(self, *, seed: int, numbers: Sequence[int], prompt: int, warpers: Sequence[LogitsProcessor]) -> None:
        self.seed, self.numbers, self.prompt, self.warpers = seed, tuple(numbers), prompt, tuple(warpers)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Perturbed log probabilities [B, vocabulary], float64."""
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        step, vocabulary = input_ids.shape[1] - self.prompt, scores.shape[-1]
        noise = torch.stack([gumbel(self.seed, number, step, vocabulary) for number in self.numbers])
        return scores.double().log_softmax(-1) + noise.to(scores.device)


WARPERS: dict[str, tuple[Callable[[Any], LogitsProcessor], Any]] = {
    "temperature": (lambda value: TemperatureLogitsWarper(float(value)), 1.0),
    "top_k": (lambda value: TopKLogitsWarper(int(value)), 50),
    "top_p": (lambda value: TopPLogitsWarper(float(value)), 1.0),
}  # in the library's order, with its defaults


def sampling_warpers(options: dict[str, Any], defaults: Any) -> list[LogitsProcessor]:
    """What `generate` would do to the scores before it samples: taken out of the options, else from the model's own
    generation settings, else the library's defaults. Raises UsageError for a way of sampling that is not among them."""
    for name in ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"):
        if options.get(name) is not None:
            raise UsageError(
                f"generation_kwargs ask for {name}={options[name]}, which is not computed here: leave it out, or use "
                f"{', '.join(WARPERS)}"
            )
    made = []
    for name, (make, usual) in WARPERS.items():
        given = options.pop(name, None)
        own = getattr(defaults, name, None)
        value = given if given is not None else own if own is not None else usual
        if not (name == "top_k" and not value) and value != (None if name == "top_k" else 1.0):  # which change nothing
            made.append(make(value))
    return made


def gumbel(seed: int, number: int, step: int, size: int) -> Tensor:
    """`size` draws of the standard Gumbel distribution, float64.

    Counter-based (Philox), a stream of its own per (seed, number, step). Float64, because the largest value that
    float32 uniforms can give is 16.6, which tokens less likely than one in ten million would never overcome."""
    counter = np.array([0, 0, 0, step], dtype=np.uint64)  # the low words count the draws
    stream = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64), counter=counter))
    return torch.from_numpy(stream.random(size)).log_().neg_().log_().neg_()


def log_probabilities(scores: Tensor, temperature: float) -> Tensor:
    """log softmax(scores / temperature) over the last dimension, float64."""
    return (scores.double() / temperature).log_softmax(-1)


def nucleus(logp: Tensor, top_p: float) -> Tensor:
    """The fewest most likely tokens that reach `top_p` together keep their log probabilities, the others get -inf."""
    if top_p >= 1:
        return logp
    ordered, order = logp.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # of the more likely ones; 0 for the first, which always stays
    return logp.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -math.inf)

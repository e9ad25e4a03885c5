"""Sampling whose chance belongs to a row and not to its batch: greedy decoding of scores to which noise was added.

The token with the largest log probability plus Gumbel noise is an exact draw from the distribution. The noise is a
function of (seed, number of the row, step), so what a row draws depends on its own logits alone; two models that are
given the same numbers are paired, and differ only where their logits do. Knows no model and no policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor


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

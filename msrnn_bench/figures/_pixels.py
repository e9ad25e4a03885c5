"""From death times to a picture of who is held when, of any coarseness: exact shares, whatever is under a pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def held(death: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """The share of states held under each pixel [size, size], steps down, tokens across; NaN where no token was read yet.

    death [P, T]: the step at which each token's state left, -1 for never, for each of P that decide; token i is held
    *after* step t where i <= t < death. A pixel's share is over its pairs of a step and a token read by then, and over P.
    """
    deciders, tokens = death.shape
    size = min(size, tokens)
    edges = np.arange(size + 1) * tokens // size
    begin, end = edges[:-1, None], edges[1:, None]
    token = np.arange(tokens)
    until = np.where(death < 0, tokens, death)
    born = np.maximum(token, begin)  # [size, T]: the first step in the row of pixels at which the token can be held
    read = np.add.reduceat(np.clip(end - born, 0, None), edges[:-1], axis=1)
    total = np.zeros((size, size))
    for leaves in until:
        total += np.add.reduceat(np.clip(np.minimum(leaves, end) - born, 0, None), edges[:-1], axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(read > 0, total / (np.maximum(read, 1) * deciders), np.nan)

"""From the step at which each state left to how long it was attended to and what a state held: arithmetic alone.

`deaths` [L, P, T]: L layers, P deciders (1, or the KV heads where each decides alone), T tokens of a chunk; -1 is alive at the
chunk's end. Every answer is the mean over deciders. A step t is counted from 0, and so is a position.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

ALONE = 26  # the first positions, each with a bucket of its own (the paper's Figure 9 shows 0 to 25)


def lifetimes(deaths: np.ndarray) -> np.ndarray:
    """[L, T] steps at which each token's state was attended to: its own, and the one at whose end it leaves, included.

    Their mean is sum_t min(t, k+1) / T for every policy, since at most k+1 states are attended to at a step."""
    steps = deaths.shape[-1]
    end = np.where(deaths < 0, steps - 1, deaths)
    return (end - np.arange(steps) + 1).mean(axis=1, dtype=np.float64)


def recent_share(deaths: np.ndarray, size: int) -> np.ndarray:
    """[L, T]: of the states held after each step, the share that is among the last `size` positions.

    The paper leaves "recent" open; ours has as many positions as the state has room, so that a window's share is 1."""
    layers, deciders, steps = deaths.shape
    position = np.arange(steps)
    leaves = np.minimum(np.where(deaths < 0, steps, deaths), position + size)  # the first step after which it counts no more
    change = np.zeros((layers, deciders, steps + 1), dtype=np.int64)
    change[..., :steps] += 1
    layer, decider = np.ogrid[:layers, :deciders]
    np.add.at(change, (layer[..., None], decider[..., None], np.minimum(leaves, steps)), -1)
    recent = change.cumsum(axis=-1)[..., :steps]
    return (recent / np.minimum(position + 1, size)).mean(axis=1)


def steps_held(deaths: np.ndarray, begin: int) -> np.ndarray:
    """[L, T]: after how many of the steps from `begin` on each token's state was held. Summed over tokens it is k a step."""
    steps = deaths.shape[-1]
    end = np.where(deaths < 0, steps, deaths)
    return np.maximum(end - np.maximum(np.arange(steps), begin), 0).mean(axis=1, dtype=np.float64)


def first_alive(deaths: np.ndarray) -> np.ndarray:
    """[L]: whether the first token's state is held at the end."""
    return (deaths[:, :, 0] < 0).mean(axis=1)


def position_buckets(steps: int) -> list[tuple[int, int]]:
    """The first positions alone, the others up to the powers of two from 64 on."""
    edges = [*range(min(ALONE, steps) + 1)]
    edges += [edge for edge in _doublings(64, steps) if edge > edges[-1]]
    return list(pairwise(dict.fromkeys([*edges, steps])))


def step_buckets(size: int, steps: int) -> list[tuple[int, int]]:
    """A partition of the steps at which something leaves, size..steps: the state's size doubled and doubled, the last alone."""
    return list(pairwise(dict.fromkeys([*_doublings(size, steps - 1), steps - 1, steps])))


def _doublings(begin: int, end: int) -> list[int]:
    """begin, 2 begin, 4 begin, ... below `end`."""
    found = []
    while begin < end:
        found.append(begin)
        begin *= 2
    return found

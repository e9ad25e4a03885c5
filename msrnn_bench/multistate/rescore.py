"""A user's score as a compiled function over a row of states, which the kernels call once a step.

They call it through a pointer of one type: only this row is compiled for each policy, and the kernels, once compiled for such a
pointer, are read from numba's cache.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba
import numpy as np
import torch

from msrnn_bench.elementwise import Elementwise
from msrnn_bench.policies import Rule


@numba.njit
def _either(condition: Any, one: Any, other: Any) -> Any:
    return one if condition else other


LIBRARY = {
    "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "absolute": abs, "lesser": min, "greater": max, "where": _either,
}  # fmt: skip


def rescorer(rule: Rule, dtype: torch.dtype) -> Any:
    """rescore(score, mean, maximum, where, now, width) for scores of `dtype`, None where the rule has no such function.

    score, mean, maximum [S], where [S] int64: the first `width` scores are brought up to date in place, at query position `now`;
    where -1 stands, nobody lives. True where none of the living is NaN.
    """
    return None if rule.elementwise is None else _compiled(rule.elementwise, dtype == torch.float64)


@cache
def _compiled(made: Elementwise, double: bool) -> Any:
    kind = np.float64 if double else np.float32
    function = numba.njit(made.function({**LIBRARY, "kind": kind}, "kind({})"), error_model="numpy")

    def rescore(score: Any, mean: Any, maximum: Any, where: Any, now: Any, width: Any) -> Any:
        nans = 0
        for s in range(width):
            age, position = kind(now - where[s]), kind(where[s])
            answer = function(mean[s], maximum[s], score[s], age, position)
            score[s] = answer
            nans += where[s] >= 0 and answer != answer
        return nans == 0

    row, whole = numba.types.Array(numba.from_dtype(np.dtype(kind)), 1, "C"), numba.types.int64
    return numba.cfunc(numba.types.boolean(row, row, row, whole[::1], whole, whole))(rescore)

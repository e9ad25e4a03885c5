"""A user's score as a Triton function, for the SCORE of gpu_kernels.walk."""

from __future__ import annotations

from functools import cache
from typing import Any

import triton
import triton.language as tl

from msrnn_bench.elementwise import Elementwise


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    return tl.exp(x)


@triton.jit
def log(x):  # type: ignore[no-untyped-def]
    return tl.log(x)


@triton.jit
def sqrt(x):  # type: ignore[no-untyped-def]
    return tl.sqrt(x)


@triton.jit
def absolute(x):  # type: ignore[no-untyped-def]
    return tl.abs(x)


@triton.jit
def lesser(a, b):  # type: ignore[no-untyped-def]
    return tl.minimum(a, tl.zeros_like(a) + b)  # so that a number has the dtype of `a`


@triton.jit
def greater(a, b):  # type: ignore[no-untyped-def]
    return tl.maximum(a, tl.zeros_like(a) + b)


@triton.jit
def where(condition, one, other):  # type: ignore[no-untyped-def]
    return tl.where(condition, one, other)


LIBRARY = {f.__name__: f for f in (exp, log, sqrt, absolute, lesser, greater, where)} | {"tl": tl}


@cache
def score(made: Elementwise) -> Any:
    """SCORE(mean, maximum, previous, age, position), of blocks of numbers."""
    return triton.jit(made.function(LIBRARY))

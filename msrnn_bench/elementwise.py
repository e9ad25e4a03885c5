"""A policy's score of one state as a function of a few numbers, and what it computes as steps that any library can do.

The user's function is plain Python. It is run once with a `Term` for each of its arguments, which takes note of what is done
with it; so tensors and every compiler get the same few operations, in the same order. Knows neither policies nor states.
"""

from __future__ import annotations

import builtins
import hashlib
import inspect
import linecache
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from numbers import Real
from types import FunctionType, SimpleNamespace
from typing import Any

from msrnn_bench.errors import UsageError, one_line

Operand = str | float  # a name, or a number
Steps = list[tuple[str, tuple[Operand, ...]]]
GIVEN = ("mean", "maximum", "previous", "age", "position")
MAY = "it may use + - * /, powers, comparisons (as 0 or 1), min, max, abs, math.exp, math.log and math.sqrt"
LIBRARY = ("exp", "log", "sqrt", "absolute", "lesser", "greater", "where")  # the functions that steps call


@dataclass(frozen=True)
class Elementwise:
    """A function of the numbers GIVEN. Step i is a text with room for its operands, and gives the number `t{i}`; `answer` is the
    name of one."""

    steps: tuple[tuple[str, tuple[Operand, ...]], ...]
    answer: str

    def source(self, number: str = "{}") -> str:
        """As the definition of a function `score`, which calls LIBRARY; `number` is how a number is written."""
        lines = [f"def score({', '.join(GIVEN)}):"]
        for i, (text, operands) in enumerate(self.steps):
            written = (o if isinstance(o, str) else number.format(repr(o).replace("inf", "1e999")) for o in operands)
            lines.append(f"    t{i} = {text.format(*written)}")
        return "\n".join([*lines, f"    return {self.answer}", ""])

    def function(self, library: dict[str, Any], number: str = "{}") -> Any:
        """`source` as a function, where LIBRARY's names, and those in `number`, are those of `library`."""
        source = self.source(number)
        file = f"<score {hashlib.sha256(source.encode()).hexdigest()[:12]}>"  # for tracebacks, and compilers that read the source
        linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
        exec(compile(source, file, "exec"), scope := dict(library))
        return scope["score"]

    def on_tensors(self) -> Callable[..., Any]:
        """The function on torch tensors of one shape and dtype, which are its answer's too."""
        import torch

        def pair(one: Callable[..., Any]) -> Callable[..., Any]:  # torch's own takes no number
            return lambda a, b: one(a, b if isinstance(b, torch.Tensor) else torch.full_like(a, b))

        library = {name: getattr(torch, name) for name in ("exp", "log", "sqrt", "absolute", "where")}
        return self.function({**library, "lesser": pair(torch.minimum), "greater": pair(torch.maximum)})


def elementwise(function: Any, owner: object) -> Elementwise:
    """What `function` computes; its parameters beyond GIVEN are the fields of these names of `owner`, a policy.

    UsageError where it is no such function, or does what cannot be done for many states at once.
    """
    name = f"{type(owner).__name__}.score_state"
    if not isinstance(function, FunctionType):
        raise UsageError(f"{name} must be a function defined with `def`; see msrnn_bench.policies.ElementwisePolicy")
    parameters = list(inspect.signature(function).parameters.values())
    names = [p.name for p in parameters]
    if tuple(names[: len(GIVEN)]) != GIVEN or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise UsageError(
            f"{name} must take ({', '.join(GIVEN)}), in this order, and behind them fields of its class by name; "
            f"it takes ({', '.join(map(str, parameters))})"
        )
    settings = {further: getattr(owner, further, None) for further in names[len(GIVEN) :]}
    for further, value in settings.items():
        if not isinstance(value, Real):
            raise UsageError(f"{name} takes {further}, which must be a field of its class and a number, not {value!r}")
    steps: Steps = []
    try:
        answer = _noting(function)(*(Term(given, steps) for given in GIVEN), **settings)
        if not isinstance(answer, Term):
            answer = _step(steps, "{} + {} * position", answer, 0.0)
    except Exception as error:
        raise UsageError(f"{name} cannot be computed for many states at once: {one_line(error)}; {MAY}") from error
    return Elementwise(tuple(steps), answer.name)


class Term:
    """What stands for a number while the function is run: its name, and the steps so far."""

    def __init__(self, name: str, steps: Steps) -> None:
        self.name, self.steps = name, steps

    def __pow__(self, power: Any) -> Any:
        if not isinstance(power, Term) and power == 0.5:
            return _step(self.steps, "sqrt({})", self)
        if not isinstance(power, Term) and power in range(1, 9):
            return reduce(lambda a, b: _step(self.steps, "{} * {}", a, b), [self] * int(power))
        raise TypeError("its powers can be 0.5 and the whole numbers from 1 to 8")

    def __neg__(self) -> Term:
        return _step(self.steps, "-{}", self)

    def __abs__(self) -> Term:
        return _step(self.steps, "absolute({})", self)

    def __bool__(self) -> bool:
        raise TypeError("it branches on an argument (if, and, or, not, a < b < c), where it can multiply by a comparison")

    def __float__(self) -> float:
        raise TypeError("it calls a function of numbers that cannot be compiled")

    __int__ = __index__ = __float__


def _define(name: str, text: str, *more: float) -> None:
    """An operator of terms."""
    setattr(Term, name, lambda self, other: _step(self.steps, text, self, other, *more))


for _name, _sign in {"add": "+", "sub": "-", "mul": "*", "truediv": "/"}.items():
    _define(f"__{_name}__", f"{{0}} {_sign} {{1}}")
    _define(f"__r{_name}__", f"{{1}} {_sign} {{0}}")
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
    _define(f"__{_name}__", f"where({{0}} {_sign} {{1}}, {{2}}, {{3}})", 1.0, 0.0)


def _step(steps: Steps, text: str, *operands: Any) -> Term:
    """One step more."""
    for operand in operands:
        if not isinstance(operand, Term) and (not isinstance(operand, Real) or math.isnan(operand)):
            raise TypeError(f"{operand!r} is no number")
    steps.append((text, tuple(o.name if isinstance(o, Term) else float(o) for o in operands)))
    return Term(f"t{len(steps) - 1}", steps)


def _noting(function: FunctionType) -> FunctionType:
    """The function, with `min`, `max` and three of math's functions taking terms too."""
    ours: list[tuple[Any, Any]] = [(one, _single(one)) for one in (math.exp, math.log, math.sqrt)]
    ours += [(min, _foremost(min, "lesser")), (max, _foremost(max, "greater"))]

    def known(value: Any) -> Any:
        return next((mine for theirs, mine in ours if value is theirs), value)

    ours += [(math, SimpleNamespace(**{name: known(value) for name, value in vars(math).items()}))]
    names = {name: known(value) for name, value in {**vars(builtins), **function.__globals__}.items()}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


def _single(one: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: _step(x.steps, f"{one.__name__}({{}})", x) if isinstance(x, Term) else one(x)


def _foremost(one: Callable[..., Any], pair: str) -> Callable[..., Any]:
    """`min` or `max`; numbers among themselves first, so that a step has one at most, the second."""

    def foremost(*given: Any) -> Any:
        terms, numbers = [x for x in given if isinstance(x, Term)], [x for x in given if not isinstance(x, Term)]
        if not terms:
            return one(*given)
        return reduce(lambda a, b: _step(a.steps, f"{pair}({{}}, {{}})", a, b), [*terms, one(numbers)] if numbers else terms)

    return foremost

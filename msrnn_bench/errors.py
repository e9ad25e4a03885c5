"""The two errors a user may meet, and the check that raises them early: settings against the annotations of what they make;
and what a dry run must not do, which it is refused.

Each message is one line that says what is wrong and how to fix it. Imported by everyone, so it imports nothing heavy: pydantic
is loaded where something is checked.
"""

import contextlib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from msrnn_bench.redact import redacted

# What a setting may be, for annotations. The upper bounds are those of a table's columns and of the libraries' counters.
LARGEST = 2**31 - 1
Whole = Annotated[int, Ge(0), Le(LARGEST)]
Count = Annotated[int, Ge(1), Le(LARGEST)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0), Le(LARGEST)]
Named = Annotated[str, MinLen(1)]


LESS_MEMORY = "take less at a time (task.chunk=256, task.batch=1), dtype=bfloat16 or a smaller k"


class UsageError(Exception):
    """What the user gave cannot be used: an override, a file, a value. Exit code 2."""

    exit_code = 2


class MachineError(UsageError):
    """What the machine lacks: a package, a network, room, a permission. Exit code 1."""

    exit_code = 1


class StorageError(MachineError):
    """What cannot be written or read back: a full disk, a folder that may not be written. No cell's fault, so it ends a run."""


class NotHereError(MachineError):
    """What a run would fetch, convert or write to know, and a dry run does not. The message says what that is."""


_LOOKING: ContextVar[bool] = ContextVar("looking", default=False)


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """A dry run: while it lasts nothing is fetched, converted or written; `unless_looking` raises instead."""
    token = _LOOKING.set(True)
    try:
        yield
    finally:
        _LOOKING.reset(token)


def unless_looking(what: str) -> None:
    """Said before something is fetched, converted or written: in a dry run it is NotHereError."""
    if _LOOKING.get():
        raise NotHereError(what)


def one_line(error: BaseException) -> str:
    """The message of another library's error, fit for a readable line."""
    text = " ".join(redacted(str(error)).split()) or type(error).__name__  # before it is cut: half a secret is one
    return text if len(text) <= 200 else text[:197] + "..."


def out_of_memory(error: BaseException) -> bool:
    """torch says it in three ways: MemoryError, OutOfMemoryError on a device, a RuntimeError of the CPU allocator."""
    said = isinstance(error, RuntimeError) and re.search("out of memory|(allocate|enough) memory", str(error))
    return isinstance(error, MemoryError) or bool(said)


def check(made: Callable[..., Any], given: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """The settings `made` is called with, each seen to be what its parameter's annotation says, a list made a tuple where
    a tuple is annotated. What is not annotated, or with what pydantic does not know, passes."""
    hints = _hints(made)
    prefix = f"{group}." if group else ""
    return {key: _fitting(hints[key], value, f"{prefix}{key}") if key in hints else value for key, value in given.items()}


def check_fields(made: Any, group: str) -> None:
    """The same for a frozen dataclass from its `__post_init__`, for those who make it in Python."""
    given = {field.name: getattr(made, field.name) for field in fields(made)}
    for key, value in check(type(made), given, group).items():
        object.__setattr__(made, key, value)


@lru_cache
def _hints(made: Callable[..., Any]) -> dict[str, Any]:
    """The parameters' annotations, resolved where they were written; none where one of them cannot be."""
    try:
        source = made if is_dataclass(made) or not inspect.isclass(made) else made.__init__
        hints = typing.get_type_hints(source, include_extras=True)
        return {key: hints[key] for key in inspect.signature(made).parameters if key in hints}
    except (NameError, TypeError, ValueError, AttributeError):  # a class of the user's own
        return {}


def _fitting(annotation: Any, value: Any, key: str) -> Any:
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if several and any(typing.get_origin(part) is tuple for part in _parts(annotation)):
        value = tuple(value)
    if not _fits(annotation, value) or not _finite(value):
        raise UsageError(f"{key}={shown(value)} must be {_meant(annotation, value)}{_advice(annotation, value, key)}")
    return value


def _fits(annotation: Any, value: Any) -> bool:
    from pydantic import ValidationError

    adapter = _adapter(annotation)
    try:
        if adapter is not None:
            adapter.validate_python(value)
    except ValidationError:
        return False
    return True


@lru_cache
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True))
    except PydanticUserError:  # an annotation of the user's own that is no setting's type
        return None


def _finite(value: Any) -> bool:
    """Nothing in it is infinite or not a number, which no setting may be and no identity can hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True


def shown(value: Any) -> str:
    """A value as it is typed, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return _cut(f"[{','.join(map(shown, value))}]")
    if isinstance(value, dict):
        return _cut("{" + ",".join(f"{k}:{shown(v)}" for k, v in value.items()) + "}")
    if isinstance(value, int) and abs(value) > 10**40:  # Python prints no number of thousands of digits
        return "a number of more than 40 digits"
    return _cut(" ".join(redacted(str(value)).split()))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, else the annotation itself."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)


def _meant(annotation: Any, value: Any = None) -> str:
    """An annotation in words."""
    parts = [part for part in _parts(annotation) if part is not types.NoneType]
    words = list(dict.fromkeys(_word(part, value) for part in parts)) + ["null"] * (len(parts) < len(_parts(annotation)))
    return " or ".join(words)


def _word(kind: Any, value: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _bounded(args[0], args[1:], value)
    if origin is Literal:
        options = [shown(option) for option in args]
        return ", ".join(options[:-1]) + " or " + options[-1] if len(options) > 1 else options[0]
    if origin is tuple:
        odd = [v for v in value if not _fits(args[0], v)] if isinstance(value, tuple) else []
        return f"a list of which each is {_meant(args[0], odd[0] if odd else None)}"
    plain = {
        bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", dict: "an object {key: value}",
    }  # fmt: skip
    return plain.get(origin or kind, "a plain value")


def _bounded(kind: Any, bounds: tuple[Any, ...], value: Any) -> str:
    """A number between bounds; the largest of all is told only to those who went beyond it."""
    name = {int: "a whole number", float: "a number"}.get(kind)
    if name is None:
        return "a text that is not empty" if any(isinstance(b, MinLen) for b in bounds) else _meant(kind, value)
    low = next((b for b in bounds if isinstance(b, Ge | Gt)), None)
    high = next((b for b in bounds if isinstance(b, Le | Lt)), None)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    most: Any = None if high is None else high.le if isinstance(high, Le) else high.lt
    tell = most is not None and (most < LARGEST or (number and value > most))
    above = isinstance(low, Gt)
    least: Any = None if low is None else low.gt if isinstance(low, Gt) else low.ge
    if least is not None and tell and not above and isinstance(high, Le):
        return f"{name} from {least} to {most}"
    words = [] if least is None else [f"above {least}" if above else f"of {least} or more"]
    words += [f"of at most {most}" if isinstance(high, Le) else f"below {most}"] if tell else []
    return f"{name} {' and '.join(words)}".strip()


def _advice(annotation: Any, value: Any, key: str) -> str:
    """The same value as the kind that was meant, where one can see which."""
    parts = [typing.get_args(part)[0] if typing.get_origin(part) is Annotated else part for part in _parts(annotation)]
    lists = [part for part in parts if typing.get_origin(part) is tuple]
    if lists and not isinstance(value, tuple | dict) and value is not None and _fits(lists[0], (value,)):
        return f": write {key}=[{shown(value)}]"
    if str in parts and isinstance(value, bool | int | float) and len(shown(value)) < 40:
        return f": for a text write \"{key}='{shown(value)}'\""
    if int in parts and isinstance(value, float) and value.is_integer() and _fits(annotation, int(value)):
        return f": write {key}={int(value)}"
    return ""

"""What must not leave: secrets of the user, in whatever text they turn up; and characters that would steer a terminal.

A secret is the value of an environment variable whose name says so, and what a URL carries to prove who asks. The names of
settings are none: who has such a word for a password loses nothing by its being printed. Like errors.py for everyone.
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote

_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)  # in a variable's name
_SHORTEST = 8  # letters: a shorter value stands in too many texts by chance
# user:password@ of a URL, be there an @ or a / in the password that should have been quoted; host:8000/a@b has none.
_USER = re.compile(r"(\b[a-zA-Z][\w+.-]*://)(?:[^\s/?#\"'<>]+@|[^\s/?#@\"'<>]*:(?!\d+/)[^\s@\"'<>]*@)")
_QUERY = re.compile(
    r"([?&;#](?:[\w.%-]*(?:token|secret|passw(?:or)?d|signature|credential)|(?:[\w.%-]*(?:api|auth|access|private|[_.-]))?key"
    r"|sig|auth|pwd)=)[^\s&;#\"'<>]+",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_DIRECTION = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def redacted(text: str) -> str:
    """The text with `[HF_TOKEN]` where the value of that variable stood, and *** for the credentials of URLs."""
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """`redacted` for many texts: it looks at the environment once."""
    secrets = _secrets()
    pattern = re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True)))) if secrets else None

    def clean(text: str) -> str:
        if pattern is not None:
            text = pattern.sub(lambda found: f"[{secrets[found[0]]}]", text)
        if "://" not in text:
            return text
        return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))

    return clean


def names_a_secret(variable: str) -> bool:
    """Whether an environment variable's name says that its value is one."""
    return _SECRET.search(variable) is not None and not variable.startswith("TOKENIZERS_")


def redacted_values(held: Any) -> Any:
    """Nested data, every text in it redacted; keys are names of settings and stay."""
    return _walk(held, redactor())


def printable(text: str) -> str:
    """Control characters as U+FFFD, marks of direction by their number: [U+202E]. Line ends and tabs stay."""
    return _DIRECTION.sub(lambda mark: f"[U+{ord(mark[0]):04X}]", _CONTROL.sub("\ufffd", text))


def guard_output() -> None:
    """From now on nothing secret leaves this process by its screen, its logs or a traceback. Once a process is enough."""
    if isinstance(sys.stderr, _Guarded):
        return
    sys.stdout, sys.stderr = _Guarded(sys.stdout), _Guarded(sys.stderr)
    sys.excepthook = _show
    made = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        found = made(*args, **kwargs)
        found.msg, found.args = printable(redacted(found.getMessage())), None
        if found.exc_info and found.exc_info[0]:
            found.exc_text = _traced(*found.exc_info).rstrip()  # which formatters take as it is
        return found

    logging.setLogRecordFactory(record)


class _Guarded:
    """A stream that is written to through `redacted`, and else itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(_traced(kind, error, trace))


def _traced(kind: Any, error: Any, trace: Any) -> str:
    return printable(redacted("".join(traceback.format_exception(kind, error, trace))))


def _walk(held: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(held, Mapping):
        return {key: _walk(value, clean) for key, value in held.items()}
    if isinstance(held, list | tuple):
        return [_walk(value, clean) for value in held]
    return clean(held) if isinstance(held, str) else held


def _secrets() -> dict[str, str]:
    """Every way in which a secret may be written -> the variable whose value it is."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if names_a_secret(name) and len(value) >= _SHORTEST:
            if re.fullmatch(r"[a-z]\w*", value) and value in _settings():
                continue
            for form in _forms(value):
                if len(form) >= _SHORTEST:
                    found.setdefault(form, name)
    return found


@cache
def _forms(value: str) -> tuple[str, ...]:
    """As it is, in a URL, in a page, in JSON, in Python, on one line; and each line by itself."""
    return (
        value, value.strip(), quote(value, safe=""), html.escape(value), json.dumps(value)[1:-1], repr(value)[1:-1],
        " ".join(value.split()), *map(str.strip, value.splitlines()),
    )  # fmt: skip


@cache
def _settings() -> frozenset[str]:
    """The names of all settings."""
    here = Path(__file__).resolve().parent
    files = [file for folder in (here / "conf", here.parent / "conf") for file in folder.rglob("*.yaml")]
    return frozenset(name for file in files for name in re.findall(r"^ *([a-z]\w*):", file.read_text("utf-8"), re.MULTILINE))

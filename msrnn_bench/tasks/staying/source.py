"""Classes of tokens by what Python's own tokenizer makes of the source that they are pieces of.

An f-string is a string whole, as Python 3.11 reads it; later versions tokenize inside.
"""

from __future__ import annotations

import io
import keyword
import token as types
import tokenize
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from msrnn_bench.errors import UsageError
from msrnn_bench.tasks.staying.characters import begins, blank

NAMES = (
    "special", "newline", "space", "indentation", "keyword", "name", "operator", "number", "string", "comment", "untokenized",
)  # fmt: skip
_TYPES = {
    types.OP: "operator", types.NUMBER: "number", types.STRING: "string", tokenize.COMMENT: "comment",
    types.NEWLINE: "newline", tokenize.NL: "newline",
}  # fmt: skip
_OPENS, _CLOSES = ({getattr(types, f"{kind}STRING_{edge}", None) for kind in "FT"} - {None} for edge in ("START", "END"))


def classify(text: str, spans: Sequence[tuple[int, int]], name: str) -> list[str]:
    """The class of each token, one of NAMES; `name` is the document's, for the message where it is no Python source."""
    codes = _codes(text, name)
    found = []
    for span in spans:
        at = begins(text, span)
        code = codes[min(span[0], len(codes) - 1) if at is None else at]
        if at is None and not code:
            line = text[text.rfind("\n", 0, span[0]) + 1 : span[0]]
            kind = blank(text, span)
            found.append("indentation" if kind == "space" and not line.strip() else kind)
        else:
            found.append(NAMES[code] if code else "untokenized")
    return found


def _codes(text: str, name: str) -> np.ndarray:
    """For each character its class's place in NAMES, 0 between tokens."""
    codes = np.zeros(len(text), dtype=np.uint8)
    lines = [0, *accumulate(len(line) for line in io.StringIO(text))]
    depth, begin = 0, 0
    try:
        for one in tokenize.generate_tokens(io.StringIO(text).readline):
            start, end = (min(lines[min(row - 1, len(lines) - 1)] + column, len(text)) for row, column in (one.start, one.end))
            if one.type in _OPENS:
                begin, depth = (begin if depth else start), depth + 1
            elif one.type in _CLOSES:
                depth -= 1
                if not depth:
                    codes[begin:end] = NAMES.index("string")
            elif not depth and (kind := _kind(one)):
                codes[start:end] = NAMES.index(kind)
    except (tokenize.TokenError, SyntaxError) as error:
        raise UsageError(
            f"task.classes has token, and {name} is no Python source that this Python can tokenize ({error}): leave it out"
        ) from error
    return codes


def _kind(one: tokenize.TokenInfo) -> str | None:
    if one.type == types.NAME:
        return "keyword" if keyword.iskeyword(one.string) else "name"
    return _TYPES.get(one.type)

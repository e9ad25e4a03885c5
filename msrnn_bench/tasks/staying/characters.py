"""Classes of tokens by their characters: what needs no tagger, and no language beyond quotation marks.

A token's span [start, end) is that of its characters in the text, with or without the blank before it. Its class is that of its
first character that is no blank, but for one thing: `.”` is one token of many vocabularies and closes a quotation, so a closing
mark anywhere in a token goes first. A token of blanks is a newline or a space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NAMES = (
    "first", "special", "newline", "space", "digit", "comma", "stop", "question", "exclamation", "colon", "semicolon",
    "quote_open", "quote_close", "apostrophe", "bracket_open", "bracket_close", "dash", "currency", "symbol", "continuation",
    "capitalised", "other",
)  # fmt: skip
_KINDS = {
    ",": "comma", ".": "stop", "…": "stop", "?": "question", "!": "exclamation", ":": "colon", ";": "semicolon",
    **dict.fromkeys("([{", "bracket_open"), **dict.fromkeys(")]}", "bracket_close"), **dict.fromkeys("-‐‑‒–—―", "dash"),
    **dict.fromkeys("$€£¥¢", "currency"),
}  # fmt: skip
_OPEN, _CLOSE, _EITHER, _SINGLE = "“„«‘‚‹", "”»›", '"`', "'’"
_MARK = re.compile(f"\\n[ \\t]*\\n|[{_OPEN}{_CLOSE}{_EITHER}{_SINGLE}]")
_BEFORE_OPENING = set("([{<-–—/=") | set(_OPEN)
# Words that begin with an apostrophe, so that it is no opening quote.
_ELIDED = re.compile("(?:tis|twas|twere|twill|em|til|till|cause|bout|neath|gainst|im)\\b", re.IGNORECASE)


def begins(text: str, span: tuple[int, int]) -> int | None:
    """Where a token's first character stands that is no blank; None where all are."""
    start, end = span
    return next((at for at in range(start, end) if not text[at].isspace()), None)


def closes(marks: dict[int, str], span: tuple[int, int]) -> bool:
    """Whether a token has a closing quotation mark in it."""
    return any(marks.get(at) == "quote_close" for at in range(*span))


def blank(text: str, span: tuple[int, int]) -> str:
    """The class of a token of blanks."""
    return "newline" if "\n" in text[slice(*span)] else "space"


def classify(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The class of each token, one of NAMES (but `first` and `special`, which a chunk has and a text has not)."""
    marks = quotes(text, max((end for _, end in spans), default=0))
    found, before = [], 0
    for span in spans:
        at = begins(text, span)
        inside = span[0] < before  # a piece of one character, spelt in bytes
        kind = blank(text, span) if at is None else marks.get(at) or _kind(text, at, inside)
        found.append("quote_close" if closes(marks, span) else kind)
        before = span[1]
    return found


def _kind(text: str, at: int, inside: bool) -> str:
    letter = text[at]
    if letter.isnumeric():
        return "digit"
    if not letter.isalpha():
        return _KINDS.get(letter, "symbol")
    if inside or (at and text[at - 1].isalnum()):
        return "continuation"
    return "capitalised" if letter.isupper() or letter.istitle() else "other"


def quotes(text: str, end: int) -> dict[int, str]:
    """Place of each quotation mark before `end` -> quote_open, quote_close or apostrophe: by the mark where it tells, else by
    its neighbours, else by whether one is open in the paragraph. A plural's possessive inside single quotes reads as their
    end."""
    found: dict[int, str] = {}
    opened = {"double": 0, "single": 0}
    for match in _MARK.finditer(text, 0, end):
        at, mark = match.start(), match[0]
        if len(mark) > 1:
            opened = dict.fromkeys(opened, 0)  # a new paragraph
            continue
        kind = "single" if mark in _SINGLE or mark in "‘‚‹›" else "double"
        found[at] = what = _quote(text, at, mark, opened[kind])
        opened[kind] = max(0, opened[kind] + {"quote_open": 1, "quote_close": -1, "apostrophe": 0}[what])
    return found


def _quote(text: str, at: int, mark: str, opened: int) -> str:
    before, after = text[at - 1] if at else " ", text[at + 1] if at + 1 < len(text) else " "
    if mark in _OPEN or mark in _CLOSE:
        return "quote_open" if mark in _OPEN else "quote_close"
    single = mark in _SINGLE
    if single and before.isalnum() and after.isalnum():
        return "apostrophe"
    at_begin = before.isspace() or before in _BEFORE_OPENING or (before in _EITHER + _SINGLE and not after.isspace())
    if at_begin and not after.isspace():
        elided = single and (mark == "’" or _ELIDED.match(text, at + 1))
        return "apostrophe" if elided else "quote_open"
    if before.isspace():
        return "quote_close" if opened else "quote_open"
    return "apostrophe" if single and not opened and before.isalnum() else "quote_close"

"""Names as text, whatever they hold: what would steer a page or a LaTeX run is shown instead of obeyed.

HTML's own characters are escaped by Jinja's autoescape; here is what that leaves: control characters, and marks that turn the
direction of the text around them.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_DIRECTION = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\symbol{34}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}",
}  # fmt: skip


def clean(text: str) -> str:
    """Control characters as U+FFFD, marks of direction by their number: [U+202E]."""
    return _DIRECTION.sub(lambda mark: f"[U+{ord(mark[0]):04X}]", _CONTROL.sub("\ufffd", text))


def latex(text: str) -> str:
    """A text that LaTeX prints as it stands, on one line. Letters beyond Latin want XeLaTeX or LuaLaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(clean(text).split()))


def latex_number(text: str) -> str:
    """A value or an interval of a table: its minus signs are no hyphens."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex(text))


def slug(text: str) -> str:
    """Part of a file's name: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"

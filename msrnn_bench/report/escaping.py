"""Names as text, whatever they hold: what would steer a page or a LaTeX run is shown instead of obeyed.

HTML's own characters are escaped by Jinja's autoescape, control characters and marks of direction by `redact.printable`; here is
what LaTeX needs beyond.
"""

from __future__ import annotations

import re

from msrnn_bench.redact import printable

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\symbol{34}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}",
}  # fmt: skip


def latex(text: str) -> str:
    """A text that LaTeX prints as it stands, on one line. Letters beyond Latin want XeLaTeX or LuaLaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(printable(text).split()))


def latex_number(text: str) -> str:
    """A value or an interval of a table: its minus signs are no hyphens."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex(text))


def slug(text: str) -> str:
    """Part of a file's name: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"

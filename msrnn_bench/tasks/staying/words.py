"""Classes of tokens by part of speech: sentences, words, Penn tags; each word's class on every token that begins in it.

Sentences are cut here, words by NLTK's Treebank rules, tags are textblob's (neither downloads anything). What is no letter and
no digit has its class by character, as the Penn treebank has it, not by the tagger, which knows few marks: quotation marks,
brackets, dashes, currency. An `'s` behind a pronoun is a verb, not a possessive, which the tagger does not tell apart; behind a
noun it is taken for one ("John's gone" too).
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from msrnn_bench.errors import MachineError
from msrnn_bench.tasks.staying.characters import begins, blank, closes, quotes

log = logging.getLogger(__name__)

PENN = (
    "CC", "CD", "DT", "EX", "FW", "IN", "JJ", "JJR", "JJS", "LS", "MD", "NN", "NNS", "NNP", "NNPS", "PDT", "POS", "PRP", "PRP$",
    "RB", "RBR", "RBS", "RP", "SYM", "TO", "UH", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "WDT", "WP", "WP$", "WRB", ".", ",",
    ":", "(", ")", "$", "#",
)  # fmt: skip
NAMES = ("special", "newline", "space", "quote_open", "quote_close", "apostrophe", *PENN, "untagged")
_MARKS = {
    **dict.fromkeys(".?!", "."), ",": ",", **dict.fromkeys(":;…-‐‑‒–—―", ":"), **dict.fromkeys("([{", "("),
    **dict.fromkeys(")]}", ")"), **dict.fromkeys("$€£¥¢", "$"), "#": "#", "&": "CC",
}  # fmt: skip
_END = re.compile(r"\n[ \t]*\n\s*|[.!?…][\"'”’»)\]]*\s+")
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
_ABBREVIATED = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Messrs|Dr|St|Prof|Rev|Hon|Col|Capt|Gen|Lt|Sgt|Gov|Jr|Sr|Esq|Mme|Mlle|vs|viz|No|Vol|Fig|e\.g|i\.e|cf)"
    r"|\b[A-Z])\.\s+$"
)
# The rules know a typewriter's marks; each of these becomes one of the same length that they treat alike, ...
_TYPEWRITTEN = str.maketrans({"’": "'", "…": ";", "—": ";", "―": ";"})
_SPELT = str.maketrans({"’": "'", "…": "...", "—": "--", "―": "--"})  # ... and the tagger is told what it is
_OPENERS = "\"'“‘«([—-_"
_PRONOUNS = {"it", "he", "she", "that", "this", "there", "here", "what", "who", "where", "when", "how", "why", "let"}


def check_installed() -> None:
    """Refuse what needs the tagger where it is missing."""
    missing = [name for name in ("textblob", "nltk") if find_spec(name) is None]
    if missing:
        raise MachineError(
            f"task.classes=[pos] tags words with {' and '.join(missing)}, which is not installed: "
            "pip install msrnn-bench[pos], or set task.classes=[char]"
        )


def classify(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The class of each token, one of NAMES; spans as in characters.py."""
    end = max((end for _, end in spans), default=0)
    marks = quotes(text, end)
    codes = np.zeros(len(text), dtype=np.uint8)
    untagged = 0
    for begin, stop in sentences(text, end):
        found = words(text, begin, stop)
        names = tags(text, found, marks) if found is not None else None
        if found is None or names is None:
            untagged += 1
            continue
        for (first, last), name in zip(found, names, strict=True):
            codes[first:last] = NAMES.index(name)
    if untagged:
        log.warning("%d sentences could not be cut into words and are in the class untagged", untagged)
    classes = []
    for span in spans:
        at = begins(text, span)
        kind = blank(text, span) if at is None else NAMES[codes[at]] if codes[at] else "untagged"
        classes.append("quote_close" if closes(marks, span) else kind)
    return classes


def sentences(text: str, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) of each sentence that begins before `end`: up to an empty line, or a full stop, question or exclamation mark
    that a capital or a digit follows and no abbreviation or initial precedes."""
    begin = 0
    for match in _END.finditer(text):
        if begin >= end:
            return
        if not _EMPTY_LINE.search(match[0]):
            follows = text[match.end() :][:6].lstrip(_OPENERS)[:1] if match.end() < len(text) else ""
            plain = match[0][0] == "." and _ABBREVIATED.search(text, max(begin, match.start() - 8), match.end())
            if plain or (follows and not (follows.isupper() or follows.isdigit())):
                continue
        yield begin, match.end()
        begin = match.end()
    if begin < min(end, len(text)):
        yield begin, len(text)


def words(text: str, begin: int, end: int) -> list[tuple[int, int]] | None:
    """[start, end) of each word of a sentence; None where NLTK's rules do not find their own words again."""
    sentence = text[begin:end].translate(_TYPEWRITTEN)
    try:
        return [(begin + first, begin + last) for first, last in _tokenizer().span_tokenize(sentence)]
    except (ValueError, IndexError):
        return None


def tags(text: str, found: Sequence[tuple[int, int]], marks: dict[int, str]) -> list[str] | None:
    """The class of each word of a sentence; None where the tagger does not answer word by word."""
    if not found:
        return []
    spelt = [text[first:last].translate(_SPELT) for first, last in found]
    answer = _tagger()(" ".join(spelt), tokenize=False)  # textblob's own tokenizer breaks possessives
    if len(answer) != len(spelt):
        return None
    names = []
    for number, ((first, _), word, (_, tagged)) in enumerate(zip(found, spelt, answer, strict=True)):
        before = spelt[number - 1].lower() if number else ""
        if not any(letter.isalnum() for letter in word):
            names.append(_mark(text, first, marks))
        elif word.lower() == "'s" and before in _PRONOUNS:
            names.append("PRP" if before == "let" else "VBZ")
        else:
            names.append(_penn(tagged))
    return names


def _mark(text: str, at: int, marks: dict[int, str]) -> str:
    """The class of a word of marks alone, by its first: a bare apostrophe behind an s is a possessive."""
    if at not in marks:
        return ":" if text.startswith("...", at) else _MARKS.get(text[at], "SYM")
    possessive = marks[at] == "apostrophe" and text[at - 1 : at] in ("s", "S", "x", "z")
    return "POS" if possessive else marks[at]


def _penn(tagged: str) -> str:
    """textblob's tag in the treebank's names: it adds the kind of a proper noun, and alternatives."""
    plain = re.split(r"[-|]", tagged)[0] if len(tagged) > 1 else tagged
    return plain if plain in PENN else "untagged"


@cache
def _tagger() -> Any:
    from textblob.en import tag

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it reads its word lists at the first call and closes none
        tag("once", tokenize=False)
    return tag


@cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer  # a second to import

    return NLTKWordTokenizer()

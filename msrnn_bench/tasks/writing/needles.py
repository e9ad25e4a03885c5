"""What a haystack hides and what is asked of it: words and numbers drawn by a seed, sentences put where a text has a seam.

`hide` is a function of its arguments alone and knows no tokenizer; `parts` and `plant` know one only as something to
call. Knows no model, policy or row, and needs no torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msrnn_bench.datasets.chunks import tokenise
from msrnn_bench.errors import UsageError

VERSION = 1  # raised whenever `hide`, `parts` or `plant` may give something else: part of every cell's identity
KINDS = ("single", "multi", "lookup", "variables")
REACH = 64  # tokens, and a tenth of a short haystack: how far from its depth a sentence may be put to stand at a seam
NEAR = 12  # tokens before a place that tell whether it is a seam

_WORDS = """
    anchor apple arrow badger barrel basket beacon bishop blanket bottle bridge bucket butter button cabin camel candle
    carpet castle cherry cinema circus clover coffee copper cotton cradle cricket dagger desert dolphin donkey dragon eagle
    falcon feather fiddle forest fountain garden ginger goblet hammer harbor helmet honey hunter insect island jacket jungle
    kettle kitten ladder lantern lemon lizard magnet marble meadow mirror monkey mountain needle oyster paddle palace panther
    parrot pebble pepper pillow planet pocket potato puppet rabbit ribbon rocket saddle salmon scarf shadow shovel silver
    spider statue stove temple thunder ticket tiger tunnel turtle valley velvet violin wagon walnut window winter
"""
WORDS = tuple(_WORDS.split())
_SENTENCE = re.compile(r"[.!?][\"')\]”’]*$")
_SEAM = re.compile(r"[.!?][\"')\]”’]*\s+|\n+")
_APART = (
    ",",
    r"\.",
    "'",
    "’",
    " ",
    "\u00a0",
    "\u2009",
    "\u202f",
)  # between the thousands of a number, as one writes it here or there
# What goes before and behind a planted sentence: it follows a sentence, follows a line, or stands before one.
_FORMS = ((" ", ""), ("\n", ""), ("", "\n"))


@dataclass(frozen=True)
class Hidden:
    """`planted`: sentences and the depth each stands at, ascending; `asked`: which of them holds the value (digits)."""

    planted: tuple[tuple[float, str], ...]
    asked: int
    question: str
    value: str


@dataclass(frozen=True)
class Haystack:
    """What is asked at each depth, and the haystack's own text where it is not the dataset's."""

    hidden: tuple[Hidden, ...]
    text: str | None = None


def hide(kind: str, depths: Sequence[float], *, seed: int, length: int, example: int, hops: int) -> Haystack:
    """One haystack of `length` tokens. Words and numbers differ within it and from any other haystack's."""
    draw = random.Random(f"{seed}/{kind}/{length}/{example}")
    if kind == "lookup":
        return _lookup(depths, draw, length)
    if kind == "variables":
        return _variables(depths, draw, hops)
    count = 1 if kind == "single" else len(depths)
    names, values = draw.sample(WORDS, count), _numbers(draw, count)
    sentences = [f"The secret number of the {name} is {value}." for name, value in zip(names, values, strict=True)]
    asks = [f"What is the secret number of the {name}?" for name in names]
    if kind == "single":  # one and the same at every depth
        return Haystack(tuple(Hidden(((depth, sentences[0]),), 0, asks[0], values[0]) for depth in depths))
    planted = tuple(zip(depths, sentences, strict=True))
    return Haystack(tuple(Hidden(planted, i, asks[i], values[i]) for i in range(count)))


def _lookup(depths: Sequence[float], draw: random.Random, length: int) -> Haystack:
    """Lines of keys and values, as many as a text of `length` tokens can have; those that are asked stand at the depths."""
    count = len(depths)
    keys = _keys(draw, count + length // 5 + 1)  # a line has more than five tokens
    values = _numbers(draw, len(keys))
    lines = [f"{key}: {value}" for key, value in zip(keys, values, strict=True)]
    planted = tuple(zip(depths, lines[:count], strict=True))
    hidden = tuple(Hidden(planted, i, f"What is the value of {keys[i]}?", values[i]) for i in range(count))
    return Haystack(hidden, "\n".join(lines[count:]))


def _keys(draw: random.Random, count: int) -> list[str]:
    """Different keys: two words each, or as many as it takes."""
    words = 2
    while len(WORDS) ** words < 2 * count:
        words += 1
    drawn = draw.sample(range(len(WORDS) ** words), count)
    return ["-".join(WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(words)) for number in drawn]


def _variables(depths: Sequence[float], draw: random.Random, hops: int) -> Haystack:
    """The value is assigned at the depth, handed on `hops` times on the way to the haystack's end, and the last holder's
    value is asked. Beside each assignment stands that of a second chain, so that the only number is not the answer."""
    names = [name.upper() for name in draw.sample(WORDS, 2 * (hops + 1))]
    values = _numbers(draw, 2)
    chains = [_chain(names[: hops + 1], values[0]), _chain(names[hops + 1 :], values[1])]
    first = [draw.randrange(2) for _ in range(hops + 1)]  # which chain's assignment stands before the other's
    order = [chains[which][link] for link in range(hops + 1) for which in (first[link], 1 - first[link])]
    hidden = []
    for depth in depths:
        places = [depth + (1 - depth) * link / max(hops, 1) for link in range(hops + 1)]
        planted = tuple(zip([place for place in places for _ in range(2)], order, strict=True))
        hidden.append(Hidden(planted, first[0], f"What is the value of VAR {names[hops]}?", values[0]))
    return Haystack(tuple(hidden))


def _chain(names: list[str], value: str) -> list[str]:
    return [f"VAR {name} = {source}." for name, source in zip(names, [value, *(f"VAR {n}" for n in names)], strict=False)]


def _numbers(draw: random.Random, count: int) -> list[str]:
    return [str(number) for number in draw.sample(range(1_000_000, 10_000_000), count)]


def found(value: str, answer: str) -> bool:
    """Whether the value stands in the answer as a whole number: not as part of a longer one, nor of a decimal one. Its
    thousands may be set apart, `5,081,234`, all by the same mark."""
    groups = [value[max(0, end - 3) : end] for end in range(len(value), 0, -3)][::-1]
    ways = [value] if len(groups) < 2 else [value, *(rf"(?<!\d{m}){m.join(groups)}(?!{m}\d)" for m in _APART)]
    return re.search(rf"(?<!\d)(?<!\d[.,])(?:{'|'.join(ways)})(?!\d)(?![.,]\d)", answer) is not None


def parts(tokenizer: Any, text: str, length: int, count: int) -> list[list[int]]:
    """`count` parts of a text one behind the other, each of `length` ids and beginning at a sentence or a line."""
    made, at = [], 0
    for number in range(count):
        ids = tokenise(tokenizer, text[at:], length)
        if len(ids) < length:
            raise UsageError(
                f"the dataset's text ends in part {number + 1} of {count} of {length} tokens each: take a longer text, more "
                "documents, fewer task.examples or shorter task.lengths"
            )
        made.append(ids)
        seam = _SEAM.search(text, at + len(_decode(tokenizer, ids)))
        at = len(text) if seam is None else seam.end()
    return made


def plant(tokenizer: Any, hay: list[int], planted: Sequence[tuple[float, str]], size: int) -> tuple[list[int], list[range]]:
    """`size` ids of the haystack with the sentences in it, and the places of each sentence's ids, its blanks' among them.

    A depth is a share of the haystack's own ids, before anything is put in. Each sentence stands at the seam nearest to
    its depth and is tokenised on its own, so what stands before it is the same whatever is planted."""
    forms = [{form: _continued(tokenizer, sentence, form) for form in _FORMS} for _, sentence in planted]
    room = size - sum(max(map(len, form.values())) for form in forms)
    if room < 0:
        raise UsageError(f"{size} tokens of a haystack cannot hold the {size - room} that are hidden in it: raise task.lengths")
    ids: list[int] = []
    places: list[range] = []
    at = 0
    for (depth, _), form in zip(planted, forms, strict=True):
        place, kind = _seam(tokenizer, hay, round(depth * room), at, room)
        ids += hay[at:place]
        places.append(range(len(ids), len(ids) + len(form[kind])))
        ids += form[kind]
        at = place
    return (ids + hay[at:])[:size], places


def _seam(tokenizer: Any, hay: list[int], wanted: int, least: int, most: int) -> tuple[int, tuple[str, str]]:
    """The place nearest to the wanted one where a sentence or a paragraph ends, else where a line does, and the form that
    suits it; the wanted place itself where there is none of them in reach."""
    reach = min(REACH, max(most // 10, 16))
    near = sorted(
        range(max(least, wanted - reach), min(most, wanted + reach) + 1), key=lambda place: (abs(place - wanted), place)
    )
    line = None
    for place in sorted(near, key=lambda place: abs(place - wanted)):
        kind, good = _kind(tokenizer, hay, place)
        if kind is not None and good:
            return place, kind
        if kind is not None and line is None:
            line = (place, kind)
    return line or (max(least, wanted), _FORMS[0])


def _kind(tokenizer: Any, hay: list[int], place: int) -> tuple[tuple[str, str] | None, bool]:
    """The form of a sentence put there, None where it would cut one; and whether more than a line ends there."""
    if place == 0:
        return _FORMS[2], True
    begin = max(0, place - NEAR)
    before = _decode(tokenizer, hay[begin:place])
    after = _decode(tokenizer, hay[begin : place + 1])[len(before) :]
    ends = _SENTENCE.search(before.rstrip()) is not None
    if before.endswith("\n"):
        return _FORMS[2], ends or before.endswith("\n\n") or after.startswith("\n")
    if after.startswith("\n"):
        return _FORMS[1], ends or after.startswith("\n\n")
    return (_FORMS[0], True) if ends and after[:1].isspace() else (None, False)


def _continued(tokenizer: Any, sentence: str, form: tuple[str, str]) -> list[int]:
    """The ids of a sentence as they are where it does not begin a text: some tokenizers put a space before that."""
    lead, trail = form
    anchor = "\n" if not lead else "."
    head, whole = tokenise(tokenizer, anchor), tokenise(tokenizer, f"{anchor}{lead}{sentence}{trail}")
    return whole[len(head) :] if whole[: len(head)] == head else tokenise(tokenizer, f"{lead}{sentence}{trail}")


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

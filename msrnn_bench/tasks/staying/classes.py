"""The class of every token of a chunk, scheme by scheme; within a scheme the classes partition the tokens.

char  by characters, for any text.  pos  by part of speech, for English prose.  token  by Python's tokenizer, for its source.
A token's class is that of its first character that is no blank, or of a closing quotation mark in it. `first` is a chunk's
first token (char alone), `special` a mark of beginning, which has no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from msrnn_bench.datasets.chunks import Chunk, located
from msrnn_bench.datasets.texts import Dataset, PySource
from msrnn_bench.errors import UsageError
from msrnn_bench.tasks.staying import characters, source, words

NAMES = {"char": characters.NAMES, "pos": words.NAMES, "token": source.NAMES}
VERSION = 1  # of the rules: part of a cell's identity


def schemes(classes: str | Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """What `auto` means for a dataset: characters always, Python's tokens for source that is known to be it, else words."""
    if classes != "auto":
        return tuple(dict.fromkeys(classes))
    return ("char", "token") if isinstance(dataset, PySource) else ("char", "pos")


@dataclass
class _Read:
    """A document as far as chunks read it: ids, and per scheme each token's class as its place in NAMES."""

    ids: list[int]
    codes: dict[str, np.ndarray]


class Classes:
    """`of(chunk)`: scheme -> [T] places in NAMES[scheme]. Each document is read once, when it is first asked for."""

    def __init__(self, dataset: Dataset, documents: int | None, tokenizer: Any, wanted: Sequence[str], chunks: Sequence[Chunk]):
        self.dataset, self.tokenizer, self.wanted = dataset, tokenizer, tuple(wanted)
        self.documents = dataset.documents(documents)
        self.ends: dict[int, int] = {}  # document -> tokens of it that chunks read
        for run in (run for chunk in chunks for run in chunk.runs):
            self.ends[run.document] = max(self.ends.get(run.document, 0), run.first + run.count)
        self._read: dict[int, _Read] = {}

    def of(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """UsageError where the tokenizer does not tell where its tokens stand."""
        found = {scheme: np.full(len(chunk.ids), NAMES[scheme].index("special"), dtype=np.uint8) for scheme in self.wanted}
        for run in chunk.runs:
            read, here, there = self._document(run.document), slice(run.at, run.at + run.count), run.first + run.count
            if read.ids[run.first : there] != chunk.ids[here]:
                raise RuntimeError(f"{chunk.document}: the tokenizer read the same text twice and differently")
            for scheme, codes in found.items():
                codes[here] = read.codes[scheme][run.first : there]
        if "char" in found:
            found["char"][0] = NAMES["char"].index("first")
        return found

    def _document(self, number: int) -> _Read:
        if number not in self._read:
            text = self.documents[number].text
            answer = located(self.tokenizer, text, self.ends[number])
            if answer is None:
                raise UsageError(
                    f"{type(self.tokenizer).__name__} does not tell where in a text its tokens stand, so they have no classes: "
                    "set task.classes=[] or take a model with a fast tokenizer"
                )
            ids, spans = answer
            codes = {scheme: self._codes(scheme, number, text, spans) for scheme in self.wanted}
            self._read[number] = _Read(ids, codes)
        return self._read[number]

    def _codes(self, scheme: str, number: int, text: str, spans: list[tuple[int, int]]) -> np.ndarray:
        if scheme == "char":
            found = characters.classify(text, spans)
        elif scheme == "pos":
            found = words.classify(text, spans)
        else:
            whole, cut = self._whole(number)  # source that begins in the middle may read as something else
            found = source.classify(whole, [(a + cut, b + cut) for a, b in spans], self.documents[number].name)
        place = {name: code for code, name in enumerate(NAMES[scheme])}
        return np.array([place[name] for name in found], dtype=np.uint8)

    def _whole(self, number: int) -> tuple[str, int]:
        """The document before dataset.start was applied, and how many characters that cut."""
        document = self.documents[number]
        if not self.dataset.start:
            return document.text, 0
        for whole in self.dataset.read():
            if whole.name == document.name and whole.text.endswith(document.text):
                return whole.text, len(whole.text) - len(document.text)
        raise RuntimeError(f"{document.name} is not among the texts of {self.dataset.name}")

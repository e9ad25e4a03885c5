"""Filler text: a few short sentences said again and again, so that nothing in it but a hidden one is news.

It belongs to the retrieval task, but is a dataset as any other. Knows no task, tokenizer or model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msrnn_bench.datasets.reading import Document
from msrnn_bench.datasets.texts import Dataset
from msrnn_bench.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Filler(Dataset):
    """One document: `sentences` in their order, joined by spaces, `repeats` times."""

    sentences: tuple[str, ...]
    repeats: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.sentences
        if not isinstance(given, list | tuple) or not given or any(not isinstance(s, str) or not s.strip() for s in given):
            raise UsageError(f"dataset.sentences={given} must be a list of sentences")
        if self.repeats < 1:
            raise UsageError(f"dataset.repeats={self.repeats} must be 1 or more")
        object.__setattr__(self, "sentences", tuple(given))  # a YAML list cannot be hashed

    def read(self) -> Iterator[Document]:
        once = " ".join(sentence.strip() for sentence in self.sentences)
        yield Document(self.name or "filler", " ".join([once] * self.repeats))

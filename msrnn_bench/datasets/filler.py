"""Filler text: a few short sentences said again and again, so that nothing in it but a hidden one is news.

It belongs to the retrieval task, but is a dataset as any other. Knows no task, tokenizer or model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from msrnn_bench.datasets.reading import Document
from msrnn_bench.datasets.texts import Dataset
from msrnn_bench.errors import Named, UsageError


@dataclass(frozen=True, kw_only=True)
class Filler(Dataset):
    """One document: `sentences` in their order, joined by spaces, `repeats` times."""

    sentences: tuple[Named, ...]
    repeats: Annotated[int, Ge(1), Le(1_000_000)] = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sentences or any(not sentence.strip() for sentence in self.sentences):
            raise UsageError(f"dataset.sentences={list(self.sentences)} must be a list of sentences, none of them empty")

    def read(self) -> Iterator[Document]:
        once = " ".join(sentence.strip() for sentence in self.sentences)
        yield Document(self.name or "filler", " ".join([once] * self.repeats))

"""The texts that models are measured on: one frozen dataclass a source.

A dataset is its settings; what it read is identified by content, never by path. Knows tokenizers only as something to
call, and nothing of models, policies or results.
"""

import dataclasses
import hashlib
import json
import platform
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from pydantic import JsonValue

from msrnn_bench.datasets import hub, reading
from msrnn_bench.datasets.reading import Document
from msrnn_bench.errors import Count, MachineError, Named, UsageError, Whole, check_fields
from msrnn_bench.hub.asking import check_limits

LISTED = 100  # documents that a manifest names one by one


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """What every source shares.

    start: fraction of a document's characters cut from its head; skip: tokens left out after that; bos: auto (where
    the tokenizer itself adds one) | always | never; pack: join all documents into one stream before chunks are cut.
    """

    name: str = ""
    start: Annotated[float, Ge(0), Lt(1)] = 0.0
    skip: Whole = 0
    bos: Literal["auto", "always", "never"] = "auto"
    pack: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "dataset")

    @abstractmethod
    def read(self) -> Iterator[Document]:
        """The documents in their stable order, before `start` is applied."""

    def stamp(self) -> tuple:
        """What the content depends on besides the settings, as far as it can change while a process runs."""
        return ()

    def source(self) -> dict[str, Any]:
        """What a manifest should know of where the text came from."""
        return {}

    def documents(self, limit: int | None = None) -> list[Document]:
        """The first `limit` documents; with `pack` all of them, for the limit is then one of chunks."""
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise UsageError(f"documents={limit} must be a number of documents, 1 or more (null for all)")
        return list(_read(self, self.stamp(), None if self.pack else limit))

    def fingerprint(self, limit: int | None = None) -> str:
        """sha256 of the content and of the settings that choose tokens from it. Paths and names are no part of it."""
        settings = {"skip": self.skip, "bos": self.bos, "pack": self.pack}
        content = [settings, *(document.sha256 for document in self.documents(limit))]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def manifest(self, limit: int | None = None) -> dict[str, Any]:
        """What was read, as plain JSON values."""
        read = self.documents(limit)
        return {
            "name": self.name,
            "fingerprint": self.fingerprint(limit),
            **self.source(),
            "documents": len(read),
            "characters": sum(len(document.text) for document in read),
            "listed": [
                {"name": d.name, "characters": len(d.text), "sha256": d.sha256, "encoding": d.encoding, "found": d.found}
                for d in read[:LISTED]
            ],
        }


@lru_cache(maxsize=4)
def _read(dataset: Dataset, stamp: tuple, limit: int | None) -> tuple[Document, ...]:
    """A sweep asks for the same text once a cell; it is read once a process (and again when its `stamp` changed)."""
    found = (d for d in dataset.read() if d.text.strip())
    cut = (replace(d, text=d.text[int(len(d.text) * dataset.start) :]) for d in found)
    documents = tuple(islice(cut, limit))
    if not documents:
        raise UsageError(f"dataset {dataset.name} holds no text")
    return documents


@dataclass(frozen=True, kw_only=True)
class PySource(Dataset):
    """Long modules of the running Python's standard library, one document each."""

    modules: tuple[Named, ...]

    def read(self) -> Iterator[Document]:
        for module in self.modules:
            source = reading.read_file(_library_source(module), "utf-8")
            yield Document(module, source.text, source.encoding, source.found)

    def source(self) -> dict[str, Any]:
        return {"python": platform.python_version()}


@dataclass(frozen=True, kw_only=True)
class Nothing(Dataset):
    """No text: for tasks that bring their own."""

    def read(self) -> Iterator[Document]:
        raise UsageError("dataset=none holds no text: choose another for this task (see msrnn-bench list dataset)")
        yield  # an iterator, as every dataset's

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, plain in (("start", 0), ("skip", 0), ("pack", False)):
            if getattr(self, name) != plain:
                raise UsageError(
                    f"dataset.{name}={getattr(self, name)} cuts text, and this dataset has none: leave it {str(plain).lower()}"
                )

    def fingerprint(self, limit: int | None = None) -> str:
        return "none" if self.bos == "auto" else f"none, bos={self.bos}"  # a task's own text begins as it says

    def manifest(self, limit: int | None = None) -> dict[str, Any]:
        return {"name": self.name}


def _library_source(module: str) -> Path:
    """Looked up in the library's own folder: nothing is imported, and no file of the user's with that name is taken."""
    base = Path(sysconfig.get_path("stdlib"), *module.split("."))
    for file in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if file.is_file():
            return file
    raise MachineError(f"this Python comes without the source of {module}; leave it out of dataset.modules")


@dataclass(frozen=True, kw_only=True)
class PyDocs(Dataset):
    """The language reference that every CPython carries for `help()`: English prose.

    Its topics, sorted by name, are joined by an empty line and cut between topics into `parts` documents, as equal in
    length as the topics allow: each belongs to the part that its middle character falls into.
    """

    parts: Count = 8

    def read(self) -> Iterator[Document]:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise MachineError("this Python comes without pydoc_data.topics; take dataset=pysource or text") from error
        if self.parts > len(topics):
            raise UsageError(f"dataset.parts={self.parts} must be 1 to {len(topics)}, the number of topics")
        parts: list[list[str]] = [[] for _ in range(self.parts)]
        total, before = sum(map(len, topics.values())), 0
        for _, topic in sorted(topics.items()):
            parts[self.parts * (2 * before + len(topic)) // (2 * total)].append(reading.normalise(topic))
            before += len(topic)
        for index, part in enumerate(parts):
            yield Document(f"topics/{index:04d}", "\n\n".join(part))

    def source(self) -> dict[str, Any]:
        return {"python": platform.python_version()}


@dataclass(frozen=True, kw_only=True)
class Text(Dataset):
    """The user's own text: a file, a folder or a glob; plain text, JSON lines (`field`), either gzipped.

    `separator` splits a file into documents; the pieces are stripped, and those of more than `min_characters` are kept.
    `name` is taken from the path where it is empty.
    """

    path: str | None = None
    field: str = "text"
    encoding: str = "auto"
    strip_gutenberg: bool = False
    separator: str | None = None
    min_characters: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            object.__setattr__(self, "name", reading.path_name(self.path) if self.path else "text")

    def read(self) -> Iterator[Document]:
        kept = 0
        for name, file in reading.find_files(self.path or ""):
            file_text = reading.read_file(file, self.encoding)
            lines = file.name.removesuffix(".gz").endswith(".jsonl")
            records = reading.json_texts(file_text.text, self.field, file) if lines else iter([file_text.text])
            whole = not lines and not self.separator
            for index, piece in enumerate(piece for record in records for piece in self._pieces(record)):
                if len(piece.strip()) > self.min_characters:
                    kept += 1
                    part = name if whole else f"{name}/{index:04d}"
                    yield Document(part, piece, file_text.encoding, file_text.found)
        if not kept:
            least = f" of more than {self.min_characters} characters" if self.min_characters else ""
            raise UsageError(f"dataset.path={self.path} holds no text{least}")

    def _pieces(self, record: str) -> list[str]:
        book = reading.strip_gutenberg(record) if self.strip_gutenberg else record
        return [piece.strip() for piece in book.split(self.separator)] if self.separator else [book]

    def stamp(self) -> tuple:
        return reading.stamp([file for _, file in reading.find_files(self.path or "")])


@dataclass(frozen=True, kw_only=True)
class Hub(Dataset):
    """Any text dataset of the Hugging Face hub, or a local folder of the same shape; `title` is a column of names.

    join: what stands between rows where the split is one text (null: each row is a document); empty rows count, as
    they do in what others measure. facts: for a dry run alone.
    """

    repo: str | None = None
    config: str | None = None
    split: str = "test"
    field: str = "text"
    title: str | None = None
    join: str | None = None
    revision: str = "main"
    facts: dict[str, JsonValue] | None = dataclasses.field(default=None, hash=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits()
        if not self.name:
            object.__setattr__(self, "name", Path(self.repo or "hub").name)

    def read(self) -> Iterator[Document]:
        rows = self._rows()
        if self.join is None:
            yield from rows
        else:
            yield Document(self.split, self.join.join(row.text for row in rows))

    def _rows(self) -> Iterator[Document]:
        if not self.repo:
            raise UsageError("dataset=hub needs a repository: dataset.repo=OWNER/NAME, or a local folder")
        rows = hub.hub_rows(self.repo, self._local(), self.config, self.split, self.revision)
        for column in filter(None, (self.field, self.title)):
            if column not in rows.column_names:
                raise UsageError(f"dataset {self.repo} has no column {column!r}; it has {', '.join(rows.column_names)}")
        seen: set[str] = set()
        for index in range(len(rows)):
            row, name = rows[index], f"{self.split}/{index:04d}"
            if not isinstance(row[self.field], str):
                raise UsageError(f"column {self.field!r} of dataset {self.repo} holds no text; set dataset.field")
            title = str(row[self.title]) if self.title else name
            yield Document(name if title in seen else title, reading.normalise(row[self.field]))
            seen.add(title)

    def _local(self) -> Path | None:
        folder = Path(self.repo or "").expanduser()
        return folder if self.repo and folder.is_dir() else None

    def stamp(self) -> tuple:
        folder = self._local()
        return reading.stamp(sorted(folder.rglob("*"))) if folder else ()

    def source(self) -> dict[str, Any]:
        origin = {"commit": None} if self._local() else hub.origin(self.repo or "", self.revision)
        return {"repo": self.repo, "config": self.config, "split": self.split, "field": self.field, **origin}

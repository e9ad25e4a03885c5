"""Documents with questions and reference answers: one frozen dataclass a source (SQuALITY, QASPER).

A source turns its records, from the hub or from a file of the same shape, into stories: a text and what is asked of it.
What is asked is part of the dataset's identity, as the text is. Knows nothing of models, prompts or scores.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from msrnn_bench.datasets import hub, reading
from msrnn_bench.datasets.reading import Document
from msrnn_bench.datasets.texts import Dataset
from msrnn_bench.errors import MachineError, NotHereError, UsageError, one_line
from msrnn_bench.hub.asking import check_limits


@dataclass(frozen=True)
class Example:
    """One question on a document; `id` is unique in its dataset, and any of the `references` is a right answer."""

    id: str
    document: str
    text: str
    question: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """One document (a story, a paper) and what is asked of it."""

    name: str
    text: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class Questions(Dataset):
    """What every source of questions shares.

    path: a file (.json, .jsonl, either as .gz), or a folder in the shape of the hub's repository; null takes the hub's
    `repo`, of which `split` at `revision`. Questions are about whole documents, so nothing is cut from them here.
    """

    path: str | None = None
    repo: str | None = None
    split: str = "validation"
    revision: str = "main"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits()
        for name, plain in (("start", 0), ("skip", 0), ("pack", False)):
            if getattr(self, name) != plain:
                raise UsageError(
                    f"dataset.{name}={getattr(self, name)} cuts text to measure perplexity on; questions are about whole "
                    f"documents: leave it {str(plain).lower()}"
                )

    @abstractmethod
    def story(self, record: dict[str, Any], number: int, where: str) -> Story:
        """What the `number`-th record holds; `where` names the record to the user."""

    def examples(self, limit: int | None = None) -> list[Example]:
        """All questions on the first `limit` documents (null = all), in the source's order."""
        return [example for story in self.stories()[:limit] for example in story.examples]

    def stories(self) -> tuple[Story, ...]:
        """All documents, those that nothing is asked of too."""
        return _stories(self, self.stamp())

    def read(self) -> Iterator[Document]:
        for story in self.stories():
            yield Document(story.name, story.text)

    def fingerprint(self, limit: int | None = None) -> str:
        """sha256 of the texts, of what is asked of them and of the right answers."""
        asked = [[example.id, example.question, *example.references] for example in self.examples(limit)]
        content = [super().fingerprint(limit), asked]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def manifest(self, limit: int | None = None) -> dict[str, Any]:
        return {**super().manifest(limit), "questions": len(self.examples(limit))}

    def stamp(self) -> tuple:
        return reading.stamp(_files(self.path)) if self.path else ()

    def source(self) -> dict[str, Any]:
        if self.path:
            file = Path(self.path).expanduser()
            decoded = reading.read_file(file, "auto") if file.is_file() else None
            found = {} if decoded is None else {"encoding": decoded.encoding, "found": decoded.found}
            return {"file": file.name, **found}
        return {"repo": self.repo, "split": self.split, **hub.origin(self.repo or "", self.revision)}

    def records(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Every record and what to call it in an error."""
        if self.path and Path(self.path).expanduser().is_file():
            yield from _from_file(Path(self.path).expanduser())
            return
        folder = Path(self.path).expanduser() if self.path else None
        for index, row in enumerate(self._rows(folder)):
            yield row, f"{self.path or self.repo}, {self.split} row {index}"

    def _rows(self, folder: Path | None) -> Any:
        if folder is None and not self.repo:
            raise UsageError("the dataset needs a file: dataset.path=FILE.jsonl, or a hub repository: dataset.repo=OWNER/NAME")
        try:
            return hub.hub_rows(self.repo or "", folder, None, self.split, self.revision)
        except NotHereError:
            raise
        except MachineError as error:
            reason = one_line(error.__cause__ or error)
            raise MachineError(
                f"the hub cannot be reached for dataset {self.repo} ({reason}); give a copy of it: dataset.path=FILE"
            ) from error


@lru_cache(maxsize=4)
def _stories(dataset: Questions, stamp: tuple) -> tuple[Story, ...]:
    """Read once a process (again when the `stamp` changed), for every cell asks."""
    stories: dict[str, Story] = {}
    for number, (record, where) in enumerate(dataset.records()):
        try:
            story = dataset.story(record, number, where)
        except (AttributeError, TypeError, ValueError) as error:
            shape = type(dataset).__name__
            raise UsageError(f"{where} is not of the shape of {shape}'s records ({one_line(error)})") from error
        if not story.text.strip():
            raise UsageError(f"{where}: document {story.name!r} is empty; leave it out of the file")
        if story.name in stories:
            raise UsageError(f"{where}: there was a document {story.name!r} before; give each a name of its own")
        if len({example.id for example in story.examples}) < len(story.examples):
            raise UsageError(f"{where}: two questions have the same question_id; give each its own")
        stories[story.name] = story
    if not any(story.examples for story in stories.values()):
        raise UsageError(f"dataset {dataset.name} holds no questions; give it another dataset.path")
    return tuple(stories.values())


@dataclass(frozen=True, kw_only=True)
class Squality(Questions):
    """SQuALITY (arXiv 2205.11465): short stories, five questions each, four answers of a paragraph to each question.

    A record has `document`, `questions` (`question_text`, `responses` of which each has `response_text`) and, for the
    document's name, `metadata.passage_id`.
    """

    def story(self, record: dict[str, Any], number: int, where: str) -> Story:
        text = reading.normalise(_field(record, "document", str, where))
        metadata = record.get("metadata")
        name = str(metadata["passage_id"]) if isinstance(metadata, dict) and "passage_id" in metadata else f"{number:04d}"
        examples = []
        for index, asked in enumerate(_dicts(_field(record, "questions", list | dict, where)), start=1):
            here = f"{where}, question {index}"
            responses = _dicts(_field(asked, "responses", list | dict, here))
            question = _field(asked, "question_text", str, here)
            references = [_field(response, "response_text", str, here) for response in responses]
            examples.append(_example(f"{name}/{index}", name, text, question, references, here))
        return Story(name, text, tuple(examples))


@dataclass(frozen=True, kw_only=True)
class Qasper(Questions):
    """QASPER (arXiv 2105.03011): papers on language processing, questions of readers, answers of a phrase or a sentence.

    Takes the original release (one JSON object, a paper under each id), the same papers as JSON lines, and the hub's
    form, in which lists of objects have become objects of lists. The text is title, abstract and sections.
    """

    def story(self, record: dict[str, Any], number: int, where: str) -> Story:
        name = str(record.get("id") or record.get("article_id") or f"{number:04d}")
        parts = [_field(record, key, str, where) for key in ("title", "abstract")]
        for section in _dicts(_field(record, "full_text", list | dict, where)):
            heading = section.get("section_name") or ""
            parts.append("\n".join([heading, *_field(section, "paragraphs", list, where)]).strip())
        text = reading.normalise("\n\n".join(part for part in parts if part.strip()))
        examples = []
        for index, asked in enumerate(_dicts(_field(record, "qas", list | dict, where)), start=1):
            here = f"{where}, question {index}"
            question = _field(asked, "question", str, here)
            annotations = _dicts(_field(asked, "answers", list | dict, here))
            references = [_gold(_field(annotation, "answer", dict, here), here) for annotation in annotations]
            identifier = f"{name}/{asked.get('question_id') or index}"
            examples.append(_example(identifier, name, text, question, references, here))
        return Story(name, text, tuple(examples))


def _gold(answer: dict[str, Any], where: str) -> str:
    """The annotation as a text, what comes first in the order of QASPER's own evaluation."""
    if answer.get("unanswerable"):
        return "unanswerable"
    if answer.get("extractive_spans"):
        return ", ".join(answer["extractive_spans"])
    if answer.get("free_form_answer"):
        return str(answer["free_form_answer"])
    if answer.get("yes_no") is not None:
        return "yes" if answer["yes_no"] else "no"
    raise UsageError(
        f"{where}: an answer has none of unanswerable, extractive_spans, free_form_answer and yes_no; it has "
        f"{', '.join(answer) or 'nothing'}"
    )


def _example(identifier: str, document: str, text: str, question: str, references: list[str], where: str) -> Example:
    if not question.strip() or not any(reference.strip() for reference in references):
        what = "has no reference answer, so no answer to it can be scored" if question.strip() else "is empty"
        raise UsageError(f"{where} {what}; leave it out of the file")
    return Example(identifier, document, text, reading.normalise(question).strip(), tuple(map(reading.normalise, references)))


def _field(record: dict[str, Any], key: str, kind: Any, where: str) -> Any:
    """A field of a record, refused where it is missing or of another kind."""
    value = record.get(key)
    if not isinstance(value, kind):
        what = "is of another kind than expected" if key in record else f"is missing; there are {', '.join(record) or 'none'}"
        raise UsageError(f"{where}: the field {key!r} {what}")
    return value


def _dicts(value: list[Any] | dict[str, list[Any]]) -> list[dict[str, Any]]:
    """A list of objects, also where it was stored as an object of lists (the hub's way)."""
    if isinstance(value, dict):
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return value


def _from_file(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The records of JSON lines, or of a JSON file: a list of them, or an object with one under each id."""
    content = reading.read_file(file, "auto").text
    if file.name.removesuffix(".gz").endswith(".json"):
        whole = _parse(content, str(file))
        named = whole.items() if isinstance(whole, dict) else enumerate(whole if isinstance(whole, list) else [whole])
        found = [(value, f"{file}, {key}", {"id": key} if isinstance(whole, dict) else {}) for key, value in named]
    else:
        lines = [(line, f"{file}, line {number}") for number, line in enumerate(content.split("\n"), start=1)]
        found = [(_parse(line, where), where, {}) for line, where in lines if line.strip()]
    for value, where, named_by in found:
        if not isinstance(value, dict):
            raise UsageError(f"{where} is no JSON object; each document is one, with its questions inside")
        yield {**named_by, **value}, where


def _parse(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {one_line(error)}") from error


def _files(path: str) -> list[Path]:
    given = Path(path).expanduser()
    if not given.exists():
        raise UsageError(f"dataset.path={path} does not exist; give a file of documents with questions (.jsonl, .json)")
    return sorted(file for file in given.rglob("*") if file.is_file()) if given.is_dir() else [given]

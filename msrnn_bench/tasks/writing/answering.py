"""What tasks of questions on documents share: examples become prompts, prompts answers, answers rows.

A document that is too long loses its end (the paper, section 4.2); under `baseline` the whole prompt has k tokens. Knows
no metric: a task says how an answer is scored.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, zip_longest
from typing import Any

from msrnn_bench.datasets.chunks import tokenise
from msrnn_bench.datasets.questions import Example, Questions
from msrnn_bench.errors import Count, Named, NotHereError, UsageError, check_fields
from msrnn_bench.job import Job, Work, load
from msrnn_bench.models.sources import Loaded
from msrnn_bench.policies import Baseline
from msrnn_bench.results.cells import Row
from msrnn_bench.results.journal import Journal
from msrnn_bench.tasks.writing.asked import Answer, Asked
from msrnn_bench.tasks.writing.prompts import Prompt, check_template, fit, frame

Question = tuple[Example, Prompt, Asked]


@dataclass(frozen=True, kw_only=True)
class Answering(ABC):
    """prompt: a template with {document} and {question}; chat: as one message in the model's chat template;
    new_tokens: the most an answer may have; questions: the first so many on each document (null: all);
    stop: texts that end an answer, cut off it; batch: answers written at a time (speed and memory; a result only as far
    as a batch changes the last bits of a sum).

    How much of a document is read follows from the context: prompt and answer fit in it; `tokens` plays no part."""

    prompt: str
    new_tokens: Count
    chat: bool = False
    questions: Count | None = 1
    stop: tuple[Named, ...] = ()
    batch: Count = 8

    name = "answering"
    shares = True  # by batch

    def __post_init__(self) -> None:
        check_fields(self, "task")
        check_template(self.prompt, ("question",))

    @property
    def template(self) -> str:
        return "chat" if self.chat else "plain"

    @abstractmethod
    def score(self, prediction: str, references: tuple[str, ...]) -> dict[str, float]:
        """Metric -> points of one answer."""

    def settings(self) -> dict[str, Any]:
        """What of this task is part of a cell's identity."""
        return {**{k: v for k, v in asdict(self).items() if k != "batch"}, "stop": list(self.stop)}

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do."""
        if not isinstance(job.dataset, Questions):
            raise UsageError(
                f"dataset={job.dataset.name} has no questions, which task={self.name} asks; take dataset=squality or qasper"
            )
        if self.new_tokens >= job.context:
            raise UsageError(
                f"task.new_tokens={self.new_tokens} leaves nothing of context={job.context} for a prompt: "
                "raise context or lower task.new_tokens"
            )

    def work(self, job: Job) -> Work | None:
        """Prompts that fill the context, but for documents with fewer characters than it has tokens."""
        assert isinstance(job.dataset, Questions)
        try:
            examples = job.dataset.examples(job.documents)
        except NotHereError:
            return None
        asked = [list(group)[: self.questions] for _, group in groupby(examples, key=lambda example: example.document)]
        room = job.context - self.new_tokens
        if isinstance(job.policy, Baseline) and job.cache is not None:
            room = min(room, job.cache)
        prompts = [min(room, len(one.text) + len(self.prompt) + len(one.question)) for group in asked for one in group]
        rows = max(1, min(self.batch, len(prompts)))
        return Work(sum(prompts) + len(prompts) * self.new_tokens, rows=rows, logits=rows)

    def rows(self, job: Job) -> Iterator[Row]:
        """Rows of all examples, a document's together, once all are answered. A record that the journal holds is not made
        again."""
        assert isinstance(job.dataset, Questions)
        if not job.dataset.examples(job.documents):
            first = next(n for n, story in enumerate(job.dataset.stories(), start=1) if story.examples)
            raise UsageError(f"documents={job.documents} of {job.dataset.name} have no question: take documents={first} or more")
        loaded = load(job)
        asked = self._prompts(job, loaded.tokenizer)
        bos = asked[0][1].ids[:1] == [loaded.tokenizer.bos_token_id]
        batches = [asked[at : at + self.batch] for at in range(0, len(asked), self.batch)]
        ours = [batch for number, batch in enumerate(batches) if job.mine(number)]
        job.progress.start(sum(len(prompt.ids) + self.new_tokens for batch in ours for _, prompt, _ in batch))
        journal = Journal(job.journal, job.earlier)
        self._answer(loaded, job, ours, journal)
        for example, _, _ in (one for batch in ours for one in batch):
            yield from self._rows(example, journal.records[example.id], {**job.columns, "bos": bos})

    def _answer(self, loaded: Loaded, job: Job, batches: list[list[Question]], journal: Journal) -> None:
        """Fill the journal. Of a document with several questions, what they share is read once; a batch of which a record is
        missing is answered whole, for in another company an answer's last bits would be others."""
        from msrnn_bench.tasks.writing.answers import Writer

        writer = Writer(loaded, job, self.new_tokens, stop=self.stop)
        for batch in batches:
            lacking = [journal.get(example.id) is None for example, _, _ in batch]
            answers = writer.answers([one for _, _, one in batch]) if any(lacking) else []
            for (example, prompt, _), answer, missing in zip_longest(batch, answers, lacking):
                if missing:
                    journal.add(example.id, self._record(example, prompt, answer))
                tell = job.progress.advance if missing else job.progress.restored
                tell(len(prompt.ids) + self.new_tokens)

    def _prompts(self, job: Job, tokenizer: Any) -> list[Question]:
        """All questions and their prompts, a document's together: all of them, so that one without room stops nothing midway."""
        assert isinstance(job.dataset, Questions)
        room = job.context - self.new_tokens
        if isinstance(job.policy, Baseline) and job.cache is not None:
            room = min(room, job.cache)
        asked = []
        for name, group in groupby(job.dataset.examples(job.documents), key=lambda example: example.document):
            examples = list(group)[: self.questions]
            words: dict[str, Any] = {"chat": self.chat, "bos": job.dataset.bos}
            frames = [frame(tokenizer, self.prompt, **words, question=example.question) for example in examples]
            document = tokenise(tokenizer, examples[0].text)
            prompts = [fit(head, document, tail, room) for head, tail in frames]
            # of the document, as much as the longest question leaves room for
            read = min(prompt.reading for prompt in prompts) if len(prompts) > 1 else 0
            number = zlib.crc32(name.encode())
            asked += [(one, prompt, Asked(prompt.ids, read, number)) for one, prompt in zip(examples, prompts, strict=True)]
        return asked

    def _record(self, example: Example, prompt: Prompt, answer: Answer) -> dict[str, Any]:
        """What a researcher reads, and what the rows need."""
        prediction = answer.text.strip()
        return {
            "document": example.document, "question": example.question, "prediction": prediction,
            "references": list(example.references), "scores": self.score(prediction, example.references),
            "prompt_tokens": len(prompt.ids), "document_tokens_cut": prompt.cut, "answer": asdict(answer),
        }  # fmt: skip

    def _rows(self, example: Example, record: dict[str, Any], columns: dict[str, Any]) -> Iterator[Row]:
        answer = Answer(**record["answer"])
        for metric, points in record["scores"].items():
            yield Row(**columns, **answer.columns(), document=example.document, metric=metric, total=points, count=1)

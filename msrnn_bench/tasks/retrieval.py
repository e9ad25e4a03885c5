"""Retrieval: something is hidden in a long text and asked for behind it. Accuracy over length x depth.

A policy reads the haystack without knowing what will be asked (`prefill=stepwise`), or cuts once the question is read
(`oneshot`). What is hidden and where is needles.py's; this module composes prompts, has them answered and scores.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from msrnn_bench.datasets.chunks import bos_ids
from msrnn_bench.errors import Count, Share, UsageError, check_fields, shown
from msrnn_bench.job import Job, Work, load
from msrnn_bench.policies import Baseline
from msrnn_bench.results.cells import Row
from msrnn_bench.results.journal import Journal
from msrnn_bench.tasks.writing import needles
from msrnn_bench.tasks.writing.asked import Answer, Asked
from msrnn_bench.tasks.writing.held import behind, held_after
from msrnn_bench.tasks.writing.prompts import Prompt, check_template, fit, frame

if TYPE_CHECKING:
    from msrnn_bench.tasks.writing.answers import Writer

PROMPT = """{document}

The text above holds the answer to the following question. Answer with the number alone.
Question: {question}
Answer:"""


@dataclass(frozen=True)
class Case:
    """One prompt. `read`: how many of its tokens it shares with the haystack's other prompts; `at`: the
    places in the document of the sentence that is asked for."""

    key: str
    document: str
    depth: float
    hidden: needles.Hidden
    prompt: Prompt
    read: int
    at: range


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Exact-match accuracy: 1 where the number asked for stands in the answer as a whole number (not as part of a longer
    one), else 0. It is a synthetic test and none of the paper's.

    kinds: `single` (one sentence with a word and its number), `multi` (one at each depth, asked in turn), `lookup` (lines
    of keys and numbers instead of the dataset's text, one asked at each depth), `variables` (a number assigned to a name
    and handed on `hops` times; asked is the last one's value, for that alone has one right answer).
    lengths: tokens of the whole prompt, in the model's own tokens (where several questions follow one document, of the
    longest of them). depths: where in the haystack the number stands, 0 its beginning, 1 its end. examples: haystacks per
    length, each of another part of the dataset's documents, which are joined; `tokens` plays no part.
    A haystack depends on (seed, kind, length, example) alone, in `multi` and `lookup` on the depths too: every policy and
    size is asked the same. `document` of the rows is a haystack, so its depths are resampled together. `baseline` cuts
    the document's end to k tokens, and what stood there is lost.
    needle: also measure what became of the sentence asked for, as shares of its tokens (mean over heads that decide alone):
    `needle_kept`, still held when the question has been read, over layers; `needle_kept_by_layer`, the same of each layer
    (subtask `single/layer:07`), over a haystack's depths; `needle_kept_by_step`, held after n tokens more were read (bucket
    n), over layers and those depths with so much text behind them. The journal has each layer at each step.
    batch: prompts of one haystack asked together (speed and memory; a result only as far as a batch changes the last bits of a
    sum).
    """

    kinds: tuple[Literal["single", "multi", "lookup", "variables"], ...] = ("single",)
    lengths: tuple[Count, ...] = (1000, 4000, 8000)
    depths: tuple[Share, ...] = (0, 0.25, 0.5, 0.75, 1)
    examples: Count = 5
    hops: Annotated[int, Ge(1), Le(20)] = 2
    new_tokens: Count = 24
    prompt: str = PROMPT
    chat: bool = False
    needle: bool = False
    batch: Count = 1

    name = "retrieval"
    shares = True  # by haystack, whose depths are read on from each other

    def __post_init__(self) -> None:
        check_fields(self, "task")
        for name in ("kinds", "lengths", "depths"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"task.{name}={shown(values)} must be a list with something in it, and nothing twice")
        object.__setattr__(self, "depths", tuple(sorted(self.depths)))  # a haystack is read on from depth to depth
        check_template(self.prompt, ("question",))

    @property
    def template(self) -> str:
        return "chat" if self.chat else "plain"

    def settings(self) -> dict[str, Any]:
        """What of this task is part of a cell's identity. `needle` only where it is measured: cells are older than it."""
        known = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if k != "needle" or v}
        known.pop("batch")
        return {**known, "needles": needles.VERSION}

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do."""
        longest = max(self.lengths) + self.new_tokens
        if longest > job.context:
            raise UsageError(
                f"task.lengths has {max(self.lengths)}, with task.new_tokens={self.new_tokens} more than context={job.context}: "
                f"set context={longest} where the model has the positions, or lower task.lengths"
            )
        if "multi" in self.kinds and len(self.depths) > len(needles.WORDS):
            raise UsageError(f"kind multi has {len(needles.WORDS)} words to hide: give fewer task.depths")
        if job.dataset.skip:
            raise UsageError("task=retrieval does not skip tokens: set dataset.skip=0 (dataset.start cuts characters)")

    def work(self, job: Job) -> Work:
        """Every prompt and answer whole; what a haystack's prompts share is read once, so it is less."""
        each = len(self.kinds) * self.examples * len(self.depths)
        tokens = sum(each * (min(length, _room(job)) + self.new_tokens) for length in self.lengths)
        return Work(tokens, rows=min(self.batch, len(self.depths)))

    def rows(self, job: Job) -> Iterator[Row]:
        """A row a question; the depths of a haystack follow each other, so that each is read on from the last."""
        from msrnn_bench.tasks.writing.answers import Writer

        loaded = load(job)
        columns = {**job.columns, "bos": not self.chat and bool(bos_ids(job.dataset.bos, loaded.tokenizer))}
        writer, journal = Writer(loaded, job, self.new_tokens, deaths=self.needle), Journal(job.journal, job.earlier)
        sizes = [min(n, _room(job)) + self.new_tokens for _ in self.kinds for n in self.lengths for _ in range(self.examples)]
        job.progress.start(len(self.depths) * sum(size for number, size in enumerate(sizes) if job.mine(number)))
        numbers = itertools.count()  # of haystacks
        for kind in self.kinds:
            for length in self.lengths:
                cases = self._cases(job, loaded.tokenizer, kind, length)
                for document, haystack in groupby(cases, key=lambda case: case.document):
                    if not job.mine(next(numbers)):
                        continue
                    common: dict[str, Any] = {**columns, "document": document, "subtask": kind, "length": length}
                    traces, size = [], min(length, _room(job)) + self.new_tokens
                    for case, record in self._records(writer, journal, list(haystack), size):
                        shared = {**common, **Answer(**record["answer"]).columns(), "depth": case.depth}
                        yield Row(**shared, metric="accuracy", total=float(record["correct"]), count=1)
                        if self.needle:
                            traces.append(record["needle_held"])
                            yield _kept(shared, record["needle_held"], case)
                    if self.needle:
                        yield from _over_depths(common, traces)

    def _records(self, writer: Writer, journal: Journal, cases: list[Case], size: int) -> Iterator[tuple[Case, dict[str, Any]]]:
        """Cases, `size` tokens each, and their records, of the journal or asked now, a batch at a time. Where one of a batch is
        missing all are asked, for in another company an answer's last bits would be others."""
        for at in range(0, len(cases), self.batch):
            some = cases[at : at + self.batch]
            known = [journal.get(case.key) for case in some]
            if None in known:
                asked = [Asked(case.prompt.ids, case.read, zlib.crc32(case.document.encode())) for case in some]
                answers = writer.answers(asked)
            for row, (case, record) in enumerate(zip(some, known, strict=True)):
                tell = writer.job.progress.advance if record is None else writer.job.progress.restored
                record = record or journal.add(case.key, self._record(writer, case, answers[row], row))
                tell(size)
                yield case, record

    def _record(self, writer: Writer, case: Case, answer: Answer, row: int) -> dict[str, Any]:
        return {
            "question": case.hidden.question, "needle": case.hidden.planted[case.hidden.asked][1], "at": case.at.start,
            "value": case.hidden.value, "correct": needles.found(case.hidden.value, answer.text), "cut": case.prompt.cut,
            "answer": asdict(answer), **({"needle_held": self._trace(writer, case, row)} if self.needle else {}),
        }  # fmt: skip

    def _trace(self, writer: Writer, case: Case, row: int) -> dict[str, Any]:
        """Of row `row` of the last answers: how many of the needle's tokens each layer holds `behind` so many tokens more, `held`
        [L, n], `of` how many (over the heads that decide). What a baseline cuts off is never held, and what it reads always:
        no steps."""
        begin, size = len(case.prompt.head), len(case.prompt.document)
        there = range(begin + min(case.at.start, size), begin + min(case.at.stop, size))
        left = len(case.prompt.ids) - there.stop
        steps = [left] if isinstance(writer.job.policy, Baseline) else behind(left)
        held, deciders = held_after([layer[row : row + 1] for layer in writer.left], there, steps)
        return {"behind": steps, "held": held, "of": len(case.at) * deciders}

    def _cases(self, job: Job, tokenizer: Any, kind: str, length: int) -> Iterator[Case]:
        """The prompts of one kind and length, haystack by haystack, each at ascending depths."""
        texts: list[list[int]] = []
        if kind != "lookup":
            joined = "\n\n".join(document.text for document in job.dataset.documents(job.documents))
            texts = needles.parts(tokenizer, joined, length, self.examples)
        for example in range(self.examples):
            haystack = needles.hide(kind, self.depths, seed=job.seed, length=length, example=example, hops=self.hops)
            hay = texts[example] if haystack.text is None else needles.parts(tokenizer, haystack.text, length, 1)[0]
            yield from self._prompts(job, tokenizer, hay, haystack.hidden, (kind, length, example))

    def _prompts(
        self, job: Job, tokenizer: Any, hay: list[int], hidden: tuple[needles.Hidden, ...], which: tuple[str, int, int]
    ) -> Iterator[Case]:
        """The prompts of one haystack. Its document is the same for all where the same sentences are hidden in it."""
        kind, length, example = which
        frames = [frame(tokenizer, self.prompt, chat=self.chat, bos=job.dataset.bos, question=h.question) for h in hidden]
        around = max(len(head) + len(tail) for head, tail in frames)
        if around >= length:
            raise UsageError(
                f"task.lengths has {length}, and the prompt without its document has {around} tokens already: raise "
                "task.lengths or shorten task.prompt"
            )
        one = len({h.planted for h in hidden}) == 1
        ids: list[int] = []
        places: list[range] = []
        for depth, asked, (head, tail) in zip(self.depths, hidden, frames, strict=True):
            if not ids or not one:
                ids, places = needles.plant(tokenizer, hay, asked.planted, length - around)
            prompt = fit(head, ids, tail, min(length, _room(job)))
            yield Case(
                key=f"{kind}/{length}/{depth:.12g}/{example:04d}", document=f"{kind}/{length}/{example:04d}", depth=depth,
                hidden=asked, prompt=prompt, at=places[asked.asked],
                read=min(len(head) + (len(ids) if one else places[0].start), prompt.reading),
            )  # fmt: skip


def _kept(shared: dict[str, Any], trace: dict[str, Any], case: Case) -> Row:
    """The share of a needle that is held when the question has been read: over layers; its bucket is its place."""
    begin = len(case.prompt.head)
    place = {"bucket_start": begin + case.at.start, "bucket_end": begin + case.at.stop}
    total = sum(layer[-1] for layer in trace["held"]) / trace["of"]
    return Row(**{**shared, **place}, metric="needle_kept", total=total, count=len(trace["held"]))


def _over_depths(common: dict[str, Any], traces: list[dict[str, Any]]) -> Iterator[Row]:
    """The rows of a haystack, summed over its depths: by layer when the question has been read, and by step over layers."""
    layers, kind = len(traces[0]["held"]), common["subtask"]
    for layer in range(layers):
        row = {**common, "subtask": f"{kind}/layer:{layer:02}", "bucket_start": 0, "bucket_end": common["length"]}
        total = sum(trace["held"][layer][-1] / trace["of"] for trace in traces)
        yield Row(**row, metric="needle_kept_by_layer", total=total, count=len(traces))
    for n in sorted({n for trace in traces for n in trace["behind"][:-1]}):
        reached = [trace for trace in traces if n in trace["behind"][:-1]]
        total = sum(layer[trace["behind"].index(n)] / trace["of"] for trace in reached for layer in trace["held"])
        row = {**common, "bucket_start": n, "bucket_end": n + 1}
        yield Row(**row, metric="needle_kept_by_step", total=total, count=len(reached) * layers)


def _room(job: Job) -> int:
    """Tokens of a prompt at most: the baseline's is cut to k."""
    return min(job.cache, job.context) if isinstance(job.policy, Baseline) and job.cache is not None else job.context

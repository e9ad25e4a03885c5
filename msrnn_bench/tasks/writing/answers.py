"""Prompts to answers under one policy and state size: `generate` inside `bounded`, with memory that does not grow.

What consecutive prompts share is read once (`states.fork()`); the answers are those of reading every prompt anew, for
under `stepwise` the states after a token depend on nothing behind it. `oneshot` cuts by the prompt's end, so there
nothing is shared. Knows no task.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from msrnn_bench.job import Job, check_places
from msrnn_bench.models.sources import Loaded
from msrnn_bench.multistate.attention import Session, bounded
from msrnn_bench.multistate.cache import LayerReport, MultiState
from msrnn_bench.multistate.naming import carried
from msrnn_bench.policies import Baseline, Full
from msrnn_bench.tasks.writing.asked import Answer, Asked
from msrnn_bench.tasks.writing.staircase import read_on, read_together, reads_together


@dataclass
class Writer:
    """One loaded model under the job's policy. `new_tokens` at most are written, until an end mark or a text of `stop`
    (which is cut off the answer); `deaths`: keep when each state left; `together`: whether a batch's prompts are read
    together (None: on CUDA)."""

    loaded: Loaded
    job: Job
    new_tokens: int
    stop: tuple[str, ...] = ()
    deaths: bool = False
    together: bool | None = None
    _kept: list[tuple[list[int], MultiState]] = field(default_factory=list)  # states at earlier ends of reading
    _document: int | None = None

    def __post_init__(self) -> None:
        self._session = job_session(self.loaded.model, self.job, deaths=self.deaths)

    def answer(self, one: Asked) -> Answer:
        """As `answers`, of one prompt."""
        return self.answers([one])[0]

    @property
    def left(self) -> list[Tensor]:
        """Per layer [B, P, tokens]: the step at which each state of the last answers left, as `Session.deaths`."""
        return self._session.deaths

    def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        """Greedy. Prompts are answered in one batch, for a decode step costs little more for eight rows than for one; they are
        read one by one, or together on CUDA (staircase.py). Each gets what it gets alone, up to the last bits that a batch
        changes. The seconds of writing are shared equally, those of reading together by the prompts' tokens."""
        rows = [one.ids[:-1] for one in asked]
        if self.job.prefill == "stepwise" and all(rows) and reads_together(self.loaded.model, rows, self.together):
            begin = time.perf_counter()
            joined = MultiState.join(self._read_together(asked))
            rate = (time.perf_counter() - begin) / sum(map(len, rows))
            return self._write(asked, joined, [], [rate * len(row) for row in rows])
        states, seconds = [], []
        for one in asked:
            begin = time.perf_counter()
            states.append(self._read(one))
            seconds.append(time.perf_counter() - begin)
        read = [state for state in states if state is not None]
        return self._write(asked, MultiState.join(read) if len(read) == len(asked) else None, [], seconds)

    def sample(self, one: Asked, processors: Sequence[LogitsProcessor], rows: int) -> list[Answer]:
        """`rows` answers to one prompt, in one batch; `processors` say how they come to differ."""
        begin = time.perf_counter()
        states = self._read(one)
        seconds = (time.perf_counter() - begin) / rows
        forked = None if states is None else states.fork(rows)
        return self._write([one] * rows, forked, processors, [seconds] * rows)

    def _read(self, one: Asked) -> MultiState | None:
        """The states after all ids but the last; None where there are none, and under `oneshot`, which reads a prompt in
        one piece: `generate` then reads it."""
        if self.job.prefill == "oneshot" or len(one.ids) < 2:
            return None
        if one.document != self._document:
            self._kept, self._document = [], one.document
        most = one.ids[:-1]
        while self._kept and most[: len(self._kept[-1][0])] != self._kept[-1][0]:
            self._kept.pop()
        states, done = None, 0
        if self._kept:
            states, done = self._kept[-1][1].fork(), len(self._kept[-1][0])
        self._session.documents = (one.document,)
        with self._session:
            if min(one.read, len(most)) > done:
                states = read_on(self.loaded.model, most[done : one.read], states)
                done = min(one.read, len(most))
                self._kept.append((most[:done], states.fork()))
            return read_on(self.loaded.model, most[done:], states) if most[done:] else states

    def _read_together(self, asked: Sequence[Asked]) -> list[MultiState]:
        """As `_read` of each in turn. A next batch may go on from what the last prompt shares, which is read as a row of its own
        that ends there."""
        rows, documents = [one.ids[:-1] for one in asked], [one.document for one in asked]
        begun = (self._document, *self._kept[-1]) if self._kept and self._document is not None else None
        if shared := rows[-1][: asked[-1].read]:
            rows.append(shared)
            documents.append(documents[-1])
        states = read_together(self.loaded.model, self._session, rows, documents, begun)
        self._kept, self._document = [(shared, states.pop())] if shared else [], documents[-1]
        return states

    def _write(
        self, asked: Sequence[Asked], states: MultiState | None, processors: Sequence[LogitsProcessor], seconds: list[float]
    ) -> list[Answer]:
        begin = time.perf_counter()
        model, session = self.loaded.model, self._session
        ends = end_marks(self.loaded)
        pad = ends[0] if ends else 0
        prompts, mask = padded([one.ids for one in asked], model.device, left=True, pad=pad)
        width = prompts.shape[1]
        config = GenerationConfig(
            max_new_tokens=self.new_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=pad
        )  # fmt: skip
        stop = StoppingCriteriaList([_Stop(self.loaded.tokenizer, self.stop, width)] if self.stop else [])
        session.documents = tuple(one.document for one in asked)
        with session, _no_defaults(model):
            out = model.generate(
                prompts, attention_mask=mask, generation_config=config, **carried(model, states),
                logits_processor=LogitsProcessorList(processors), stopping_criteria=stop,
            )  # fmt: skip
        share = (time.perf_counter() - begin) / len(asked)
        fed = out.shape[1] - width - 1  # the last token written was not read
        check_states(session, self.job, [len(one.ids) + fed for one in asked])
        layers = session.layers
        return [
            self._answer(len(one.ids), _until_end(row[width:].tolist(), ends), ends, layers, number, spent + share)
            for number, (one, row, spent) in enumerate(zip(asked, out, seconds, strict=True))
        ]

    def _answer(
        self, prompt: int, tokens: list[int], ends: list[int], layers: list[LayerReport], row: int, seconds: float
    ) -> Answer:
        """What row `row` wrote. What it held is that up to its own end, not to the end of the batch."""
        ended = bool(tokens) and tokens[-1] in ends
        text = self.loaded.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        for mark in self.stop:
            text = text.split(mark)[0]
        read = prompt + len(tokens) - 1
        due = evictions_due(self.job, read)
        held = read - due
        return Answer(
            text=text, tokens=tokens, prompt_tokens=prompt, ended=ended, seconds=seconds,
            evictions=due, first_eviction=min(int(layer.first_eviction[row].min()) for layer in layers) if due else None,
            max_states=held,
            state_bytes=state_bytes(layers, held),
        )  # fmt: skip


def job_session(model: Any, job: Job, documents: Sequence[int] | None = None, *, deaths: bool = False) -> Session:
    """The job's policy around the model; the baseline, which shortens texts, evicts nothing."""
    policy = Full() if isinstance(job.policy, Baseline) else job.policy
    return bounded(
        model, policy, job.cache if job.policy.evicts else None, engine=job.engine, prefill=job.prefill,
        positions=job.positions, documents=documents, deaths=deaths, graph=job.graph,
    )  # fmt: skip


def padded(rows: Sequence[Sequence[int]], device: Any, *, left: bool, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask, both [B, longest]."""
    longest = max(map(len, rows))
    gaps = [longest - len(row) for row in rows]
    ids = [[pad] * gap + [*row] if left else [*row] + [pad] * gap for row, gap in zip(rows, gaps, strict=True)]
    real = [[0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap for row, gap in zip(rows, gaps, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(real, device=device)


@contextlib.contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """The model's own generation settings would fill what ours leave open, and with a repetition penalty greedy is not
    greedy, nor a sample one from the model's distribution."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def evictions_due(job: Job, read: int) -> int:
    """How many states of a layer must have left once `read` tokens were read; the others are held."""
    return max(0, read - job.cache) if job.policy.evicts and job.cache is not None else 0


def state_bytes(layers: list[LayerReport], held: int) -> int:
    """Bytes of the states of one row that holds so many a layer."""
    return sum(held * layer.nbytes // sum(kept.shape[-1] for kept in layer.kept) for layer in layers)


def check_states(session: Session, job: Job, read: list[int]) -> None:
    """A policy that did not evict exactly what was due in every layer and row is an error, not a result."""
    check_places(job, session.layers)
    for number, layer in enumerate(session.layers):
        evicted = layer.evictions.double().mean(-1).tolist()  # a mean over heads that decide alone
        for row, tokens in enumerate(read):
            due = evictions_due(job, tokens)
            if evicted[row] != due or layer.largest[row] > tokens - due:
                raise RuntimeError(
                    f"policy {job.policy.name} evicted {evicted[row]:g} states in layer {number} where {due} were "
                    f"due, and held {layer.largest[row]} of {tokens - due}: it did not act as it should, so nothing was measured"
                )


def end_marks(loaded: Loaded) -> list[int]:
    """Ids that end an answer: the model's own and the tokenizer's, and the mark of beginning, for what follows it is
    another text (the only end that some models were trained to write)."""
    named = getattr(loaded.model, "generation_config", None)
    own = getattr(named, "eos_token_id", None)
    ids = own if isinstance(own, list) else [own]
    ids = [*ids, *(getattr(loaded.tokenizer, f"{mark}_token_id", None) for mark in ("eos", "bos"))]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens up to the first end mark, that included; what `generate` pads behind it is none of the answer."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens


class _Stop(StoppingCriteria):
    """Ends a row once one of the texts is in what it has written."""

    def __init__(self, tokenizer: Any, texts: tuple[str, ...], prompt: int) -> None:
        self.tokenizer, self.texts, self.prompt = tokenizer, texts, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        written = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        return torch.tensor([any(mark in text for mark in self.texts) for text in written], device=input_ids.device)

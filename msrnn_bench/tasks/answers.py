"""Prompts to answers under one policy and state size: `generate` inside `bounded`, with memory that does not grow.

What consecutive prompts share is read once (`states.fork()`); the answers are those of reading every prompt anew, for
under `stepwise` the states after a token depend on nothing behind it. `oneshot` cuts by the prompt's end, so there
nothing is shared. Knows no task.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from msrnn_bench.job import Job
from msrnn_bench.models import Loaded
from msrnn_bench.multistate.attention import Session, bounded
from msrnn_bench.multistate.cache import MultiState
from msrnn_bench.policies import Baseline, Full

PIECE = 1024  # tokens a forward pass while a prompt is read; memory and speed, never the result


@dataclass(frozen=True)
class Answer:
    """What was written, and what the states did meanwhile. `tokens` are the new ones, an end mark included;
    `ended` says whether the model ended by itself. The row columns of the same names are explained in results.Row."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    ended: bool
    seconds: float
    evictions: int | None
    first_eviction: int | None
    max_states: int
    state_bytes: int

    def columns(self) -> dict[str, Any]:
        """The row columns that an answer fills: its tokens' positions, the states' doings, the cost."""
        end = self.prompt_tokens + len(self.tokens)
        return {
            "bucket_start": self.prompt_tokens, "bucket_end": end, "evictions": self.evictions,
            "first_eviction": self.first_eviction, "max_states": self.max_states, "state_bytes": self.state_bytes,
            "seconds": self.seconds, "tokens_per_second": end / self.seconds,
        }  # fmt: skip


@dataclass
class Writer:
    """One loaded model under the job's policy. `new_tokens` at most are written, until an end mark or a text of `stop`
    (which is cut off the answer)."""

    loaded: Loaded
    job: Job
    new_tokens: int
    stop: tuple[str, ...] = ()
    _kept: list[tuple[list[int], MultiState]] = field(default_factory=list)  # states at earlier ends of reading
    _session: Session | None = None
    _document: int | None = None

    def answer(self, ids: list[int], *, read: int = 0, document: int = 0) -> Answer:
        """Greedy. The states after the first `read` ids are kept for a next prompt that begins alike; `document` is
        what the random policy draws by."""
        begin = time.perf_counter()
        states = self._read(ids, read, document)
        return self._write(ids, states, 1, [], begin)[0]

    def sample(self, ids: list[int], processors: Sequence[LogitsProcessor], rows: int, *, document: int = 0) -> list[Answer]:
        """`rows` answers to one prompt, in one batch; `processors` say how they come to differ."""
        begin = time.perf_counter()
        states = self._read(ids, len(ids) - 1, document)
        return self._write(ids, states, rows, processors, begin)

    def _read(self, ids: list[int], read: int, document: int) -> MultiState | None:
        """The states after a beginning of `ids`, as much of it as was read before or is asked for; None for none."""
        if self._document != document or self._session is None:
            policy = Full() if isinstance(self.job.policy, Baseline) else self.job.policy
            size = self.job.cache if policy.evicts else None
            options: dict[str, Any] = {"engine": self.job.engine, "prefill": self.job.prefill, "positions": self.job.positions}
            self._session = bounded(self.loaded.model, policy, size, documents=[document], **options)
            self._kept, self._document = [], document
        if self.job.prefill == "oneshot":
            return None
        while self._kept and ids[: len(self._kept[-1][0])] != self._kept[-1][0]:
            self._kept.pop()
        done = len(self._kept[-1][0]) if self._kept else 0
        if read > done:
            states = self._kept[-1][1].fork() if self._kept else None
            self._session.documents = (document,)
            with self._session:
                for at in range(done, read, PIECE):
                    states = self._forward(ids[at : min(at + PIECE, read)], states)
            assert states is not None
            self._kept.append((ids[:read], states))
        return self._kept[-1][1] if self._kept else None

    def _forward(self, ids: list[int], states: MultiState | None) -> MultiState:
        """Read on; the logits, which nobody asked for, of one token only."""
        model = self.loaded.model
        last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        return model(torch.tensor([ids], device=model.device), past_key_values=states, **last).past_key_values

    def _write(
        self, ids: list[int], states: MultiState | None, rows: int, processors: Sequence[LogitsProcessor], begin: float
    ) -> list[Answer]:
        model, session = self.loaded.model, self._session
        assert session is not None
        prompt = torch.tensor([ids] * rows, device=model.device)
        past = None if states is None else states.fork(rows)
        ends = end_marks(self.loaded)
        config = GenerationConfig(
            max_new_tokens=self.new_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
        )
        stop = StoppingCriteriaList([_Stop(self.loaded.tokenizer, self.stop, len(ids))] if self.stop else [])
        session.documents = (self._document,) * rows  # type: ignore[assignment]
        with session, _no_defaults(model):
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), past_key_values=past, generation_config=config,
                logits_processor=LogitsProcessorList(processors), stopping_criteria=stop,
            )  # fmt: skip
        seconds = (time.perf_counter() - begin) / rows
        new = [_until_end(row[len(ids) :].tolist(), ends) for row in out]
        fed = out.shape[1] - 1  # the last token written was not read
        check_states(session, self.job, [fed] * rows)
        return [self._answer(ids, tokens, ends, session, seconds) for tokens in new]

    def _answer(self, ids: list[int], tokens: list[int], ends: list[int], session: Session, seconds: float) -> Answer:
        ended = bool(tokens) and tokens[-1] in ends
        text = self.loaded.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        for mark in self.stop:
            text = text.split(mark)[0]
        read, layers = len(ids) + len(tokens) - 1, session.layers
        due = max(0, read - self.job.cache) if self.job.policy.evicts and self.job.cache is not None else 0
        return Answer(
            text=text, tokens=tokens, prompt_tokens=len(ids), ended=ended, seconds=seconds,
            evictions=due, first_eviction=min(int(layer.first_eviction.min()) for layer in layers) if due else None,
            max_states=min(read, self.job.cache) if due and self.job.cache is not None else read,
            state_bytes=sum(layer.nbytes for layer in layers) // len(layers[0].largest),
        )  # fmt: skip


@contextlib.contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """The model's own generation settings would fill what ours leave open, and with a repetition penalty greedy is not
    greedy, nor a sample one from the model's distribution."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def check_states(session: Session, job: Job, read: list[int]) -> None:
    """A policy that did not evict exactly what was due in every layer and row is an error, not a result."""
    for number, layer in enumerate(session.layers):
        evicted = layer.evictions.double().mean(-1).tolist()  # a mean over heads that decide alone
        for row, tokens in enumerate(read):
            bound = job.cache if job.policy.evicts and job.cache is not None else tokens
            if evicted[row] != max(0, tokens - bound) or layer.largest[row] > max(bound, 0):
                raise RuntimeError(
                    f"policy {job.policy.name} evicted {evicted[row]:g} states in layer {number} where {max(0, tokens - bound)} "
                    f"were due, and held {layer.largest[row]} of {bound}: it did not act as it should, so nothing was measured"
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

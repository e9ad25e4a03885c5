"""lm-eval's language model class around one of ours: every request goes through `bounded`, in batches.

lm-eval scores a request in a single forward pass, so a cache that evicts between passes would never act: the policy has
to act within. A request is read from an empty state; the answers to it depend on no other. Knows requests and tokens,
not the tasks they belong to nor what an answer is worth. Importing it imports lm-eval, which takes seconds.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from transformers import LogitsProcessorList

from msrnn_bench.errors import UsageError
from msrnn_bench.job import Job
from msrnn_bench.models.sources import Loaded
from msrnn_bench.multistate.attention import Session
from msrnn_bench.multistate.cache import MultiState
from msrnn_bench.multistate.naming import carried
from msrnn_bench.policies import Baseline
from msrnn_bench.results.journal import Journal
from msrnn_bench.tasks.lm_eval.context import quiet
from msrnn_bench.tasks.lm_eval.doings import Doings
from msrnn_bench.tasks.lm_eval.scoring import Scorer, Target, doings, session
from msrnn_bench.tasks.writing.answers import check_states, end_marks, padded
from msrnn_bench.tasks.writing.prompts import dated
from msrnn_bench.tasks.writing.sampling import Chance, sampling_warpers
from msrnn_bench.tasks.writing.staircase import read_apart, read_together, reads_together

_TOLD = {field.name for field in fields(Doings)}


@dataclass(frozen=True)
class Prompt:
    """Token ids to go on from, at most `new` tokens, under lm-eval's generation options; `cut` tokens of its beginning
    were left out. `number` is the request's own, which its chance belongs to where it samples."""

    ids: tuple[int, ...]
    new: int
    options: dict[str, Any]
    cut: int = 0
    number: int = 0


class ShareError(Exception):
    """Raised where this process has answered its share, and lm-eval wants all: other processes have the others."""


class BoundedLM(HFLM):
    """`truncate`: cut the beginning of what is longer than the context, as lm-eval does, instead of refusing it. The
    baseline keeps the last k tokens of a request: where its document ends, which the paper cuts, lm-eval does not say.
    Answers go into the journal as they are made, and are taken from it.
    """

    together: bool | None = None  # whether prompts are read together; None: on CUDA

    def __init__(
        self, loaded: Loaded, job: Job, *, batch_size: int, truncate: bool = False, journal: Journal | None = None
    ) -> None:
        if getattr(loaded.tokenizer, "eos_token_id", None) is None:
            raise UsageError(f"lm-eval needs a tokenizer with a token of end, which {job.model.name} does not bring")
        baseline = isinstance(job.policy, Baseline)
        longest = min(job.context, job.cache) if baseline and job.cache is not None else job.context
        with quiet():
            super().__init__(
                pretrained=loaded.model, backend="causal", tokenizer=copy.deepcopy(loaded.tokenizer), max_length=longest,
                batch_size=batch_size,
            )  # fmt: skip
        self.job, self.loaded, self.journal = job, loaded, journal
        self.cuts = truncate or baseline
        self.scorer = Scorer(self.model, job, batch_size)
        self._generated: Session | None = None  # the states of the last call of `generate`
        self.asked: set[str] = set()  # the kinds of request that are done with
        self._announced = 0

    def answer(self, kind: str, requests: list[Any]) -> None:
        """Have this process's share of these requests in the journal."""
        with contextlib.suppress(ShareError):
            getattr(self, kind)(requests)

    # -- lm-eval's three kinds of request --

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log probability, whether greedy decoding would write it) of each request's continuation. With
        `prefill=oneshot` the cut is between context and continuation, which then goes step by step."""
        work = [[self._target(request)] for request in requests]
        answers = self._answer("loglikelihood", requests, work, self.scorer.portions(work), self._score)
        return [(answer[0], answer[1]) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log probability of each text, in lm-eval's disjoint windows of at most `context` tokens, each from an empty
        state. A mark of beginning that the tokenizer itself adds is context; lm-eval's `hf` model scores it behind its
        own."""
        if self.job.prefill != "stepwise":
            raise UsageError(f"prefill={self.job.prefill} reads a prompt at once; a rolling loglikelihood has none: stepwise")
        work = [self._windows(request) for request in requests]
        answers = self._answer("loglikelihood_rolling", requests, work, self.scorer.portions(work), self._score)
        return [answer[0] for answer in answers]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to one of its `until` texts or the model's end mark."""
        keys = request_keys("generate_until", requests)
        work = [self._prompt(request, key) for request, key in zip(requests, keys, strict=True)]
        return list(self._answer("generate_until", requests, work, self._portions(work), self._write))

    def _answer(
        self, kind: str, requests: list[Any], work: list[Any], portions: list[list[int]],
        make: Callable[[list[Any]], Iterator[tuple[int, Any, Doings]]],
    ) -> list[Any]:  # fmt: skip
        """The answers, in order: from the journal what is there, the rest written down as it is made. A portion of which one is
        missing is made whole: in another company its last bits would be others."""
        keys, sizes = request_keys(kind, requests), [_size(one) for one in work]
        ours = [portion for number, portion in enumerate(portions) if self.job.mine(number)]
        self._announced += sum(sizes[i] for portion in ours for i in portion)
        self.job.progress.start(self._announced)
        answers: dict[int, Any] = {}
        for portion in ours:
            for i in portion:
                record = self.journal.get(keys[i]) if self.journal else None
                if record is not None and record.keys() >= _TOLD:  # an earlier version may have written less down
                    answers[i] = record["answer"]
                    self.job.progress.restored(sizes[i])
            if all(i in answers for i in portion):
                continue
            for n, answer, spent in make([work[i] for i in portion]):
                if (i := portion[n]) in answers:
                    continue
                answers[i] = answer
                if self.journal:
                    self.journal.add(keys[i], {"request": kind, "answer": answer, **asdict(spent)})
                self.cache_hook.add_partial(kind, requests[i].args, answer[0] if kind == "loglikelihood_rolling" else answer)
                self.job.progress.advance(sizes[i])
        self.asked.add(kind)
        if len(answers) < len(requests):
            raise ShareError
        return [answers[i] for i in range(len(requests))]

    # -- from text to tokens --

    def _target(self, request: Any) -> Target:
        context, continuation = request.args[:2]
        if context:
            before, after = self._encode_pair(context, continuation)
        else:  # lm-eval's rule: the prefix token is the context, unless the text begins with it
            ids = self.tok_encode(continuation, add_special_tokens=False)
            before, after = (ids[:1], ids[1:]) if ids[:1] == [self.prefix_token_id] else ([self.prefix_token_id], ids)
        if not after:
            raise UsageError(f"{_name(request)} has a continuation without tokens, which cannot be scored")
        before, cut = self._fitting(before, self.max_length + 1 - len(after), request)
        return Target(tuple(before), tuple(after), cut)

    def _windows(self, request: Any) -> list[Target]:
        ids = self.tok_encode(request.args[0])
        ids = ids[1:] if ids[:1] == [self.prefix_token_id] else ids
        if not ids:
            raise UsageError(f"{_name(request)} is an empty text, which cannot be scored")
        windows = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
        return [Target(tuple(c), tuple(t), shared=False) for c, t in map(make_disjoint_window, windows)]

    def _prompt(self, request: Any, key: str = "") -> Prompt:
        text, options = request.args[:2]
        for name in ("num_beams", "num_return_sequences"):
            if options.get(name, 1) != 1:
                raise UsageError(
                    f"{_name(request)} asks for {name}={options[name]}; lm-eval's tasks are answered once, without beams: "
                    "take it out of the task's generation_kwargs"
                )
        new = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
        ids, cut = self._fitting(self.tok_encode(text), min(self.job.context - new, self.max_length), request)
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        return Prompt(tuple(ids), new, options, cut, number)

    def _fitting(self, ids: list[int], room: int, request: Any) -> tuple[list[int], int]:
        """The last `room` ids and how many were cut; refused where nothing may be cut, or nothing is left."""
        if not ids:
            raise UsageError(f"{_name(request)} is an empty text, so there is nothing to go on from")
        if room < 1:
            raise UsageError(f"{_name(request)} leaves no room for its text in {self.max_length} tokens: raise context or cache")
        if len(ids) > room and not self.cuts:
            raise UsageError(
                f"{_name(request)} has {len(ids)} tokens where context={self.job.context} has room for {room}: raise context, "
                "or cut its beginning as lm-eval does: truncate=true"
            )
        return ids[-room:], max(0, len(ids) - room)

    # -- answers --

    def _score(self, work: list[list[Target]]) -> Iterator[tuple[int, list[Any], Doings]]:
        for index, logprob, greedy, spent in self.scorer.score(work):
            yield index, [logprob, greedy], spent

    def _portions(self, work: list[Prompt]) -> list[list[int]]:
        """The indices of prompts that are answered in one batch. Only those of the same options share one."""

        def alike(index: int) -> str:
            return json.dumps(work[index].options, sort_keys=True, default=str)

        order = sorted(range(len(work)), key=lambda index: (alike(index), -len(work[index].ids)))
        groups = [list(group) for _, group in groupby(order, key=alike)]
        return [group[at : at + self.batch_size] for group in groups for at in range(0, len(group), self.batch_size)]

    def _write(self, work: list[Prompt]) -> Iterator[tuple[int, str, Doings]]:
        begin = time.perf_counter()
        found = self._write_batch(work)
        seconds = (time.perf_counter() - begin) / len(work)
        yield from ((index, text, replace(spent, seconds=seconds)) for index, (text, spent) in enumerate(found))

    def _write_batch(self, prompts: list[Prompt]) -> list[tuple[str, Doings]]:
        ids, real = padded([prompt.ids for prompt in prompts], self.device, left=True, pad=self.tokenizer.pad_token_id)
        options: dict[str, Any] = {**normalize_gen_kwargs(prompts[0].options, self.max_gen_toks)}
        del options["max_gen_toks"]
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            numbers = [prompt.number for prompt in prompts]
            warpers = sampling_warpers(options, self.model.generation_config)
            chance = Chance(seed=self.job.seed, numbers=numbers, prompt=ids.shape[1], warpers=warpers)
            options |= {"do_sample": False, "temperature": 0.0, "logits_processor": LogitsProcessorList([chance])}
        end = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(options.pop("until", None), eos=end)
        length = ids.shape[1] + prompts[0].new
        out = self._model_generate(context=ids, attention_mask=real, stop=until, max_length=length, **options)
        states, self._generated = self._generated, None
        assert states is not None
        written = out[:, ids.shape[1] :]
        check_states(states, self.job, [len(prompt.ids) + written.shape[1] - 1 for prompt in prompts])
        marks, layers = end_marks(self.loaded), states.layers
        found = []
        for row, prompt in enumerate(prompts):
            tokens, start = written[row].tolist(), len(prompt.ids)
            own = next((n for n, token in enumerate(tokens, start=1) if token in marks), len(tokens))
            text = postprocess_generated_text(self.tok_decode(tokens[:own]), until, None)
            found.append((text, doings(layers, self.job, row, start=start, end=start + own, cut=prompt.cut)))
        return found

    # -- lm-eval's own calls of the model --

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """lm-eval's, on the same day every time (see prompts.TODAY)."""
        self.chat_template_args: dict[str, Any] = {**self.chat_template_args, **dated(self.tokenizer)}
        return super().apply_chat_template(chat_history, add_generation_prompt)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """A forward pass over right-padded rows without a mask: what is padding enters the states too, behind the last
        token that is scored, so it changes nothing."""
        with session(self.model, self.job, [tuple(row) for row in inps.tolist()]):
            return super()._model_call(inps, attn_mask, labels)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """`generate`, over left-padded rows with a mask. Rows are read without their padding (staircase.py) and written
        together; but `generate` reads them itself under `oneshot`, in one piece, and where a row is one token."""
        given = generation_kwargs.get("attention_mask")
        real = torch.ones_like(context) if given is None else given
        rows = [tuple(row[mask.bool()].tolist()) for row, mask in zip(context, real, strict=True)]
        self._generated = ours = session(self.model, self.job, rows)
        if self.job.prefill == "stepwise" and min(map(len, rows)) > 1:
            generation_kwargs.update(carried(self.model, self._read(ours, rows)))
        with ours:
            return super()._model_generate(context, max_length, stop, **generation_kwargs)

    def _read(self, ours: Session, rows: list[tuple[int, ...]]) -> MultiState:
        """The states of all rows after all their tokens but the last."""
        documents, most = ours.documents, [row[:-1] for row in rows]
        assert documents is not None
        read = read_together if reads_together(self.model, most, self.together) else read_apart
        states = read(self.model, ours, most, documents)
        ours.documents = documents
        return MultiState.join(states)


def request_keys(kind: str, requests: list[Any]) -> list[str]:
    """A stable name per request: task, document, number; a hash of what it says; the number of a repeated one."""
    keys, seen = [], Counter[str]()
    for request in requests:
        said = json.dumps([kind, list(request.args)], sort_keys=True, default=str)
        key = f"{request.task_name}/{request.doc_id}/{request.idx} {hashlib.sha256(said.encode()).hexdigest()[:12]}"
        keys.append(f"{key} {seen[key]}" if seen[key] else key)
        seen[key] += 1
    return keys


def _name(request: Any) -> str:
    return f"document {request.doc_id} of task {request.task_name}"


def _size(work: Any) -> int:
    """Tokens of a request."""
    return sum(target.read + 1 for target in work) if isinstance(work, list) else len(work.ids) + work.new

"""Story generation (the paper, Figure 6): long stories sampled under a policy, and how they compare with the full
model's of the same seeds.

Of each story: its length, its share of distinct tokens, whether the model ended it, and the full model's loss of it.
With a judge, a pair is one seed's story of the full model and of this policy. Where we differ or the paper is silent:
the wording of both prompts is ours; a sampled token is a function of (seed, story, step) and the logits, so that
pairs drift apart only through the policy; an end mark counts as a token; lengths are capped by `new_tokens`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from msrnn_bench.datasets.amount import CHARACTERS
from msrnn_bench.datasets.chunks import bos_ids
from msrnn_bench.errors import LARGEST, Count, Positive, UsageError, check_fields
from msrnn_bench.job import Job, Work, load
from msrnn_bench.models.sources import Loaded, LocalModel
from msrnn_bench.policies import Baseline, Full
from msrnn_bench.results.cells import Row
from msrnn_bench.results.journal import Journal
from msrnn_bench.tasks.writing.asked import Answer, Asked
from msrnn_bench.tasks.writing.judges import (
    OUTCOMES,
    Endpoint,
    Judge,
    LocalJudge,
    check_judge_prompt,
    compare,
    endpoint_address,
)
from msrnn_bench.tasks.writing.prompts import check_template, fit, frame

log = logging.getLogger(__name__)

PIECE = 512  # tokens a forward pass while a story is scored; memory and speed, never the result


@dataclass(frozen=True, kw_only=True)
class Stories:
    """`stories` seeds, `batch` of them at a time (speed and memory; a result only as far as a batch changes the last
    bits of the logits). Scores: see `_rows`. Judging: see judges.py; `judge_path` empty is the model under test."""

    prompt: str
    judge_prompt: str
    chat: bool = False
    stories: Count = 100
    new_tokens: Count = 512
    batch: Count = 10
    temperature: Positive = 1.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    judge: Literal["none", "endpoint", "local"] = "none"
    judge_model: str = ""
    judge_path: str = ""
    judge_temperature: Annotated[float, Ge(0), Le(LARGEST)] | None = 0.0
    judge_timeout: Positive = 60.0

    name = "stories"
    shares = True  # by batch

    def __post_init__(self) -> None:
        check_fields(self, "task")
        check_template(self.prompt, (), document=False)
        check_judge_prompt(self.judge_prompt)
        if self.judge == "endpoint" and not self.judge_model:
            raise UsageError("task.judge=endpoint needs the name of the model that judges: task.judge_model=NAME")
        if self.judge == "local" and self.judge_path and not (Path(self.judge_path).expanduser() / "config.json").is_file():
            raise UsageError(f"task.judge_path={self.judge_path} is no model folder (config.json, model.safetensors, tokenizer)")

    @property
    def template(self) -> str:
        return "chat" if self.chat else "plain"

    def settings(self) -> dict[str, Any]:
        """What of this task is part of a cell's identity; where the judge is found is not."""
        judge: dict[str, Any] = {"kind": self.judge}
        if self.judge == "endpoint":
            judge |= {"model": self.judge_model, "temperature": self.judge_temperature}
            judge |= {} if self.judge_timeout == 60 else {"timeout": self.judge_timeout}  # late is unjudged; 60 as ever
        if self.judge == "local" and self.judge_path:
            judge |= {"model": LocalModel(path=self.judge_path).fingerprint()}
        if self.judge != "none":
            judge |= {"prompt": self.judge_prompt}
        return {
            "prompt": self.prompt, "chat": self.chat, "stories": self.stories, "new_tokens": self.new_tokens,
            "temperature": self.temperature, "top_p": self.top_p, "judge": judge,
        }  # fmt: skip

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do."""
        if isinstance(job.policy, Baseline):
            raise UsageError("policy=baseline shortens a document, and stories have none: take full or a policy that evicts")
        if self.new_tokens >= job.context:
            raise UsageError(f"task.new_tokens={self.new_tokens} leaves no room for a prompt in context={job.context}")
        if self.judge == "endpoint" and job.policy.evicts:
            endpoint_address()

    def work(self, job: Job) -> Work:
        """Stories of the greatest length; a judge's reading is not in it."""
        tokens = self.stories * (len(self.prompt) // CHARACTERS + self.new_tokens)
        rows = min(self.batch, self.stories)
        return Work(tokens, "at most, a judge's apart" if self.judge != "none" else "at most", rows=rows, logits=rows)

    def rows(self, job: Job) -> Iterator[Row]:
        """Rows of all stories, in order, then those of all pairs."""
        loaded = load(job)
        ids = self._ids(loaded, job)
        judge = self._judge(loaded, job) if job.policy.evicts else None
        columns = {**job.columns, "bos": not self.chat and bool(bos_ids(job.dataset.bos, loaded.tokenizer))}
        journal, topline = Journal(job.journal, job.earlier), Journal(job.topline)
        numbers = [n for n in range(self.stories) if job.mine(n // self.batch)]
        missing = [n for n in numbers if judge is not None and topline.get(_key(n)) is None]
        job.progress.start((len(numbers) + len(missing)) * (len(ids) + self.new_tokens))
        ours = self._stories(loaded, job, ids, journal, "", numbers)
        for number, record in ours.items():
            yield from _rows(columns, number, record)
        if judge is not None:
            alike = replace(job, policy=Full(), cache=None, prefill="stepwise")
            full = self._stories(loaded, alike, ids, journal, "full/", missing)
            full |= {n: topline.records[_key(n)] for n in ours if n not in full}
            yield from self._judged(judge, journal, full, ours, columns)

    def _judged(
        self, judge: Judge, journal: Journal, full: dict[int, Any], ours: dict[int, Any], columns: dict[str, Any]
    ) -> Iterator[Row]:
        """Rows of the pairs; what an earlier, killed run could not get judged is asked again."""
        reasons = []
        for number, record in ours.items():
            key = f"pair/{_key(number)}"
            pair = journal.get(key)
            if pair is None or pair["status"] == "unjudged":
                texts = {"full": full[number]["text"], "ours": record["text"]}
                pair = journal.add(key, compare(judge, self.prompt.strip(), **texts))
            if pair["status"] == "unjudged":
                reasons.append(pair["reason"])
            yield from _outcome(columns, number, record, pair)
        if reasons:
            log.warning("%d of %d pairs are unjudged; of the first, the judge %s", len(reasons), len(ours), reasons[0])

    def _ids(self, loaded: Loaded, job: Job) -> list[int]:
        head, tail = frame(loaded.tokenizer, self.prompt, chat=self.chat, bos=job.dataset.bos)
        return fit(head, [], tail, job.context - self.new_tokens).ids

    def _judge(self, loaded: Loaded, job: Job) -> Judge | None:
        if self.judge == "none":
            return None
        if self.judge == "endpoint":
            url, key = endpoint_address()
            return Endpoint(
                url=url, key=key, model=self.judge_model, prompt=self.judge_prompt, temperature=self.judge_temperature,
                timeout=self.judge_timeout,
            )  # fmt: skip
        if self.judge_path:
            model = LocalModel(path=self.judge_path)
            known = ("judge", self.judge_path, job.dtype, job.device)
            if known not in job.shared:
                job.shared[known] = model.load(dtype=job.dtype, device=job.device, seed=job.seed)
            loaded = job.shared[known]
        return LocalJudge(loaded=loaded, prompt=self.judge_prompt)

    def _stories(
        self, loaded: Loaded, job: Job, ids: list[int], journal: Journal, prefix: str, numbers: list[int]
    ) -> dict[int, dict[str, Any]]:
        """The records of these stories. A batch of which one is missing is written whole: in another company a story's last bits
        would be others."""
        from msrnn_bench.tasks.writing.answers import Writer
        from msrnn_bench.tasks.writing.sampling import Sampler

        todo = {n for n in numbers if journal.get(prefix + _key(n)) is None}
        size = len(ids) + self.new_tokens
        job.progress.restored((len(numbers) - len(todo)) * size)
        writer = Writer(loaded, job, self.new_tokens)
        for at in sorted({n // self.batch * self.batch for n in todo}):
            batch = list(range(at, min(at + self.batch, self.stories)))
            sampler = Sampler(
                seed=job.seed, numbers=batch, prompt=len(ids), temperature=self.temperature, top_p=self.top_p
            )  # fmt: skip
            for number, answer in zip(batch, writer.sample(Asked(ids), [sampler], len(batch)), strict=True):
                if number in todo:
                    nll = written_loss(loaded.model, ids, answer.tokens, job.engine)
                    journal.add(prefix + _key(number), {"text": answer.text, "nll": nll, "answer": asdict(answer)})
                    job.progress.advance(size)
        return {n: journal.records[prefix + _key(n)] for n in numbers}


def _key(number: int) -> str:
    return f"{number:04d}"


def written_loss(model: Any, ids: list[int], tokens: list[int], engine: str) -> float:
    """The full model's summed loss of the written tokens, given the prompt: what the policy wrote, read with all of
    the past in sight."""
    import torch

    from msrnn_bench.multistate.attention import bounded
    from msrnn_bench.tasks.reading.losses import losses

    text = torch.tensor([ids + tokens], device=model.device)
    return float(losses(model, text, PIECE, bounded(model, Full(), engine=engine), None)["nll"][0, len(ids) - 1 :].sum())


def _rows(columns: dict[str, Any], number: int, record: dict[str, Any]) -> Iterator[Row]:
    """Of one story: `length` in tokens; `distinct` tokens of those written (it falls with length); whether it `ended`
    before `new_tokens`; `nll`, whose perplexity is the full model's."""
    answer = Answer(**record["answer"])
    written = len(answer.tokens)
    values: dict[str, tuple[float, int]] = {
        "length": (written, 1), "distinct": (len(set(answer.tokens)), written), "ended": (answer.ended, 1),
        "nll": (record["nll"], written),
    }  # fmt: skip
    for metric, (total, count) in values.items():
        yield Row(**columns, document=_key(number), **answer.columns(), metric=metric, total=float(total), count=count)


def _outcome(columns: dict[str, Any], number: int, record: dict[str, Any], pair: dict[str, Any]) -> Iterator[Row]:
    """Of one pair: `win`, `tie` and `loss`, 0 or 1; missing where it was not judged."""
    judged = pair["status"] == "ok"
    for metric in OUTCOMES:
        total = float(pair["outcome"] == metric) if judged else None
        yield Row(
            **columns, document=_key(number), **Answer(**record["answer"]).columns(), metric=metric, total=total,
            count=int(judged), status=pair["status"],
        )  # fmt: skip

"""lm-eval's tasks, any of them, asked of a model under a policy; their metrics as rows.

lm-eval brings the documents, the prompts and the scores; the model answers through `bounded` (model.py). Of each
document and metric the row is the document's share of lm-eval's own number: what lm-eval computes from all documents at
once, and not from sums over them, is left out with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from msrnn_bench.datasets.chunks import bos_ids
from msrnn_bench.datasets.texts import Nothing
from msrnn_bench.errors import Count, Named, UsageError, Whole, check_fields
from msrnn_bench.job import Job, load
from msrnn_bench.policies import Baseline
from msrnn_bench.results.cells import Row
from msrnn_bench.results.journal import Journal
from msrnn_bench.tasks.lm_eval import tasks as found
from msrnn_bench.tasks.lm_eval.context import quiet, seeded
from msrnn_bench.tasks.lm_eval.doings import Doings
from msrnn_bench.tasks.lm_eval.files import digests, versions
from msrnn_bench.tasks.lm_eval.metrics import Share, plain, shares
from msrnn_bench.tasks.lm_eval.tasks import Subtask, Wanted

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Harness:
    """`tasks`: names of lm-eval's tasks, groups, tags, or patterns; `include_path`: a folder of your own YAML files;
    `limit`: documents a task (null all); `lengths` in tokens, for RULER; `batch_size`: requests a forward pass (never the
    result); `truncate`: cut the beginning of requests longer than the context, as lm-eval does, instead of refusing them.
    """

    tasks: tuple[Named, ...] = ()
    include_path: str | None = None
    limit: Count | None = None
    num_fewshot: Whole | None = None
    lengths: tuple[Count, ...] = ()
    batch_size: Count = 8
    apply_chat_template: bool = False
    truncate: bool = False

    name = "lm_eval"
    shares = True  # by batch

    def __post_init__(self) -> None:
        check_fields(self, "task")

    @property
    def template(self) -> str:
        return "chat" if self.apply_chat_template else "plain"

    def settings(self) -> dict[str, Any]:
        """What of the task is part of a cell's identity: the bytes of the user's folder, lm-eval's version for its own.
        A data set of the hub is what the hub has under the name that the task gives."""
        return {
            "tasks": sorted(self.tasks), "limit": self.limit, "num_fewshot": self.num_fewshot, "lengths": sorted(self.lengths),
            "chat": self.apply_chat_template, "truncate": self.truncate, "versions": versions(),
            "files": {} if self.include_path is None else digests(Path(self.include_path).expanduser()),
        }  # fmt: skip

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what this task cannot do."""
        if not self.tasks:
            raise UsageError("which of lm-eval's tasks? Give task.tasks=[NAME,...]; `lm-eval ls tasks` lists them")
        if not isinstance(job.dataset, Nothing) or job.dataset.bos != "auto":
            raise UsageError("task=lm_eval brings its own text and begins it as the tokenizer does: leave dataset=none as it is")
        if self.lengths and max(self.lengths) > job.context and not self.truncate:
            raise UsageError(f"task.lengths={list(self.lengths)} has more tokens than context={job.context}: raise context")
        found.check(self._wanted(job))

    def _wanted(self, job: Job) -> Wanted:
        return Wanted(
            names=self.tasks, include_path=None if self.include_path is None else Path(self.include_path).expanduser(),
            lengths=self.lengths, tokenizer=None if job.model.fileless else job.model.folder(weights=False),
            num_fewshot=self.num_fewshot, seed=job.seed,
        )  # fmt: skip

    def rows(self, job: Job) -> Iterator[Row]:
        """Rows of all tasks and documents. Each answer is in the journal, and so are the scores of each document."""
        subtasks = self._subtasks(job)
        loaded = load(job)
        if self.apply_chat_template and not getattr(loaded.tokenizer, "chat_template", None):
            raise UsageError("task.apply_chat_template=true, but this model's tokenizer has no chat template: set it to false")
        from lm_eval.evaluator import evaluate

        from msrnn_bench.tasks.lm_eval.model import BoundedLM, ShareError

        journal = Journal(job.journal, job.earlier)
        model = BoundedLM(loaded, job, batch_size=self.batch_size, truncate=self.truncate, journal=journal)
        with quiet(), seeded(job.seed):
            try:
                found: Any = evaluate(
                    lm=model, task_dict={"tasks": {subtask.label: subtask.task for subtask in subtasks}}, limit=self.limit,
                    log_samples=True, bootstrap_iters=0, apply_chat_template=self.apply_chat_template,
                    fewshot_as_multiturn=self.apply_chat_template,
                )  # fmt: skip
            except ShareError:
                _ask_the_rest(model, subtasks)
                return
        columns = {**job.columns, "bos": bool(bos_ids("auto", loaded.tokenizer))}
        for subtask in subtasks:
            records = _records(subtask, journal)
            spent = {document: _doings(some) for document, some in records.items()}
            _warn_of_cuts(subtask, spent, job)
            _keep_scores(subtask, found["samples"][subtask.label], journal)
            for share in _shares(subtask, found, records, spent):
                yield Row(
                    **columns, document=f"{share.document:04d}", subtask=subtask.name, length=share.length,
                    metric=share.metric, total=share.total, count=share.count, **_columns(spent[share.document]),
                )  # fmt: skip

    def _subtasks(self, job: Job) -> list[Subtask]:
        """Built once for all cells of a process that ask the same."""
        wanted = self._wanted(job)
        key = ("lm_eval", wanted, tuple(self.settings()["files"].items()))
        if key not in job.shared:
            job.shared[key] = found.build(wanted)
        for subtask in job.shared[key]:  # which examples are shown is drawn anew for each cell, as if it were the only one
            subtask.task.set_fewshot_seed(seed=found.SEED + job.seed)
        return job.shared[key]


def _ask_the_rest(model: Any, subtasks: list[Subtask]) -> None:
    """Of a shared cell, whose scores need everybody's answers: the requests of the kinds to which lm-eval has not come."""
    requests = [request for subtask in subtasks for request in subtask.task.instances for _ in range(request.repeats)]
    for kind in dict.fromkeys(request.request_type for request in requests):
        if kind not in model.asked:
            model.answer(kind, [request for request in requests if request.request_type == kind])


def _records(subtask: Subtask, journal: Journal) -> dict[int, list[dict[str, Any]]]:
    """The journal's records of each document's requests."""
    from msrnn_bench.tasks.lm_eval.model import request_keys

    found: dict[int, list[dict[str, Any]]] = {}
    for request in subtask.task.instances:
        for key in request_keys(request.request_type, [request] * request.repeats):
            record = journal.get(key)
            assert record is not None  # the model wrote down all that it answered
            found.setdefault(request.doc_id, []).append(record)
    return found


def _doings(records: list[dict[str, Any]]) -> Doings:
    names = [field.name for field in fields(Doings)]
    return Doings.together([Doings(**{name: record[name] for name in names}) for record in records])


def _shares(subtask: Subtask, found: Any, records: dict[int, list[dict[str, Any]]], spent: dict[int, Doings]) -> Iterator[Share]:
    """lm-eval's metrics, and of a rolling loglikelihood also the loss per token, which lm-eval does not know."""
    for share in shares(found["samples"][subtask.label], found["results"][subtask.label]):
        if isinstance(share, Share):
            yield share
        else:
            log.warning("%s: lm-eval's %s is no sum over documents and so in no row", subtask.label, share)
    for document, some in records.items():
        if all(record["request"] == "loglikelihood_rolling" for record in some):
            yield Share(document, "nll", -sum(record["answer"][0] for record in some), spent[document].tokens)


def _columns(spent: Doings) -> dict[str, Any]:
    return {
        "bucket_start": spent.start, "bucket_end": spent.end, "evictions": spent.evictions,
        "first_eviction": spent.first_eviction, "max_states": spent.max_states, "state_bytes": spent.state_bytes,
        "seconds": spent.seconds, "tokens_per_second": spent.length / spent.seconds,
    }  # fmt: skip


def _keep_scores(subtask: Subtask, samples: list[dict[str, Any]], journal: Journal) -> None:
    """Each document's target and scores, beside its answers."""
    for sample in samples:
        key = f"{subtask.label}/{sample['doc_id']} scores {sample['filter']}"
        if journal.get(key) is None:
            scores = {metric: sample[metric] for metric in sample["metrics"]}
            journal.add(key, {"target": plain(sample["target"]), "scores": plain(scores)})


def _warn_of_cuts(subtask: Subtask, spent: dict[int, Doings], job: Job) -> None:
    cut = sum(one.cut > 0 for one in spent.values())
    if cut and not isinstance(job.policy, Baseline):
        log.warning("%s: %d of %d documents lost their beginning to context=%d", subtask.label, cut, len(spent), job.context)

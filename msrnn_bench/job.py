"""What a task is told: one cell's settings, resolved; and the model they name, loaded once for all cells of a process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from msrnn_bench.errors import UsageError
from msrnn_bench.models.limits import max_positions

if TYPE_CHECKING:
    from pathlib import Path

    from msrnn_bench.datasets.texts import Dataset
    from msrnn_bench.models.sources import Loaded, Model
    from msrnn_bench.multistate.cache import LayerReport
    from msrnn_bench.policies import Policy
    from msrnn_bench.results.cells import Row


class Progress(Protocol):
    """Where a task says how far it is."""

    def start(self, tokens: int) -> None: ...
    def advance(self, tokens: int) -> None: ...
    def restored(self, tokens: int) -> None:
        """They are done, by an earlier run: no part of this one's pace."""


@dataclass(frozen=True)
class Work:
    """How much a cell is: what a task's `work(job)` tells a dry run, if it has one (None: not to be told).

    tokens: read and written, each prompt whole; how: `at most`, or how they were guessed; rows: of a batch, each with states
    of its own; logits: tokens of a forward pass that have them."""

    tokens: int
    how: str = "at most"
    rows: int = 1
    logits: int = 1


class Task(Protocol):
    """One kind of measurement: a job becomes rows. `template` is the row column of that name. A task that cuts no chunks has
    `context(context, tokens) -> int` besides: from the two settings, how many tokens it reads at once (the column). One whose
    cells several processes may share says `shares = True`: it puts each part that is `job.mine` into the journal, leaves the
    others alone, and has rows of what it put there or, where nothing is shared, of all."""

    name: str
    template: str | None

    def settings(self) -> dict[str, Any]:
        """What of the task is part of a cell's identity: plain JSON values."""

    def check(self, job: Job) -> None:
        """Refuse, before anything is loaded, what the task cannot do."""

    def rows(self, job: Job) -> Iterator[Row]:
        """Measure."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """`columns` are the row columns that are the same in all of the cell's rows; `cache` is None for the full model;
    `keep(name, array)`, where keep_tokens asks for it, and `store(name, array)`, always, put an array beside the rows.
    `journal` is the file of what a cell has done so far, `earlier` others of the same cell, `topline` that of the full model's
    cell of the same settings; see journal.py. `graph` and `streams` are speed: multistate/graph.py, overlap.py. `share` is
    (i, n) where n processes measure one cell's documents: see `mine`."""

    columns: dict[str, Any]
    policy: Policy
    model: Model
    dataset: Dataset
    cache: int | None
    context: int
    documents: int | None
    tokens: int | None
    seed: int
    dtype: str
    device: str
    engine: str
    prefill: str
    positions: str
    progress: Progress
    journal: Path
    topline: Path
    keep: Callable[[str, Any], None] | None = None
    store: Callable[[str, Any], None] | None = None
    earlier: tuple[Path, ...] = ()
    graph: bool = False
    streams: int = 1
    share: tuple[int, int] | None = None
    notes: dict[str, Any] = field(default_factory=dict)  # how it was done, where the task had a choice: for the manifest
    shared: dict[Any, Any] = field(default_factory=dict)  # what the cells of one process need not make twice

    def mine(self, number: int) -> bool:
        """Whether this process is to measure the cell's part of that number, counted from 0. A part is what is computed
        together, a document or a batch: torn apart it would come out otherwise in the last bits."""
        return self.share is None or number % self.share[1] == self.share[0]


def load(job: Job) -> Loaded:
    """The job's model on its device, one at a time: what an earlier cell loaded of another model, or cut with it, is let go."""
    content = json.dumps(job.model.fingerprint(seed=job.seed), sort_keys=True)
    key = ("model", content, job.dtype, job.device, str(job.model.device_map))
    if key not in job.shared:
        for old in [k for k in job.shared if k[0] in ("model", "chunks")]:
            del job.shared[old]
        from msrnn_bench.multistate.guard import verify  # torch: only where a model is read

        loaded = job.model.load(dtype=job.dtype, device=job.device, seed=job.seed)
        # Here, so that no row's seconds have it; a model that fails is refused where it is bounded.
        loaded.info["verified"] = verify(loaded.model).record
        _refuse_foreign_ids(loaded, str(getattr(job.model, "path", None) or getattr(job.model, "name", "the model")))
        job.shared[key] = loaded
    return job.shared[key]


def check_places(job: Job, layers: list[LayerReport]) -> None:
    """Under compressed positions a text may be longer than the model's positions as long as no state stood farther off."""
    if job.positions != "compressed" or getattr(job.model, "extrapolate", False):
        return
    limit, farthest = max_positions(job.model.config()), max((n for layer in layers for n in layer.farthest), default=0)
    if limit is not None and farthest >= limit:
        raise UsageError(
            f"compressed positions reached {farthest} with cache={job.cache}, beyond the {limit} of {job.model.name}: take fewer "
            "states, or model.extrapolate=true"
        )


def _refuse_foreign_ids(loaded: Loaded, where: str) -> None:
    """A tokenizer may know tokens that the model has no embedding for: harmless until one is read, which is then said
    by name. Written tokens, one at a time, are the model's own."""
    embedding = loaded.model.get_input_embeddings()

    def see(module: Any, inputs: tuple[Any, ...]) -> None:
        ids = inputs[0]
        if ids.shape[-1] > 1 and (odd := int(ids.max())) >= len(module.weight):
            raise UsageError(
                f"{where}: its tokenizer gives {loaded.tokenizer.convert_ids_to_tokens(odd)!r} the id {odd}, and the model has "
                f"embeddings for 0 to {len(module.weight) - 1}: the tokenizer's files belong to another model"
            )

    if loaded.tokenizer is not None and hasattr(embedding, "weight"):
        embedding.register_forward_pre_hook(see)

"""What a task is told: one cell's settings, resolved. Carries them and computes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from msrnn_bench.datasets import Dataset
    from msrnn_bench.models import Model
    from msrnn_bench.policies import Policy


class Progress(Protocol):
    """Where a task says how far it is."""

    def start(self, tokens: int) -> None: ...
    def advance(self, tokens: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """`columns` are the row columns that are the same in all of the cell's rows; `cache` is None for the full model;
    `keep(name, array)` stores an array beside the rows."""

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
    keep: Callable[[str, Any], None] | None = None
    shared: dict[Any, Any] = field(default_factory=dict)  # what the cells of one process need not make twice

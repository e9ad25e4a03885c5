"""Prompts to states: one after the other, or those of a batch together, each as if it were alone.

Together they walk a staircase. What several begin with is read once, in one row, which forks where they part; a row leaves
where its prompt ends. So the rows of a pass have all read equally many tokens, and are evicted in one walk; rows that were
padded to one length would be evicted one by one (rows.each_row). Knows no task.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from msrnn_bench.multistate.attention import Session
from msrnn_bench.multistate.cache import MultiState
from msrnn_bench.multistate.naming import cache_in, carried
from msrnn_bench.multistate.rotation import piece_of

PIECE = 1024  # tokens of a row a forward pass while a prompt is read; memory and speed, never the result
PASS = 4096  # and of all rows: a pass of many takes no more memory than four of one


def reads_together(model: Any, rows: Sequence[Sequence[int]], wanted: bool | None = None) -> bool:
    """Whether these rows of ids are read together: as `wanted`; else on CUDA, where a layer's walk is one program a row, while a
    CPU gains nothing. Never where the rotation depends on a text's length, so that each must be read in one piece."""
    wanted = model.device.type == "cuda" if wanted is None else wanted
    return wanted and len(rows) > 1 and piece_of(model.config, max(map(len, rows)), 0) == 0


def read_on(model: Any, ids: Sequence[int], states: MultiState | None = None) -> MultiState:
    """Read one row of ids, at least one, within a session, a piece at a time; the logits, which nobody asked for, of one
    token only."""
    return _read(model, [ids], states)


def read_apart(model: Any, session: Session, rows: Sequence[Sequence[int]], documents: Sequence[int]) -> list[MultiState]:
    """The states after each of `rows` of ids, none empty; `documents`, one a row, are what the random policy draws by."""
    found = []
    for row, document in zip(rows, documents, strict=True):
        session.documents = (document,)
        with session:
            found.append(read_on(model, row))
    return found


def read_together(
    model: Any, session: Session, rows: Sequence[Sequence[int]], documents: Sequence[int],
    begun: tuple[int, list[int], MultiState] | None = None,
) -> list[MultiState]:  # fmt: skip
    """As `read_apart`, to rounding; what rows of one document begin with is read once. Rows of the document of `begun`, which
    is (document, ids, states), go on from its states where they begin with its ids."""
    ids = [list(row) for row in rows]
    late = [n for n, row in enumerate(ids) if begun and documents[n] == begun[0] and row[: len(begun[1])] == begun[1]]
    lanes: dict[int, list[int]] = {}
    for n in sorted({*range(len(ids))} - {*late}):
        lanes.setdefault(documents[n], []).append(n)
    with session:
        found = _walk(model, session, ids, documents, list(lanes.values()))
        if begun and late:
            found |= _walk(model, session, ids, documents, [late], begun[2].fork(), len(begun[1]))
    session.current = None  # whose rows have been copied
    return [found[n] for n in range(len(ids))]


def _walk(
    model: Any, session: Session, rows: list[list[int]], documents: Sequence[int], lanes: list[list[int]],
    states: MultiState | None = None, at: int = 0,
) -> dict[int, MultiState]:  # fmt: skip
    """The states of every row in `lanes`. A lane has the numbers of rows that are the same so far, `at` tokens, and is one
    row of the batch."""
    found: dict[int, MultiState] = {}
    while lanes:
        end = min(_alike([rows[n] for n in lane]) for lane in lanes)  # the next that ends or parts
        if end > at:
            if states is None:
                session.documents = tuple(documents[lane[0]] for lane in lanes)
            states = _read(model, [rows[lane[0]][at:end] for lane in lanes], states)
            at = end
        after: list[list[int]] = []
        parents: list[int] = []
        for number, lane in enumerate(lanes):
            by_next: dict[int, list[int]] = {}
            for n in lane:
                if len(rows[n]) > at:
                    by_next.setdefault(rows[n][at], []).append(n)
                elif states is not None:
                    found[n] = states.row(number)
            after += by_next.values()
            parents += [number] * len(by_next)
        if states is not None and after:
            states.keep(parents)
        lanes = after
    return found


def _alike(rows: list[list[int]]) -> int:
    """How many ids all of the rows begin with."""
    low, high = min(rows), max(rows)  # what lies between two begins as both do
    return next((n for n, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))


def _read(model: Any, rows: Sequence[Sequence[int]], states: MultiState | None) -> MultiState:
    """Go on from `states` with rows of equally many ids."""
    last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    tokens = len(rows[0])
    width = piece_of(model.config, tokens, max(1, min(PIECE, PASS // len(rows))))
    for at in range(0, tokens, width):
        piece = torch.tensor([row[at : at + width] for row in rows], device=model.device)
        states = cache_in(model(piece, **carried(model, states), **last))
    assert states is not None
    return states

"""Log probabilities of token ids behind contexts, in batches, every context from an empty bounded state.

A context that several continuations share is read once, their states go on from copies of its own. Logits exist for the
tokens that are scored and for those alone. Knows neither text nor lm-eval.
"""

from __future__ import annotations

import inspect
import json
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from msrnn_bench.job import Job
from msrnn_bench.multistate.attention import Session
from msrnn_bench.multistate.cache import LayerReport, MultiState
from msrnn_bench.multistate.naming import cache_in, carried
from msrnn_bench.multistate.rotation import piece_of
from msrnn_bench.tasks.lm_eval.doings import Doings
from msrnn_bench.tasks.writing.answers import check_states, evictions_due, job_session, padded, state_bytes

PASS = 1024  # tokens of a forward pass, all rows together; memory and speed, never the result
PIECE = 32  # rows of logits turned into a loss at a time


@dataclass(frozen=True)
class Target:
    """Token ids to score behind a context: a request, or one window of a rolling one. `cut` tokens of its context were
    left out. Targets that are `shared` may follow one reading of the same context."""

    context: tuple[int, ...]
    ids: tuple[int, ...]
    cut: int = 0
    shared: bool = True

    @property
    def read(self) -> int:
        """Tokens that the model is fed: all but the last."""
        return len(self.context) + len(self.ids) - 1

    @property
    def beginning(self) -> tuple[int, ...]:
        """What the state it is scored from is identified by."""
        return self.context if self.shared else self.context + self.ids


def session(model: Any, job: Job, rows: Sequence[tuple[int, ...]]) -> Session:
    """The job's policy on a batch; what the random policy draws by is each row's content, `rows`."""
    return job_session(model, job, [zlib.crc32(json.dumps(row).encode()) for row in rows])


def doings(layers: list[LayerReport], job: Job, row: int, *, start: int, end: int, cut: int) -> Doings:
    """Of a row whose tokens up to `end - 1` were read. `check_states` has seen to it that what was due was done."""
    due = evictions_due(job, end - 1)
    first = min(int(layer.first_eviction[row].min()) for layer in layers) if due else None
    held = end - 1 - due
    return Doings(
        start, end, tokens=end - start, cut=cut, length=end, evictions=due, first_eviction=first, max_states=held,
        state_bytes=state_bytes(layers, held),
    )  # fmt: skip


@dataclass(frozen=True)
class Scorer:
    """`score` is the way in, `portions` how much to give it at a time."""

    model: Any
    job: Job
    batch_size: int

    def portions(self, work: list[list[Target]]) -> list[list[int]]:
        """The indices of requests that are scored together: those of `batch_size` contexts, the longest first, for what does
        not fit into memory fails at once."""
        alike: dict[Any, list[int]] = {}
        for index, parts in enumerate(work):
            alike.setdefault(parts[0].context if len(parts) == 1 and parts[0].shared else index, []).append(index)
        groups = sorted(alike.values(), key=lambda group: -max(sum(part.read for part in work[n]) for n in group))
        batches = [groups[at : at + self.batch_size] for at in range(0, len(groups), self.batch_size)]
        return [[index for group in batch for index in group] for batch in batches]

    def score(self, work: list[list[Target]]) -> Iterator[tuple[int, float, bool, Doings]]:
        """(index, log probability, greedy, doings) of each request, once the last of its targets is scored. `greedy`:
        whether every token is the likeliest."""
        targets = [(index, target) for index, parts in enumerate(work) for target in parts]
        made: list[list[tuple[float, bool, Doings]]] = [[] for _ in work]
        for number, logprob, hit, spent in self._batches([target for _, target in targets]):
            index = targets[number][0]
            made[index].append((logprob, hit, spent))
            if len(made[index]) == len(work[index]):
                logprobs, greedy, parts = zip(*made[index], strict=True)
                yield index, sum(logprobs), all(greedy), Doings.together(parts)

    def _batches(self, targets: list[Target]) -> Iterator[tuple[int, float, bool, Doings]]:
        """The longest first: what does not fit into memory fails at once."""
        alike: dict[Any, list[int]] = {}
        for number, target in enumerate(targets):
            alike.setdefault(target.context if target.shared else number, []).append(number)
        groups = sorted(alike.values(), key=lambda group: -max(targets[n].read for n in group))
        for at in range(0, len(groups), self.batch_size):
            some = groups[at : at + self.batch_size]
            begin = time.perf_counter()
            found = self._batch(targets, some)
            seconds = (time.perf_counter() - begin) / len(found)
            yield from ((n, logprob, greedy, replace(spent, seconds=seconds)) for n, logprob, greedy, spent in found)

    def _batch(self, targets: list[Target], groups: list[list[int]]) -> list[tuple[int, float, bool, Doings]]:
        """The targets of some contexts: all that end with their first token, then the others, the longest first."""
        rows = [(row, n) for row, group in enumerate(groups) for n in group]
        short = [(row, n) for row, n in rows if len(targets[n].ids) == 1]
        long = sorted((pair for pair in rows if len(targets[pair[1]].ids) > 1), key=lambda pair: -len(targets[pair[1]].ids))
        contexts = [targets[group[0]].context for group in groups]
        found = []
        with session(self.model, self.job, [targets[group[0]].beginning for group in groups]) as current:
            ids, real = padded(contexts, self.model.device, left=True)
            states, first = self._read(ids, real)
            check_states(current, self.job, [len(context) for context in contexts])
            layers = current.layers if short else []
            for row, n in short:
                found.append((n, *_gain(first[row : row + 1], targets[n].ids), self._doings(layers, row, targets[n])))
            for at in range(0, len(long), self.batch_size):
                some = long[at : at + self.batch_size]
                order, parts = [row for row, _ in some], [targets[n] for _, n in some]
                more = at + self.batch_size < len(long)
                mine = _rows(states.fork() if more else states, order)
                scores = self._follow(mine, real[order], parts, first[order])
                check_states(current, self.job, [part.read for part in parts])
                layers = current.layers
                for row, (_, n) in enumerate(some):
                    found.append((n, *scores[row], self._doings(layers, row, targets[n])))
        return found

    def _doings(self, layers: list[LayerReport], row: int, target: Target) -> Doings:
        return doings(layers, self.job, row, start=len(target.context), end=target.read + 1, cut=target.cut)

    def _read(self, ids: Tensor, real: Tensor) -> tuple[MultiState, Tensor]:
        """The states after each row [B, T] of a context and its mask, and the logits [B, V] of what comes next."""
        width = ids.shape[1] if self.job.prefill == "oneshot" else max(1, PASS // len(ids))
        width = piece_of(self.model.config, ids.shape[1], width)
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        states = None
        for at in range(0, ids.shape[1], width):
            end = at + width
            out = self.model(ids[:, at:end], attention_mask=real[:, :end], **carried(self.model, states), **last)
            states = cache_in(out)
        assert states is not None
        return states, out.logits[:, -1]

    def _follow(self, states: MultiState, before: Tensor, targets: list[Target], first: Tensor) -> list[tuple[float, bool]]:
        """Read on from the contexts' states. `before` [B, T] is the contexts' mask, `first` [B, V] the logits of the
        targets' first tokens."""
        ids, own = padded([target.ids[:-1] for target in targets], self.model.device, left=False)
        seen, width, real = before.shape[1], max(1, PASS // len(targets)), torch.cat([before, own], dim=1)
        scores = [_gain(first[row : row + 1], target.ids[:1]) for row, target in enumerate(targets)]
        for at in range(0, ids.shape[1], width):
            end = at + width
            out = self.model(ids[:, at:end], attention_mask=real[:, : seen + end], **carried(self.model, states))
            states = cache_in(out)
            for row, target in enumerate(targets):
                logprob, greedy = _gain(out.logits[row], target.ids[at + 1 : end + 1])
                scores[row] = scores[row][0] + logprob, scores[row][1] and greedy
        return scores


def _rows(states: MultiState, order: list[int]) -> MultiState:
    """These rows of the states, in this order, repeats allowed."""
    if order != list(range(states.batch_size)):
        states.batch_select_indices(torch.tensor(order))
    return states


def _gain(logits: Tensor, ids: Sequence[int]) -> tuple[float, bool]:
    """Log probability of the ids under the first rows of the logits [.., V], and whether each is the likeliest."""
    total, greedy = 0.0, True
    for at in range(0, len(ids), PIECE):
        wanted = torch.tensor(ids[at : at + PIECE], device=logits.device)
        piece = logits[at : at + len(wanted)]
        wide = piece if piece.dtype == torch.float64 else piece.float()
        total -= float(torch.nn.functional.cross_entropy(wide, wanted, reduction="none").double().sum())
        greedy = greedy and bool((wide.argmax(-1) == wanted).all())
    return total, greedy

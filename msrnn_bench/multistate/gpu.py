"""torch tensors in, the Triton kernels on their memory: the GPU's side of scan.py. Nothing here waits for the device, but where a
user's own score could be NaN and where `random` sends the keys of its draws."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.draw import draw_key, draws
from msrnn_bench.multistate.scores import NAN
from msrnn_bench.multistate.state import State, score_dtype
from msrnn_bench.multistate.streams import remembered
from msrnn_bench.policies import Rule

# The assembler spills to have more programs at a time, of which there are never many.
REGISTERS = {"maxnreg": 255}

# By id of a State whose step is being recorded: the tensor that has its clock at every replay; see graph.py.
_recorded: dict[int, Tensor] = {}


def usable(device: torch.device, rule: Rule) -> bool:
    """Whether the kernels can do it there: they know the policy, Triton is installed, and the device is its, or its interpreter
    stands in for one."""
    known = rule.score is None or rule.elementwise is not None
    return known and (device.type == "cuda" or interpreted()) and find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter was asked for, which runs the kernels on a CPU, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def recording(clocks: dict[int, Tensor]) -> Iterator[None]:
    """Inside, `decode` of these states (by id) reads what they hold and have seen from tensors [B, 2], and bakes in no
    number that a later step would have otherwise."""
    _recorded.update(clocks)
    try:
        yield
    finally:
        _recorded.clear()


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Kernels are launched on the device of the first tensor, which of several GPUs need not be the current one."""

    @wraps(function)
    def launched(first: Tensor, *others: Any, **options: Any) -> Any:
        with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
            return function(first, *others, **options)

    return launched


@_on_its_device
def evict(
    logits: Tensor, state: State, victims: Tensor, rule: Rule, start: int, dtype: torch.dtype, *,
    certificate: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Walk the block's steps; see `gpu_kernels`. The state's positions and scores change in place.

    logits [B, P, R, N, S] float32 or float64, used up; victims [B, P, N] out. Returns the rows of attention [B, P, R, N, S] in
    `dtype`, and what `compact` has to move. `certificate=False` reads every state in all heads at every step: the same victims,
    for tests.
    """
    batch, deciders, heads, steps, states = logits.shape
    tops = logits.new_empty(logits.shape[:-1])
    sums = torch.empty_like(tops, dtype=torch.float64)
    by_attention = rule.memory == 0 and rule.seed is None and rule.elementwise is None
    certified = certificate and heads > 1 and by_attention and rule.state_size is not None
    means = logits.new_empty((batch, deciders, steps, states) if certified else 1)
    clock = _clock((states - steps,) * batch, (start,) * batch, logits.device)
    shape = _shape(logits)
    kernels = _kernels()
    kernels.rows[batch * deciders, steps](
        logits, tops, sums, means, clock, steps, states, MEANS=certified, EXACT=_name(logits.dtype), **shape
    )
    counts = state.evictions.new_empty((2, batch, deciders))  # `State.count_evictions` counts what a whole call evicts
    starts = [start] * batch
    norms, died, moves = _walk(logits, tops, sums, means, clock, state, victims, rule, starts, certified, *counts)
    out = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    kernels.finish[batch * deciders * heads, steps](logits, out, tops, norms, died, clock, steps, states, **shape)
    return out, moves


@_on_its_device
def decode(q: Tensor, k: Tensor, v: Tensor, rule: Rule, state: State, scale: float) -> tuple[Tensor, State]:
    """One token a row, rows of any fill: q [B, H, 1, D], k, v [B, G, 1, D] -> [B, H, 1, D], and the state, changed in place."""
    batch, heads, _, size = q.shape
    groups, most = k.shape[1], max(state.alive) + 1
    if (recorded := _recorded.get(id(state))) is not None and rule.state_size is not None:
        most = rule.state_size + 1  # as it will be, for the numbers of this step are those of every replay
    state.reserve(most, most=None if rule.state_size is None else rule.state_size + 1)
    assert state.keys is not None and state.values is not None
    deciders = state.positions.shape[1]
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    logits = torch.empty((batch, deciders, heads // deciders, 1, most), dtype=score_dtype(q.dtype), device=q.device)
    tops, sums = logits.new_empty(logits.shape[:-1]), logits.new_empty(logits.shape[:-1], dtype=torch.float64)
    clock = _clock(tuple(state.alive), tuple(state.seen), q.device) if recorded is None else recorded
    out = torch.empty_like(q)
    _kernels().attend[batch, groups](
        q, k, v, state.keys, state.values, state.positions, state.scores, logits, tops, sums, out, clock, most, scale,
        *state.keys.stride()[:3], *state.values.stride()[:3], *state.positions.stride()[:2], *state.scores.stride()[:2],
        P=deciders, G=groups, R=heads // groups, TILE=32, WIDTH=_power(size), SIZE=size, EXACT=_name(logits.dtype), num_warps=4,
        **REGISTERS,
    )  # fmt: skip
    victims = state.positions.new_empty((batch, deciders, 1))
    counts = (state.evictions, state.first_eviction)
    _, _, moves = _walk(logits, tops, sums, logits.new_empty(1), clock, state, victims, rule, state.seen, False, *counts)
    compact(state.keys, state.values, state, moves)
    state.step(rule.state_size)
    state.note_deaths(victims)
    return out, state


def _walk(
    logits: Tensor, tops: Tensor, sums: Tensor, means: Tensor, clock: Tensor, state: State, victims: Tensor, rule: Rule,
    starts: list[int], certified: bool, evictions: Tensor, first_eviction: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The sequential kernel: one over each row's live mass, the steps of death, and what has to move [2, B, P, N]."""
    batch, deciders, heads, steps, states = logits.shape
    if rule.seed is not None:
        seeds = [draw_key(rule.seed, document, state.layer) for document in state.documents or ()]
        means = _drawn(seeds, state.positions[:, :, :states], starts, steps).to(logits.dtype)
    norms = torch.empty_like(tops)
    died = torch.empty((batch, deciders, states), dtype=torch.int32, device=logits.device)
    moves = died.new_empty((2, batch, deciders, steps))
    left = victims.new_empty(victims.shape)
    _kernels().walk[batch * deciders,](
        logits, tops, sums, means, norms, state.positions, state.scores, died, left, *moves, evictions,
        first_eviction, clock, steps, states, states if rule.state_size is None else rule.state_size, rule.first,
        rule.recent, *state.positions.stride()[:2], *state.scores.stride()[:2], MEMORY=rule.memory, HEADS=_power(heads),
        DEAD=max(4, min(32, 1024 // _power(heads))), CERTIFICATE=certified, GIVEN=rule.seed is not None, SCORE=_score(rule),
        EXACT=_name(logits.dtype), **_shape(logits), **REGISTERS,
    )  # fmt: skip
    if rule.elementwise is not None and bool(norms.isnan().any()):  # the one wait, and only for a score of the user's own
        raise UsageError(NAN)
    victims.copy_(left)
    return norms, died, moves


@_on_its_device
def compact(keys: Tensor, values: Tensor, state: State, moves: Tensor) -> None:
    """Move the states that stand behind as many slots as survive to where others left: keys, values [B, G, S, D]."""
    batch, groups, _, size = keys.shape
    deciders, steps = moves.shape[2:]
    _kernels().move[batch, groups, steps](
        keys, values, state.positions, state.scores, *moves, steps, *keys.stride()[:3], *values.stride()[:3],
        *state.positions.stride()[:2], *state.scores.stride()[:2], P=deciders, G=groups, WIDTH=_power(size), SIZE=size,
        num_warps=1,
    )  # fmt: skip


def _kernels() -> Any:
    from msrnn_bench.multistate import gpu_kernels  # triton: only where it is used

    return gpu_kernels


def _shape(logits: Tensor) -> dict[str, int]:
    _, deciders, heads, _, states = logits.shape
    return {"P": deciders, "R": heads, "TILE": 512 if states <= 512 or logits.dtype == torch.float64 else 1024, "num_warps": 4}


@remembered(1024)
def _clock(old: tuple[int, ...], start: tuple[int, ...], device: torch.device) -> Tensor:
    """[B, 2] int32: each row's old states and first position; made once for all layers, and sent without waiting."""
    clock = torch.tensor([*zip(old, start, strict=True)], dtype=torch.int32, pin_memory=device.type == "cuda")
    return clock.to(device, non_blocking=True)


def _drawn(seeds: list[int], positions: Tensor, starts: list[int], steps: int) -> Tensor:
    """The random policy's scores [B, P, N, S], all steps at once."""
    batch, deciders, states = positions.shape
    now = torch.tensor(starts, device=positions.device)[:, None] + torch.arange(steps, device=positions.device)
    keys = [seed for seed in seeds for _ in range(steps)]
    repeated = positions[:, :, None].expand(-1, -1, steps, -1).transpose(1, 2).flatten(0, 1)
    return draws(keys, now.flatten(), repeated).view(batch, steps, deciders, states).transpose(1, 2).contiguous()


def _name(dtype: torch.dtype) -> object:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def _score(rule: Rule) -> object:
    """The user's function for `gpu_kernels.walk`, None for the family."""
    if rule.elementwise is None:
        return None
    from msrnn_bench.multistate.gpu_score import score

    return score(rule.elementwise)

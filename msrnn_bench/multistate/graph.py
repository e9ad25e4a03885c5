"""A written token as one CUDA graph: what a call of one token launches, recorded once and from then on sent as a whole, for at
that size the launches cost more than what they do.

A graph keeps tensors and bakes in numbers. So everything that differs from token to token is put into tensors before each
replay (the ids, their positions, what each state holds and has seen), and before a graph is used at all it is held against
the plain call: the same logits to the last bit and the same states, also when the cache lies about how much it has seen, for a
model that counts by it would be stuck at one number. Where anything differs, the calls stay as they are and that is said once.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import disable

from msrnn_bench.errors import one_line
from msrnn_bench.multistate import gpu
from msrnn_bench.multistate.cache import MultiState
from msrnn_bench.multistate.naming import NAMES
from msrnn_bench.multistate.rotation import stretches
from msrnn_bench.multistate.state import State
from msrnn_bench.policies import Rule

log = logging.getLogger(__name__)

STATE = ("keys", "values", "positions", "scores", "evictions", "first_eviction")  # the tensors of a State that a step changes
KNOWN = {"input_ids", "position_ids", "cache_position", "attention_mask", "use_cache", "return_dict", "logits_to_keep", *NAMES}
LIE = 4099  # tokens that a cache pretends to have seen
MOST = 4  # graphs of a session: each has memory of its own

Forward = Callable[..., Any]
Run = Callable[[Forward, dict[str, Any], MultiState], Any]


def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What does `work` again, on the same memory, and what `work` returned, which has values after the first time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


def why_not(model: nn.Module, rules: list[Rule]) -> str | None:
    """Why no step of this model under these rules can be recorded; None where it can."""
    devices = {parameter.device for parameter in model.parameters()}
    device = min(devices, key=str)
    if len(devices) > 1 or not (device.type == "cuda" or gpu.interpreted()):
        return f"the model is on {', '.join(sorted(map(str, devices)))}, and graphs are of one CUDA device"
    for rule in rules:
        if rule.score is not None or rule.seed is not None or rule.state_size is None:
            return "its policy is not one that decides on the device alone: a bounded one of attention sums (window, h2o, tova)"
        if not gpu.usable(device, rule):
            return "Triton is not installed (pip install 'msrnn-bench[triton]')"
    if stretches(model.config) is not None:
        return "its rotation depends on the text's length"
    if "forward" in vars(model):
        return "its forward is wrapped by something else (offloading, a compiler)"
    return None


class Graphs:
    """The graphs of a session, one for each shape of a call. `run(forward, call, states)` calls with these states as the
    session's."""

    def __init__(self, rules: list[Rule], run: Run) -> None:
        self.rules, self._run = rules, run
        self.refused: str | None = None
        self._known: dict[str, _Graph] = {}
        self._weights: int | None = None
        self._cover: Forward | None = None

    def cover(self, model: nn.Module, current: Callable[[], MultiState], *, deaths: bool, compressed: bool) -> None:
        """At the beginning of a block: the model's calls come here, behind its hooks. `deaths`, `compressed` as in `bounded`."""
        weights = hash(tuple(x.data_ptr() for x in (*model.parameters(), *model.buffers())))
        if weights != self._weights:  # graphs read them where they were
            self._known, self._weights, self.refused = {}, weights, None
            host = "steps of death and compressed positions are kept on the host" if deaths or compressed else None
            self.refuse(host or why_not(model, self.rules))
        if self.refused is not None:
            return
        plain = model.forward

        @disable
        @wraps(plain)
        def forward(**call: Any) -> Any:
            return self(plain, call, current())

        model.forward = self._cover = forward

    def uncover(self, model: nn.Module) -> None:
        """At its end."""
        if self._cover is not None and vars(model).get("forward") is self._cover:
            del model.forward
        self._cover = None

    def refuse(self, why: str | None) -> None:
        if why is not None:
            log.warning("graph=true has no effect, every step is launched anew: %s", why)
            self.refused, self._known = why, {}

    def __call__(self, forward: Forward, call: dict[str, Any], states: MultiState) -> Any:
        """`forward(**call)`, by a graph where there can be one."""
        if self.refused is not None or not _one_token(call, states):
            return forward(**call)
        placed = {name: x for name, x in call.items() if name != "attention_mask"}  # of one real token it says nothing
        if call.get("position_ids") is None:
            seen = torch.tensor(states.layers_[0].seen, device=call["input_ids"].device)
            placed["position_ids"] = seen[:, None]
        key = repr([(name, x.shape if isinstance(x, Tensor) else x) for name, x in sorted(placed.items()) if name not in NAMES])
        if key in self._known:
            return self._known[key].replay(placed, states)
        while len(self._known) >= MOST:
            del self._known[next(iter(self._known))]
        return self._first(key, forward, call, placed, states)

    def _first(self, key: str, forward: Forward, asked: dict[str, Any], call: dict[str, Any], states: MultiState) -> Any:
        """The call as it was `asked`, and as `call` recorded for later ones if a replay does the same."""
        plain, liar = states.fork(), states.fork()
        wanted = self._run(forward, asked, plain)
        liar.columns = [n + LIE for n in liar.columns]
        try:
            if not _same(wanted, self._run(forward, call, liar)):
                raise _UnfitError("its forward depends on how many tokens its cache has seen, apart from their positions")
            graph = _Graph(self.rules, lambda given: self._run(forward, given, states), call, states)
            found = graph.replay(call, states)
            if not (_same(wanted, found) and _alike(plain, states)):
                raise _UnfitError("a replayed step is not the plain one; please report it, with the model's name")
            self._known[key] = graph
            return found
        except _UnfitError as error:
            self.refuse(str(error))
        except (RuntimeError, ValueError, TypeError) as error:  # what a model does may be nothing that can be recorded
            self.refuse(f"it cannot be recorded: {one_line(error)}")
        states.layers_, states.columns = plain.layers_, plain.columns
        return type(wanted)(**{name: states if name in NAMES else x for name, x in wanted.items()})


class _UnfitError(Exception):
    pass


class _Graph:
    """One recorded step. It works on tensors of its own, lent to the states that are written on; whoever had them before gets
    copies, so that nobody's states change behind their back."""

    def __init__(self, rules: list[Rule], run: Callable[[dict[str, Any]], Any], call: dict[str, Any], states: MultiState) -> None:
        self._rules, layers = rules, states.layers_
        self._inputs = {name: x.clone() for name, x in call.items() if isinstance(x, Tensor)}
        self._cache = next(name for name in NAMES if name in call)
        device = self._inputs["input_ids"].device
        self._clocks = torch.zeros(len(layers), len(layers[0].seen), 2, dtype=torch.int32, device=device)
        self._own = [_room(state, rule) for state, rule in zip(layers, rules, strict=True)]
        self._borrowers: list[weakref.ref[State]] = []
        before = states.fork()
        self._lend(states)
        self._tell(states)
        clocks = {id(state): clock for state, clock in zip(layers, self._clocks, strict=True)}
        given = {**call, **self._inputs}
        with gpu.recording(clocks), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            run(given)  # kernels are compiled and libraries opened, neither of which can be recorded
            _restore(states, before)
            self._again, output = record(lambda: run(given))
        if not isinstance(output, Mapping) or not all(x is None or isinstance(x, Tensor | MultiState) for x in output.values()):
            raise _UnfitError("its output has more than tensors")
        self._kind, self._output = type(output), {name: x for name, x in output.items() if not isinstance(x, MultiState)}
        _restore(states, before)

    def replay(self, call: dict[str, Any], states: MultiState) -> Any:
        """What the call returns; the states have read one token more."""
        self._lend(states)
        for name, x in self._inputs.items():
            x.copy_(call[name])
        self._tell(states)
        self._again()
        for state, rule in zip(states.layers_, self._rules, strict=True):
            state.step(rule.state_size)
        states.columns = [n + 1 for n in states.columns]
        found = {name: x.clone() if isinstance(x, Tensor) else x for name, x in self._output.items()}
        return self._kind(**found, **{self._cache: states})

    def _tell(self, states: MultiState) -> None:
        """What each state holds and has seen, sent without waiting."""
        now = [[*zip(state.alive, state.seen, strict=True)] for state in states.layers_]
        self._clocks.copy_(torch.tensor(now, dtype=torch.int32, pin_memory=self._clocks.is_cuda), non_blocking=True)

    def _lend(self, states: MultiState) -> None:
        layers = states.layers_
        if all(getattr(state, name) is x for state, own in zip(layers, self._own, strict=True) for name, x in own.items()):
            return
        for borrower, own in zip(self._borrowers, self._own, strict=False):
            if (state := borrower()) is not None:
                for name, x in own.items():
                    if getattr(state, name) is x:
                        setattr(state, name, x.clone())
        for state, own in zip(layers, self._own, strict=True):
            for name, x in own.items():
                _put(x, getattr(state, name), -1 if name == "positions" else 0)
                setattr(state, name, x)
        self._borrowers = [weakref.ref(state) for state in layers]


def _one_token(call: dict[str, Any], states: MultiState) -> bool:
    """Whether it is a call that a graph can be of: one token a row, of states that have read, nothing asked for besides."""
    ids = call.get("input_ids")
    asked = {name for name, x in call.items() if x is not None and x is not False}
    return (
        asked <= KNOWN and ids is not None and ids.shape[1] == 1 and call.get("return_dict") is not False
        and not states.layers_[0].empty and states.padding is None
    )  # fmt: skip


def _room(state: State, rule: Rule) -> dict[str, Tensor]:
    """Tensors as the state's, with slots for its size and the new token."""
    assert rule.state_size is not None
    slots, made = rule.state_size + 1, {}
    for name in STATE:
        x: Tensor = getattr(state, name)
        shape = list(x.shape)
        if name in ("keys", "values", "positions", "scores"):
            shape[2] = slots
        made[name] = x.new_zeros(shape)
    return made


def _put(own: Tensor, x: Tensor, empty: int) -> None:
    """The state's tensor into the graph's, which has more slots or fewer; those in use always fit."""
    if own.dim() == 2:
        own.copy_(x)
        return
    slots = min(own.shape[2], x.shape[2])
    own[:, :, :slots].copy_(x[:, :, :slots])
    own[:, :, slots:] = empty


def _restore(states: MultiState, before: MultiState) -> None:
    """The states as they were, in the tensors that they have."""
    for state, was in zip(states.layers_, before.layers_, strict=True):
        for name in STATE:
            _put(getattr(state, name), getattr(was, name), -1 if name == "positions" else 0)
        state.alive, state.seen, state.largest = list(was.alive), list(was.seen), list(was.largest)
    states.columns = list(before.columns)


def _same(output: Any, other: Any) -> bool:
    """Tensors of two outputs, to the last bit."""
    return all(torch.equal(x, other[name]) for name, x in output.items() if isinstance(x, Tensor))


def _alike(states: MultiState, others: MultiState) -> bool:
    """Whether both hold the same."""
    for state, other in zip(states.layers_, others.layers_, strict=True):
        pairs = zip(state.kept(), other.kept(), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs) or not torch.equal(state.evictions, other.evictions):
            return False
    return True

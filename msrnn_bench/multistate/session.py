"""The length of a `with`: what a bounded model's calls go through. The model keeps its weights, its positions and its code;
inside, its attention is ours (through the library's attention interface) and so is its cache (`MultiState`)."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.compiler import disable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.cache import LayerReport, MultiState
from msrnn_bench.multistate.calls import check_positions, check_window, marks, own_mask, placed, real_tokens
from msrnn_bench.multistate.graph import Graphs
from msrnn_bench.multistate.naming import NAMES, cache_name, given_cache
from msrnn_bench.multistate.oneshot import oneshot
from msrnn_bench.multistate.positions import Rotation
from msrnn_bench.multistate.recurrence import recurrence
from msrnn_bench.multistate.rotation import check_rotation, forget_lengths, stretches
from msrnn_bench.multistate.scan import scan
from msrnn_bench.multistate.support import NAME, check_supported
from msrnn_bench.multistate.verdict import Verdict
from msrnn_bench.policies import Policy, Rule

ENGINES = {"scan": scan, "recurrence": recurrence}

_sessions: WeakKeyDictionary[nn.Module, Session] = WeakKeyDictionary()


class Session:
    """What `with bounded(...) as states` gives: the states of the model's last call, and their report.

    It can be entered again and its states go on, so that two sessions may take turns on one model.
    """

    def __init__(
        self, model: PreTrainedModel, policy: Policy, rules: list[Rule], engine: str, prefill: str,
        documents: Sequence[int] | None, guard: Callable[[PreTrainedModel], Verdict] | None = None, deaths: bool = False,
        rotations: Callable[[PreTrainedModel], list[Rotation]] | None = None, graph: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.policy, self.rules, self.prefill = model, policy, rules, prefill
        self.engine = ENGINES[engine]
        self.documents = None if documents is None else tuple(documents)
        self._deaths = deaths
        self.current: MultiState | None = None
        self._signature, self._cache = inspect.signature(model.forward), cache_name(model)
        self._guard, self.verdict = guard, Verdict(record={"verified": "off"})
        self._find, self._rotations = rotations, list[Rotation]()
        self._marks = marks(model)
        self._running: dict[int, MultiState] = {}  # by thread: the states of the call that it is in
        self._graphs = Graphs(rules, self._run) if graph else None
        self._no_grad = torch.no_grad()
        self._threads: set[int] = set()

    def __enter__(self) -> Session:
        other = _sessions.get(self.model)
        if other is not None and threading.get_ident() not in other._threads:
            raise UsageError("the model is bounded in another thread: one thread at a time, or load a second model")
        check_supported(self.model)
        if self._guard is not None:
            self.verdict = self._guard(self.model)
            self.verdict.check(type(self.model).__name__, 1)
        if self._find is not None:
            self._rotations = self._find(self.model)
        self._threads = {threading.get_ident()}
        configs = {id(m.config): m.config for m in self.model.modules() if isinstance(m, PreTrainedModel)}
        self._before = [(c, c._attn_implementation) for c in configs.values()]
        try:
            self.model.set_attn_implementation(NAME)
            if self.model.config._attn_implementation != NAME:
                raise UsageError(
                    f"{type(self.model).__name__} does not use transformers' attention interface, "
                    "so its attention cannot be bounded; take a model that does (Llama, Mistral, GPT-2, Qwen, ...)"
                )
            if self._graphs is not None:
                self._graphs.cover(self.model, self._last, deaths=self._deaths, compressed=self._find is not None)
            for module in self.model.modules():
                _sessions[module] = self
            self._hooks = [
                self.model.register_forward_pre_hook(self._before_call, with_kwargs=True),
                self.model.register_forward_hook(self._after_call, always_call=True),
            ]
        except BaseException:
            self._restore()
            raise
        self._no_grad.__enter__()
        return self

    def _run(self, forward: Callable[..., Any], call: dict[str, Any], states: MultiState) -> Any:
        """`forward` on these states, within a call."""
        thread = threading.get_ident()
        outer, self._running[thread] = self._running[thread], states
        try:
            return forward(**{**call, self._cache: states})
        finally:
            self._running[thread] = outer

    def __exit__(self, *_: object) -> None:
        self._no_grad.__exit__(None, None, None)
        self._restore()

    def _restore(self) -> None:
        for hook in getattr(self, "_hooks", []):
            hook.remove()
        if self._graphs is not None:
            self._graphs.uncover(self.model)
        for config, implementation in self._before:
            config._attn_implementation_internal = implementation
        for module in self.model.modules():
            _sessions.pop(module, None)

    # -- what happened --

    @property
    def layers(self) -> list[LayerReport]:
        """Per layer: evictions, first eviction step, largest occupancy, kept positions, bytes; of the last call."""
        return self._last().reports()

    @property
    def deaths(self) -> list[Tensor]:
        """Per layer [B, P, tokens seen]: the step at which each token's state left, -1 while it is held, -2 where a row of a
        batch has read less than another; P is 1, or the KV heads where each decides alone. A token's own step is its
        position, so it was attended to `death - position + 1` times. Under prefill="oneshot" the cut is the prompt's last
        step. Raises UsageError unless asked for: bounded(..., deaths=True)."""
        known = self._last().deaths()
        if known is None:
            raise UsageError("when each state left was not kept: ask for it, bounded(..., deaths=True)")
        return known

    @property
    def verified(self) -> dict[str, Any]:
        """What the guard has checked of this model, and how; `{"verified": "off"}` under verify=False."""
        return self.verdict.record

    @property
    def graph_refused(self) -> str | None:
        """Why steps are not sent as graphs although that was asked for."""
        return None if self._graphs is None else self._graphs.refused

    def fork(self, rows: int = 1) -> MultiState:
        """A copy of the states to go on from: `model(ids, cache=states.fork())` (`past_key_values=`
        before transformers 5.24); each row `rows` times. One fork is gone on from once; each continuation has its own."""
        return self._last().fork(rows)

    def _last(self) -> MultiState:
        if self.current is None:
            raise UsageError("no call yet: run the model inside the with block first")
        return self.current

    def fresh(self) -> MultiState:
        """Empty states."""
        return MultiState(self.rules, self.documents, self._deaths)

    @contextlib.contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """Inside, this thread may call the model too."""
        thread = threading.get_ident()
        self._threads.add(thread)
        try:
            yield
        finally:
            self._threads.discard(thread)

    # -- hooks --

    @disable
    def _before_call(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Give the call our states in the place of the library's cache; refuse what would be measured wrongly."""
        if threading.get_ident() not in self._threads:
            raise UsageError(
                "the model is called by another thread than the one that opened the with bounded(...) block: "
                "open the block in the thread that calls, one thread at a time"
            )
        renamed = {self._cache if k in NAMES and k not in self._signature.parameters else k: v for k, v in kwargs.items()}
        given = self._signature.bind_partial(*args, **renamed).arguments
        call = {**{k: v for k, v in given.items() if k != "kwargs"}, **given.get("kwargs", {})}
        inputs = call.get("input_ids") if call.get("input_ids") is not None else call.get("inputs_embeds")
        if inputs is None:
            raise UsageError("the call has neither input_ids nor inputs_embeds")
        if call.get("output_attentions"):
            raise UsageError("output_attentions is not available inside bounded(): no T x T matrix exists; see states.layers")
        states = self._states_for(given_cache(call))
        batch, new = inputs.shape[:2]
        seen, mask = states.get_seq_length(), call.get("attention_mask")
        check_window(self.model.config, seen + new)
        states.begin(batch, new, real_tokens(mask, seen, new))
        if call.get("input_ids") is not None:
            states.watch(call["input_ids"], *self._marks)
        if new > 1 and seen and mask is not None:
            states.check_history(mask)
        check_positions(call.get("position_ids"), states.padding, states.layers_[0].seen)
        self._check_reading(states, seen, new, placed=call.get("position_ids") is not None or self._find is not None)
        if call.get("position_ids") is None and (positions := states.true_positions(inputs.device)) is not None:
            named = "position_ids" in self._signature.parameters
            call |= placed(type(self.model).__name__, positions, states.padding, seen, named=named)
        if self._find is not None:  # unrotated, whatever the position; states.layers_ know the true ones
            call["position_ids"] = torch.zeros(batch, new, dtype=torch.int64, device=inputs.device)
        self.current = self._running[threading.get_ident()] = states
        return (), {**call, self._cache: states, "use_cache": True}

    def _check_reading(self, states: MultiState, seen: int, new: int, *, placed: bool) -> None:
        """Refuse what the guard found this kind of model to do otherwise than in one whole call, and rotations that would."""
        before = states.layers_[0].seen or [0]
        uneven = states.padding is not None or any(n != seen for n in before)
        self.verdict.check(type(self.model).__name__, seen + new, goes_on=seen > 0, padded=uneven, placed=placed)
        if stretches(self.model.config) is not None:
            real = [new] * len(before) if states.padding is None else states.padding.sum(-1).tolist()
            before = before if len(before) == len(real) else before * len(real)
            check_rotation(self.model.config, before, [a + b for a, b in zip(before, real, strict=True)])
            if not seen:
                forget_lengths(self.model)

    def _states_for(self, cache: Any) -> MultiState:
        if isinstance(cache, MultiState):
            if cache.rules is not self.rules:
                raise UsageError("these states belong to another bounded() block; start without them")
            return cache.taken() if cache.single else cache
        if isinstance(cache, Session):
            return self._last()
        if cache is not None and not (isinstance(cache, Cache) and cache.get_seq_length() == 0):
            raise UsageError(f"{self._cache} holds another cache's tokens; start without it, or go on from states.fork()")
        return self.fresh()

    @disable
    def _after_call(self, _: nn.Module, __: Any, output: Any) -> None:
        states = self._running.pop(threading.get_ident(), None)
        if states is not None and output is not None:  # None where the call failed
            states.check_all_layers_ran(type(self.model).__name__)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """One layer's attention [B, H, T, D] over its states, which it updates."""
        states = self._running.get(threading.get_ident())
        if states is None:
            raise UsageError(
                "a part of the model, or model.forward, was called directly, past what gives it states: call model(...) itself"
            )
        if layer >= len(self.rules):
            raise UsageError(f"this model's layer {layer} is not one of its {len(self.rules)}, so it cannot be bounded")
        rule, state = self.rules[layer], states.layers_[layer]
        options: dict[str, Any] = {"policy": rule, "state_size": rule.state_size, "scale": scale, "padding": states.padding}
        if self._rotations:
            rotation = self._rotations[layer]
            q, k, options["rotation"] = rotation.arranged(q), rotation.arranged(k), rotation
        if self.prefill == "oneshot" and state.empty and q.shape[2] > 1:
            out, states.layers_[layer] = oneshot(self.engine, q, k, v, state=state, **options)
        else:
            out, states.layers_[layer] = self.engine(q, k, v, state=state, **options)
        states.passed(layer)
        return out


@disable
def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The function transformers calls for a layer; returns [B, T, H, D]."""
    session = _sessions.get(module)
    if session is None:
        raise UsageError("the model was bounded in another place; call it inside its own with bounded(...) block")
    if attention_mask is not None:
        raise UsageError(
            "this model's attention has a mask of its own for this text (tokens read in both directions, blocks, a window that "
            "binds), not the causal one, which is all that a bounded state can honour"
        )
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise UsageError(
                f"this model's attention uses {name}, which bounded() does not compute; it would be measured wrongly"
            )
    if dropout:
        raise UsageError("the model is in training mode; call model.eval() first")
    if key.shape != value.shape:
        raise UsageError("this model's keys and values differ in shape (latent attention), which bounded() does not compute")
    out = session.attend(module.layer_idx, query, key, value, scaling)  # type: ignore[arg-type]
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, disable(own_mask))

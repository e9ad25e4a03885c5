"""`bounded()`: any causal language model of transformers as a bounded multi-state RNN, for the length of a `with`.

The model keeps its weights, its positions and its code; inside the block its attention is ours (through the library's
attention interface) and so is its cache (`MultiState`). What a state is and who leaves is decided elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.cache import LayerReport, MultiState
from msrnn_bench.multistate.naming import NAMES, cache_name, given_cache
from msrnn_bench.multistate.oneshot import oneshot
from msrnn_bench.multistate.recurrence import recurrence
from msrnn_bench.multistate.scan import scan
from msrnn_bench.multistate.support import check_supported, sliding_window
from msrnn_bench.policies import Full, Policy, Rule

NAME = "msrnn_bounded"
ENGINES = {"scan": scan, "recurrence": recurrence}

_sessions: WeakKeyDictionary[nn.Module, Session] = WeakKeyDictionary()


def bounded(
    model: PreTrainedModel,
    policy: Policy,
    state_size: int | Sequence[int] | None = None,
    *,
    engine: str = "scan",
    prefill: str = "stepwise",
    positions: str = "original",
    documents: Sequence[int] | None = None,
) -> Session:
    """`with bounded(...) as states:` every call of `model` has at most `state_size` states a layer, `policy` saying
    who leaves.

    `state_size` is an int, or one int per layer (the paper uses one for all). `documents` are numbers, one per row,
    that only the random policy draws from. Inference only: gradients are off inside. Raises UsageError where the
    model cannot be bounded exactly, with the reason.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}")
    if prefill not in ("stepwise", "oneshot"):
        raise UsageError(f"prefill={prefill!r}: choose stepwise or oneshot")
    if positions != "original":
        raise UsageError(
            f"positions={positions!r} needs keys before rotation, which the attention interface does not give; use original"
        )
    return Session(model, policy, _rules(model, policy, state_size), engine, prefill, documents)


def _rules(model: PreTrainedModel, policy: Policy, state_size: int | Sequence[int] | None) -> list[Rule]:
    """One rule per layer."""
    layers = model.config.get_text_config().num_hidden_layers
    if state_size is None:
        if not isinstance(policy, Full):
            raise UsageError(f"state_size is missing: how many states may {policy.name} keep?")
        return [policy.rule()] * layers
    sizes = [state_size] * layers if isinstance(state_size, int) else list(state_size)
    if len(sizes) != layers:
        raise UsageError(f"state_size has {len(sizes)} numbers for a model of {layers} layers")
    return [policy.rule(size) for size in sizes]


class Session:
    """What `with bounded(...) as states` gives: the states of the model's last call, and their report.

    It can be entered again and its states go on, so that two sessions may take turns on one model.
    """

    def __init__(
        self, model: PreTrainedModel, policy: Policy, rules: list[Rule], engine: str, prefill: str,
        documents: Sequence[int] | None,
    ) -> None:  # fmt: skip
        self.model, self.policy, self.rules, self.prefill = model, policy, rules, prefill
        self.engine = ENGINES[engine]
        self.documents = None if documents is None else tuple(documents)
        self.current: MultiState | None = None
        self._signature, self._cache = inspect.signature(model.forward), cache_name(model)
        self._marks = _marks(model)
        self._no_grad = torch.no_grad()

    def __enter__(self) -> Session:
        check_supported(self.model)
        configs = {id(m.config): m.config for m in self.model.modules() if isinstance(m, PreTrainedModel)}
        self._before = [(c, c._attn_implementation) for c in configs.values()]
        try:
            self.model.set_attn_implementation(NAME)
            if self.model.config._attn_implementation != NAME:
                raise UsageError(
                    f"{type(self.model).__name__} does not use transformers' attention interface, "
                    "so its attention cannot be bounded; take a model that does (Llama, Mistral, GPT-2, Qwen, ...)"
                )
            for module in self.model.modules():
                _sessions[module] = self
            self._hooks = [
                self.model.register_forward_pre_hook(self._before_call, with_kwargs=True),
                self.model.register_forward_hook(self._after_call),
            ]
        except BaseException:
            self._restore()
            raise
        self._no_grad.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._no_grad.__exit__(None, None, None)
        self._restore()

    def _restore(self) -> None:
        for hook in getattr(self, "_hooks", []):
            hook.remove()
        for config, implementation in self._before:
            config._attn_implementation_internal = implementation
        for module in self.model.modules():
            _sessions.pop(module, None)

    # -- what happened --

    @property
    def layers(self) -> list[LayerReport]:
        """Per layer: evictions, first eviction step, largest occupancy, kept positions, bytes; of the last call."""
        return self._last().reports()

    def fork(self, rows: int = 1) -> MultiState:
        """A copy of the states to go on from: `model(ids, cache=states.fork())` (`past_key_values=`
        before transformers 5.24); each row `rows` times."""
        return self._last().fork(rows)

    def _last(self) -> MultiState:
        if self.current is None:
            raise UsageError("no call yet: run the model inside the with block first")
        return self.current

    # -- hooks --

    def _before_call(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Give the call our states in the place of the library's cache; refuse what would be measured wrongly."""
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
        seen = states.get_seq_length()
        window = sliding_window(self.model.config)
        if window is not None and seen + new > window:
            raise UsageError(
                f"the model's own sliding window of {window} tokens would bind at {seen + new} tokens; "
                f"stay within {window} tokens (set context={window} or less)"
            )
        mask = call.get("attention_mask")
        states.begin(batch, new, _real_tokens(mask, seen, new))
        if call.get("input_ids") is not None:
            states.watch(call["input_ids"], *self._marks)
        if new > 1 and seen and mask is not None:
            states.check_history(mask)
        _check_positions(call.get("position_ids"), states.padding, states.layers_[0].seen)
        if call.get("position_ids") is None and "position_ids" in self._signature.parameters:
            call["position_ids"] = states.true_positions(inputs.device)
        self.current = states
        return (), {**call, self._cache: states, "use_cache": True}

    def _states_for(self, cache: Any) -> MultiState:
        if isinstance(cache, MultiState):
            if cache.rules is not self.rules:
                raise UsageError("these states belong to another bounded() block; start without them")
            return cache
        if isinstance(cache, Session):
            return self._last()
        if cache is not None and not (isinstance(cache, Cache) and cache.get_seq_length() == 0):
            raise UsageError(f"{self._cache} holds another cache's tokens; start without it, or go on from states.fork()")
        return MultiState(self.rules, self.documents)

    def _after_call(self, *_: object) -> None:
        assert self.current is not None
        self.current.check_all_layers_ran(type(self.model).__name__)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """One layer's attention [B, H, T, D] over its states, which it updates."""
        states = self._last()
        rule, state = self.rules[layer], states.layers_[layer]
        options: dict[str, Any] = {"policy": rule, "state_size": rule.state_size, "scale": scale, "padding": states.padding}
        if self.prefill == "oneshot" and state.empty and q.shape[2] > 1:
            out, states.layers_[layer] = oneshot(self.engine, q, k, v, state=state, **options)
        else:
            out, states.layers_[layer] = self.engine(q, k, v, state=state, **options)
        return out


def _marks(model: PreTrainedModel) -> tuple[set[int], int | None]:
    """The ids that end a text, and the one that `generate` feeds rows that have ended (an end mark where none is named)."""
    config = getattr(model, "generation_config", None) or model.config
    named = config.eos_token_id
    ends = [] if named is None else list(named) if isinstance(named, list | tuple) else [int(named)]
    return set(ends), config.pad_token_id if config.pad_token_id is not None else next(iter(ends), None)


def _real_tokens(mask: Tensor | None, seen: int, new: int) -> Tensor | None:
    """[B, T] True at real tokens from the caller's mask [B, seen + T]; None where all are."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise UsageError("attention_mask must be 2-D (batch, tokens): a 4-D mask says which states to attend to, the policy does")
    if mask.shape[1] != seen + new:
        raise UsageError(f"attention_mask covers {mask.shape[1]} tokens, but {seen} were read and {new} are new")
    real = mask[:, seen:].bool()
    return None if bool(real.all()) else real


def _check_positions(positions: Tensor | None, padding: Tensor | None, seen: list[int]) -> None:
    """Refuse packed sequences (several texts in one row would share a state), and positions that do not go on from what
    was read: `generate` cuts what it takes for read off the text it is given, whatever that text is."""
    if positions is None or positions.dim() != 2 or not positions.shape[1]:
        return
    falls = positions[:, 1:] <= positions[:, :-1]
    if padding is not None:
        falls = falls & padding[:, 1:] & padding[:, :-1]
    if bool(falls.any()):
        raise UsageError("position_ids start again inside a row (packed sequences); give each text a row of its own")
    begin = positions[:, 0] if padding is None else positions.gather(1, padding.int().argmax(-1, keepdim=True))[:, 0]
    for row, position in enumerate(begin.tolist()):
        due = seen[row] if seen else 0
        if position != due and (padding is None or bool(padding[row].any())):
            raise UsageError(
                f"position_ids begin at {position} where the states have read {due} tokens: give generate the whole text so far, "
                "the new part behind it; without states to go on from a text begins at 0"
            )


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The function transformers calls for a layer; returns [B, T, H, D]."""
    session = _sessions.get(module)
    if session is None:
        raise UsageError("the model was bounded in another place; call it inside its own with bounded(...) block")
    if attention_mask is not None:
        raise UsageError("this model hands its attention a mask of its own, which a bounded state cannot honour")
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


def _no_mask(*_: Any, **__: Any) -> None:
    """The causal order is the recurrence's, and padding reaches it as `MultiState.padding`."""


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _no_mask)

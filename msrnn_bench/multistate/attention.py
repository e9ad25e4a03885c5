"""`bounded()`: any causal language model of transformers as a bounded multi-state RNN, for the length of a `with`.

What happens inside is session.py's; which models may enter, guard.py's. What a state is and who leaves is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.guard import verify as guard
from msrnn_bench.multistate.session import ENGINES, Session
from msrnn_bench.multistate.support import layer_count
from msrnn_bench.policies import Full, Policy, Rule

__all__ = ["Session", "bounded"]


def bounded(
    model: PreTrainedModel,
    policy: Policy,
    state_size: int | Sequence[int] | None = None,
    *,
    engine: str = "scan",
    prefill: str = "stepwise",
    positions: str = "original",
    documents: Sequence[int] | None = None,
    verify: bool = True,
    deaths: bool = False,
) -> Session:
    """`with bounded(...) as states:` every call of `model` has at most `state_size` states a layer, `policy` saying
    who leaves.

    `state_size` is an int, or one int per layer (the paper uses one for all). `documents` are numbers, one per row,
    that only the random policy draws from. `verify` checks once per model, dtype, configuration and adapter that with room
    for all states the bounded model is the model (guard.py); `states.verified` says what was found. `deaths` keeps the step
    at which each token's state left, `states.deaths`. Inference only: gradients are off inside. Raises UsageError where the
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
    model = getattr(model, "_orig_mod", model)  # of torch.compile: its calls go through the model's own hooks
    check = guard if verify else None
    return Session(model, policy, _rules(model, policy, state_size), engine, prefill, documents, check, deaths)


def _rules(model: PreTrainedModel, policy: Policy, state_size: int | Sequence[int] | None) -> list[Rule]:
    """One rule per layer."""
    layers = layer_count(model)
    if state_size is None:
        if not isinstance(policy, Full):
            raise UsageError(f"state_size is missing: how many states may {policy.name} keep?")
        return [policy.rule()] * layers
    sizes = [state_size] * layers if isinstance(state_size, int) else list(state_size)
    if len(sizes) != layers:
        raise UsageError(f"state_size has {len(sizes)} numbers for a model of {layers} layers")
    return [policy.rule(size) for size in sizes]

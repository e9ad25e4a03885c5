"""`bounded()`: any causal language model of transformers as a bounded multi-state RNN, for the length of a `with`.

What happens inside is session.py's; which models may enter, guard.py's. What a state is and who leaves is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from transformers import PreTrainedModel

from msrnn_bench.errors import UsageError
from msrnn_bench.multistate.guard import verify as guard
from msrnn_bench.multistate.positions import reach
from msrnn_bench.multistate.rotary import rotations
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
    graph: bool = False,
) -> Session:
    """`with bounded(...) as states:` every call of `model` has at most `state_size` states a layer, `policy` saying
    who leaves.

    `positions="compressed"` closes the gaps that evictions leave, so that positions stay within the model's however long the
    text is (the paper's experiment of 70K tokens; positions.py has the formula, rotary.py what a model needs for it).
    `state_size` is an int, or one int per layer (the paper uses one for all). `documents` are numbers, one per row,
    that only the random policy draws from. `verify` checks once per model, dtype, configuration and adapter that with room
    for all states the bounded model is the model (guard.py); `states.verified` says what was found. `deaths` keeps the step
    at which each token's state left, `states.deaths`. `graph` sends each token that is written as one CUDA graph, a matter of
    speed alone; where that cannot be, one warning says why (graph.py). Inference only: gradients are off inside. Raises
    UsageError where the model cannot be bounded exactly, with the reason.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}")
    if prefill not in ("stepwise", "oneshot"):
        raise UsageError(f"prefill={prefill!r}: choose stepwise or oneshot")
    if positions not in ("original", "compressed"):
        raise UsageError(f"positions={positions!r}: choose original or compressed")
    if graph and engine != "scan":
        raise UsageError(f"graph=true records steps of the scan; with engine={engine} take graph=false")
    model = getattr(model, "_orig_mod", model)  # of torch.compile: its calls go through the model's own hooks
    rules = _rules(model, policy, state_size)
    sizes = [rule.state_size for rule in rules if rule.state_size is not None]
    # where nobody leaves no gap is wider than 1, and compressed positions are the original ones
    find = partial(rotations, longest=reach(max(sizes))) if positions == "compressed" and sizes else None
    return Session(model, policy, rules, engine, prefill, documents, guard if verify else None, deaths, find, graph)


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

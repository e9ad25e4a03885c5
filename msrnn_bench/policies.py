"""The eviction policies, on one page: which state leaves a multi-state of size k when a new one has entered.

A policy knows neither models nor tensors' storage. It answers one question, `rule(state_size)`, and what comes back,
a `Rule`, is all that the engines need. Every policy of the paper is a member of one family: at each step every alive
state's score becomes `memory * score + attention`, the lowest score among the unprotected leaves, and the `first` i
and the `recent` r states are protected. Ties: lowest score, then oldest.

A policy of your own is a subclass of `Policy` with one method, `score`; see `Policy`. Where the score of a state is a function of
a few numbers of its own, a subclass of `ElementwisePolicy` says it in one function, which is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from msrnn_bench.elementwise import Elementwise, elementwise
from msrnn_bench.errors import Seed, Share, UsageError, Whole, check_fields


@dataclass(frozen=True)
class Rule:
    """A policy resolved for one state size: what the engines act on.

    `state_size` None never evicts. `per` is "layer" (one decision for all heads, from the mean attention of all query
    heads) or "head" (one per KV head, from the mean over its query heads). `seed` not None draws instead of looking at
    attention. `score` not None is a user's own rule and replaces `memory`; `elementwise` is the same rule as a function of
    numbers, for what can compile it.
    """

    state_size: int | None
    memory: float = 0.0
    first: int = 0
    recent: int = 0
    per: str = "layer"
    seed: int | None = None
    score: Callable[..., Any] | None = None
    elementwise: Elementwise | None = None

    @property
    def fixed(self) -> bool:
        """Whether who leaves is known without attention: all but one of the k+1 candidates are protected."""
        return self.score is None and self.state_size is not None and self.first + self.recent == self.state_size

    @property
    def remembers(self) -> bool:
        """Whether a decision needs the attention of earlier steps, those before the state is full among them."""
        return self.score is not None or (self.memory > 0 and not self.fixed)


class Policy:
    """Base of all policies; subclass it and define `score` to bring your own.

        class Loudest(Policy):
            def score(self, *, attention, keys, values, positions, query_position, previous, layer):
                return attention.amax(dim=1, keepdim=True)      # [B, 1, S]: one decision for the layer

    `score` sees the live states only, the new one among them, oldest first: `attention` [B, H, S] (the current
    query's softmax row, float32), `keys` and `values` [B, G, S, D], `positions` [B, G, S], `query_position` [B],
    `previous` [B, 1 or G, S] (what `score` answered a step ago, 0 for the newest), `layer` (its index). It returns
    float32 [B, 1, S] to decide per layer or [B, G, S] to decide per KV head (set `per = "head"`); the lowest
    unprotected leaves once there are more than k. `first` and `recent` states are protected.
    """

    evicts: ClassVar[bool] = True
    memory: float | None = None
    first: int = 0
    recent: int | None = 0
    per: str = "layer"

    @property
    def name(self) -> str:
        """What the `policy` column says."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def rule(self, state_size: int) -> Rule:
        """Resolve for `state_size` states; UsageError when the protected ones alone are more than that."""
        if not callable(getattr(self, "score", None)):
            raise UsageError(f"policy {type(self).__name__} has no method `score`; see msrnn_bench.policies.Policy")
        return _checked(self, state_size, memory=0.0, score=self.score)  # type: ignore[attr-defined]


class ElementwisePolicy(Policy):
    """Base of policies whose score of a state depends on numbers of that state alone; define `score_state`.

        class Loudest(ElementwisePolicy):
            fade: float = 0.5

            @staticmethod
            def score_state(mean, maximum, previous, age, position, fade):
                return maximum + fade * previous

    `mean` and `maximum` are those of the state's attention over the query heads that decide together (all of the layer, or
    with `per = "head"` those of a KV head), `previous` is what `score_state` answered a step ago (0 for the newest), `age`
    how many tokens ago the state entered (0 for the newest), `position` which token it is of. All are float32 (float64 for
    float64 models). Parameters behind these five are fields of the class, by name. The lowest unprotected leaves.

    The function is compiled from what it does with its arguments: + - * /, powers, comparisons (as 0 or 1), `min`, `max`, `abs`,
    `math.exp`, `math.log` and `math.sqrt`. It cannot branch on them: `rule` refuses what it cannot compile, with UsageError.
    """

    def rule(self, state_size: int) -> Rule:
        """As `Policy.rule`; UsageError also where `score_state` is missing or is not such a function."""
        made = elementwise(getattr(type(self), "score_state", None), self)
        return _checked(self, state_size, memory=0.0, score=_each_state(made), elementwise=made)


def _each_state(made: Elementwise) -> Callable[..., Any]:
    """The function of one state as a `score` of all of them, for what does not compile it."""
    answers = made.on_tensors()

    def score(*, attention: Any, positions: Any, query_position: Any, previous: Any, **_: Any) -> Any:
        deciders = previous.shape[1]
        rows = attention.unflatten(1, (deciders, -1))  # [B, P, R, S]
        position = positions[:, :deciders].to(rows.dtype)
        age = query_position[:, None, None].to(rows.dtype) - position
        return answers(rows.mean(dim=2), rows.amax(dim=2), previous, age, position)

    return score


def _checked(policy: Policy, state_size: int, **fields: Any) -> Rule:
    """The rule with `recent` resolved (None is k // 2), refused when protection leaves nothing to evict."""
    if state_size < 1:
        raise UsageError(f"state size must be at least 1, got {state_size}")
    recent = state_size // 2 if policy.recent is None else policy.recent
    for knob, value in (("first", policy.first), ("recent", recent)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{knob}={value!r} must be a number of states, a whole number")
    if policy.per not in ("layer", "head"):
        raise UsageError(f"per must be layer or head, got {policy.per!r}")
    if policy.first < 0 or recent < 0:
        raise UsageError(f"first and recent must not be negative, got first={policy.first} recent={recent}")
    if policy.first + recent > state_size:
        raise UsageError(
            f"first + recent protect {policy.first} + {recent} states, more than the state size {state_size}; "
            "lower them or raise cache"
        )
    return Rule(state_size, first=policy.first, recent=recent, per=policy.per, **fields)


class _Family(Policy):
    """Members of the family: score = memory * score + attention."""

    memory: float

    def __post_init__(self) -> None:
        check_fields(self, "policy")

    def rule(self, state_size: int) -> Rule:
        return _checked(self, state_size, memory=float(self.memory))

    @property
    def name(self) -> str:
        """The published name where the knobs are a published policy's, else the knobs themselves."""
        known = {
            (0.0, 0, "layer"): "tova",
            (0.0, 0, "head"): "tova_head",
            (1.0, None, "head"): "h2o",
            (1.0, None, "layer"): "h2o_layer",
            (0.99, None, "head"): "a2sf",
        }.get((float(self.memory), self.recent, self.per))
        if known is None:
            recent = "k/2" if self.recent is None else self.recent
            return f"eviction(memory={self.memory:g},first={self.first},recent={recent},per={self.per})"
        return f"{known}{self.first or ''}"


@dataclass(frozen=True)
class Eviction(_Family):
    """The whole family, every knob open; `recent=None` is k // 2."""

    memory: Share = 0.0
    first: Whole = 0
    recent: Whole | None = 0
    per: Literal["layer", "head"] = "layer"


@dataclass(frozen=True)
class Tova(_Family):
    """Token Omission Via Attention (the paper, section 3.2): the state the current query attends to least leaves."""

    first: Whole = 0
    per: Literal["layer", "head"] = "layer"
    memory: Share = 0.0
    recent: Whole | None = 0


@dataclass(frozen=True)
class H2O(_Family):
    """Heavy-Hitter Oracle (arXiv 2306.14048): k/2 recent states and those with the most attention ever received.

    The attention accumulated is that over the kept states only, the current step included: the authors' "real drop"
    cache, not their mask evaluator, which accumulates the full model's rows.
    """

    recent: Whole | None = None
    per: Literal["layer", "head"] = "head"
    memory: Share = 1.0
    first: Whole = 0


@dataclass(frozen=True)
class A2SF(_Family):
    """Accumulative Attention Score with Forgetting (arXiv 2407.20485): H2O whose past fades by `memory` a step."""

    memory: Share = 0.99
    recent: Whole | None = None
    per: Literal["layer", "head"] = "head"
    first: Whole = 0


@dataclass(frozen=True)
class Window(Policy):
    """FIFO; with `first` = i the paper's window+i: the first i states stay for ever."""

    first: Whole = 0

    def __post_init__(self) -> None:
        check_fields(self, "policy")

    @property
    def name(self) -> str:
        return f"window{self.first or ''}"

    def rule(self, state_size: int) -> Rule:
        if self.first > state_size:
            raise UsageError(f"window keeps its first {self.first} states, which must lie in 0..{state_size} (cache)")
        # All the rest is recent, so of k+1 candidates exactly one is unprotected: the oldest behind the first i.
        return Rule(state_size, first=self.first, recent=state_size - self.first)


@dataclass(frozen=True)
class Random(Policy):
    """A uniform draw among the k+1 candidates of a layer, by a counter on (seed, document, layer, position)."""

    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, "policy")

    def rule(self, state_size: int) -> Rule:
        return _checked(self, state_size, memory=0.0, seed=self.seed)


@dataclass(frozen=True)
class Full(Policy):
    """No eviction: the unbounded model, the paper's topline."""

    evicts: ClassVar[bool] = False

    def rule(self, state_size: int | None = None) -> Rule:
        return Rule(None)


@dataclass(frozen=True)
class Baseline(Policy):
    """No policy: the task shortens its input to k tokens (perplexity: independent chunks of k; the paper's baseline)."""

    evicts: ClassVar[bool] = False

    def rule(self, state_size: int | None = None) -> Rule:
        return Rule(None)

"""The theorem as guard: with room for all states a bounded model is the model. What is not is refused, whatever its name.

Checked once per model, dtype, configuration and adapter: on a twin (twin.py: same class and flags, small, float64, every
length threshold shrunk until it binds), and on the model itself (probe.py). Neither touches the caller's random state.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from msrnn_bench.errors import UsageError, one_line
from msrnn_bench.multistate import probe, twin
from msrnn_bench.multistate.naming import carried
from msrnn_bench.multistate.rotation import forget_lengths
from msrnn_bench.multistate.session import Session
from msrnn_bench.multistate.support import layer_count
from msrnn_bench.multistate.verdict import Verdict
from msrnn_bench.policies import Full

TOKENS, PIECE = 30, 17  # THRESHOLD of twin.py lies in the first piece
CLOSE = 1e-9  # of the logits' spread, in float64

_by_model: WeakKeyDictionary[PreTrainedModel, dict[str, Verdict]] = WeakKeyDictionary()
_by_kind: dict[tuple[type, str], Verdict] = {}


def verify(model: PreTrainedModel) -> Verdict:
    """What is exact for this model; from memory where it was asked before."""
    key = _key(model)
    known = _by_model.setdefault(model, {})
    if key not in known:
        verdict = of_kind(type(model), model.config)
        known[key] = probe.checked(model, verdict)
    return known[key]


def of_kind(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Verdict:
    """What twins of this class and configuration say."""
    key = (kind, json.dumps(config.to_dict(), sort_keys=True, default=str))
    if key not in _by_kind:
        with _quiet():
            _by_kind[key] = _twins(kind, config)
    return _by_kind[key]


def _key(model: PreTrainedModel) -> str:
    adapters: Any = None
    if getattr(model, "_hf_peft_config_loaded", False):
        adapters = model.active_adapters()
    return repr((str(model.dtype), adapters, model.config.to_dict()))


def _twins(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Verdict:
    verdict = Verdict(record={"verified": "twin"})
    limit = twin.threshold(config)
    for tight in (False, True) if limit else (False,):
        try:
            made = made_twin(kind, config, tight=tight)
        except Exception as error:  # whatever a class of anyone's raises: then there is no twin, and that is said
            if not tight:
                verdict.record = {"verified": "no twin", "why": one_line(error)}
            return verdict
        _compare(made, verdict, limit if tight else 0)
        if "whole" in verdict.limits:
            break
    return verdict


def made_twin(kind: type[PreTrainedModel], config: PreTrainedConfig, *, tight: bool) -> PreTrainedModel:
    """A twin that reads a text; where a model of few layers does not (some count them elsewhere too), one of as many."""
    try:
        made = twin.build(kind, twin.shrunk(config, tight=tight))
        own(made, _text(made))
    except Exception:
        depth = getattr(config.get_text_config(), "num_hidden_layers", 0)
        if not 2 < depth <= 48:
            raise
        made = twin.build(kind, twin.shrunk(config, tight=tight, depth=depth))
        own(made, _text(made))
    return made


def _text(model: PreTrainedModel, rows: int = 1) -> Tensor:
    """Ordinary ids [rows, TOKENS], drawn without the global generator."""
    return probe.ordinary_ids(model, rows, TOKENS)


def own(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """The model's own logits."""
    forget_lengths(model)
    with torch.no_grad(), twin.Wide():
        return probe.call(model, ids, use_cache=False, **options).logits


def _compare(model: PreTrainedModel, verdict: Verdict, limit: int) -> None:
    """Hold the bounded twin against its own forward: whole, in pieces, and padded on the left against the row alone."""
    ids = _text(model, 2)
    wanted = own(model, ids)
    short = own(model, ids[1:, -PIECE:])
    mask = torch.ones_like(ids)
    mask[1, : TOKENS - PIECE] = 0
    earlier = own(model, ids[:, :PIECE])
    limits: dict[str, Any] = {"limit": limit}
    if not _equal(earlier, wanted[:, :PIECE]) and limit == 0:
        verdict.refuse("whole", "later tokens change what it says of earlier ones, so it is no left-to-right model", limit)
        return

    if "position_ids" in inspect.signature(model.forward).parameters and not limit:
        placed = own(model, ids, position_ids=torch.arange(TOKENS)[None].expand(2, -1))
        if not _equal(placed, wanted):
            verdict.refuse(
                "positions", "given the positions 0, 1, 2, ... it answers otherwise than without, as its own count differently"
            )

    def whole(session: Session) -> bool:
        return _equal(probe.call(session.model, ids).logits, wanted)

    def pieces(session: Session) -> bool:
        first = probe.call(session.model, ids[:, :PIECE]).logits
        rest = [
            probe.call(session.model, ids[:, at:end], **carried(session.model, session.current)).logits
            for at, end in ((PIECE, TOKENS - 1), (TOKENS - 1, TOKENS))
        ]
        return _equal(torch.cat([first, *rest], dim=1), wanted)

    def padding(session: Session) -> bool:
        first = probe.call(session.model, ids[:, :-1], attention_mask=mask[:, :-1]).logits
        last = probe.call(session.model, ids[:, -1:], attention_mask=mask, **carried(session.model, session.current)).logits
        both = torch.cat([first, last], dim=1)
        return _equal(both[:1], wanted[:1]) and _equal(both[1:, -PIECE:], short)

    _way(model, verdict, "whole", whole, "with room for all states its answers are not its own", **limits)
    if "whole" not in verdict.limits:
        _way(model, verdict, "pieces", pieces, "read in pieces its answers are not those of the whole text", **limits)
        _way(model, verdict, "padding", padding, "a row padded on the left is not answered as the row alone is", **limits)


def _way(model: PreTrainedModel, verdict: Verdict, way: str, check: Callable[[Session], bool], reason: str, limit: int) -> None:
    rules = [Full().rule()] * layer_count(model)
    session = Session(model, Full(), rules, "scan", "stepwise", None)
    try:
        with session, twin.Wide():
            if not check(session):
                verdict.refuse(way, f"{reason} (seen on a small float64 twin of its class and settings)", limit)
    except UsageError as error:  # said by the model's own call too, where it holds
        verdict.record.setdefault("refused", {})[way] = str(error)
    except Exception as error:  # a class that calls its attention in a way that we do not know
        verdict.refuse(way, f"its code and bounded() do not fit together ({type(error).__name__}: {one_line(error)})", limit)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    spread = float(theirs.double().std())
    close = CLOSE if theirs.dtype == torch.float64 else 1e-4
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= close * max(spread, 1e-12)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the library says of the twin's configuration: it is not the user's."""
    before = logging.get_verbosity()
    logging.set_verbosity(50)  # critical
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)

"""What `benchmarks/gpu.py` measures: one function a line of its table, each giving a dictionary of what was found."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import msrnn_bench as mb
from benchmarks import cost_model
from benchmarks.cost_model import Code
from benchmarks.cost_sizes import H100, Shape, shape
from benchmarks.decode import bounded_at, cost, library_at
from benchmarks.scan import in_turn, seconds
from msrnn_bench.multistate.attention import Session, bounded
from msrnn_bench.multistate.naming import carried
from msrnn_bench.multistate.overlap import overlapped
from msrnn_bench.results.provenance import machine

# The paper's Table 1: state size and the batch whose states fill as much memory; its last row is the full model.
TABLE1 = ((256, 139), (512, 70), (1024, 35), (2048, 17))
ARCHITECTURE = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64,
    "intermediate_size": 96, "vocab_size": 256,
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What is run: Llama-2-7B's shape as the targets say, or one that a CPU does in a minute."""

    title: str = "Llama-2-7B's shape, random weights, bfloat16"
    dtype: torch.dtype = torch.bfloat16
    tokens: int = 4096
    long: int = 32768
    chunk: int = 1024  # tokens of each row, of two streams
    k: int = 512
    small: int = 4  # rows
    large: int = 16
    rounds: int = 5
    steps: int = 20  # tokens of a round of decoding
    loop: int = 64  # tokens of the token loop
    table: tuple[tuple[int, int], ...] = TABLE1
    full: int = 8  # rows of Table 1's full model, at `tokens`


TINY = Sizes("two small layers, random weights, float32", torch.float32, 256, 512, 64, 32, 2, 3, 2, 3, 4, ((8, 4), (32, 2)), 1)


@dataclass
class Bench:
    """One run: its model, and the seconds it has left."""

    sizes: Sizes
    device: torch.device
    budget: float
    architecture: dict[str, Any]
    begin: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.begin)

    def load(self) -> None:
        """Random weights, made on the device; nothing is downloaded."""
        with torch.device(self.device):
            torch.manual_seed(0)
            config = AutoConfig.for_model(**{**self.architecture, "max_position_embeddings": self.sizes.long + 1024})
            self.model = AutoModelForCausalLM.from_config(config, dtype=self.sizes.dtype).eval().requires_grad_(False)

    def ids(self, batch: int, tokens: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(3, self.model.config.vocab_size, (batch, tokens), generator=draw).to(self.device)


@dataclass(frozen=True)
class Line:
    """`work` gives what was found; `policy` is checked first; `lasts`, seconds it should take on an H100."""

    name: str
    policy: mb.Policy
    lasts: float
    work: Callable[[Bench], dict[str, Any]]


def guard(bench: Bench) -> dict[str, Any]:
    """What every user meets first: with room for all states the bounded model is the model."""
    with bounded(bench.model, mb.Tova(), bench.sizes.k) as states:
        bench.model(bench.ids(1, 2 * bench.sizes.k))
    return {"said": str(states.verified.get("verified")), "evictions": int(states.layers[0].evictions.sum())}


def reading(
    bench: Bench, policy: mb.Policy, batch: int, tokens: int, target: float | None = None, kept: int = 0, chunk: int = 0
) -> dict[str, Any]:
    """A forward pass / the plain one; `kept`: logits of the last so many tokens alone (0: of all); `chunk`: of so many tokens,
    two chunks under way at once."""
    ids, k = bench.ids(batch, tokens), bench.sizes.k

    def plain() -> None:
        bench.model(ids, use_cache=False, logits_to_keep=kept)

    def ours() -> None:
        with mb.bounded(bench.model, policy, k, verify=False) as states:
            if chunk:
                deque(overlapped(bench.model, states, ids.split(chunk, dim=1)), maxlen=0)
            else:
                bench.model(ids, logits_to_keep=kept)

    plain(), ours()  # libraries are opened, kernels compiled
    if chunk and (same := shared(bench, policy, ids, chunk)) < 0.99:  # not all: products beside others may round otherwise
        return {"failed": f"CHECK FAILED, not timed: of the states of one chunk after the other two streams keep {same:.0%}"}
    base, found = in_turn(plain, {"ours": ours}, bench.sizes.rounds, lambda: bench.left > 0)
    ratios = found["ours"]

    def share(m: Shape, gpu: H100) -> float:
        ours = cost_model.bounded(m, batch, tokens, k, gpu, Code(policy=policy.name, streams=2 if chunk else 1))
        return ours.seconds / cost_model.plain(m, batch, tokens, gpu).seconds

    return {**summary(ratios, target), "plain_seconds": statistics.median(base), "batch": batch, "tokens": tokens, "k": k,
            "ours_seconds": statistics.median(a * b for a, b in zip(ratios, base, strict=True)),
            "predicted": predicted(bench, share)}  # fmt: skip


def shared(bench: Bench, policy: mb.Policy, ids: torch.Tensor, chunk: int) -> float:
    """Of the states kept after chunks read one after the other, the share kept after chunks that overlap."""
    kept = []
    for overlapping in (False, True):
        with mb.bounded(bench.model, policy, bench.sizes.k, verify=False) as states:
            chunks = ids.split(chunk, dim=1)
            if overlapping:
                deque(overlapped(bench.model, states, chunks), maxlen=0)
            else:
                for one in chunks:
                    bench.model(one, **carried(bench.model, states.current), logits_to_keep=1)
        kept.append({
            (number, row, decider, place) for number, layer in enumerate(states.layers) for row, one in enumerate(layer.kept)
            for decider, places in enumerate(one.tolist()) for place in places
        })  # fmt: skip
    return len(kept[0] & kept[1]) / len(kept[0])


def decoding(bench: Bench, batch: int, cache: int, target: float | None = None, graph: bool = False) -> dict[str, Any]:
    """Tokens a second with k states / those of the library whose cache holds `cache`; a token as one CUDA graph or not."""
    s = bench.sizes
    states, ours = full_states(bench, batch, s.k, (s.rounds + 1) * s.steps, graph)
    theirs = library_at(bench.model, bench.ids(batch, cache + (s.rounds + 1) * s.steps), cache)
    found = []
    for r in range(s.rounds + 1):
        fast, slow = ours(s.steps, r * s.steps), cost(theirs, s.steps, r * s.steps)
        found.append((slow / fast, fast, slow))
    found = found[1:]  # the first warms up
    if graph and bench.device.type == "cuda" and states.graph_refused is not None:
        return {"failed": f"NO GRAPH, not timed: {states.graph_refused}"}

    def share(m: Shape, gpu: H100) -> float:
        ours = cost_model.bounded_token(m, batch, s.k, gpu, Code(graph=graph))
        return cost_model.plain_token(m, batch, cache, gpu).seconds / ours.seconds

    return {**summary([ratio for ratio, *_ in found], target, above=True), "batch": batch, "k": s.k, "cache": cache,
            "ours_ms": 1e3 * statistics.median(fast for _, fast, _ in found),
            "library_ms": 1e3 * statistics.median(slow for *_, slow in found), "predicted": predicted(bench, share)}  # fmt: skip


def full_states(bench: Bench, batch: int, k: int, steps: int, graph: bool = False) -> tuple[Session, Callable[[int, int], float]]:
    """tova's k states, and seconds of a token with them, a median: of so many from the i-th of `steps` on. The states are just
    full; where they stand in a text does not matter to what a token costs. The block is entered once, as when `generate`
    writes."""
    model, ids = bench.model, bench.ids(batch, k + 1 + steps)
    states, _ = bounded_at(model, ids, k + 1, mb.Tova(), k, verify=False, graph=graph)

    def spent(count: int, begin: int) -> float:
        with states:
            return cost(lambda i: model(ids[:, k + 1 + i : k + 2 + i], **carried(model, states.current)), count, begin)

    return states, spent


def token_loop(bench: Bench) -> dict[str, Any]:
    """The definition, a token at a time through the model, extrapolated to the text from a few steps with full states."""
    s, model, warm = bench.sizes, bench.model, 8
    ids = bench.ids(s.small, s.k + 1 + warm + s.loop)
    with mb.bounded(model, mb.Tova(), s.k, engine="recurrence", verify=False) as states:
        model(ids[:, : s.k + 1], logits_to_keep=1)  # layer by layer: fills the states

        def steps(begin: int, count: int) -> None:
            for t in range(s.k + 1 + begin, s.k + 1 + begin + count):
                model(ids[:, t : t + 1], **carried(model, states.current))

        steps(0, warm)
        spent = seconds(partial(steps, warm, s.loop)) / s.loop * s.tokens
    ours = reading(bench, mb.Tova(), s.small, s.tokens)["ours_seconds"]
    return {**summary([spent / ours], 200, above=True), "batch": s.small, "tokens": s.tokens, "k": s.k,
            "note": f"a loop of {spent:.3g} s, EXTRAPOLATED from {s.loop} steps"}  # fmt: skip


def table1(bench: Bench) -> dict[str, Any]:
    """Tokens a second by state size, at batches whose states fill as much memory, relative to the full model's."""
    s, warm = bench.sizes, 3
    theirs = library_at(bench.model, bench.ids(s.full, s.tokens + s.steps + warm), s.tokens)
    cost(theirs, warm, 0)
    base = s.full / cost(theirs, s.steps, warm)
    del theirs
    rates = {}
    for k, batch in s.table:
        release()
        if bench.left > 0:
            _, ours = full_states(bench, batch, k, s.steps + warm)
            ours(warm, 0)
            rates[k] = batch / ours(s.steps, warm) / base
            del ours
    told = ", ".join(f"k={k} batch {b} {rates[k]:.2f}" if k in rates else f"k={k} skipped: no time" for k, b in s.table)
    eighth = s.tokens // 8
    found = summary([rates[eighth]], 4.8, above=True) if eighth in rates else {}
    return {**found, "rates": rates, "note": f"full model, batch {s.full}: {base:,.0f} tokens/s; {told}"}


def summary(values: list[float], target: float | None, *, above: bool = False) -> dict[str, Any]:
    """Median and range, and the target that it should not exceed (`above`: not fall short of)."""
    middle = statistics.median(values)
    met = None if target is None else (middle >= target if above else middle <= target)
    return {"median": middle, "low": min(values), "high": max(values), "rounds": len(values), "target": target, "met": met}


def predicted(bench: Bench, share: Callable[[Shape, H100], float]) -> float | None:
    """What cost_model.py says, where it speaks of this card and model."""
    if "H100" not in str(machine()["cuda"]) or bench.sizes.dtype != torch.bfloat16:
        return None
    return share(shape("llama2_7b"), H100())


def lines(s: Sizes) -> list[Line]:
    """In order of worth."""
    tova, h2o = mb.Tova(), mb.H2O()
    read, text = f"T={s.tokens:,}, k={s.k}, / plain SDPA", partial(reading, tokens=s.tokens)
    return [
        Line("the guard", tova, 20, guard),
        Line(f"tova, {read}, batch {s.small}", tova, 30, partial(text, policy=tova, batch=s.small, target=1.5)),
        Line(f"tova, {read}, batch {s.large}", tova, 40, partial(text, policy=tova, batch=s.large, target=1.15)),
        Line(f"decode, k={s.k}, speed of a cache of {s.k}, batch {s.small}", tova, 15,
             partial(decoding, batch=s.small, cache=s.k, target=0.8)),
        Line(f"tova, {read}, batch {s.small}, two streams, chunks of {s.chunk:,}", tova, 30,
             partial(text, policy=tova, batch=s.small, target=1.5, chunk=s.chunk)),
        Line(f"decode as a graph, k={s.k}, speed of a cache of {s.k}, batch {s.small}", tova, 15,
             partial(decoding, batch=s.small, cache=s.k, target=0.8, graph=True)),
        Line(f"tova, T={s.long:,}, k={s.k}, / plain SDPA, batch {s.small}", tova, 90,
             partial(reading, policy=tova, batch=s.small, tokens=s.long, target=1.0, kept=1)),
        Line(f"h2o, {read}, batch {s.small}", h2o, 30, partial(text, policy=h2o, batch=s.small)),
        Line(f"the token loop / tova, T={s.tokens:,}, k={s.k}, batch {s.small}", tova, 45, token_loop),
        Line("Table 1, throughput of decoding against the full model's", tova, 60, table1),
        Line(f"decode, k={s.k}, speed of a cache of {s.tokens:,}, batch {s.small}", tova, 15,
             partial(decoding, batch=s.small, cache=s.tokens)),
    ]  # fmt: skip


def release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

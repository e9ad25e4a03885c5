"""What exact eviction costs on a GPU by calculation: bytes, operations, launches and sequential steps, counted from the code.

    python benchmarks/cost_model.py              # the targets, the walk's step, a table; --all: the whole grid
    python benchmarks/cost_model.py --page       # the rows of docs/speed.md

No GPU has measured any of it. A kernel takes the longest of its arithmetic, its memory, its steps (the walk's) and its loads that
wait for one another (those of one token, cost_waits.py); launches count where the host cannot issue them while the device works.
The rates, and what is assumed, stand in `H100` (cost_sizes.py).
Letters as in scan.py: B batch, H query heads, G KV heads, T tokens, S slots, D head size, k state size, N queries of a block,
P deciders. tests/test_cost_model.py counts the launches of the code and compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import cost_waits
from benchmarks.cost_sizes import H100, Shape
from msrnn_bench.multistate.products import BLOCK


@dataclass(frozen=True)
class Code:
    """How it is done; the defaults are the code as it stands, bfloat16 models."""

    policy: str = "tova"  # per layer, without memory; or h2o: per KV head, with memory, no certificate
    certificate: bool = True  # False: every state is read in all heads at each step
    lone: float = 0.9  # share of steps at which it leaves one candidate, by 1.0 to 1.1 candidates a step, counted at k=512
    block: int = BLOCK
    streams: int = 1  # 2: the walk beside all else, at best (`streams=2`)
    graph: bool = False  # a token's launches in a CUDA graph, with nothing for the host to do (`graph=true`)


# Launches of the library's layer (tests count them): reading, and one token, where its cache adds two copies.
LIBRARY = {True: (38, 40), False: (17, 19)}
# Ours in place of the one SDPA, torch's: a block, of it the books; a call; a token. And Triton's, and empty tensors, of either.
A_BLOCK, BOOKS, A_CALL, A_TOKEN = 11, 6, 12, 1
KERNELS, TOKEN_KERNELS, EMPTIES, TOKEN_EMPTIES = 4, 3, 11, 10
CLOCK = 1  # sent to the device each block: sixteen are remembered, and a text has more
RECURRENCE, WAITED = 48, 4  # the definition, one token; and how often it waits for a number


@dataclass(frozen=True)
class Kernel:
    """Bytes moved, operations at the `rate` of that name, steps one after the other. `held`: bytes of the tensors that pass from
    kernel to kernel; where L2 has room for them, this one moves its bytes there. `programs` of one multiprocessor each."""

    part: str
    bytes: float = 0
    operations: float = 0
    rate: str = "exps"
    held: float = float("inf")
    steps: int = 0
    programs: int = 132
    launches: int = 1
    far: float = 0  # loads that wait for one another, from memory
    near: float = 0  # and from L2

    def seconds(self, gpu: H100) -> float:
        share = {"bf16": gpu.matrix, "flash": gpu.flash, "fp32": gpu.simd, "exps": 1.0}[self.rate]
        peak = gpu.bf16 if self.rate == "flash" else getattr(gpu, self.rate)
        rate = gpu.stream * (gpu.l2 if self.held <= gpu.cache else gpu.hbm)
        memory = self.bytes / (min(rate, self.programs * gpu.sm) if self.programs < 132 else rate)
        return max(self.operations / (share * peak), memory, self.steps * gpu.step,
                   self.far * gpu.miss + self.near * gpu.hit, self.launches * gpu.shortest)  # fmt: skip


def outside(m: Shape, tokens: int) -> list[Kernel]:
    """A layer without its attention, for `tokens` of all rows: products by its matrices, and what is elementwise."""
    moved = 2 * m.weights + 2 * tokens * (2 * m.hidden + m.size * (2 * m.heads + 2 * m.groups) + 3 * m.inner)
    small = LIBRARY[m.gated][0] - 1 - (7 if m.gated else 4)
    return [
        Kernel("model", moved, 2 * tokens * m.weights, "bf16", launches=7 if m.gated else 4),
        Kernel("model", tokens * m.elementwise, launches=small),
    ]


def vocabulary(m: Shape, tokens: int) -> Kernel:
    """The logits of `tokens`."""
    return Kernel("model", 2 * (m.hidden * m.vocabulary + tokens * (m.hidden + m.vocabulary)),
                  2 * tokens * m.hidden * m.vocabulary, "bf16")  # fmt: skip


def sdpa(m: Shape, batch: int, queries: int, states: int) -> Kernel:
    """Causal attention of the last `queries` of `states`."""
    pairs = queries * (states - queries) + queries * (queries + 1) // 2
    moved = 2 * batch * m.size * (2 * m.heads * queries + 2 * m.groups * states)
    return Kernel("sdpa", moved, 4 * batch * m.heads * pairs * m.size, "flash")


def evict(m: Shape, batch: int, n: int, old: int, code: Code) -> list[Kernel]:
    """One block of `_evict`: n queries, `old` states before it, of which as many leave as enter."""
    p = m.groups if code.policy == "h2o" else 1
    per, certified = m.heads // p, code.policy == "tova" and m.heads > 1 and code.certificate
    s = old + n
    row, width = batch * m.heads * n, batch * m.heads * (n * old + n * (n + 1) // 2)  # rows, and states that they attend to
    means, numbers = width // per, batch * m.size  # of mean rows; numbers of one head's state
    queries, states = m.heads * n * numbers, 2 * m.groups * s * numbers
    held = 4 * row * s
    products = 2 * m.heads * n * s * numbers
    dead = n * (n - 1) // 2
    books = batch * p * (
        (3 if certified else 1) * 8 * width // (batch * m.heads)  # positions, three times a step or once
        + per * 16 * n + per * 4 * dead + 4 * dead  # rows' maxima, sums and norms; the logits of the dead, and their slots
    )  # fmt: skip
    # The mean row three times. Where two are candidates, a sector of 32 bytes of each in all heads; the last step reads all.
    several = (1 - code.lone) * (n - 1) * batch * 2 * 32 * per
    scored = 12 * means + several + 4 * batch * per * s if certified else 4 * width
    kept = 8 * means if code.policy == "h2o" else 0  # scores, read and written
    return [
        Kernel("copies", 4 * m.groups * n * numbers * 2 + 20 * batch * p * n, launches=BOOKS + CLOCK),
        Kernel("copies", 4 * queries),  # by group
        Kernel("products", 2 * (queries + states // 2) + 4 * row * s, products, "bf16", held),
        Kernel("softmax", 8 * row * n if n > 1 else 0, held=held, launches=1 if n > 1 else 0),  # the future
        Kernel("softmax", (3 if certified else 2) * 4 * width + certified * 4 * means + 12 * row,
               (2 if certified else 1) * width, held=held),  # rows
        Kernel("walk", books + scored + kept, held=held, steps=n, programs=batch * p),
        Kernel("softmax", 4 * width + (4 + 2) * row * s, width, held=held),  # finish: logits, steps of death, rows
        Kernel("products", 2 * (row * s + states // 2 + queries), products, "bf16", held),
        Kernel("copies", 4 * queries),  # into the layer's output
        Kernel("copies", 4 * m.groups * n * numbers * 2),  # move
    ]  # fmt: skip


def token(m: Shape, batch: int, old: int, code: Code) -> list[Kernel]:
    """One token of `gpu.decode` with `old` states, of which one leaves."""
    p = m.groups if code.policy == "h2o" else 1
    per, s = m.heads // p, old + 1
    far, near = cost_waits.attend(m.heads // m.groups, s)
    waits = cost_waits.walk(per, s, 1, certified=False, memory=code.policy == "h2o", lone=0)
    logits, state = 4 * batch * m.heads * s, 4 * batch * m.groups * m.size
    return [
        Kernel("sdpa", state * (s + 2) + 4 * batch * m.heads * m.size + logits, 4 * batch * m.heads * m.size * s, "fp32",
               programs=batch * m.groups, far=far, near=near),  # attend
        Kernel("walk", logits + 8 * batch * p * s, steps=1, held=logits, programs=batch * p, near=waits),
        Kernel("copies", 16 * batch * p),  # who left
        Kernel("copies", 2 * state),  # move
    ]  # fmt: skip


def remember(m: Shape, batch: int, n: int, old: int, code: Code) -> list[Kernel]:
    """A block of `_fill` under a policy with memory: nobody leaves, the scores gain."""
    kept = [x for x in evict(m, batch, n, old, code) if x.part != "walk"]
    s, row = old + n, batch * m.heads * n
    return [*kept[:-1], Kernel("softmax", 4 * row * s, 2 * row * s, "fp32", 4 * row * s, launches=6)]


@dataclass(frozen=True)
class Prediction:
    """Seconds by part, of one forward pass; `launches` is what of them the device waits for."""

    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """The part that takes longest, the model outside of attention aside."""
        return max((name for name in self.parts if name != "model"), key=lambda name: self.parts[name])


def once(*kernels: Kernel) -> list[tuple[int, Kernel]]:
    return [(1, kernel) for kernel in kernels]


def total(layer: Iterable[tuple[int, Kernel]], m: Shape, gpu: H100, host: float, last: Kernel, streams: int = 1) -> Prediction:
    """All layers, of kernels so and so often and each `host` seconds of issuing launches, and the logits."""
    parts: dict[str, float] = {}
    for often, kernel in layer:
        parts[kernel.part] = parts.get(kernel.part, 0.0) + m.layers * often * kernel.seconds(gpu)
    if streams == 2:
        parts["walk"] = max(0.0, parts.get("walk", 0.0) - sum(v for name, v in parts.items() if name != "walk"))
    parts["launches"] = max(0.0, m.layers * host - sum(parts.values()))
    parts["model"] += last.seconds(gpu)
    return Prediction(parts)


def plain(m: Shape, batch: int, tokens: int, gpu: H100) -> Prediction:
    """A forward pass with full attention."""
    host = LIBRARY[m.gated][0] * gpu.launch
    layer = once(*outside(m, batch * tokens), sdpa(m, batch, tokens, tokens))
    return total(layer, m, gpu, host, vocabulary(m, batch * tokens))


def blocks(tokens: int, k: int, code: Code) -> list[tuple[str, int, int, int]]:
    """What `_blocks` does with an empty state: a step's name, how often, its queries, the states before it."""
    if code.policy == "tova":
        done, steps = min(k, tokens), [("fill", 1, min(k, tokens), 0)]
    else:  # scores gain from the first token on; where less than a block of room is left, states leave inside it
        done = tokens if k >= tokens else k - k % code.block
        steps = [("remember", 1, min(code.block, done - at), at) for at in range(0, done, code.block)]
        if done < min(k, tokens):
            steps.append(("evict", 1, min(code.block, tokens - done), done))
            done += steps[-1][2]
    often, rest = divmod(tokens - done, code.block)
    return [*steps, *(step for step in (("evict", often, code.block, k), ("evict", 1, rest, k)) if step[1] * step[2])]


def bounded(m: Shape, batch: int, tokens: int, k: int, gpu: H100, code: Code = Code()) -> Prediction:
    """A forward pass under exact eviction."""
    layer = once(*outside(m, batch * tokens), Kernel("copies", launches=A_CALL))
    host = (LIBRARY[m.gated][0] + A_CALL) * gpu.launch
    for name, often, n, old in blocks(tokens, k, code):
        if name == "fill":
            layer.append((1, sdpa(m, batch, n, n)))
        else:
            layer += [(often, kernel) for kernel in (evict if name == "evict" else remember)(m, batch, n, old, code)]
            host += often * ((A_BLOCK + CLOCK) * gpu.launch + KERNELS * gpu.triton + EMPTIES * gpu.empty)
    return total(layer, m, gpu, host, vocabulary(m, batch * tokens), code.streams)


def plain_token(m: Shape, batch: int, cache: int, gpu: H100) -> Prediction:
    """One token against the library's cache of that many: it copies the cache to append to it."""
    copied = Kernel("copies", 8 * batch * m.groups * m.size * (cache + 1), launches=2)
    layer = once(*outside(m, batch), copied, sdpa(m, batch, 1, cache + 1))
    return total(layer, m, gpu, LIBRARY[m.gated][1] * gpu.launch, vocabulary(m, batch))


def bounded_token(m: Shape, batch: int, k: int, gpu: H100, code: Code = Code()) -> Prediction:
    """One token with k states; nothing is waited for."""
    host = (LIBRARY[m.gated][0] - 1 + A_TOKEN) * gpu.launch + TOKEN_KERNELS * gpu.triton + TOKEN_EMPTIES * gpu.empty
    layer = once(*outside(m, batch), *token(m, batch, k, code))
    return total(layer, m, gpu, 0.0 if code.graph else host, vocabulary(m, batch))


def token_loop(m: Shape, batch: int, tokens: int, k: int, gpu: H100) -> float:
    """Seconds of the definition, a token at a time through the model: states are sorted, joined, widened and cut each time."""
    moved = Kernel("copies", 22 * 2 * batch * m.groups * m.size * (k + 1), launches=RECURRENCE)
    host = (LIBRARY[m.gated][0] - 1 + RECURRENCE) * gpu.launch + WAITED * gpu.sync
    return tokens * total(once(*outside(m, batch), moved), m, gpu, host, vocabulary(m, batch)).seconds


def whole(m: Shape, batch: int, tokens: int, gpu: H100) -> bool:
    """Whether weights, activations of a layer and logits fit at once."""
    weights = m.layers * m.weights + 2 * m.vocabulary * m.hidden
    return 2 * (weights + batch * tokens * (6 * m.hidden + 3 * m.inner + m.vocabulary)) <= gpu.memory


if __name__ == "__main__":
    from benchmarks.cost_tables import chosen, tell

    if "--page" in sys.argv[1:]:
        print("\n".join(chosen()))
    else:
        tell(everything="--all" in sys.argv[1:])

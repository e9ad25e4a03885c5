"""What exact eviction costs on a GPU by calculation: bytes, operations, launches and sequential steps, counted from the code.

    python benchmarks/cost_model.py              # the targets, the walk's step, a table; --all: the whole grid
    python benchmarks/cost_model.py --page       # the rows of docs/speed.md

No GPU has measured any of it. A kernel takes the longer of its arithmetic and its memory; the walk takes its steps; launches
count where the host cannot issue them while the device works. What the rates are and where they come from stands in `H100`.
Letters as in scan.py: B batch, H query heads, G KV heads, T tokens, S slots, D head size, k state size, N queries of a block,
P deciders. tests/test_cost_model.py counts the launches of the code and compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from msrnn_bench.multistate.products import BLOCK


@dataclass(frozen=True)
class H100:
    """NVIDIA H100 SXM5, 80 GB. Rates are of the vendor's data sheet, dense; shares of them and times are assumptions."""

    hbm: float = 3.35e12  # bytes/s, data sheet
    l2: float = 5.5e12  # bytes/s; the vendor gives none, microbenchmarks (of the PCIe card) about this: an assumption
    cache: float = 50e6  # bytes of L2, data sheet
    sm: float = 0.12e12  # bytes/s into one of the 132 multiprocessors: 64 a clock at 1.9 GHz, an assumption
    memory: float = 80e9  # bytes, data sheet
    bf16: float = 989e12  # operations/s of the tensor cores: half of the data sheet's 1,979, which are for sparse matrices
    fp32: float = 67e12  # operations/s, data sheet; a float32 product without TF32, which would round its inputs to 10 bits
    exps: float = 4.2e12  # exponentials/s: 16 a clock and multiprocessor x 132 x 1.98 GHz
    matrix: float = 0.7  # share of `bf16` that a large product reaches: an assumption
    flash: float = 0.35  # share of `bf16` of SDPA (FlashAttention-2): as the FlashAttention-3 paper says of it, arXiv 2407.08608
    simd: float = 0.75  # share of `fp32` that a batched product reaches: an assumption
    stream: float = 0.9  # share of either bandwidth that a kernel reaches: an assumption
    shortest: float = 2e-6  # seconds that the smallest kernel holds the device, gap included: an assumption
    launch: float = 5e-6  # seconds of the host for a torch operation that launches a kernel: an assumption
    triton: float = 10e-6  # the same for a Triton kernel of many arguments: an assumption
    sync: float = 10e-6  # seconds until the host goes on behind a number it waited for: an assumption
    step: float = 2e-6  # seconds of one step of the walk: an ASSUMPTION; the tables show 1 and 4 beside it, and `trips` the count
    hit: float = 0.14e-6  # seconds of a load from L2: about 265 cycles (microbenchmarks, arXiv 2402.13499) at 1.9 GHz
    miss: float = 0.25e-6  # of one from memory: about 480 cycles, same source


@dataclass(frozen=True)
class Shape:
    """A model's sizes."""

    name: str
    layers: int
    heads: int
    groups: int
    size: int
    hidden: int
    inner: int
    vocabulary: int
    gated: bool = True  # Llama's kind: RMSNorm, rotary positions, three matrices in the MLP; else GPT-2's

    @property
    def weights(self) -> int:
        """Numbers in a layer's matrices."""
        attention = self.hidden * self.size * (2 * self.heads + 2 * self.groups)
        return attention + (3 if self.gated else 2) * self.hidden * self.inner

    @property
    def elementwise(self) -> int:
        """Bytes a token and layer outside of products and attention, of the library's code in bfloat16: two norms (RMSNorm: six
        operations in float32, 36 bytes a number), two sums, rotation of queries and keys, activation."""
        if self.gated:
            return (2 * 36 + 12) * self.hidden + 20 * (self.heads + self.groups) * self.size + 10 * self.inner
        return (2 * 4 + 12) * self.hidden + 36 * self.inner


@cache
def shape(model: str) -> Shape:
    """Of conf/model/`model`.yaml's architecture; nothing is downloaded."""
    from msrnn_bench.runs.build import build
    from msrnn_bench.runs.compose import compose_one

    config = build(compose_one([f"model={model}", "model.weights=random"]).model, "model").config()
    heads = config.num_attention_heads
    return Shape(
        model, config.num_hidden_layers, heads, getattr(config, "num_key_value_heads", heads), config.hidden_size // heads,
        config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size, config.vocab_size,
        gated=config.model_type != "gpt2",
    )  # fmt: skip


@dataclass(frozen=True)
class Code:
    """How it is done; the defaults are the code as it stands, bfloat16 models."""

    policy: str = "tova"  # per layer, without memory; or h2o: per KV head, with memory, no certificate
    certificate: bool = True  # False: every state is read in all heads at each step
    wide: bool = True  # products of float32 copies; False: of bfloat16 inputs with float32 sums (`out_dtype`)
    block: int = BLOCK
    streams: int = 1  # 2: the walk beside all else, at best
    static: bool = False  # decode: two launches a layer in a CUDA graph


# Launches of the library's layer (tests count them): reading, and one token, where its cache adds two copies.
LIBRARY = {True: (38, 40), False: (17, 19)}
# Ours in place of the one SDPA, torch's: a block, of it the books, fewer with `wide` off and for one token; a call. And Triton's.
A_BLOCK, BOOKS, WIDENING, NOT_ALONE, A_CALL, KERNELS = 17, 8, 3, 3, 6, 4
RECURRENCE = 42  # the definition, one token


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

    def seconds(self, gpu: H100) -> float:
        share = {"bf16": gpu.matrix, "flash": gpu.flash, "fp32": gpu.simd, "exps": 1.0}[self.rate]
        peak = gpu.bf16 if self.rate == "flash" else getattr(gpu, self.rate)
        rate = gpu.stream * (gpu.l2 if self.held <= gpu.cache else gpu.hbm)
        memory = self.bytes / (min(rate, self.programs * gpu.sm) if self.programs < 132 else rate)
        return max(self.operations / (share * peak), memory, self.steps * gpu.step, self.launches * gpu.shortest)


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
    wide = 4 if code.wide else 2
    rate, held = "fp32" if code.wide else "bf16", 4 * row * s
    products = 2 * m.heads * n * s * numbers
    dead = n * (n - 1) // 2
    books = batch * p * (
        (2 if certified else 1) * 8 * width // (batch * m.heads)  # positions, once or twice a step
        + per * 16 * n + per * 4 * dead + 4 * dead  # rows' maxima, sums and norms; the logits of the dead, and their slots
    )  # fmt: skip
    # a candidate in all heads is a sector of 32 bytes each: one to two a step; the last step of a block reads all
    scored = 8 * means + (n - 1) * batch * 2 * 32 * per + 4 * batch * per * s if certified else 4 * width
    kept = 8 * means if code.policy == "h2o" else 0  # scores, read and written
    return [
        Kernel("copies", 4 * m.groups * n * numbers * 2 + 20 * batch * p * n, launches=BOOKS),
        *([Kernel("copies", 6 * states, held=6 * states, launches=2), Kernel("copies", 14 * queries, launches=2)]
          if code.wide else [Kernel("copies", 4 * queries)]),
        Kernel("products", wide * (queries + states // 2) + 4 * row * s, products, rate, held),
        Kernel("softmax", 16 * row * n if n > 1 else 0, held=held, launches=2 if n > 1 else 0),  # the future
        Kernel("softmax", (3 if certified else 2) * 4 * width + certified * 4 * means + 12 * row,
               (2 if certified else 1) * width, held=held),  # rows
        Kernel("walk", books + scored + kept, held=held, steps=n, programs=batch * p),
        Kernel("softmax", 4 * width + wide * row * s, width, held=held),  # finish
        Kernel("products", wide * (row * s + states // 2 + queries), products, rate, held),
        Kernel("copies", (wide + 2) * queries),  # into the layer's output
        Kernel("copies", 4 * m.groups * n * numbers * 2),  # move
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
    host = (LIBRARY[m.gated][0] + A_CALL) * gpu.launch + gpu.sync
    for name, often, n, old in blocks(tokens, k, code):
        if name == "fill":
            layer.append((1, sdpa(m, batch, n, n)))
        else:
            layer += [(often, kernel) for kernel in (evict if name == "evict" else remember)(m, batch, n, old, code)]
            host += often * ((A_BLOCK - (0 if code.wide else WIDENING)) * gpu.launch + KERNELS * gpu.triton)
    return total(layer, m, gpu, host, vocabulary(m, batch * tokens), code.streams)


def plain_token(m: Shape, batch: int, cache: int, gpu: H100) -> Prediction:
    """One token against the library's cache of that many: it copies the cache to append to it."""
    copied = Kernel("copies", 8 * batch * m.groups * m.size * (cache + 1), launches=2)
    layer = once(*outside(m, batch), copied, sdpa(m, batch, 1, cache + 1))
    return total(layer, m, gpu, LIBRARY[m.gated][1] * gpu.launch, vocabulary(m, batch))


def bounded_token(m: Shape, batch: int, k: int, gpu: H100, code: Code = Code()) -> Prediction:
    """One token with k states; the host waits once a layer. `static`: attend and decide, overwrite; nothing is waited for."""
    if code.static:
        layer = once(*outside(m, batch), replace(sdpa(m, batch, 1, k + 1), launches=2))
        return total(layer, m, gpu, 0.0, vocabulary(m, batch))
    layer = once(*outside(m, batch), *evict(m, batch, 1, k, code), Kernel("copies", launches=A_CALL))
    host = (LIBRARY[m.gated][0] - 1 + A_BLOCK - NOT_ALONE + A_CALL) * gpu.launch + KERNELS * gpu.triton + gpu.sync
    return total(layer, m, gpu, host, vocabulary(m, batch))


def token_loop(m: Shape, batch: int, tokens: int, k: int, gpu: H100) -> float:
    """Seconds of the definition, a token at a time through the model: states are sorted, joined, widened and cut each time."""
    moved = Kernel("copies", 22 * 2 * batch * m.groups * m.size * (k + 1), launches=RECURRENCE)
    host = (LIBRARY[m.gated][0] - 1 + RECURRENCE) * gpu.launch + gpu.sync
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

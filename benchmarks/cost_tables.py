"""What `python benchmarks/cost_model.py` prints: the issue's targets under the model, the walk's step, a table of shapes."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

from benchmarks import cost_model as model
from benchmarks import cost_waits
from benchmarks.cost_model import Code, Prediction, bounded, bounded_token, plain, plain_token
from benchmarks.cost_sizes import H100, Shape, shape

MODELS = ("gpt2", "llama2_7b", "llama3_8b")
TOKENS = tuple(1024 * 2**i for i in range(8))
SIZES = tuple(64 * 2**i for i in range(7))
BATCHES = tuple(2**i for i in range(6))
SOME = ((1024, 4096, 32768, 131072), (64, 512, 4096), (1, 4, 16, 32))
LONE = (1.0, Code().lone, 0.0)  # share of steps at which the one candidate leaves unread
READING = ((4, 4096, 1.5), (16, 4096, 1.15), (4, 32768, 1.0))  # batch, T, target
STEPS = (1e-6, 2e-6, 4e-6)
AS_IT_IS, GRAPH = Code(), Code(graph=True)
CHANGES = (
    ("as it is", AS_IT_IS),
    ("blocks of 192", Code(block=192)),
    ("two streams", Code(streams=2)),
    ("two streams, blocks of 192", Code(streams=2, block=192)),
)


def tell(everything: bool) -> None:
    """Print it; `everything`: the whole grid of the issue."""
    print("Calculated for an H100 (SXM, 80 GB), bfloat16 models. NOT MEASURED: no GPU gave any number here.")
    gpu = H100()
    print("assumed: " + ", ".join(f"{item.name} {getattr(gpu, item.name):.3g}" for item in fields(gpu)) + "\n")
    targets(gpu)
    walk(gpu)
    print("\n".join(forward_table(gpu, *((TOKENS, SIZES, BATCHES) if everything else SOME))))
    print("\n".join(token_table(gpu)))


def ratios(m: Shape, batch: int, tokens: int, k: int, gpu: H100, code: Code = AS_IT_IS) -> list[float]:
    """Eviction / plain forward with a step of 1, 2 and 4 microseconds."""
    base = plain(m, batch, tokens, gpu).seconds
    return [bounded(m, batch, tokens, k, replace(gpu, step=step), code).seconds / base for step in STEPS]


def targets(gpu: H100) -> None:
    """The targets of the issue, and what a change would do for them."""
    m = shape("llama2_7b")
    print("Targets, tova, k=512: ratio to the plain SDPA forward at a step of 1 / 2 / 4 us")
    print("\n".join(target_table(gpu)))
    for batch, tokens, _ in READING:
        base = plain(m, batch, tokens, gpu).seconds
        for lone in LONE:
            step = gpu.hit * waits(m, 512, lone=lone)
            found = bounded(m, batch, tokens, 512, replace(gpu, step=step)).seconds
            print(f"T={tokens:,}, batch {batch}, a step of {1e6 * step:.1f} us ({lone:.0%} leave unread): {found / base:.2f}")
    for batch in (4, 16):
        loop = model.token_loop(m, batch, 4096, 512, gpu)
        most = loop / plain(m, batch, 4096, gpu).seconds
        times = [loop / bounded(m, batch, 4096, 512, replace(gpu, step=step)).seconds for step in STEPS]
        print(f"T=4,096, batch {batch}: token loop {loop:.0f} s, {' / '.join(f'{n:.0f}' for n in times)} times ours; target 200: "
              f"{'met' if times[1] >= 200 else 'missed'} (it is {most:.0f} times the plain forward)")  # fmt: skip
    for batch in (1, 4, 16):
        ours, graph = (bounded_token(m, batch, 512, gpu, code).seconds for code in (AS_IT_IS, GRAPH))
        slow = bounded_token(m, batch, 512, replace(gpu, triton=2 * gpu.triton)).seconds
        same, full = (plain_token(m, batch, cache, gpu).seconds for cache in (512, 4096))
        print(f"decode, batch {batch}: {1e3 * ours:.1f} ms a token; of the speed of a cache of 512 {same / ours:.2f} "
              f"({same / slow:.2f} where a Triton launch costs twice as much), of 4,096 {full / ours:.2f}; target 0.8: "
              f"{'met' if same / ours >= 0.8 else 'missed'}; in a CUDA graph {1e3 * graph:.1f} ms, "
              f"{same / graph:.2f}")  # fmt: skip
    found = [table1(gpu, code) for code in (AS_IT_IS, GRAPH)]
    print(f"Table 1, tokens a second at 1/8, batch 70 / full, batch 8: {found[0]:.1f}, in a graph {found[1]:.1f}; target 4.8\n")


def table1(gpu: H100, code: Code = AS_IT_IS) -> float:
    """Tokens a second with 512 states and 70 rows / those of the library with 4,096 and 8 (as much memory)."""
    m = shape("llama2_7b")
    return (70 / bounded_token(m, 70, 512, gpu, code).seconds) / (8 / plain_token(m, 8, 4096, gpu).seconds)


def target_table(gpu: H100) -> list[str]:
    """Rows of markdown: Llama-2-7B, tova, k=512."""
    m = shape("llama2_7b")
    lines = ["| T | batch | target | " + " | ".join(name for name, _ in CHANGES) + " |", "|" + "---|" * (3 + len(CHANGES))]
    for batch, tokens, most in READING:
        cells = []
        for _, code in CHANGES:
            found = ratios(m, batch, tokens, 512, gpu, code)
            same = len({f"{value:.2f}" for value in found}) == 1  # where the walk is hidden
            cells.append(" / ".join(f"{value:.2f}{'' if value <= most else ' !'}" for value in (found[:1] if same else found)))
        lines.append(f"| {tokens:,} | {batch} | {most} | " + " | ".join(cells) + " |")
    return lines


def waits(m: Shape, k: int, code: Code = AS_IT_IS, lone: float = AS_IT_IS.lone) -> float:
    """Loads of one step of the walk that wait for one another, a mean over the block."""
    heads = m.heads // (m.groups if code.policy == "h2o" else 1)
    certified = code.policy == "tova" and code.certificate
    return cost_waits.walk(heads, k + code.block, code.block, certified=certified, memory=code.policy == "h2o", lone=lone)


def walk(gpu: H100) -> None:
    """How many loads of a step wait for one another, what that is in time where each comes from L2, and what a step reads."""
    print("The walk's step: loads that wait for one another, and microseconds at the latency of L2; what it reads")
    for name, policy, k in product(MODELS, ("tova", "h2o"), (64, 512, 4096)):
        m, code = shape(name), Code(policy=policy)
        told = {f"{lone:.0%} unread": waits(m, k, code, lone) for lone in LONE} if policy == "tova" else {"": waits(m, k, code)}
        counts = ", ".join(f"{n:.0f} ({1e6 * n * gpu.hit:.1f} us) {words}".rstrip() for words, n in told.items())
        size, whole = (step_bytes(m, k, replace(code, certificate=certified)) for certified in (True, False))
        without = f", without the certificate {whole / 1e3:.0f} ({1e6 * whole / gpu.sm:.2f})" if policy == "tova" else ""
        print(f"  {name:9} {policy:4} k={k:<6,}{counts}; {size / 1e3:.0f} KB ({1e6 * size / gpu.sm:.2f} us){without}")
    print()


def step_bytes(m: Shape, k: int, code: Code) -> float:
    """Of one step of one program, a mean over a block."""
    (kernel,) = (kernel for kernel in model.evict(m, 1, code.block, k, code) if kernel.part == "walk")
    return kernel.bytes / kernel.programs / code.block


HEAD = (
    "| model | T | k | batch | plain, s | ours, s | ratio, step of 1 / 2 / 4 us | largest part | walk | products | softmax "
    "| copies | launches | sequential steps |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def forward_table(gpu: H100, tokens: tuple[int, ...], sizes: tuple[int, ...], batches: tuple[int, ...]) -> list[str]:
    """Rows of markdown: ratios, and which part of the time outside of the model takes longest."""
    lines = [*HEAD]
    for name, t, k, batch in product(MODELS, tokens, sizes, batches):
        if k < t:
            lines.append(forward_row(shape(name), batch, t, k, gpu))
    return [*lines, "", "*: weights, a layer's activations and logits do not fit 80 GB at once: read in pieces.", ""]


def forward_row(m: Shape, batch: int, tokens: int, k: int, gpu: H100) -> str:
    base, ours = plain(m, batch, tokens, gpu).seconds, bounded(m, batch, tokens, k, gpu)
    found = " / ".join(f"{value:.2f}" for value in ratios(m, batch, tokens, k, gpu))
    steps = m.layers * sum(often * n for name, often, n, _ in model.blocks(tokens, k, AS_IT_IS) if name == "evict")
    star = "" if model.whole(m, batch, tokens, gpu) else "*"
    shares = " | ".join(share(ours, part) for part in ("walk", "products", "softmax", "copies", "launches"))
    return (
        f"| {m.name} | {tokens:,} | {k:,} | {batch}{star} | {base:.3g} | {ours.seconds:.3g} | {found} | {ours.largest} "
        f"| {shares} | {steps:,} |"
    )


def share(prediction: Prediction, part: str) -> str:
    return f"{prediction.parts.get(part, 0.0) / prediction.seconds:.0%}"


def token_table(gpu: H100) -> list[str]:
    """Rows of markdown: one token, against the library's cache of k and of T."""
    lines = [
        "| model | batch | k | T | ours, ms | library at k, ms | at T, ms | largest part | in a CUDA graph, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, batch, k, t in product(MODELS, (1, 4, 16, 32), (64, 512, 4096), (4096, 32768)):
        if k < t:
            m = shape(name)
            ours, graph = (bounded_token(m, batch, k, gpu, code) for code in (AS_IT_IS, GRAPH))
            near, far = (plain_token(m, batch, cache, gpu).seconds for cache in (k, t))
            lines.append(
                f"| {name} | {batch} | {k:,} | {t:,} | {1e3 * ours.seconds:.2f} | {1e3 * near:.2f} | {1e3 * far:.2f} "
                f"| {ours.largest} | {1e3 * graph.seconds:.2f} |"
            )
    return lines


def chosen() -> list[str]:
    """The rows of docs/speed.md."""
    gpu = H100()
    cells = (
        ("gpt2", 1024, 256, 4), ("llama2_7b", 4096, 512, 1), ("llama2_7b", 4096, 512, 4), ("llama2_7b", 4096, 512, 16),
        ("llama2_7b", 32768, 512, 4), ("llama2_7b", 32768, 4096, 4), ("llama3_8b", 4096, 512, 4),
        ("llama3_8b", 131072, 512, 1), ("llama3_8b", 131072, 4096, 1),
    )  # fmt: skip
    return [*target_table(gpu), *HEAD, *(forward_row(shape(name), batch, tokens, k, gpu) for name, tokens, k, batch in cells)]

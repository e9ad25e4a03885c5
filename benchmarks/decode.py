"""What a written token costs with a bounded state: at any position, against the library's growing cache, against copies.

    python benchmarks/decode.py          # every section; or name some: position smollm2 slots prompts compressed

A cost is a model forward of one token, the median over steps; ratios are of costs measured in turn in one process, with
the smallest and largest over rounds in brackets. Ratios with a target exit 1 when the median misses it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import msrnn_bench as mb
from benchmarks.scan import seconds
from msrnn_bench.multistate.attention import Session
from msrnn_bench.multistate.cache import MultiState
from msrnn_bench.multistate.naming import carried
from msrnn_bench.results.provenance import machine
from msrnn_bench.runs.build import build
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks.writing.answers import padded, read_on

PIECE = 1000
missed: list[str] = []


def cost(step: Callable[[int], object], steps: int, begin: int) -> float:
    """Seconds of a step, the median of `steps` from step `begin` on."""
    return statistics.median(seconds(partial(step, i)) for i in range(begin, begin + steps))


def say(name: str, values: list[float], target: float | None = None) -> None:
    middle = statistics.median(values)
    verdict = "" if target is None else f"  target {target:.2f}: {'met' if middle <= target else 'MISSED'}"
    print(f"  {name}: {middle:.2f} [{min(values):.2f}, {max(values):.2f}]{verdict}", flush=True)
    if target is not None and middle > target:
        missed.append(name)


def bounded_at(
    model, ids: torch.Tensor, position: int, policy: mb.Policy, k: int, *, verify: bool = True, graph: bool = False
) -> tuple[Session, Callable[[int], object]]:
    """States that have read `position` tokens, and the step that reads the i-th after them."""
    states = mb.bounded(model, policy, k, verify=verify, graph=graph)
    with states:
        for at in range(0, position, PIECE):
            model(ids[:, at : min(at + PIECE, position)], **carried(model, states.current), logits_to_keep=1)

    def step(i: int) -> None:
        with states:
            model(ids[:, position + i : position + i + 1], **carried(model, states.current))

    return states, step


def library_at(model, ids: torch.Tensor, position: int) -> Callable[[int], object]:
    """The same with the library's own cache and attention."""
    cache = DynamicCache(config=model.config)
    for at in range(0, position, PIECE):
        model(ids[:, at : min(at + PIECE, position)], **carried(model, cache), logits_to_keep=1)
    return lambda i: model(ids[:, position + i : position + i + 1], **carried(model, cache))


@torch.no_grad()
def position() -> None:
    """A token at 100,000 against one at 1,000: cost, and memory of the states."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=4096, max_position_embeddings=131072,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 4096, (1, 101_000), generator=torch.Generator().manual_seed(0))
    print("4 layers of random weights with 131,072 positions, float32, tova k=512", flush=True)
    early, late = (bounded_at(model, ids, at, mb.Tova(), 512) for at in (1_000, 100_000))
    size = [sum(s.keys.nbytes + s.values.nbytes for s in states.current.layers_) for states, _ in (early, late)]
    found = []
    for r in range(7):
        found.append(cost(late[1], 100, 100 * r) / cost(early[1], 100, 100 * r))
    say("cost of a token, position 100K / 1K", found, 1.10)
    after = [sum(s.keys.nbytes + s.values.nbytes for s in states.current.layers_) for states, _ in (early, late)]
    print(f"  bytes of the states at 1K, 100K and 700 tokens later: {size[0]:,} {size[1]:,} {after[1]:,}")
    if len({*size, *after}) != 1:
        missed.append("memory growth")


@torch.no_grad()
def smollm2() -> None:
    """SmolLM2 at k=512 and position 8,000 against the library's cache there and at 512."""
    for dtype, target in (("float32", 0.65), ("bfloat16", 0.30)):
        model = build(compose_one(["model=smollm2"]).model, "model").load(dtype=dtype, device="cpu", seed=0).model
        ids = torch.randint(3, 49_000, (1, 8_192), generator=torch.Generator().manual_seed(0))
        print(f"SmolLM2, {dtype}, k=512, position 8,000, {torch.get_num_threads()} threads", flush=True)
        far, near = library_at(model, ids, 8_000), library_at(model, ids, 512)
        ours = {name: bounded_at(model, ids, 8_000, policy, 512)[1] for name, policy in
                (("tova", mb.Tova()), ("window4", mb.Window(first=4)), ("h2o", mb.H2O()))}  # fmt: skip
        spent: dict[str, list[float]] = {name: [] for name in ("far", "near", *ours)}
        for r in range(5):
            for name, step in (("far", far), ("near", near), *ours.items()):
                spent[name].append(cost(step, 25, 25 * r))
        print(f"  library: {1e3 * statistics.median(spent['far']):.0f} ms a token at 8,000, "
              f"{1e3 * statistics.median(spent['near']):.0f} at 512")  # fmt: skip
        for name in ours:
            say(f"{dtype} {name} / library at 8,000", [a / b for a, b in zip(spent[name], spent["far"], strict=True)], target)
            say(f"{dtype} {name} / library at 512", [a / b for a, b in zip(spent[name], spent["near"], strict=True)], 1.10)


@torch.no_grad()
def slots() -> None:
    """One layer's step: the new state in the evicted one's slot, against gathering the survivors into a new tensor."""
    heads, groups, size, k = 9, 3, 64, 512
    draw = torch.Generator().manual_seed(0)
    q, new_k, new_v = (torch.randn(1, h, 4_000, size, generator=draw) for h in (heads, groups, groups))
    _, state = mb.scan(q[:, :, :1000], new_k[:, :, :1000], new_v[:, :, :1000], policy=mb.Tova(), state_size=k)
    keys, values = (x[:, :, 1000 - k : 1000].clone() for x in (new_k, new_v))

    def reuse(i: int) -> None:
        part = slice(1000 + i, 1001 + i)
        mb.scan(q[:, :, part], new_k[:, :, part], new_v[:, :, part], policy=mb.Tova(), state_size=k, state=state)

    def gather(i: int) -> None:
        nonlocal keys, values
        part = slice(1000 + i, 1001 + i)
        keys, values = torch.cat([keys, new_k[:, :, part]], dim=2), torch.cat([values, new_v[:, :, part]], dim=2)
        query = q[:, :, part].view(1, groups, heads // groups, size)
        attention = (query @ keys.transpose(-1, -2) * size**-0.5).softmax(-1)
        attention @ values
        worst = int(attention.mean(dim=(0, 1, 2)).argmin())
        stay = torch.cat([torch.arange(worst), torch.arange(worst + 1, k + 1)])
        keys, values = keys[:, :, stay], values[:, :, stay]

    print("one layer of SmolLM2's shape, float32, tova k=512: slot reuse against gather and copy", flush=True)
    pairs = [(cost(reuse, 300, 300 * r), cost(gather, 300, 300 * r)) for r in range(7)]
    ours, theirs = (1e6 * statistics.median(one) for one in zip(*pairs, strict=True))
    print(f"  {ours:.0f} us a token against {theirs:.0f}")
    say("slot reuse / gather and copy", [a / b for a, b in pairs])


@torch.no_grad()
def prompts() -> None:
    """Four prompts of unlike length read one by one and their states joined, against one left-padded batch; each way then
    writes eight tokens."""
    model = build(compose_one(["model=smollm2"]).model, "model").load(dtype="bfloat16", device="cpu", seed=0).model
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 49_000, (n,), generator=draw).tolist() for n in (3_850, 3_841, 3_860, 3_844)]
    ids, mask = padded(rows, "cpu", left=True)
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

    def together(_: int) -> None:
        model.generate(ids, **options)

    def apart(_: int) -> None:
        model.generate(ids, **carried(model, MultiState.join([read_on(model, row[:-1]) for row in rows])), **options)

    print(
        f"four prompts of 3,850 tokens, SmolLM2, bfloat16, {torch.get_num_threads()} threads: one by one against a batch",
        flush=True,
    )
    for name, policy, k in (("full", mb.Full(), None), ("window4 k=256", mb.Window(first=4), 256)):
        with mb.bounded(model, policy, k):
            pairs = [(cost(apart, 1, 0), cost(together, 1, 0)) for _ in range(3)]
        print(f"  {name}: {statistics.median(a for a, _ in pairs) / 4:.1f} s a prompt against "
              f"{statistics.median(b for _, b in pairs) / 4:.1f}")  # fmt: skip
        say(f"{name} one by one / batch", [a / b for a, b in pairs])


STREAM = """
import json, resource, sys, time, torch, msrnn_bench as mb
from msrnn_bench.multistate.naming import carried
from msrnn_bench.runs.build import build
from msrnn_bench.runs.compose import compose_one
tokens, positions, policy = int(sys.argv[1]), sys.argv[2], {"tova": mb.Tova(), "window4": mb.Window(first=4)}[sys.argv[3]]
model = build(compose_one(["model=smollm2"]).model, "model").load(dtype="float32", device="cpu", seed=0).model
ids = torch.randint(3, 49_000, (1, tokens), generator=torch.Generator().manual_seed(0))
with mb.bounded(model, policy, 512, positions=positions) as states:
    model(ids[:, :1000], logits_to_keep=1)
    begin = time.perf_counter()
    for at in range(1000, tokens, 1000):
        model(ids[:, at : at + 1000], **carried(model, states.current), logits_to_keep=1)
spent = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"rate": (tokens - 1000) / spent, "peak": peak}))
"""


def compressed() -> None:
    """SmolLM2 at k=512, streamed: compressed positions against original ones in fresh processes; memory at two lengths."""

    def stream(tokens: int, positions: str, policy: str) -> dict[str, float]:
        command = [sys.executable, "-c", STREAM, str(tokens), positions, policy]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    print(f"SmolLM2, float32, k=512, pieces of 1,000 tokens, {torch.get_num_threads()} threads", flush=True)
    for policy in ("tova", "window4"):
        pairs = [(stream(4_000, "compressed", policy), stream(4_000, "original", policy)) for _ in range(3)]
        ours, theirs = (statistics.median(one["rate"] for one in side) for side in zip(*pairs, strict=True))
        print(f"  {policy}: {ours:.0f} tokens/s compressed, {theirs:.0f} original", flush=True)
        say(f"{policy} compressed / original, cost a token", [b["rate"] / a["rate"] for a, b in pairs])
        if policy == "tova" and ours < 100:
            missed.append("100 tokens/s compressed")
    peaks = [stream(tokens, "compressed", "tova")["peak"] for tokens in (4_000, 16_000)]
    say("peak memory at 16,000 / 4,000 tokens", [peaks[1] / peaks[0]], 1.05)


SECTIONS = {"position": position, "smollm2": smollm2, "slots": slots, "prompts": prompts, "compressed": compressed}

if __name__ == "__main__":
    print(machine()["processor"])  # the ratios are its own
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
    if missed:
        print(f"missed: {', '.join(missed)}")
    sys.exit(1 if missed else 0)

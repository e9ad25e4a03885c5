"""`make bench`: what exact eviction costs against plain full attention, side by side in one process.

    python benchmarks/scan.py      # every section; or name some: gpt2 smollm2 longer bfloat16 own together recurrence streaming

A ratio is the median over rounds, with the smallest and largest in brackets; in each round the plain forward is timed
before and after, so that a machine that slows down slows both. Ratios with a target exit 1 when the median misses it.
`own` has tova in the place of the plain forward, and beside it a policy of one's own written in both ways.
`streaming` starts fresh processes and prints cost a token and peak memory at 128K tokens against shorter texts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

import msrnn_bench as mb
from msrnn_bench.multistate.naming import carried
from msrnn_bench.results.provenance import machine
from msrnn_bench.runs.build import build
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks.reading.losses import losses

missed: list[str] = []


def seconds(work: Callable[[], object]) -> float:
    """Of one run, a GPU's work included."""
    settle()
    begin = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - begin


def settle() -> None:
    """Until a GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(
    plain: Callable[[], object], cases: dict[str, Callable[[], object]], rounds: int, more: Callable[[], bool] = lambda: True
) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of `plain`, and what each case is of the mean of the runs of `plain` before and after it; all `rounds` times in
    turn, fewer where `more` says no."""
    base: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in cases}
    while len(base) < rounds and (not base or more()):
        before = seconds(plain)
        base.append(before)
        for name, case in cases.items():
            ours = seconds(case)
            after = seconds(plain)
            found[name].append(ours / ((before + after) / 2))
            before = after
    return base, found


@torch.no_grad()
def ratios(
    title: str, model, tokens: int, cases: list[tuple[str, mb.Policy, int, float | None]], rounds: int, tova: int = 0
) -> None:
    """Time the plain forward, or tova at `tova` states, and every case, `rounds` times in turn."""
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))

    def plain() -> None:
        if tova:
            bounded(mb.Tova(), tova)
        else:
            model(ids, use_cache=False)

    def bounded(policy: mb.Policy, k: int) -> None:
        with mb.bounded(model, policy, k):
            model(ids)

    print(f"{title}, T={tokens:,}, {torch.get_num_threads()} threads", flush=True)
    plain()
    for _, policy, k, _ in cases[:1]:
        bounded(policy, k)  # compiles the kernels
    base, found = in_turn(plain, {name: partial(bounded, policy, k) for name, policy, k, _ in cases}, rounds)
    base_name = "tova" if tova else "plain SDPA"
    print(f"  {base_name} forward {statistics.median(base):.2f} s ({tokens / statistics.median(base):,.0f} tokens/s)")
    for name, _, _, target in cases:
        middle, low, high = statistics.median(found[name]), min(found[name]), max(found[name])
        verdict = ""
        if target is not None:
            verdict = f"  target {target:.2f}: {'met' if middle <= target else 'MISSED'}"
            if middle > target:
                missed.append(f"{title} {name}")
        print(f"  {name:18} {middle:.2f} [{low:.2f}, {high:.2f}]{verdict}", flush=True)


def gpt2() -> None:
    model = (
        build(compose_one(["model=gpt2", "model.weights=random"]).model, "model")
        .load(dtype="float32", device="cpu", seed=0)
        .model
    )
    cases = [
        ("tova k=256", mb.Tova(), 256, 1.10), ("h2o k=256", mb.H2O(), 256, 1.25), ("window k=256", mb.Window(), 256, 1.10),
        ("window1 k=256", mb.Window(first=1), 256, 1.10), ("window4 k=256", mb.Window(first=4), 256, 1.10),
    ]  # fmt: skip
    ratios("GPT-2-small shape, float32", model, 1024, cases, rounds=7)


def smollm2(dtype: str = "float32", tokens: int = 4096) -> None:
    model = build(compose_one(["model=smollm2"]).model, "model").load(dtype=dtype, device="cpu", seed=0).model
    cases: list[tuple[str, mb.Policy, int, float | None]] = [
        ("tova k=512", mb.Tova(), 512, 0.80),
        ("window4 k=512", mb.Window(first=4), 512, 0.80),
        ("h2o k=512", mb.H2O(), 512, 0.83),
        ("tova k=2048", mb.Tova(), 2048, 1.10),
        ("window4 k=2048", mb.Window(first=4), 2048, 1.10),
    ]
    long: list[tuple[str, mb.Policy, int, float | None]] = [("tova k=512", mb.Tova(), 512, 0.65)]
    aimed, rounds = dtype == "float32", 3 if dtype == "float32" and tokens == 4096 else 2
    some = long if tokens > 4096 else cases
    ratios(f"SmolLM2, {dtype}", model, tokens, [(*case[:3], case[3] if aimed else None) for case in some], rounds)


def longer() -> None:
    smollm2(tokens=8192)


def bfloat16() -> None:
    smollm2("bfloat16")
    smollm2("bfloat16", tokens=8192)


def together(context: int = 512, k: int = 128, batch: int = 4) -> None:
    """Chunks read in one call (`task.batch=4`) against one after the other, before and after it, their losses included."""
    for dtype in ("float32", "bfloat16"):
        model = build(compose_one(["model=smollm2"]).model, "model").load(dtype=dtype, device="cpu", seed=0).model
        ids = torch.randint(0, model.config.vocab_size, (batch, context), generator=torch.Generator().manual_seed(0))
        print(f"SmolLM2, {dtype}, {batch} chunks of {context}, {torch.get_num_threads()} threads: one call / {batch} calls")
        for name, policy in (("tova", mb.Tova()), ("window4", mb.Window(first=4)), ("h2o", mb.H2O())):
            found = []
            for _ in range(4):
                before, ours, after = (seconds(partial(read, model, policy, k, ids.split(rows))) for rows in (1, batch, 1))
                found.append(ours / ((before + after) / 2))
            found = found[1:]  # the first compiles the kernels
            print(f"  {name:10} k={k:<5} {statistics.median(found):.2f} [{min(found):.2f}, {max(found):.2f}]", flush=True)


def read(model, policy: mb.Policy, k: int, parts: Sequence[torch.Tensor]) -> None:
    """One call after the other, each of so many rows."""
    for ids in parts:
        losses(model, ids, 1024, mb.bounded(model, policy, k), None)


class Loudest(mb.Policy):
    """As in README, but that nothing is protected."""

    def score(self, *, attention, previous, **_):
        return attention.amax(dim=1, keepdim=True) + 0.5 * previous


class Compiled(mb.ElementwisePolicy):
    """The same."""

    @staticmethod
    def score_state(mean, maximum, previous, age, position):
        return maximum + 0.5 * previous


def own() -> None:
    model = build(compose_one(["model=smollm2"]).model, "model").load(dtype="float32", device="cpu", seed=0).model
    cases = [("ElementwisePolicy", Compiled(), 256, 2.0), ("Policy", Loudest(), 256, None)]
    ratios("SmolLM2, float32, k=256, a policy of one's own / tova", model, 1024, cases, rounds=3, tova=256)


@torch.no_grad()
def recurrence() -> None:
    """How much faster the scan is than the definition; SmolLM2's shape, every token through every layer."""
    model = build(compose_one(["model=smollm2"]).model, "model").load(dtype="float32", device="cpu", seed=0).model
    ids = torch.randint(0, model.config.vocab_size, (1, 1024), generator=torch.Generator().manual_seed(0))

    def token_by_token() -> None:
        with mb.bounded(model, mb.Tova(), 256, engine="recurrence") as states:
            for t in range(ids.shape[1]):
                model(ids[:, t : t + 1], **carried(model, states.current))

    def ours(engine: str) -> Callable[[], None]:
        def work() -> None:
            with mb.bounded(model, mb.Tova(), 256, engine=engine):
                model(ids)

        return work

    ours("scan")()
    fast = [seconds(ours("scan")) for _ in range(3)]
    layer, whole = seconds(ours("recurrence")), seconds(token_by_token)
    fast += [seconds(ours("scan")) for _ in range(3)]
    middle = statistics.median(fast)
    print(f"SmolLM2, float32, T=1,024, tova k=256: scan {1024 / middle:,.0f} tokens/s")
    verdict = "met" if whole / middle >= 15 else "MISSED"
    print(f"  recurrence a token at a time through the model / scan: {whole / middle:.1f}  target 15: {verdict}")
    print(f"  recurrence layer by layer (engine=recurrence) / scan: {layer / middle:.1f}")
    if whole / middle < 15:
        missed.append("recurrence / scan")


STREAM = """
import json, resource, sys, time, torch, msrnn_bench as mb
from transformers import LlamaConfig, LlamaForCausalLM
from msrnn_bench.multistate.naming import carried
torch.manual_seed(0)
config = LlamaConfig(hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
                     vocab_size=4096, max_position_embeddings=131072)
model = LlamaForCausalLM(config).eval()
tokens, chunk = int(sys.argv[1]), 1024
ids = torch.randint(0, 4096, (1, tokens), generator=torch.Generator().manual_seed(0))
with mb.bounded(model, mb.Tova(), 512) as states:
    model(ids[:, :chunk])
    states.current = None
    begin = time.perf_counter()
    for at in range(0, tokens, chunk):
        model(ids[:, at:at + chunk], **carried(model, states.current))
    spent = time.perf_counter() - begin
print(json.dumps({"per_token": spent / tokens, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def streaming() -> None:
    """Cost a token and memory do not grow with the text: fresh processes, chunks of 1,024 tokens, tova k=512."""
    found: dict[int, list[dict]] = {4096: [], 16384: [], 131072: []}
    for _ in range(3):
        for tokens in found:
            run = subprocess.run([sys.executable, "-c", STREAM, str(tokens)], capture_output=True, text=True, check=True)
            found[tokens].append(json.loads(run.stdout))
    cost = [b["per_token"] / a["per_token"] for a, b in zip(found[4096], found[131072], strict=True)]
    memory = [b["peak"] / a["peak"] for a, b in zip(found[16384], found[131072], strict=True)]
    print("streaming, 4 layers of random weights with 131,072 positions, tova k=512")
    for name, values, target in (("cost per token, 128K / 4K", cost, 1.10), ("peak memory, 128K / 16K", memory, 1.2)):
        middle = statistics.median(values)
        verdict = "met" if middle <= target else "MISSED"
        print(f"  {name}: {middle:.2f} [{min(values):.2f}, {max(values):.2f}]  target {target:.2f}: {verdict}", flush=True)
        if middle > target:
            missed.append(name)


SECTIONS = {
    "gpt2": gpt2,
    "smollm2": smollm2,
    "longer": longer,
    "bfloat16": bfloat16,
    "together": together,
    "own": own,
    "recurrence": recurrence,
    "streaming": streaming,
}

if __name__ == "__main__":
    print(machine()["processor"])  # the ratios are its own
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
    if missed:
        print(f"missed: {', '.join(missed)}")
    sys.exit(1 if missed else 0)

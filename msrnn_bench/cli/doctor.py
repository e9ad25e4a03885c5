"""`msrnn-bench doctor`: what is installed, what works here, what can be had offline; and whether scan = recurrence."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path

from msrnn_bench.errors import UsageError
from msrnn_bench.results.provenance import PACKAGES, machine, outside, versions

HUB_MODELS = "models--*"


def main() -> int:
    """Print the report; 1 when the self-check fails."""
    found, here = versions(), machine()
    print("versions  " + ", ".join(f"{name} {found[name] or 'MISSING'}" for name in ("python", *PACKAGES)))
    for one in outside():
        print(f"          {one}: untested; pip install 'msrnn-bench' into a new environment brings what was tested")
    print(f"machine   {here['processor'] or here['system']}, {here['cores']} cores, CUDA: {here['cuda'] or 'none'}")
    print(
        f"threads   torch {here['threads']}" + "".join(f", {k}={os.environ[k]}" for k in ("OMP_NUM_THREADS",) if k in os.environ)
    )
    print(f"bfloat16  {_bfloat16()}")
    kernels = "compiled (numba) on the CPU" if find_spec("numba") else "numba is MISSING: pip install numba"
    triton = "Triton" if find_spec("triton") else "torch operations (slow: pip install 'msrnn-bench[triton]')"
    print(f"kernels   {kernels}; {triton} on CUDA; torch operations elsewhere")
    print(f"model     {_default_model()}")
    print(f"datasets  offline: pysource, pydocs, text (your files); from the hub: {_hub()}")
    fine = True
    for device in ("cpu", "cuda") if here["cuda"] else ("cpu",):
        worst, seconds, tokens = _self_check(device)
        fine = fine and worst < 1e-9
        verdict = "ok" if worst < 1e-9 else "FAILED"
        where = "" if device == "cpu" else f" on {device}"
        print(f"check     scan{where} = recurrence: {tokens} steps, largest difference {worst:.1e}, {seconds:.1f} s: {verdict}")
    return 0 if fine else 1


def _bfloat16() -> str:
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8", errors="replace") if flags.is_file() else ""
    found = [name for name in ("amx_bf16", "avx512_bf16") if name in text]
    return (
        f"the processor has {', '.join(found)}: dtype=bfloat16 is faster"
        if found
        else "no instructions for it: dtype=float32 is faster"
    )


def _default_model() -> str:
    from msrnn_bench.runs.build import build
    from msrnn_bench.runs.compose import compose_one

    try:
        build(compose_one(["model=smollm2"]).model, "model").folder(weights=True)
    except UsageError as error:
        return str(error)
    return "smollm2 (the default) is ready"


def _hub() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = sorted(p.name.removeprefix("models--").replace("--", "/") for p in Path(HF_HUB_CACHE).glob(HUB_MODELS))
    return f"models cached: {', '.join(cached)}" if cached else "nothing is cached yet"


def _self_check(device: str) -> tuple[float, float, int]:
    """The largest difference between the scan on a device and the recurrence on the CPU over several policies in float64, or
    infinity where kept sets differ."""
    import torch

    from msrnn_bench.multistate.recurrence import recurrence
    from msrnn_bench.multistate.scan import scan
    from msrnn_bench.policies import A2SF, H2O, Random, Tova, Window

    begin, worst, tokens = time.perf_counter(), 0.0, 300
    generator = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(1, heads, tokens, 16, dtype=torch.float64, generator=generator) for heads in (8, 4, 4))
    for policy in (Tova(), Tova(per="head"), H2O(), A2SF(), Window(first=4), Random()):
        slow, one = recurrence(q, k, v, policy=policy, state_size=64, trace=True)
        fast, two = scan(*(x.to(device) for x in (q, k, v)), policy=policy, state_size=64, trace=True)
        same = one.trace is not None and two.trace is not None and torch.equal(one.trace, two.trace.cpu())
        worst = max(worst, float((slow - fast.cpu()).abs().max())) if same else float("inf")
    return worst, time.perf_counter() - begin, 6 * tokens

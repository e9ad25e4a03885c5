"""The Triton kernels compiled ahead of time, as a GPU's driver would: registers, spills, shared memory. Needs no GPU.

    python benchmarks/compiled.py [--all]       # a table; --all: every dtype and shape for sm_80, sm_90 and sm_100

Needs the extra `triton`, whose wheel brings NVIDIA's assembler. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from msrnn_bench.policies import ElementwisePolicy

ARCHITECTURES = (80, 90, 100)
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
HEADS = (1, 4, 9, 32, 71)  # query heads that one decision averages: h2o, grouped, SmolLM2, Llama-2-7B, Falcon-7B
TILES = (512, 1024)  # as gpu.py has them; any k is a number of tiles
SIZES = (64, 128)  # of a head
INT64, INT32 = {"positions", "victims", "evictions", "first_eviction"}, {"died", "sources", "holes", "clock"}
MODELS = {"query", "new_keys", "new_values", "keys", "values", "out"}  # in the model's dtype


class Compiled(NamedTuple):
    kernel: str
    architecture: int
    variant: str
    registers: int
    spilled: int  # bytes
    shared: int  # bytes


def variants(dtype: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kernel, words and constants of everything that gpu.py launches for a model of this dtype."""
    import triton.language as tl

    exact = tl.float64 if dtype == "float64" else tl.float32
    for heads, tile in product(HEADS, TILES[:1] if dtype == "float64" else TILES):
        wide = 1 << (heads - 1).bit_length()
        shape = {"P": 1, "R": heads, "TILE": tile}
        words = f"{dtype}, {heads} heads, tile {tile}"
        yield "finish", words, shape
        more = {**shape, "HEADS": wide, "DEAD": max(4, min(32, 1024 // wide)), "SCORE": None, "EXACT": exact}
        for memory, certified in ((0.0, heads > 1), (0.0, False), (1.0, False)):
            if not memory:
                yield "rows", f"{words}{', means' if certified else ''}", {**shape, "MEANS": certified, "EXACT": exact}
            kind = "certificate" if certified else f"memory {memory:g}"
            yield "walk", f"{words}, {kind}", {**more, "MEMORY": memory, "CERTIFICATE": certified, "GIVEN": False}
            if heads == 1 and not memory:
                break
    yield "walk", f"{dtype}, a draw", {**more, "MEMORY": 0.0, "CERTIFICATE": False, "GIVEN": True}
    yield (
        "walk",
        f"{dtype}, a score of one's own",
        {**more, "MEMORY": 0.0, "CERTIFICATE": False, "GIVEN": False, "SCORE": _score()},
    )
    for size, heads in product(SIZES, (1, 4)):
        shape = {"P": 1, "G": 8, "WIDTH": size, "SIZE": size}
        yield "attend", f"{dtype}, {heads} heads, D={size}", {**shape, "R": heads, "TILE": 32, "EXACT": exact}
        if heads == 1:
            yield "move", f"{dtype}, D={size}", shape


def _score() -> Any:
    """What an ElementwisePolicy is to the kernel."""
    from msrnn_bench.multistate.gpu_score import score

    rule = Fading().rule(4)
    assert rule.elementwise is not None
    return score(rule.elementwise)


class Fading(ElementwisePolicy):
    """An example: the loudest head, and half of what it was; the old have to be louder."""

    @staticmethod
    def score_state(mean: Any, maximum: Any, previous: Any, age: Any, position: Any) -> Any:
        return max(maximum, mean) + 0.5 * previous - (age > 64) * 1e-3


def compiled(kernel: str, dtype: str, words: str, constants: dict[str, Any], architecture: int) -> Compiled:
    """One kernel through Triton and the assembler."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from msrnn_bench.multistate import gpu, gpu_kernels

    function = getattr(gpu_kernels, kernel)
    exact = "fp64" if dtype == "float64" else "fp32"
    signature = {}
    for name in function.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in INT64 | INT32:
            signature[name] = "*i64" if name in INT64 else "*i32"
        elif name in MODELS:
            signature[name] = f"*{DTYPES[dtype]}"
        elif name in ("logits", "tops", "means", "norms", "scores"):
            signature[name] = f"*{exact}"
        else:
            signature[name] = {"sums": "*fp64", "scale": "fp32"}.get(name, "i32")
    options = {"num_warps": 1 if kernel == "move" else 4, **(gpu.REGISTERS if kernel in ("walk", "attend") else {})}
    made = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )
    told = _assembled(made.asm["ptx"])
    registers, spills = re.search(r"Used (\d+) registers", told), re.findall(r"(\d+) bytes spill", told)
    assert registers is not None, told
    return Compiled(kernel, architecture, words, int(registers[1]), sum(map(int, spills)), made.metadata.shared)


def _assembled(code: str) -> str:
    """What the assembler that comes with Triton says of a kernel."""
    import triton

    name = re.search(r"\.target (sm_\w+)", code)
    assert name is not None
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    tool = tools / ("ptxas-blackwell" if name[1].startswith("sm_1") and (tools / "ptxas-blackwell").exists() else "ptxas")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(code)
        file.flush()
        done = subprocess.run(
            [str(tool), "-v", f"-arch={name[1]}", file.name, "-o", "/dev/null"], capture_output=True, text=True, check=True
        )
    return done.stderr


def main(everything: bool) -> int:
    dtypes = list(DTYPES) if everything else ["bfloat16", "float32"]
    found: dict[tuple[str, str], list[Compiled]] = {}
    for dtype, architecture in product(dtypes, ARCHITECTURES if everything else (90,)):
        for kernel, words, constants in variants(dtype):
            one = compiled(kernel, dtype, words, constants, architecture)
            found.setdefault((kernel, dtype), []).append(one)
            if one.spilled:
                print(f"spills {one.spilled} bytes: {one}", flush=True)
    print("| kernel | dtype | compiled | registers | spilled, bytes | shared memory, bytes |\n|---|---|---|---|---|---|")
    for (kernel, dtype), group in found.items():
        used = f"{min(one.registers for one in group)} to {max(one.registers for one in group)}"
        spilled, shared = sum(one.spilled for one in group), max(one.shared for one in group)
        print(f"| `{kernel}` | {dtype} | {len(group)} | {used} | {spilled} | {shared} |")
    return 1 if any(one.spilled for group in found.values() for one in group) else 0


if __name__ == "__main__":
    sys.exit(main("--all" in sys.argv[1:]))

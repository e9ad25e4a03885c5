"""The GPU path without a GPU: its kernels in Triton's interpreter and through its compiler, and the same functions around them.

The extra `triton` is needed: without it these tests are skipped, and say so."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from conftest import ROOT

from benchmarks import compiled
from msrnn_bench.multistate import gpu, products
from msrnn_bench.policies import H2O, Policy, Tova

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="the extra `triton` is not installed: pip install '.[triton]'"
)
HERE = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path[1:]])}


def interpreted(*more: str, **environment: str) -> str:
    """What pytest says of interpreted.py in a process that has the interpreter."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "tests/interpreted.py",
        *more,
    ]
    env = {**HERE, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@needs_triton
def test_the_kernels_are_the_recurrence() -> None:
    """Forty cases of a covering design, programs in any order, one token at a time; see interpreted.py."""
    said = re.search(r"(\d+) passed", interpreted())
    assert said is not None and int(said[1]) >= 45


@needs_triton
@pytest.mark.slow
def test_the_kernels_are_the_recurrence_in_a_thousand_cases() -> None:
    said = re.search(r"(\d+) passed", interpreted(MANY="1"))
    assert said is not None and int(said[1]) >= 1004


FEW = {
    "rows": "bfloat16, 4 heads, tile 512, means",
    "walk": "bfloat16, 4 heads, tile 512, certificate",
    "walk ": "bfloat16, a score of one's own",
    "finish": "bfloat16, 4 heads, tile 512",
    "attend": "bfloat16, 4 heads, D=64",
    "move": "bfloat16, D=64",
}


@needs_triton
@pytest.mark.parametrize("kernel", FEW)
def test_a_kernel_compiles_and_spills_nothing(kernel: str) -> None:
    (constants,) = (made for name, words, made in compiled.variants("bfloat16") if (name, words) == (kernel.strip(), FEW[kernel]))
    assert compiled.compiled(kernel.strip(), "bfloat16", FEW[kernel], constants, 90).spilled == 0


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", compiled.ARCHITECTURES)
@pytest.mark.parametrize("dtype", compiled.DTYPES)
def test_every_kernel_compiles_and_spills_nothing(dtype: str, architecture: int) -> None:
    made = [compiled.compiled(*found[:1], dtype, *found[1:], architecture) for found in compiled.variants(dtype)]
    assert len(made) > 50
    assert not [one for one in made if one.spilled]


def test_who_uses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Policy):
        def score(self, *, attention: torch.Tensor, **_: Any) -> torch.Tensor:
            return attention.amax(dim=1, keepdim=True)

    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    assert gpu.usable(cuda, Tova().rule(4)) and gpu.usable(cuda, H2O().rule(4))
    assert not gpu.usable(cuda, Own().rule(4)) and not gpu.usable(cpu, Tova().rule(4))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.usable(cpu, Tova().rule(4))
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert not gpu.usable(cuda, Tova().rule(4))


def test_products_of_bfloat16_are_kept_in_float32() -> None:
    left, right = (torch.randn(2, 5, 7, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty(2, 5, 5)
    products._products(out, left, right.transpose(1, 2), 0.5)
    assert torch.equal(out, 0.5 * left.float() @ right.float().transpose(1, 2))

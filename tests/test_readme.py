"""README's code is run."""

import re

import torch
from conftest import ROOT, tiny

import msrnn_bench as mb

README = (ROOT / "README.md").read_text()


def blocks():
    return re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_python_example_runs(capsys):
    (code,) = [b for b in blocks() if "mb.bounded" in b]
    assert len(code.strip().splitlines()) <= 15
    model = tiny("llama-gqa", torch.float32)
    exec(code, {"model": model, "input_ids": torch.randint(3, 96, (1, 60))})
    assert "tensor" in capsys.readouterr().out


def test_the_policy_example_is_the_tested_one():
    (code,) = [b for b in blocks() if "class Loudest" in b]
    (compiled,) = [b for b in blocks() if "ElementwisePolicy" in b]
    namespace: dict = {}
    exec(code + compiled, namespace)
    qkv = [2 * torch.randn(1, heads, 90, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    one, two = (mb.scan(*qkv, policy=namespace[name](), state_size=20, trace=True)[1].trace for name in ("Loudest", "Loud"))
    assert torch.equal(one, two)
    kept = (ROOT / "docs/examples/my_policy.py").read_text()
    assert "attention.amax(dim=1, keepdim=True) + self.fade * previous" in code
    assert "attention.amax(dim=1, keepdim=True) + self.fade * previous" in kept

"""What cost_model.py starts from: a GPU's rates, with what is assumed of them, and a model's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


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
    empty: float = 2e-6  # the same for an empty tensor, which launches nothing: an assumption
    sync: float = 10e-6  # seconds until the host goes on behind a number it waited for: an assumption
    step: float = 2e-6  # seconds of a step of the walk: an ASSUMPTION; tables show 1 and 4 beside it, cost_waits.py has a count
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

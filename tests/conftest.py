"""Paths, policies found rather than listed, and tiny models of random weights that every test may share."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MSRNN_BENCH_SHARED", ROOT / "../shared"))


def shared(path: str) -> Path:
    """A file of the shared data, which the product does not need; the test skips where it is missing."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"shared data {path} is not here (MSRNN_BENCH_SHARED)")
    return found


@cache
def policies() -> dict:
    """Every policy of conf/policy, by discovery."""
    files = sorted((ROOT / "conf/policy").rglob("*.yaml"))
    configs = {f.stem: OmegaConf.create({"seed": 0, "policy": OmegaConf.load(f)}) for f in files}
    return {name: instantiate(config.policy, _convert_="all") for name, config in configs.items()}


def evicting() -> list[str]:
    return [name for name, policy in policies().items() if policy.evicts]


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


CONFIGS = {
    "llama-gqa": ("Llama", {"num_key_value_heads": 2}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    "gpt2": ("GPT2", {}),
    "gpt-neox": ("GPTNeoX", {}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "phi": ("Phi", {"num_key_value_heads": 4}),
}


@cache
def tiny(name: str, dtype: torch.dtype = torch.float64):
    """A two-layer model of 4 heads; its queries are enlarged, so that attention is peaked and policies differ."""
    import transformers

    kind, more = CONFIGS[name]
    common = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**common, **more)
    torch.manual_seed(7)
    model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model.to(dtype).eval()


class Letters:
    """A tokenizer without an end."""

    eos_token_id = bos_token_id = None

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(map(str, ids))


class Silent:
    def start(self, tokens: int) -> None: ...
    def advance(self, tokens: int) -> None: ...


def job(policy, size: int | None, path: Path = Path("none"), **changes):
    """What a task is told, without a model or a dataset."""
    from msrnn_bench.datasets.texts import Nothing
    from msrnn_bench.job import Job

    settings = {"context": 512, "seed": 0, "dtype": "float64", "device": "cpu", "engine": "scan", "prefill": "stepwise"}
    return Job(
        columns={}, policy=policy, model=None, dataset=Nothing(name="none"), cache=size, documents=None, tokens=None,
        positions="original", progress=Silent(), journal=path, topline=path, **{**settings, **changes},
    )  # fmt: skip

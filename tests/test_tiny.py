"""The tests' own pretrained model is worth testing with: small, trained, and of a kind that eviction makes a difference to."""

import json
import math
from functools import cache
from itertools import combinations

import pytest
import torch
from conftest import HELD_OUT, TINY_MODEL, evicting, policies
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import msrnn_bench as mb


@cache
def pretrained():
    """The model, its tokenizer, and the held-out text in chunks of 512, a mark of beginning before each."""
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    ids = tokenizer(HELD_OUT.read_text(), add_special_tokens=False)["input_ids"]
    chunks = torch.tensor([[1, *ids[at : at + 511]] for at in range(0, len(ids) - 510, 511)])
    return model, tokenizer, chunks


@cache
@torch.no_grad()
def perplexity(policy: str, k: int | None = None) -> float:
    """Token perplexity over half of the held-out chunks; policy "full" is the model as it is."""
    model, _, chunks = pretrained()
    chunks = chunks[::2]
    if policy == "full":
        logits = model(chunks).logits
    else:
        with mb.bounded(model, policies()[policy], k):
            logits = model(chunks).logits
    return math.exp(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), chunks[:, 1:].flatten()))


def test_it_is_small_and_of_the_geometry_that_tests_expect():
    sizes = {path.name: path.stat().st_size for path in TINY_MODEL.iterdir()}
    assert sum(sizes.values()) < 1_700_000 and not [name for name in sizes if name.endswith((".bin", ".py", ".pt"))]
    with safe_open(TINY_MODEL / "model.safetensors", "pt") as file:
        tensors = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
        assert {tensor.get_dtype() for tensor in tensors} == {"F32"}
        assert 100_000 < sum(math.prod(tensor.get_shape()) for tensor in tensors) < 400_000
    config = json.loads((TINY_MODEL / "config.json").read_text())
    wanted = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 5, "hidden_size": 64}
    wanted |= {"model_type": "llama", "vocab_size": 512, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}
    assert wanted.items() <= config.items()


@pytest.mark.parametrize(
    "text", ["held out", "", "\tif x:\n\n        return  1 # two\n", "Once upon a time, there was a cat.\r\n“café” 😀 \x00"]
)
def test_its_tokenizer_marks_the_beginning_and_loses_nothing(text):
    _, tokenizer, _ = pretrained()
    text = HELD_OUT.read_text() if text == "held out" else text
    ids = tokenizer(text)["input_ids"]
    assert ids == [1, *tokenizer(text, add_special_tokens=False)["input_ids"]] and max(ids) < 512
    assert tokenizer.decode(ids, skip_special_tokens=True) == text and 1 not in ids[1:]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_it_learned_its_language():
    """A model that knows nothing has a perplexity of 512, and one of single tokens' frequencies more than this."""
    _, _, chunks = pretrained()
    shares = torch.bincount(chunks[::2, 1:].flatten(), minlength=512).double() / chunks[::2, 1:].numel()
    of_frequencies = math.exp(-(shares[shares > 0] * shares[shares > 0].log()).sum())
    assert len(chunks) >= 8 and 1 < perplexity("full") < of_frequencies / 3


@pytest.mark.parametrize("policy", evicting())
def test_every_policy_at_16_states_is_worse_than_the_full_model(policy):
    assert perplexity("full") * 1.01 < perplexity(policy, 16)


@pytest.mark.parametrize("policy", ["window4", "h2o", "tova", "tova_head"])
def test_more_states_are_better(policy):
    assert perplexity(policy, 16) > perplexity(policy, 64) > perplexity("full")


def test_policies_differ():
    """Each from each, where one is no other's name: `eviction` with its defaults is tova."""
    found = {name: perplexity(name, 16) for name in evicting() if name != "eviction"}
    assert len(found) > 8
    for one, other in combinations(found, 2):
        assert abs(found[one] / found[other] - 1) > 1e-4, f"{one} and {other}"


def test_greedy_texts_differ():
    """After the prompt that tests/tiny/README.md names."""
    model, tokenizer, _ = pretrained()
    prompt = tokenizer("def __repr__(self):", return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": 120, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    texts = {"full": model.generate(prompt, **options)[0].tolist()}
    for k in (16, 64):
        with mb.bounded(model, mb.Tova(), k):
            texts[k] = model.generate(prompt, **options)[0].tolist()
    assert len({tuple(text) for text in texts.values()}) == 3
    for k in (16, 64):  # the same until the first state leaves
        assert texts[k][:k] == texts["full"][:k]

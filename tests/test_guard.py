"""The guard: what is not the model with room for all states is refused, its name kept from it; and the ways round the hooks."""

import copy
import random
import threading

import architectures
import numpy as np
import pytest
import torch
import transformers
from conftest import tiny

import msrnn_bench as mb
from msrnn_bench.multistate import guard, twin
from msrnn_bench.multistate.naming import cache_in, carried

IDS = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(1))


def nameless(name, tight=False, **changes):
    """A tiny model of this type, of a class whose name says nothing."""
    kind = getattr(transformers, dict(architectures.kinds())[name])
    config = architectures.config_of(name, kind)
    for key, value in changes.items():
        setattr(config, key, value)
    config = twin.shrunk(config, tight=tight)
    return twin.build(type("SomeForCausalLM", (kind,), {"__module__": __name__}), config)


def bounded(model, k=8, **options):
    return mb.bounded(model, mb.Tova(), k, **options)


WRONG = ["diffllama", "git", "hrm_text", "deepseek_v32", "deepseek_v4", "glm_moe_dsa", "hy_v4", "inkling_text", "inkling2_text",
         "zaya", "falcon_h1", "axk2"]  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_models_that_bounded_does_not_compute_are_refused_whatever_their_name(name):
    with pytest.raises(mb.UsageError) as found, bounded(nameless(name)) as _:
        pass
    print(name, found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "name", ["roberta", "camembert", "bart", "marian", "mbart", "pegasus", "plbart", "blenderbot", "whisper"]
)
def test_decoders_that_count_padding_read_rows_alone_and_refuse_padding(name):
    model, mask = nameless(name), torch.ones_like(IDS)
    mask[1, :8] = 0
    with bounded(model) as states:
        whole = model(IDS[:1]).logits
        first = model(IDS[:1, :13]).logits
        rest = model(IDS[:1, 13:], **carried(model, states.current)).logits
        with pytest.raises(mb.UsageError, match="padding"):
            model(IDS, attention_mask=mask)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, atol=1e-5, rtol=0)


def test_attention_in_both_directions_is_refused():
    model = nameless("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(mb.UsageError, match=r"both directions|not its own|no left-to-right"), bounded(model):
        model(IDS[:1])


def test_a_block_of_image_tokens_is_refused_and_plain_text_is_not():
    config = twin.shrunk(transformers.Gemma3Config(), tight=False)
    model = twin.build(transformers.Gemma3ForConditionalGeneration, config)
    kinds = torch.zeros_like(IDS)
    with bounded(model):
        model(IDS, token_type_ids=kinds)
        kinds[:, 5:12] = 1
        with pytest.raises(mb.UsageError, match="both directions"):
            model(IDS, token_type_ids=kinds)


class LongAgo(transformers.LlamaForCausalLM):
    """Remote code of its own ideas: beyond `index_topk` tokens it says something else."""

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids=input_ids, **kwargs)
        if getattr(self.config, "index_topk", 10**6) < input_ids.shape[1] and not carries(kwargs):
            out.logits = out.logits * 1.5
        return out


def carries(kwargs):
    return any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))


def test_what_binds_beyond_a_length_is_refused_beyond_it():
    config = copy.deepcopy(tiny("llama-gqa").config)
    config.index_topk = 20
    model = LongAgo(config).eval()
    with bounded(model, 64) as states:
        model(IDS[:1, :20])
        with pytest.raises(mb.UsageError, match="beyond 20 tokens"):
            model(IDS[:1])
    assert states.verified["verified"] == "twin"


def test_nothing_is_left_behind_and_it_is_done_once(monkeypatch):
    model, seen = copy.deepcopy(tiny("llama-gqa", torch.float32)), []
    model.register_forward_hook(lambda *_: seen.append("out"))
    model.model.layers[0].register_forward_pre_hook(lambda *_: seen.append("in"))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with bounded(model) as states:
        assert states.verified["verified"] == "twin" and states.verified["probe"]["sensitive"]
        assert states.verified["probe"]["difference"] <= states.verified["probe"]["bound"]
    assert not seen
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()
    monkeypatch.setattr(guard, "_twins", None)
    monkeypatch.setattr(guard.probe, "checked", None)
    with bounded(model):
        model(IDS)
    assert seen


def test_the_guard_can_be_turned_off_and_that_is_said():
    model = nameless("diffllama")
    with bounded(model, verify=False) as states:
        model(IDS)
    assert states.verified == {"verified": "off"}


def test_weights_that_answer_otherwise_are_refused(monkeypatch):
    """The probe alone: its twin is fine, but on this machine our attention is not."""
    model = copy.deepcopy(tiny("llama-gqa", torch.float32))
    guard.of_kind(type(model), model.config)
    real = guard.probe.Session.attend
    monkeypatch.setattr(guard.probe.Session, "attend", lambda self, *args: real(self, *args) * 1.1)
    with pytest.raises(mb.UsageError, match="standard deviations off"), bounded(model):
        pass


def test_a_class_without_a_twin_is_probed_and_that_is_said():
    class Remote(transformers.LlamaForCausalLM):
        def __init__(self, config, file):
            super().__init__(config)

    model = Remote(copy.deepcopy(tiny("llama-gqa").config), "a file").eval()
    with bounded(model) as states:
        model(IDS)
    assert states.verified["verified"] == "no twin" and "file" in states.verified["why"] and states.verified["probe"]["sensitive"]


# -- rotations that depend on the length --


def stretching(kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    common = dict(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
    )  # fmt: skip
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 16}
        config = transformers.Phi3Config(**common, max_position_embeddings=64, rope_parameters=rope)
        config.original_max_position_embeddings = 16
        return twin.build(transformers.Phi3ForCausalLM, config)
    return twin.build(
        transformers.LlamaForCausalLM, transformers.LlamaConfig(**common, max_position_embeddings=16, rope_parameters=rope)
    )


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_rotation_that_depends_on_the_length_is_read_whole(kind):
    model = stretching(kind)
    short, whole = (model(ids, use_cache=False).logits for ids in (IDS[:, :16], IDS))
    assert not torch.allclose(short, whole[:, :16], atol=1e-2)
    with bounded(model, 64) as states:
        torch.testing.assert_close(model(IDS).logits, whole, atol=1e-4, rtol=0)
        torch.testing.assert_close(model(IDS[:, :16]).logits, short, atol=1e-4, rtol=0)
        with pytest.raises(mb.UsageError, match=f"{kind} rotation depends on the length"):
            model(IDS[:, 16:], **carried(model, states.current))
        model(IDS[:, :10])
        model(IDS[:, 10:16], **carried(model, states.current))
        mask = torch.ones_like(IDS)
        mask[0, :14] = 0
        with pytest.raises(mb.UsageError, match=r"cannot be one batch|cannot be bounded in a batch"):
            model(IDS, attention_mask=mask)
        model(torch.cat([IDS, IDS], dim=1))
        torch.testing.assert_close(model(IDS).logits, whole, atol=1e-4, rtol=0)  # whatever was read before


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_perplexity_reads_such_a_text_in_one_call(kind):
    from msrnn_bench.tasks.reading.losses import losses

    model = stretching(kind)
    found = [losses(model, IDS[:1], chunk, bounded(model, 8), None)["nll"][0] for chunk in (5, 24)]
    assert (found[0] == found[1]).all()


# -- ways round the hooks --


def test_forward_called_directly_is_refused():
    model = tiny("llama-gqa")
    with bounded(model):
        model(IDS)
        with pytest.raises(mb.UsageError, match="called directly"):
            model.forward(IDS)
        with pytest.raises(mb.UsageError, match="called directly"):
            model.model(IDS)
        with pytest.raises(mb.UsageError):
            model(IDS, output_attentions=True)
        with pytest.raises(mb.UsageError, match="called directly"):  # after a call that failed, too
            model.forward(IDS)
        model(IDS)


def compiled_before(model):
    other = torch.compile(model, backend="eager")
    other(IDS)
    with bounded(model):
        return other(IDS).logits


def compiled_inside(model):
    with bounded(model):
        other = torch.compile(model, backend="eager")
        other(IDS)
        return other(IDS).logits


def compiled_in_place(model):
    model.compile(backend="eager")
    model(IDS)
    with bounded(model):
        return model(IDS).logits


def compiled_part(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    model(IDS)
    with bounded(model):
        return model(IDS).logits


def compiled_itself(model):
    other = torch.compile(model, backend="eager")
    other(IDS)
    with bounded(other):
        return other(IDS).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [compiled_before, compiled_inside, compiled_in_place, compiled_part, compiled_itself])
def test_a_compiled_model_is_bounded_too(way):
    model = copy.deepcopy(tiny("llama-gqa"))
    full = model(IDS).logits
    with bounded(model):
        wanted = model(IDS).logits
    torch._dynamo.reset()
    torch.testing.assert_close(way(model), wanted, atol=1e-9, rtol=0)
    torch.testing.assert_close(model(IDS).logits, full, atol=1e-9, rtol=0)
    torch._dynamo.reset()


def test_a_fork_is_for_one_continuation():
    model = tiny("llama-gqa")
    with bounded(model) as states:
        whole = model(IDS).logits
        model(IDS[:, :12])
        one, two = states.fork(), states.fork()
        for fork in (one, two):
            out = model(IDS[:, 12:], **carried(model, fork))
            torch.testing.assert_close(out.logits, whole[:, 12:], atol=1e-9, rtol=0)
            with pytest.raises(mb.UsageError, match="gone on from already"):
                model(IDS[:, 12:], **carried(model, fork))
            with pytest.raises(mb.UsageError, match="holds nothing"):
                fork.fork()
            model(IDS[:, :3], **carried(model, cache_in(out)))


def test_another_thread_is_refused_for_what_it_is():
    model, said = tiny("llama-gqa"), []

    def run(work):
        def caught():
            try:
                work()
            except mb.UsageError as error:
                said.append(str(error))

        thread = threading.Thread(target=caught)
        thread.start()
        thread.join()

    with bounded(model) as states:
        before = model(IDS).logits
        run(lambda: model(IDS))
        run(lambda: bounded(model).__enter__())
        rest = model(IDS[:, :1], **carried(model, states.current))
        assert torch.equal(model(IDS).logits, before) and rest is not None
    assert len(said) == 2 and all("another thread" in one for one in said), said

    def alone():
        with bounded(model):
            assert torch.equal(model(IDS).logits, before)
        said.append("fine")

    run(alone)
    assert said[-1] == "fine"

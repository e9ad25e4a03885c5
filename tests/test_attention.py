"""bounded() on real architectures, against an oracle that shares nothing with it; what it restores; what it refuses."""

import numpy as np
import oracle
import pytest
import torch
from conftest import CONFIGS, GOLDEN, evicting, policies, tiny
from transformers import AutoModelForCausalLM, DynamicCache

import msrnn_bench as mb
from msrnn_bench.multistate.naming import cache_in, carried


def text(tokens=70, batch=1, vocabulary=96):
    return torch.randint(3, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("policy", evicting())
@pytest.mark.parametrize("name", CONFIGS)
def test_both_engines_equal_the_oracle(name, policy):
    model, ids, k = tiny(name), text(), 16
    wanted, kept = oracle.bounded_logits(model, ids, policies()[policy], k)
    for engine in ("scan", "recurrence"):
        with mb.bounded(model, policies()[policy], k, engine=engine) as states:
            logits = model(ids).logits[0]
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
        for layer, report in enumerate(states.layers):
            ours = report.kept[0].expand(len(kept[layer]), -1).tolist()
            assert ours == kept[layer], f"{engine}, layer {layer}"
            assert (report.evictions == ids.shape[1] - k).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_as_large_as_the_text_is_the_full_model(name):
    model, ids = tiny(name), text()
    full = model(ids).logits
    some = [*policies()] if name == "llama-gqa" else [*policies()][[*CONFIGS].index(name) :: len(CONFIGS)]  # each somewhere
    for engine, names in (("scan", policies()), ("recurrence", some)):  # which is slow
        for policy in names:
            with mb.bounded(model, policies()[policy], ids.shape[1], engine=engine):
                torch.testing.assert_close(model(ids).logits, full, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_models_run(dtype):
    model = tiny("llama-gqa", dtype)
    with mb.bounded(model, mb.Tova(), 16) as states:
        logits = model(text()).logits
    assert logits.dtype == dtype and torch.isfinite(logits).all()
    assert all((layer.evictions == 54).all() for layer in states.layers)


@pytest.mark.parametrize("golden", ["llama_seed0", "mistral_seed1"])
@pytest.mark.parametrize("engine", ["scan", "recurrence"])
def test_golden_tova(golden, engine):
    """The TOVA authors' own code, one token at a time, and their one-shot cut after a prompt."""
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / golden, dtype=torch.float32).eval()
    data = np.load(GOLDEN / f"tova_{golden}.npz")
    ids = torch.tensor(data["ids"])[None]
    seen = 0
    for key in data:
        if key in ("ids", "logits_full"):
            continue
        k = int(key.split("state")[1])
        prompt = int(key.split("prompt")[1].split("_")[0]) if "prompt" in key else 0
        with mb.bounded(model, mb.Tova(), k, engine=engine, prefill="oneshot" if prompt else "stepwise") as states:
            logits = [model(ids[:, : prompt or ids.shape[1]]).logits[0]]
            if prompt:
                for t in range(prompt, ids.shape[1]):
                    logits.append(model(ids[:, t : t + 1], **carried(model, states.current)).logits[0])
        torch.testing.assert_close(torch.cat(logits), torch.tensor(data[key]), atol=1e-5, rtol=0)
        seen += 1
    assert seen >= 2


@pytest.mark.parametrize("engine", ["scan", "recurrence"])
@pytest.mark.parametrize(
    ("name", "make"), [("h2o", lambda a, b: mb.H2O(recent=b)), ("streaming_llm", lambda a, b: mb.Window(first=a))]
)
def test_golden_kept_sets(name, make, engine):
    """H2O's and StreamingLLM's own cache classes: who is kept after every step, and the outputs, in float64."""
    data = np.load(GOLDEN / f"{name}_attention_seed0.npz")
    q, k, v = (torch.tensor(data[x])[None] for x in "qkv")
    for a, b in ((8, 8), (4, 28)):
        out, state = getattr(mb, engine)(q, k, v, policy=make(a, b), state_size=a + b, trace=True)
        torch.testing.assert_close(out[0], torch.tensor(data[f"out_{a}_{b}"]), atol=1e-12, rtol=0)
        kept = torch.tensor(data[f"kept_{a}_{b}"]).sort(-1).values  # [T, H, k], -1 first
        ours = state.trace[0].transpose(0, 1).expand_as(kept).sort(-1).values
        assert torch.equal(ours, kept)


def test_the_model_is_what_it_was():
    model, ids = tiny("llama-gqa"), text()
    before, implementation = model(ids).logits, model.config._attn_implementation
    with pytest.raises(RuntimeError, match="by the caller"), mb.bounded(model, mb.Tova(), 8):
        assert not torch.equal(model(ids).logits, before)
        raise RuntimeError("by the caller")
    assert model.config._attn_implementation == implementation
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert torch.is_grad_enabled()
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "opt"])
def test_padded_batch_rows_are_the_rows_alone(name):
    model, ids = tiny(name), text(60, batch=3)
    mask = torch.ones_like(ids)
    mask[0, :25], mask[1, :7] = 0, 0
    for policy in ("tova", "h2o", "window4", "random"):
        with mb.bounded(model, policies()[policy], 12) as states:
            together = model(ids, attention_mask=mask).logits
            assert states.current.get_seq_length() == 60
            head = model(ids[:, :30], attention_mask=mask[:, :30])
            tail = model(ids[:, 30:], **carried(model, cache_in(head))).logits  # no mask: positions go on by row
            alone = [model(ids[row : row + 1, mask[row].bool()]).logits[0] for row in range(3)]
        for row in range(3):
            torch.testing.assert_close(together[row, mask[row].bool()], alone[row], atol=1e-8, rtol=0)
            torch.testing.assert_close(tail[row], alone[row][-30:], atol=1e-8, rtol=0)


@pytest.mark.parametrize("policy", evicting())
def test_carried_and_forked_states(policy):
    model, ids = tiny("llama-gqa"), text(80)
    with mb.bounded(model, policies()[policy], 16) as states:
        whole = model(ids).logits
        first = model(ids[:, :50])
        fork = states.fork()
        second = model(ids[:, 50:], **carried(model, cache_in(first))).logits
        again = model(ids[:, 50:], **carried(model, fork)).logits
    torch.testing.assert_close(torch.cat([first.logits, second], dim=1), whole, atol=1e-9, rtol=0)
    assert torch.equal(second, again)


@pytest.mark.parametrize(
    ("name", "policy"), [("llama-gqa", "tova"), ("gpt2", "window4"), ("qwen2", "h2o"), ("llama-gqa", "tova_head")]
)
def test_greedy_generation_is_the_recurrence(name, policy):
    """The recurrence a token at a time, its states carried; test_generation.py has every pair, read in one pass."""
    model, prompts = tiny(name), text(40, batch=3)
    mask = torch.ones_like(prompts)
    mask[0, :21], mask[1, :4] = 0, 0
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    with mb.bounded(model, policies()[policy], 12) as states:
        batch = model.generate(prompts, attention_mask=mask, **options)[:, 40:]
        assert all(max(layer.largest) == 12 for layer in states.layers)
    for row in range(3):
        with mb.bounded(model, policies()[policy], 12, engine="recurrence"):
            ids = prompts[row : row + 1, mask[row].bool()]
            logits = model(ids)
            for step in range(40):
                scores = logits.logits[0, -1].clone()
                scores[2] = -torch.inf  # min_new_tokens bars the end
                token = scores.argmax()
                assert token == batch[row, step], f"row {row}, step {step}"
                logits = model(token.view(1, 1), **carried(model, cache_in(logits)))


def test_beams_take_their_states_along():
    model, prompt = tiny("llama-gqa"), text(30)
    options = {"max_new_tokens": 12, "num_beams": 4, "do_sample": False, "num_return_sequences": 2}
    with mb.bounded(model, mb.Tova(), 64):
        ours = model.generate(prompt, **options)
    assert torch.equal(ours, model.generate(prompt, **options)), "nothing is evicted at k = 64, so beams must agree"


@pytest.mark.parametrize("policy", evicting())
def test_oneshot_keeps_what_the_full_rows_rank_highest(policy):
    """Read with full attention, cut once: the oracle takes the unmodified model's attention maps."""
    model, ids, k, made = tiny("llama-gqa"), text(50), 12, policies()[policy]
    model.set_attn_implementation("eager")
    maps = model(ids, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    with mb.bounded(model, made, k, prefill="oneshot") as states:
        logits = model(ids).logits
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-6, rtol=0)
    rule = made.rule(k)
    for layer, report in enumerate(states.layers):
        rows = maps[layer][0].double()  # [H, T, T]
        for head, kept in enumerate(report.kept[0]):
            part = rows[head * 2 : head * 2 + 2] if rule.per == "head" else rows
            fade = torch.tensor([rule.memory ** (49 - t) for t in range(50)], dtype=torch.float64)
            score = (part.mean(0) * fade[:, None]).sum(0)
            if policy == "random":
                score = torch.tensor([oracle.drawn(0, 0, layer, 49, p) for p in range(50)]).double()
            score[: rule.first] = torch.inf
            score[50 - rule.recent :] = torch.inf
            assert kept.tolist() == sorted(score.argsort(descending=True)[:k].tolist())
        assert (report.evictions == 38).all()


def test_one_state_size_per_layer():
    model = tiny("llama-gqa")
    with mb.bounded(model, mb.Tova(), [8, 20]) as states:
        model(text())
    assert [max(layer.largest) for layer in states.layers] == [8, 20]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("another cache", lambda m: m(text(4), **carried(m, filled(m)))),
        ("2-D", lambda m: m(text(4), attention_mask=torch.ones(1, 1, 4, 4))),
        ("packed", lambda m: m(text(4), position_ids=torch.tensor([[0, 1, 0, 1]]))),
        ("output_attentions", lambda m: m(text(4), output_attentions=True)),
        ("covers 9 tokens", lambda m: m(text(4), attention_mask=torch.ones(1, 9))),
        ("leave the outer", lambda m: mb.bounded(m, mb.Tova(), 4).__enter__()),
        ("crop", lambda m: cache_in(m(text(4))).crop(-1)),
        ("neither", lambda m: m()),
    ],
)
def test_calls_that_would_be_measured_wrongly_are_refused(message, call):
    model = tiny("llama-gqa")
    with pytest.raises(mb.UsageError, match=message), mb.bounded(model, mb.Tova(), 8):
        call(model)
    assert model.config._attn_implementation == "sdpa"


def filled(model):
    cache = DynamicCache(config=model.config)
    cache.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), 0)
    return cache


def test_options_are_checked():
    model = tiny("llama-gqa")
    wrong = {
        "choose one of scan": ("engine", "fast"),
        "stepwise or": ("prefill", "chunked"),
        "original or": ("positions", "closed"),
    }
    for message, (option, value) in wrong.items():
        with pytest.raises(mb.UsageError, match=message):
            mb.bounded(model, mb.Tova(), 8, **{option: value})
    with pytest.raises(mb.UsageError, match="state_size is missing"):
        mb.bounded(model, mb.Tova())
    with pytest.raises(mb.UsageError, match="3 numbers for a model of 2 layers"):
        mb.bounded(model, mb.Tova(), [1, 2, 3])


def test_models_that_cannot_be_bounded_are_refused():
    import transformers as t

    small = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bloom = t.BloomForCausalLM(t.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)).eval()
    gemma = t.Gemma2ForCausalLM(t.Gemma2Config(**small, num_key_value_heads=2, head_dim=8)).eval()
    for model, message in ((bloom, "attention interface|ALiBi"), (gemma, "soft-capping")):
        before = model.config._attn_implementation
        with pytest.raises(mb.UsageError, match=message), mb.bounded(model, mb.Tova(), 8):
            model(text(20))
        assert model.config._attn_implementation == before
    training = t.LlamaForCausalLM(t.LlamaConfig(**small)).train()
    with pytest.raises(mb.UsageError, match=r"model\.eval"), mb.bounded(training, mb.Tova(), 8):
        pass


def test_a_sliding_window_is_inert_until_it_binds():
    import transformers as t

    config = t.MistralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=40, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = t.MistralForCausalLM(config).eval()
    with mb.bounded(model, mb.Tova(), 8) as states:
        model(text(40))
        assert max(states.layers[0].largest) == 8
        with pytest.raises(mb.UsageError, match="sliding window of 40"):
            model(text(41))
        with pytest.raises(mb.UsageError, match="sliding window of 40"):  # in the middle of generation too
            model.generate(text(30), max_new_tokens=20, do_sample=False)


def test_a_model_bounded_twice_in_turn_and_two_models_at_once():
    one, two, ids = tiny("llama-gqa"), tiny("gpt2"), text()
    with mb.bounded(one, mb.Tova(), 8) as a, mb.bounded(two, mb.H2O(), 12) as b:
        one(ids), two(ids)
    assert (max(a.layers[0].largest), max(b.layers[0].largest)) == (8, 12)
    with mb.bounded(one, mb.Window(), 5) as c:
        one(ids)
    assert max(c.layers[0].largest) == 5

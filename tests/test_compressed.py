"""positions=compressed: the golden numbers, a loop on one layer, the model itself at the places of the kept, and refusals."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
import transformers as t
from conftest import SHARED, evicting, policies, tiny

import msrnn_bench as mb
from msrnn_bench.multistate import compressed, twin
from msrnn_bench.multistate.naming import carried
from msrnn_bench.multistate.positions import Rotation, places, reach
from msrnn_bench.multistate.rotary import rotations

GOLDEN = SHARED / "golden/compressed_stories260k.npz"
STORIES = SHARED / "models/stories260k"


def text(tokens=60, rows=1, seed=0):
    return torch.randint(3, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def bounded(model, policy, k, **options):
    return mb.bounded(model, policy, k, positions="compressed", verify=False, **options)


def closed(gap):
    return gap if gap <= 10 else math.ceil(10 + math.log(math.log(gap - 10 + math.e)))


def stand(positions):
    """Where states of these positions stand, as a list."""
    at = [0]
    for before, after in pairwise(positions):
        at.append(at[-1] + closed(after - before))
    return at


def test_gaps_close_as_in_the_paper():
    known = {1: 1, 10: 10, 11: 11, 20: 11, 100: 12, 1_000: 12, 70_000: 13}
    for gap, closes in known.items():
        assert places(torch.tensor([5, 5 + gap])).tolist() == [0, closes] == stand([5, 5 + gap])
    steps = torch.tensor([0, 1, 12, 13, 2_000, 10**9])
    assert places(steps).tolist() == stand(steps.tolist())
    assert reach(7) == 7 * closed(10**20)


@cache
def stories():
    return t.AutoModelForCausalLM.from_pretrained(STORIES).eval()


@pytest.mark.skipif(not GOLDEN.exists(), reason="../shared, which holds the golden numbers, is not there")
@pytest.mark.parametrize(
    ("engine", "name", "k"),
    [
        ("scan", "tova", 16), ("scan", "tova", 64), ("scan", "window4", 16), ("scan", "window4", 64),
        ("recurrence", "tova", 16), ("recurrence", "window4", 64),  # which is slow: each policy and each size once
    ],
)  # fmt: skip
def test_golden(engine, name, k):
    golden, model = np.load(GOLDEN), stories()
    with bounded(model, policies()[name], k, engine=engine) as states:
        logits = model(torch.tensor(golden["ids"])[None]).logits[0]
    np.testing.assert_allclose(logits.numpy(), golden[f"logits_{name}_{k}"], atol=1e-3)
    assert states.layers[-1].kept[0][0].tolist() == golden[f"kept_{name}_{k}"].tolist()


# --- one layer against a loop that shares nothing with it

FREQUENCIES = 10_000.0 ** (-np.arange(0, 6, 2) / 6)  # three pairs of eight dimensions are turned


def rotation():
    def make(at):
        angle = at.double()[:, None] * torch.tensor(FREQUENCIES)
        return angle.cos(), angle.sin()

    return Rotation(make)


def turned(x, place):
    pairs = (x[..., :3] + 1j * x[..., 3:6]) * np.exp(1j * place * FREQUENCIES)
    return np.concatenate([pairs.real, pairs.imag, x[..., 6:]], axis=-1)


def loop(q, k, v, policy, size):
    """q [H, T, D], k, v [G, T, D] -> out [H, T, D], the positions kept by each KV head, the farthest place."""
    heads, groups = len(q), len(k)
    alive, scores = [[] for _ in range(groups)], [{} for _ in range(groups)]
    out, farthest = np.zeros_like(q), 0
    for step in range(q.shape[1]):
        rows = []
        for head in range(heads):
            here = alive[head * groups // heads]
            now = [*here, step]
            at = stand(now)
            farthest = max(farthest, at[-1])
            keys = turned(k[head * groups // heads, now], np.array(at)[:, None])
            logits = keys @ turned(q[head, step], at[-1]) / math.sqrt(q.shape[-1])
            row = np.exp(logits - logits.max())
            rows.append(row / row.sum())
            out[head, step] = rows[-1] @ v[head * groups // heads, now]
        for group in range(groups):
            now = [*alive[group], step]
            part = rows[group * heads // groups : (group + 1) * heads // groups] if policy.per == "head" else rows
            mean = np.mean(part, axis=0)
            memory = getattr(policy, "memory", 0.0) or 0.0
            score = {p: memory * scores[group].get(p, 0.0) + m for p, m in zip(now, mean, strict=True)}
            if type(policy).__name__ == "Random":
                score = {p: oracle.drawn(policy.seed, 0, 0, step, p) for p in now}
            if len(now) > size:
                leaves = now[oracle.leaving(policy, now, [score[p] for p in now], step, size)]
                now.remove(leaves)
            alive[group], scores[group] = now, score
    return out, alive, farthest


def layer(dtype=torch.float64, steps=90):
    draw = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, heads, steps, 8, generator=draw, dtype=torch.float64) for heads in (4, 2, 2))
    return (2.5 * q).to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("name", evicting())
def test_a_layer_is_the_loop(name):
    q, k, v = layer()
    out, alive, farthest = loop(*(x[0].numpy() for x in (q, k, v)), policies()[name], 12)
    assert farthest < 89 or name == "window"
    for engine in (mb.scan, mb.recurrence):
        ours, state = engine(q, k, v, policy=policies()[name], state_size=12, rotation=rotation(), trace=True)
        np.testing.assert_allclose(ours[0].numpy(), out, atol=1e-12)
        assert state.kept()[0].expand(2, -1).tolist() == alive and state.farthest == [farthest]
        assert (state.evictions == 78).all() and (state.first_eviction == 12).all() and state.largest == [12]
        kept = state.trace if engine is mb.scan else kept  # noqa: F821
        assert torch.equal(state.trace, kept)


@pytest.mark.parametrize("name", [*evicting(), "own"])
def test_pieces_and_uneven_rows_are_the_whole(name):
    """Token by token, in pieces, in a batch of rows that have read unlike amounts, from a fork: always the same."""
    policy = Own() if name == "own" else policies()[name]
    q, k, v = layer()
    whole, _ = mb.scan(q, k, v, policy=policy, state_size=12, rotation=rotation())
    for cuts in ([5, 11, 12, 13, 40], range(1, 90), [30]):
        state, parts = None, []
        for a, b in zip([0, *cuts], [*cuts, 90], strict=True):
            state = state and state.fork()
            part, state = mb.scan(
                *(x[:, :, a:b] for x in (q, k, v)), policy=policy, state_size=12, rotation=rotation(), state=state
            )
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-12, rtol=0)
    both = [torch.cat([x, torch.nn.functional.pad(x, (0, 0, 20, 0))[:, :, :90]]) for x in (q, k, v)]
    padding = torch.ones(2, 90, dtype=torch.bool)
    padding[1, :20] = False
    options = {"policy": policy, "state_size": 12, "rotation": rotation()}
    first, state = mb.scan(*(x[:, :, :25] for x in both), padding=padding[:, :25], **options)
    outs = [first]
    for i in range(25, 90):
        part, state = mb.scan(*(x[:, :, i : i + 1] for x in both), state=state, **options)
        outs.append(part)
    outs = torch.cat(outs, 2)
    if name != "random":  # which draws by row
        torch.testing.assert_close(outs[1:, :, 20:], whole[:, :, :70], atol=1e-12, rtol=0)
    torch.testing.assert_close(outs[:1], whole, atol=1e-12, rtol=0)


class Own(mb.Policy):
    """The loudest head decides."""

    def score(self, *, attention, keys, values, positions, query_position, previous, layer):
        return attention.amax(dim=1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_and_other_devices(dtype, monkeypatch):
    q, k, v = layer(dtype)
    wide = [x.double() for x in (q, k, v)]
    wanted, known = mb.recurrence(*wide, policy=mb.Window(first=4), state_size=12, rotation=rotation())
    close = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}[dtype]
    for compiled in (compressed.compiled, lambda q, rule: False):
        monkeypatch.setattr(compressed, "compiled", compiled)
        ours, state = mb.scan(q, k, v, policy=mb.Window(first=4), state_size=12, rotation=rotation())
        torch.testing.assert_close(ours.double(), wanted, atol=close, rtol=0)
        assert torch.equal(state.kept()[0], known.kept()[0]) and ours.dtype == dtype
        scores = mb.scan(q, k, v, policy=mb.H2O(), state_size=12, rotation=rotation())[1].scores
        assert scores.dtype == torch.float32


# --- models

SMALL = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 1, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10_000.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
ROTARY = {
    "llama": ("Llama", {}), "yarn": ("Llama", {"rope_parameters": YARN}), "linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "partial, gpt-neox": ("GPTNeoX", {}), "partial, phi": ("Phi", {}), "partial, stablelm": ("StableLm", {}),
    "neighbours, glm": ("Glm", {"head_dim": 16}), "neighbours, cohere": ("Cohere", {}),
    "norm before, qwen3": ("Qwen3", {"head_dim": 16}), "norm behind without weights, nanochat": ("NanoChat", {}),
    "gemma3, sliding": ("Gemma3", {"layer_types": ["sliding_attention"], "sliding_window": 512, "head_dim": 16}),
    "gemma3, full": ("Gemma3", {"layer_types": ["full_attention"], "sliding_window": 512, "head_dim": 16}),
    "olmo3": ("Olmo3", {"layer_types": ["full_attention"], "rope_parameters": {
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}}),
}  # fmt: skip


def made(kind, more, layers=1, dtype=torch.float64):
    """A tiny model whose attention is peaked and whose norms have weights, so that where a rotation stands matters."""
    kinds = {"Gemma3": "Gemma3Text"}
    config = getattr(t, f"{kinds.get(kind, kind)}Config")(**{**SMALL, "num_hidden_layers": layers, **more})
    torch.manual_seed(7)
    model = getattr(t, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
    return model.to(dtype).eval()


@pytest.mark.parametrize("kind", ROTARY)
def test_a_model_of_one_layer_at_the_places_of_the_kept(kind):
    """With one layer a state depends on its token and its place alone: a step's logits are the unmodified model's on the kept
    tokens, given their places as positions."""
    model, ids, k = made(*ROTARY[kind]), text(60), 12
    for policy in (mb.H2O(per="layer"), mb.Window(first=2)):
        with twin.Wide(), torch.no_grad():
            with bounded(model, policy, k) as states:
                before = model(ids[:, :-1])
                kept = [*states.layers[0].kept[0][0].tolist(), 59]
                ours = model(ids[:, -1:], **carried(model, states)).logits[0, -1]
            theirs = model(ids[:, kept], position_ids=torch.tensor([stand(kept)])).logits[0, -1]
            own = model(ids).logits[0]
        assert stand(kept)[-1] < 59 - kept[0]
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(before.logits[0, :k], own[:k], atol=1e-9, rtol=1e-9)
        assert float((ours - own[-1]).abs().max()) > 1e-3
    for dtype in (torch.float32, torch.bfloat16):
        assert len(rotations(model.to(dtype), 500)) == 1  # equal to its own up to the dtype's rounding


@pytest.mark.parametrize("name", evicting())
def test_engines_agree_and_nothing_differs_before_the_first_eviction(name):
    model, ids = tiny("llama-gqa"), text(70)
    with bounded(model, policies()[name], 16) as states:
        scan = model(ids).logits
        kept = [layer.kept[0] for layer in states.layers]
    with bounded(model, policies()[name], 16, engine="recurrence") as states:
        torch.testing.assert_close(model(ids).logits, scan, atol=1e-9, rtol=0)
    assert all(torch.equal(a, layer.kept[0]) for a, layer in zip(kept, states.layers, strict=True))
    with twin.Wide(), bounded(model, policies()[name], 70):
        all_there = model(ids).logits
    with twin.Wide(), torch.no_grad():
        torch.testing.assert_close(all_there, model(ids).logits, atol=1e-9, rtol=0)
    with mb.bounded(model, policies()[name], 16, verify=False):
        same = float((model(ids).logits - scan).abs().max()) < 1e-4
    assert same == (name == "window")  # whose states never have a gap


def test_several_kinds_of_layers_share_tables_where_they_turn_alike():
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    model = made("Gemma3", {"layer_types": types, "sliding_window": 512, "head_dim": 16}, layers=3)
    found = rotations(model, 100)
    assert found[0] is found[2] and found[0] is not found[1]
    ids = text(50)
    with bounded(model, mb.Tova(), [8, 50, 12]):
        scan = model(ids).logits
    with bounded(model, mb.Tova(), [8, 50, 12], engine="recurrence"):
        torch.testing.assert_close(model(ids).logits, scan, atol=1e-9, rtol=0)


@pytest.mark.parametrize("prefill", ["stepwise", "oneshot"])
@pytest.mark.parametrize("name", ["tova", "h2o", "window4"])
def test_generate_writes_what_the_recurrence_does(name, prefill):
    """A padded batch; each row as it is alone; the prompt in a call of its own."""
    model, ids = tiny("llama-gqa"), text(40, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :13] = 0
    options = {"max_new_tokens": 25, "do_sample": False, "eos_token_id": None}
    with bounded(model, policies()[name], 12, prefill=prefill) as states:
        both = model.generate(ids, attention_mask=mask, **options)
        kept = states.layers[-1].kept[1]
    with bounded(model, policies()[name], 12, prefill=prefill, engine="recurrence") as states:
        assert torch.equal(model.generate(ids, attention_mask=mask, **options), both)
        alone = model.generate(ids[1:, 13:], **options)
    assert torch.equal(alone[0, 27:], both[1, 40:]) and torch.equal(states.layers[-1].kept[0], kept)


def test_oneshot_reads_at_the_texts_own_positions_and_closes_up_from_the_cut_on():
    model, ids, k = made("Llama", {}), text(60), 12
    with twin.Wide(), torch.no_grad():
        with mb.bounded(model, mb.Tova(), k, prefill="oneshot", verify=False) as states:
            original, cut = model(ids[:, :-1]).logits, states.layers[0].kept[0]
        with bounded(model, mb.Tova(), k, prefill="oneshot") as states:
            torch.testing.assert_close(model(ids[:, :-1]).logits, original, atol=1e-9, rtol=0)
            kept = states.layers[0].kept[0]
            ours = model(ids[:, -1:], **carried(model, states)).logits[0, -1]
        assert torch.equal(kept, cut)
        now = [*kept[0].tolist(), 59]
        theirs = model(ids[:, now], position_ids=torch.tensor([stand(now)])).logits[0, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_joined_states_go_on_as_each_alone():
    from msrnn_bench.multistate.cache import MultiState

    model, long, short, more = tiny("llama-gqa"), text(50), text(20, seed=1), text(5, rows=2, seed=2)
    with bounded(model, mb.Tova(), 12) as states:
        parts = []
        for ids in (long, short):
            model(ids)
            parts.append(states.current)
        joined = MultiState.join([part.fork() for part in parts])
        alone = [model(more[i : i + 1], **carried(model, part)).logits[0] for i, part in enumerate(parts)]
        both = model(more, **carried(model, joined)).logits
    torch.testing.assert_close(both, torch.stack(alone), atol=1e-9, rtol=0)


def test_a_policy_of_ones_own_sees_the_models_keys():
    """In the model's order of dimensions, before rotation."""
    seen = []

    class Looks(Own):
        def score(self, **given):
            seen.append(given["keys"][0, :, -1])
            return super().score(**given)

    model = made("Glm", {"head_dim": 16})
    with bounded(model, Looks(), 8):
        model(text(20))
    unturned = []
    hook = model.model.layers[0].self_attn.k_proj.register_forward_hook(lambda *a: unturned.append(a[2]))
    with torch.no_grad():
        model(text(20))
    hook.remove()
    torch.testing.assert_close(torch.stack(seen), unturned[0][0].view(20, 2, 16))


LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 256,
    "rope_theta": 10_000.0, "factor": 2.0,
}  # fmt: skip
REFUSED = {
    "takes no position_ids": ("Bart", {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96}),
    "learned positions": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 1024}),
    "not by rotation alone": ("GPT2", {}),
    "longrope rotation has frequencies": ("Phi3", {"rope_parameters": LONGROPE}),
    "dynamic rotation has frequencies": ("Llama", {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}}),
    "layer 3 does not rotate": ("SmolLM3", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "norm behind the rotation": ("HunYuanDenseV1", {"head_dim": 16}),
    "scales its queries by their position": ("Ministral3", {"head_dim": 16, "rope_parameters": {
        **YARN, "rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1}}),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_with_the_reason(reason):
    kind, more = REFUSED[reason]
    model = tiny("gpt2") if kind == "GPT2" else made(kind, more, layers=more.get("num_hidden_layers", 2))
    with pytest.raises(mb.UsageError, match=reason) as told, bounded(model, mb.Tova(), 16):
        pass
    assert "use positions=original" in str(told.value) and "\n" not in str(told.value)
    with mb.bounded(model, mb.Full(), positions="compressed", verify=False):
        model(text(8))  # nobody leaves, so nothing is compressed


def test_a_rotation_that_is_not_the_models_is_not_taken():
    """A rotary module whose layers turn by something else: seen, and refused."""
    model = made("Llama", {})
    attention = model.model.layers[0].self_attn
    forward = attention.forward

    def faster(hidden_states, position_embeddings=None, **options):
        cos, sin = position_embeddings
        angle = 2 * torch.atan2(sin, cos)
        return forward(hidden_states, position_embeddings=(angle.cos(), angle.sin()), **options)

    attention.forward = faster
    with pytest.raises(mb.UsageError, match="no rotary module"), bounded(model, mb.Tova(), 16):
        pass


# --- the command line


def test_a_cell_beyond_the_models_positions(tmp_path):
    """Read under compressed positions, refused under original ones; `full` is one cell whatever the positions; a state that
    stands farther off than the model has positions is an error and no result."""
    import pandas as pd
    from conftest import HELD_OUT, TINY_MODEL

    from msrnn_bench.cli.main import main

    def run(*more):
        return main([
            "run", "model=local", f"model.path={TINY_MODEL}", "dataset=text", f"dataset.path={HELD_OUT}", "documents=1",
            f"results_dir={tmp_path}", "tokens=640", "context=640", "task.chunk=100", *more,
        ])  # fmt: skip

    def cell():
        return {path.name for path in tmp_path.rglob("*.csv")}

    assert run("policy=tova", "cache=32") == 2, "512 positions"
    assert run("policy=tova", "cache=32", "positions=compressed") == 0
    rows = pd.concat([pd.read_csv(path) for path in tmp_path.rglob("*.csv")])
    assert set(rows["positions"]) == {"compressed"} and set(rows["evictions"]) == {608}
    assert run("policy=window4", "cache=600", "positions=compressed") == 2
    before = cell()
    for positions in ("original", "compressed"):
        assert run("policy=full", "context=128", "tokens=128", f"positions={positions}") == 0
    assert len(cell() - before) == 1

"""benchmarks/cost_model.py: its launches and operations are the code's, its bytes those that a hand counts, its page is true."""

import importlib
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import msrnn_bench as mb
from benchmarks import cost_model as model
from benchmarks import cost_tables, cost_waits
from benchmarks.cost_model import Code, Kernel
from benchmarks.cost_sizes import H100, Shape, shape
from msrnn_bench.multistate import gpu, products
from msrnn_bench.multistate.naming import carried

scanning = importlib.import_module("msrnn_bench.multistate.scan")
SMALL = Shape("small", 1, heads=2, groups=1, size=4, hidden=8, inner=16, vocabulary=10)
# No kernel of their own: places without contents; views that torch does not call so, a number read.
EMPTY = {"empty", "new_empty", "empty_like"}
NONE = {*EMPTY, "lift_fresh", "_unsafe_view", "_local_scalar_dense", "detach", "alias"}


class Launches(TorchDispatchMode):
    """Counts what would launch a kernel on a GPU, or what is empty."""

    def __init__(self, empty=False):
        super().__init__()
        self.found, self.empty = Counter(), empty

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name in EMPTY if self.empty else not func.is_view and name not in NONE:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def cuda(monkeypatch):
    """The GPU's branch on a CPU, with kernels that count and move nobody, which changes no shape."""
    launched = Counter()

    class Nothing:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.update([self.name])

    def narrow(out, left, right, scale):  # one launch where the products are; a CPU's widens first
        torch.baddbmm(left.new_empty(out.shape), left, right, beta=0, alpha=scale)

    kernels = SimpleNamespace(**{name: Nothing(name) for name in ("rows", "walk", "finish", "attend", "move")})
    monkeypatch.setattr(gpu, "_kernels", lambda: kernels)
    monkeypatch.setattr(gpu, "usable", lambda device, rule: True)
    monkeypatch.setattr(gpu, "_name", lambda dtype: None)
    monkeypatch.setattr(products, "_narrow_products", narrow)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # a CPU's products are cut by threads
    return launched


def built(gated: bool, layers: int):
    torch.manual_seed(0)
    if gated:
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=64, max_position_embeddings=512,
        )  # fmt: skip
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()
    config = GPT2Config(n_embd=32, n_layer=layers, n_head=4, vocab_size=64, n_positions=512, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).to(torch.bfloat16).eval()


@torch.no_grad()
def a_layer(gated, call, empty=False):
    """Launches of one layer, or empty tensors: of two less those of one, once what is made once is there."""
    counts = []
    call(built(gated, 1))()
    for layers in (1, 2):
        made = built(gated, layers)
        work = call(made)
        with Launches(empty) as mode:
            work()
        counts.append(mode.found.total())
    return counts[1] - counts[0]


IDS = torch.zeros(2, 500, dtype=torch.long)


@pytest.mark.parametrize("gated", [True, False])
def test_the_librarys_launches(gated):
    def reading(made):
        return lambda: made(IDS[:, :32], use_cache=False)

    def token(made):
        cache = DynamicCache(config=made.config)
        made(IDS[:, :32], **carried(made, cache))
        return lambda: made(IDS[:, :1], **carried(made, cache))

    assert (a_layer(gated, reading), a_layer(gated, token)) == model.LIBRARY[gated]


def ours(tokens: int, engine: str = "scan"):
    """A call of so many tokens on full states, with room for a block."""
    before = 16 + model.BLOCK

    def call(made):
        states = mb.bounded(made, mb.Tova(), 16, verify=False, engine=engine)
        with states:
            made(IDS[:, :before])

        def work():
            with states:
                made(IDS[:, before : before + tokens], **carried(made, states.current))

        return work

    return call


def test_our_launches(cuda):
    block, library = model.BLOCK, model.LIBRARY[True][0] - 1
    one, three = (a_layer(True, ours(n * block)) for n in (1, 3))
    assert cuda == {name: cuda["rows"] for name in ("rows", "walk", "finish", "move")} and len(cuda) == model.KERNELS
    assert three - one == 2 * model.A_BLOCK
    assert one == library + model.A_CALL + model.A_BLOCK
    few, many = (a_layer(True, ours(n * block), empty=True) for n in (1, 3))
    assert many - few == 2 * model.EMPTIES


def test_the_launches_of_a_token(cuda):
    library, call = model.LIBRARY[True][0] - 1, ours(1)(built(True, 2))
    cuda.clear()
    call()
    assert cuda == {name: 2 for name in ("attend", "walk", "move")} and len(cuda) == model.TOKEN_KERNELS
    assert a_layer(True, ours(1)) == library + model.A_TOKEN
    assert a_layer(True, ours(1), empty=True) == model.TOKEN_EMPTIES


def test_the_definitions_launches():
    assert a_layer(True, ours(1, "recurrence")) == model.LIBRARY[True][0] - 1 + model.RECURRENCE


@pytest.mark.parametrize("policy", [mb.Tova(), mb.H2O()])
def test_the_blocks_and_their_products_are_the_codes(cuda, policy, monkeypatch):
    steps = []

    def spied(name, real, q, k, v, rule, state, *rest):
        steps.append((name, q.shape[2], state.alive[0]))
        return real(q, k, v, rule, state, *rest)

    for name in ("_fill", "_evict"):
        monkeypatch.setattr(scanning, name, partial(spied, name, getattr(scanning, name)))
    m, tokens, k = Shape("x", 1, 4, 2, 8, 32, 64, 10), 500, 200
    q, kv = torch.randn(2, 4, tokens, 8), torch.randn(2, 2, tokens, 8)
    with FlopCounterMode(display=False) as counted:
        mb.scan(q.bfloat16(), kv.bfloat16(), kv.bfloat16(), policy=policy, state_size=k)
    code = Code(policy=policy.name)
    blocks = model.blocks(tokens, k, code)
    assert sum(often * n for _, often, n, _ in blocks) == tokens
    told = [(name, n, old) for name, often, n, old in blocks for _ in range(often)]
    assert [(name.removeprefix("_").replace("fill", "remember" if code.policy == "h2o" else "fill"), n, old)
            for name, n, old in steps] == told  # fmt: skip
    kernels = [x for name, n, old in told if name != "fill" for x in getattr(model, name)(m, 2, n, old, code)]
    products = sum(kernel.operations for kernel in kernels if kernel.part == "products")
    flops = counted.get_flop_counts()["Global"]
    assert sum(v for op, v in flops.items() if "baddbmm" in str(op)) == products


def test_a_block_by_hand():
    """B=1, H=2, G=1, D=4, three queries behind five states: 8 slots, rows of 6, 7 and 8 states, 21 a head."""
    found = model.evict(SMALL, batch=1, n=3, old=5, code=Code(lone=0.75))
    by_hand = [
        ("copies", 2 * 3 * 4 * (2 + 2) + 3 * 20, 0),  # keys and values in; positions, scores
        ("copies", 24 * (2 + 2), 0),  # queries by group
        ("products", 2 * (24 + 32) + 4 * 48, 2 * 2 * 3 * 8 * 4),  # queries, keys, logits
        ("softmax", 2 * 3 * 3 * 8, 0),  # the future
        ("softmax", 3 * 4 * 42 + 4 * 21 + 2 * 3 * 12, 2 * 42),  # three times all logits; means; maxima and sums
        ("walk", (3 * 8 * 21 + 2 * 3 * 16 + 2 * 3 * 4 + 3 * 4) + (3 * 4 * 21 + 2 * 2 * 32 * 2 / 4 + 2 * 8 * 4), 0),
        ("softmax", 4 * 42 + (4 + 2) * 48, 42),
        ("products", 2 * (48 + 32 + 24), 2 * 2 * 3 * 8 * 4),
        ("copies", 24 * (2 + 2), 0),
        ("copies", 2 * 3 * 4 * (2 + 2), 0),
    ]
    assert [(x.part, x.bytes, x.operations) for x in found] == by_hand
    assert [(x.steps, x.programs) for x in found if x.steps] == [(3, 1)]
    walk = next(x for x in model.evict(SMALL, 1, 3, 5, Code(certificate=False)) if x.part == "walk")
    assert walk.bytes == (8 * 21 + 2 * 3 * 16 + 2 * 3 * 4 + 3 * 4) + 4 * 42  # positions once, then all logits
    assert sum(x.launches for x in found) == model.A_BLOCK + model.CLOCK + model.KERNELS


def test_a_token_by_hand():
    """B=3, H=2, G=1, D=4, five states and the new one."""
    attend, walk, left, move = model.token(SMALL, batch=3, old=5, code=Code())
    entering = 3 * 4 * (2 + 2) * 2  # key and value, read and written
    assert attend.bytes == 3 * 6 * 4 * (2 + 2) + entering + 3 * 2 * 4 * (2 + 2) + 4 * 3 * 2 * 6  # states; query, output; logits
    assert attend.operations == 4 * 3 * 2 * 6 * 4 and attend.programs == 3
    assert (attend.far, attend.near) == (3 + 5, 1 + 5)  # one tile, two heads
    assert walk.bytes == 4 * 3 * 2 * 6 + 8 * 3 * 6 and (walk.steps, walk.programs, walk.near) == (1, 3, 2 + 1 + 3 - 1)
    assert left.bytes == 3 * (8 + 8) and move.bytes == entering
    launched = sum(x.launches for x in (attend, walk, left, move))
    assert launched == model.A_TOKEN + model.TOKEN_KERNELS


def test_waits_by_hand():
    """Two tiles; of no, one and two of the dead: none, one wait, one."""
    step = 1 + 2 / 3
    assert cost_waits.walk(32, 1100, 3, certified=True, memory=False, lone=1.0) == pytest.approx(step + 2 * 6)
    assert cost_waits.walk(32, 1100, 3, certified=True, memory=False, lone=0.5) == pytest.approx(step + 2 * (6 + 8 * 5 / 2))
    assert cost_waits.walk(8, 1100, 3, certified=False, memory=True, lone=0.0) == pytest.approx(step + 2 * (1 + 2 * 6 + 1))
    assert cost_waits.walk(1, 500, 3, certified=False, memory=True, lone=0.0) == pytest.approx(step + 1 + 5 + 1)
    assert cost_waits.attend(4, 65) == (3 + 3 * 5, 3 * (1 + 3 * 5))


def test_the_rest_of_a_layer_by_hand():
    products, small = model.outside(SMALL, tokens=10)
    assert SMALL.weights == 8 * 4 * (2 + 1 + 1 + 2) + 3 * 8 * 16
    assert products.operations == 2 * 10 * SMALL.weights and products.launches + small.launches + 1 == model.LIBRARY[True][0]
    assert small.bytes == 10 * (84 * 8 + 20 * 3 * 4 + 10 * 16)
    attention = model.sdpa(SMALL, batch=3, queries=2, states=5)  # 4 and 5 states
    assert attention.operations == 3 * 2 * 9 * 4 * 2 * 2 and attention.bytes == 2 * 3 * 4 * (2 * 2 * 2 + 2 * 5)


def test_a_kernel_takes_the_longest_of_its_needs():
    gpu = H100(hbm=100.0, l2=1000.0, cache=50, stream=1.0, bf16=10.0, matrix=0.5, shortest=1e-3, step=0.25)
    assert Kernel("x", bytes=200).seconds(gpu) == 2.0
    assert Kernel("x", bytes=200, held=50).seconds(gpu) == 0.2
    assert Kernel("x", bytes=200, held=50, programs=2).seconds(replace(gpu, sm=10.0)) == 10.0
    assert Kernel("x", bytes=200, operations=20, rate="bf16").seconds(gpu) == 4.0
    assert Kernel("x", bytes=200, steps=16).seconds(gpu) == 4.0
    assert Kernel("x", launches=3).seconds(gpu) == 3e-3
    assert Kernel("x", far=4, near=2).seconds(replace(gpu, miss=3.0, hit=0.5)) == 13.0


def test_launches_count_where_the_host_is_slower():
    gpu, layer = H100(), [(2, Kernel("model", bytes=3.015e12))]  # a second each
    idle = model.total(layer, SMALL, gpu, host=5.0, last=Kernel("model"))
    busy = model.total(layer, SMALL, gpu, host=1.0, last=Kernel("model"))
    assert idle.parts["launches"] == pytest.approx(3.0) and busy.parts["launches"] == 0


def test_the_shapes_are_the_files():
    llama, gpt2 = shape("llama3_8b"), shape("gpt2")
    assert (llama.layers, llama.heads, llama.groups, llama.size, llama.inner) == (32, 32, 8, 128, 14336) and llama.gated
    assert (gpt2.layers, gpt2.heads, gpt2.groups, gpt2.size, gpt2.inner) == (12, 12, 12, 64, 3072) and not gpt2.gated
    assert llama.layers * llama.weights + 2 * llama.hidden * llama.vocabulary == pytest.approx(8_030_261_248, rel=1e-3)


def test_the_page_has_what_the_model_says():
    page, m, gpu = (ROOT / "docs/speed.md").read_text(), shape("llama2_7b"), H100()
    for row in cost_tables.chosen():
        assert row in page, f"docs/speed.md lacks what python benchmarks/cost_model.py --page prints: {row}"
    section = " ".join(page[page.index("## The GPU path") :].split())
    loop, plain = model.token_loop(m, 4, 4096, 512, gpu), model.plain(m, 4, 4096, gpu).seconds
    assert f"take {loop / model.bounded(m, 4, 4096, 512, gpu).seconds:.0f} times as long" in section
    assert f"is {loop / plain:.0f} times as fast" in section
    ours, graph = (model.bounded_token(m, 4, 512, gpu, Code(graph=graph)).seconds for graph in (False, True))
    dear = model.bounded_token(m, 4, 512, replace(gpu, triton=2 * gpu.triton)).seconds
    near, far = (model.plain_token(m, 4, cache, gpu).seconds for cache in (512, 4096))
    assert f"at {near / ours:.2f} of the speed" in section and f"{far / ours:.1f} times as fast as with one of 4,096" in section
    assert f"at {near / dear:.2f} where a Triton launch costs twice" in section
    assert f"graph (`graph=true`) would go at {near / graph:.2f}" in section
    assert f"write {cost_tables.table1(gpu):.1f} times the tokens" in section
    lone, some, every = (cost_tables.waits(m, 512, lone=share) for share in cost_tables.LONE)
    assert f"{lone:.0f} loads" in section and f"{every:.0f} where it is read" in section
    assert f"nine in ten unread {some:.0f}, by the latency of L2 {1e6 * some * gpu.hit:.1f} microseconds" in section
    steps = (some * gpu.hit, 1e-7, 1.7e-6, 2e-6)
    found = [[model.bounded(m, batch, tokens, 512, replace(gpu, step=step)).seconds / model.plain(m, batch, tokens, gpu).seconds
              for step in steps] for batch, tokens, _ in cost_tables.READING]  # fmt: skip
    assert f"would be {found[0][0]:.2f}, {found[1][0]:.2f} and {found[2][0]:.2f}" in section
    met = [[ratio <= most for ratio in ratios[1:]] for ratios, (*_, most) in zip(found, cost_tables.READING, strict=True)]
    assert met == [[True, True, False], [False, False, False], [True, True, True]]
    assert "the first nearly, which wants a step of 1.7; the second should be missed at any" in section


def test_every_table_can_be_printed(capsys):
    cost_tables.targets(H100())
    cost_tables.walk(H100())
    told = capsys.readouterr().out
    assert "missed" in told and "unread" in told
    assert len(cost_tables.forward_table(H100(), (4096,), (512, 4096), (4,))) == 2 + 3 + 3
    assert cost_tables.token_table(H100())[2].startswith("| gpt2 | 1 | 64 |")

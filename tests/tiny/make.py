"""Make the tests' own tiny language model from text that Python itself brings: `python tests/tiny/make.py`.

The text is every function and method of the standard library that this Python carries, one by one in the order of its
module; `HELD_OUT` modules are not trained on. A 512-token byte-level BPE and a Llama of some 260 thousand parameters
(8 query heads on 4 KV heads, RoPE, 512 positions) learn it from scratch on a CPU; README.md says how long it took. The
folder `model/` and the file `heldout.txt` are written next to this script, and then it is proved, in numbers printed
last, that the model is good enough for tests of eviction: full attention predicts the held-out text better than every
policy at 16 states, the policies differ from each other, and so do greedy texts. `--check` only proves.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import math
import platform
import random
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import msrnn_bench as mb

HERE = Path(__file__).parent
SEED = 20260
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "site-packages", "dist-packages"}
HELD_OUT = ("textwrap.py", "shlex.py", "queue.py", "sched.py", "string.py", "cmd.py", "gettext.py", "trace.py")
HELD_OUT_BYTES = 5_000  # of every such module
SINGLE = 0.7  # of the documents are one function; the others are 2 to 6 that follow each other
STAGES = ((128, 500), (256, 200), (512, 600))  # (row length, optimizer steps)
STEP_TOKENS, POOL_TOKENS = 4096, 1 << 18
PEAK_MUON, PEAK_ADAMW, FLOOR, WARMUP = 0.03, 6e-3, 0.02, 100
PROMPT = "def __repr__(self):"
POLICIES = (
    mb.Window(), mb.Window(first=1), mb.Window(first=4), mb.H2O(), mb.H2O(per="layer"), mb.Tova(), mb.Tova(first=4),
    mb.Tova(per="head"), mb.A2SF(), mb.Random(),
)  # fmt: skip


def functions() -> dict[str, list[str]]:
    """Module file -> the sources of its functions and methods, dedented, in order; modules that do not parse are left."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[str]] = {}
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if SKIPPED & set(module.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        lines, texts = source.splitlines(), []
        queue: list[ast.AST] = list(tree.body)
        while queue:
            node = queue.pop(0)
            if isinstance(node, ast.ClassDef):
                queue[:0] = node.body
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
                text = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno])) + "\n"
                if 60 <= len(text) <= 4000:
                    texts.append(text)
        if texts:
            found[module.as_posix()] = texts
    return found


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 that adds <s> itself, as Llama's tokenizers do."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))  # fmt: skip
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def rows(encoded: list[list[list[int]]], newline: list[int], length: int, draw: random.Random) -> Iterator[list[int]]:
    """Rows of `length` tokens without end: <s>, then a piece of the stream <s> document </s> <s> document </s> ..."""
    stream: list[int] = []
    while True:
        for module in draw.sample(encoded, len(encoded)):
            at = 0
            while at < len(module):
                count = 1 if draw.random() < SINGLE else draw.randint(2, 6)
                group = module[at : at + count]
                at += count
                stream += [1, *group[0], *(token for text in group[1:] for token in newline + text), 2]
            while len(stream) >= length - 1:
                yield [1, *stream[: length - 1]]
                del stream[: length - 1]


def train(encoded: list[list[list[int]]], newline: list[int]) -> tuple[LlamaForCausalLM, float]:
    """The model, and its mean training loss over the last 100 steps."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    optimizers = (
        (torch.optim.Muon(inner, lr=1.0, weight_decay=0.01, momentum=0.95), PEAK_MUON),
        (torch.optim.AdamW(others, lr=1.0, weight_decay=0.01, betas=(0.9, 0.98)), PEAK_ADAMW),
    )
    total, step, losses, began = sum(steps for _, steps in STAGES), 0, [], time.time()
    draw = random.Random(SEED)
    for length, steps in STAGES:
        source = rows(encoded, newline, length, draw)
        pool: list[list[int]] = []
        for _ in range(steps):
            while len(pool) * length < POOL_TOKENS:  # rows leave in random order, so that a step sees many modules
                pool.append(next(source))
            batch = []
            for _ in range(STEP_TOKENS // length):
                at = draw.randrange(len(pool))
                batch.append(pool[at])
                pool[at] = next(source)
            ids = torch.tensor(batch)
            done = max(0.0, (step - WARMUP) / (total - WARMUP))
            share = min((step + 1) / WARMUP, FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)
            loss = cross_entropy(model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, peak in optimizers:
                optimizer.param_groups[0]["lr"] = peak * share
                optimizer.step()
            losses.append(loss.item())
            step += 1
            if step % 100 == 0:
                mean = sum(losses[-100:]) / 100
                print(f"step {step}/{total} rows of {length}: loss {mean:.3f}, {time.time() - began:.0f} s", flush=True)
    return model.eval(), sum(losses[-100:]) / 100


def held_out(found: dict[str, list[str]]) -> str:
    """The held-out text: the first functions of every held-out module, an empty line between them."""
    kept = []
    for module in HELD_OUT:
        room = HELD_OUT_BYTES
        for text in found[module]:
            room -= len(text.encode()) + 1
            if room < 0:
                break
            kept.append(text)
    return "\n".join(kept)


def losses_by_policy(model: LlamaForCausalLM, chunks: torch.Tensor, size: int) -> dict[str, float]:
    """Policy -> mean loss on `chunks` at `size` states; "full" is the model as it is."""
    found = {}
    with torch.no_grad():
        for policy in (None, *POLICIES):
            with mb.bounded(model, policy, state_size=size) if policy else nullcontext():
                logits = model(chunks).logits
            found[policy.name if policy else "full"] = cross_entropy(logits[:, :-1].flatten(0, 1), chunks[:, 1:].flatten()).item()
    return found


def write_on(model: LlamaForCausalLM, prompt: torch.Tensor, size: int | None, **how: object) -> list[int]:
    """What the model writes after `prompt`, at most 200 tokens, with TOVA at `size` states or in full."""
    with mb.bounded(model, mb.Tova(), state_size=size) if size else nullcontext():
        text = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, pad_token_id=0, **how)
    return text[0, prompt.shape[1] :].tolist()


def check() -> None:
    """Prove the three properties on the folder as written, in numbers; SystemExit where one fails."""
    tokenizer = AutoTokenizer.from_pretrained(HERE / "model")
    model = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32).eval()
    text = (HERE / "heldout.txt").read_text(encoding="utf-8")
    for sample in (text, "Once upon a time, there was a cat.\n  It said: \u201ccaf\u00e9\u201d \U0001f600.", "", "\tif x:\n\n"):
        ids = tokenizer(sample)["input_ids"]
        bare = tokenizer(sample, add_special_tokens=False)["input_ids"]
        if ids != [1, *bare] or tokenizer.decode(ids, skip_special_tokens=True) != sample:
            raise SystemExit(f"the tokenizer changes {sample[:40]!r}")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    chunks = torch.tensor([[1, *ids[at : at + 511]] for at in range(0, len(ids) - 510, 511)])
    tables = {size: losses_by_policy(model, chunks, size) for size in (16, 64)}
    print(f"\n{len(chunks)} chunks of 512 held-out tokens, perplexity\n\n| policy | k=16 | k=64 |\n|---|---|---|")
    for name in tables[16]:
        print(f"| {name} | {math.exp(tables[16][name]):.3f} | {math.exp(tables[64][name]):.3f} |")
    bounded = sorted(loss for name, loss in tables[16].items() if name != "full")
    if tables[16]["full"] >= bounded[0] or min(b - a for a, b in pairwise(bounded)) < 1e-4:
        raise SystemExit("full attention is not better than every policy at k=16, or two policies agree")
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    greedy = {size: write_on(model, prompt, size, do_sample=False) for size in (16, 64, None)}
    for size, tokens in greedy.items():
        print(f"\n--- {PROMPT!r}, greedy, TOVA k={size or 'full'}, {len(tokens)} tokens\n{tokenizer.decode(tokens)}")
    if len({tuple(tokens) for tokens in greedy.values()}) < 3:
        raise SystemExit("greedy texts agree between k=16, k=64 and full")
    heads = list(dict.fromkeys(line for line in text.splitlines() if line.startswith("def ") and line.endswith(":")))[:10]
    torch.manual_seed(SEED)
    for how in ({"do_sample": False}, {"do_sample": True, "temperature": 1.0, "top_k": 0}):
        for size in (16, 64, None):
            ended = [2 in write_on(model, tokenizer(head, return_tensors="pt")["input_ids"], size, **how) for head in heads]
            print(f"{how}: k={size or 'full'}: {sum(ended)} of {len(ended)} texts end by </s> within 200 tokens", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only prove the folder that is there")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.check:
        began = time.time()
        torch.manual_seed(SEED)
        found = functions()
        modules = [texts for module, texts in found.items() if module not in HELD_OUT]
        everything = [text for texts in modules for text in texts]
        tokenizer = train_tokenizer(everything)
        encoded = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] for texts in modules]
        joined = "\n".join(everything).encode()
        print(f"Python {platform.python_version()}: {len(everything)} functions of {len(modules)} modules, {len(joined)} bytes")
        print(f"sha256 {hashlib.sha256(joined).hexdigest()}, {sum(len(t) for m in encoded for t in m)} tokens", flush=True)
        (HERE / "heldout.txt").write_text(held_out(found), encoding="utf-8")
        model, loss = train(encoded, tokenizer("\n", add_special_tokens=False)["input_ids"])
        model.save_pretrained(HERE / "model")
        tokenizer.save_pretrained(HERE / "model")
        (HERE / "model" / "model.safetensors").chmod(0o644)
        print(f"{model.num_parameters()} parameters, training loss {loss:.3f}, {time.time() - began:.0f} s in all")
    check()


if __name__ == "__main__":
    main()

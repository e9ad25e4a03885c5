"""Compressed positions on tests/tiny, computed once by a loop that shares nothing with the package: `compressed_tiny.npz`.

    python tests/golden/compressed_tiny.py          # writes the file again, in a few seconds

numpy and float64 alone: a Llama written out from its configuration and its tensors, one token at a time. Of every layer
it keeps the keys *before* rotation. At each step the newest state joins, places are given to all states attended to, keys
and query are rotated there, the output is computed, and if more than k states are held one leaves.

Places (the paper, 2401.06104, the 70K experiment): the gap g between the original positions of neighbouring states stays
as it is up to 10 and is ceil(10 + ln ln (g - 10 + e)) beyond, and the gaps are cumulated. The query stands where the
newest state stands. Where the first state stands cannot matter, for a rotation knows differences alone: here at 0.

Policies: `tova` drops the state with the lowest attention from the current query, averaged over all query heads (of equals
the oldest); `window4` the oldest but for the first four.

The same loop was held against numbers of another independent float64 loop, on another pretrained Llama of this shape (300
tokens, both policies, 16 and 64 states): logits equal to 1e-6 (they are float32 there) and the last layer's kept positions
equal. With the query at its true position the logits differ by 17, with gaps that are not rounded up by 1.6, at original
positions by 5, so these choices are settled; with the first state at its original position they are the same to 1e-12.
`tests/test_compressed_golden.py` repeats that where the numbers are at hand.

In the file, per policy and k (`..._tova_16`): `nll_` [T] float64, the loss of each token given those before it (the first
is nan); `logits_` [T / 20, vocabulary] float32, at the positions `steps`; `death_` [L, T] int16, the step after which the
token's state left, -1 where it is held at the end; `margin_` float64, how much more than the lowest weight the second
lowest was, at the closest decision, relative to it: a loop that computes less exactly than that may drop another state.
`ids` [T] are a mark of beginning and the held-out text behind its first 4,000 tokens, where no decision is closer than 4e-5
(behind the first 0 one is at 7e-7); T = 600, more than the model's 512 positions.
"""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

HERE = Path(__file__).parent
TINY = HERE.parent / "tiny"
SKIPPED, LENGTH, EVERY = 4000, 600, 20
CASES = [(policy, k) for policy in ("tova", "window4") for k in (16, 64)]


def places(positions):
    """Original positions, ascending, to the places at which they are rotated."""
    gaps = np.diff(positions, prepend=positions[0])
    return np.cumsum([g if g <= 10 else math.ceil(10 + math.log(math.log(g - 10 + math.e))) for g in gaps.tolist()])


def rotated(x, place, theta):
    """x [heads, states, D] at place [states]: element i is paired with element i + D/2."""
    half = x.shape[-1] // 2
    angle = np.asarray(place, dtype=np.float64)[:, None] * theta ** (-np.arange(half) / half)
    cos, sin, a, b = np.cos(angle), np.sin(angle), x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def read(folder, ids, policy, k, place=places):
    """Logits [T, vocabulary], death times [L, T] and the closest decision's margin of a Llama folder on ids [T]."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: w.astype(np.float64) for name, w in load_file(folder / "model.safetensors").items()}
    heads, groups, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    theta, tiny = config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]
    layers = range(config["num_hidden_layers"])
    embeddings = weights["model.embed_tokens.weight"]
    head = embeddings if config["tie_word_embeddings"] else weights["lm_head.weight"]

    def norm(x, name):
        return x / np.sqrt((x * x).mean() + tiny) * weights[f"{name}.weight"]

    keys = [np.zeros((groups, 0, size)) for _ in layers]
    values = [np.zeros((groups, 0, size)) for _ in layers]
    held = [[] for _ in layers]
    death, margin, logits = np.full((len(layers), len(ids)), -1), math.inf, []
    for step, token in enumerate(ids):
        x = embeddings[token]
        for layer in layers:
            name = f"model.layers.{layer}"
            project = {p: weights[f"{name}.self_attn.{p}_proj.weight"] for p in "qkvo"}
            y = norm(x, f"{name}.input_layernorm")
            q = (project["q"] @ y).reshape(heads, 1, size)
            keys[layer] = np.concatenate([keys[layer], (project["k"] @ y).reshape(groups, 1, size)], axis=1)
            values[layer] = np.concatenate([values[layer], (project["v"] @ y).reshape(groups, 1, size)], axis=1)
            held[layer].append(step)
            where = place(np.array(held[layer]))
            shared = np.repeat(rotated(keys[layer], where, theta), heads // groups, axis=0)
            weight = softmax((rotated(q, where[-1:], theta) @ shared.swapaxes(1, 2))[:, 0] / math.sqrt(size))  # [heads, states]
            out = np.einsum("hs,hsd->hd", weight, np.repeat(values[layer], heads // groups, axis=0))
            if len(held[layer]) > k:
                leaving = 4
                if policy == "tova":
                    mean = weight.mean(0)
                    leaving = int(mean.argmin())  # of equals the first, which is the oldest
                    margin = min(margin, np.partition(mean, 1)[1] / mean[leaving] - 1)
                death[layer, held[layer].pop(leaving)] = step
                keys[layer] = np.delete(keys[layer], leaving, axis=1)
                values[layer] = np.delete(values[layer], leaving, axis=1)
            x = x + project["o"] @ out.reshape(-1)
            y = norm(x, f"{name}.post_attention_layernorm")
            gate, up, down = (weights[f"{name}.mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
            gated = gate @ y
            x = x + down @ (gated / (1 + np.exp(-gated)) * (up @ y))
        logits.append(head @ norm(x, "model.norm"))
    return np.array(logits), death, margin


def losses(logits, ids):
    """Of each token given those before it, in nats; the first has none."""
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.concatenate([[math.nan], -logs[np.arange(len(ids) - 1), ids[1:]]])


def text():
    """LENGTH ids: the mark of beginning, then the held-out text from that token on."""
    tokenizer = Tokenizer.from_file(str(TINY / "model/tokenizer.json"))
    ids = tokenizer.encode((TINY / "heldout.txt").read_text(encoding="utf-8"), add_special_tokens=False).ids
    return np.array([1, *ids[SKIPPED : SKIPPED + LENGTH - 1]])


def main():
    ids = text()
    arrays = {"ids": ids.astype(np.int16), "steps": np.arange(EVERY - 1, LENGTH, EVERY, dtype=np.int16)}
    for policy, k in CASES:
        logits, death, margin = read(TINY / "model", ids, policy, k)
        name = f"{policy}_{k}"
        arrays[f"nll_{name}"] = losses(logits, ids)
        arrays[f"logits_{name}"] = logits[arrays["steps"]].astype(np.float32)
        arrays[f"death_{name}"] = death.astype(np.int16)
        arrays[f"margin_{name}"] = np.float64(margin)
        print(name, "perplexity", math.exp(np.nanmean(arrays[f"nll_{name}"])), "margin", margin)
    np.savez_compressed(HERE / "compressed_tiny.npz", **arrays)


if __name__ == "__main__":
    main()

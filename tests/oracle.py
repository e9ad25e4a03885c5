"""A bounded multi-state RNN built from nothing of ours: the unmodified model, eager attention, one token a call, rows
deleted from the library's own cache by each policy's rule, written out again here from the paper."""

import inspect

import torch
from transformers import DynamicCache

MASK = (1 << 64) - 1


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def drawn(seed, document, layer, step, position):
    key = 0
    for part in (seed, document, layer):
        key = mix((key + (part + 1) * 0x9E3779B97F4A7C15) & MASK)
    key = mix((key + step * 0x9E3779B97F4A7C15) & MASK)
    return mix((key + position * 0xD1B54A32D192ED03) & MASK) >> 40


def bounded_logits(model, ids, policy, k):
    """Logits [T, vocabulary] and the positions kept after the last step, per layer and KV head."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return _walk(model, ids, policy, k)
    finally:
        model.set_attn_implementation(before)


class Seen(DynamicCache):
    """The library's cache, its rows deleted; models that take no positions count by it, so it says what was read."""

    read = 0

    def get_seq_length(self, layer_idx=0):
        return self.read

    def get_query_offset(self, layer_idx=0):
        return self.read


@torch.no_grad()
def _walk(model, ids, policy, k):
    cache, logits = Seen(), []
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    layers = model.config.get_text_config().num_hidden_layers
    positions, scores = [None] * layers, [None] * layers
    for t in range(ids.shape[1]):
        answer = model(ids[:, t : t + 1], use_cache=True, output_attentions=True, **{name: cache})
        cache.read += 1
        logits.append(answer.logits[0, 0])
        for layer in range(layers):
            keys, values = cache.layers[layer].keys, cache.layers[layer].values
            heads = keys.shape[1]
            row = answer.attentions[layer][0, :, 0].double()  # [H, S]
            grouped = row.view(heads, -1, row.shape[-1]).mean(1)  # [G, S]
            if positions[layer] is None:
                positions[layer] = [[] for _ in range(heads)]
                scores[layer] = [torch.zeros(0, dtype=torch.float64) for _ in range(heads)]
            dead = []
            for head in range(heads):
                where = positions[layer][head]
                where.append(t)
                attention = grouped[head] if policy.per == "head" else row.mean(0)
                memory = getattr(policy, "memory", 0.0) or 0.0
                old = torch.cat([scores[layer][head], torch.zeros(1, dtype=torch.float64)])
                score = memory * old + attention
                if type(policy).__name__ == "Random":
                    score = torch.tensor([float(drawn(policy.seed, 0, layer, t, p)) for p in where], dtype=torch.float64)
                scores[layer][head] = score
                dead.append(leaving(policy, where, score, t, k) if len(where) > k else None)
            if dead[0] is not None:
                stay = torch.ones(heads, keys.shape[2], dtype=torch.bool)
                for head, index in enumerate(dead):
                    stay[head, index] = False
                    del positions[layer][head][index]
                    scores[layer][head] = scores[layer][head][stay[head]]
                cache.layers[layer].keys = keys[0][stay].view(1, heads, k, -1)
                cache.layers[layer].values = values[0][stay].view(1, heads, k, -1)
    return torch.stack(logits), positions


def leaving(policy, where, score, now, k):
    """Index of the state that leaves."""
    if type(policy).__name__ == "Window":
        return policy.first  # the oldest behind the first ones; states are in order of age
    recent = k // 2 if policy.recent is None else policy.recent
    open_ = [i for i, p in enumerate(where) if p >= policy.first and p <= now - recent]
    return min(open_, key=lambda i: (float(score[i]), where[i]))

"""A model of random weights: an architecture alone, for what does not depend on training."""

from __future__ import annotations

from typing import Any


def drawn(config: Any, dtype: Any, seed: int, *, code: bool) -> Any:
    """Weights drawn in float32 on the CPU, then rounded: the same model on every device. Parameters only: a cast of
    the whole module would round the rotary frequencies too, which loading does not."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=code)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model

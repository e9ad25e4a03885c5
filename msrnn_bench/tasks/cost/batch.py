"""`task.batch=auto`: how many texts are read together. On CUDA as many as its memory allows, by arithmetic before the first is
read; elsewhere one, for a CPU gains nothing by more. Speed and memory, never the result."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from msrnn_bench.errors import Count
from msrnn_bench.job import Job
from msrnn_bench.multistate.rotation import piece_of
from msrnn_bench.policies import Baseline
from msrnn_bench.tasks.cost.memory import left, shown

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Batch = Count | Literal["auto"]
MOST = 16
SAFETY = 2  # what arithmetic does not know: buffers of products, the allocator's gaps


def planned(batch: Batch) -> int:
    """Rows for a plan, which cannot know a machine's memory: auto is at least one."""
    return 1 if batch == "auto" else batch


def chosen(batch: Batch, model: Any, job: Job, *, texts: int, chunk: int, beside: bool = False) -> int:
    """`batch`, or what auto is on this machine, said where it has a choice: for `texts` texts of `job.context` tokens, `chunk`
    tokens of each a pass; `beside`: the full model reads along.

    With shards it is 1, for machines of unlike memory must deal out the same parts."""
    if batch != "auto":
        return batch
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    if not devices or isinstance(job.policy, Baseline):  # whose pieces are a batch already
        return 1
    if job.share is not None:
        log.warning("task.batch=auto is 1 with shards, whose parts must be the same on every machine: give a number")
        return 1
    free = min(map(left, devices))
    held = job.context if job.cache is None else min(job.cache, job.context)
    tokens = job.streams * piece_of(model.config, job.context, min(chunk, job.context))  # under way at once
    fit = fitting(model.config, model.dtype, free, states=held, tokens=tokens, full=job.context if beside else 0)
    rows = job.notes["batch"] = min(fit, texts)
    log.warning("task.batch=auto is %d here: %d texts, %s free", rows, texts, shown(free))
    return rows


def fitting(config: Any, dtype: torch.dtype, free: int, *, states: int, tokens: int, full: int = 0) -> int:
    """How many rows fit `free` bytes, from 1 to MOST; 1 where the configuration does not tell. Of each row are counted its
    `states` in every layer and room for a block (and `full` states of the model that reads along), what a layer makes of the
    `tokens` of a pass, its attention over a block as large as the scan's, and logits of all `tokens`."""
    from msrnn_bench.multistate.footprint import exact_bytes
    from msrnn_bench.multistate.products import BLOCK

    text = config.get_text_config(decoder=True)
    slots, exact = max(states + BLOCK, full), max(4, dtype.itemsize)
    kept = exact_bytes(config, dtype, states + BLOCK + full)
    hidden, heads, vocabulary = (getattr(text, name, None) for name in ("hidden_size", "num_attention_heads", "vocab_size"))
    if not (kept and hidden and heads and vocabulary):
        return 1
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    layer = tokens * (8 * hidden + 3 * inner) * dtype.itemsize
    attention = heads * min(tokens, 8 * BLOCK) * slots * exact
    logits = tokens * vocabulary * exact * (2 if full else 1)
    return max(1, min(MOST, free // (SAFETY * (kept + layer + attention + logits))))

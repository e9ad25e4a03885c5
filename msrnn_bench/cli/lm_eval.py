"""`msrnn-bench lm-eval`: lm-eval's own command line, which then knows the model `msrnn`:

    msrnn-bench lm-eval run --model msrnn --model_args pretrained=smollm2,policy=tova,cache=512 --tasks NAME

lm-eval finds models in a table of its own and has no entry points, so a process must have imported this module before
it asks for the name; for `lm_eval.simple_evaluate(model="msrnn", ...)` that is one line. The model arguments are the
settings of `msrnn-bench run`, with `pretrained` (a model of ours, a folder or a hub repository) for `model`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval.api.registry import model_registry

from msrnn_bench.errors import UsageError
from msrnn_bench.job import Job, load
from msrnn_bench.results.cells import Row
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.compose import choices, compose_one
from msrnn_bench.runs.overrides import quoted
from msrnn_bench.tasks.lm_eval.model import BoundedLM

NAME = "msrnn"


class Requests:
    """The task of a job whose requests lm-eval will bring, whatever they are."""

    name = "lm_eval"
    template = None

    def settings(self) -> dict[str, Any]:
        return {}

    def check(self, job: Job) -> None:
        """lm-eval's requests are refused where they are read."""

    def rows(self, job: Job) -> Iterator[Row]:
        raise NotImplementedError("lm-eval writes its results itself")


class _Bar:
    """tqdm's, as everywhere in lm-eval; the unit is a token."""

    bar: Any = None

    def start(self, tokens: int) -> None:
        from tqdm import tqdm

        self.bar = self.bar or tqdm(unit=" tokens", desc="msrnn")
        self.bar.total = tokens

    def advance(self, tokens: int) -> None:
        self.bar.update(tokens)

    restored = advance


class Msrnn(BoundedLM):
    """`settings` are those of `msrnn-bench run`: policy, cache, context, dtype, engine, prefill, seed, `policy.first`, ...
    `device` is lm-eval's: its default, the first GPU, means the CPU where there is none."""

    def __init__(
        self, pretrained: str = "smollm2", batch_size: int | str = 1, max_batch_size: int | None = None,
        device: str | None = None, truncate: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UsageError(f"batch_size={batch_size} must be a whole number of 1 or more")
        place = "auto" if device in (None, "cuda", "cuda:0") else device
        given = [f"{key}={_quoted(value)}" for key, value in {**settings, "device": place}.items()]
        overrides = ["dataset=none", *_model(str(pretrained)), *given]
        config = compose_one(overrides)
        config.task = {"_target_": f"{__name__}.{Requests.__name__}"}
        job = prepare(config, overrides, _Bar(), {}).job
        super().__init__(load(job), job, batch_size=int(batch_size), truncate=bool(truncate))


def _model(pretrained: str) -> list[str]:
    """The overrides that name it: a configuration of ours, a folder, a GGUF file, or a repository of the hub."""
    if pretrained in choices("model"):
        return [f"model={pretrained}"]
    if Path(pretrained).expanduser().exists():
        kind = "gguf" if pretrained.endswith(".gguf") else "local"
        return [f"model={kind}", f"model.path={_quoted(pretrained)}"]
    if pretrained.count("/") != 1:
        raise UsageError(f"pretrained={pretrained} is no folder, no hub repository and none of: {', '.join(choices('model'))}")
    return ["model=smollm2_135m", f"model.repo={_quoted(pretrained)}", f"model.name={_quoted(pretrained.split('/')[1])}"]


def _quoted(value: Any) -> str:
    """A value in Hydra's grammar."""
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    return quoted(value)


def main(args: list[str]) -> int:
    """lm-eval's command line on `args`, which now knows the model."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["msrnn-bench lm-eval", *args]
    cli_evaluate()
    return 0


if NAME not in model_registry:
    model_registry.register(NAME)(Msrnn)

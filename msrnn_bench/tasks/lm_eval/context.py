"""What lm-eval runs within: quiet, seeded, off the network. Everything is put back at the end of its `with`."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """The hub's library and `datasets` look at local files alone; what they would else wait for fails at once."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def no_punkt() -> Iterator[None]:
    """RULER's module downloads NLTK's sentence model when it is imported, on the machine's first process, and waits a
    minute where there is no network; only its essay tasks ever use it."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        os.environ.pop("LOCAL_RANK") if before is None else os.environ.update(LOCAL_RANK=before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators that tasks draw from, seeded as lm-eval seeds them (for seed 0), and put back afterwards."""
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(1234 + seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1234 + seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval, its metrics and `datasets` without a word, unless --debug; tqdm's bars heed no setting after its import."""
    import tqdm.std

    if "--debug" in sys.argv:
        yield
        return
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate", "transformers")]
    before, bar = [logger.level for logger in loggers], tqdm.std.tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        bar(self, *args, **{**kwargs, "disable": True})

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    tqdm.std.tqdm.__init__ = silent
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.std.tqdm.__init__ = bar
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

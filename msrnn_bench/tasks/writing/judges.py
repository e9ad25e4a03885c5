"""Which of two stories is better: asked of an endpoint or of a model here, both ways round (the paper, Figure 6).

A judge is a callable `(request, first, second) -> "A" | "B" | "tie"` that raises `UnjudgedError` where it has no verdict: what
timed out or answered anything else is missing, never a tie. Knows neither policies nor how stories were written.
"""

from __future__ import annotations

import http.client
import inspect
import json
import os
import re
import string
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msrnn_bench.datasets.chunks import bos_ids
from msrnn_bench.errors import MachineError, UsageError, one_line
from msrnn_bench.models.sources import Loaded
from msrnn_bench.multistate.rotation import piece_of
from msrnn_bench.policies import Full

if TYPE_CHECKING:
    from torch import Tensor

URL, KEY = "MSRNN_JUDGE_URL", "MSRNN_JUDGE_KEY"
TRIES = 3  # of a request that timed out or that the endpoint was too busy for
PAUSE = 0.5  # seconds before the second try; twice that before the third
PIECE = 1024  # tokens a forward pass of a local judge; memory and speed, never the verdict
OUTCOMES = ("win", "tie", "loss")  # of the bounded model, against the full one

Judge = Callable[[str, str, str], str]


class UnjudgedError(Exception):
    """The judge gave no verdict; the message says why."""


def compare(judge: Judge, request: str, *, full: str, ours: str) -> dict[str, Any]:
    """The record of one pair. The bounded model's story wins only if preferred in both orders, loses likewise, else
    it is a tie; identical stories are not judged. `verdicts` are the judge's, full first and then full second."""
    record: dict[str, Any] = {"status": "ok", "outcome": None, "verdicts": [], "reason": None}
    if full == ours:
        return {**record, "status": "identical"}
    try:
        record["verdicts"].append(judge(request, full, ours))
        record["verdicts"].append(judge(request, ours, full))
    except UnjudgedError as error:
        return {**record, "status": "unjudged", "reason": str(error)}
    return {**record, "outcome": {("B", "A"): "win", ("A", "B"): "loss"}.get(tuple(record["verdicts"]), "tie")}


def verdict(answer: str) -> str:
    """A, B or tie where that is the whole answer, give or take punctuation and a word such as "Story" before it."""
    found = re.fullmatch(r"\W*(?:(?:answer|verdict|winner)\W+)?(?:(?:story\W+)?([ab])|(?:a\W+)?(tie))\W*", answer, re.I)
    if not found:
        raise UnjudgedError(f"answered {_short(answer)!r}, which is neither A nor B")
    return "tie" if found[2] else found[1].upper()


def _short(text: str) -> str:
    """A stranger's text in a line of our own."""
    return " ".join(text.split())[:200]


def check_judge_prompt(template: str) -> None:
    """Refuse a template that does not show both stories, or that names what there is not."""
    try:
        named = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UsageError(f"task.judge_prompt cannot be read ({error}); write a brace that is meant as one twice") from error
    if not {"first", "second"} <= named <= {"first", "second", "request"}:
        raise UsageError("task.judge_prompt must name {first} and {second}, the two stories; it may name {request}")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Any endpoint of OpenAI's chat completions, at MSRNN_JUDGE_URL (with or without /chat/completions) with the key
    MSRNN_JUDGE_KEY, if it wants one. `temperature` None is not sent; `timeout` in seconds of silence.

    Raises MachineError where the endpoint cannot be reached or refuses the caller: no pair would fare better."""

    url: str = field(repr=False)  # may hold a secret, as the key is one
    key: str | None = field(repr=False)
    model: str
    prompt: str
    temperature: float | None
    timeout: float

    def __call__(self, request: str, first: str, second: str) -> str:
        text = self.prompt.format(request=request, first=first, second=second)
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        answer = self._retried(json.dumps(body).encode())
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise UnjudgedError("answered what is no chat completion") from None
        return verdict(content if isinstance(content, str) else "")

    def _retried(self, body: bytes) -> bytes:
        for attempt in range(TRIES):
            try:
                return self._post(body)
            except UnjudgedError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = _short(error.read(2000).decode(errors="replace"))
            if error.code in (401, 403, 404, 405):
                raise MachineError(
                    f"the judge refuses with {error.code} ({said}): check {URL}, {KEY} and task.judge_model={self.model}"
                ) from error
            raise UnjudgedError(f"answered with status {error.code}: {said}") from error
        except TimeoutError as error:
            raise UnjudgedError(f"timed out after {self.timeout:g} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise UnjudgedError(f"timed out after {self.timeout:g} s") from error
            raise MachineError(f"the judge at {URL} cannot be reached ({one_line(error)}): check the address") from error
        except (http.client.HTTPException, ConnectionError) as error:
            raise UnjudgedError(f"broke off ({type(error).__name__})") from error


def endpoint_address() -> tuple[str, str | None]:
    """URL and key of the endpoint, from the environment."""
    url = os.environ.get(URL, "").strip().rstrip("/")
    if not re.match(r"https?://[^/]", url):
        what = "is no http address" if url else "is not set"
        raise UsageError(
            f"task.judge=endpoint asks a chat completions endpoint, but {URL} {what}: export {URL}=https://HOST/v1 "
            f"(and {KEY}=... if it wants a key)"
        )
    return url if url.endswith("/chat/completions") else f"{url}/chat/completions", os.environ.get(KEY) or None


@dataclass(frozen=True, kw_only=True)
class LocalJudge:
    """A model here, its attention full: the verdict is the likelier of the letters A and B as its next token (equal
    likelihoods, which 16-bit logits can be, are a tie). Asked by its chat template where its tokenizer has one."""

    loaded: Loaded
    prompt: str

    def __call__(self, request: str, first: str, second: str) -> str:
        import torch

        ids, letters = self._tokens(self.prompt.format(request=request, first=first, second=second))
        limit = self.loaded.info["positions"]
        if limit is not None and len(ids) > limit:
            raise UnjudgedError(f"has {limit} positions for a question of {len(ids)} tokens")
        a, b = self._next(ids)[torch.tensor(letters)].double().logsumexp(0).tolist()
        return "tie" if a == b else "A" if a > b else "B"

    def _tokens(self, text: str) -> tuple[list[int], list[list[int]]]:
        """The question, and the ids that A and B may have behind it: one pair with a space before the letter, one
        without, as far as they are single tokens behind the same question (an answer in chat begins with either)."""
        tokenizer = self.loaded.tokenizer
        if getattr(tokenizer, "chat_template", None):
            message = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            mark, gaps, plain = [], ("", " "), False
        else:
            mark, gaps, plain = bos_ids("auto", tokenizer), (" ", ""), True
        options = {"add_special_tokens": False, "split_special_tokens": plain, "verbose": False}
        pairs = [[tokenizer(text + gap + letter, **options)["input_ids"] for letter in "AB"] for gap in gaps]
        single = [(a[:-1], [a[-1], b[-1]]) for a, b in pairs if a[:-1] == b[:-1]]
        if not single:
            raise UsageError("this judge's tokenizer has no token for A and for B: take another with task.judge_path")
        return mark + single[0][0], [letters for asked, letters in single if asked == single[0][0]]

    def _next(self, ids: list[int]) -> Tensor:
        """Logits [vocabulary] after `ids`, which go through the model in pieces."""
        import torch

        from msrnn_bench.multistate.attention import bounded
        from msrnn_bench.multistate.naming import carried

        model = self.loaded.model
        last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        with bounded(model, Full()) as states:
            width = piece_of(model.config, len(ids), PIECE)
            for at in range(0, len(ids), width):
                piece = torch.tensor([ids[at : at + width]], device=model.device)
                logits = model(piece, **carried(model, states.current), **last).logits[0, -1]
        return logits

"""The hub asked with patience: one that is busy (429, 5xx), slow or cuts its answers short is asked again, after as long as it
says or growing pauses, for a minute; one that nothing connects to is not.

The requests themselves are the hub's library's. It has retries of its own, but they sleep for as long as the hub says, however
long, and end in an error that `datasets` takes for a file that is not there: a configuration that could not be fetched would
count as none. Here no such answer reaches the libraries at all. Imports the library where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from msrnn_bench.errors import UsageError, one_line

PATIENCE = 60.0  # seconds without one good answer
FIRST, LONGEST = 1.0, 15.0  # pauses of our own choice, each twice the one before
LIMITS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")  # the hub's library's own settings, in seconds
BUSY = (408, 425, 429)  # and all of 500 and above

clock, sleep = time.monotonic, time.sleep
spread = random.Random().random  # a hundred jobs that are told to come back in 5 s should not come back at once

_tired = threading.Event()  # the patience has ended before: the next question is not waited for again until one was answered

T = TypeVar("T")


class NoAnswerError(Exception):
    """The hub gave no answer; the message goes on behind "the hub"."""


class _PastLibrariesError(BaseException):
    """NoAnswerError on its way through the libraries: no Exception, for these they read as they like."""

    def __init__(self, error: NoAnswerError) -> None:
        super().__init__(str(error))
        self.error = error


def check_limits() -> None:
    """Refuse what the hub's library would end at while it is imported."""
    for name in LIMITS:
        if (value := os.environ.get(name)) and not re.fullmatch("[1-9][0-9]{0,5}", value):
            raise UsageError(f"{name}={value} must be a whole number of seconds: the limit of an answer of the hub")


def patiently(kind: str, repo: str, ask: Callable[[], T]) -> T:
    """The answer of `ask`, which calls the hub's library about one repository. NoAnswerError where nothing connects or the
    patience is over; what else goes wrong is the library's own error."""
    requests, cuts, tries = _Trouble(kind, repo), _Trouble(kind, repo), 0
    while True:
        begun = clock()
        try:
            with _patient(requests):
                return ask()
        except _PastLibrariesError as past:
            raise past.error from past.error.__cause__
        except Exception as error:
            if not _passing(error):
                raise
            if clock() - begun > PATIENCE:  # much came before it was cut
                cuts.over()
                tries = 0
            tries += 1
            cuts.again(f"cut its answer short ({one_line(error)})", begun, tries, error, _wanted_by(error))


class _Trouble:
    """What one question has met since its last good answer. Threads of a download share it."""

    def __init__(self, kind: str, repo: str) -> None:
        self.kind, self.repo, self.lock, self.told = kind, repo, threading.Lock(), -1.0
        self.over()

    def over(self) -> None:
        self.until: float | None = None

    def again(self, why: str, begun: float, tries: int, error: Exception | None, wanted: float | None = None) -> None:
        """Wait until it is worth asking again, and say so; NoAnswerError where that would be too late."""
        with self.lock:
            now = clock()
            if self.until is None:
                self.until = now if _tired.is_set() else begun + PATIENCE
            pause = max(wanted or 0.0, min(FIRST * 2 ** (tries - 1), LONGEST)) * (1 + spread() / 4)
            if now + pause > self.until:
                _tired.set()
                later = f" and asks to wait {wanted:.0f} s" if wanted and wanted > LONGEST else ""
                raise NoAnswerError(f"{why}{later}, asked {tries} times" if tries > 1 else f"{why}{later}") from error
            if now + pause > self.told + FIRST:  # a line for all threads that wait for the same
                self.told = now + pause
                print(f"{self.kind} {self.repo}: the hub {why}; asked again in {pause:.0f} s", file=sys.stderr, flush=True)
        sleep(pause)


@contextlib.contextmanager
def _patient(trouble: _Trouble) -> Iterator[None]:
    """While it lasts, every request of the hub's library goes through `_send`, and its own words about retries are left out."""
    from huggingface_hub import get_session

    client: Any = get_session()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    client.send = functools.partial(_send, client.send, trouble)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        del client.send


def _send(send: Callable[..., Any], trouble: _Trouble, request: Any, **options: Any) -> Any:
    """One request to the hub about the repository, until it has an answer that is worth reading. Others are let through: the
    libraries count downloads and look up what they run in, at the hub and elsewhere, and do without an answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import httpx

    if trouble.repo not in request.url.path or not str(request.url).startswith(constants.ENDPOINT):
        return send(request, **options)
    limits = _limited(request)
    failure: Exception | None
    for tries in itertools.count(1):
        begun, wanted, failure = clock(), None, None
        try:
            response = send(request, **options)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            past = NoAnswerError(f"does not answer ({one_line(error)})")
            past.__cause__ = error
            raise _PastLibrariesError(past) from error
        except httpx.TimeoutException as error:
            why, failure = f"did not answer within {limits['read']:g} s ({LIMITS[0]})", error
        except httpx.TransportError as error:
            why, failure = f"broke off ({one_line(error)})", error
        else:
            if not _busy(response):
                trouble.over()
                _tired.clear()
                return response
            why, wanted = f"answers {response.status_code}", asked_to_wait(response.headers)
            response.close()
        try:
            trouble.again(why, begun, tries, failure, wanted)
        except NoAnswerError as error:
            raise _PastLibrariesError(error) from error


def _limited(request: Any) -> dict[str, float]:
    """The request's limits of time; the library leaves some questions without one, which then may hang forever."""
    from huggingface_hub import constants

    given = request.extensions.get("timeout") or {}
    limits = {key: given.get(key) or float(constants.HF_HUB_ETAG_TIMEOUT) for key in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}
    return limits


def asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait: Retry-After, a number or a date (by the hub's own clock), or the hub's RateLimit."""
    after = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", after):
        return float(after)
    with contextlib.suppress(ValueError, TypeError):
        there = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(after) - there).total_seconds())
    left = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return float(left[1]) if left else None


def _busy(response: Any) -> bool:
    return response.status_code in BUSY or response.status_code >= 500


def _wanted_by(error: Any) -> float | None:
    response = getattr(error, "response", None)
    return None if response is None else asked_to_wait(response.headers)


def _passing(error: BaseException | None) -> bool:
    """Whether a download ended before its end, or where the files lie is busy, as the libraries say it: their own errors, or one
    that was caused by such."""
    from http.client import IncompleteRead

    from huggingface_hub.errors import XetDownloadError
    from huggingface_hub.utils import httpx

    kinds = (httpx.TransportError, httpx.DecodingError, XetDownloadError, IncompleteRead, ConnectionResetError, TimeoutError)
    while error is not None:
        other_size = isinstance(error, OSError) and str(error).startswith("Consistency check failed")
        response = getattr(error, "response", None)
        if isinstance(error, kinds) or other_size or (isinstance(response, httpx.Response) and _busy(response)):
            return True
        error = error.__cause__
    return False

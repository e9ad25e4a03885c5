"""Which commit a revision of a hub repository is: found out once, and handed on to the processes that are started from here.

A full hash is itself. A name means what the local cache holds under it, so that a repeated run stays the same measurement and
asks nobody; only a name that it does not know is asked for.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from msrnn_bench.errors import UsageError, unless_looking
from msrnn_bench.hub.asking import patiently

COMMITS = "MSRNN_BENCH_COMMITS"
HASH = "[0-9a-f]{40}"

Kind = Literal["model", "dataset"]


class Commit(NamedTuple):
    """`source` is who said so: the `setting`, which was a commit already, the local `cache`, or the `hub`."""

    id: str
    source: str


_known: dict[str, Commit] = {}


def commit(kind: Kind, repo: str, revision: str) -> Commit:
    """The commit behind a revision. Raises NoAnswerError or the hub library's own errors where it has to be asked for."""
    if re.fullmatch(HASH, revision):
        return Commit(revision, "setting")
    key = f"{kind} {repo}@{revision}"
    if key not in _known:
        _known[key] = _handed().get(key) or _cached(kind, repo, revision) or _asked(kind, repo, revision)
    return _known[key]


def environment() -> dict[str, str]:
    """What a process that is started from here needs in its environment, so that it reads what is read here and asks nobody."""
    return {COMMITS: json.dumps({**_handed(), **_known})} if _known or COMMITS in os.environ else {}


def _handed() -> dict[str, Commit]:
    """What the process that started this one has found out."""
    try:
        return {key: Commit(*found) for key, found in json.loads(os.environ.get(COMMITS) or "{}").items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{COMMITS} is not what a sweep hands to its jobs: unset it") from error


def _cached(kind: Kind, repo: str, revision: str) -> Commit | None:
    """By the note that the hub's library keeps of every name it has resolved."""
    from huggingface_hub import constants

    note = Path(constants.HF_HUB_CACHE, f"{kind}s--{repo.replace('/', '--')}", "refs", revision)
    try:
        found = note.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    if not re.fullmatch(HASH, found):
        return None
    print(f"{kind} {repo}: {revision} is {found[:12]}, as the local cache has it; the hub is not asked", file=sys.stderr)
    return Commit(found, "cache")


def _asked(kind: Kind, repo: str, revision: str) -> Commit:
    """By one question to the hub, whose answer the library notes in its cache."""
    unless_looking(f"{repo} is not in the local hub cache: a run asks the hub for it")
    from huggingface_hub import HfApi, errors

    try:
        resolved = patiently(kind, repo, lambda: HfApi().resolve_revision(repo, repo_type=kind, revision=revision))
    except errors.RevisionResolutionError as error:  # which says what its cause is, in more words
        raise error.__cause__ or error from None
    return Commit(str(resolved.resolved), "hub")

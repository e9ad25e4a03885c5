"""How far a model's positions reach, remembered by its content: every command asks, of finished cells too, and transformers
takes seconds to answer. Importing this imports neither torch nor transformers.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msrnn_bench.models import files
from msrnn_bench.models.limits import is_rotary, max_positions

ASKED = "1"  # raise when the same configuration would be read otherwise


@dataclass(frozen=True)
class Reach:
    """`positions` that the configuration declares, None where it declares no limit; `rotary`: whether they enter by rotation."""

    positions: int | None
    rotary: bool


def reach(model: Any) -> Reach:
    """Of a model of sources.py. One that brings code of its own is asked each time: what that reads, nobody can tell."""
    if model.trust_remote_code:
        return _asked(model)
    note = _note(model.fingerprint())
    known = _known(note)
    if known is None:
        known = _asked(model)
        files.remember(note, json.dumps(asdict(known)))
    return known


def _asked(model: Any) -> Reach:
    config = model.config()
    return Reach(max_positions(config), is_rotary(config))


def _note(fingerprint: dict[str, Any]) -> Path:
    content = json.dumps([ASKED, _version("transformers"), fingerprint], sort_keys=True)
    return files.cache_root() / "reach" / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json"


_version = cache(version)  # which parses a file each time


def _known(note: Path) -> Reach | None:
    """What was noted; None where nothing was, or nothing whole."""
    try:
        return Reach(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None

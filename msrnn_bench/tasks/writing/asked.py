"""What passes between a task and the writer of answers.py: a prompt, and what came back. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What was written, and what the states did meanwhile. `tokens` are the new ones, an end mark included;
    `ended` says whether the model ended by itself. The row columns of the same names are explained in results.Row."""

    text: str
    tokens: list[int]
    prompt_tokens: int
    ended: bool
    seconds: float
    evictions: int | None
    first_eviction: int | None
    max_states: int
    state_bytes: int

    def columns(self) -> dict[str, Any]:
        """The row columns that an answer fills: its tokens' positions, the states' doings, the cost."""
        end = self.prompt_tokens + len(self.tokens)
        return {
            "bucket_start": self.prompt_tokens, "bucket_end": end, "evictions": self.evictions,
            "first_eviction": self.first_eviction, "max_states": self.max_states, "state_bytes": self.state_bytes,
            "seconds": self.seconds, "tokens_per_second": end / self.seconds,
        }  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A prompt. The states after its first `read` ids are kept for a next prompt that begins alike; `document` is what
    the random policy draws by, and prompts of unlike documents share nothing."""

    ids: list[int]
    read: int = 0
    document: int = 0

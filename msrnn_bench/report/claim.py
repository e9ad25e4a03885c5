"""What a claim is: words, a bound, and one small function from a scene to what is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msrnn_bench.report.deciding import Bound, Part
from msrnn_bench.report.evidence import Scene


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper that numbers can contradict."""

    id: str
    sentence: str
    place: str
    needs: str
    bound: Bound
    words: str  # the bound in words, the published value in brackets
    command: str
    tasks: tuple[str, ...]
    printed: bool  # the paper prints the numbers it rests on
    prefills: bool  # stepwise and oneshot are judged apart
    parts: Callable[[Scene], Sequence[Part]]


def claim(
    *, sentence: str, place: str, needs: str, bound: Bound, words: str, command: str, tasks: Sequence[str],
    printed: bool = True, prefills: bool = False,
) -> Callable[[Callable[[Scene], Sequence[Part]]], Claim]:  # fmt: skip
    """Makes of a function the claim of its name."""

    def made(parts: Callable[[Scene], Sequence[Part]]) -> Claim:
        name = parts.__name__.replace("_", "-")
        return Claim(name, sentence, place, needs, bound, words, command, tuple(tasks), printed, prefills, parts)

    return made

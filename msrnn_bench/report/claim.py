"""What a claim is: words, a bound, and one small function from a scene to what is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msrnn_bench.report.deciding import Bound, Part
from msrnn_bench.report.evidence import Scene


@dataclass(frozen=True, kw_only=True)
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
    parts: Callable[[Scene], Sequence[Part]]
    printed: bool = True  # the paper prints the numbers it rests on
    ways: tuple[str, ...] = ()  # settings of a policy that are judged apart: prefill, positions
    pooled: bool = False  # one verdict over all models
    remark: Callable[[Scene], str] | None = None  # what else must be said where it was judged


def claim(
    *, sentence: str, place: str, needs: str, bound: Bound, words: str, command: str, tasks: Sequence[str],
    printed: bool = True, ways: Sequence[str] = (), pooled: bool = False, remark: Callable[[Scene], str] | None = None,
) -> Callable[[Callable[[Scene], Sequence[Part]]], Claim]:  # fmt: skip
    """Makes of a function the claim of its name."""

    def made(parts: Callable[[Scene], Sequence[Part]]) -> Claim:
        return Claim(
            id=parts.__name__.replace("_", "-"), sentence=sentence, place=place, needs=needs, bound=bound, words=words,
            command=command, tasks=tuple(tasks), parts=parts, printed=printed, ways=tuple(ways), pooled=pooled, remark=remark,
        )  # fmt: skip

    return made

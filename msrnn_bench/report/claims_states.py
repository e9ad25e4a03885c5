"""Claims on which tokens stay (Section 7.3, Figure 9; Appendix H, Tables 2 and 5): task=retention under TOVA."""

from __future__ import annotations

from collections.abc import Sequence

from msrnn_bench.report.claim import claim
from msrnn_bench.report.deciding import Bound, Estimate, Lack, Part
from msrnn_bench.report.evidence import Scene, array, called, of, paired, ratios
from msrnn_bench.results import intervals
from msrnn_bench.results.intervals import Array

TASKS = ("retention",)
CLASSES = {"possessive": "POS", "closing quote": "quote_close", ")": ")", "full stop": ".", "$": "$"}  # of scheme pos
_RUN = "msrnn-bench run -m task=retention context=4096 tokens=4096 policy=tova "


def _sizes(scene: Scene, metric: str) -> list[int]:
    """The paper's, T/16 to T/2, of those that were measured."""
    found = [k for k in scene.sizes("tova", metric=metric) if scene.context <= 16 * k and 2 * k <= scene.context]
    return found or [0]


@claim(
    sentence="Of TOVA's states 73 to 76% are recent ones: of the last k tokens.",
    place="Section 7.3",
    needs="task=retention of tova at sizes from T/16 to T/2; the mean over all steps with a full state",
    bound=Bound(0.73, 0.76), words="0.73 to 0.76, two one-sided tests at 95%",
    tasks=TASKS, printed=False, command=_RUN + "cache=256,512,1024,2048",
)  # fmt: skip
def recent_share(scene: Scene) -> Sequence[Part]:
    return [_recent(scene, k) for k in _sizes(scene, "recent_share")]


def _recent(scene: Scene, size: int) -> Part:
    found = scene.sums(("tova", size), "recent_share", "all:full")
    if not found:
        return Lack(f"the recent share of {called(('tova', size))}")
    return of(array(found[0]), _mean, f"recent share of tova's state at k={size:,}")


def _mean(sums: Array) -> Array:
    return sums[..., 0] / sums[..., 1]


@claim(
    sentence="The first token of a text stays to its end in at least 95% of texts and layers.",
    place="Section 7.3, Figure 9",
    needs="task=retention of tova at sizes from T/16 to T/2; 50 texts, even if it stays in all",
    bound=Bound(low=0.95), words="at least 0.95 of texts and layers (a text counts once: its layers are no independent trials)",
    tasks=TASKS, printed=False, command=_RUN + "cache=256,512,1024,2048 documents=50",
)  # fmt: skip
def first_token_stays(scene: Scene) -> Sequence[Part]:
    return [_first(scene, k) for k in _sizes(scene, "first_alive")]


def _first(scene: Scene, size: int) -> Part:
    found = scene.sums(("tova", size), "first_alive") or scene.sums(("tova", size), "first_alive", "all")
    if not found:
        return Lack(f"the first token's fate under {called(('tova', size))}")
    hits = array(found[0])
    what = f"texts and layers that keep the first token at k={size:,}"
    return Estimate(what, float(_mean(hits.sum(0))), len(hits), lambda confidence: intervals.share(hits, confidence))


@claim(
    sentence="Possessives, closing quotes, closing brackets, full stops and dollar signs are each kept longer than the average "
    "token.",
    place="Section 7.3, Table 2; Appendix H, Table 5",
    needs="task=retention of tova at k = T/8 with part-of-speech classes (extra pos), on prose that has all five",
    bound=Bound(low=0.0, strict=True),
    words="above 0 steps: a class's mean lifetime less the average [912 possessives, 620 closing quotes, 243 $, 189 ), 164 full "
    "stops; average 481]",
    tasks=TASKS, command=_RUN + "cache=512",
)  # fmt: skip
def marks_outlive_the_average(scene: Scene) -> Sequence[Part]:
    return [_longer(scene, scene.fraction(8), name, tag) for name, tag in CLASSES.items()]


def _longer(scene: Scene, size: int, name: str, tag: str) -> Part:
    own, everyone = (scene.sums(("tova", size), "lifetime", subtask) for subtask in (f"class:pos/{tag}", "all"))
    if not everyone:
        return Lack(f"lifetimes of {called(('tova', size))}")
    # of a text without any such token the class has no row, but its other tokens are part of the average
    filled = [{name: cell.get(name, (0.0, 0.0)) for name in everyone[0]} for cell in own]
    pair = paired(filled, everyone)
    if pair is None:
        return Lack(f"a {name} among the classes of {called(('tova', size))}")
    return of(pair, ratios, f"lifetime of a {name} at k={size:,} less the average")

"""Claims on what models write: answers on long texts (Section 6.2, Figures 4 and 5) and stories (Section 6.3, Figure 6).

Answers are judged for each way to read a prompt apart, for the paper does not say which it took.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from msrnn_bench.report.claim import claim
from msrnn_bench.report.deciding import Bound, Estimate, Lack, Part
from msrnn_bench.report.evidence import FULL, Scene, array, called, contrast, logarithms
from msrnn_bench.results import intervals

_SQUALITY = "msrnn-bench run -m task=squality dataset.path=dev.jsonl documents=null context=4096 "
_QASPER = "msrnn-bench run -m task=qasper dataset.path=FILE documents=null context=4096 "
_STORIES = "msrnn-bench run -m task=stories context=4096 task.new_tokens=3840 policy=full,tova "
_LOSES = {16: 0.5, 8: 0.2, 4: 0.1}  # at T/16, T/8, T/4: the paper's 47, 19 and 6%, rounded up


def _level(metric: str, axis: str) -> Callable[[Scene], str]:
    """One point means more where the full model itself scores little."""

    def remark(scene: Scene) -> str:
        found = scene.sums(FULL, metric)
        return f"the full model itself scores {intervals.value(metric, array(found[0]).sum(0)):.1f}, {axis}" if found else ""

    return remark


@claim(
    sentence="On SQuALITY TOVA is within one point of the full model, with an eighth of the states (LLaMA) or a quarter (the "
    "others).",
    place="Section 6.2, Figure 4",
    needs="ROUGE of full and tova at k = T/8 (models named LLaMA) or T/4",
    bound=Bound(-1.0, 1.0), words="within 1 point of ROUGE (geometric mean), two one-sided tests at 95%",
    tasks=("squality",), printed=False, ways=("prefill",), command=_SQUALITY + "policy=full,tova cache=512,1024",
    remark=_level("rouge", "the paper's axes run from 16 to 20.5"),
)  # fmt: skip
def squality_within_one(scene: Scene) -> Sequence[Part]:
    part = 8 if "llama" in str(scene.settings["model"]).lower() else 4
    return [contrast(scene, "rouge", ("tova", scene.fraction(part)), FULL)]


@claim(
    sentence="On SQuALITY TOVA is better than the baseline, which cuts the prompt to k tokens, and than window+4, at every size "
    "below T.",
    place="Section 6.2, Figure 4",
    needs="ROUGE of tova, baseline and window4 at sizes below T",
    bound=Bound(low=0.0, strict=True), words="above 0 points: TOVA's less the other's",
    tasks=("squality",), printed=False, ways=("prefill",),
    command=_SQUALITY + "policy=tova,baseline,window4 cache=256,512,1024,2048",
)  # fmt: skip
def squality_above_baselines(scene: Scene) -> Sequence[Part]:
    sizes = scene.sizes("tova", "baseline", "window4", metric="rouge1")
    found = [contrast(scene, "rouge", ("tova", k), (rival, k)) for k, rival in product(sizes, ("baseline", "window4"))]
    return found or [Lack("tova, baseline and window4 at one size below T")]


@claim(
    sentence="On QASPER TOVA is within one point of the full model only with half of the states.",
    place="Section 6.2, Figure 5",
    needs="F1 of full and tova at k = T/2",
    bound=Bound(-1.0, 1.0), words="within 1 point of F1, two one-sided tests at 95%",
    tasks=("qasper",), printed=False, ways=("prefill",), command=_QASPER + "policy=full,tova cache=2048",
    remark=_level("f1", "the paper's axes end at 24, 42 and 33"),
)  # fmt: skip
def qasper_within_one(scene: Scene) -> Sequence[Part]:
    return [contrast(scene, "f1", ("tova", scene.fraction(2)), FULL)]


def _length(scene: Scene, size: int) -> Part:
    what = f"length of tova's stories at k={size:,} as a multiple of the full model's"
    return contrast(scene, "length", ("tova", size), FULL, logarithms, back=np.exp, what=what)


@claim(
    sentence="With a sixteenth of the states TOVA's stories are shorter than the full model's by at least 5%.",
    place="Section 6.3",
    needs="stories of full and of tova at k = T/16, from the same seeds",
    bound=Bound(high=0.95), words="at most 0.95 times as long [0.87: 1,361 tokens of 1,566]",
    tasks=("stories",), command=_STORIES + "cache=256", ways=("prefill",),
)  # fmt: skip
def stories_shorter_at_sixteenth(scene: Scene) -> Sequence[Part]:
    return [_length(scene, scene.fraction(16))]


@claim(
    sentence="With a quarter of the states and more TOVA's stories are as long as the full model's, within 5%.",
    place="Section 6.3",
    needs="stories of full and of tova at k = T/4 (and any larger size), from the same seeds",
    bound=Bound(0.95, 1.05), words="0.95 to 1.05 times as long, two one-sided tests at 95% [1.00: 1,566 tokens of 1,566]",
    tasks=("stories",), command=_STORIES + "cache=1024", ways=("prefill",),
)  # fmt: skip
def stories_as_long_from_quarter(scene: Scene) -> Sequence[Part]:
    quarter = scene.fraction(4)
    sizes = {k for k in scene.sizes("tova", metric="length") if k >= scene.context / 4} | {quarter}
    return [_length(scene, k) for k in sorted(sizes)]


@claim(
    sentence="Judged in pairs, TOVA's stories lose to the full model's at most half of the time with a sixteenth of the states, "
    "a fifth with an eighth, a tenth with a quarter.",
    place="Section 6.3, Figure 6",
    needs="judged stories (task.judge) of tova at k = T/16, T/8, T/4",
    bound=Bound(high=0.5),
    words="losses at most 0.5, 0.2, 0.1 of the pairs (our bounds, the paper's losses rounded up) [0.47, 0.19, 0.06; wins 0.06, "
    "0.10, 0.05]",
    tasks=("stories",), command=_STORIES + "cache=256,512,1024 task.judge=endpoint task.judge_model=NAME", ways=("prefill",),
)  # fmt: skip
def stories_seldom_lose(scene: Scene) -> Sequence[Part]:
    return [_losses(scene, scene.fraction(part), Bound(high=most)) for part, most in _LOSES.items()]


def _losses(scene: Scene, size: int, bound: Bound) -> Part:
    found = scene.sums(("tova", size), "loss")
    if not found:
        return Lack(f"judged pairs of {called(('tova', size))}")
    hits = array(found[0])
    share = float(hits[:, 0].sum() / hits[:, 1].sum())
    what = f"pairs that tova loses at k={size:,} (at most {bound.high:g})"
    return Estimate(what, share, len(hits), lambda confidence: intervals.share(hits, confidence), bound)

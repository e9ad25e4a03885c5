"""Claims on perplexity (Section 6.1, Figure 3; the ablation, Table 3). T is the context of a cell."""

from __future__ import annotations

from collections.abc import Sequence

from msrnn_bench.report.claim import claim
from msrnn_bench.report.deciding import Bound, Lack, Part
from msrnn_bench.report.evidence import Scene, contrast, losses, perplexities

TASKS = ("perplexity", "retention")  # retention reads the same chunks in the same way and keeps the loss
RUN = "msrnn-bench run -m context=4096 tokens=4096 "


def at(scene: Scene, part: int, policy: str) -> int | Lack:
    size = scene.fraction(part)
    return Lack(f"a size T/{part} of T={scene.context:,}") if size is None else size


@claim(
    sentence="With an eighth of the states TOVA's perplexity is at most 0.4 above the full model's.",
    place="Section 6.1, Figure 3, Table 3",
    needs="perplexity of full and of tova at k = T/8",
    bound=Bound(high=0.4), words="at most 0.4 [0.25]", tasks=TASKS,
    command=RUN + "policy=full,tova cache=512",
)  # fmt: skip
def tova_gap_eighth(scene: Scene) -> Sequence[Part]:
    size = at(scene, 8, "tova")
    if isinstance(size, Lack):
        return [size]
    what = f"tova at k={size:,} less the full model"
    return [contrast(scene, "nll", ("tova", size), ("full", None), perplexities, what)]


@claim(
    sentence="The same as a loss, which does not grow with the perplexity itself: at most 0.054 nats a token.",
    place="Section 6.1, Figure 3, Table 3 (0.4 on the paper's 7.16)",
    needs="perplexity of full and of tova at k = T/8",
    bound=Bound(high=0.054), words="at most 0.054 nats [0.034]", tasks=TASKS,
    command=RUN + "policy=full,tova cache=512",
)  # fmt: skip
def tova_gap_eighth_nats(scene: Scene) -> Sequence[Part]:
    size = at(scene, 8, "tova")
    if isinstance(size, Lack):
        return [size]
    what = f"loss of tova at k={size:,} less the full model's"
    return [contrast(scene, "nll", ("tova", size), ("full", None), losses, what)]


@claim(
    sentence="Deciding per layer beats deciding per head: tova-head's perplexity is above tova's at every size below T.",
    place="Appendix A, Table 3",
    needs="perplexity of tova and tova_head at sizes below T",
    bound=Bound(low=0.0, strict=True), words="above 0 [0.10 at 2,048 to 1.60 at 64]", tasks=TASKS,
    command=RUN + "policy=tova,tova_head cache=64,128,256,512,1024,2048",
)  # fmt: skip
def tova_head_above_tova(scene: Scene) -> Sequence[Part]:
    sizes = scene.sizes("tova", "tova_head")
    return [
        contrast(scene, "nll", ("tova_head", k), ("tova", k), perplexities, f"tova_head less tova at k={k:,}") for k in sizes
    ] or [Lack("tova and tova_head at one size below T")]

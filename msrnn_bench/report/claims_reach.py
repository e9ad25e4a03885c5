"""Claims on how far a bounded state reaches (Section 7.2, Figure 7), what it costs (Section 7.1, Table 1), and the theorem."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from msrnn_bench.figures import _published
from msrnn_bench.report.claim import claim
from msrnn_bench.report.deciding import COUNTED, Bound, Estimate, Lack, Part
from msrnn_bench.report.evidence import FULL, At, Scene, Sums, array, called, contrast, logarithms, of, paired
from msrnn_bench.results import intervals
from msrnn_bench.results.intervals import Array, Interval

_MARKS = tuple(range(10_000, 70_001, 10_000))  # tokens
_SIZE = 512
_FAR = "msrnn-bench run -m task=extrapolation tokens=70000 positions=compressed cache=512 "
_COST = "msrnn-bench run -m task=efficiency context=4096 policy=full,tova "
_UNITS = 10.0  # of rounding


def _running(scene: Scene, at: At, mark: int) -> list[Sums]:
    """Sums over the positions before `mark`, of texts that reach it."""
    return scene.sums(at, "nll", until=mark)


def _drift(scene: Scene, at: At, mark: int) -> Part:
    pair = paired(_running(scene, at, mark), _running(scene, at, _MARKS[0]))
    if pair is None:
        return Lack(f"{called(at)} on texts of {mark:,} tokens, in rows that end at {_MARKS[0]:,} and {mark:,}")
    return of(pair, _perplexities, f"running perplexity of {called(at)} at {mark:,} tokens less that at {_MARKS[0]:,}")


def _perplexities(sums: Array) -> Array:
    return intervals.value("nll", sums[..., :2]) - intervals.value("nll", sums[..., 2:])


def _control(scene: Scene) -> str:
    """How much harder the text itself becomes: the full model on fresh chunks, over the same targets."""
    sizes = scene.rows.loc[scene.rows["policy"] == "baseline", "cache"].dropna().astype(int)
    moved = [_drift(scene, ("baseline", int(k)), _MARKS[-1]) for k in sorted(set(sizes))[-1:]]
    said = [f"the control, the full model on fresh chunks of the same texts, moves by {p.value:+.3g}" for p in moved
            if not isinstance(p, Lack)]  # fmt: skip
    return "".join(said)


def _compressed(scene: Scene) -> list[Part]:
    """What a scene lacks that has not the paper's positions."""
    return [] if scene.settings["positions"] == "compressed" else [Lack("positions=compressed")]


@claim(
    sentence="With 512 states and compressed positions TOVA's running perplexity moves by less than 0.5 from 10,000 tokens to "
    "70,000.",
    place="Section 7.2, Figure 7",
    needs="task=extrapolation of tova at k = 512, positions=compressed, on texts of 70,000 tokens",
    bound=Bound(-0.5, 0.5, strict=True),
    words="within 0.5 of that at 10,000, at 20,000, 30,000, ... 70,000; two one-sided tests at 95%",
    tasks=("extrapolation",), printed=False, ways=("positions",), command=_FAR + "policy=tova", remark=_control,
)  # fmt: skip
def tova_steady_to_70k(scene: Scene) -> Sequence[Part]:
    return _compressed(scene) or [_drift(scene, ("tova", _SIZE), mark) for mark in _MARKS[1:]]


@claim(
    sentence="There TOVA's running perplexity lies below window+4's all the way.",
    place="Section 7.2, Figure 7",
    needs="task=extrapolation of tova and window4 at k = 512, positions=compressed, on texts of 70,000 tokens",
    bound=Bound(low=0.0, strict=True), words="above 0 at 10,000, 20,000, ... 70,000: window+4's less TOVA's",
    tasks=("extrapolation",), printed=False, ways=("positions",), command=_FAR + "policy=tova,window4",
)  # fmt: skip
def tova_below_window4_to_70k(scene: Scene) -> Sequence[Part]:
    return _compressed(scene) or [_between(scene, ("window4", _SIZE), ("tova", _SIZE), mark) for mark in _MARKS]


def _between(scene: Scene, ours: At, theirs: At, mark: int) -> Part:
    pair = paired(_running(scene, ours, mark), _running(scene, theirs, mark), alike=True)
    if pair is None:
        return Lack(f"{called(ours)} and {called(theirs)} on the same texts of {mark:,} tokens")
    return of(pair, _perplexities, f"running perplexity of {called(ours)} less that of {called(theirs)} at {mark:,} tokens")


@claim(
    sentence="The memory of the states is proportional to their number, within 12%.",
    place="Section 7.1, Table 1",
    needs="task=efficiency of full and of tova at sizes from T/16 to below T; bytes as allocated",
    bound=Bound(0.88, 1.12), words="0.88 to 1.12 times the full model's bytes a state [1.10 at 256, 1.03 at 512, 1.03, 1.02]",
    tasks=("efficiency",), command=_COST + "cache=256,512,1024,2048",
)  # fmt: skip
def memory_proportional(scene: Scene) -> Sequence[Part]:
    sizes = [k for k in scene.sizes("tova", metric="state_bytes") if 16 * k >= scene.context] or [0]
    return [_bytes(scene, k) for k in sizes]


def _bytes(scene: Scene, size: int) -> Part:
    """Bytes are counted, not sampled: once is enough, unless they are printed and so rounded."""
    pair = paired(scene.sums(("tova", size), "state_bytes"), scene.sums(FULL, "state_bytes"))
    if pair is None:
        return Lack(f"bytes of {called(('tova', size))} and of {called(FULL)}")
    held = np.asarray(scene.rows.loc[scene.rows["policy"] == "full", "max_states"].dropna(), dtype="float64")
    states = int(held.max(initial=0)) or scene.context
    ours, theirs = pair[:, 0].sum() / pair[:, 1].sum(), pair[:, 2].sum() / pair[:, 3].sum()
    share = float(ours / size / (theirs / states))
    counted = None if _published.DOCUMENT in set(scene.rows["document"]) else Interval(share, share, COUNTED)
    what = f"bytes a state at k={size:,} as a multiple of the full model's"
    return Estimate(what, share, len(pair), lambda confidence: counted)


def _mean(sums: Array) -> Array:
    return sums[..., 0] / sums[..., 1]


def _on_gpu(scene: Scene) -> bool:
    """As `variant` says of what is timed: on which device."""
    device = re.search(r"\bon (.+)", str(scene.settings["variant"] or ""))
    return device is not None and not device[1].startswith("cpu")


def _capped(scene: Scene) -> str:
    """A batch that memory did not limit is marked as such, and its row is not `ok`."""
    ats: list[At] = [("tova", scene.fraction(8)), FULL]
    capped = [called(at) for at in ats if not scene.sums(at, "batch")]
    return f"the batch of {' and of '.join(capped)} was limited by task.max_batch, not by memory" if capped else ""


@claim(
    sentence="With an eighth of the states, at the largest batch that fits, a GPU writes at least 4.75 times as many tokens a "
    "second.",
    place="Section 7.1, Table 1",
    needs="a GPU; task=efficiency of full and of tova at k = T/8",
    bound=Bound(low=4.75), words="at least 4.75 times the full model's [4.8]",
    tasks=("efficiency",), command=_COST + "cache=512 device=cuda task.max_batch=512", remark=_capped,
)  # fmt: skip
def throughput_at_eighth(scene: Scene) -> Sequence[Part]:
    if not _on_gpu(scene):
        return [Lack("a GPU")]
    size = scene.fraction(8)
    what = f"tokens a second at k={size:,} as a multiple of the full model's, each at its largest batch"
    metric = "decode_tokens_per_second"
    return [contrast(scene, metric, ("tova", size), FULL, logarithms, subtask="batch=max", back=np.exp, what=what)]


@claim(
    sentence="A transformer is an unbounded multi-state RNN, and a bounded one with room for all states is the transformer: the "
    "logits differ by rounding alone.",
    place="Section 3.2",
    needs="task=equivalence: the recurrence unbounded, and a policy at k = T, against the library's forward",
    bound=Bound(high=_UNITS),
    words="at most 10 times as much as two orders of the same sums differ (our bound)",
    tasks=("equivalence",), printed=False, pooled=True,
    command="msrnn-bench run task=equivalence policy=tova cache=64",
)  # fmt: skip
def theorem_in_logits(scene: Scene) -> Sequence[Part]:
    found: list[Part] = []
    cells = sorted(
        {(str(policy), int(k)) for policy, k in zip(scene.rows["policy"], scene.rows["cache"], strict=True) if pd.notna(k)}
    )
    for policy, size in cells:
        for pair in ("recurrence/library", "bounded/full"):
            what = f"{scene.settings['model']}, {pair} ({policy}), largest difference of two logits in units of rounding"
            measured = scene.sums((policy, size), "in_rounding", pair)
            found.append(of(array(measured[0]), _mean, what) if measured else Lack(what))
    return found or [Lack("differences in units of rounding")]

"""What panels over state sizes show: how far the axis reaches, what runs off it, in what order to read."""

import math
import operator
from collections.abc import Callable

import numpy as np
import pandas as pd

from msrnn_bench.figures._panels import Panel

_REACH = 3.0  # the axis reaches to this multiple of the best policy's largest loss
_NEAR = 1.25  # and at least to this multiple of the topline

Limits = tuple[float, float]


def limits(panels: list[Panel], published: list[dict[str, pd.DataFrame]]) -> list[Limits]:
    """Limits of a perplexity, where small is good: what is far above the best policies runs off the top."""
    return _shared([_own_limits(panel, overlay) for panel, overlay in zip(panels, published, strict=True)])


def score_limits(panels: list[Panel], whole: Limits | None) -> list[Limits]:
    """Limits of a score, where large is good: no line runs off, though the topline's own interval may. `whole` is the
    range a score can have, where all of it is to be seen; else the axis shows what there is, but no band below 0."""
    return [_margins(*whole)] * len(panels) if whole else _shared([_score_limits(panel) for panel in panels])


def _score_limits(panel: Panel) -> Limits:
    drawn = pd.concat(list(panel.lines.values()))
    base = [] if panel.topline is None else [panel.base]
    least = min([float(drawn["value"].min()), *base])
    low = max(float(drawn[["value", "bottom"]].min().min()), min(least, 0.0))
    low, high = min(low, least), max([float(drawn[["value", "top"]].max().max()), *base])
    return _margins(low, max(high, low + 0.02 * abs(low), low + 1e-3))


def _margins(low: float, high: float) -> Limits:
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _shared(own: list[Limits]) -> list[Limits]:
    """Each panel's own y limits, or one pair for all where that costs no panel more than a third of its height."""
    together = min(low for low, _ in own), max(high for _, high in own)
    narrowest = min(high - low for low, high in own)
    return [together] * len(own) if together[1] - together[0] <= 1.5 * narrowest else own


def _own_limits(panel: Panel, overlay: dict[str, pd.DataFrame]) -> Limits:
    """From below the topline to the largest value worth its room.

    Worth it is what loses at most three times what the best policy loses at its worst size, or comes within a quarter
    of the topline. A size at which fewer than half of the policies were run does not say how well the best one does."""
    base = panel.base
    values = pd.DataFrame({name: points.set_index("cache")["value"] for name, points in panel.lines.items()})
    best = values[values.notna().sum(axis=1) >= values.shape[1] / 2].min(axis=1)
    worst = base if best.empty else float(best.max())
    reach = max(base + _REACH * (worst - base), _NEAR * base)
    shown = values.to_numpy()[values.to_numpy() <= reach]
    lowest = min([base, *(float(points["value"].min()) for points in overlay.values())])
    bottom, top = float(shown.min(initial=lowest)), float(shown.max(initial=base))
    span = max(top - bottom, 0.02 * base)
    low = base if panel.topline is None or pd.isna(panel.topline["low"]) else float(panel.topline["low"])
    return max(min(low, bottom), bottom - 0.15 * span) - 0.04 * span, bottom + 1.05 * span


def marked(panels: list[Panel], tops: list[Limits]) -> list[str]:
    """The lines that run off the top of any panel, the farthest first."""
    highest: dict[str, float] = {}
    for panel, (_, top) in zip(panels, tops, strict=True):
        for name, points in panel.lines.items():
            if points["value"].max() > top:
                highest[name] = max(highest.get(name, 0.0), float(points["value"].max()))
    return sorted(highest, key=lambda name: -highest[name])


def order(panels: list[Panel], relative: Callable[[float, float], float] = operator.truediv) -> list[str]:
    """All lines, by their value at the middle size relative to the topline: the legend reads as the curves lie."""
    ratios: dict[str, list[float]] = {}
    for panel in panels:
        middle = math.log2(panel.sizes[len(panel.sizes) // 2])
        for name, points in panel.lines.items():
            nearest = (np.log2(points["cache"]) - middle).abs().argmin()
            ratios.setdefault(name, []).append(relative(float(points["value"].iloc[nearest]), panel.base))
    return sorted(ratios, key=lambda name: (-float(np.mean(ratios[name])), name))

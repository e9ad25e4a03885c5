"""How every figure looks: sizes, fonts, and one colour, marker and dash per policy, the same in every figure.

Hues are by family (tova warm, h2o blue, window green), after Okabe and Ito, so that they part for colour-blind readers;
where members of a family come close, marker and dash part them.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib.style

TEXT_WIDTH = 7.0  # inches: the width of a paper's text
TITLE, TICK, SMALL = 8.0, 7.0, 5.8  # points
MUTED = "#555555"
ALARM = "#B00020"

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it, so figures are alike on every machine
    "font.size": 7.5,
    "axes.titlesize": TITLE,
    "axes.labelsize": 7.5,
    "xtick.labelsize": TICK,
    "ytick.labelsize": TICK,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "msrnn-bench",  # ids without chance in them
}


@dataclass(frozen=True)
class Look:
    """How one policy is drawn and called."""

    label: str
    color: str
    marker: str
    dash: str = "-"


LOOKS = {
    "full": Look("Topline (full context)", "#000000", "", "--"),
    "baseline": Look("Baseline", "#7A7A7A", "x", ":"),
    "random": Look("Random", "#5B4A8A", "+", ":"),
    "window": Look("Window", "#00513B", "v"),
    "window1": Look("Window+1", "#009E73", ">", "--"),
    "window4": Look("Window+4", "#4FBF9F", "<"),
    "h2o": Look("H2O", "#0072B2", "s"),
    "h2o_layer": Look("H2O (per layer)", "#56B4E9", "D", "--"),
    "a2sf": Look("A2SF", "#CC79A7", "p"),
    "tova_head": Look("TOVA (per head)", "#7F3B08", "h", "-."),
    "tova4": Look("TOVA+4", "#E69F00", "^"),
    "tova1": Look("TOVA+1", "#F0C05A", "P", "--"),
    "tova": Look("TOVA", "#D55E00", "o"),
}

_FREE = (("#332288", "d"), ("#AA4499", "8"), ("#999933", "H"), ("#882255", "X"), ("#44AA99", "D"), ("#661100", "s"))


def looks(policies: Iterable[str]) -> dict[str, Look]:
    """A look for each policy: its own where it has one; the others, by name, take the free colours in turn."""
    given = list(dict.fromkeys(policies))
    strangers = sorted(name for name in given if name not in LOOKS)
    taken = {name: Look(name, *_FREE[index % len(_FREE)]) for index, name in enumerate(strangers)}
    return {name: LOOKS.get(name) or taken[name] for name in given}


# State sizes, small to large, where each is a line: light to dark, which colour-blind readers and grey prints keep.
_RAMP = ("#F0A63C", "#DE6D3B", "#BE3B5C", "#8E2A7C", "#56217F", "#22174F", "#000000")
_RAMP_MARKS = "ovs^Dph"


def sizes(given: Iterable[float]) -> dict[float, Look]:
    """A look for each state size: its place in the ramp, the smallest lightest."""
    ordered = sorted(set(given))
    last = len(_RAMP) - 1
    picked = [round(n * last / max(len(ordered) - 1, 1)) for n in range(len(ordered))] if len(ordered) <= last + 1 else None
    found = {}
    for number, size in enumerate(ordered):
        color = _RAMP[picked[number] if picked else number * last // (len(ordered) - 1)]
        found[size] = Look(f"k = {size:,.0f}", color, _RAMP_MARKS[number % len(_RAMP_MARKS)])
    return found


def context() -> AbstractContextManager[None]:
    """The style, and nothing of the user's own, for as long as a figure is drawn or saved."""
    return matplotlib.style.context(["default", _RC])


def inches(text: str, points: float) -> float:
    """About how wide a text is in this font: enough to keep texts apart."""
    return len(text) * 0.62 * points / 72

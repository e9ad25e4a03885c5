"""Numbers, policies and lists as sentences have them."""

from __future__ import annotations

from msrnn_bench.figures import style


def number(value: float) -> str:
    """Few digits, no exponent where people read none: 9.05, 0.034, 141.9, 4,812."""
    size = abs(value)
    if size >= 1e15:
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def label(policy: str) -> str:
    """What figures call it."""
    return style.looks([policy])[policy].label if policy != "full" else "the topline"


def listed(names: list[str], comma: str = ",") -> str:
    return names[0] if len(names) == 1 else f"{f'{comma} '.join(names[:-1])} and {names[-1]}"


def several(names: list[str], most: int = 3) -> str:
    """All of a few names; of many the first ones and how many more."""
    shown = names if len(names) <= most + 1 else names[:most]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more models" if more else "")


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."

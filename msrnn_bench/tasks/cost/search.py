"""The largest number that fits. Every answer rests on a trial of that number and of the next one."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], *, guess: int, most: int) -> int:
    """The largest n of 0..most with `fits(n)`, where whatever is below a number that fits fits too (0 always does).

    `guess` says where to begin and never what is answered: n was tried and fits, n + 1 was tried and does not (or is beyond
    `most`). A good guess costs two trials, and nothing much larger than the answer is ever tried, for that might not be
    survived.
    """
    known: dict[int, bool] = {0: True}

    def good(n: int) -> bool:
        if n not in known:
            known[n] = n <= most and fits(n)
        return known[n]

    low = high = min(max(guess, 1), most)
    step = 1
    if good(low):
        while good(high := low + step):
            low, step = high, 2 * step
            if low == most:
                return most
            step = min(step, most - low)
    else:
        while not good(low := max(0, high - step)):
            high, step = low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low

"""Callers with weights, and how far their starts are from their shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

CALLERS = {f"caller-{number:02}": 1.0 + number % 5 for number in range(20)}
"""Weights of twenty callers."""


def worst_deviation(callers: Sequence[str], window: int) -> float:
    """Return the greatest difference between a caller's starts and its share, in starts, over all windows.

    Args:
        callers: Who started, in the order of starts.
        window: Number of starts in a row.
    """
    worst, total = 0.0, sum(CALLERS.values())
    for caller, weight in CALLERS.items():
        sums = [0, *accumulate(each == caller for each in callers)]
        share = window * weight / total
        worst = max(worst, *(abs(sums[at + window] - sums[at] - share) for at in range(len(callers) - window + 1)))
    return worst

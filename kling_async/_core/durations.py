"""How long predictions take: a life table, as actuaries keep it.

For each stretch of age: how long predictions were seen running in it, and how many ended in it. Their quotient is the
rate of ends at that age. Those that still run count as much as those that have ended, so the quick ones, which are the
first to end, do not make all look quick; and no shape of the times is assumed.
"""

from __future__ import annotations

import math
from itertools import pairwise

RATIO = 1.15
"""Each stretch of age is longer than the one before by this."""
STRETCHES = 63
"""From a fiftieth of the usual time to more than a hundred times it."""
EDGES = (0.0, *(0.02 * RATIO**step for step in range(STRETCHES)))
"""Where the stretches begin, in usual times; the last one has no end."""
IMAGINED = 3.0
"""How many imagined predictions, which took the catalogue's usual time, the table begins with."""
STEEPNESS = 3.0
"""How close together their times are: a ninth ends before half of the usual time, a ninth after twice it."""
REMEMBERED = 100
"""So many ends are learned from; at every doubling what was learned counts half, since times of the day differ."""


def _running(age: float) -> float:
    """The share of the imagined predictions that still run at an age: log-logistic, whose late ones are very late."""
    return 1.0 / (1.0 + math.pow(age, STEEPNESS))


_IMAGINED_ENDS = [IMAGINED * (_running(start) - _running(stop)) for start, stop in pairwise((*EDGES, math.inf))]
_IMAGINED_TIME = [
    IMAGINED * (stop - start) * (_running(start) + _running(stop)) / 2
    for start, stop in pairwise((*EDGES, EDGES[-1] * RATIO))
]


class Durations:
    """What is known of the times of one kind of prediction.

    Args:
        usual: Seconds that one usually takes, to begin with.
    """

    def __init__(self, usual: float) -> None:
        self._usual = usual
        self._ends = [0.0] * len(EDGES)
        self._time = [0.0] * len(EDGES)
        self._learned = 0.0
        # As far as they were asked for since something was learned about a stretch.
        self._rates: list[float] = []
        self._sums: list[float] = [0.0]

    @property
    def unseen(self) -> bool:
        """Whether no end has been seen yet."""
        return not self._learned

    def ran(self, start: float, stop: float) -> None:
        """Learn that one ran from an age to another; in seconds."""
        self._add(self._time, start, stop, 1.0)

    def ended(self, start: float, stop: float) -> None:
        """Learn that one ended between two ages; it is not known where."""
        self._add(self._time, start, stop, 0.5)
        if stop > start:
            self._add(self._ends, start, stop, self._usual / (stop - start))
        else:
            last = _stretch(stop / self._usual)
            self._ends[last] += 1
            self._learned_from(last)
        self._learned += 1
        if self._learned >= 2 * REMEMBERED:
            self._learned /= 2
            self._ends = [ends / 2 for ends in self._ends]
            self._time = [time / 2 for time in self._time]
            self._learned_from(0)

    def chance(self, age: float, later: float) -> float:
        """The probability that one that ran at an age has ended at a later one."""
        return -math.expm1(self._sum(age) - self._sum(later))

    def _add(self, table: list[float], start: float, stop: float, weight: float) -> None:
        """Share out what happened between two ages, evenly."""
        left, right = start / self._usual, stop / self._usual
        first, last = _stretch(left), _stretch(right)
        if first == last:
            table[first] += weight * (right - left)
        else:
            table[first] += weight * (EDGES[first + 1] - left)
            for stretch in range(first + 1, last):
                table[stretch] += weight * (EDGES[stretch + 1] - EDGES[stretch])
            table[last] += weight * (right - EDGES[last])
        self._learned_from(first)

    def _learned_from(self, stretch: int) -> None:
        """The rates from a stretch on are others than before."""
        del self._rates[stretch:]
        del self._sums[stretch + 1 :]

    def _sum(self, age: float) -> float:
        """The rates of ends, summed up to an age."""
        age /= self._usual
        stretch = _stretch(age)
        rates, sums = self._rates, self._sums
        for at in range(len(rates), stretch + 1):
            rates.append((self._ends[at] + _IMAGINED_ENDS[at]) / (self._time[at] + _IMAGINED_TIME[at]))
            if at < STRETCHES:
                sums.append(sums[at] + rates[at] * (EDGES[at + 1] - EDGES[at]))
        return sums[stretch] + rates[stretch] * (age - EDGES[stretch])


_FIRST, _LOG = math.log(EDGES[1]), math.log(RATIO)


def _stretch(age: float) -> int:
    """The number of the stretch that an age lies in; in usual times."""
    if age <= EDGES[1]:
        return 0
    return min(int((math.log(age) - _FIRST) / _LOG) + 1, STRETCHES)

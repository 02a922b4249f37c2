"""Durations of predictions, learned as a life table.

For each bucket of age, the table has the time that predictions were seen running in it and the number that ended in it.
Their quotient is the hazard rate at that age. Running predictions count as well as ended ones, so the fast ones, which
end first, do not bias the result; and no distribution of the durations is assumed.
"""

from __future__ import annotations

import math
from itertools import pairwise

BUCKET_RATIO = 1.15
"""Ratio of the lengths of consecutive buckets."""
BUCKETS = 63
"""Number of buckets: from 0.02 to more than 100 times the usual duration."""
BUCKET_EDGES = (0.0, *(0.02 * BUCKET_RATIO**step for step in range(BUCKETS)))
"""Lower edges of the buckets, in usual durations; the last bucket is unbounded."""
PRIOR_WEIGHT = 3.0
"""Number of imagined predictions of the prior, which take the catalogue's usual duration."""
PRIOR_SHAPE = 3.0
"""Shape of the log-logistic prior: 1/9 end before half of the usual duration, 1/9 after twice it."""
MAX_LEARNED_ENDS = 100
"""Ends that count in full; when twice as many are learned, all are halved, because load varies over the day."""


def _prior_running(age: float) -> float:
    """Return the share of the prior that still runs at an age in usual durations: log-logistic, with a heavy tail."""
    return 1.0 / (1.0 + math.pow(age, PRIOR_SHAPE))


_PRIOR_ENDS = [
    PRIOR_WEIGHT * (_prior_running(start) - _prior_running(stop)) for start, stop in pairwise((*BUCKET_EDGES, math.inf))
]
_PRIOR_TIME = [
    PRIOR_WEIGHT * (stop - start) * (_prior_running(start) + _prior_running(stop)) / 2
    for start, stop in pairwise((*BUCKET_EDGES, BUCKET_EDGES[-1] * BUCKET_RATIO))
]


class Durations:
    """Learned durations of one kind of prediction.

    Args:
        usual: Usual duration in seconds, as the prior.
    """

    def __init__(self, usual: float) -> None:
        self._usual = usual
        self._ends = [0.0] * len(BUCKET_EDGES)
        self._time = [0.0] * len(BUCKET_EDGES)
        self._learned_ends = 0.0
        # Cache of the hazard rates and their integral, up to the first bucket that has changed.
        self._rates: list[float] = []
        self._cumulative: list[float] = [0.0]

    @property
    def unseen(self) -> bool:
        """True until an end has been learned."""
        return not self._learned_ends

    def ran(self, start: float, stop: float) -> None:
        """Learn that a prediction ran from one age to another, in seconds."""
        self._add(self._time, start, stop, 1.0)

    def ended(self, start: float, stop: float) -> None:
        """Learn that a prediction ended between two ages, in seconds."""
        self._add(self._time, start, stop, 0.5)
        if stop > start:
            self._add(self._ends, start, stop, self._usual / (stop - start))
        else:
            last = _bucket(stop / self._usual)
            self._ends[last] += 1
            self._invalidate(last)
        self._learned_ends += 1
        if self._learned_ends >= 2 * MAX_LEARNED_ENDS:
            self._learned_ends /= 2
            self._ends = [ends / 2 for ends in self._ends]
            self._time = [time / 2 for time in self._time]
            self._invalidate(0)

    def chance(self, age: float, later: float) -> float:
        """Return the probability that a prediction running at `age` has ended at the age `later`, in seconds."""
        return -math.expm1(self._cumulative_rate(age) - self._cumulative_rate(later))

    def _add(self, table: list[float], start: float, stop: float, weight: float) -> None:
        """Distribute `weight` per usual duration evenly between two ages, in seconds."""
        left, right = start / self._usual, stop / self._usual
        first, last = _bucket(left), _bucket(right)
        if first == last:
            table[first] += weight * (right - left)
        else:
            table[first] += weight * (BUCKET_EDGES[first + 1] - left)
            for bucket in range(first + 1, last):
                table[bucket] += weight * (BUCKET_EDGES[bucket + 1] - BUCKET_EDGES[bucket])
            table[last] += weight * (right - BUCKET_EDGES[last])
        self._invalidate(first)

    def _invalidate(self, bucket: int) -> None:
        """Drop the cached rates from a bucket on."""
        del self._rates[bucket:]
        del self._cumulative[bucket + 1 :]

    def _cumulative_rate(self, age: float) -> float:
        """Return the hazard rate, integrated up to an age in seconds."""
        age /= self._usual
        bucket = _bucket(age)
        rates, cumulative = self._rates, self._cumulative
        for at in range(len(rates), bucket + 1):
            rates.append((self._ends[at] + _PRIOR_ENDS[at]) / (self._time[at] + _PRIOR_TIME[at]))
            if at < BUCKETS:
                cumulative.append(cumulative[at] + rates[at] * (BUCKET_EDGES[at + 1] - BUCKET_EDGES[at]))
        return cumulative[bucket] + rates[bucket] * (age - BUCKET_EDGES[bucket])


_LOG_FIRST_EDGE, _LOG_RATIO = math.log(BUCKET_EDGES[1]), math.log(BUCKET_RATIO)


def _bucket(age: float) -> int:
    """Return the number of the bucket of an age, in usual durations."""
    if age <= BUCKET_EDGES[1]:
        return 0
    return min(int((math.log(age) - _LOG_FIRST_EDGE) / _LOG_RATIO) + 1, BUCKETS)

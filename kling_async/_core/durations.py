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
PRIOR_WEIGHT = 4.0
"""Number of imagined predictions whose durations are those of the prior."""
MIN_PRIOR_WEIGHT = 2.0
"""Number of imagined predictions at ages that no other one reaches: one long run does not show that none ends there."""
EVEN_WEIGHT = 0.3
"""Part of an end that is spread evenly where ends are assigned in proportion to the ends known so far."""
PRIOR_MEDIAN = 0.8
"""Median of the log-logistic prior, in usual durations: services are often faster than the catalogue says."""
PRIOR_SHAPE = 3.0
"""Shape of the prior: 1/9 end before half of its median, 1/9 after twice it."""
MAX_LEARNED_ENDS = 100
"""Ends that count in full; when twice as many are learned, all are halved, because load varies over the day."""


def _prior_cumulative_rate(age: float) -> float:
    """Return the prior's hazard rate, integrated up to an age in usual durations: log-logistic, with a heavy tail."""
    return math.log1p(math.pow(age / PRIOR_MEDIAN, PRIOR_SHAPE))


_LENGTHS = [stop - start for start, stop in pairwise((*BUCKET_EDGES, BUCKET_EDGES[-1] * BUCKET_RATIO))]
_PRIOR_ENDS: list[float] = []
_PRIOR_TIME: list[float] = []
for _start, _length in zip(BUCKET_EDGES, _LENGTHS, strict=True):
    _rate = _prior_cumulative_rate(_start)
    _running = PRIOR_WEIGHT * math.exp(-_rate) + MIN_PRIOR_WEIGHT
    _PRIOR_ENDS.append(_running * (_prior_cumulative_rate(_start + _length) - _rate))
    _PRIOR_TIME.append(_running * _length)


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

    def ran(self, start: float, stop: float) -> None:
        """Learn that a prediction ran from one age to another, in seconds."""
        for bucket, length in self._pieces(start, stop):
            self._time[bucket] += length

    def ended(self, start: float, stop: float) -> None:
        """Learn that a prediction ended between two ages, in seconds."""
        pieces = self._pieces(start, stop)
        # It probably ended at an age at which others did.
        whole = sum(length for _, length in pieces) or math.inf
        weights = [
            (self._ends[bucket] + _PRIOR_ENDS[bucket]) * length / _LENGTHS[bucket] + EVEN_WEIGHT * length / whole
            for bucket, length in pieces
        ]
        running, total = 1.0, sum(weights)
        for (bucket, length), weight in zip(pieces, weights, strict=True):
            share = weight / total if total else 1.0
            self._ends[bucket] += share
            self._time[bucket] += (running - share / 2) * length
            running -= share
        self._learned_ends += 1
        if self._learned_ends >= 2 * MAX_LEARNED_ENDS:
            self._learned_ends /= 2
            self._ends = [ends / 2 for ends in self._ends]
            self._time = [time / 2 for time in self._time]
            self._invalidate(0)

    def chance(self, age: float, later: float) -> float:
        """Return the probability that a prediction running at `age` has ended at the age `later`, in seconds."""
        return -math.expm1(self._cumulative_rate(age) - self._cumulative_rate(later))

    def _pieces(self, start: float, stop: float) -> list[tuple[int, float]]:
        """Return the buckets between two ages in seconds, which are about to change, and the length in each."""
        left, right = start / self._usual, stop / self._usual
        first, last = _bucket(left), _bucket(right)
        self._invalidate(first)
        return [
            (bucket, min(right, BUCKET_EDGES[bucket] + _LENGTHS[bucket]) - max(left, BUCKET_EDGES[bucket]))
            for bucket in range(first, last)
        ] + [(last, right - max(left, BUCKET_EDGES[last]))]

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

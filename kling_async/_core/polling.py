"""When to look next. Pure: times and a random number in, a delay out."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Backoff:
    """Delays that double, with jitter.

    Attributes:
        first: Seconds before the second attempt, on average.
        cap: Seconds that no delay exceeds, before jitter.
        jitter: The share of a delay by which it varies to either side.
    """

    first: float = 0.5
    cap: float = 15.0
    jitter: float = 0.5

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after the `failures`-th failure in a row (from 1); `chance` is uniform in [0, 1)."""
        base = min(self.first * 2.0 ** min(failures - 1, 60), self.cap)
        return base * (1 + self.jitter * (2 * chance - 1))


@attrs.frozen(kw_only=True)
class WatchPolicy:
    """How often a prediction is read. The vendor asks for 5 s or more for videos, growing (docs/get-result).

    Attributes:
        first: Seconds from the submit to the first read.
        growth: What each interval is multiplied by.
        cap: Seconds of the longest interval, before jitter.
        jitter: The share of an interval by which it varies to either side, so that a batch does not read in step.
    """

    first: float = 5.0
    growth: float = 1.25
    cap: float = 20.0
    jitter: float = 0.15

    def delay(self, reads: int, chance: float) -> float:
        """Seconds until the next read after `reads` reads; `chance` is uniform in [0, 1)."""
        base = min(self.first * self.growth ** min(reads, 100), self.cap)
        return base * (1 + self.jitter * (2 * chance - 1))

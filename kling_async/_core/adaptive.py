"""Limit on the requests of one kind that are under way at once, found by trying. Without clock and event loop.

By Little's law, r requests per second of L seconds each need r x L under way at once. Neither is known beforehand, so
the number is found as TCP finds its window: doubled while that pays (BBR's start), then one more at a time, and halved
by a refusal (AIMD).
"""

from __future__ import annotations

import math

JUDGED_GROWTH = 1.25
"""Growth since the best round from which a round shows whether it pays."""
REWARD = 0.5
"""Part of the growth that has to come through: a quarter more under way has to bring an eighth more."""
BACKOFF = 0.5
"""Factor on the limit for each round with a refusal."""
LITTLE_REWARD = 1.1
"""Factor by which a doubled limit has to bring more to be kept, though not to be doubled again."""
UNREWARDED_GROWTH = 1.5
"""Growth since the best round that is taken back if it has not paid."""
DURATION_WEIGHT = 0.1
"""Weight of the latest request in the mean duration."""


class AdaptiveLimit:
    """Limit on the requests of one kind that are under way at once.

    Successes are counted in *rounds* of as many as the limit permits. The speed of a place is what its request brought
    per second, and a round is judged by the speed of its places times their number: waits between requests do not
    matter. The limit grows only while all places are taken.

    Args:
        initial: Limit at first.
        ceiling: Greatest limit.
        tried: Limit from the first success on, if that is more.

    Attributes:
        ceiling: Greatest limit.
        seconds: Mean duration of the latest requests in seconds; 0 before the first.
        epoch: Number of decreases: a request that began before the last one shows nothing new when it is refused.
    """

    def __init__(self, initial: int, ceiling: int, *, tried: int = 0) -> None:
        self.ceiling = ceiling
        self._tried = tried
        self.seconds = 0.0
        self.epoch = 0
        self._limit = float(min(initial, ceiling))
        self._doubling = True
        # Limit and yield of the best round; 0 before it is measured.
        self._best_limit = self._limit
        self._best_yield = 0.0
        self._begin_round()

    @property
    def total(self) -> int:
        """Requests that may be under way now, at least 1."""
        return int(self._limit)

    @property
    def untried(self) -> bool:
        """True until a request has succeeded or was refused."""
        return not self.seconds and not self.epoch

    def begin_with(self, total: int) -> None:
        """Raise a limit that is untried."""
        if self.untried and total > self._limit:
            self._limit = self._best_limit = float(min(total, self.ceiling))
            self._begin_round()

    def record_done(self, size: float, seconds: float, *, full: bool) -> None:
        """Record a request that succeeded.

        Args:
            size: What it brought, in bytes or any other unit.
            seconds: Its duration.
            full: Whether others are waiting, so that a higher limit would be used.
        """
        self.begin_with(self._tried)
        self.seconds += (seconds - self.seconds) * (DURATION_WEIGHT if self.seconds else 1.0)
        if full:
            # Below half of what worked before there is nothing to find out.
            fast = self._doubling or self._limit < self._best_limit / 2
            self._limit = min(self._limit + (1.0 if fast else 1.0 / self._limit), self.ceiling)
        else:
            self._full = False
        self._size += size
        self._busy += seconds
        self._missing -= 1
        if self._missing <= 0:
            self._end_round()

    def record_refused(self, epoch: int, factor: float = BACKOFF) -> None:
        """Record a request that was refused, or failed as requests do that are too many.

        Args:
            epoch: The attribute `epoch` when it began.
            factor: Factor on the limit.
        """
        if epoch != self.epoch:
            return
        self.epoch += 1
        self._doubling = False
        self._best_limit = min(self._best_limit, self._limit)
        self._limit = max(1.0, self._limit * factor)
        self._begin_round()

    def _begin_round(self) -> None:
        self._round_limit = self._limit
        self._missing = int(self._limit)
        self._size = self._busy = 0.0
        self._full = True

    def _end_round(self) -> None:
        if self._full:
            self._judge(self._round_limit * self._size / self._busy if self._busy else math.inf)
        self._begin_round()

    def _judge(self, found: float) -> None:
        """Draw the conclusions from what a round has brought per second."""
        growth = self._round_limit / self._best_limit
        if not self._best_yield:
            self._best_limit, self._best_yield = self._round_limit, found
        elif growth < JUDGED_GROWTH:
            return
        elif found >= self._best_yield * (1 + REWARD * (growth - 1)):
            self._best_limit, self._best_yield = self._round_limit, found
            self._doubling = True
        elif self._doubling:
            self._doubling = False
            if found > LITTLE_REWARD * self._best_yield:
                self._best_limit, self._best_yield = self._round_limit, found
            self._limit = self._best_limit
        elif growth >= UNREWARDED_GROWTH:
            # The line may be another one than when this was measured.
            self._limit, self._best_yield = self._best_limit, 0.0

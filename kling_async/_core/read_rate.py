"""The ceiling on a session's status reads per second. Pure: no clock, no I/O."""

from __future__ import annotations

import math

SLOTS_PER_READ = 10
"""Slots of a session for each read per second, by default."""
MIN_CEILING, MAX_CEILING = 100.0, 400.0
"""Least and greatest reads per second, by default."""
RECOVERY_S = 60.0
"""Seconds in which the rate grows from nothing to the ceiling again."""
MIN_RATE_SHARE = 1 / 64
"""Least share of the ceiling that is left after refusals."""
SPACING_S = 0.01
"""Seconds of reads that are sent together, and by which reads that were late are made up for."""
SHARE = 1 - 2 * SPACING_S
"""Share of the ceiling that is used, so that no second has more reads than it, wherever the second begins."""


def default_ceiling(slots: int) -> float:
    """Return the reads per second of a session with a number of slots."""
    return min(max(slots / SLOTS_PER_READ, MIN_CEILING), MAX_CEILING)


class ReadRate:
    """Spaces the reads of a session evenly, and lets fewer pass after the service refused one with a 429.

    All times are seconds of one monotonic clock.

    Args:
        ceiling: Reads per second; infinite for no limit.

    Attributes:
        free_at: Time from which on the next read may be sent.
    """

    def __init__(self, ceiling: float) -> None:
        self._ceiling = ceiling
        self._rate = ceiling
        self._since = -math.inf
        self.free_at = -math.inf

    def at(self, now: float) -> float:
        """Return the reads per second that may be sent at a time."""
        if self._rate >= self._ceiling:
            return self._ceiling
        return min(self._ceiling, self._rate + self._ceiling * (now - self._since) / RECOVERY_S)

    def room(self, now: float) -> float:
        """Return the number of reads that may be sent now; whole ones count."""
        return 0 if now < self.free_at else max(1, self.at(now) * SPACING_S)

    def take(self, count: int, now: float) -> None:
        """Count reads that are sent now."""
        self.free_at = max(self.free_at, now - SPACING_S) + count / (SHARE * self.at(now))

    def refused(self, now: float) -> None:
        """Halve the rate, once for all refusals within a second."""
        if now - self._since >= 1.0:
            self._rate, self._since = max(self.at(now) / 2, self._ceiling * MIN_RATE_SHARE), now

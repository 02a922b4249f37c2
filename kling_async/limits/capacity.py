"""How many predictions an account lets run, learned from what it accepts and refuses. No clock, no loop."""

from __future__ import annotations

DECREASE = 0.7
"""What is left of the capacity when refusals go on."""
HOLD = 4.0
"""Generations that a limit is believed, once it has shown itself, before one more is tried."""
UNSEEN = 32
"""One in so many of those that run has ended already, and is not known to."""
AHEAD_AT_FIRST = 4.0
AHEAD_AT_MOST = 32.0
"""How many submits may be unanswered: when nothing is known, and when everything goes well."""


class Capacity:
    """At most `ceiling`, less while the service refuses, and more again by trying.

    The first refusal shows the limit: what runs at that moment, less the few that have ended and are not known to. If
    the next submit is refused as well, although one has ended in between, the limit has moved down, and the capacity
    goes down by a factor. Upwards it goes by one, then by two, four, eight in a *generation*, which is as many
    acceptances as there are places; one that is refused ends it. How many submits may be unanswered at once is learned
    in the same way, so that a burst is not refused as a whole.

    Args:
        ceiling: The most that may ever run.
        adaptive: Whether to learn; if not, it is always the ceiling.

    Attributes:
        ceiling: The most that may ever run.
        total: How many may run now; from 1 to `ceiling`.
    """

    def __init__(self, ceiling: int, *, adaptive: bool = True) -> None:
        self.ceiling = ceiling
        self.total = ceiling
        self._adaptive = adaptive
        self._base = ceiling
        self._hold = 0.0
        self._generations = 0.0
        self._news = True
        self._ahead = AHEAD_AT_FIRST

    def places(self, running: int) -> int:
        """How many slots there are while `running` predictions are known to run; the others are about to be sent."""
        return min(self.total, running + int(self._ahead)) if self._adaptive else self.total

    def accepted(self, running: int) -> None:
        """A job was accepted.

        Args:
            running: How many run, that one included.
        """
        self._news = True
        # Near a limit a burst is refused as a whole.
        most = AHEAD_AT_MOST if self.total == self.ceiling else max(AHEAD_AT_FIRST, self.total / 8)
        self._ahead = min(self._ahead + 0.5 / self._ahead, most)
        # A limit that is not reached is not tried.
        if self.total < self.ceiling and running >= 0.9 * self.total:
            self._generations += 1 / self.total
            more = int(2 ** max(0.0, self._generations - self._hold)) - 1
            self.total = min(self._base + more, self.ceiling)

    def slow_down(self) -> None:
        """A job was refused, for whatever reason: one at a time from here."""
        self._ahead = 1.0

    def refused(self, running: int, *, certain: bool) -> None:
        """A job was refused because too many run, or perhaps because of that.

        Args:
            running: How many run.
            certain: Whether that is certainly the reason.
        """
        self.slow_down()
        if not self._adaptive:
            return
        shown = certain and self._news
        left = running - running // UNSEEN if shown else int((running if certain else self.total) * DECREASE)
        self.total = self._base = max(1, min(self.total, left))
        self._hold = HOLD if shown else 0.0
        self._generations = 0.0
        self._news = False

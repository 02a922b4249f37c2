"""Time by the service's clock: what the session's own submissions show of it.

Neither our clock nor the service's is trusted: either may be wrong by days, and may be set meanwhile. Only monotonic
time is. Each accepted submission shows the service's clock at one moment; where the submissions before and after a
moment agree, its clock was not set in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kling_async._log import log

if TYPE_CHECKING:
    from datetime import datetime

    from kling_async._core.clock import Clock

TOLERANCE_S = 60.0
"""Seconds by which replies may differ from a steady clock: they take time."""
MAX_PERIODS = 100
"""Periods that are kept; a clock is rarely set."""


@attrs.define
class _Period:
    """Period in which the service's clock was steady.

    Attributes:
        first: Monotonic time of the first reply.
        last: Monotonic time of the last reply.
        offset: Least number of seconds by which the service's clock was ahead of the monotonic one.
    """

    first: float
    last: float
    offset: float


class ServiceTime:
    """The service's clock, by the submissions of one session.

    Args:
        clock: The session's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._periods: list[_Period] = []
        self._sent: dict[tuple[str, str, int], float] = {}
        self._told = False

    def sending(self, batch: str, key: str, attempt: int) -> None:
        """Record that a paid request is about to be sent."""
        self._sent[batch, key, attempt] = self._clock.monotonic()

    def settled(self, batch: str, key: str, attempt: int) -> None:
        """Forget a paid request that is not in doubt any more."""
        self._sent.pop((batch, key, attempt), None)

    def accepted(self, created_at: datetime | None) -> None:
        """Record what the reply to a submission shows: the time of creation of its prediction.

        Args:
            created_at: The time by the service's clock; None when the reply has none.
        """
        if created_at is None:
            return
        now = self._clock.monotonic()
        offset = created_at.timestamp() - now
        last = self._periods[-1] if self._periods else None
        if last is not None and abs(offset - last.offset) <= TOLERANCE_S:
            last.last = now
            last.offset = min(last.offset, offset)
        else:
            self._periods.append(_Period(now, now, offset))
            del self._periods[:-MAX_PERIODS]
        self.compare(created_at.timestamp() - self._clock.now())

    def compare(self, ahead: float) -> None:
        """Warn, once, of a clock that is wrong by more than a minute.

        Args:
            ahead: Seconds by which the service's clock is ahead of ours.
        """
        if abs(ahead) > TOLERANCE_S and not self._told:
            self._told = True
            log.warning(
                "this computer's clock is %.0f s %s the service's: set it; until then nothing is decided by it",
                abs(ahead),
                "behind" if ahead > 0 else "ahead of",
            )

    def earliest(self, batch: str, key: str, attempt: int, doubtful_since: float) -> float | None:
        """Return the earliest time, by the service's clock, at which a submission in doubt may have been accepted.

        Args:
            batch: Batch of its job.
            key: Key of its job.
            attempt: Number of the attempt.
            doubtful_since: Monotonic time since which it is in doubt.

        Returns:
            Seconds since the epoch; None unless submissions before it and after it agree about the service's clock.
        """
        sent = self._sent.get((batch, key, attempt))
        if sent is None:
            return None
        for period in self._periods:
            if period.first <= sent and doubtful_since <= period.last:
                return sent + period.offset - TOLERANCE_S
        return None

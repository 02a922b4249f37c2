"""All that stands between a slot and a paid request, and what is learned from the answers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .pause import Pause
from .protocol import ListeningRateLimiter
from .refusal import Limit, which_limit

if TYPE_CHECKING:
    from kling_async._core.clock import Clock
    from kling_async.errors import RateLimitedError

    from .protocol import RateLimiter
    from .slots import Slot, Slots


class Gate:
    """The pause after a 429, then the rate.

    Args:
        limiter: Starts per time.
        slots: The session's slots.
        clock: The session's clock.

    Attributes:
        refusals: How many jobs were refused with a 429, by the limit that refused them.
        waiting_for_rate: How many wait for the rate limiter.
        waiting_for_pause: How many wait for the end of a pause, those who were refused not counted.
        paused_by: What the last pause was about; None when there was none.
    """

    def __init__(self, limiter: RateLimiter, slots: Slots, clock: Clock) -> None:
        self.refusals: Counter[Limit] = Counter()
        self.waiting_for_rate = 0
        self.waiting_for_pause = 0
        self.paused_by: Limit | None = None
        self._limiter = limiter
        self._slots = slots
        self._clock = clock
        self._pause = Pause(clock)
        self._accepted_at = clock.monotonic()

    @property
    def closed(self) -> bool:
        """Whether there is a pause."""
        return self._pause.closed

    @property
    def pause_left(self) -> float:
        """Seconds until the pause ends; 0 when there is none."""
        return self._pause.left

    @property
    def accepted_at(self) -> float:
        """When a job was last accepted, on the clock's monotonic time; at first, when the session was opened."""
        return self._accepted_at

    async def wait(self) -> None:
        """Return when one more job may start."""
        self.waiting_for_pause += 1
        try:
            await self._pause.wait()
        finally:
            self.waiting_for_pause -= 1
        self.waiting_for_rate += 1
        try:
            await self._limiter.acquire()
        finally:
            self.waiting_for_rate -= 1

    def accepted(self) -> None:
        """A job was accepted."""
        self._accepted_at = self._clock.monotonic()
        self._pause.accepted()

    async def refused(self, error: RateLimitedError, slot: Slot, chance: float) -> float | None:
        """A job was refused with a 429.

        Too many starts close the gate for everybody. Too many running ones do not: the job waits for its turn, which
        comes when one ends. Where the two cannot be told apart, it waits for both, and there are fewer slots.

        Args:
            error: The 429.
            slot: The job's slot; await its `turn` before the job is sent again.
            chance: Uniform in [0, 1), for the jitter.

        Returns:
            Seconds until the gate opens, or None when it was not closed.
        """
        running = self._slots.running
        quiet = self._clock.monotonic() - self._accepted_at > Pause.longest
        limit = which_limit(error.message, running=running, quiet=quiet)
        self.refusals[limit] += 1
        if limit is Limit.RUNNING and running and error.retry_after is None and self._slots.adaptive:
            self._slots.refused(slot, limit)
            return None
        # None of ours will end, or the service names a time.
        self._slots.refused(slot, limit if running else Limit.STARTS)
        self.paused_by = limit
        seconds = self._pause.close(error.retry_after, chance)
        if limit is not Limit.RUNNING and isinstance(self._limiter, ListeningRateLimiter):
            await self._limiter.penalize(error.retry_after)
        return seconds

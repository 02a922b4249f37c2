"""Admission of paid requests: pause after a 429, then the rate limiter; records what the service answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from kling_async._tasks import is_cancelled
from kling_async.errors import KlingError

from .pause import MAX_PAUSE_S, Pause
from .protocol import ListeningRateLimiter
from .refusal import Limit, which_limit

if TYPE_CHECKING:
    from kling_async._core.clock import Clock
    from kling_async.errors import RateLimitedError

    from .protocol import RateLimiter
    from .slots import Slot, Slots


class Gate:
    """Gate before every paid request: waits for the end of a pause, then for the rate limiter.

    Args:
        limiter: Limit on starts per time.
        slots: The session's slots.
        clock: The session's clock.

    Attributes:
        refusals: Number of 429s by the limit that they reported.
        waiting_for_rate: Number of jobs that wait for the rate limiter.
        waiting_for_pause: Number of jobs that wait for the end of a pause, without those that were refused.
        paused_by: Limit that the last pause was about; None before the first one.
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
        """True during a pause."""
        return self._pause.closed

    @property
    def pause_left(self) -> float:
        """Seconds until the pause ends; 0 without one."""
        return self._pause.remaining

    @property
    def accepted_at(self) -> float:
        """Monotonic time of the last accepted job; before the first one, of the opening of the session."""
        return self._accepted_at

    async def wait(self) -> None:
        """Return when one more job may start.

        Raises:
            KlingError: The rate limiter failed; nothing was sent.
        """
        self.waiting_for_pause += 1
        try:
            await self._pause.wait()
        finally:
            self.waiting_for_pause -= 1
        self.waiting_for_rate += 1
        try:
            await self._limiter.acquire()
        except asyncio.CancelledError as stray:
            if is_cancelled():
                raise
            raise KlingError(
                f"{type(self._limiter).__name__}.acquire raised CancelledError, and nobody had cancelled the job; "
                "it was not sent",
                advice="correct the rate limiter, then run the job again",
            ) from stray
        finally:
            self.waiting_for_rate -= 1

    def record_accepted(self) -> None:
        """Record an accepted job."""
        self._accepted_at = self._clock.monotonic()
        self._pause.reset()

    async def record_refused(self, error: RateLimitedError, slot: Slot, jitter: float) -> float | None:
        """Record a 429 and begin a pause if waiting can resolve it.

        Too many starts pause the whole session. Too many running predictions do not: the job waits for its turn, which
        comes when a prediction ends. Where the two cannot be told apart, it waits for both, and the capacity shrinks.

        Args:
            error: The 429.
            slot: The job's slot; await its `turn` before the job is sent again.
            jitter: Uniform in [0, 1).

        Returns:
            Seconds until the pause ends, or None without one.
        """
        running = self._slots.running
        quiet = self._clock.monotonic() - self._accepted_at > MAX_PAUSE_S
        limit = which_limit(error.message, running=running, quiet=quiet)
        self.refusals[limit] += 1
        if limit is Limit.RUNNING and running and error.retry_after is None and self._slots.adaptive:
            self._slots.record_refused(slot, limit)
            return None
        # Either none of this session's predictions will end, or the service named a time: waiting is what helps.
        learned = limit if running and limit is not Limit.ELSEWHERE else Limit.STARTS
        self._slots.record_refused(slot, learned)
        self.paused_by = limit
        seconds = self._pause.close(error.retry_after, jitter)
        if limit in {Limit.STARTS, Limit.UNKNOWN} and isinstance(self._limiter, ListeningRateLimiter):
            await self._limiter.penalize(error.retry_after)
        return seconds

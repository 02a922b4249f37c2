"""Rate limiters of one process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import anyio
import anyio.lowlevel

from kling_async._clock import SystemClock
from kling_async._loops import LoopBinding
from kling_async.errors import ConfigurationError

from .pause import Pause

if TYPE_CHECKING:
    from kling_async._core.clock import Clock


class NoLimit:
    """Rate limiter that never waits."""

    async def acquire(self) -> None:
        """Return at once."""
        await anyio.lowlevel.checkpoint()


class StartsPerWindow:
    """Rate limiter: at most `starts` in any window of `per` seconds, first come, first served.

    The log of starts is pyrate-limiter's sliding window: of the libraries measured it is the only one that never admits
    more than N in *any* window (a leaky bucket that starts full admits twice as many in its first one), and it can be
    shared over Redis. Waiting is done here instead: on the session's clock, in order, and without leaving anything
    behind when a waiter is cancelled.

    Args:
        starts: Number of jobs that may start in a window.
        per: Length of the window in seconds.
        clock: Clock of the window; by default the system's.

    Raises:
        ConfigurationError: A number is not positive.
    """

    def __init__(self, starts: int, per: float = 60.0, *, clock: Clock | None = None) -> None:
        if starts < 1 or not 0 < per < math.inf:
            raise ConfigurationError(f"expected at least one start per positive window, got {starts} per {per} s")
        # Imported here: a session with another limiter does not need it.
        from pyrate_limiter import InMemoryBucket, Rate, RateItem  # noqa: PLC0415

        self.starts = starts
        self.per = per
        self._clock = clock or SystemClock()
        self._item = RateItem
        self._bucket = InMemoryBucket([Rate(starts, math.ceil(per * 1000))])
        self._queue = anyio.Lock()
        self._pause = Pause(self._clock)
        self._loop = LoopBinding("the rate limiter")

    async def acquire(self) -> None:
        """Return when one more job may start.

        Raises:
            WrongLoopError: It is in use in another event loop.
        """
        self._loop.bind_or_check()
        async with self._queue:
            while True:
                await self._pause.wait()
                now = int(self._clock.monotonic() * 1000)
                item = self._item("start", now)
                if self._bucket.put(item):
                    self._bucket.leak(now)
                    return
                # One millisecond more, since the log counts whole ones. The cast: a bucket in memory is not async.
                wait = cast("int", self._bucket.waiting(item))
                await self._clock.sleep((wait + 1) / 1000)

    async def penalize(self, retry_after: float | None) -> None:
        """Pause all sessions that share this limiter for as long as the service asks.

        Args:
            retry_after: Seconds; None, when the service named no time, pauses none.

        Raises:
            WrongLoopError: It is in use in another event loop.
        """
        self._loop.bind_or_check()
        await anyio.lowlevel.checkpoint()
        if retry_after is not None:
            self._pause.close(retry_after, 0.0)

    def __repr__(self) -> str:
        return f"StartsPerWindow({self.starts}, per={self.per})"

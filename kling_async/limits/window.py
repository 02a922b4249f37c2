"""Starts per window, in one process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import anyio
import anyio.lowlevel

from kling_async._clock import SystemClock
from kling_async.errors import ConfigurationError

from .pause import Pause

if TYPE_CHECKING:
    from kling_async._core.clock import Clock


class NoLimit:
    """A rate limiter that never waits."""

    async def acquire(self) -> None:
        """Return at once."""
        await anyio.lowlevel.checkpoint()


class StartsPerWindow:
    """At most `starts` in any `per` seconds, first come, first served.

    The account of what started when is pyrate-limiter's sliding-window log: of the libraries measured it is the one
    that never lets more than N through in *any* window (a leaky bucket that starts full lets twice as many through in
    its first one), and the same accounting can be shared over Redis. Its waiting is not used: ours runs on the
    session's clock, in order, and a cancelled waiter leaves nothing behind.

    Args:
        starts: How many may start in a window.
        per: Seconds of the window.
        clock: The clock that the window is measured on.

    Raises:
        ConfigurationError: A number is not positive.
    """

    def __init__(self, starts: int, per: float = 60.0, *, clock: Clock | None = None) -> None:
        if starts < 1 or not 0 < per < math.inf:
            raise ConfigurationError(f"expected at least one start per positive window, got {starts} per {per} s")
        # Imported here: a session with a limiter of its own does not pay for it.
        from pyrate_limiter import InMemoryBucket, Rate, RateItem  # noqa: PLC0415

        self.starts = starts
        self.per = per
        self._clock = clock or SystemClock()
        self._item = RateItem
        self._bucket = InMemoryBucket([Rate(starts, math.ceil(per * 1000))])
        self._turn = anyio.Lock()
        self._held = Pause(self._clock)

    async def acquire(self) -> None:
        """Return when one more job may start."""
        async with self._turn:
            while True:
                await self._held.wait()
                now = int(self._clock.monotonic() * 1000)
                item = self._item("start", now)
                if self._bucket.put(item):
                    self._bucket.leak(now)
                    return
                # One more millisecond: the log counts in whole ones. A bucket in memory answers at once.
                wait = cast("int", self._bucket.waiting(item))
                await self._clock.sleep((wait + 1) / 1000)

    async def penalize(self, retry_after: float | None) -> None:
        """Hold the starts of all who share this limiter back for as long as the service asks.

        Args:
            retry_after: Seconds; None, when the service names no time, holds nobody back.
        """
        await anyio.lowlevel.checkpoint()
        if retry_after is not None:
            self._held.close(retry_after, 0.0)

    def __repr__(self) -> str:
        return f"StartsPerWindow({self.starts}, per={self.per})"

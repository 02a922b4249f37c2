"""Clock of the event loop, for tests in virtual time."""

from __future__ import annotations

import asyncio

import anyio

EPOCH = 1_800_000_000.0
"""Default of `now()` at the start of a clock, in seconds since 1970."""


class LoopClock:
    """Clock of the running event loop: virtual when the loop's time is (looptime), real otherwise.

    Args:
        epoch: Value of `now()` when the loop's time is 0; seconds since 1970.
    """

    def __init__(self, epoch: float = EPOCH) -> None:
        self._epoch = epoch

    def now(self) -> float:
        """Return the seconds since the epoch."""
        return self._epoch + self.monotonic()

    def monotonic(self) -> float:
        """Return the loop's time in seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float, /) -> None:
        """Sleep for `seconds` of the loop's time."""
        await anyio.sleep(seconds)

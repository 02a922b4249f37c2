"""Time for tests: that of the event loop, and one that is moved by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools

import anyio
import anyio.lowlevel

_EPOCH = 1_800_000_000.0
_TURNS = 20
"""Turns of the loop in which most of what was woken comes to rest; whoever needs more costs a pause of real time."""


class LoopClock:
    """Time as the running event loop has it: virtual when the loop's time is (looptime), real otherwise.

    Args:
        epoch: What `now()` says when the loop's time is 0; seconds since 1970.
    """

    def __init__(self, epoch: float = _EPOCH) -> None:
        self._epoch = epoch

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._epoch + self.monotonic()

    def monotonic(self) -> float:
        """The loop's time in seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float, /) -> None:
        """Let `seconds` of the loop's time pass."""
        await anyio.sleep(seconds)


class VirtualClock:
    """Time that stands still until `advance` is awaited, on any event loop.

    ```python
    clock = VirtualClock()
    async with KlingSession("key", transport=ScriptedTransport(reply), clock=clock) as kling:
        waiting = asyncio.create_task(kling.generate(job))
        await clock.advance(120)  # every poll in between has happened, at its exact time
    ```

    Args:
        epoch: What `now()` says at the start; seconds since 1970.
    """

    def __init__(self, epoch: float = _EPOCH) -> None:
        self._epoch = epoch
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, anyio.Event]] = []

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._epoch + self._elapsed

    def monotonic(self) -> float:
        """Seconds that this clock was advanced by."""
        return self._elapsed

    async def sleep(self, seconds: float, /) -> None:
        """Return when the clock was advanced by `seconds`; at once when they are none."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        sleeper = (self._elapsed + seconds, next(self._order), anyio.Event())
        heapq.heappush(self._sleepers, sleeper)
        try:
            await sleeper[2].wait()
        finally:
            if not sleeper[2].is_set():
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: wake who sleeps in the order of what is due, each at its time.

        After each moment it waits until every other task waits for something, so that who falls asleep again in this
        span is woken again in it. What threads and sockets are about is not waited for.

        Args:
            seconds: How many; not negative.

        Raises:
            ValueError: They are negative.
        """
        if not seconds >= 0:
            raise ValueError(f"time does not go back: {seconds!r}")
        until = self._elapsed + seconds
        await _at_rest()
        while self._sleepers and self._sleepers[0][0] <= until:
            self._elapsed = self._sleepers[0][0]
            while self._sleepers and self._sleepers[0][0] <= self._elapsed:
                heapq.heappop(self._sleepers)[2].set()
            await _at_rest()
        self._elapsed = until


async def _at_rest() -> None:
    """Return when every other task waits for something."""
    for _ in range(_TURNS):
        await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()

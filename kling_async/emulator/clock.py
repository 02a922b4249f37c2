"""Clocks: real, scaled and manual.

A clock is any object with `now()`, `monotonic()` and `async sleep(seconds)`. Pass the emulator's clock to the client
under test so that both use the same time: at speed 60 a two-minute prediction takes two seconds.
"""

from __future__ import annotations

import heapq
import itertools
import time
from typing import Protocol

import anyio
import anyio.lowlevel
import attrs

__all__ = ["Clock", "ManualClock", "RealClock", "ScaledClock"]

_DEFAULT_START_UNIX_SECONDS = 1_790_000_000.0


class Clock(Protocol):
    """Source of time for the emulator."""

    def now(self) -> float:
        """Return the time in Unix seconds."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary origin; the value never decreases."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Sleep for `seconds` of this clock."""
        ...


class RealClock:
    """The system clock."""

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds from an arbitrary origin; the value never decreases."""
        return time.monotonic()

    async def sleep(self, seconds: float, /) -> None:
        """Sleep for `seconds` of real time."""
        await anyio.sleep(max(0.0, seconds))


class ScaledClock:
    """Time that runs `speed` times as fast as the system clock, starting from the present.

    Args:
        speed: seconds of this clock per real second; must be positive.

    Raises:
        ValueError: if `speed` is not positive.
    """

    def __init__(self, speed: float) -> None:
        if not speed > 0:
            raise ValueError(f"speed: expected a positive number, got {speed!r}")
        self.speed = speed
        self._real_start = time.monotonic()
        self._start = time.time()

    def now(self) -> float:
        """Return the scaled time in Unix seconds."""
        return self._start + self.monotonic()

    def monotonic(self) -> float:
        """Return scaled seconds since this clock was created."""
        return (time.monotonic() - self._real_start) * self.speed

    async def sleep(self, seconds: float, /) -> None:
        """Sleep for at least `seconds` of scaled time."""
        due = self.monotonic() + seconds
        await anyio.lowlevel.checkpoint()
        # A uvloop timer may fire a millisecond early, which is a long time at a high speed.
        while (remaining := due - self.monotonic()) > 0:  # noqa: ASYNC110 -- there is no event to wait for
            await anyio.sleep(remaining / self.speed)


@attrs.define(slots=True, order=True)
class _Sleeper:
    due: float
    number: int
    wake: anyio.Event = attrs.field(order=False)


class ManualClock:
    """Time that changes only in `advance`.

    Args:
        start: initial time, in Unix seconds.
        turns: event loop iterations to run after each wake-up, enough for a woken task to make a round trip over a
            loopback socket and sleep again before time moves on. Work in other threads is not awaited.
    """

    def __init__(self, start: float = _DEFAULT_START_UNIX_SECONDS, *, turns: int = 50) -> None:
        self._start = start
        self._elapsed = 0.0
        self._turns = turns
        self._sequence = itertools.count()
        self._sleepers: list[_Sleeper] = []

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """Return the seconds by which this clock was advanced."""
        return self._elapsed

    async def sleep(self, seconds: float, /) -> None:
        """Sleep until the clock was advanced by `seconds`."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        sleeper = _Sleeper(self._elapsed + seconds, next(self._sequence), anyio.Event())
        heapq.heappush(self._sleepers, sleeper)
        try:
            await sleeper.wake.wait()
        finally:
            if not sleeper.wake.is_set():
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Advance the time, waking sleepers in the order they are due.

        The event loop runs between wake-ups, so a task that sleeps again within `seconds` is woken again.

        Args:
            seconds: time to advance; not negative.

        Raises:
            ValueError: if `seconds` is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds: expected 0 or more, got {seconds!r}")
        target = self._elapsed + seconds
        await self._run_loop()
        while self._sleepers and self._sleepers[0].due <= target:
            self._elapsed = max(self._elapsed, self._sleepers[0].due)
            while self._sleepers and self._sleepers[0].due <= self._elapsed:
                heapq.heappop(self._sleepers).wake.set()
            await self._run_loop()
        self._elapsed = target
        await self._run_loop()

    async def _run_loop(self) -> None:
        for _ in range(self._turns):
            await anyio.lowlevel.checkpoint()
        # Tasks that need more turns; this takes real time, but only where there are some.
        await anyio.wait_all_tasks_blocked()

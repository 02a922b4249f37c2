"""Clocks: real, scaled and moved by hand.

A clock is any object with `now()`, `monotonic()` and `async sleep(seconds)`. Hand the emulator's own clock to the
client under test, and both live in the same time: at speed 60 a two-minute prediction takes two seconds.
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

_DEFAULT_START = 1_790_000_000.0


class Clock(Protocol):
    """What the emulator needs of time; any object of this shape will do."""

    def now(self) -> float:
        """The time of day in Unix seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds on a scale that never goes back; only differences mean something."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Return after that many seconds of this clock."""
        ...


class RealClock:
    """The computer's own time."""

    def now(self) -> float:
        """The time of day in Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds on a scale that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float, /) -> None:
        """Sleep for that many real seconds."""
        await anyio.sleep(max(0.0, seconds))


class ScaledClock:
    """Time that runs `speed` times as fast as the computer's, starting from the present.

    Args:
        speed: seconds of this clock per real second; must be positive.
    """

    def __init__(self, speed: float) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be positive, not {speed!r}")
        self.speed = speed
        self._real_start = time.monotonic()
        self._start = time.time()

    def now(self) -> float:
        """The scaled time of day in Unix seconds."""
        return self._start + self.monotonic()

    def monotonic(self) -> float:
        """Scaled seconds since this clock was made."""
        return (time.monotonic() - self._real_start) * self.speed

    async def sleep(self, seconds: float, /) -> None:
        """Sleep for that many scaled seconds, and not less."""
        due = self.monotonic() + seconds
        await anyio.lowlevel.checkpoint()
        # A timer may fire a millisecond early (uvloop), which is a long time at a high speed.
        while (left := due - self.monotonic()) > 0:  # noqa: ASYNC110 - time is all it waits for
            await anyio.sleep(left / self.speed)


@attrs.define(slots=True, order=True)
class _Sleeper:
    due: float
    number: int
    wake: anyio.Event = attrs.field(order=False)


class ManualClock:
    """Time that stands still until `advance` is awaited.

    Args:
        start: the first time of day, in Unix seconds.
        turns: how many turns the event loop is given after each wake-up, so that whoever woke can make a round trip
            over a loopback socket and fall asleep again before time moves on. Work in other threads is not waited for.
    """

    def __init__(self, start: float = _DEFAULT_START, *, turns: int = 50) -> None:
        self._start = start
        self._elapsed = 0.0
        self._turns = turns
        self._numbers = itertools.count()
        self._sleepers: list[_Sleeper] = []

    def now(self) -> float:
        """The time of day in Unix seconds."""
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """Seconds this clock has been advanced."""
        return self._elapsed

    async def sleep(self, seconds: float, /) -> None:
        """Return once the clock has been advanced by that many seconds."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        sleeper = _Sleeper(self._elapsed + seconds, next(self._numbers), anyio.Event())
        heapq.heappush(self._sleepers, sleeper)
        try:
            await sleeper.wake.wait()
        finally:
            if not sleeper.wake.is_set():
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move time on, waking sleepers in the order they are due.

        The loop runs between two wake-ups, so a sleeper that falls asleep again within the span is woken again.

        Args:
            seconds: how far; not negative.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds!r}")
        target = self._elapsed + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0].due <= target:
            self._elapsed = max(self._elapsed, self._sleepers[0].due)
            while self._sleepers and self._sleepers[0].due <= self._elapsed:
                heapq.heappop(self._sleepers).wake.set()
            await self._settle()
        self._elapsed = target
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(self._turns):
            await anyio.lowlevel.checkpoint()

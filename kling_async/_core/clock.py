"""The clock protocol: time is injected, so that tests and the emulator can control it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A source of time. All times are seconds."""

    def now(self) -> float:
        """Return the seconds since the epoch, for records and comparisons with the service's times."""
        ...

    def monotonic(self) -> float:
        """Return monotonic seconds from an arbitrary start, for deadlines and schedules."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Sleep for `seconds` of this clock."""
        ...

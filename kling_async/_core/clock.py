"""Time as something that is passed in, so that tests and emulators can bend it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """What the package knows of time. All times are seconds."""

    def now(self) -> float:
        """Seconds since the epoch: for what is written down or compared with the service's times."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never go back: for deadlines and schedules."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Let `seconds` of this clock pass."""
        ...

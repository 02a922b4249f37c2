"""A scaled clock that several processes of this computer read alike."""

from __future__ import annotations

import time
from typing import Self

import anyio
import attrs


@attrs.frozen
class SharedClock:
    """Time that runs `speed` times as fast as the system's.

    Attributes:
        speed: seconds of this clock per real second.
        since: the system's monotonic time at its start, in seconds.
        start: Unix seconds at its start.
    """

    speed: float
    since: float = attrs.field(factory=time.monotonic)
    start: float = attrs.field(factory=time.time)

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the clock of a process that has passed on `str(clock)`."""
        return cls(*map(float, text.split()))

    def __str__(self) -> str:
        return f"{self.speed!r} {self.since!r} {self.start!r}"

    def now(self) -> float:
        return self.start + self.monotonic()

    def monotonic(self) -> float:
        return (time.monotonic() - self.since) * self.speed

    async def sleep(self, seconds: float, /) -> None:
        await anyio.sleep(max(0.0, seconds) / self.speed)

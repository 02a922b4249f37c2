"""Event loop whose time tests advance: timeouts of minutes expire at once, and only on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from support.patience import PATIENCE_S


class LeapingLoop(asyncio.SelectorEventLoop):
    """Event loop with real sockets and a clock that can leap.

    A timeout test in real time cannot be both fast and safe on a slow machine. Here the timeouts stay long, so that
    nothing ends early, and `leap` makes them due.
    """

    def __init__(self) -> None:
        self._leapt = 0.0
        super().__init__()

    def time(self) -> float:
        return super().time() + self._leapt

    def leap(self, seconds: float) -> None:
        """Advance the loop's time; timers that become due run in the next iteration."""
        self._leapt += seconds


BACKEND = ("asyncio", {"loop_factory": LeapingLoop})
"""Value of the fixture `anyio_backend` in modules that leap."""


def leap(seconds: float) -> None:
    """Advance the time of the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LeapingLoop)
    loop.leap(seconds)


async def until(true: Callable[[], object]) -> None:
    """Poll until a condition without an event is true."""
    with anyio.fail_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 -- nothing announces it
            await anyio.sleep(0.001)

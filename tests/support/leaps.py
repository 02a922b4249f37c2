"""A loop whose time a test moves on: timeouts of minutes end at once, and only when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from support.patience import PATIENCE_S


class LeapingLoop(asyncio.SelectorEventLoop):
    """Real sockets, and a clock that can leap.

    A test of timeouts in real time has to be fast and to allow for a slow machine, and cannot be both. Here the
    timeouts stay long, so that nothing ends early, and `leap` makes them due.
    """

    def __init__(self) -> None:
        self._leapt = 0.0
        super().__init__()

    def time(self) -> float:
        return super().time() + self._leapt

    def leap(self, seconds: float) -> None:
        """Move the loop's time on; timers that have become due run in the next turn."""
        self._leapt += seconds


BACKEND = ("asyncio", {"loop_factory": LeapingLoop})
"""Value of the fixture `anyio_backend` in modules that leap."""


def leap(seconds: float) -> None:
    """Move the time of the running loop on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LeapingLoop)
    loop.leap(seconds)


async def until(true: Callable[[], object]) -> None:
    """Wait for something that announces itself to nobody."""
    with anyio.fail_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 -- nothing announces it
            await anyio.sleep(0.001)

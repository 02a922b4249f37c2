"""Manual time for emulators and sessions: drivers of a `ManualClock`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from kling_async.emulator import ManualClock
from support.patience import PATIENCE_S


async def advance_until(clock: ManualClock, reached: Callable[[], Awaitable[bool]], *, step: float = 0.5) -> None:
    """Advance time by `step` seconds until a condition is true."""
    with anyio.fail_after(PATIENCE_S):
        while not await reached():
            await clock.advance(step)


@asynccontextmanager
async def running(clock: ManualClock, *, step: float = 0.5, pause: float = 0.0) -> AsyncIterator[None]:
    """Advance time as fast as the machine follows: data in flight over loopback sockets arrives between steps.

    Args:
        clock: Clock shared by all participants.
        step: Seconds per step.
        pause: Seconds of real time between two steps, for other processes.
    """

    async def run() -> None:
        while True:
            await clock.advance(step)
            await anyio.sleep(pause)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield
        tasks.cancel_scope.cancel()

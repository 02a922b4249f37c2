"""Time that only a test moves on, for emulators and sessions: `ManualClock`, and what drives it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from kling_async.emulator import ManualClock
from support.patience import PATIENCE_S


async def advance_until(clock: ManualClock, reached: Callable[[], Awaitable[bool]], *, step: float = 0.5) -> None:
    """Move time on by `step` seconds until something is so."""
    with anyio.fail_after(PATIENCE_S):
        while not await reached():
            await clock.advance(step)


@asynccontextmanager
async def running(clock: ManualClock, *, step: float = 0.5, pause: float = 0.0) -> AsyncIterator[None]:
    """Move time on as fast as the machine follows: what is on its way over a loopback socket arrives before it does.

    Args:
        clock: The clock of everybody.
        step: Seconds by which it moves.
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

"""What a session relies on in a rate limiter."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from kling_async.limits import ListeningRateLimiter

from ._patience import patience, require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from kling_async.limits import RateLimiter

_AT_ONCE = 100
"""Starts that a limiter without a limit lets through."""


async def check_rate_limiter(
    make: Callable[[], RateLimiter], *, starts: int | None = 1, per: float = 0.2, in_order: bool = True
) -> None:
    """Hold a rate limiter to its contract; takes a few times `per`.

    `acquire` returns for as many as may start, then waits; a waiter that is cancelled ends and takes nothing. One that
    listens to refusals (`penalize`) holds starts back at most for as long as it is told to, or for a second.

    Args:
        make: Gives a new limiter of `starts` per `per`.
        starts: How many it lets through at once when nothing was started; None for one that never waits.
        per: Seconds of the event loop's time until as many may start again; when that is real time, not under 0.2.
        in_order: Whether it promises to serve who comes first first.

    Raises:
        AssertionError: It breaks the contract; says how.
    """
    await _lets_through(make(), starts, per)
    if starts is None:
        return
    await _cancelled_takes_nothing(make(), starts, per)
    if in_order:
        await _first_come_first_served(make(), starts, per)
    limiter = make()
    if isinstance(limiter, ListeningRateLimiter):
        await _holds_back_for_a_while(limiter, per)


async def _lets_through(limiter: RateLimiter, starts: int | None, per: float) -> None:
    count = _AT_ONCE if starts is None else starts
    with patience(max(per / 2, 0.05), f"`acquire` did not return {count} times at once"):
        for _ in range(count):
            await limiter.acquire()
    if starts is not None:
        async with _waiting(limiter, 1) as (waiter,):
            require(not waiter.done(), f"`acquire` let start {starts + 1} through at once, and {starts} were to be")
            with patience(3 * per + 0.1, "`acquire` did not return when the next start was due"):
                await asyncio.wait([waiter])
            waiter.result()


async def _cancelled_takes_nothing(limiter: RateLimiter, starts: int, per: float) -> None:
    for _ in range(starts):
        await limiter.acquire()
    async with _waiting(limiter, 4 * starts) as waiters:
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters, timeout=per / 2)
        require(
            all(waiter.cancelled() for waiter in waiters),
            "a waiter that was cancelled did not end as cancelled: `acquire` must let the cancellation pass",
        )
    with patience(2.5 * per + 0.1, f"{4 * starts} cancelled waiters took what the next one was to get"):
        await limiter.acquire()


async def _first_come_first_served(limiter: RateLimiter, starts: int, per: float) -> None:
    for _ in range(starts):
        await limiter.acquire()
    served: list[int] = []
    count = starts + 2
    async with _waiting(limiter, count) as waiters:
        for number, waiter in enumerate(waiters):
            waiter.add_done_callback(lambda _, number=number: served.append(number))  # type: ignore[misc]  # a default
        with patience((count + 2) * per + 0.1, f"{count} waiters were not served"):
            await asyncio.wait(waiters)
        await anyio.lowlevel.checkpoint()
    require(served == sorted(served), f"waiters were served in the order {served}, not in the order they came")


async def _holds_back_for_a_while(limiter: ListeningRateLimiter, per: float) -> None:
    for seconds in (None, 0.0, per):
        with patience(per / 2, f"`penalize({seconds})` did not return: it is told, it does not wait"):
            await limiter.penalize(seconds)
    with patience(max(per, 1.0) + 2 * per + 0.1, f"`acquire` did not return after `penalize({per})`"):
        await limiter.acquire()


@asynccontextmanager
async def _waiting(limiter: RateLimiter, count: int) -> AsyncIterator[list[asyncio.Task[None]]]:
    """So many tasks in `acquire`, each begun before the next one."""
    tasks = []
    try:
        for _ in range(count):
            tasks.append(asyncio.ensure_future(_acquire(limiter)))
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1)


async def _acquire(limiter: RateLimiter) -> None:
    await limiter.acquire()

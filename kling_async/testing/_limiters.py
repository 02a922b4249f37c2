"""Contract check for rate limiters."""

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

_UNLIMITED_STARTS = 100
"""Starts that a limiter without a limit must grant at once."""


async def check_rate_limiter(
    make: Callable[[], RateLimiter], *, starts: int | None = 1, per: float = 0.2, in_order: bool = True
) -> None:
    """Check a rate limiter against the contract of `RateLimiter`; takes a few times `per`.

    `acquire` returns at once `starts` times, then waits; a cancelled waiter ends as cancelled and consumes nothing.
    With `penalize` (`ListeningRateLimiter`), starts are held back for the given time at most, or for a second.

    Args:
        make: Returns a new limiter of `starts` per `per`.
        starts: Number of starts granted at once when none was before; None for a limiter that never waits.
        per: Seconds until as many may start again, by the event loop's time; at least 0.2 where that is real time.
        in_order: Whether the limiter promises first come, first served.

    Raises:
        AssertionError: The limiter breaks the contract; the text says how.
    """
    await _check_grants(make(), starts, per)
    if starts is None:
        return
    await _check_cancelled_waiters(make(), starts, per)
    if in_order:
        await _check_order(make(), starts, per)
    limiter = make()
    if isinstance(limiter, ListeningRateLimiter):
        await _check_penalize(limiter, per)


async def _check_grants(limiter: RateLimiter, starts: int | None, per: float) -> None:
    count = _UNLIMITED_STARTS if starts is None else starts
    with patience(max(per / 2, 0.05), f"`acquire` did not return {count} times at once"):
        for _ in range(count):
            await limiter.acquire()
    if starts is not None:
        async with _waiting(limiter, 1) as (waiter,):
            require(not waiter.done(), f"`acquire` granted start {starts + 1} at once, expected {starts} at most")
            with patience(3 * per + 0.1, "`acquire` did not return when the next start was due"):
                await asyncio.wait([waiter])
            waiter.result()


async def _check_cancelled_waiters(limiter: RateLimiter, starts: int, per: float) -> None:
    for _ in range(starts):
        await limiter.acquire()
    async with _waiting(limiter, 4 * starts) as waiters:
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters, timeout=per / 2)
        require(
            all(waiter.cancelled() for waiter in waiters),
            "a cancelled waiter did not end as cancelled: `acquire` must not suppress CancelledError",
        )
    with patience(2.5 * per + 0.1, f"{4 * starts} cancelled waiters consumed the next start"):
        await limiter.acquire()


async def _check_order(limiter: RateLimiter, starts: int, per: float) -> None:
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
    require(served == sorted(served), f"waiters were served in the order {served}, expected order of arrival")


async def _check_penalize(limiter: ListeningRateLimiter, per: float) -> None:
    for seconds in (None, 0.0, per):
        with patience(per / 2, f"`penalize({seconds})` did not return: it must not wait"):
            await limiter.penalize(seconds)
    with patience(max(per, 1.0) + 2 * per + 0.1, f"`acquire` did not return after `penalize({per})`"):
        await limiter.acquire()


@asynccontextmanager
async def _waiting(limiter: RateLimiter, count: int) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run `count` tasks in `acquire`, each started before the next."""
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

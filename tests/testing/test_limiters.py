"""`check_rate_limiter`: built-in limiters pass, each kind of defect is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiolimiter import AsyncLimiter

from kling_async import NoLimit, RateLimiter, StartsPerWindow
from kling_async.testing import LoopClock, check_rate_limiter
from support import virtual

pytestmark = pytest.mark.anyio

PER = 10.0


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio", {"loop_factory": virtual.new_event_loop}


@pytest.mark.parametrize("starts", [1, 3])
@pytest.mark.parametrize(
    "make", [lambda starts: StartsPerWindow(starts, PER, clock=LoopClock()), lambda starts: AsyncLimiter(starts, PER)]
)
async def test_builtin_limiters_satisfy_contract(make: Callable[[int], RateLimiter], starts: int) -> None:
    await check_rate_limiter(lambda: make(starts), starts=starts, per=PER)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_check_works_in_real_time(anyio_backend: str) -> None:
    await check_rate_limiter(lambda: StartsPerWindow(2, 0.2), starts=2)
    with pytest.raises(AssertionError, match="cancelled waiters consumed"):
        await check_rate_limiter(lambda: TakesBeforeWaiting(0.2))


async def test_unlimited_limiter_satisfies_contract() -> None:
    await check_rate_limiter(NoLimit, starts=None)


class Window:
    """A correct limiter of one start per `per` seconds; the classes below break it."""

    def __init__(self, per: float = PER) -> None:
        self.per = per
        self.turn = asyncio.Lock()
        self.free = 0.0

    async def acquire(self) -> None:
        async with self.turn:
            await self.wait()

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self.free - loop.time()))
        self.free = loop.time() + self.per


class NeverWaits(Window):
    async def acquire(self) -> None:
        await asyncio.sleep(0)


class NeverReturns(Window):
    async def acquire(self) -> None:
        await asyncio.Event().wait()


class GrantsOnce(Window):
    async def wait(self) -> None:
        await super().wait()
        self.free = float("inf")


class TakesBeforeWaiting(Window):
    """Takes the start before it waits; a cancelled waiter keeps it."""

    async def acquire(self) -> None:
        now = asyncio.get_running_loop().time()
        start, self.free = max(now, self.free), max(now, self.free) + self.per
        await asyncio.sleep(start - now)


class KeepsTheLock(Window):
    """Does not release the lock when cancelled."""

    async def acquire(self) -> None:
        await self.turn.acquire()
        await self.wait()
        self.turn.release()


class SwallowsCancellation(Window):
    async def acquire(self) -> None:
        try:
            await super().acquire()
        except asyncio.CancelledError:
            return


class Listens(Window):
    async def penalize(self, retry_after: float | None) -> None:
        await asyncio.sleep(0)
        if retry_after is not None:
            self.free = max(self.free, asyncio.get_running_loop().time() + retry_after)


class PenalizeWaits(Window):
    async def penalize(self, retry_after: float | None) -> None:
        await asyncio.sleep(retry_after or 0)


class PenalizeBlocksForever(Window):
    async def penalize(self, retry_after: float | None) -> None:
        self.free = float("inf")


class LastComeFirstServed(Window):
    def __init__(self) -> None:
        super().__init__()
        self.waiters: list[object] = []

    async def acquire(self) -> None:
        loop = asyncio.get_running_loop()
        me = object()
        self.waiters.append(me)
        try:
            while loop.time() < self.free or self.waiters[-1] is not me:  # noqa: ASYNC110 -- it waits for a time
                await asyncio.sleep(0.01)
            self.free = loop.time() + self.per
        finally:
            self.waiters.remove(me)


async def test_correct_limiter_satisfies_contract() -> None:
    await check_rate_limiter(Window, starts=1, per=PER)
    await check_rate_limiter(Listens, starts=1, per=PER)
    await check_rate_limiter(LastComeFirstServed, starts=1, per=PER, in_order=False)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (NeverWaits, "granted start 2 at once"),
        (NeverReturns, "did not return 1 times at once"),
        (GrantsOnce, "when the next start was due"),
        (TakesBeforeWaiting, "4 cancelled waiters consumed"),
        (KeepsTheLock, "4 cancelled waiters consumed"),
        (SwallowsCancellation, "did not end as cancelled"),
        (LastComeFirstServed, "expected order of arrival"),
        (PenalizeWaits, "it must not wait"),
        (PenalizeBlocksForever, "after `penalize"),
    ],
)
async def test_check_rate_limiter_reports_defect(broken: Callable[[], RateLimiter], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await check_rate_limiter(broken, starts=1, per=PER)

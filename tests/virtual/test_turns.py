"""Turns over lines, in virtual time: how long many requests take with a limit that is found out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import anyio
import attrs
import pytest

from kling_async import RateLimitedError
from kling_async._core.adaptive import AdaptiveLimit
from kling_async._turns import Turns, download_turns, shows_crowding, upload_turns
from kling_async.testing import LoopClock

pytestmark = pytest.mark.anyio

MEGABYTE = 10**6


@attrs.define
class Line:
    """A line with latency and bandwidth, which its connections share evenly."""

    latency: float
    bytes_per_s: float
    free_at: float = 0.0
    most: int = 0
    under_way: int = 0

    async def carry(self, size: int, rng: random.Random) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.latency * rng.uniform(0.8, 1.2))
        for start in range(0, size, 65_536):
            now = asyncio.get_running_loop().time()
            self.free_at = max(now, self.free_at) + min(65_536, size - start) / self.bytes_per_s
            await asyncio.sleep(self.free_at - now)
        self.under_way -= 1


async def seconds_of(count: int, line: Line, size: Callable[[random.Random], int], turns: Turns) -> float:
    """Return how long transfers take that all ask at once."""
    rng, sizes, began = random.Random(2), random.Random(1), asyncio.get_running_loop().time()

    async def one() -> None:
        asked = size(sizes)
        async with turns.take() as turn:
            await line.carry(asked, rng)
            turn.size = asked

    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(one())
    assert turns.taken == turns.statistics().waiting == 0
    return asyncio.get_running_loop().time() - began


def hundred_kilobytes(_: random.Random) -> int:
    return 100_000


def of_all_sizes(rng: random.Random) -> int:
    return int(10 ** rng.uniform(5, 7))


@pytest.mark.repeats
async def test_latency_is_hidden_by_more_at_once() -> None:
    line = Line(latency=1.3, bytes_per_s=125 * MEGABYTE)
    taken = await seconds_of(2000, line, hundred_kilobytes, download_turns(None, LoopClock()))
    assert taken < 18, "four at once would take 650 s"
    assert line.most <= 256


@pytest.mark.parametrize(
    ("count", "size", "most"),
    [(1000, hundred_kilobytes, 200), (60, lambda _: 10 * MEGABYTE, 64), (250, of_all_sizes, 120)],
)
@pytest.mark.repeats
async def test_thin_line_is_filled_and_not_crowded(count: int, size: Callable[[random.Random], int], most: int) -> None:
    line, rng = Line(latency=1.3, bytes_per_s=2 * MEGABYTE), random.Random(1)
    ideal = sum(size(rng) for _ in range(count)) / line.bytes_per_s
    assert await seconds_of(count, line, size, download_turns(None, LoopClock())) < ideal / 0.9
    assert line.most <= most


async def test_refusals_are_few_where_a_service_takes_few_at_once() -> None:
    turns, refused, done = download_turns(None, LoopClock()), 0, 0

    async def one() -> None:
        nonlocal refused, done
        while True:
            async with turns.take() as turn:
                if turns.taken > 40:
                    refused += 1
                    turn.record_refused()
                    continue
                await asyncio.sleep(1.0)
                turn.size = 1
                done += 1
                return

    began = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2000):
            tasks.create_task(one())
    assert done == 2000
    assert refused < 100
    assert asyncio.get_running_loop().time() - began < 2 * 2000 / 40


@pytest.mark.parametrize(("size", "most"), [(1_000, 256), (100_000, 251), (1_000_000, 25), (10_000_000, 16)])
async def test_small_files_begin_together(*, size: int, most: int) -> None:
    turns, at_once = upload_turns(None, LoopClock()), 0

    async def one() -> None:
        nonlocal at_once
        async with turns.take() as turn:
            turn.expect(size)
            at_once = max(at_once, turns.taken)
            await asyncio.sleep(1.0)
            turn.size = size

    async with asyncio.TaskGroup() as tasks:
        for _ in range(300):
            tasks.create_task(one())
        await asyncio.sleep(0.5)
        assert at_once == most


async def test_ceiling_is_kept() -> None:
    line = Line(latency=1.0, bytes_per_s=1e12)
    assert await seconds_of(12, line, hundred_kilobytes, download_turns(3, LoopClock())) == pytest.approx(4.0, rel=0.3)
    assert line.most == 3


async def test_turns_are_given_in_order() -> None:
    turns, order = Turns(AdaptiveLimit(1, 1), LoopClock()), list[int]()

    async def one(number: int) -> None:
        async with turns.take():
            order.append(number)
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(one(number))
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("given", [False, True])
async def test_cancelled_waiter_keeps_no_turn(*, given: bool) -> None:
    turns = Turns(AdaptiveLimit(1, 1), LoopClock())
    await turns.acquire()
    waiting = asyncio.create_task(turns.acquire())
    behind = asyncio.create_task(turns.acquire())
    await anyio.wait_all_tasks_blocked()
    if given:
        turns.release()
    waiting.cancel()
    await asyncio.wait([waiting])
    if not given:
        turns.release()
    await behind
    assert (turns.taken, turns.full) == (1, False)


def test_only_failures_of_too_many_are_refusals() -> None:
    assert shows_crowding(RateLimitedError("no", status=429))
    assert not shows_crowding(ValueError())

"""`SharedStartsPerWindow` against a real redis-server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from kling_async import ConfigurationError, Job, RateLimiterError, SkippedError
from kling_async.limits import ListeningRateLimiter
from kling_async.limits.shared import SharedStartsPerWindow
from kling_async.testing import check_rate_limiter
from support.patience import PATIENCE_S
from support.redis import RedisServer
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

GONE = -2
"""Redis's TTL of a missing key; -1 is the TTL of a key without expiry."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


class Limiters:
    """Factory of limiters on one server, each with its own key by default; closes all of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.all: list[SharedStartsPerWindow] = []

    def __call__(self, starts: int, per: float, key: str = "", patience: float = 10.0) -> SharedStartsPerWindow:
        key = key or f"account-{len(self.all)}"
        self.all.append(SharedStartsPerWindow(self.url, starts, per, key=key, patience=patience))
        return self.all[-1]


@pytest.fixture
async def limiters(server: RedisServer) -> AsyncIterator[Limiters]:
    made = Limiters(server.url)
    yield made
    for limiter in made.all:
        await limiter.aclose()


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    # Without a timeout: `monitor` waits for processes that may take long to start.
    async with Redis.from_url(server.url, decode_responses=True, socket_timeout=None) as redis:
        yield redis


async def grants(redis: Redis, key: str, count: int) -> list[float]:
    """Return the times of the first `count` entries in the log of a key, by Redis's own clock."""
    times: list[float] = []
    async with redis.monitor() as monitor:
        while len(times) < count:
            command = await monitor.next_command()
            if command["command"].startswith(f"ZADD {key} "):
                times.append(command["time"])
    return times


def most_in_any(seconds: float, times: list[float]) -> int:
    return max(sum(start <= time < start + seconds for time in times) for start in times)


async def test_four_processes_share_rate(redis: Redis, server: RedisServer) -> None:
    seen: list[float] = []

    async def watch() -> None:
        seen.extend(await grants(redis, "account", 180))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        while not any(client["cmd"] == "monitor" for client in await redis.client_list()):  # noqa: ASYNC110 -- polls
            await anyio.sleep(0.01)
        command = [sys.executable, str(Path(__file__).with_name("starts.py")), server.url, "account", "50", "1", "45"]
        # They import what this process imports.
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        processes = [await asyncio.create_subprocess_exec(*command, env=env) for _ in range(4)]
        assert [await process.wait() for process in processes] == [0, 0, 0, 0]
    assert len(seen) == 180
    print(f"\nfour processes at 50 a second: at most {most_in_any(1.0, seen)} in any second, by Redis's clock")
    assert most_in_any(1.0, seen) <= 51


async def test_limiters_of_one_key_grant_all_starts_and_no_more(limiters: Limiters, redis: Redis) -> None:
    several = [limiters(50, 3600.0, "account") for _ in range(4)]
    asking = [asyncio.create_task(limiter.acquire()) for limiter in several for _ in range(45)]
    with anyio.fail_after(PATIENCE_S):
        while sum(one.done() for one in asking) < 50:  # noqa: ASYNC110 -- tasks of several limiters
            await anyio.sleep(0.01)
    assert await redis.zcard("account") == 50
    for one in asking:
        one.cancel()
    await asyncio.wait(asking)
    assert sum(not one.cancelled() for one in asking) == 50


@pytest.mark.parametrize("starts", [1, 3])
async def test_shared_limiter_satisfies_contract(limiters: Limiters, starts: int) -> None:
    # The contract allows half of it for a start that is due: a connection to Redis and a script, on a busy machine.
    await check_rate_limiter(lambda: limiters(starts, 2.0), starts=starts, per=2.0)
    assert isinstance(limiters(1, 1.0), ListeningRateLimiter)


async def test_limiters_share_rate_by_key(limiters: Limiters) -> None:
    here, there, elsewhere = (limiters(1, 3600.0, key) for key in ("one", "one", "other"))
    await here.acquire()
    with anyio.move_on_after(0.3) as scope:
        await there.acquire()
    assert scope.cancelled_caught
    with anyio.fail_after(PATIENCE_S):
        await elsewhere.acquire()


@pytest.mark.parametrize("native", [True, False], ids=["asyncio", "anyio"])
async def test_cancelled_acquire_returns_granted_start(limiters: Limiters, redis: Redis, *, native: bool) -> None:
    limiter = limiters(2, 3600.0, "account")
    await limiter.acquire()
    scope = anyio.CancelScope()

    async def acquire() -> None:
        with scope:
            await limiter.acquire()

    # Redis queues writes without executing them yet.
    await redis.client_pause(3_600_000, all=False)
    asking = asyncio.create_task(acquire())
    with anyio.fail_after(PATIENCE_S):
        while not (await redis.info("clients"))["blocked_clients"]:  # noqa: ASYNC110 -- polls
            await anyio.sleep(0.01)
    if native:
        asking.cancel()
    else:
        scope.cancel()
    await anyio.sleep(0.01)
    await redis.client_unpause()
    await asyncio.wait([asking])
    assert asking.cancelled() is native
    assert await redis.zcard("account") == 1
    with anyio.fail_after(PATIENCE_S):
        await limiter.acquire()
    assert await redis.zcard("account") == 2


async def test_log_is_trimmed_and_expires(limiters: Limiters, redis: Redis) -> None:
    limiter = limiters(2, 0.1, "account")
    lengths = []
    for _ in range(7):
        await limiter.acquire()
        lengths.append(await redis.zcard("account"))
    # The log may have expired already if the machine stalled for a second.
    assert 1 <= max(lengths) <= 2
    lasts = await redis.pttl("account")
    assert lasts == GONE or 0 < lasts <= 1100


async def test_penalize_pauses_all_sharers(limiters: Limiters, redis: Redis) -> None:
    here, there = limiters(5, 1.0, "account"), limiters(5, 1.0, "account")
    await here.penalize(None)
    assert not await redis.exists("account:held")
    await here.penalize(3600.0)
    assert 0 < await redis.pttl("account:held") <= 3_600_000
    with anyio.move_on_after(0.3) as scope:
        await there.acquire()
    assert scope.cancelled_caught
    await here.penalize(1.0)
    with anyio.fail_after(PATIENCE_S):
        await there.acquire()
    assert not await redis.exists("account:held")


async def test_acquire_survives_redis_restart(limiters: Limiters, server: RedisServer, redis: Redis) -> None:
    limiter = limiters(1, 0.5, "account", patience=PATIENCE_S)
    await limiter.acquire()
    server.stop()
    waiting = [asyncio.create_task(limiter.acquire()) for _ in range(2)]
    await anyio.sleep(0.7)
    assert not any(task.done() for task in waiting), "no start without Redis, though the window is over"
    await server.start()
    with anyio.fail_after(PATIENCE_S):
        await waiting[0]
        await waiting[1]
    assert await redis.zcard("account") <= 1, "the second start waited until the first had left the window"


async def test_unreachable_redis_fails_all_waiters(limiters: Limiters, server: RedisServer) -> None:
    limiter = limiters(1000, 1.0, patience=0.5)
    await limiter.acquire()
    server.stop()
    attempt = limiter._try_acquire
    attempts = 0

    async def counted() -> float:
        nonlocal attempts
        attempts += 1
        return await attempt()

    limiter._try_acquire = counted  # type: ignore[method-assign]  # counts
    with anyio.fail_after(PATIENCE_S):
        ends = await asyncio.gather(*(limiter.acquire() for _ in range(50)), return_exceptions=True)
    assert {type(end) for end in ends} == {RateLimiterError}
    assert "nothing was started" in str(ends[0])
    assert "nothing was spent" in str(ends[0])
    assert attempts < 10, "waiters fail together, not one after another"
    limiter._try_acquire = attempt  # type: ignore[method-assign]  # as it was
    await server.start()
    with anyio.fail_after(PATIENCE_S):
        await limiter.acquire()


async def test_unreachable_redis_stops_batch_unsent(limiters: Limiters, server: RedisServer) -> None:
    server.stop()
    service = Service()
    async with open_session(service, rate_limiter=limiters(1000, 1.0, patience=0.2)) as kling:
        jobs = (Job(prompt=f"{number}", image=IMAGE) for number in range(200))
        with anyio.fail_after(PATIENCE_S):
            async with kling.batch(jobs, window=20) as batch:
                errors = [outcome.error async for outcome in batch]
    assert service.paid == []
    assert any(isinstance(error, RateLimiterError) for error in errors)
    assert {type(error) for error in errors} <= {RateLimiterError, SkippedError}
    assert sum(isinstance(error, SkippedError) for error in errors) >= 150


async def test_wrong_password_fails_at_once_and_is_not_quoted() -> None:
    async with RedisServer("--requirepass", "the-right-one") as server:
        url = server.url.replace("unix://", "unix://:the-wrong-one@")
        async with SharedStartsPerWindow(url, 1, patience=1000) as limiter:
            with anyio.fail_after(PATIENCE_S), pytest.raises(RateLimiterError, match="refuses") as caught:
                await limiter.acquire()
            for text in (str(caught.value), repr(caught.value), repr(limiter), str(caught.value.__cause__)):
                assert "the-wrong" not in text
        url = server.url.replace("unix://", "unix://:the-right-one@")
        async with SharedStartsPerWindow(url, 1) as limiter:
            await limiter.acquire()


@pytest.mark.parametrize("url", ["nonsense", "http://:secret@localhost", "redis://:secret@localhost:secret"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="url: cannot be parsed, expected redis://") as caught:
        SharedStartsPerWindow(url, 1)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("starts", "per"), [(0, 60.0), (1, 0.0), (1, float("nan")), (1, float("inf"))])
def test_invalid_rate_is_refused(starts: int, per: float) -> None:
    with pytest.raises(ConfigurationError, match="at least one start per positive window"):
        SharedStartsPerWindow("redis://localhost", starts, per)


@pytest.fixture
def server_for_loops() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.close()


def test_shared_limiter_works_on_successive_loops(server_for_loops: RedisServer) -> None:
    limiter = SharedStartsPerWindow(server_for_loops.url, 100)

    async def use() -> None:
        async with limiter:
            await limiter.acquire()

    for _ in range(2):
        asyncio.run(use())

"""Rate limiter shared by processes and machines over Redis."""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Self, cast

import anyio
from pyrate_limiter import Rate, RateItem, RedisBucket
from pyrate_limiter.buckets.redis_bucket import LuaScript

from kling_async._core.frames import hides_arguments
from kling_async._core.polling import Backoff
from kling_async._log import log
from kling_async._loops import LoopBinding
from kling_async._tasks import finish
from kling_async.errors import ConfigurationError, RateLimiterError

from .pause import MAX_RETRY_AFTER_S

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import AuthenticationError, NoScriptError, RedisError
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import TimeoutError as RedisTimeoutError
except ImportError as missing:
    raise ImportError("the shared limiter needs its extra: pip install 'kling-async[redis]'") from missing

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

_REDIS_TIME_SCRIPT = """
-- Runs the library's script in Redis's own time instead of the caller's, and converts the answer back.
-- ARGV: now, weight, name, 1, window start, limit, rank.
if #ARGV ~= 7 then return redis.error_reply('kling_async: another script of pyrate-limiter was expected') end
local caller_now, per = ARGV[1], ARGV[1] - ARGV[5]
local held = redis.call('PTTL', KEYS[1] .. ':held')
if held > 0 then return {0, caller_now - per + held} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
ARGV[1], ARGV[5] = now, now - per
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, '(' .. (now - per))
local function put()
%s
end
local reply = put()
if reply[1] < 0 then redis.call('PEXPIRE', KEYS[1], per + 1000) end
if reply[2] >= 0 then reply[2] = reply[2] - now + caller_now end
return reply
"""

_CALLER_NOW_MS = 10**13
"""Caller's time in milliseconds; the script replaces it, so any value above the length of a window will do."""
_ROUND_TRIP_TIMEOUT_S = 5.0
"""Timeout of one request to Redis, in seconds."""
_UNREACHABLE = "nothing was started: the Redis of the shared limiter has not answered for"
_BACKOFF = Backoff(first=0.1, cap=1.0)


class SharedStartsPerWindow:
    """Rate limiter: at most `starts` in any window of `per` seconds, among all processes with the same Redis and key.

    The log of starts is pyrate-limiter's sliding window in a sorted set, updated by one script in Redis's own time, so
    that different clocks do not matter. Within a process it is first come, first served; among processes, the first to
    ask when a start is due gets it. A cancelled waiter returns a start that it was just granted. If Redis loses its
    data, twice as many may start in that window.

    While Redis cannot be reached, nothing starts. After `patience` seconds of retries all waiters raise
    `RateLimiterError`: their jobs end unsent, and a batch stops.

    Needs the extra `redis`. Close it when done:

    ```python
    async with SharedStartsPerWindow("redis://localhost:6379/0", 500) as limiter, KlingSession(rate_limiter=limiter):
        ...
    ```

    Args:
        url: URL of Redis: `redis://`, `rediss://` or `unix://`.
        starts: Number of jobs that may start in a window; the same in all processes.
        per: Length of the window in seconds; the same in all processes.
        key: Redis key of the account's log; one for each account.
        patience: Seconds for which Redis may be unreachable.

    Raises:
        ConfigurationError: A number is not positive, or the URL cannot be parsed.
    """

    @hides_arguments
    def __init__(
        self, url: str, starts: int, per: float = 60.0, *, key: str = "kling-async:starts", patience: float = 30.0
    ) -> None:
        if starts < 1 or not 0 < per < math.inf:
            raise ConfigurationError(f"expected at least one start per positive window, got {starts} per {per} s")
        self.starts = starts
        self.per = per
        self.key = key
        self.patience = patience
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_timeout=_ROUND_TRIP_TIMEOUT_S,
                socket_connect_timeout=_ROUND_TRIP_TIMEOUT_S,
                # Retries are decided below: a script that may have run is not simply run again.
                retry=Retry(NoBackoff(), 0),
                # The version that every Redis supports.
                protocol=2,
            )
        except ValueError:
            # Its text is dropped: it may contain the password.
            raise ConfigurationError("url: cannot be parsed, expected redis://host:port/db") from None
        self._name = uuid.uuid4().hex
        self._attempts = 0
        self._bucket: RedisBucket | None = None
        self._queue = anyio.Lock()
        self._gave_up_at = -math.inf
        self._loop = LoopBinding("the rate limiter")

    async def __aenter__(self) -> Self:
        self._loop.bind_or_check()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to Redis; a later `acquire` opens them again.

        Raises:
            WrongLoopError: It is in use in another event loop.
        """
        self._loop.bind_or_check()
        await self._redis.aclose()

    async def acquire(self) -> None:
        """Return when one more job may start.

        Raises:
            RateLimiterError: Redis cannot be reached or refuses; nothing was started.
            WrongLoopError: It is in use in another event loop.
        """
        self._loop.bind_or_check()
        arrived_at = anyio.current_time()
        async with self._queue:
            wait = await self._try_with_retries(arrived_at)
            while wait:
                await anyio.sleep(wait)
                wait = await self._try_with_retries(arrived_at)

    async def penalize(self, retry_after: float | None) -> None:
        """Pause the starts of all processes for as long as the service asks.

        Args:
            retry_after: Seconds; None, when the service named no time, pauses none.

        Raises:
            WrongLoopError: It is in use in another event loop.
        """
        self._loop.bind_or_check()
        if retry_after is None:
            return
        milliseconds = math.ceil(min(max(retry_after, 1.0), MAX_RETRY_AFTER_S) * 1000)
        try:
            await self._redis.set(f"{self.key}:held", 1, px=milliseconds)
        except RedisError as error:
            # Not raised: the service will refuse the others too, and `acquire` finds out whether Redis is back.
            log.warning("Redis: could not pause the other processes that share the limiter: %s", error)

    async def _try_with_retries(self, arrived_at: float) -> float:
        """Return 0 when the start was granted, else the seconds until the next attempt.

        Raises:
            RateLimiterError: Redis could not be reached for `patience` seconds, or refuses.
        """
        since = anyio.current_time()
        failures = 0
        while True:
            if arrived_at <= self._gave_up_at:
                # Jobs that were queued when the limiter gave up fail with it, instead of waiting as long again each.
                raise RateLimiterError(f"{_UNREACHABLE} {self.patience:g} s")
            try:
                return await self._try_acquire()
            except (RedisConnectionError, RedisTimeoutError) as error:
                if isinstance(error.__cause__ or error, AuthenticationError):
                    raise _refused(error) from error
                failures += 1
                pause = _BACKOFF.delay(failures, random.random())  # noqa: S311 -- jitter
                if anyio.current_time() + pause - since > self.patience:
                    self._gave_up_at = anyio.current_time()
                    raise RateLimiterError(f"{_UNREACHABLE} {self.patience:g} s: {error}") from error
            except RedisError as error:
                raise _refused(error) from error
            await anyio.sleep(pause)

    async def _try_acquire(self) -> float:
        """Run the script once. If the caller is cancelled meanwhile, a granted start is returned."""
        self._attempts += 1
        name = f"{self._name}-{self._attempts}"
        attempt = asyncio.create_task(self._put(name), name="kling-redis-put")
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await finish(asyncio.create_task(self._undo(name, attempt), name="kling-redis-undo"))
            raise

    async def _put(self, name: str) -> float:
        item = RateItem(name, _CALLER_NOW_MS)
        bucket = self._bucket or await self._load()
        try:
            granted = await cast("Awaitable[bool]", bucket.put(item))
        except NoScriptError:
            # Redis was restarted and has lost the script.
            bucket = await self._load()
            granted = await cast("Awaitable[bool]", bucket.put(item))
        return 0.0 if granted else max(cast("int", bucket.waiting(item)), 1) / 1000

    async def _load(self) -> RedisBucket:
        script = await self._redis.script_load(_REDIS_TIME_SCRIPT % LuaScript.PUT_ITEM)
        rates = [Rate(self.starts, math.ceil(self.per * 1000))]
        self._bucket = RedisBucket(rates, self._redis, self.key, script)
        return self._bucket

    async def _undo(self, name: str, attempt: asyncio.Task[float]) -> None:
        """Remove the start from the log if the attempt was granted."""
        await asyncio.wait([attempt])
        if attempt.cancelled() or attempt.exception() is not None or attempt.result():
            return
        # A failure costs one start in one window.
        with suppress(RedisError):
            async for member, _ in self._redis.zscan_iter(self.key, match=f"{name}:*", count=10_000):
                await self._redis.zrem(self.key, member)

    def __repr__(self) -> str:
        return f"SharedStartsPerWindow({self.starts}, per={self.per}, key={self.key!r})"


def _refused(error: RedisError) -> RateLimiterError:
    return RateLimiterError(f"nothing was started: the Redis of the shared limiter refuses: {error}")

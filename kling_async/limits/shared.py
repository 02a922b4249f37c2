"""Starts per window, in many processes on many machines, over Redis."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Self, cast

import anyio
from pyrate_limiter import Rate, RateItem, RedisBucket
from pyrate_limiter.buckets.redis_bucket import LuaScript

from kling_async._core.polling import Backoff
from kling_async._tasks import finish
from kling_async.errors import ConfigurationError, RateLimiterError

from .pause import Pause

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import AuthenticationError, NoScriptError, RedisError
    from redis.exceptions import ConnectionError as AwayError
    from redis.exceptions import TimeoutError as SilentError
except ImportError as missing:
    raise ImportError("the shared limiter needs its extra: pip install 'kling-async[redis]'") from missing

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

log = logging.getLogger("kling_async")

_IN_REDIS_TIME = """
-- The library's script believes the time that it is told; here it is told Redis's own, and answers in the caller's.
-- ARGV: now, weight, name, 1, window start, limit, rank.
if #ARGV ~= 7 then return redis.error_reply('kling_async: another script of pyrate-limiter was expected') end
local told, per = ARGV[1], ARGV[1] - ARGV[5]
local held = redis.call('PTTL', KEYS[1] .. ':held')
if held > 0 then return {0, told - per + held} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
ARGV[1], ARGV[5] = now, now - per
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, '(' .. (now - per))
local function put()
%s
end
local reply = put()
if reply[1] < 0 then redis.call('PEXPIRE', KEYS[1], per + 1000) end
if reply[2] >= 0 then reply[2] = reply[2] - now + told end
return reply
"""

_TOLD = 10**13
"""The time that the script is told, in milliseconds: any will do from which a window can be taken away."""
_TIMEOUT = 5.0
"""Seconds for one round trip."""
_AWAY = "nothing was started: the Redis of the shared limiter has not answered for"
_BACKOFF = Backoff(first=0.1, cap=1.0)


class SharedStartsPerWindow:
    """At most `starts` in any `per` seconds among all who name the same key of the same Redis.

    The account of what started when is pyrate-limiter's sliding-window log in a sorted set, kept by one script in
    Redis's own time, so that clocks which disagree do not matter. Within a process it is first come, first served; of
    several processes, whoever asks when a start is due gets it. A waiter that is cancelled gives back what it was about
    to get. A Redis that loses its data knows of no starts: there may be twice as many in that window.

    While Redis is away nothing starts. It is tried again for `patience` seconds, then whoever waits gets an error: the
    jobs end unsent, and a batch stops.

    Needs the extra `redis`. Close it when you are done:

    ```python
    async with SharedStartsPerWindow("redis://localhost:6379/0", 500) as limiter, KlingSession(rate_limiter=limiter):
        ...
    ```

    Args:
        url: Where Redis is: `redis://`, `rediss://` or `unix://`.
        starts: How many may start in a window; the same in all processes.
        per: Seconds of the window; the same in all processes.
        key: The name of the account in Redis; one for each account.
        patience: Seconds for which Redis may be away.

    Raises:
        ConfigurationError: A number is not positive, or the URL is none.
    """

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
                socket_timeout=_TIMEOUT,
                socket_connect_timeout=_TIMEOUT,
                # What is tried again is decided below: a script that may have run is not simply run again.
                retry=Retry(NoBackoff(), 0),
                # Every Redis speaks it.
                protocol=2,
            )
        except ValueError:
            # The error's own words may hold the password.
            raise ConfigurationError("the URL of Redis cannot be read: expected redis://host:port/db") from None
        self._name = uuid.uuid4().hex
        self._asked = 0
        self._bucket: RedisBucket | None = None
        self._turn = anyio.Lock()
        self._gave_up_at = -math.inf

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to Redis. They are opened again when they are needed."""
        await self._redis.aclose()

    async def acquire(self) -> None:
        """Return when one more job may start.

        Raises:
            RateLimiterError: Redis is away or refuses; nothing was started.
        """
        came = anyio.current_time()
        async with self._turn:
            wait = await self._ask_patiently(came)
            while wait:
                await anyio.sleep(wait)
                wait = await self._ask_patiently(came)

    async def penalize(self, retry_after: float | None) -> None:
        """Hold everybody's starts back for as long as the service asks; when it names no time, nobody's.

        Args:
            retry_after: Seconds, or None.
        """
        if retry_after is None:
            return
        milliseconds = math.ceil(min(max(retry_after, 1.0), Pause.most) * 1000)
        try:
            await self._redis.set(f"{self.key}:held", 1, px=milliseconds)
        except RedisError as error:
            # The others will be refused themselves; whether this one starts anything is asked later.
            log.warning("the refusal could not be told to those who share the limiter: %s", error)

    async def _ask_patiently(self, came: float) -> float:
        """Seconds until it is worth asking again; 0 when the start was granted."""
        since = anyio.current_time()
        failures = 0
        while True:
            if came <= self._gave_up_at:
                # Those who were waiting when it was given up do not each wait for as long again.
                raise RateLimiterError(f"{_AWAY} {self.patience:g} s")
            try:
                return await self._ask()
            except (AwayError, SilentError) as error:
                if isinstance(error.__cause__ or error, AuthenticationError):
                    raise _refusal(error) from error
                failures += 1
                pause = _BACKOFF.delay(failures, random.random())  # noqa: S311 -- jitter
                if anyio.current_time() + pause - since > self.patience:
                    self._gave_up_at = anyio.current_time()
                    raise RateLimiterError(f"{_AWAY} {self.patience:g} s: {error}") from error
            except RedisError as error:
                raise _refusal(error) from error
            await anyio.sleep(pause)

    async def _ask(self) -> float:
        """Ask once. A caller that is cancelled gives back what the answer brings."""
        self._asked += 1
        name = f"{self._name}-{self._asked}"
        asking = asyncio.create_task(self._put(name), name="kling-redis-put")
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await finish(asyncio.create_task(self._give_back(name, asking), name="kling-redis-give-back"))
            raise

    async def _put(self, name: str) -> float:
        item = RateItem(name, _TOLD)
        bucket = self._bucket or await self._load()
        try:
            granted = await cast("Awaitable[bool]", bucket.put(item))
        except NoScriptError:
            # Redis was started anew.
            bucket = await self._load()
            granted = await cast("Awaitable[bool]", bucket.put(item))
        return 0.0 if granted else max(cast("int", bucket.waiting(item)), 1) / 1000

    async def _load(self) -> RedisBucket:
        script = await self._redis.script_load(_IN_REDIS_TIME % LuaScript.PUT_ITEM)
        rates = [Rate(self.starts, math.ceil(self.per * 1000))]
        self._bucket = RedisBucket(rates, self._redis, self.key, script)
        return self._bucket

    async def _give_back(self, name: str, asking: asyncio.Task[float]) -> None:

        await asyncio.wait([asking])
        if asking.cancelled() or asking.exception() is not None or asking.result():
            return
        # If it fails, one start is lost for one window.
        with suppress(RedisError):
            async for member, _ in self._redis.zscan_iter(self.key, match=f"{name}:*", count=10_000):
                await self._redis.zrem(self.key, member)

    def __repr__(self) -> str:
        return f"SharedStartsPerWindow({self.starts}, per={self.per}, key={self.key!r})"


def _refusal(error: RedisError) -> RateLimiterError:
    return RateLimiterError(f"nothing was started: the Redis of the shared limiter refuses: {error}")

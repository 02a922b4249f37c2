"""An output host on a real socket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.lowlevel
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from kling_async._core.http import Timeouts
from kling_async._core.prediction import SavedFile
from kling_async._http.transport import AiohttpTransport
from kling_async._turns import Turns
from kling_async.storage import Target, save_output
from support.videos import mp4

VIDEO = mp4(6 * 2**20 + 123)
SHORT = mp4(2000, seed=2)
KEY = "signature"


class QuickClock:
    """Clock whose sleeps return immediately, are recorded, and advance it.

    Attributes:
        pauses: seconds of each sleep.
        elapsed: seconds by which it has advanced.
    """

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.elapsed = 0.0

    def now(self) -> float:
        return 1_000_000.0 + self.elapsed

    def monotonic(self) -> float:
        return self.elapsed

    async def sleep(self, seconds: float, /) -> None:
        self.pauses.append(seconds)
        self.elapsed += seconds
        await anyio.lowlevel.checkpoint()


class Host:
    """An output host with range support; `replies` script its next responses, one request each."""

    def __init__(self, transport: AiohttpTransport) -> None:
        self.transport = transport
        self.clock = QuickClock()
        self.content = VIDEO
        self.etag: str | None = '"v1"'
        self.replies: list[Callable[[web.BaseRequest], Any]] = []
        self.ranges: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def save(
        self,
        target: Path | Target,
        deadline: float = 1800.0,
        rng: Callable[[], float] = random.random,
        created_at: float | None = None,
        turns: Turns | None = None,
    ) -> SavedFile:
        return await save_output(
            self.transport,
            self.url,
            target,
            self.clock,
            deadline=deadline,
            rng=rng,
            created_at=created_at,
            turns=turns,
        )

    def cut(self, after: int) -> None:
        """Close the connection of the next response after `after` bytes of its body."""

        async def reply(request: web.BaseRequest) -> web.StreamResponse:
            response, body = self.whole_or_rest(request)
            response.content_length = len(body)
            await response.prepare(request)
            await response.write(body[:after])
            assert request.transport is not None
            request.transport.close()
            return response

        self.replies.append(reply)

    def hang(self, after: int) -> asyncio.Event:
        """Stall the next response after `after` bytes of its body; the returned event is set when it stalls."""
        stopped = asyncio.Event()

        async def reply(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = len(self.content)
            await response.prepare(request)
            await response.write(self.content[:after])
            stopped.set()
            await asyncio.sleep(3600)
            return response

        self.replies.append(reply)
        return stopped

    def status(self, status: int, times: int = 1, /, **headers: str) -> None:
        """Send the next `times` responses with this status and no body."""

        async def reply(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=status, headers={name.replace("_", "-"): headers[name] for name in headers})

        self.replies += [reply] * times

    def whole_or_rest(self, request: web.BaseRequest) -> tuple[web.StreamResponse, bytes]:
        byte_range = request.headers.get("Range")
        headers = {"ETag": self.etag} if self.etag else {}
        if byte_range is None or request.headers.get("If-Range", self.etag) != self.etag:
            return web.StreamResponse(headers=headers), self.content
        start = int(byte_range.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return web.StreamResponse(status=206, headers=headers), self.content[start:]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        self.headers.append(dict(request.headers))
        if self.replies:
            response: web.StreamResponse = await self.replies.pop(0)(request)
            return response
        response, body = self.whole_or_rest(request)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body)
        return response


@asynccontextmanager
async def output_host() -> AsyncIterator[Host]:
    transport = AiohttpTransport(timeouts=Timeouts(transfer=5))
    host = Host(transport)
    try:
        async with RawTestServer(host) as server:
            host.url = str(server.make_url(f"/media/a.mp4?{KEY}=1"))
            yield host
    finally:
        await transport.aclose()

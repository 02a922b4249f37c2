"""For the tests of pipelines that use this package: a transport without a network, and time that costs none."""

from __future__ import annotations

import asyncio
import inspect
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from ._core.http import HttpResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from ._core.http import HttpRequest
    from ._core.transport import StreamedResponse


class LoopClock:
    """Time as the running event loop has it: virtual when the loop's time is (looptime), real otherwise.

    Args:
        epoch: What `now()` says when the loop's time is 0; seconds since 1970.
    """

    def __init__(self, epoch: float = 1_800_000_000.0) -> None:
        self._epoch = epoch

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._epoch + self.monotonic()

    def monotonic(self) -> float:
        """The loop's time in seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float, /) -> None:
        """Let `seconds` of the loop's time pass."""
        await anyio.sleep(seconds)


class ScriptedTransport:
    """A transport whose replies are what a function says. It records every request.

    Args:
        reply: Gives the reply to a request, or raises the error of one; may be a coroutine function.

    Attributes:
        requests: What was sent, in order.
        closed: Whether it was closed.
    """

    def __init__(self, reply: Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]) -> None:
        self.requests: list[HttpRequest] = []
        self.closed = False
        self._reply = reply

    async def send(self, request: HttpRequest) -> HttpResponse:
        """The scripted reply."""
        self.requests.append(request)
        response = self._reply(request)
        return await response if inspect.isawaitable(response) else response

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        """The scripted reply, in one piece."""
        response = await self.send(request)
        yield _Whole(response)

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed = True


class _Whole:
    """A complete response, streamed."""

    def __init__(self, response: HttpResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self._body = response.body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in one piece."""
        yield self._body


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """A reply with a JSON body."""
    return HttpResponse(
        status=status,
        headers={"content-type": "application/json", **(headers or {})},
        body=json.dumps(body).encode(),
    )

"""A transport without a network."""

from __future__ import annotations

import inspect
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kling_async._core.http import HttpResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from kling_async._core.http import HttpRequest
    from kling_async._core.transport import StreamedResponse


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

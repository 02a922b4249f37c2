"""Transport without a network."""

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
    """Transport whose responses come from a function; it records every request.

    Args:
        reply: Function or coroutine function that returns the response to a request, or raises an error.

    Attributes:
        requests: Requests in the order they were sent.
        closed: Whether the transport was closed.
    """

    def __init__(self, reply: Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]) -> None:
        self.requests: list[HttpRequest] = []
        self.closed = False
        self._reply = reply

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Record the request and return the scripted response."""
        self.requests.append(request)
        response = self._reply(request)
        return await response if inspect.isawaitable(response) else response

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        """Record the request and stream the scripted response in one chunk."""
        response = await self.send(request)
        yield _SingleChunk(response)

    async def aclose(self) -> None:
        """Set `closed`."""
        self.closed = True


class _SingleChunk:
    """Streamed response whose body is one chunk."""

    def __init__(self, response: HttpResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self._body = response.body

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        yield self._body


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """Return a response with a JSON body."""
    return HttpResponse(
        status=status,
        headers={"content-type": "application/json", **(headers or {})},
        body=json.dumps(body).encode(),
    )

"""Bodies that are read while they are sent, and replies whose bodies are read while they arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async._core.frames import without_frames
from kling_async.errors import KlingError

from .bodies import Body
from .failures import result_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from kling_async._core.http import HttpRequest
    from kling_async._core.transport import StreamedBody


class StreamedPieces:
    """Body that is read while it is sent.

    Attributes:
        size: Length in bytes.
        error: Error of the body; None without one. aiohttp would raise one of its own instead.
    """

    def __init__(self, body: StreamedBody) -> None:
        self.size = body.size
        self.error: KlingError | None = None
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._body:
                yield piece
        except KlingError as error:
            self.error = error
            raise


class StreamedReply:
    """A `StreamedResponse` that iterates over its body.

    It keeps aiohttp's response out of the frames that an error passes: tracebacks that show local variables would print
    its URL with the query.

    Args:
        response: aiohttp's response.
        headers: Its headers; names in lower case.
        request: The request, for errors.
    """

    def __init__(self, response: aiohttp.ClientResponse, headers: Mapping[str, str], request: HttpRequest) -> None:
        self.status = response.status
        self.headers = headers
        self._response = response
        self._body = Body(response)
        self._request = request

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await result_of(self._body.next(), self._request, replied=True)
        if isinstance(chunk, BaseException):
            raise without_frames(chunk)
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """Release the connection if the body was read to its end, else close it."""
        self._response.close()

"""Bodies of requests that are read while they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async.errors import KlingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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

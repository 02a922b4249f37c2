"""Protocols of the HTTP transport; the implementation on aiohttp is elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from .http import HttpRequest, HttpResponse


class StreamedResponse(Protocol):
    """A reply whose body is streamed."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers; names in lower case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body in chunks of any length, once.

        Raises:
            TransportError: The connection broke or timed out before the body was complete.
        """
        ...


class Transport(Protocol):
    """Sends requests and returns replies of any status."""

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Send a request once, without retries, and return the complete reply.

        Raises:
            TransportError: There was no usable reply; `sent` says whether the request may have arrived.
        """
        ...

    def stream(self, request: HttpRequest) -> AbstractAsyncContextManager[StreamedResponse]:
        """Send a request and return a context manager for its streamed reply; leaving it ends the transfer.

        Raises:
            TransportError: On entering, there was no usable reply.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections that the transport owns."""
        ...


class StreamedBody(Protocol):
    """Body of a request that is read while it is sent. Each iteration begins anew."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the body in pieces of any length.

        Raises:
            KlingError: It cannot be read, or is not what it was; nothing is stored then.
        """
        ...


@runtime_checkable
class StreamingTransport(Transport, Protocol):
    """Optional member of a transport: bodies that are not in memory. Without it, files are read first."""

    async def send_stream(self, request: HttpRequest, body: StreamedBody) -> HttpResponse:
        """Send a request with a body once, without retries, and return the complete reply.

        Raises:
            TransportError: There was no usable reply.
            KlingError: The error of the body.
        """
        ...


def loggable_url(url: str) -> str:
    """Return host and path of a URL, without user info and query, which may contain credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an invalid URL"
    return (parts.netloc.rpartition("@")[2] + parts.path)[:300]

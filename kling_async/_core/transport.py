"""What the rest of the package asks of the network; the transport itself lives in its own room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from .http import HttpRequest, HttpResponse


class StreamedResponse(Protocol):
    """A reply whose body is read piece by piece."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Header names in lower case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, in pieces of any length; to be iterated once.

        Raises:
            TransportError: While iterating: the connection broke or fell silent before the body was complete.
        """
        ...


class Transport(Protocol):
    """Sends requests and brings replies back, whatever their status."""

    async def send(self, request: HttpRequest) -> HttpResponse:
        """The complete reply to `request`. It is sent once: who may send it again decides elsewhere.

        Raises:
            TransportError: No usable reply came; `sent` tells whether the request may have arrived.
        """
        ...

    def stream(self, request: HttpRequest) -> AbstractAsyncContextManager[StreamedResponse]:
        """The reply to `request` with its body still to be read; leaving the context ends the transfer.

        Raises:
            TransportError: On entering: no usable reply came.
        """
        ...

    async def aclose(self) -> None:
        """Close what the transport owns."""
        ...


def shown(url: str) -> str:
    """Host and path of `url`: what may be shown. Userinfo and query are left out, since both carry credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an invalid URL"
    return (parts.netloc.rpartition("@")[2] + parts.path)[:300]

"""Exceptions of aiohttp and of the layers below it, as errors of this package that hold none of their objects."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import aiohttp

from kling_async._core.http import Effect
from kling_async._core.transport import loggable_url
from kling_async.errors import (
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    ReplyTooLargeError,
    Spent,
    TransportError,
    TransportTimeoutError,
)

from .bodies import BodyTooLargeError, BodyUndecodableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from kling_async._core.http import HttpRequest

_T = TypeVar("_T")

# By name, because the oldest supported aiohttp lacks some of the classes. The first class of an exception's MRO that is
# listed decides. ConnectFailedError promises that no byte of the request was sent, so it is only for exceptions that
# aiohttp raises before a connection is made. In doubt the connection counts as lost: a paid request is not sent again.
ERROR_TYPES: Mapping[str, type[TransportError]] = {
    "ClientConnectorCertificateError": ConnectFailedError,
    "ClientConnectorDNSError": ConnectFailedError,
    "ClientConnectorError": ConnectFailedError,
    "ClientConnectorSSLError": ConnectFailedError,
    "ClientHttpProxyError": ConnectFailedError,
    "ClientProxyConnectionError": ConnectFailedError,
    "ClientSSLError": ConnectFailedError,
    "ConnectionTimeoutError": ConnectFailedError,
    "ProxyConnectionError": ConnectFailedError,
    "ProxyError": ConnectFailedError,
    "ProxyTimeoutError": ConnectFailedError,
    "SSLCertVerificationError": ConnectFailedError,
    "InvalidURL": ConnectFailedError,
    "InvalidUrlClientError": ConnectFailedError,
    "NonHttpUrlClientError": ConnectFailedError,
    "ServerFingerprintMismatch": ConnectFailedError,
    "BodyTooLargeError": ReplyTooLargeError,
    "BodyUndecodableError": ConnectionLostError,
    "UnicodeDecodeError": ConnectionLostError,
    "UnicodeError": ConnectFailedError,  # a host or a header that cannot be encoded
    "UnixClientConnectorError": ConnectFailedError,
    "ServerTimeoutError": TransportTimeoutError,
    "SocketTimeoutError": TransportTimeoutError,
    "TimeoutError": TransportTimeoutError,
    "ClientConnectionError": ConnectionLostError,
    "ClientConnectionResetError": ConnectionLostError,
    "ClientError": ConnectionLostError,
    "ClientOSError": ConnectionLostError,
    "ClientPayloadError": ConnectionLostError,
    "ClientResponseError": ConnectionLostError,
    "ContentTypeError": ConnectionLostError,
    "HttpProcessingError": ConnectionLostError,
    "InvalidUrlRedirectClientError": ConnectionLostError,
    "NonHttpUrlRedirectClientError": ConnectionLostError,
    "RedirectClientError": ConnectionLostError,
    "ServerConnectionError": ConnectionLostError,
    "ServerDisconnectedError": ConnectionLostError,
    "TooManyRedirects": ConnectionLostError,
    "UploadAbortedError": ConnectionLostError,
    "WSMessageTypeError": ConnectionLostError,
    "WSServerHandshakeError": ConnectionLostError,
    "ConfigurationError": ConnectFailedError,  # the proxy of the environment
    "BaseException": ConnectionLostError,
}
"""Error for each exception of aiohttp, of the layers below it, and of bodies, by the name of its class."""

_DESCRIPTIONS: Mapping[type[TransportError], str] = {
    ConnectFailedError: "no connection was made",
    ConnectionLostError: "the connection broke before the reply was complete",
    ReplyTooLargeError: "the reply is larger than allowed",
    TransportTimeoutError: "no reply came in time",
}


def map_exception(error: BaseException, request: HttpRequest, *, replied: bool = False) -> TransportError:
    """Return the error for an exception. It contains no object and no text of aiohttp.

    Args:
        error: The exception of aiohttp, the event loop or the operating system.
        request: The request that was being sent.
        replied: True if response headers were received, so that the request was certainly sent.
    """
    kind = next(ERROR_TYPES[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in ERROR_TYPES)
    if replied and kind is ConnectFailedError:
        kind = ConnectionLostError
    phase = "; response headers were received" if replied else ""
    return kind(
        f"{request.method} {loggable_url(request.url)}: {_DESCRIPTIONS[kind]} ({_detail(error)}{phase})",
        spent=Spent.NO if request.effect is Effect.READ else None,
    )


def _detail(error: BaseException) -> str:
    """Return the cause in words of the operating system. Other texts quote URLs, headers or text of the peer."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return str(error.os_error)
    if isinstance(error, aiohttp.TooManyRedirects):
        return f"{len(error.history)} redirects, one after another"
    if isinstance(error, (BodyTooLargeError, BodyUndecodableError)):
        return str(error)
    if isinstance(error, ConfigurationError):
        return f"{error.message}; {error.advice}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {error.status}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


async def result_of(awaitable: Awaitable[_T], request: HttpRequest, *, replied: bool = False) -> _T | BaseException:
    """Return the result of `awaitable`, or the exception to raise in its place."""
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 -- whatever it is, the request may have been sent
        return map_exception(error, request, replied=replied)
    except BaseException as error:  # noqa: BLE001 -- raised by the caller
        return error

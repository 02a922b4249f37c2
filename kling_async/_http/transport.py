"""HTTP over aiohttp. Every failure is one of three errors: not sent, connection lost, timed out.

No object of aiohttp leaves this module, above all no exception: aiohttp's exceptions hold the request's headers, and
their `repr` prints the API key.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypedDict, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from kling_async._core.http import Effect, HttpRequest, HttpResponse, Timeouts
from kling_async._core.transport import loggable_url
from kling_async._version import __version__
from kling_async.errors import (
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    Spent,
    TransportError,
    TransportTimeoutError,
)

from .timeouts import TaskTimeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

    from kling_async._core.transport import StreamedResponse

KEEP_ALIVE_S = 4.0
"""Seconds for which an idle connection is kept.

Servers and load balancers close idle connections after 5 s or more. A paid POST on a connection that the peer is
closing would be lost without a reply, and so be uncertain. Closing first avoids that.
"""

_LARGE_BODY_BYTES = 2**20
"""Size in bytes from which a body is sent in pieces; also the size of the pieces that `Timeouts.transfer` is for."""

_READ_BYTES = 2**18
"""Size in bytes of one read of a plain connection by asyncio."""
_MAX_CACHED_URLS = 1024
"""URLs for which the result of parsing is cached."""

_DEFAULT_HEADERS = {"User-Agent": f"kling-async/{__version__}"}
_PLAIN_URL = re.compile(r"(https?://[a-z0-9.-]+(?::[0-9]{1,5})?)((?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+)")
"""Matches URLs without query, dot segments and characters that need quoting, as origin and path."""
_READ_BUFFER_BYTES = 2**18
"""Size in bytes of the buffer of a streamed reply: one read of asyncio. With less, older aiohttp pauses reading."""

_T = TypeVar("_T")


class _Options(TypedDict, total=False):
    """Arguments of `aiohttp.ClientSession.request`."""

    headers: Mapping[str, str]
    skip_auto_headers: tuple[str, ...]
    data: io.BytesIO | bytes
    allow_redirects: bool
    proxy: str | None
    ssl: ssl.SSLContext | bool
    timeout: aiohttp.ClientTimeout


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
    "InvalidURL": ConnectFailedError,
    "InvalidUrlClientError": ConnectFailedError,
    "NonHttpUrlClientError": ConnectFailedError,
    "ServerFingerprintMismatch": ConnectFailedError,
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
    "BaseException": ConnectionLostError,
}
"""Error for each exception of aiohttp and of the layers below it, by the name of its class."""

_DESCRIPTIONS: Mapping[type[TransportError], str] = {
    ConnectFailedError: "no connection was made",
    ConnectionLostError: "the connection broke before the reply was complete",
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
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {error.status}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


async def _with_mapped_errors(awaitable: Awaitable[_T], request: HttpRequest, *, replied: bool = False) -> _T:
    """Return the result of `awaitable`.

    Raises:
        TransportError: It raised an exception.
    """
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 -- whatever it is, the request may have been sent
        failure = map_exception(error, request, replied=replied)
    # Raised outside the except block, so that aiohttp's exception does not become __context__: its repr prints the
    # Authorization header into every log of the chain.
    raise failure


class AiohttpTransport:
    """Sends each request once, over pooled connections of aiohttp. The default transport of a session.

    Redirects are followed only for streamed requests without an Authorization header, so that the API key is sent to no
    other host. Cookies are not stored, and `.netrc` is not read.

    Args:
        timeouts: Timeouts of the parts of a request. Default: `Timeouts()`.
        limit: Greatest number of connections per host. Each host has its own, so that downloads do not block submits.
        proxy: URL of an HTTP proxy for every request.
        trust_env: Use the proxies of the environment (`HTTPS_PROXY`, `NO_PROXY`, ...) if there is no `proxy`.
        ca: PEM file or `ssl.SSLContext` of the certificate authorities to trust instead of the system's.
        client_session: An `aiohttp.ClientSession` to use, with its own connections and headers; `limit` does not apply.
            It is not closed.

    Raises:
        ConfigurationError: `ca` cannot be read.
    """

    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        limit: int = 100,
        proxy: str | None = None,
        trust_env: bool = True,
        ca: str | os.PathLike[str] | ssl.SSLContext | None = None,
        client_session: aiohttp.ClientSession | None = None,
    ) -> None:
        self._timeouts = timeouts or Timeouts()
        connect = self._timeouts.connect
        # `connect` includes the wait for a free connection: a request that it ends has sent nothing. It is shorter than
        # `total`, so a request that `total` ends has started to send.
        self._paid = aiohttp.ClientTimeout(total=connect + self._timeouts.submit, connect=connect, sock_connect=connect)
        # `_timers` has the timeouts of the rest of a read.
        self._connecting = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        self._timers = TaskTimeouts()
        self._limit = limit
        self._proxy = proxy
        self._trust_env = trust_env
        self._env_proxies: dict[tuple[str, str], str | None] = {}
        self._origins: dict[str, tuple[URL, str | None]] = {}
        self._routes: dict[str, tuple[URL, str | None]] = {}
        self._ssl = _ssl_setting(ca)
        self._session = client_session
        self._owned = client_session is None
        self._closed = False

    async def open(self) -> None:
        """Create the aiohttp session, which otherwise the first request does. Does nothing if there is one."""
        self._ensure_session()

    def _ensure_session(self) -> aiohttp.ClientSession | None:
        if self._owned and self._session is None and not self._closed:
            # asyncio allocates 256 KiB per read of a plain connection. Until a block of that size was freed once, glibc
            # maps fresh pages for each of them, which costs more than the read.
            bytes(2 * _READ_BYTES)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._limit, keepalive_timeout=KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_DEFAULT_HEADERS,
            )
        return self._session

    async def aclose(self) -> None:
        """Close the aiohttp session, unless it was passed in. Later requests fail with `ConnectFailedError`."""
        self._closed = True
        self._timers.close()
        if self._owned and self._session is not None:
            await self._session.close()

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Send a request once, and return the complete reply, whatever its status. Redirects are not followed.

        Args:
            request: The request.

        Raises:
            ConnectFailedError: No connection was made; nothing was sent.
            ConnectionLostError: The connection broke; the request may have been sent.
            TransportTimeoutError: No reply came in time; the request may have been sent.
        """
        reply = await self._exchange(request, self._open_session(request))
        # Raised in a frame without objects of aiohttp, because tracebacks may show local variables, and outside an
        # except block, so that aiohttp's exception does not become __context__: its repr prints the Authorization
        # header into every log of the chain.
        if isinstance(reply, TransportError):
            raise reply
        return reply

    async def _exchange(self, request: HttpRequest, session: aiohttp.ClientSession) -> HttpResponse | TransportError:
        """Return the reply, or the error."""
        timeouts = self._timeouts
        deadline = None
        if request.effect is Effect.PAID:
            allowed = self._paid
        elif request.method == "PUT" or (request.body is not None and len(request.body) > _LARGE_BODY_BYTES):
            allowed = _upload_timeout(request, timeouts)
        else:
            allowed = self._connecting
            deadline = self._timers.start(timeouts.connect + timeouts.read)
        response: aiohttp.ClientResponse | None = None
        try:
            url, proxy = self._route(request.url)
            response = await session.request(
                request.method, url, **self._options(request, proxy, allowed, follow=False)
            )
            if deadline is not None:
                # After the headers, a long list on a slow connection needs more time.
                deadline.when += 3 * timeouts.read
            return HttpResponse(
                status=response.status, headers=_lowercase_headers(response), body=await response.read()
            )
        except asyncio.CancelledError:
            if deadline is None or not deadline.uncancel():
                raise
            return map_exception(TimeoutError(), request, replied=response is not None)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the request may have been sent
            return map_exception(error, request, replied=response is not None)
        finally:
            if response is not None and not response.closed:
                response.close()
            if deadline is not None:
                self._timers.stop(deadline)

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        """Send a request once, and yield the reply before its body is read.

        The connection is closed if the body was not read to its end.

        Args:
            request: The request.

        Raises:
            TransportError: As in `send`.
        """
        # No total timeout, and none for the wait for a free connection: transfers may queue.
        timeout = aiohttp.ClientTimeout(sock_connect=self._timeouts.connect, sock_read=self._timeouts.transfer)
        follow = not any(name.lower() == "authorization" for name in request.headers)
        session = self._open_session(request)
        url, proxy = self._route(request.url)
        options = self._options(request, proxy, timeout, follow=follow)
        response = _with_mapped_errors(
            session.request(request.method, url, read_bufsize=_READ_BUFFER_BYTES, **options), request
        )
        reply = _StreamedReply(await response, request)
        try:
            yield reply
        finally:
            reply.close()

    def _open_session(self, request: HttpRequest) -> aiohttp.ClientSession:
        session = self._session or self._ensure_session()
        # Only a session that was passed in can be closed by others.
        if self._closed or session is None or (not self._owned and session.closed):
            raise ConnectFailedError(
                f"{request.method} {loggable_url(request.url)}: the transport is closed",
                advice="send requests before aclose()",
            )
        return session

    def _options(
        self, request: HttpRequest, proxy: str | None, allowed: aiohttp.ClientTimeout, *, follow: bool
    ) -> _Options:
        body = request.body
        options: _Options = {
            "headers": request.headers if self._owned else {**_DEFAULT_HEADERS, **request.headers},
            "allow_redirects": follow,
            "proxy": proxy,
            "ssl": self._ssl,
            "timeout": allowed,
        }
        if body is not None:
            if "Content-Type" not in request.headers:
                # aiohttp would send application/octet-stream, which signed uploads may refuse.
                options["skip_auto_headers"] = ("Content-Type",)
            # aiohttp writes bytes in one piece, which blocks the loop if they are many.
            options["data"] = io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body
        return options

    def _route(self, url: str) -> tuple[URL | str, str | None]:
        """Return the parsed URL and the proxy for it, cached."""
        known = self._routes.get(url)
        if known is not None:
            return known
        plain = _PLAIN_URL.fullmatch(url)
        if plain is None:
            return _exact_url(url), self._proxy or self._env_proxy(url)
        origin, path = plain.groups()
        route = self._origins.get(origin)
        if route is None:
            exact = _exact_url(origin)
            if isinstance(exact, str):
                return url, self._proxy or self._env_proxy(url)
            route = self._origins[origin] = exact, self._proxy or self._env_proxy(origin)
        if len(self._routes) >= _MAX_CACHED_URLS:
            self._routes.clear()
        # Cached, because a prediction is read many times.
        known = self._routes[url] = route[0].with_path(path, encoded=True), route[1]
        return known

    def _env_proxy(self, url: str) -> str | None:
        """Return the environment's proxy for a URL; None without one.

        aiohttp's `trust_env` is not used: it also reads `.netrc`, and then sends those credentials to output hosts or
        refuses requests that have an Authorization header.
        """
        if not self._trust_env:
            return None
        try:
            parts = urlsplit(url)
            origin = parts.scheme, parts.hostname or ""
        except ValueError:
            return None
        if origin not in self._env_proxies:
            scheme, host = origin
            proxy = None if proxy_bypass(host) else getproxies().get(scheme)
            if proxy and "://" not in proxy:
                proxy = f"http://{proxy}"
            self._env_proxies[origin] = proxy if proxy and proxy.startswith(("http://", "https://")) else None
        return self._env_proxies[origin]


class _StreamedReply:
    """A `StreamedResponse` that iterates over its body.

    It keeps aiohttp's response out of the frames that an error passes: tracebacks that show local variables would print
    its URL with the query.
    """

    def __init__(self, response: aiohttp.ClientResponse, request: HttpRequest) -> None:
        self.status = response.status
        self.headers = _lowercase_headers(response)
        self._response = response
        self._request = request

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await _with_mapped_errors(self._response.content.readany(), self._request, replied=True)
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """Release the connection if the body was read to its end, else close it."""
        self._response.close()


def _exact_url(url: str) -> URL | str:
    """Return a URL without yarl's requoting, which breaks the signatures of some storages."""
    try:
        # `encoded=True` checks nothing, so the URL is parsed strictly first.
        if url.isascii() and url.isprintable() and " " not in url and URL(url).host:
            return URL(url, encoded=True)
    except ValueError:
        pass  # aiohttp raises for it
    return url


def _upload_timeout(request: HttpRequest, timeouts: Timeouts) -> aiohttp.ClientTimeout:
    """Return the timeout of an upload: `Timeouts.transfer` for the reply and for each MiB or part of one.

    aiohttp's `sock_read` does not cover a peer that stops reading the body, hence the total.
    """
    pieces = 2 + len(request.body or b"") // _LARGE_BODY_BYTES
    return aiohttp.ClientTimeout(
        total=timeouts.connect + pieces * timeouts.transfer,
        sock_connect=timeouts.connect,
        sock_read=timeouts.transfer,
    )


def _lowercase_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _ssl_setting(ca: str | os.PathLike[str] | ssl.SSLContext | None) -> ssl.SSLContext | bool:
    """Return aiohttp's `ssl` argument.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    if ca is None:
        return True
    if isinstance(ca, ssl.SSLContext):
        return ca
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigurationError(
            f"ca: expected a PEM file of certificate authorities, got {os.fspath(ca)}: "
            f"{error.strerror or type(error).__name__}",
            advice="give the path of a readable PEM file",
        ) from error

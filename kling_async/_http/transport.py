"""HTTP over aiohttp, with every failure told as one of three: not sent, lost, late.

Nothing of aiohttp leaves this module. Its exceptions least of all: they hold the request's headers, and their `repr`
prints them, the key included.
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

KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept.

Servers and load balancers close theirs after 5 s or more. A paid POST on a connection that the other side is just
closing would be lost without an answer, hence uncertain; being the first to close avoids that.
"""

_LARGE = 2**20
"""Bytes of a body, or of an upload per `Timeouts.transfer`."""

_ASKED_PER_READ = 2**18
_ADDRESSES = 1024
"""URLs that are remembered."""

_ALWAYS = {"User-Agent": f"kling-async/{__version__}"}
_PLAIN = re.compile(r"(https?://[a-z0-9.-]+(?::[0-9]{1,5})?)((?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+)")
"""URLs in which nothing is to be quoted, and that have neither query nor a way up: origin and path."""
_READ_AHEAD = 2**18
"""Bytes of a reply that may wait to be taken: what asyncio reads at once. Older aiohttp stops and starts at less."""

_T = TypeVar("_T")


class _Options(TypedDict, total=False):
    """What aiohttp is told about a request."""

    headers: Mapping[str, str]
    skip_auto_headers: tuple[str, ...]
    data: io.BytesIO | bytes
    allow_redirects: bool
    proxy: str | None
    ssl: ssl.SSLContext | bool
    timeout: aiohttp.ClientTimeout


# By name, because the oldest supported aiohttp lacks some of the classes. An error takes the row of the first class of
# its MRO that has one. ConnectFailedError promises that no byte of the request left: it is given only to what aiohttp
# raises before a connection stands. Everything doubtful is a lost connection: a paid request must not be sent again.
ROWS: Mapping[str, type[TransportError]] = {
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
"""What each exception of aiohttp and of the layers below it amounts to, by the name of its class."""

_SAID: Mapping[type[TransportError], str] = {
    ConnectFailedError: "no connection was made",
    ConnectionLostError: "the connection broke before the reply was complete",
    TransportTimeoutError: "no reply came in time",
}


def map_exception(error: BaseException, request: HttpRequest, *, replied: bool = False) -> TransportError:
    """What `error` amounts to; no object and no text of aiohttp is in the result.

    Args:
        error: What aiohttp, the event loop or the operating system raised.
        request: What was being sent.
        replied: Whether the head of a reply had come, so that the request had been sent for certain.
    """
    kind = next(ROWS[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in ROWS)
    if replied and kind is ConnectFailedError:
        kind = ConnectionLostError
    phase = "; the head of its reply had come" if replied else ""
    return kind(
        f"{request.method} {loggable_url(request.url)}: {_SAID[kind]} ({_detail(error)}{phase})",
        spent=Spent.NO if request.effect is Effect.READ else None,
    )


def _detail(error: BaseException) -> str:
    """The cause in words of the operating system. Other texts quote whole URLs, headers or what the peer said."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return str(error.os_error)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {error.status}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


async def _mapped(awaitable: Awaitable[_T], request: HttpRequest, *, replied: bool = False) -> _T:
    """What `awaitable` brings, its failures told as `TransportError`."""
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 -- whatever it is, the request may have been sent
        failure = map_exception(error, request, replied=replied)
    # Outside of the except block: there, Python would keep aiohttp's exception as __context__, and its repr prints the
    # Authorization header into every log that shows the chain.
    raise failure


class AiohttpTransport:
    """Sends requests over pooled connections; each request once.

    Redirects are not followed, except for a streamed request without Authorization: the key goes only where it was
    addressed to. Cookies are not kept, and `.netrc` is not read.

    Args:
        timeouts: Seconds for the parts of a request.
        limit: Connections per host at most. Hosts do not share it: a hundred downloads must not keep a submit waiting.
        proxy: URL of an HTTP proxy for every request.
        trust_env: Whether, without `proxy`, the proxies of the environment are used (`HTTPS_PROXY`, `NO_PROXY`, ...).
        ca: What to trust instead of the system's certificate authorities: a PEM file, or a context.
        client_session: A session to borrow, with its own pool and headers; `limit` has no say then. It is never closed.

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
        # `connect` covers the wait for a free connection too: whatever ends before it has sent nothing, and since it is
        # shorter than `total`, a total that runs out has always begun to send.
        self._paid = aiohttp.ClientTimeout(total=connect + self._timeouts.submit, connect=connect, sock_connect=connect)
        # The rest of what a read may take is counted by `_timers`.
        self._connecting = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        self._timers = TaskTimeouts()
        self._limit = limit
        self._proxy = proxy
        self._trust_env = trust_env
        self._env_proxies: dict[tuple[str, str], str | None] = {}
        self._origins: dict[str, tuple[URL, str | None]] = {}
        self._addresses: dict[str, tuple[URL, str | None]] = {}
        self._ssl = _trust(ca)
        self._session = client_session
        self._owned = client_session is None
        self._closed = False

    async def open(self) -> None:
        """Make the session that `send` and `stream` would make at the first request; harmless when there is one."""
        self._made()

    def _made(self) -> aiohttp.ClientSession | None:
        if self._owned and self._session is None and not self._closed:
            # asyncio asks for 256 KiB per read of a plain connection. What glibc maps for that by itself, page faults
            # included, costs more than the read, until a block as large as that was once given back.
            bytes(2 * _ASKED_PER_READ)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._limit, keepalive_timeout=KEEP_ALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_ALWAYS,
            )
        return self._session

    async def aclose(self) -> None:
        """Close the session if it is owned. Later requests fail with `ConnectFailedError`."""
        self._closed = True
        self._timers.close()
        if self._owned and self._session is not None:
            await self._session.close()

    async def send(self, request: HttpRequest) -> HttpResponse:
        """The complete reply, whatever its status; a redirect is a reply.

        Raises:
            ConnectFailedError: Nothing was sent.
            ConnectionLostError: It broke after something may have been sent.
            TransportTimeoutError: It was sent and no reply came in time.
        """
        reply = await self._exchanged(request, self._usable(request))
        # Raised here, in a frame that holds nothing of aiohttp: tracebacks may show local variables. And outside of an
        # except block: there, Python would keep aiohttp's exception as __context__, and its repr prints the
        # Authorization header into every log that shows the chain.
        if isinstance(reply, TransportError):
            raise reply
        return reply

    async def _exchanged(self, request: HttpRequest, session: aiohttp.ClientSession) -> HttpResponse | TransportError:
        """The reply, or what became of the request instead."""
        timeouts = self._timeouts
        deadline = None
        if request.effect is Effect.PAID:
            allowed = self._paid
        elif request.method == "PUT" or (request.body is not None and len(request.body) > _LARGE):
            allowed = _transfer(request, timeouts)
        else:
            allowed = self._connecting
            deadline = self._timers.start(timeouts.connect + timeouts.read)
        response: aiohttp.ClientResponse | None = None
        try:
            url, proxy = self._address(request.url)
            response = await session.request(
                request.method, url, **self._options(request, proxy, allowed, follow=False)
            )
            if deadline is not None:
                # The head has come. The rest of a list may be long, and the line slow.
                deadline.when += 3 * timeouts.read
            return HttpResponse(status=response.status, headers=_lowered(response), body=await response.read())
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
        """The reply with its body still to be read; a body that was not read to its end costs the connection.

        Raises:
            TransportError: As `send`.
        """
        # No limit in total, and none on the wait for a free connection: transfers may queue.
        timeout = aiohttp.ClientTimeout(sock_connect=self._timeouts.connect, sock_read=self._timeouts.transfer)
        follow = not any(name.lower() == "authorization" for name in request.headers)
        session = self._usable(request)
        url, proxy = self._address(request.url)
        options = self._options(request, proxy, timeout, follow=follow)
        response = _mapped(session.request(request.method, url, read_bufsize=_READ_AHEAD, **options), request)
        reply = _Reply(await response, request)
        try:
            yield reply
        finally:
            reply.close()

    def _usable(self, request: HttpRequest) -> aiohttp.ClientSession:
        session = self._session or self._made()
        # Nobody else closes one that is owned.
        if self._closed or session is None or (not self._owned and session.closed):
            raise ConnectFailedError(
                f"{request.method} {loggable_url(request.url)}: the transport is closed",
                advice="use it while it is open",
            )
        return session

    def _options(
        self, request: HttpRequest, proxy: str | None, allowed: aiohttp.ClientTimeout, *, follow: bool
    ) -> _Options:
        body = request.body
        options: _Options = {
            "headers": request.headers if self._owned else {**_ALWAYS, **request.headers},
            "allow_redirects": follow,
            "proxy": proxy,
            "ssl": self._ssl,
            "timeout": allowed,
        }
        if body is not None:
            if "Content-Type" not in request.headers:
                # aiohttp would call every body application/octet-stream, which signed uploads may refuse.
                options["skip_auto_headers"] = ("Content-Type",)
            # Raw bytes are written in one piece, which holds up the loop when they are many.
            options["data"] = io.BytesIO(body) if len(body) > _LARGE else body
        return options

    def _address(self, url: str) -> tuple[URL | str, str | None]:
        """Where to, and through which proxy."""
        known = self._addresses.get(url)
        if known is not None:
            return known
        plain = _PLAIN.fullmatch(url)
        if plain is None:
            return _exact(url), self._proxy or self._env_proxy(url)
        origin, path = plain.groups()
        there = self._origins.get(origin)
        if there is None:
            exact = _exact(origin)
            if isinstance(exact, str):
                return url, self._proxy or self._env_proxy(url)
            there = self._origins[origin] = exact, self._proxy or self._env_proxy(origin)
        if len(self._addresses) >= _ADDRESSES:
            self._addresses.clear()
        # A prediction is read again and again; what yarl works out of its URL stays with it.
        known = self._addresses[url] = there[0].with_path(path, encoded=True), there[1]
        return known

    def _env_proxy(self, url: str) -> str | None:
        """The environment's proxy for `url`.

        Looked up here and not by aiohttp's `trust_env`, which also reads `.netrc`, and then either sends those
        credentials to output hosts or refuses requests that have an Authorization header.
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


class _Reply:
    """A `StreamedResponse`, and the iterator of its own body.

    It keeps aiohttp's response out of the frames that an error passes through: tracebacks that show local variables
    would print its URL, query included.
    """

    def __init__(self, response: aiohttp.ClientResponse, request: HttpRequest) -> None:
        self.status = response.status
        self.headers = _lowered(response)
        self._response = response
        self._request = request

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await _mapped(self._response.content.readany(), self._request, replied=True)
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """Give the connection back when the body was read to its end, else close it."""
        self._response.close()


def _exact(url: str) -> URL | str:
    """`url` without yarl's requoting, which breaks the signatures of some storages."""
    try:
        # `encoded=True` believes everything, hence the look at what the strict way makes of it.
        if url.isascii() and url.isprintable() and " " not in url and URL(url).host:
            return URL(url, encoded=True)
    except ValueError:
        pass  # aiohttp refuses it in its own words
    return url


def _transfer(request: HttpRequest, timeouts: Timeouts) -> aiohttp.ClientTimeout:
    """For an upload: `transfer` for the reply and for each MiB begun.

    aiohttp measures silence only while it reads, and would never notice a peer that stops taking the body.
    """
    pieces = 2 + len(request.body or b"") // _LARGE
    return aiohttp.ClientTimeout(
        total=timeouts.connect + pieces * timeouts.transfer,
        sock_connect=timeouts.connect,
        sock_read=timeouts.transfer,
    )


def _lowered(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _trust(ca: str | os.PathLike[str] | ssl.SSLContext | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    if isinstance(ca, ssl.SSLContext):
        return ca
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigurationError(
            f"ca: {os.fspath(ca)} is no PEM file: {error.strerror or type(error).__name__}",
            advice="name a readable PEM file of certificate authorities",
        ) from error

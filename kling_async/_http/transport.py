"""HTTP over aiohttp. Every failure is one of three errors: not sent, connection lost, timed out.

No object of aiohttp leaves this module, above all no exception and no frame: aiohttp's exceptions hold the request's
headers, and their `repr` prints the API key; its frames have headers and the proxy's password in local variables. What
fails, or is cancelled, is therefore returned as a value and raised again, without frames, by the public methods.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from kling_async._core.frames import hides_arguments, without_frames
from kling_async._core.http import MAX_REPLY_BYTES, Effect, HttpRequest, HttpResponse, Timeouts
from kling_async._core.transport import loggable_url
from kling_async._loops import LoopBinding
from kling_async._version import __version__
from kling_async.errors import (
    ConfigurationError,
    ConnectFailedError,
)

from .bodies import ACCEPT_ENCODING, read_body
from .failures import map_exception, result_of
from .hosts import Hosts, learn
from .proxies import Proxies, is_socks, socks_connector
from .streamed import StreamedPieces, StreamedReply
from .timeouts import TaskTimeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from kling_async._core.statistics import Concurrency
    from kling_async._core.transport import StreamedBody, StreamedResponse
    from kling_async._turns import Turns

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

_MAX_REDIRECTS = 10
_MAX_HEADER_WAITS = 10
"""Times `Timeouts.transfer` in which the headers of a stream arrive, the wait for a free connection included."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_DEFAULT_HEADERS = {"User-Agent": f"kling-async/{__version__}", "Accept-Encoding": ACCEPT_ENCODING}
_PLAIN_URL = re.compile(r"(https?://[a-z0-9.-]+(?::[0-9]{1,5})?)((?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+)")
"""Matches URLs without query, dot segments and characters that need quoting, as origin and path."""
_READ_BUFFER_BYTES = 2**18
"""Size in bytes of the buffer of a streamed reply: one read of asyncio. With less, older aiohttp pauses reading."""


class _Options(TypedDict, total=False):
    """Arguments of `aiohttp.ClientSession.request`."""

    headers: Mapping[str, str]
    skip_auto_headers: tuple[str, ...]
    data: io.BytesIO | bytes | StreamedPieces | None
    allow_redirects: bool
    auto_decompress: bool
    proxy: str | None
    ssl: ssl.SSLContext | bool
    timeout: aiohttp.ClientTimeout


class AiohttpTransport:
    """Sends each request once, over pooled connections of aiohttp. The default transport of a session.

    Redirects are followed only for streamed requests without an Authorization header, so that the API key is sent to no
    other host. Cookies are not stored, and `.netrc` is not read.

    Args:
        timeouts: Timeouts of the parts of a request. Default: `Timeouts()`.
        limit: Greatest number of connections per host. Each host has its own, so that downloads do not block submits.
            Default: learned, 100 at first; paid requests wait for no other ones then.
        proxy: URL of an HTTP or SOCKS proxy for every request. SOCKS needs aiohttp-socks (extra `socks`).
        trust_env: Use the proxies of the environment (`HTTPS_PROXY`, `ALL_PROXY`, ...) if there is no `proxy`.
        ca: PEM file or `ssl.SSLContext` of the certificate authorities to trust instead of the system's.
        client_session: An `aiohttp.ClientSession` to use, with its own connections and headers; `limit` does not apply.
            It is not closed. Its connector decides about SOCKS.
        max_reply_bytes: Greatest size of a reply to `send`, before and after decompression. The rest is not read.

    Raises:
        ConfigurationError: `ca` cannot be read, or `proxy` cannot be used.
    """

    @hides_arguments
    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        limit: int | None = None,
        proxy: str | None = None,
        trust_env: bool = True,
        ca: str | os.PathLike[str] | ssl.SSLContext | None = None,
        client_session: aiohttp.ClientSession | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        self._max_reply_bytes = max_reply_bytes
        self._timeouts = timeouts or Timeouts()
        connect = self._timeouts.connect
        # `_timers` has the timeouts of whole requests: those of aiohttp would throw away a reply that arrived while the
        # loop was held up. `connect` includes the wait for a free connection: a request that it ends has sent nothing.
        # It is shorter than the whole, so a request that `_timers` ends has started to send.
        self._paid = aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect)
        self._connecting = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        self._timers = TaskTimeouts()
        self._limit = limit
        self._hosts = Hosts() if limit is None and client_session is None else None
        self._proxies = Proxies(proxy, trust_env=trust_env)
        # Sessions through SOCKS proxies, by the proxy.
        self._socks_sessions: dict[str, aiohttp.ClientSession] = {}
        self._origins: dict[str, tuple[URL, str | None, Turns | None]] = {}
        self._routes: dict[str, tuple[URL, str | None, Turns | None]] = {}
        self._ssl = _ssl_setting(ca)
        self._session = client_session
        self._owned = client_session is None
        self._closed = False
        # aiohttp deprecated its public name.
        self._loop = LoopBinding("the transport", getattr(client_session, "_loop", None))

    async def open(self, url: str | None = None) -> None:
        """Create the aiohttp session, which otherwise the first request does. Does nothing if there is one.

        Args:
            url: URL that requests are going to be sent to, whose proxy is checked.

        Raises:
            ConfigurationError: Its proxy cannot be used.
            WrongLoopError: It belongs to another event loop.
        """
        self._loop.check()
        session = self._ensure_session()
        if url is not None and session is not None:
            self._through(session, self._proxies.of(url))

    def _ensure_session(self) -> aiohttp.ClientSession | None:
        if self._owned and self._session is None and not self._closed:
            self._loop.bind()
            # asyncio allocates 256 KiB per read of a plain connection. Until a block of that size was freed once, glibc
            # maps fresh pages for each of them, which costs more than the read.
            bytes(2 * _READ_BYTES)
            self._session = _new_session(
                aiohttp.TCPConnector(limit=0, limit_per_host=self._limit or 0, keepalive_timeout=KEEP_ALIVE_S)
            )
        return self._session

    def _through(self, session: aiohttp.ClientSession, proxy: str | None) -> tuple[aiohttp.ClientSession, str | None]:
        """Return the session for a proxy, and aiohttp's argument `proxy`.

        Raises:
            ConfigurationError: It is a SOCKS proxy, and the session was passed in.
        """
        if proxy is None or not is_socks(proxy):
            return session, proxy
        if not self._owned:
            if type(session.connector).__module__.startswith("aiohttp_socks"):
                return session, None
            raise ConfigurationError(
                "client_session: expected one that connects through the SOCKS proxy; nothing was sent",
                advice="give it a ProxyConnector of aiohttp-socks, or exempt the host with NO_PROXY",
            )
        if proxy not in self._socks_sessions:
            self._socks_sessions[proxy] = _new_session(
                socks_connector(proxy, limit_per_host=self._limit or 0, keepalive_timeout=KEEP_ALIVE_S)
            )
        return self._socks_sessions[proxy], None

    async def aclose(self) -> None:
        """Close the aiohttp session, unless it was passed in. Later requests fail with `ConnectFailedError`.

        Raises:
            WrongLoopError: The transport belongs to another event loop.
        """
        self._loop.check()
        self._closed = True
        self._timers.close()
        for session in (*([self._session] if self._owned and self._session else []), *self._socks_sessions.values()):
            await session.close()

    def statistics(self) -> Concurrency | None:
        """Return where the limit of the host with the most requests stands; None before the first, or with `limit`."""
        return None if self._hosts is None else self._hosts.statistics()

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Send a request once, and return the complete reply, whatever its status. Redirects are not followed.

        Args:
            request: The request.

        Raises:
            ConnectFailedError: No connection was made; nothing was sent.
            ConnectionLostError: The connection broke; the request may have been sent.
            ReplyTooLargeError: The reply is larger than allowed; the request was sent.
            TransportTimeoutError: No reply came in time; the request may have been sent.
            WrongLoopError: The transport belongs to another event loop; nothing was sent.
        """
        reply = await self._exchange(request, self._open_session(request))
        if isinstance(reply, BaseException):
            raise without_frames(reply)
        return reply

    async def send_stream(self, request: HttpRequest, body: StreamedBody) -> HttpResponse:
        """Send a request with a body that is read while it is sent, once, and return the complete reply.

        Args:
            request: The request, without a body.
            body: The body.

        Raises:
            TransportError: As in `send`.
            WrongLoopError: As in `send`.
            KlingError: The error of the body, after which the request was broken off.
        """
        session, pieces = self._open_session(request), StreamedPieces(body)
        reply = await self._exchange(request, session, pieces)
        if pieces.error is not None:
            raise pieces.error
        if isinstance(reply, BaseException):
            raise without_frames(reply)
        return reply

    async def _exchange(
        self, request: HttpRequest, session: aiohttp.ClientSession, pieces: StreamedPieces | None = None
    ) -> HttpResponse | BaseException:
        """Return the reply, or the exception to raise in its place."""
        try:
            url, proxy, turns = self._route(request.url)
        except ConfigurationError as refusal:
            return map_exception(refusal, request)
        if turns is None:
            return await self._exchange_now(request, session, pieces, url, proxy)
        # How many paid requests are under way is limited before they come here.
        epoch = turns.try_acquire(over_limit=request.effect is Effect.PAID)
        if epoch is None:
            try:
                epoch = await turns.acquire()
            except asyncio.CancelledError as error:
                return error
        began = turns.clock.monotonic()
        try:
            reply = await self._exchange_now(request, session, pieces, url, proxy)
            learn(turns, epoch, reply, turns.clock.monotonic() - began)
            return reply
        finally:
            turns.release()

    async def _exchange_now(
        self,
        request: HttpRequest,
        session: aiohttp.ClientSession,
        pieces: StreamedPieces | None,
        url: URL | str,
        proxy: str | None,
    ) -> HttpResponse | BaseException:
        """Return the reply, or the exception to raise in its place."""
        allowed, seconds, for_body = self._allowed(request, pieces)
        deadline = self._timers.start(seconds)
        response: aiohttp.ClientResponse | None = None
        try:
            session, proxy = self._through(session, proxy)
            options = self._options(request, proxy, allowed, pieces)
            response = await session.request(request.method, url, **options)
            deadline.when += for_body
            body = await read_body(response, self._max_reply_bytes)
            return HttpResponse(status=response.status, headers=_lowercase_headers(response), body=body)
        except asyncio.CancelledError as error:
            if not deadline.uncancel():
                return error
            return map_exception(TimeoutError(), request, replied=response is not None)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the request may have been sent
            return map_exception(error, request, replied=response is not None)
        except BaseException as error:  # noqa: BLE001 -- raised by the caller
            return error
        finally:
            if response is not None and not response.closed:
                response.close()
            self._timers.stop(deadline)

    def _allowed(
        self, request: HttpRequest, pieces: StreamedPieces | None
    ) -> tuple[aiohttp.ClientTimeout, float, float]:
        """Return the timeouts of a request: aiohttp's, the seconds to the response headers, and those for its body."""
        timeouts = self._timeouts
        if request.effect is Effect.PAID:
            return self._paid, timeouts.connect + timeouts.submit, 0.0
        if request.method == "PUT" or (request.body is not None and len(request.body) > _LARGE_BODY_BYTES):
            # `Timeouts.transfer` for the reply and for each MiB or part of one: `sock_read` of aiohttp does not cover a
            # peer that stops reading the body, and begins when the kernel has all of it and may still have to send it.
            size = len(request.body or b"") if pieces is None else pieces.size
            parts = 1 + size // _LARGE_BODY_BYTES
            uploading = aiohttp.ClientTimeout(
                total=None, sock_connect=timeouts.connect, sock_read=parts * timeouts.transfer
            )
            return uploading, timeouts.connect + (1 + parts) * timeouts.transfer, 0.0
        # A long list on a slow connection needs more time.
        return self._connecting, timeouts.connect + timeouts.read, 3 * timeouts.read

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[StreamedResponse]:
        """Send a request once, and yield the reply before its body is read.

        The connection is closed if the body was not read to its end.

        Args:
            request: The request.

        Raises:
            TransportError: As in `send`.
            WrongLoopError: As in `send`.
        """
        response = await self._start_stream(request, self._open_session(request))
        if isinstance(response, BaseException):
            raise without_frames(response)
        reply = StreamedReply(response, _lowercase_headers(response), request)
        del response
        try:
            yield reply
        finally:
            reply.close()

    async def _start_stream(
        self, request: HttpRequest, session: aiohttp.ClientSession
    ) -> aiohttp.ClientResponse | BaseException:
        """Return the response before its body is read, or the exception to raise in its place."""
        # No total timeout, and none for the wait for a free connection: transfers may queue.
        timeout = aiohttp.ClientTimeout(sock_connect=self._timeouts.connect, sock_read=self._timeouts.transfer)
        follow = request.method == "GET" and not any(name.lower() == "authorization" for name in request.headers)
        address, passed = request.url, list[aiohttp.ClientResponse]()
        while True:
            try:
                url, found, _ = self._route(address)
                through, proxy = self._through(session, found)
            except ConfigurationError as refusal:
                return map_exception(refusal, request)
            options = self._options(request, proxy, timeout, None)
            # For those that send headers, or notices that they will, drop by drop.
            deadline = self._timers.start(self._timeouts.connect + _MAX_HEADER_WAITS * self._timeouts.transfer)
            response = await result_of(
                through.request(request.method, url, read_bufsize=_READ_BUFFER_BYTES, **options),
                request,
                replied=bool(passed),
            )
            if isinstance(response, asyncio.CancelledError) and deadline.uncancel():
                response = map_exception(TimeoutError(), request, replied=bool(passed))
            self._timers.stop(deadline)
            if isinstance(response, BaseException) or not follow or response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location")
            if location is None:
                return response
            response.release()
            passed.append(response)
            if len(passed) == _MAX_REDIRECTS:
                error = aiohttp.TooManyRedirects(response.request_info, tuple(passed))
                return map_exception(error, request, replied=True)
            # Followed here, because a session that was passed in may quote the URL anew, which breaks signatures.
            try:
                address = urljoin(address, location)
            except ValueError as invalid:
                return map_exception(invalid, request, replied=True)

    def _open_session(self, request: HttpRequest) -> aiohttp.ClientSession:
        self._loop.check()
        session = self._session or self._ensure_session()
        # Only a session that was passed in can be closed by others.
        if self._closed or session is None or (not self._owned and session.closed):
            raise ConnectFailedError(
                f"{request.method} {loggable_url(request.url)}: the transport is closed",
                advice="send requests before aclose()",
            )
        return session

    def _options(
        self,
        request: HttpRequest,
        proxy: str | None,
        allowed: aiohttp.ClientTimeout,
        pieces: StreamedPieces | None,
    ) -> _Options:
        body = request.body
        headers = request.headers if self._owned else {**_DEFAULT_HEADERS, **request.headers}
        if pieces is not None:
            # Storages take no body of unknown length.
            headers = {**headers, "Content-Length": str(pieces.size)}
        options: _Options = {
            "headers": headers,
            "allow_redirects": False,
            "auto_decompress": False,
            "proxy": proxy,
            "ssl": self._ssl,
            "timeout": allowed,
        }
        if body is not None or pieces is not None:
            if "Content-Type" not in request.headers:
                # aiohttp would send application/octet-stream, which signed uploads may refuse.
                options["skip_auto_headers"] = ("Content-Type",)
            # aiohttp writes bytes in one piece, which blocks the loop if they are many.
            large = body is not None and len(body) > _LARGE_BODY_BYTES
            options["data"] = pieces or (io.BytesIO(body or b"") if large else body)
        return options

    def _route(self, url: str) -> tuple[URL | str, str | None, Turns | None]:
        """Return the parsed URL, the proxy for it and the turns of its host, cached."""
        known = self._routes.get(url)
        if known is not None:
            return known
        plain = _PLAIN_URL.fullmatch(url)
        if plain is None:
            exact = _exact_url(url)
            return exact, self._proxies.of(url), self._turns(exact)
        origin, path = plain.groups()
        route = self._origins.get(origin)
        if route is None:
            exact = _exact_url(origin)
            if isinstance(exact, str):
                return url, self._proxies.of(url), None
            route = self._origins[origin] = exact, self._proxies.of(origin), self._turns(exact)
        if len(self._routes) >= _MAX_CACHED_URLS:
            self._routes.clear()
        # Cached, because a prediction is read many times.
        known = self._routes[url] = route[0].with_path(path, encoded=True), route[1], route[2]
        return known

    def _turns(self, url: URL | str) -> Turns | None:
        """Return the turns of a host; None if its connections are limited by aiohttp."""
        return None if self._hosts is None or isinstance(url, str) else self._hosts.turns(url)


def _new_session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=_DEFAULT_HEADERS)


def _exact_url(url: str) -> URL | str:
    """Return a URL without yarl's requoting, which breaks the signatures of some storages."""
    try:
        # `encoded=True` checks nothing, so the URL is parsed strictly first.
        if url.isascii() and url.isprintable() and " " not in url and URL(url).host:
            return URL(url, encoded=True)
    except ValueError:
        pass  # aiohttp raises for it
    return url


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

"""The transport over real sockets, against misbehaving servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import socket
import ssl
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import aiohttp
import aiohttp.client_exceptions
import aiohttp.http_exceptions
import anyio
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from kling_async._core.http import Effect, HttpRequest, HttpResponse, Timeouts
from kling_async._http import failures
from kling_async._http.failures import map_exception
from kling_async._http.hosts import INITIAL_CONNECTIONS
from kling_async._http.transport import AiohttpTransport
from kling_async.errors import (
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    Spent,
    TransportError,
    TransportTimeoutError,
)
from support import leaps
from support.patience import PATIENCE_S
from support.sockets import Handler, head_of, opened, serving

if TYPE_CHECKING:
    from pathlib import Path

    from kling_async._core.statistics import Concurrency

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return leaps.BACKEND


KEY = "sk-very-secret"
TIMEOUTS = Timeouts()
TOO_LATE = 1000.0
"""Seconds after which every timeout has expired."""
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Request-Id: r1\r\n\r\n{}"


@contextlib.asynccontextmanager
async def serving_app(handler: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> AsyncIterator[str]:
    async with RawTestServer(handler) as server:
        yield str(server.make_url("/")).rstrip("/")


def paid(url: str) -> HttpRequest:
    return HttpRequest(
        method="POST",
        url=f"{url}/api/v3/kling?token={KEY}",
        effect=Effect.PAID,
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        body=b"{}",
    )


def plain(url: str, method: str = "GET") -> HttpRequest:
    return HttpRequest(method=method, url=url)


async def failing(
    request: HttpRequest, *, too_late: asyncio.Event | None = None, by: float = TOO_LATE, **options: object
) -> TransportError:
    """Return the error that `request` ends with, after a check that nothing in it shows the key.

    Args:
        request: The request.
        too_late: Event that makes the loop's time leap.
        by: Length of the leap in seconds.
        **options: Options of the transport.
    """
    async with opened(AiohttpTransport(**options)) as transport, asyncio.TaskGroup() as tasks:  # type: ignore[arg-type]  # each by its test
        if too_late is not None:
            tasks.create_task(leap_at(too_late, by))
        with pytest.raises(TransportError) as caught:
            await transport.send(request)
    error = caught.value
    # Skip this function's own frame, which has the key in its arguments.
    within = error.__traceback__.tb_next if error.__traceback__ else None
    frames = "".join(traceback.TracebackException(type(error), error, within, capture_locals=True).format())
    shown = "\n".join((str(error), repr(error), repr(error.args), repr(vars(error)), frames))
    assert KEY not in shown
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


async def leap_at(event: asyncio.Event, seconds: float) -> None:
    await event.wait()
    leaps.leap(seconds)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(REPLY)
    await writer.drain()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(-1)


def announced(handler: Handler) -> tuple[asyncio.Event, Handler]:
    """Return an event for the first request's headers, and `handler` for what follows the headers."""
    asked = asyncio.Event()

    async def announcing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        asked.set()
        await handler(reader, writer)

    return asked, announcing


# Regular responses.


async def test_response_headers_are_lower_case() -> None:
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        seen.append(head + await reader.readexactly(2))
        writer.write(REPLY)

    async with serving(handler) as url, opened(AiohttpTransport()) as transport:
        response = await transport.send(paid(url))
    assert response == HttpResponse(status=200, headers={"content-length": "2", "x-request-id": "r1"}, body=b"{}")
    assert b"\r\nUser-Agent: kling-async/" in seen[0]
    assert seen[0].endswith(b"{}")


@pytest.mark.parametrize("size", [3, 3 * 2**20])
async def test_put_sends_only_ticket_headers(size: int) -> None:
    received: list[tuple[dict[str, str], int]] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        received.append((dict(request.headers), len(await request.content.read())))
        return web.Response()

    async with serving_app(handler) as url, opened(AiohttpTransport()) as transport:
        await transport.send(HttpRequest(method="PUT", url=url, headers={"If-None-Match": "*"}, body=b"x" * size))
    headers, length = received[0]
    assert length == size
    assert headers["If-None-Match"] == "*"
    assert not {"Content-Type", "Authorization", "Cookie"} & headers.keys()


async def test_signed_url_is_sent_unchanged() -> None:
    seen: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request.raw_path)
        return web.Response()

    async with serving_app(handler) as url, opened(AiohttpTransport()) as transport:
        await transport.send(plain(f"{url}/a%2Fb%7Ec?s=%2F%7E%2b+a%20b"))
        await transport.send(plain(f"{url}/ä b"))
    assert seen == ["/a%2Fb%7Ec?s=%2F%7E%2b+a%20b", "/%C3%A4%20b"]


@pytest.mark.promise(1, 8)
async def test_redirect_is_returned_as_response() -> None:
    hits: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        hits.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with serving_app(handler) as url, opened(AiohttpTransport()) as transport:
        response = await transport.send(paid(url))
    assert response.status == 307
    assert hits == ["/api/v3/kling"]


@pytest.mark.promise(8)
async def test_stream_redirect_is_followed_only_without_key() -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/to":
            return web.Response(body=b"x" * 100_000, headers={"X-Seen": str("Authorization" in request.headers)})
        return web.Response(status=302, headers={"Location": "/to"})

    async with serving_app(handler) as url, opened(AiohttpTransport()) as transport:
        async with transport.stream(plain(f"{url}/from")) as followed:
            assert followed.status == 200
            assert followed.headers["x-seen"] == "False"
            assert len(b"".join([chunk async for chunk in followed.chunks()])) == 100_000
        request = HttpRequest(method="GET", url=f"{url}/from", headers={"authorization": f"Bearer {KEY}"})
        async with transport.stream(request) as kept:
            assert kept.status == 302


async def test_cookies_are_not_stored() -> None:
    seen: list[str | None] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        return web.Response(headers={"Set-Cookie": "a=b; Path=/"})

    async with serving_app(handler) as url, opened(AiohttpTransport()) as transport:
        await transport.send(plain(url.replace("127.0.0.1", "localhost")))
        await transport.send(plain(url.replace("127.0.0.1", "localhost")))
    assert seen == [None, None]


async def test_netrc_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[str | None] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response()

    async with serving_app(handler) as url, opened(AiohttpTransport()) as transport:
        await transport.send(plain(url))
        await transport.send(paid(url))
    assert seen == [None, f"Bearer {KEY}"]


async def test_connection_limit_is_per_host() -> None:
    asked, silent = announced(hang)
    async with (
        serving(silent) as busy,
        serving(answer) as free,
        opened(AiohttpTransport(limit=1)) as transport,
        asyncio.TaskGroup() as tasks,
    ):
        waiting = tasks.create_task(transport.send(plain(busy)))
        await asked.wait()
        assert (await transport.send(plain(free))).status == 200
        waiting.cancel()


# Failures before the request is sent.


async def test_refused_connections_halve_their_limit() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
    async with opened(AiohttpTransport()) as transport:
        assert transport.statistics() is None
        with pytest.raises(ConnectFailedError):
            await transport.send(plain(url))
        now = transport.statistics()
    assert now is not None
    assert (now.limit, now.taken) == (INITIAL_CONNECTIONS // 2, 0)


async def test_paid_request_waits_for_no_connection_of_others() -> None:
    async with serving(hang) as url, opened(AiohttpTransport()) as transport, asyncio.TaskGroup() as tasks:
        reads = [tasks.create_task(transport.send(plain(url))) for _ in range(INITIAL_CONNECTIONS + 3)]
        await settle(transport.statistics, waiting=3)
        paid_one = tasks.create_task(transport.send(paid(url)))
        await settle(transport.statistics, waiting=3, taken=INITIAL_CONNECTIONS + 1)
        for task in [*reads, paid_one]:
            task.cancel()


async def settle(statistics: Callable[[], Concurrency | None], **expected: int) -> None:
    """Wait until statistics have some values."""
    async with asyncio.timeout(PATIENCE_S):
        while any(  # noqa: ASYNC110 -- nothing announces it
            getattr(statistics(), name, None) != value for name, value in expected.items()
        ):
            await asyncio.sleep(0.001)


async def test_connection_refused_is_not_sent() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = await failing(paid(f"http://127.0.0.1:{port}"))
    assert type(error) is ConnectFailedError
    assert not error.sent
    assert error.spent is Spent.NO
    assert f"POST 127.0.0.1:{port}/api/v3/kling: no connection was made" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "http://nowhere.invalid",
        "http://" + "a" * 70 + ".example",
        "http://",
        "http://[::1",
        "http://h:port/",
        "ftp://example.com/a",
        "no url at all",
        "http://a b/",
        "http://\ud800/",
    ],
)
async def test_unresolvable_host_is_not_sent(url: str) -> None:
    assert type(await failing(paid(url))) is ConnectFailedError


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_unknown_certificate_authority_is_not_sent(server_tls: ssl.SSLContext) -> None:
    async with serving(answer, tls=server_tls) as url:
        error = await failing(paid(url))
    assert type(error) is ConnectFailedError
    assert "certificate verify failed" in str(error)


async def test_wrong_certificate_name_is_refused(
    authority: trustme.CA, server_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(pem)
    async with serving(answer, tls=server_tls) as url:
        error = await failing(paid(url.replace("127.0.0.1", "localhost")), ca=pem)
    assert type(error) is ConnectFailedError


async def test_custom_authority_is_accepted(authority: trustme.CA, server_tls: ssl.SSLContext, tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(pem)
    context = ssl.create_default_context(cafile=pem)
    for ca in (pem, str(pem), context):
        async with serving(answer, tls=server_tls) as url, opened(AiohttpTransport(ca=ca)) as transport:
            assert (await transport.send(paid(url))).status == 200


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_unreadable_certificate_authority_is_refused(tmp_path: Path, content: str | None) -> None:
    pem = tmp_path / "ca.pem"
    if content is not None:
        pem.write_text(content)
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        AiohttpTransport(ca=pem)


async def test_plain_server_on_https_is_not_sent() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(REPLY)
        await hang(reader, writer)

    async with serving(handler) as url:
        error = await failing(paid(url.replace("http", "https")))
    assert type(error) is ConnectFailedError


async def test_close_during_handshake_is_not_sent() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with serving(handler) as url:
        error = await failing(paid(url.replace("http", "https")))
    assert type(error) is ConnectFailedError


@pytest.mark.parametrize("effect", list(Effect))
async def test_connect_timeout_is_not_sent(effect: Effect) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await hang(reader, writer)

    connected = asyncio.Event()
    async with serving(silent) as url:  # The connect timeout includes the TLS handshake.
        request = HttpRequest(method="POST", url=url.replace("http", "https"), effect=effect)
        error = await failing(request, too_late=connected, by=TIMEOUTS.connect + 1)
    assert type(error) is ConnectFailedError


async def test_pool_timeout_is_not_sent() -> None:
    asked, silent = announced(hang)
    async with (
        serving(silent) as url,
        opened(AiohttpTransport(limit=1)) as transport,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(transport.send(paid(url)))
        await asked.wait()
        second = tasks.create_task(caught(transport.send(paid(url))))
        await leaps.until(lambda: waiters(transport))
        # Longer than the pool timeout, shorter than the first request's read timeout.
        leaps.leap(TIMEOUTS.connect + 1)
        assert type(await second) is ConnectFailedError
        first.cancel()


async def caught(sending: Awaitable[HttpResponse]) -> TransportError:
    with pytest.raises(TransportError) as raised:
        await sending
    return raised.value


def waiters(transport: AiohttpTransport) -> int:
    """Return the number of requests that wait for a connection in aiohttp."""
    assert transport._session is not None
    connector = transport._session.connector
    assert connector is not None
    return sum(len(waiting) for waiting in connector._waiters.values())


async def test_closed_transport_sends_nothing() -> None:
    async with serving(answer) as url:
        transport = AiohttpTransport()
        await transport.open()
        await transport.open()
        await transport.aclose()
        await transport.aclose()
        with pytest.raises(ConnectFailedError, match="closed"):
            await transport.send(paid(url))
        borrowed = aiohttp.ClientSession()
        await borrowed.close()
        with pytest.raises(ConnectFailedError, match="closed"):
            await AiohttpTransport(client_session=borrowed).send(paid(url))


async def test_invalid_header_error_hides_value() -> None:
    async with serving(answer) as url:
        headers = {"Authorization": f"Bearer {KEY}\r\nX-Injected: 1"}
        await failing(HttpRequest(method="GET", url=url, headers=headers))


# Failures after the request was sent: its fate is unknown.


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


async def close_after_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.transport.abort()


async def half_a_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)


async def half_a_chunk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nxx")


async def bad_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx")


async def bad_gzip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope")


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(b"what is this?\r\n\r\n")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await head_of(reader))


async def endless_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")


@pytest.mark.parametrize(
    "handler",
    [
        close_at_once,
        close_after_reading,
        reset,
        half_a_body,
        half_a_chunk,
        bad_chunks,
        bad_gzip,
        garbage,
        echo,
        endless_header,
    ],
)
async def test_broken_connection_may_have_been_sent(handler: Handler) -> None:
    async with serving(handler) as url:
        error = await failing(paid(url))
    assert type(error) is ConnectionLostError
    assert error.sent
    assert error.spent is Spent.UNKNOWN
    assert "POST 127.0.0.1:" in str(error)
    assert "token" not in str(error)


@pytest.mark.promise(1)
async def test_paid_request_is_not_resent_on_closed_connection() -> None:
    heads = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heads
        await answer(reader, writer)
        await head_of(reader)
        heads += 1

    async with serving(handler) as url, opened(AiohttpTransport()) as transport:
        await transport.send(plain(url))
        with pytest.raises(ConnectionLostError):
            await transport.send(paid(url))
    assert heads == 1


async def silent_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
    await hang(reader, writer)


async def drop_by_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("handler", [hang, silent_body, drop_by_drop])
@pytest.mark.parametrize("effect", list(Effect))
@pytest.mark.promise(7)
async def test_slow_response_times_out(handler: Handler, effect: Effect) -> None:
    asked, slow = announced(handler)
    async with serving(slow) as url:
        error = await failing(HttpRequest(method="POST", url=url, effect=effect), too_late=asked)
    assert type(error) is TransportTimeoutError
    assert isinstance(error, TimeoutError)
    assert error.spent is (Spent.UNKNOWN if effect is Effect.PAID else Spent.NO)


async def test_stalled_upload_times_out() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # the selector loop's
        await asyncio.Event().wait()

    asked, deaf = announced(handler)
    async with serving(deaf) as url:
        error = await failing(HttpRequest(method="PUT", url=url, body=bytes(9 * 2**20)), too_late=asked)
    assert type(error) is TransportTimeoutError


@pytest.mark.parametrize("drop", [b"x", b"HTTP/1.1 103 Early Hints\r\n\r\n"], ids=["header", "early hints"])
async def test_headers_of_a_stream_that_arrive_drop_by_drop_end(drop: bytes) -> None:
    """Each drop arrives within the timeout of a read."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nX: " if drop == b"x" else drop)
        while True:
            writer.write(drop)
            await writer.drain()
            for _ in range(20):
                await asyncio.sleep(0)
            leaps.leap(TIMEOUTS.transfer / 2)

    async with serving(handler) as url, opened(AiohttpTransport()) as transport:
        with pytest.raises(TransportTimeoutError):
            async with transport.stream(plain(url)):
                pass


async def test_stream_has_read_timeout_but_no_total_timeout() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await wanted.acquire()
            writer.write(b"x")
            await writer.drain()

    wanted = asyncio.Semaphore()
    async with (
        serving(handler) as url,
        opened(AiohttpTransport()) as transport,
        transport.stream(plain(url)) as response,
    ):
        chunks = response.chunks()
        for _ in range(20):
            assert await anext(chunks) == b"x"
            leaps.leap(0.5 * TIMEOUTS.transfer)
            wanted.release()
        assert await anext(chunks) == b"x"
        leaps.leap(TIMEOUTS.transfer)
        with pytest.raises(TransportTimeoutError) as caught:
            await anext(chunks)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_broken_stream_raises() -> None:
    async with (
        serving(half_a_body) as url,
        opened(AiohttpTransport()) as transport,
        transport.stream(plain(url)) as response,
    ):
        chunks = response.chunks()
        assert await anext(chunks) == b"x" * 10
        with pytest.raises(ConnectionLostError, match="response headers were received"):
            await anext(chunks)


# Cancellation, sessions, proxies.


async def test_cancellation_propagates() -> None:
    asked, silent = announced(hang)
    async with serving(silent) as url, opened(AiohttpTransport()) as transport:
        task = asyncio.create_task(transport.send(paid(url)))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with anyio.move_on_after(0.05) as scope:
            await transport.send(paid(url))
        assert scope.cancelled_caught


async def test_given_client_session_is_left_open() -> None:
    async with serving(answer) as url, aiohttp.ClientSession() as session:
        transport = AiohttpTransport(client_session=session)
        assert (await transport.send(paid(url))).status == 200
        await transport.aclose()
        assert not session.closed


async def test_owned_client_session_is_closed(server_tls: ssl.SSLContext, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with serving(answer, tls=server_tls) as url:
            transport = AiohttpTransport(ca=context)
            await transport.send(plain(url))
            async with transport.stream(plain(url)):
                pass
            await transport.aclose()
        del transport
        await asyncio.sleep(0)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("how", ["argument", "environment", "without a scheme"])
async def test_requests_use_proxy(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await head_of(reader)).splitlines()[0])
        writer.write(REPLY)

    async with serving(proxy) as url:
        for name in ("no_proxy", "NO_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        if how != "argument":
            monkeypatch.setenv("http_proxy", url if how == "environment" else url.removeprefix("http://"))
        async with opened(AiohttpTransport(proxy=url if how == "argument" else None)) as transport:
            response = await transport.send(plain("http://api.example/a"))
    assert response.status == 200
    assert lines == [b"GET http://api.example/a HTTP/1.1"]


async def test_environment_proxy_can_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with serving(answer) as url:
        async with opened(AiohttpTransport(trust_env=False)) as transport:
            assert (await transport.send(plain(url))).status == 200
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with opened(AiohttpTransport()) as transport:
            assert (await transport.send(plain(url))).status == 200


async def test_proxy_refusing_tunnel_is_not_sent() -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    async with serving(proxy) as url:
        error = await failing(paid("https://api.example"), proxy=url.replace("//", f"//me:{KEY}@"))
    assert type(error) is ConnectFailedError
    assert "the proxy answered 407" in str(error)


async def test_unreachable_proxy_is_not_sent() -> None:
    error = await failing(paid("http://api.example"), proxy=f"http://me:{KEY}@127.0.0.1:9")
    assert type(error) is ConnectFailedError


# The table of exceptions.


def classes(module: object) -> list[type[BaseException]]:
    return [
        item
        for _, item in inspect.getmembers(module, inspect.isclass)
        if issubclass(item, BaseException) and item.__module__ == module.__name__  # type: ignore[attr-defined]  # of any class
    ]


@pytest.mark.parametrize("cls", classes(aiohttp.client_exceptions))
def test_every_client_exception_is_mapped(cls: type[BaseException]) -> None:
    assert cls.__name__ in failures.ERROR_TYPES


@pytest.mark.parametrize("cls", classes(aiohttp.http_exceptions))
def test_every_parser_exception_maps_to_lost_connection(cls: type[BaseException]) -> None:
    assert issubclass(cls, aiohttp.http_exceptions.HttpProcessingError)
    assert not {base.__name__ for base in cls.__mro__[:-3]} & failures.ERROR_TYPES.keys() - {"HttpProcessingError"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(104, "reset"), ConnectionLostError),
        (ConnectionRefusedError(111, "refused"), ConnectionLostError),
        (ssl.SSLError(1, "bad record"), ConnectionLostError),
        (TimeoutError(), TransportTimeoutError),
        (UnicodeEncodeError("idna", "x", 0, 1, "label too long"), ConnectFailedError),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), ConnectionLostError),
        (ValueError("?"), ConnectionLostError),
        (RuntimeError("?"), ConnectionLostError),
        (aiohttp.SocketTimeoutError(), TransportTimeoutError),
        (aiohttp.ConnectionTimeoutError(), ConnectFailedError),
        (aiohttp.ServerFingerprintMismatch(b"", b"", "h", 1), ConnectFailedError),
        (aiohttp.InvalidUrlRedirectClientError("x"), ConnectionLostError),
    ],
)
def test_unclear_exception_may_have_been_sent(error: BaseException, kind: type[TransportError]) -> None:
    request = plain("http://h/p")
    assert type(map_exception(error, request)) is kind
    assert map_exception(error, request, replied=True).sent


def test_aiohttp_messages_are_not_exposed() -> None:
    texts = (
        aiohttp.ClientOSError(32, f"Can not write request body for http://h/p?token={KEY}"),
        aiohttp.ClientPayloadError(f"after http://h/p?token={KEY}"),
        aiohttp.InvalidURL(f"http://h/p?token={KEY}"),
    )
    for error in texts:
        assert KEY not in str(map_exception(error, plain(f"http://h/p?token={KEY}")))

"""Contract check for transports, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import traceback
from collections import Counter
from typing import TYPE_CHECKING

from kling_async._core.http import Effect, HttpRequest
from kling_async.errors import ConnectFailedError, ConnectionLostError, TransportError

from ._patience import patience, require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from kling_async._core.transport import Transport

_KEY = "wsk-key-of-the-check"
_BODY = b'{"prompt": "check"}'
_JSON = b'{"code": 200}'
_LARGE = bytes(range(256)) * 2000
_POLL_S = 0.005

_RESPONSES: Mapping[str, bytes] = {
    "/reply": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Request-ID: R1\r\n\r\n%b" % (len(_JSON), _JSON),
    "/error": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 6\r\n\r\nbroken",
    "/redirect": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /reply\r\nContent-Length: 0\r\n\r\n",
    "/large": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Request-ID: R1\r\n\r\n%b" % (len(_LARGE), _LARGE),
    "/half": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(10),
    "/drop": b"",
}
_CLOSING_PATHS = {"/half", "/drop"}
_SILENT_PATH = "/silent"
_OK = 200
_SERVER_ERROR = 500


class _Server:
    """HTTP server that responds by path, keeps connections alive and records requests."""

    def __init__(self) -> None:
        self.url = ""
        self.posts: Counter[str] = Counter()
        self.last: tuple[str, str, dict[str, str], bytes] = ("", "", {}, b"")
        self._tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; return whether the connection stays open."""
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        path = target.partition("?")[0]
        # Counted before the body, which may be chunked or missing.
        self.posts[path] += method == "POST"
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.last = method, target, headers, body
        if path == _SILENT_PATH:
            await reader.read()
            return False
        writer.write(_RESPONSES[path])
        await writer.drain()
        return path not in _CLOSING_PATHS

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _serving() -> AsyncIterator[_Server]:
    served = _Server()
    listening = await asyncio.start_server(served.connected, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        listening.close()
        await served.end()


async def check_transport(make: Callable[[], Transport], *, seconds: float = 10.0) -> None:
    """Check a transport against its contract, with a server on 127.0.0.1 that this function starts.

    Every status is a response, redirects included; a refused port raises `ConnectFailedError`, a connection that breaks
    later `ConnectionLostError`; a request is sent once; cancellation propagates; no error contains the key.

    Args:
        make: Returns a transport that connects to 127.0.0.1 without a proxy; it is closed at the end.
        seconds: Timeout of each step.

    Raises:
        AssertionError: The transport breaks the contract; the text says how.
    """
    steps: tuple[tuple[str, Callable[[Transport, _Server], Awaitable[None]]], ...] = (
        ("a response to `send`", _check_response),
        ("an error status", _check_error_status),
        ("a refused connection", _check_refused_connection),
        ("a broken connection", _check_broken_connection),
        ("a stream", _check_stream),
        ("a broken stream", _check_broken_stream),
        ("the cancellation of `send`", _check_cancellation),
    )
    async with _serving() as server:
        for what, step in steps:
            transport = make()
            try:
                with patience(seconds, f"{what} did not end"):
                    await step(transport, server)
            finally:
                with patience(seconds, f"`aclose` after {what} did not end"):
                    await transport.aclose()


def _paid(url: str) -> HttpRequest:
    headers = {"Authorization": f"Bearer {_KEY}", "Content-Type": "application/json"}
    return HttpRequest(method="POST", url=url + "?token=" + _KEY, effect=Effect.PAID, headers=headers, body=_BODY)


async def _check_response(transport: Transport, server: _Server) -> None:
    response = await transport.send(_paid(server.url + "/reply"))
    method, target, headers, body = server.last
    require(
        method == "POST" and target == f"/reply?token={_KEY}",
        f"expected POST /reply with the query, the server received {method} {target}",
    )
    require(headers.get("authorization") == f"Bearer {_KEY}", "the header Authorization did not arrive unchanged")
    require(headers.get("content-type") == "application/json", "the header Content-Type did not arrive unchanged")
    require(body == _BODY, f"the body arrived as {body!r}, expected {_BODY!r}")
    require(
        response.status == _OK and response.body == _JSON,
        f"the response is {response!r} {response.body!r}, expected 200 {_JSON!r}",
    )
    require(
        response.headers.get("x-request-id") == "R1",
        f"expected header names in lower case and values unchanged, got {dict(response.headers)}",
    )
    require(server.posts["/reply"] == 1, f"one request was sent {server.posts['/reply']} times")


async def _check_error_status(transport: Transport, server: _Server) -> None:
    before = server.posts["/reply"]
    for path, status in (("/error", 500), ("/redirect", 307)):
        try:
            response = await transport.send(_paid(server.url + path))
        except Exception as error:
            raise AssertionError(f"status {status} is a response, but `send` raised {type(error).__name__}") from error
        require(
            response.status == status,
            f"expected status {status}, got {response.status}: redirects and errors must not be repeated",
        )
        require(server.posts[path] == 1, f"a POST that got status {status} was sent {server.posts[path]} times")
    require(server.posts["/reply"] == before, "a redirect was followed by `send`")


async def _check_refused_connection(transport: Transport, server: _Server) -> None:
    del server
    with socket.socket() as free:
        # Bound without listening, so that the port stays refused.
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/reply"
        error = await _failure(transport, url, "a refused connection")
    require(
        isinstance(error, ConnectFailedError) and not error.sent,
        f"a refused connection: expected ConnectFailedError, since nothing was sent, got {type(error).__name__}",
    )


async def _check_broken_connection(transport: Transport, server: _Server) -> None:
    # The first response leaves a pooled connection; HTTP clients tend to repeat requests on those.
    await transport.send(_paid(server.url + "/reply"))
    for path, what in (("/drop", "before a response"), ("/half", "within a response")):
        error = await _failure(transport, server.url + path, f"a connection that broke {what}")
        require(
            isinstance(error, ConnectionLostError) and error.sent,
            f"connection broken {what}: expected ConnectionLostError, since it was sent, got {type(error).__name__}",
        )
        require(server.posts[path] == 1, f"a POST whose connection broke {what} was sent {server.posts[path]} times")


async def _failure(transport: Transport, url: str, what: str) -> TransportError:
    try:
        response = await transport.send(_paid(url))
    except TransportError as error:
        _check_key_is_hidden(error, what)
        return error
    except Exception as error:
        raise AssertionError(f"{what}: expected TransportError, got {type(error).__name__}") from error
    raise AssertionError(f"{what}: expected TransportError, got {response!r}")


def _check_key_is_hidden(error: BaseException, what: str) -> None:
    """Search for the key in an error and in its causes and contexts."""
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is not None and each not in seen:
            seen.append(each)
            pending += [each.__cause__, each.__context__]
    shown = [f"{each!s} {each!r} {each.args!r} {vars(each)!r}" for each in seen]
    shown += traceback.format_exception(error)
    require(not any(_KEY in text for text in shown), f"the error of {what}, or one of its causes, contains the key")


async def _check_stream(transport: Transport, server: _Server) -> None:
    before = server.posts["/large"]
    async with transport.stream(_paid(server.url + "/large")) as response:
        require(response.status == _OK, f"the status of a stream: expected 200, got {response.status}")
        require(response.headers.get("x-request-id") == "R1", "a stream: expected header names in lower case")
        body = b"".join([chunk async for chunk in response.chunks()])
    require(body == _LARGE, f"the body of a stream has {len(body)} bytes, expected {len(_LARGE)}")
    require(server.posts["/large"] == before + 1, "a streamed POST was sent more than once")
    async with transport.stream(_paid(server.url + "/error")) as response:
        require(response.status == _SERVER_ERROR, "status 500 of a stream is a response")
    # Closed before its end.
    async with transport.stream(_paid(server.url + "/large")) as response:
        await anext(aiter(response.chunks()))


async def _check_broken_stream(transport: Transport, server: _Server) -> None:
    try:
        async with transport.stream(_paid(server.url + "/half")) as response:
            async for _ in response.chunks():
                pass
    except TransportError as error:
        _check_key_is_hidden(error, "a broken stream")
        require(error.sent, f"a broken stream: expected ConnectionLostError, got {type(error).__name__}")
    except Exception as error:
        raise AssertionError(f"a broken stream: expected TransportError, got {type(error).__name__}") from error
    else:
        raise AssertionError("a broken stream ended as if it were complete")


async def _check_cancellation(transport: Transport, server: _Server) -> None:
    task = asyncio.ensure_future(transport.send(_paid(server.url + _SILENT_PATH)))
    while not server.posts[_SILENT_PATH] and not task.done():  # noqa: ASYNC110 -- the server has no event for it
        await asyncio.sleep(_POLL_S)
    task.cancel()
    try:
        await asyncio.wait([task], timeout=1)
        require(task.cancelled(), "`send` was cancelled and did not end as cancelled")
    finally:
        task.cancel()
    require(server.posts[_SILENT_PATH] == 1, "a POST that was cancelled was sent more than once")
    response = await transport.send(_paid(server.url + "/reply"))
    require(response.body == _JSON, "after a cancellation the next request did not get its own response")

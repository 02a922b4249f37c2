"""What a session relies on in a transport, over real sockets."""

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
_TURN = 0.005

_REPLIES: Mapping[str, bytes] = {
    "/reply": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Request-ID: R1\r\n\r\n%b" % (len(_JSON), _JSON),
    "/error": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 6\r\n\r\nbroken",
    "/redirect": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /reply\r\nContent-Length: 0\r\n\r\n",
    "/large": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Request-ID: R1\r\n\r\n%b" % (len(_LARGE), _LARGE),
    "/half": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(10),
    "/drop": b"",
}
_ENDS = {"/half", "/drop"}
_SILENT = "/silent"


class _Server:
    """Answers by path, keeps connections alive, and notes what came."""

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
        """One request; whether the connection stays."""
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        path = target.partition("?")[0]
        # Counted by its head: a body may come in chunks or not at all.
        self.posts[path] += method == "POST"
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.last = method, target, headers, body
        if path == _SILENT:
            await reader.read()
            return False
        writer.write(_REPLIES[path])
        await writer.drain()
        return path not in _ENDS

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
    """Hold a transport to its contract, against a server on 127.0.0.1 that this function starts.

    Every status is a reply, redirects included; a refused port is a `ConnectFailedError`, a connection that breaks
    later a `ConnectionLostError`; a request is sent once; a cancellation passes; no error shows the key.

    Args:
        make: Gives a transport that goes to 127.0.0.1 without a proxy; it is closed in the end.
        seconds: How long each step may take.

    Raises:
        AssertionError: It breaks the contract; says how.
    """
    steps: tuple[tuple[str, Callable[[Transport, _Server], Awaitable[None]]], ...] = (
        ("a reply to `send`", _replies),
        ("a reply that says no", _says_no),
        ("a refused connection", _refused),
        ("a dropped connection", _dropped),
        ("a stream", _streams),
        ("a stream that breaks", _breaks),
        ("the cancellation of `send`", _cancelled),
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


async def _replies(transport: Transport, server: _Server) -> None:
    response = await transport.send(_paid(server.url + "/reply"))
    method, target, headers, body = server.last
    require(method == "POST" and target == f"/reply?token={_KEY}", f"the request came as {method} {target}")
    require(headers.get("authorization") == f"Bearer {_KEY}", "the header Authorization did not come as it was given")
    require(headers.get("content-type") == "application/json", "the header Content-Type did not come as it was given")
    require(body == _BODY, f"the body came as {body!r}, not as {_BODY!r}")
    require(response.status == 200 and response.body == _JSON, f"the reply came as {response!r} {response.body!r}")  # noqa: PLR2004 -- the status
    require(
        response.headers.get("x-request-id") == "R1",
        f"names of headers are to be in lower case, values as they are: {dict(response.headers)}",
    )
    require(server.posts["/reply"] == 1, f"one request was sent {server.posts['/reply']} times")


async def _says_no(transport: Transport, server: _Server) -> None:
    before = server.posts["/reply"]
    for path, status in (("/error", 500), ("/redirect", 307)):
        try:
            response = await transport.send(_paid(server.url + path))
        except Exception as error:
            raise AssertionError(f"status {status} is a reply, and `send` raised {type(error).__name__}") from error
        require(response.status == status, f"status {status} came as {response.status}: what replies is not repeated")
        require(server.posts[path] == 1, f"a POST that got status {status} was sent {server.posts[path]} times")
    require(server.posts["/reply"] == before, "a redirect was followed by `send`")


async def _refused(transport: Transport, server: _Server) -> None:
    del server
    with socket.socket() as free:
        # Bound and not listening, so that nobody else can.
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/reply"
        error = await _failure(transport, url, "a refused connection")
    require(
        isinstance(error, ConnectFailedError) and not error.sent,
        f"a refused connection is a ConnectFailedError, not a {type(error).__name__}: nothing was sent",
    )


async def _dropped(transport: Transport, server: _Server) -> None:
    # The first reply leaves a connection to be used again; that is where clients like to send twice.
    await transport.send(_paid(server.url + "/reply"))
    for path, what in (("/drop", "before a reply"), ("/half", "within a reply")):
        error = await _failure(transport, server.url + path, f"a connection that broke {what}")
        require(
            isinstance(error, ConnectionLostError) and error.sent,
            f"a connection that broke {what} is a ConnectionLostError, not a {type(error).__name__}: it was sent",
        )
        require(server.posts[path] == 1, f"a POST whose connection broke {what} was sent {server.posts[path]} times")


async def _failure(transport: Transport, url: str, what: str) -> TransportError:
    try:
        response = await transport.send(_paid(url))
    except TransportError as error:
        _keeps_the_key(error, what)
        return error
    except Exception as error:
        raise AssertionError(f"{what} is a TransportError, not a {type(error).__name__}") from error
    raise AssertionError(f"{what} is a TransportError, not {response!r}")


def _keeps_the_key(error: BaseException, what: str) -> None:
    """Look for the key in an error and in those that led to it."""
    seen: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        each = ahead.pop()
        if each is not None and each not in seen:
            seen.append(each)
            ahead += [each.__cause__, each.__context__]
    shown = [f"{each!s} {each!r} {each.args!r} {vars(each)!r}" for each in seen]
    shown += traceback.format_exception(error)
    require(not any(_KEY in text for text in shown), f"the error of {what}, or one behind it, shows the key")


async def _streams(transport: Transport, server: _Server) -> None:
    before = server.posts["/large"]
    async with transport.stream(_paid(server.url + "/large")) as response:
        require(response.status == 200, f"the status of a stream came as {response.status}")  # noqa: PLR2004 -- the status
        require(response.headers.get("x-request-id") == "R1", "names of a stream's headers are to be in lower case")
        body = b"".join([chunk async for chunk in response.chunks()])
    require(body == _LARGE, f"the body of a stream came as {len(body)} bytes, not as the {len(_LARGE)} that were sent")
    require(server.posts["/large"] == before + 1, "a streamed POST was sent more than once")
    async with transport.stream(_paid(server.url + "/error")) as response:
        require(response.status == 500, "status 500 of a stream is a reply")  # noqa: PLR2004 -- the status
    # Left before its end.
    async with transport.stream(_paid(server.url + "/large")) as response:
        await anext(aiter(response.chunks()))


async def _breaks(transport: Transport, server: _Server) -> None:
    try:
        async with transport.stream(_paid(server.url + "/half")) as response:
            async for _ in response.chunks():
                pass
    except TransportError as error:
        _keeps_the_key(error, "a stream that broke")
        require(error.sent, f"a stream that broke is a ConnectionLostError, not a {type(error).__name__}")
    except Exception as error:
        raise AssertionError(f"a stream that broke is a TransportError, not a {type(error).__name__}") from error
    else:
        raise AssertionError("a stream that broke ended as if it were complete")


async def _cancelled(transport: Transport, server: _Server) -> None:
    task = asyncio.ensure_future(transport.send(_paid(server.url + _SILENT)))
    while not server.posts[_SILENT] and not task.done():  # noqa: ASYNC110 -- the server has no event for it
        await asyncio.sleep(_TURN)
    task.cancel()
    try:
        await asyncio.wait([task], timeout=1)
        require(task.cancelled(), "`send` was cancelled and did not end as cancelled")
    finally:
        task.cancel()
    require(server.posts[_SILENT] == 1, "a POST that was cancelled was sent more than once")
    response = await transport.send(_paid(server.url + "/reply"))
    require(response.body == _JSON, "after a cancellation the next request did not get its own reply")

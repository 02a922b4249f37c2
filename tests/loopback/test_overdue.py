"""One timer for the timeouts of all requests; it does not interfere with other cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import attrs
import pytest

from kling_async import HttpRequest, Timeouts, TransportTimeoutError
from kling_async._http.timeouts import Deadline
from kling_async._http.transport import AiohttpTransport
from support import leaps

pytestmark = pytest.mark.anyio

TIMEOUTS = Timeouts(connect=100.0, read=100.0)
FOR_THE_HEAD = TIMEOUTS.connect + TIMEOUTS.read
"""Seconds until response headers are due; the body may take 300 s more."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"


@pytest.fixture
def anyio_backend() -> object:
    return leaps.BACKEND


@attrs.define
class Server:
    """Server: no response under `/silent`, half of one under `/half`, the rest under `/slow` once `released`."""

    url: str = ""
    asked: int = 0
    released: asyncio.Event = attrs.field(factory=asyncio.Event)

    def get(self, path: str) -> HttpRequest:
        return HttpRequest(method="GET", url=self.url + path)


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    made = Server()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            made.asked += 1
            if path == b"/silent":
                await reader.read()
            writer.write(HEAD + b"abc")
            if path == b"/half":
                await reader.read()
            await made.released.wait()
            writer.write(b"def")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made
    finally:
        server.close()


@asynccontextmanager
async def opened() -> AsyncIterator[AiohttpTransport]:
    transport = AiohttpTransport(timeouts=TIMEOUTS)
    try:
        yield transport
    finally:
        await transport.aclose()


def cancelled() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def deadlines(transport: AiohttpTransport) -> list[Deadline]:
    return list(transport._timers._deadlines)


def heads(transport: AiohttpTransport) -> int:
    """Return the number of running requests with response headers, whose body has a later deadline."""
    limits = [deadline.when for deadline in deadlines(transport)]
    return sum(limit > asyncio.get_running_loop().time() + FOR_THE_HEAD for limit in limits)


@pytest.mark.parametrize(("path", "said"), [("/silent", False), ("/half", True)])
async def test_timed_out_request_leaves_no_pending_cancellation(path: str, *, said: bool) -> None:
    async with serving() as server, opened() as transport, asyncio.TaskGroup() as tasks:

        async def later() -> None:
            await leaps.until(lambda: server.asked and heads(transport) == said)
            leaps.leap(FOR_THE_HEAD + 3 * TIMEOUTS.read)

        tasks.create_task(later())
        with pytest.raises(TransportTimeoutError) as caught:
            await transport.send(server.get(path))
        assert cancelled() == 0
    assert ("response headers were received" in str(caught.value)) is said


async def test_response_body_has_longer_timeout() -> None:
    async with serving() as server, opened() as transport, asyncio.TaskGroup() as tasks:
        reply = tasks.create_task(transport.send(server.get("/slow")))
        await leaps.until(lambda: heads(transport))
        leaps.leap(FOR_THE_HEAD + 1)
        await asyncio.sleep(0.01)
        server.released.set()
        assert (await reply).body == b"abcdef"


async def test_concurrent_requests_all_time_out() -> None:
    async with serving() as server, opened() as transport:
        paths = [f"/{'slow' if number % 5 == 0 else 'silent'}" for number in range(50)]
        sent = asyncio.gather(*(transport.send(server.get(path)) for path in paths), return_exceptions=True)
        await leaps.until(lambda: server.asked == 50 and heads(transport) == 10)
        leaps.leap(FOR_THE_HEAD + 1)
        await leaps.until(lambda: len(deadlines(transport)) == 10)
        server.released.set()
        ends = await sent
    assert [isinstance(end, TransportTimeoutError) for end in ends] == [path == "/silent" for path in paths]


async def test_external_cancellation_is_distinguished_from_timeout() -> None:
    async with serving() as server, opened() as transport:
        request = server.get("/silent")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await transport.send(request)
        assert cancelled() == 0
        with anyio.move_on_after(0.01) as scope:
            await transport.send(request)
        assert scope.cancelled_caught
        task = asyncio.create_task(transport.send(request))
        await leaps.until(lambda: deadlines(transport))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancellation_wins_over_simultaneous_timeout() -> None:
    """Cancellation must not turn into a timeout, whichever came first in one iteration of the loop."""
    async with serving() as server, opened() as transport:
        task = asyncio.create_task(transport.send(server.get("/silent")))
        await leaps.until(lambda: server.asked)
        leaps.leap(FOR_THE_HEAD + 1)
        transport._timers._cancel_passed(asyncio.get_running_loop())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

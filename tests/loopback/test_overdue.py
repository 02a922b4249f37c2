"""One timer ends all reads that wait too long, each by itself, and disturbs nobody else's cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from kling_async import HttpRequest, Timeouts, TransportTimeoutError
from kling_async._http.transport import AiohttpTransport

pytestmark = pytest.mark.anyio

SHORT = Timeouts(connect=0.1, read=0.1)
FOR_MANY = Timeouts(connect=1.0, read=0.5)
"""Fifty connections at once take a while on a machine that has other work."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Under `/silent` nothing comes, under `/half` not all, under `/slow` all, but later than a head may come."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            if path == b"/silent":
                await reader.read()
            writer.write(HEAD + b"abc")
            if path == b"/half":
                await reader.read()
            # Longer than the head may take, shorter than the rest may.
            await asyncio.sleep(0.25)
            writer.write(b"def")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@asynccontextmanager
async def opened(timeouts: Timeouts = SHORT) -> AsyncIterator[AiohttpTransport]:
    transport = AiohttpTransport(timeouts=timeouts)
    try:
        yield transport
    finally:
        await transport.aclose()


def cancelled() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


@pytest.mark.parametrize(("path", "said"), [("/silent", False), ("/half", True)])
async def test_what_waits_too_long_ends_and_leaves_no_cancellation_behind(path: str, *, said: bool) -> None:
    async with serving() as url, opened() as transport:
        with anyio.fail_after(20), pytest.raises(TransportTimeoutError) as caught:
            await transport.send(HttpRequest(method="GET", url=url + path))
    assert ("the head of its reply had come" in str(caught.value)) is said
    assert cancelled() == 0


async def test_a_reply_that_has_begun_may_take_longer() -> None:
    async with serving() as url, opened() as transport:
        with anyio.fail_after(20):
            assert (await transport.send(HttpRequest(method="GET", url=f"{url}/slow"))).body == b"abcdef"


async def test_many_at_once_end_one_and_all() -> None:
    async with serving() as url, opened(FOR_MANY) as transport:
        requests = (HttpRequest(method="GET", url=f"{url}/{'slow' if n % 5 == 0 else 'silent'}") for n in range(50))
        with anyio.fail_after(20):
            ends = await asyncio.gather(*map(transport.send, requests), return_exceptions=True)
    assert [isinstance(end, TransportTimeoutError) for end in ends] == [n % 5 != 0 for n in range(50)]


async def test_whose_cancellation_it_is_stays_known() -> None:
    async with serving() as url, opened() as transport:
        request = HttpRequest(method="GET", url=f"{url}/silent")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await transport.send(request)
        assert cancelled() == 0
        with anyio.move_on_after(0.01) as scope:
            await transport.send(request)
        assert scope.cancelled_caught
        task = asyncio.create_task(transport.send(request))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelled_and_overdue_at_once_is_cancelled() -> None:
    """Who cancels must not see a timeout instead, whichever came first in the same turn of the loop."""
    async with serving() as url, opened() as transport:
        task = asyncio.create_task(transport.send(HttpRequest(method="GET", url=f"{url}/silent")))
        await asyncio.sleep(0.01)
        (deadline,) = transport._timers._deadlines
        deadline.when = 0.0
        transport._timers._cancel_passed(asyncio.get_running_loop())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

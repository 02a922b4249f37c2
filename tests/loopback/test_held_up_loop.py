"""Replies that arrive while the event loop is held up are used: a timer that fires late looks at the socket first."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator

import attrs
import pytest

from kling_async import HttpRequest, Timeouts, TransportTimeoutError
from kling_async._core.http import Effect, HttpResponse
from kling_async._http.transport import AiohttpTransport
from support import leaps
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

TIMEOUTS = Timeouts(connect=100.0, read=100.0, submit=100.0, transfer=100.0)
HELD_UP_S = 3600.0
"""Seconds for which the loop is held up: longer than any deadline of a request."""


@pytest.fixture
def anyio_backend() -> object:
    return leaps.BACKEND


@attrs.define
class Server:
    """Server in a thread, which answers while the loop of the test stands still."""

    url: str
    body: bytes
    asked: threading.Event = attrs.field(factory=threading.Event)
    answers: threading.Event = attrs.field(factory=threading.Event)
    answered: threading.Event = attrs.field(factory=threading.Event)

    def serve(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            # Room for the whole body, which nobody reads yet.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
            connection.recv(65536)
            self.asked.set()
            self.answers.wait(PATIENCE_S)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.body)}\r\n\r\n"
            connection.sendall(head.encode() + self.body)
            self.answered.set()


@pytest.fixture(params=[b"{}", bytes(300_000)], ids=["short", "long"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Server(f"http://127.0.0.1:{listening.getsockname()[1]}/x", request.param)
        thread = threading.Thread(target=made.serve, args=(listening,), daemon=True)
        thread.start()
        yield made
        made.answers.set()
        thread.join(PATIENCE_S)


def requests(url: str) -> dict[str, HttpRequest]:
    return {
        "read": HttpRequest(method="GET", url=url),
        "submit": HttpRequest(method="POST", url=url, effect=Effect.PAID, body=b"{}"),
        "upload": HttpRequest(method="PUT", url=url, body=b"picture"),
    }


async def held_up(server: Server, request: HttpRequest, block: Callable[[], None]) -> HttpResponse:
    """Send a request, and hold up the loop for an hour as soon as the server has it.

    A conversion in the loop, a debugger or a suspended machine does that. `block` runs meanwhile.
    """
    transport = AiohttpTransport(timeouts=TIMEOUTS)
    loop = asyncio.get_running_loop()

    def hold_up() -> None:
        if server.asked.is_set():
            block()
            leaps.leap(HELD_UP_S)
        else:
            loop.call_soon(hold_up)

    try:
        loop.call_soon(hold_up)
        return await transport.send(request)
    finally:
        await transport.aclose()


@pytest.mark.promise(1)
@pytest.mark.parametrize("kind", ["read", "submit", "upload"])
async def test_reply_that_arrived_while_the_loop_was_held_up_is_returned(kind: str, server: Server) -> None:
    def block() -> None:
        server.answers.set()
        assert server.answered.wait(PATIENCE_S)

    reply = await held_up(server, requests(server.url)[kind], block)
    assert (reply.status, reply.body) == (200, server.body)


@pytest.mark.parametrize("kind", ["read", "submit", "upload"])
async def test_reply_that_has_not_arrived_times_out_though_the_loop_was_held_up(kind: str, server: Server) -> None:
    with pytest.raises(TransportTimeoutError):
        await held_up(server, requests(server.url)[kind], lambda: None)

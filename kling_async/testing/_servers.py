"""Servers for tests of web handlers: the emulator and applications in threads of their own, and lifespans."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from kling_async.emulator import Emulator, ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
    from types import TracebackType

    from anyio.from_thread import BlockingPortal

    from kling_async.emulator import Charge, Clock, Faults, RequestRecord

    # ASGI's own types are mappings of any values, too.
    _Message: TypeAlias = MutableMapping[str, Any]
    AsgiApp: TypeAlias = Callable[
        [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]
    ]

T = TypeVar("T")


_LOCAL: Final = "127.0.0.1"


class EmulatorThread:
    """Emulator with an event loop of its own in a thread: it answers while the event loop of a test is blocked or ends.

    ```python
    with EmulatorThread(speed=100, profile="tiny") as server:
        app = make_app(KlingSession(server.api_key, base_url=server.base_url, clock=server.clock))
    ```

    Args:
        options: Arguments of `Emulator`.

    Raises:
        ValueError: The clock is a `ManualClock`, which belongs to one event loop.
    """

    def __init__(self, **options: Any) -> None:
        if isinstance(options.get("clock"), ManualClock):
            raise ValueError(  # noqa: TRY004 -- as `Emulator` raises for its options
                "clock: expected one that runs by itself, such as ScaledClock, got a ManualClock, which belongs to one "
                "event loop: use the fixture kling_emulator with it"
            )
        self._emulator = Emulator(**options)
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio", name="kling-emulator"))
            stack.enter_context(portal.wrap_async_context_manager(self._emulator))
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        self._portal = None

    def call(self, function: Callable[[Emulator], T]) -> T:
        """Call a function with the emulator, in its thread, and return the result: `call(Emulator.double_paid)`.

        Args:
            function: Reads or changes the emulator. It may be a coroutine function.
        """
        if self._portal is None:
            return function(self._emulator)
        return self._portal.call(function, self._emulator)

    @property
    def api_key(self) -> str:
        """The first accepted key."""
        return self._emulator.api_key

    @property
    def base_url(self) -> str:
        """Base URL of the WaveSpeed persona."""
        return self._emulator.base_url

    @property
    def clock(self) -> Clock:
        """The emulator's clock, for sessions in any thread."""
        return self._emulator.clock

    @property
    def faults(self) -> Faults:
        """Scripted faults."""
        return self._emulator.faults

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """The last requests, as `Emulator.requests`."""
        return self.call(lambda emulator: emulator.requests)

    def charges(self) -> tuple[Charge, ...]:
        """Return all charges, oldest first."""
        return self.call(Emulator.charges)

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables with which sessions of any process use this emulator."""
        no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), _LOCAL)))
        return {
            "WAVESPEED_API_KEY": self.api_key,
            "WAVESPEED_BASE_URL": self.base_url,
            "GPTPROTO_API_KEY": self._emulator.gptproto_key,
            "GPTPROTO_BASE_URL": self._emulator.gptproto_url,
            "NO_PROXY": no_proxy,
        }


@asynccontextmanager
async def started(app: AsgiApp) -> AsyncIterator[AsgiApp]:
    """Run an application's lifespan, as a server does and `httpx.ASGITransport` does not, and yield the application.

    The application is shut down at the end of the block, also if that raises or is cancelled.

    ```python
    async with started(app) as running, httpx.AsyncClient(transport=httpx.ASGITransport(running)) as http:
        await http.post("http://test/videos", json={"prompt": "Waves"})
    ```

    Args:
        app: An ASGI application, such as a `FastAPI`.

    Raises:
        RuntimeError: The application reported that it could not start; what it raised is raised as it is.
    """
    state: dict[str, Any] = {}
    to_app: asyncio.Queue[_Message] = asyncio.Queue()
    from_app: asyncio.Queue[_Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}

    async def answer(kind: str) -> None:
        """Send a message of the lifespan, and wait for its answer, or for what the application raises."""
        to_app.put_nowait({"type": kind})
        message = await from_app.get()
        if message["type"] != f"{kind}.complete":
            await lifespan  # which raises what went wrong, in most applications
            raise RuntimeError(f"the application failed at {kind}: {message.get('message', '')}")

    async def with_state(scope: _Message, receive: Any, send: Any) -> None:
        await app({**scope, "state": {**state, **scope.get("state", {})}}, receive, send)

    async def run() -> None:
        try:
            await app(scope, to_app.get, from_app.put)
        finally:
            # The last message of all, for those who wait for an answer.
            from_app.put_nowait({"type": "ended", "message": "no answer"})

    lifespan = asyncio.create_task(run(), name="kling-lifespan")
    try:
        await answer("lifespan.startup")
        try:
            yield with_state
        finally:
            # As a server does it, also after an error.
            with anyio.CancelScope(shield=True):
                await answer("lifespan.shutdown")
                await lifespan
    finally:
        lifespan.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(lifespan, return_exceptions=True)


@contextmanager
def served(app: AsgiApp) -> Iterator[str]:
    """Serve an application with uvicorn in a thread, at a free port, and yield its URL.

    Args:
        app: An ASGI application, such as a `FastAPI`.

    Raises:
        RuntimeError: The application did not start; uvicorn logs why.
    """
    # Imported here: the rest of this module needs no server.
    import uvicorn  # noqa: PLC0415 -- see above

    ready = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set()

    listening = socket.create_server((_LOCAL, 0))
    server = Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none", timeout_graceful_shutdown=5))

    def run() -> None:
        # An application that does not start: uvicorn has logged why, and leaves the process.
        with contextlib.suppress(SystemExit):
            try:
                server.run([listening])
            finally:
                ready.set()

    with listening:
        thread = threading.Thread(target=run, name="kling-uvicorn")
        thread.start()
        ready.wait()
        try:
            if not server.started:
                raise RuntimeError("the application did not start: see the log of uvicorn.error")
            yield f"http://{_LOCAL}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

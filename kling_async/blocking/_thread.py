"""Event loop of a blocking session, in a thread of its own, and calls into it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Sized
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import start_blocking_portal

from kling_async.errors import SessionClosedError, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from concurrent.futures import Future
    from contextlib import AbstractAsyncContextManager

    from anyio.from_thread import BlockingPortal

    from kling_async._session.batch import Item, Jobs

T = TypeVar("T")

_LOOK_EVERY_S: Final = 0.5 if sys.platform == "win32" else None
"""Longest uninterrupted wait in seconds. On Windows, Ctrl-C does not end one."""


class LoopThread:
    """An event loop in a thread of its own. Calls may come from any number of threads."""

    def __init__(self) -> None:
        self._portal: BlockingPortal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = ExitStack()
        self._was_open = False

    def open(self, context: AbstractAsyncContextManager[object]) -> None:
        """Start the thread, and enter a context manager in it.

        Raises:
            SessionClosedError: It was opened before.
            WrongLoopError: An event loop runs in the calling thread.
        """
        refuse_event_loop()
        if self._was_open:
            raise SessionClosedError(
                "expected a session that was not opened before; it can be opened only once",
                advice="make another KlingSession",
            )
        self._was_open = True
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal("asyncio", name="kling-session"))
            stack.callback(self._forget)
            self._loop = self._portal.call(asyncio.get_running_loop)
            held = Held(self, context)
            stack.callback(held.leave)
            held.enter()
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Leave the context manager, wait for the calls under way, and end the thread."""
        stack, self._stack = self._stack, ExitStack()
        stack.close()

    def _forget(self) -> None:
        self._portal = None

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await the result of a function in the event loop, and return it.

        An interrupt of the calling thread (Ctrl-C) cancels the awaiting in the event loop.

        Raises:
            SessionClosedError: The thread does not run.
            WrongLoopError: An event loop runs in the calling thread.
        """
        call = _Call(work)
        try:
            self._start(call.run)
            _wait(call.result)
        except BaseException:
            # Wherever in these lines the interrupt came: the call may have begun without us having noticed.
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(call.cancel)
            raise
        return call.result.result()

    def ask(self, work: Callable[[], T]) -> T:
        """Call a function in the event loop, and return its result; without a thread, call it here.

        Raises:
            WrongLoopError: An event loop runs in the calling thread.
        """
        if self._portal is None:
            return work()

        async def call() -> T:
            return work()

        return self.run(call)

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yield the items of an asynchronous iterator, each awaited in the event loop."""
        try:
            while found := self.run(lambda: next_of(items)):
                yield found[0]
        finally:
            # Not awaited: this may run wherever the generator is collected.
            portal = self._portal
            if portal is not None and isinstance(items, AsyncGenerator):
                with contextlib.suppress(RuntimeError):
                    portal.start_task_soon(items.aclose)

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        refuse_event_loop()
        portal = self._portal
        if portal is not None:
            try:
                portal.start_task_soon(work)
            except RuntimeError:
                # Another thread closed it meanwhile, or `threading.Condition` made this of an interrupt.
                if self._portal is not None:
                    raise
            else:
                return
        raise SessionClosedError("the session is closed" if self._was_open else "the session is not open yet")


class _Call(Generic[T]):
    """A call into the event loop, which can be cancelled before it has begun."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self.result: Future[T] = concurrent.futures.Future()
        self._work = work
        self._cancelled = False
        self._scope: anyio.CancelScope | None = None

    async def run(self) -> None:
        """Await the work, in the event loop."""
        with anyio.CancelScope() as self._scope:
            if self._cancelled:
                self._scope.cancel()
            try:
                self.result.set_result(await self._work())
            except BaseException as error:
                self.result.set_exception(error)
                if not isinstance(error, Exception):
                    raise

    def cancel(self) -> None:
        """Cancel the work, in the event loop."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()


class Held(Generic[T]):
    """An asynchronous context manager that one task of the event loop enters and leaves.

    Args:
        thread: The event loop.
        context: The context manager.
    """

    def __init__(self, thread: LoopThread, context: AbstractAsyncContextManager[T]) -> None:
        self._thread = thread
        self._context = context
        self._entered: Future[T] = concurrent.futures.Future()
        self._ended: Future[None] = concurrent.futures.Future()
        self._left = False
        self._leave: Callable[[], None] | None = None

    def enter(self) -> T:
        """Enter the context manager, and return its value. Call `leave` after it, also if it is interrupted."""
        self._thread._start(self._hold)  # noqa: SLF001 -- of this module
        _wait(self._entered)
        return self._entered.result()

    def leave(self) -> None:
        """Leave the context manager, without an exception, and wait for it. Nothing that was not entered is, later."""
        loop = self._thread._loop  # noqa: SLF001 -- of this module
        if loop is None:
            return
        try:
            # Not through the portal, which takes no calls while it closes.
            loop.call_soon_threadsafe(self._let_go)
        except RuntimeError:
            # A closed loop has ended the task.
            if not self._ended.done():
                return
        _wait(self._ended)
        self._ended.result()

    def _let_go(self) -> None:
        self._left = True
        if self._leave is not None:
            self._leave()
        elif not self._ended.done():
            # The task has not begun. If an interrupted `enter` has started it, it ends at once.
            self._ended.set_result(None)

    async def _hold(self) -> None:
        if self._left:
            return
        try:
            with anyio.CancelScope() as entering:
                leaving = anyio.Event()
                self._leave = entering.cancel
                async with self._context as value:
                    self._leave = leaving.set
                    self._entered.set_result(value)
                    await leaving.wait()
        except BaseException as error:
            if not self._entered.done():
                # `enter` raises it, and nobody leaves.
                self._entered.set_exception(error)
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._ended.set_result(None)


def refuse_event_loop() -> None:
    """Refuse to block a thread in which an event loop runs: nothing else of that loop could go on.

    Raises:
        WrongLoopError: One runs.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 -- documented, and None without one
        raise WrongLoopError(
            "kling_async.blocking blocks its thread: expected a thread without a running event loop; nothing was sent",
            advice="use `kling_async.KlingSession` with `async with` and `await` here, or call it by asyncio.to_thread",
        )


async def next_of(items: AsyncIterator[T]) -> tuple[T] | None:
    """Return the next item in a tuple; None at the end."""
    async for item in items:
        return (item,)
    return None


def in_thread(jobs: Jobs) -> Jobs:
    """Return the input of a batch, where it is an iterator, as one that is read in threads: it may block.

    It may call the session as well, which the event loop could not wait for.
    """
    if isinstance(jobs, Sized | AsyncIterable):
        return jobs
    return _read(jobs)


async def _read(jobs: Iterable[Item]) -> AsyncGenerator[Item, None]:
    items = iter(jobs)

    def next_item() -> tuple[Item] | None:
        # Not StopIteration, which no coroutine may raise.
        for item in items:
            return (item,)
        return None

    while found := await anyio.to_thread.run_sync(next_item, abandon_on_cancel=True):
        yield found[0]


def _wait(future: Future[T]) -> None:
    """Wait until a future is done. Ctrl-C interrupts it in the main thread."""
    while not future.done():
        concurrent.futures.wait([future], _LOOK_EVERY_S)

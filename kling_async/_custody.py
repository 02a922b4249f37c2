"""Work that must reach its end, whoever stops waiting for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from ._core.errors import SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Custody:
    """Tasks that are cancelled by nobody, and joined when the session closes.

    Cancelling the one who waits (`wait_for`, `asyncio.timeout`, `task.cancel()`, a failing sibling, an anyio scope, a
    closed web request) ends the waiting, not the work. Even a loop that closes (`asyncio.run` cancels every task that
    it can see) waits for it: the tasks are not among `asyncio.all_tasks()`, and one guard, which is, does not end
    before they have. The work has timeouts of its own, so that this ends.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._idle: asyncio.Event | None = None
        self._guard: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> asyncio.Task[T]:
        """Begin `work`. Await the task through `asyncio.shield`.

        Raises:
            SessionClosedError: The session, or the loop, is closing; nothing was begun.
        """
        if self._closed:
            raise SessionClosedError("the session is closing, nothing was sent")
        if self._guard is None or self._guard.done() or self._idle is None or self._idle.is_set():
            # A guard that is about to end, because all work had ended, guards nothing more.
            self._idle = asyncio.Event()
            self._guard = asyncio.create_task(self._keep(self._idle), name="kling-custody")
        task = asyncio.create_task(work(), name=name)
        asyncio._unregister_task(task)  # noqa: SLF001 -- documented for this in "Extending asyncio"
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not self._running and self._idle is not None:
            self._idle.set()

    async def _keep(self, idle: asyncio.Event) -> None:
        while not idle.is_set():
            try:
                await idle.wait()
            except asyncio.CancelledError:
                # Only a closing loop cancels this task.
                self._closed = True

    async def join(self) -> None:
        """Refuse new work, and return when what was begun has ended, however often this is cancelled meanwhile."""
        self._closed = True
        while self._guard is not None and not (self._guard.done() and not self._running):
            await finish(self._guard)


async def finish(task: asyncio.Task[T]) -> T:
    """The result of `task`, waited for however often this is cancelled meanwhile; then the cancellation is raised."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()

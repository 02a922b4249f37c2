"""Tasks that outlive the cancellation of their callers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class CriticalTasks:
    """Tasks that nothing cancels, joined when the session closes.

    Cancelling the caller (`wait_for`, `asyncio.timeout`, `task.cancel()`, a failing sibling, an anyio scope, a closed
    web request) ends the caller's waiting, not the task. A closing loop waits too: `asyncio.run` cancels every task in
    `asyncio.all_tasks()`, these are not among them, and one guard task, which is, ends only after they have. Each task
    has timeouts of its own, so that the waiting ends.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._idle: asyncio.Event | None = None
        self._guard: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> asyncio.Task[T]:
        """Start `work` in a task. Await it through `asyncio.shield`.

        Raises:
            SessionClosedError: The session, or the loop, is closing; nothing was started.
        """
        if self._closed:
            raise SessionClosedError("the session is closing, nothing was sent")
        if self._guard is None or self._guard.done() or self._idle is None or self._idle.is_set():
            # A guard whose tasks have all ended is about to end itself.
            self._idle = asyncio.Event()
            self._guard = asyncio.create_task(self._wait_until_idle(self._idle), name="kling-critical-tasks")
        task = asyncio.create_task(work(), name=name)
        asyncio._unregister_task(task)  # noqa: SLF001 -- documented for this in "Extending asyncio"
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    async def run(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        *,
        name: str,
        ended: Callable[[], None],
        abandoned: Callable[[asyncio.Task[T]], None],
    ) -> T:
        """Return the result of `work`. When the caller is cancelled, the task goes on.

        Args:
            work: The work.
            name: Name of its task.
            ended: Called once when the task has ended, or could not be started.
            abandoned: Called with the ended task when the caller was cancelled before it received the result.

        Raises:
            SessionClosedError: The session, or the loop, is closing; nothing was started.
        """
        try:
            task = self.start(work, name=name)
        except BaseException:
            ended()
            raise
        # A callback, because a task that is cancelled before its first step runs none of its code.
        task.add_done_callback(lambda _: ended())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                abandoned(task)
            else:
                task.add_done_callback(abandoned)
            raise

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not self._running and self._idle is not None:
            self._idle.set()

    async def _wait_until_idle(self, idle: asyncio.Event) -> None:
        while not idle.is_set():
            try:
                await idle.wait()
            except asyncio.CancelledError:
                # Only a closing loop cancels this task.
                self._closed = True

    async def join(self) -> None:
        """Refuse new tasks, and return when the running ones have ended, however often this is cancelled meanwhile."""
        self._closed = True
        while self._guard is not None and not (self._guard.done() and not self._running):
            await finish(self._guard)


async def finish(task: asyncio.Task[T]) -> T:
    """Return the result of `task`, however often this is cancelled meanwhile; then raise the cancellation."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()

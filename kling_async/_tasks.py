"""Tasks that outlive the cancellation of their callers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class CriticalTasks:
    """Tasks that are never cancelled, and joined when the session closes.

    Cancelling the caller (`wait_for`, `asyncio.timeout`, `task.cancel()`, a failing sibling, an anyio scope, a closed
    web request) ends the caller's wait, not the task. The same holds for a closing loop: `asyncio.run` cancels all of
    `asyncio.all_tasks()`, which does not include these tasks but includes one guard task, and that ends only after
    them. Each task has timeouts of its own, so the wait is bounded.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._idle: asyncio.Event | None = None
        self._guard: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> asyncio.Task[T]:
        """Start a task. Await it through `asyncio.shield`.

        Args:
            work: Returns the coroutine to run.
            name: Name of the task.

        Raises:
            SessionClosedError: The session or the loop is closing; nothing was started.
        """
        if self._closed:
            raise SessionClosedError("the session is closing; nothing was sent")
        if self._guard is None or self._guard.done() or self._idle is None or self._idle.is_set():
            # A guard whose tasks have all ended is about to end.
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
        orphaned: Callable[[asyncio.Task[T]], None],
    ) -> T:
        """Run a task and return its result. If the caller is cancelled, the task continues.

        Args:
            work: Returns the coroutine to run.
            name: Name of the task.
            ended: Called once, when the task has ended or could not be started.
            orphaned: Called with the ended task if the caller was cancelled before it received the result.

        Raises:
            SessionClosedError: The session or the loop is closing; nothing was started.
        """
        try:
            task = self.start(work, name=name)
        except BaseException:
            ended()
            raise
        # A callback, because a task that is cancelled before its first step runs no code.
        task.add_done_callback(lambda _: ended())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                orphaned(task)
            else:
                task.add_done_callback(orphaned)
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
        """Refuse new tasks, and wait until the running ones have ended; a cancellation takes effect only then."""
        self._closed = True
        while self._guard is not None and not (self._guard.done() and not self._running):
            await finish(self._guard)


async def finish(task: asyncio.Task[T]) -> T:
    """Wait for a task and return its result; a cancellation meanwhile is raised only when the task has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


def is_cancelled() -> bool:
    """Return whether somebody has cancelled the running task.

    Otherwise a `CancelledError` is a stray one: the code that was awaited raised it, or awaited something cancelled.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

"""An end for what waits for too long: one timer for many, since one for each costs a tenth of a request."""

from __future__ import annotations

import asyncio


class Wait:
    """What a task waits for until a time of the loop.

    Attributes:
        until: The time; it may be moved on.
        over: Whether it was reached and the task cancelled for it.
    """

    __slots__ = ("_cancelling", "over", "task", "until")

    def __init__(self, task: asyncio.Task[object], until: float) -> None:
        self.task = task
        self.until = until
        self.over = False
        self._cancelling = task.cancelling()

    def settle(self) -> bool:
        """Take back what was done to the task; whether it was cancelled, and by nobody else."""
        if not self.over:
            return False
        self.over = False
        return self.task.uncancel() <= self._cancelling


class Overdue:
    """Cancels tasks whose waits are over."""

    def __init__(self) -> None:
        self._waits: dict[Wait, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> Wait:
        """The running task waits, for so many seconds at most."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 -- a coroutine asks
        wait = Wait(task, loop.time() + seconds)
        self._waits[wait] = None
        if self._timer is None or wait.until < self._timer.when():
            self._look_at(wait.until, loop)
        return wait

    def end(self, wait: Wait) -> None:
        """It waits no longer."""
        del self._waits[wait]
        if wait.over:
            wait.settle()

    def close(self) -> None:
        """Leave no timer behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        self._timer = loop.call_at(when, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        left = []
        for wait in self._waits:
            if wait.over:
                continue
            if wait.until <= now:
                wait.over = True
                wait.task.cancel()
            else:
                left.append(wait.until)
        if left:
            self._look_at(min(left), loop)

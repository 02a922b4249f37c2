"""Timeouts for many tasks on one timer. A timer per request would take a tenth of the CPU time of a request."""

from __future__ import annotations

import asyncio

TURNS_BEFORE_TIMEOUT = 8
"""Turns of the event loop between a deadline and the cancellation of its task.

If the loop was held up until after the deadline, the reply may wait in the socket. Each turn reads up to 256 KiB of it.
"""


class Deadline:
    """The deadline of one task.

    Attributes:
        task: The task.
        when: Time of the event loop, in seconds. May be set to a later time.
        passed: True once it has passed and the task was cancelled.
    """

    __slots__ = ("_cancelling", "passed", "task", "when")

    def __init__(self, task: asyncio.Task[object], when: float) -> None:
        self.task = task
        self.when = when
        self.passed = False
        self._cancelling = task.cancelling()

    def uncancel(self) -> bool:
        """Undo the cancellation of the task, and return whether only the deadline had cancelled it."""
        if not self.passed:
            return False
        self.passed = False
        return self.task.uncancel() <= self._cancelling


class TaskTimeouts:
    """Cancels tasks at their deadlines, after what has arrived by then was delivered."""

    def __init__(self) -> None:
        self._deadlines: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None

    def start(self, seconds: float) -> Deadline:
        """Return a deadline for the running task, in `seconds` from now. End it with `stop`."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 -- called by coroutines only
        deadline = Deadline(task, loop.time() + seconds)
        self._deadlines[deadline] = None
        if self._turn is None and (self._timer is None or deadline.when < self._timer.when()):
            self._schedule(deadline.when, loop)
        return deadline

    def stop(self, deadline: Deadline) -> None:
        """Remove a deadline, and undo its cancellation if it has just passed."""
        del self._deadlines[deadline]
        if deadline.passed:
            deadline.uncancel()

    def close(self) -> None:
        """Cancel the timer."""
        for handle in (self._timer, self._turn):
            if handle is not None:
                handle.cancel()
        self._timer = self._turn = None

    def _schedule(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        self._timer = loop.call_at(when, self._take_turns, loop, TURNS_BEFORE_TIMEOUT)

    def _take_turns(self, loop: asyncio.AbstractEventLoop, remaining: int) -> None:
        """Let the loop deliver what has arrived, then cancel the tasks whose deadlines have passed."""
        self._timer = None
        if remaining:
            self._turn = loop.call_soon(self._take_turns, loop, remaining - 1)
        else:
            self._turn = None
            self._cancel_passed(loop)

    def _cancel_passed(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        later = []
        for deadline in self._deadlines:
            if deadline.passed:
                continue
            if deadline.when <= now:
                deadline.passed = True
                deadline.task.cancel()
            else:
                later.append(deadline.when)
        if later:
            self._schedule(min(later), loop)

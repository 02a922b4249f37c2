"""Drain a batch: stop its jobs before they are sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from kling_async.errors import BudgetExceededError, SkippedError

if TYPE_CHECKING:
    from types import TracebackType

    from kling_async.errors import KlingError


class Drain:
    """Stops the jobs of a batch that were not sent yet.

    A job waits for its paid request within `with drain:`. Draining cancels tasks inside such a block and nowhere else;
    the block then raises `SkippedError`.

    Attributes:
        stopped: The account-wide error that stopped the batch; None while there is none.
        drained: True after `drain` was called.
    """

    __slots__ = ("_cancelled", "_entered", "drained", "stopped")

    def __init__(self) -> None:
        self.stopped: KlingError | None = None
        self.drained = False
        self._entered: set[asyncio.Task[Any] | None] = set()
        self._cancelled: set[asyncio.Task[Any] | None] = set()

    def drain(self) -> None:
        """Cancel jobs that wait for their paid request, and refuse later ones."""
        if self.drained:
            return
        self.drained = True
        # The caller's own task is not cancelled: its next check raises.
        self._cancelled = self._entered - {asyncio.current_task()} if self._entered else set()
        for task in self._cancelled:
            if task is not None:
                task.cancel()

    def check(self, *, covered: bool) -> None:
        """Raise unless a job may still be sent.

        Args:
            covered: Whether its price is reserved already: it is sent also when the budget is used up.

        Raises:
            SkippedError: The batch was drained or has stopped.
        """
        if self.drained:
            raise _drained()
        if self.stopped is not None and not (covered and isinstance(self.stopped, BudgetExceededError)):
            raise SkippedError(f"never submitted: the batch had stopped: {self.stopped.message}") from self.stopped

    def __enter__(self) -> None:
        if self.drained:
            raise _drained()
        self._entered.add(asyncio.current_task())

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        self._entered.discard(task)
        if task is None or task not in self._cancelled:
            return
        self._cancelled.discard(task)
        # A task that was cancelled by others too stays cancelled.
        if not task.uncancel() and isinstance(exc, asyncio.CancelledError):
            # The traceback's frames hold images, and an outcome may be kept for long.
            exc.__traceback__ = None
            raise _drained() from None


def _drained() -> SkippedError:
    return SkippedError("never submitted: the batch was drained", advice="run the batch again, or resume it")

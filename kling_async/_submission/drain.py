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

    def check(self) -> None:
        """Raise unless a job may still be sent.

        Raises:
            SkippedError: The batch was drained or has stopped.
        """
        if self.drained:
            raise _drained()
        if self.stopped is not None:
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


class CoveredDrain(Drain):
    """The drain of a batch for jobs whose price is reserved: they are sent also when its budget is used up.

    Args:
        batch: The drain of the batch, which has all of the state.
    """

    __slots__ = ("_batch",)

    def __init__(self, batch: Drain) -> None:
        self._batch = batch

    @property
    def stopped(self) -> KlingError | None:
        """The account-wide error that stopped the batch; None while there is none."""
        return self._batch.stopped

    @stopped.setter
    def stopped(self, error: KlingError | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]  # of the batch
        self._batch.stopped = error

    @property
    def drained(self) -> bool:  # type: ignore[override]  # as above
        """True after the batch was drained."""
        return self._batch.drained

    def drain(self) -> None:
        """Drain the batch."""
        self._batch.drain()

    def check(self) -> None:
        """Raise unless a job whose price is reserved may still be sent.

        Raises:
            SkippedError: The batch was drained, or has stopped for another reason than its budget.
        """
        if self.drained or not isinstance(self.stopped, BudgetExceededError):
            self._batch.check()

    def __enter__(self) -> None:
        self._batch.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._batch.__exit__(exc_type, exc, traceback)


def _drained() -> SkippedError:
    return SkippedError("never submitted: the batch was drained", advice="run the batch again, or resume it")

"""Whether the jobs of a batch are still sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ._core.errors import SkippedError

if TYPE_CHECKING:
    from types import TracebackType

    from ._core.errors import KlingError


class Admission:
    """Whether the jobs of a batch are still sent.

    `with admission:` is around what stands before a paid request. Draining ends the waiting there, and nowhere else: it
    is cancelled where it stands, and a `SkippedError` comes of that.

    Attributes:
        stopped: What concerns the whole account, and ended it; None as long as nothing does.
        drained: Whether it was ended by hand.
    """

    __slots__ = ("_let_go", "_standing", "drained", "stopped")

    def __init__(self) -> None:
        self.stopped: KlingError | None = None
        self.drained = False
        self._standing: set[asyncio.Task[Any] | None] = set()
        self._let_go: set[asyncio.Task[Any] | None] = set()

    def drain(self) -> None:
        """Let go of whatever stands before its paid request, and let nobody come there any more."""
        if self.drained:
            return
        self.drained = True
        # Who drains does not cancel itself: it comes to the next check.
        self._let_go = self._standing - {asyncio.current_task()} if self._standing else set()
        for task in self._let_go:
            if task is not None:
                task.cancel()

    def check(self) -> None:
        """Raise unless a job may still be sent.

        Raises:
            SkippedError: It may not.
        """
        if self.drained:
            raise _drained()
        if self.stopped is not None:
            raise SkippedError(f"never submitted, the batch had stopped: {self.stopped.message}") from self.stopped

    def __enter__(self) -> None:
        if self.drained:
            raise _drained()
        self._standing.add(asyncio.current_task())

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        self._standing.discard(task)
        if task is None or task not in self._let_go:
            return
        self._let_go.discard(task)
        # Where others have cancelled it too, it stays cancelled.
        if not task.uncancel() and isinstance(exc, asyncio.CancelledError):
            # The frames hold images; an outcome may be kept for long.
            exc.__traceback__ = None
            raise _drained() from None


def _drained() -> SkippedError:
    return SkippedError("never submitted, the batch was drained", advice="run the batch again, or resume it")

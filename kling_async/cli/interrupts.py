"""Ctrl-C, SIGTERM, a closed terminal: work drains or is cancelled; it closes in order and says what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from contextvars import ContextVar
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["Exit", "drains", "interruptible", "took_interrupt"]

_SAME_PRESS_SECONDS: Final = 0.3
"""`timeout` and some terminals send one signal twice."""
_GIVES_UP: Final = 3
_INTERRUPTS: ContextVar[_Interrupts | None] = ContextVar("interrupts", default=None)


class Exit(IntEnum):
    """What the exit status of a command means."""

    WELL = 0
    SOME_FAILED = 1
    BAD_INPUT = 2
    NOTHING_DONE = 3
    INTERRUPTED = 130


def interruptible(work: Callable[[], Coroutine[object, object, Exit]]) -> Exit:
    """Run `work`; Ctrl-C, SIGTERM and the end of the terminal cancel it.

    Where it can drain (see `drains`), the first Ctrl-C or SIGTERM drains it, and what is said here of presses is about
    the later ones. It is cancelled once, whatever comes after, so that closing is not cut short; who presses Ctrl-C for
    the third time wants out at once.
    """

    async def main() -> Exit:
        # What is there now stays: the collector need not look at it again and again. A program may, a library may not.
        gc.freeze()
        task = asyncio.current_task()
        if task is not None:
            interrupts = _Interrupts(task)
            _INTERRUPTS.set(interrupts)
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # What is ignored (nohup) stays ignored. Windows has no such handlers; asyncio's own does there.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    with contextlib.suppress(NotImplementedError):  # what Windows raises
                        asyncio.get_running_loop().add_signal_handler(number, interrupts.take, number)
        return await work()

    status = asyncio.run(main())
    if status is Exit.INTERRUPTED:
        # All is said and done: one more press must not change how it ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


@contextlib.contextmanager
def drains(drain: Callable[[], None]) -> Iterator[None]:
    """While the block runs, the first Ctrl-C or SIGTERM calls `drain` instead of cancelling the work.

    Args:
        drain: Makes the block end by itself, soon.
    """
    interrupts = _INTERRUPTS.get()
    if interrupts is None:
        yield
        return
    interrupts.drain = drain
    try:
        yield
    finally:
        interrupts.drain = None


def took_interrupt() -> None:
    """Say that a cancellation was dealt with, so that what is awaited from now on is not taken for cancelled."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class _Interrupts:
    """What signals do to a task.

    Attributes:
        drain: What the next one does instead, unless the terminal has gone; None when nothing can be drained.
    """

    def __init__(self, task: asyncio.Task[Exit]) -> None:
        self.drain: Callable[[], None] | None = None
        self._task = task
        self._presses = 0
        self._last = 0.0
        self._drained = 0.0
        self._cancelled = False

    def take(self, number: int) -> None:
        """A signal came."""
        now = time.monotonic()
        if number in {signal.SIGINT, signal.SIGTERM} and not self._cancelled:
            if self.drain is not None:
                drain, self.drain, self._drained = self.drain, None, now
                drain()
                return
            if now - self._drained < _SAME_PRESS_SECONDS:
                return
        if not self._cancelled:
            self._cancelled = True
            self._task.cancel()
        if number != signal.SIGINT or now - self._last < _SAME_PRESS_SECONDS:
            return
        self._last = now
        self._presses += 1
        if self._presses == _GIVES_UP:
            # With a visible cursor, for the display cannot end any more.
            sys.stderr.write("\x1b[?25h\nGiven up.\n" if sys.stderr.isatty() else "Given up.\n")
            sys.stderr.flush()
            os._exit(Exit.INTERRUPTED)
        if self._presses > 1:
            sys.stderr.write("\nClosing: what was sent is being recorded. Once more gives that up.\n")
            sys.stderr.flush()

"""Signals of a running command: drain, cancel, give up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from .exits import Exit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import IO

_DUPLICATE_SIGNAL_WINDOW_S: Final = 0.3
"""`timeout` and some terminals send one signal twice."""
_PRESSES_TO_GIVE_UP: Final = 3
_INTERRUPTS: ContextVar[_Interrupts | None] = ContextVar("interrupts", default=None)


def interruptible(work: Callable[[], Coroutine[object, object, Exit]]) -> Exit:
    """Run `work` in an event loop; SIGINT, SIGTERM and SIGHUP cancel it once.

    Inside `drains` the first SIGINT or SIGTERM drains instead. Later signals do not cancel again, so that closing is
    not cut short; the third Ctrl-C after the drain ends the process at once.
    """

    async def main() -> Exit:
        # Objects alive now stay alive, so the collector need not scan them. A library must not do this to its host.
        gc.freeze()
        task = asyncio.current_task()
        if task is not None:
            interrupts = _Interrupts(task)
            _INTERRUPTS.set(interrupts)
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # An ignored signal (nohup) stays ignored. On Windows asyncio.run handles Ctrl-C alone.
                if number is not None and sys.platform != "win32" and signal.getsignal(number) is not signal.SIG_IGN:
                    asyncio.get_running_loop().add_signal_handler(number, interrupts.handle, number)
        return await work()

    status = asyncio.run(main())
    if status is Exit.INTERRUPTED:
        # The summary is printed: another press must not change the exit status.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


@contextlib.contextmanager
def drains(drain: Callable[[], None]) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM during the block call `drain` instead of cancelling.

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


def close_output(stream: IO[str]) -> bool:
    """Interrupt the command: nobody reads its output any more, as in `run --json | head`. Nothing more is written.

    Jobs that were sent are recorded, as after a closed terminal.

    Args:
        stream: The stream whose reader is gone.

    Returns:
        False if no command runs that can be interrupted.
    """
    interrupts = _INTERRUPTS.get()
    if interrupts is None:
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    interrupts.cancel()
    return True


def took_interrupt() -> None:
    """Mark the cancellation of the current task as handled, so that later awaits are not treated as cancelled."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class _Interrupts:
    """Signal handling of one task.

    Attributes:
        drain: Called by the next SIGINT or SIGTERM instead of cancelling; None if nothing can be drained.
    """

    def __init__(self, task: asyncio.Task[Exit]) -> None:
        self.drain: Callable[[], None] | None = None
        self._task = task
        self._presses = 0
        self._pressed_at = 0.0
        self._drained_at = 0.0
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel the task, once."""
        if not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def handle(self, number: int) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if number in {signal.SIGINT, signal.SIGTERM} and not self._cancelled:
            if self.drain is not None:
                drain, self.drain, self._drained_at = self.drain, None, now
                drain()
                return
            if now - self._drained_at < _DUPLICATE_SIGNAL_WINDOW_S:
                return
        self.cancel()
        if number != signal.SIGINT or now - self._pressed_at < _DUPLICATE_SIGNAL_WINDOW_S:
            return
        self._pressed_at = now
        self._presses += 1
        if self._presses == _PRESSES_TO_GIVE_UP:
            # Show the cursor again: the display has no chance to do it.
            sys.stderr.write("\x1b[?25h\nGiven up.\n" if sys.stderr.isatty() else "Given up.\n")
            sys.stderr.flush()
            os._exit(Exit.INTERRUPTED)
        if self._presses > 1:
            sys.stderr.write("\nClosing: sent jobs are being recorded. Ctrl-C again gives that up.\n")
            sys.stderr.flush()

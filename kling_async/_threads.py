"""Short work in worker threads: pieces that wait for a thread are done in one go.

Handing a piece to a thread and back costs the event loop more than a digest of 100 kB costs the thread, and many
threads that work for a millisecond each contend with the loop for the interpreter lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio.to_thread
from anyio.lowlevel import RunVar

from kling_async._clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

GO_S = 0.005
"""Seconds after which a thread returns what it has done."""
SLOW_S = 0.01
"""Seconds after which what waits behind threads that have not returned is given another one."""
MAX_THREADS = 16
"""Threads that work at once at most: what is held up by a slow disk is done side by side."""


class _Piece(Generic[T]):
    """A piece of work.

    Attributes:
        work: The work.
        turn: Ends when the piece is done, or its caller was given a thread for it.
        result: What it returned; None before.
        error: What it raised; None if it raised nothing.
        done: Whether it was done.
    """

    __slots__ = ("done", "error", "result", "turn", "work")

    def __init__(self, work: Callable[[], T], turn: asyncio.Future[None]) -> None:
        self.work = work
        self.turn = turn
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False

    def do(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 -- raised in the caller
            self.error = error
        self.done = True


class _ShortWork:
    """The pieces of work of one event loop, and how many of their callers have a thread."""

    def __init__(self) -> None:
        self._waiting: deque[_Piece[Any]] = deque()
        self._threads = 0
        self._latest = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        piece = _Piece(work, loop.create_future())
        if not self._threads:
            self._threads += 1
            await self._use_thread(piece)
        else:
            self._waiting.append(piece)
            if self._timer is None:
                self._timer = loop.call_later(SLOW_S, self._look, loop)
            try:
                await piece.turn
            except BaseException:
                self._leave(piece)
                raise
            if not piece.done:
                await self._use_thread(piece)
        error, piece.error = piece.error, None
        if error is not None:
            try:
                raise error
            finally:
                # The traceback's frames, of which `do` has the piece, would hold it, and it the traceback.
                del error
        return piece.result  # type: ignore[return-value]  # it was done

    async def _use_thread(self, first: _Piece[T]) -> None:
        """Do a piece in a thread that its caller has taken, and what waits behind it, and give the thread back."""
        done: list[_Piece[Any]] = []
        self._latest = SystemClock.monotonic()
        try:
            await anyio.to_thread.run_sync(self._work, first, done)
        finally:
            self._threads -= 1
            for piece in done:
                if not piece.turn.done():
                    piece.turn.set_result(None)
            self._give()

    def _work(self, first: _Piece[T], done: list[_Piece[Any]]) -> None:
        """Do pieces until none waits, or the time is over. Called in a thread."""
        until = SystemClock.monotonic() + GO_S
        first.do()
        while SystemClock.monotonic() < until:
            try:
                piece = self._waiting.popleft()
            except IndexError:
                break
            piece.do()
            done.append(piece)

    def _give(self) -> None:
        """Give a thread to the first caller whose piece waits."""
        while self._waiting and self._threads < MAX_THREADS:
            piece = self._waiting.popleft()
            if not piece.turn.done():
                piece.turn.set_result(None)
                self._threads += 1
                return

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give one more thread if the others are held up, such as by a slow disk."""
        self._timer = None
        if self._waiting:
            if SystemClock.monotonic() - self._latest > SLOW_S:
                self._latest = SystemClock.monotonic()
                self._give()
            self._timer = loop.call_later(SLOW_S, self._look, loop)

    def _leave(self, piece: _Piece[T]) -> None:
        """Forget a piece whose caller was cancelled while it waited."""
        if piece.turn.cancelled():
            # A thread may be at it; nobody waits for it.
            return
        if not piece.done:
            # It was given a thread.
            self._threads -= 1
            self._give()


_short_work: RunVar[_ShortWork] = RunVar("kling_async short work")


async def run_short(work: Callable[[], T]) -> T:
    """Do work of about a millisecond in a worker thread, and return its result.

    If the caller is cancelled, the work may be done nevertheless: it has to be a read.

    Args:
        work: The work.

    Raises:
        BaseException: What it raises.
    """
    try:
        short = _short_work.get()
    except LookupError:
        short = _ShortWork()
        _short_work.set(short)
    return await short.run(work)

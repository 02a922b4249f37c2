"""Turns: a semaphore whose size is found by trying."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Self

from kling_async._core.adaptive import AdaptiveLimit
from kling_async._core.statistics import Concurrency
from kling_async._files import max_open_files
from kling_async.errors import RateLimitedError, ServerError, TransportError

if TYPE_CHECKING:
    from types import TracebackType

    from kling_async._core.clock import Clock

INITIAL_TRANSFERS = 16
"""Uploads, and downloads, that may be under way at once at first."""
INITIAL_UPLOAD_BYTES = 24 * 1024 * 1024
"""Bytes of small files that may be under way at once at first: a line of 2 MB/s has sent them after 13 s."""
MAX_INITIAL_UPLOADS = 256
"""Greatest number of small files that may be under way at once at first."""
MAX_UPLOADS = 1024
"""Uploads that may be under way at once at most, if the user sets no other number."""
MAX_DOWNLOADS = 256
"""Downloads that may be under way at once at most, if the user sets no other number."""
SHARE_OF_FILES = 3
"""All uploads together have at most one in this many of the files that the process may open, and all downloads too."""


def upload_turns(most: int | None, clock: Clock) -> Turns:
    """Return the turns of uploads.

    Args:
        most: Ceiling that the user has set; None for as many as the process may have, up to `MAX_UPLOADS`.
        clock: Clock of their durations.
    """
    ceiling = most or max(INITIAL_TRANSFERS, min(MAX_UPLOADS, max_open_files() // SHARE_OF_FILES))
    return Turns(AdaptiveLimit(INITIAL_TRANSFERS, ceiling), clock)


def download_turns(most: int | None, clock: Clock) -> Turns:
    """Return the turns of downloads, each of which has a connection and a file.

    Args:
        most: Ceiling that the user has set; None for as many as the process may have, up to `MAX_DOWNLOADS`.
        clock: Clock of their durations.
    """
    ceiling = most or max(INITIAL_TRANSFERS, min(MAX_DOWNLOADS, max_open_files() // SHARE_OF_FILES // 2))
    return Turns(AdaptiveLimit(INITIAL_TRANSFERS, ceiling), clock)


def shows_crowding(error: Exception) -> bool:
    """Return whether a request failed as requests do that are too many at once."""
    return isinstance(error, RateLimitedError | ServerError | TransportError)


class Turns:
    """Limits how many requests of one kind are under way at once, first come, first served.

    ```python
    async with turns.take() as turn:
        turn.size += len(await receive())
    ```

    Args:
        limit: The limit, which learns what each turn brought.
        clock: Clock of their durations.

    Attributes:
        limit: The argument `limit`.
        taken: Number of turns under way.
        clock: The argument `clock`.
    """

    def __init__(self, limit: AdaptiveLimit, clock: Clock) -> None:
        self.limit = limit
        self.taken = 0
        self.clock = clock
        self._waiting: OrderedDict[asyncio.Future[int], None] = OrderedDict()
        self._expected_sizes: list[int] = []

    def take(self) -> Turn:
        """Return a turn to enter with `async with`, which waits for it."""
        return Turn(self, self.clock)

    def statistics(self) -> Concurrency:
        """Return where the limit stands."""
        return Concurrency(
            limit=self.limit.total, taken=self.taken, waiting=len(self._waiting), seconds=self.limit.seconds
        )

    @property
    def full(self) -> bool:
        """True while others wait for a turn."""
        return bool(self._waiting)

    def try_acquire(self, *, over_limit: bool = False) -> int | None:
        """Take a turn without waiting, and return the epoch in which it was given; None if it has to be waited for.

        Args:
            over_limit: Take it in any case.
        """
        if over_limit or (not self._waiting and self.taken < self.limit.total):
            self.taken += 1
            return self.limit.epoch
        return None

    async def acquire(self) -> int:
        """Wait for a turn, and return the epoch in which it was given."""
        epoch = self.try_acquire()
        if epoch is not None:
            return epoch
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            return await turn
        except BaseException:
            if turn in self._waiting:
                del self._waiting[turn]
            elif not turn.cancelled():
                # It had been given.
                self.release()
            raise

    def expect(self, size: int) -> None:
        """Record the bytes of a file that is about to be sent: more of them may be the first ones if they are small."""
        if self.limit.untried:
            self._expected_sizes.append(size)
            fit = INITIAL_UPLOAD_BYTES * len(self._expected_sizes) // sum(self._expected_sizes)
            self.limit.begin_with(min(fit, MAX_INITIAL_UPLOADS))
            self._give()

    def release(self) -> None:
        """Give a turn back."""
        self.taken -= 1
        self._give()

    def _give(self) -> None:
        """Give the turns that are free to those who wait."""
        while self._waiting and self.taken < self.limit.total:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                self.taken += 1
                turn.set_result(self.limit.epoch)


class Turn:
    """One request, or several that belong together.

    Attributes:
        size: What it has brought so far; a turn that brought nothing teaches nothing.
    """

    def __init__(self, turns: Turns, clock: Clock) -> None:
        self.size = 0.0
        self._turns = turns
        self._clock = clock

    def expect(self, size: int) -> None:
        """Record the bytes that are about to be sent."""
        self._turns.expect(size)

    def record_refused(self) -> None:
        """Record a request that was refused, or failed as requests do that are too many."""
        self._turns.limit.record_refused(self._epoch)

    async def __aenter__(self) -> Self:
        self._epoch = await self._turns.acquire()
        self._began_at = self._clock.monotonic()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.size:
            seconds = self._clock.monotonic() - self._began_at
            self._turns.limit.record_done(self.size, seconds, full=self._turns.full)
        self._turns.release()

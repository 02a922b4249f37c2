"""A ledger and a rate limiter that take `STEP` seconds, so that there are awaits around each paid request."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from kling_async.ledger import Entry, MemoryLedger, Row, State

STEP = 0.5
"""Seconds."""


class SlowLedger(MemoryLedger):
    """A ledger whose writes, and whose closing, take `STEP` seconds.

    Attributes:
        entries: entries that the ledger has.
        closed: True after `aclose` has run to its end.
        on_record: called when the write of a paid id begins.
        on_close: called when closing begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.closed = False
        self.on_record: Callable[[], None] = lambda: None
        self.on_close: Callable[[], None] = lambda: None

    @property
    def recorded(self) -> list[str | None]:
        """Paid ids that the ledger has."""
        return [entry.prediction_id for entry in self.entries if entry.state is State.SUBMITTED]

    async def record(self, entry: Entry) -> Row:
        if entry.state is State.SUBMITTED:
            self.on_record()
        await anyio.sleep(STEP)
        row = await super().record(entry)
        self.entries.append(entry)
        return row

    def note(self, entry: Entry) -> None:
        self.entries.append(entry)
        super().note(entry)

    async def aclose(self) -> None:
        self.on_close()
        await anyio.sleep(STEP)
        await super().aclose()
        self.closed = True


class SlowLimiter:
    """A rate limiter under which each start waits `STEP` seconds."""

    async def acquire(self) -> None:
        await anyio.sleep(STEP)

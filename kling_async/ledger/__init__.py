"""One row per job: what was intended, what came of it, what it cost; on disk before the next step.

`State` and `MOVES` are shared by every ledger. A ledger of your own is a class with the methods of `Ledger`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from kling_async._core.states import MOVES, OPEN, Entry, Row, State
from kling_async.ledger.memory import MemoryLedger
from kling_async.ledger.sqlite import SQLiteLedger, Step, read_ledger, read_steps

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MOVES",
    "OPEN",
    "Entry",
    "Ledger",
    "MemoryLedger",
    "Row",
    "SQLiteLedger",
    "State",
    "Step",
    "open_ledger",
    "read_ledger",
    "read_steps",
]


class Ledger(Protocol):
    """Where a session writes down what it does."""

    @property
    def durable(self) -> bool:
        """Whether it survives the process: only then can a batch be resumed."""
        ...

    async def open(self) -> None:
        """Make it ready.

        Raises:
            LedgerError: It cannot be used; says what to do.
        """
        ...

    async def claim(self, batch: str, key: str, *, digest: str, model: str, at: float) -> Row:
        """The row of a job, made when it is new.

        Raises:
            LedgerError: It cannot be written.
            KeyReusedError: The key names a job with other content.
        """
        ...

    async def owner(self, prediction_id: str) -> Row | None:
        """The row of the job that the prediction is of, or None."""
        ...

    def unclaim(self, batch: str, key: str) -> None:
        """The job is not going to be submitted now; a pending row may be forgotten."""
        ...

    async def record(self, entry: Entry) -> Row:
        """Write one step down; return when it would survive a crash, with the row that it left.

        Raises:
            LedgerError: It cannot be written, or the move is not legal.
        """
        ...

    def note(self, entry: Entry) -> None:
        """Write one step down soon: it could be learned from the service again."""
        ...

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """All rows in these states, of every batch."""
        ...

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Those of the ids that a row has, each with the fingerprint of what was sent and the model's id."""
        ...

    async def aclose(self) -> None:
        """Write what is left and let go of the file."""
        ...


def open_ledger(ledger: Ledger | str | os.PathLike[str] | None) -> Ledger:
    """The ledger that a session was given: one as it is, a path as SQLite, None as memory."""
    if ledger is None:
        return MemoryLedger()
    if isinstance(ledger, (str, os.PathLike)):
        return SQLiteLedger(ledger)
    return ledger

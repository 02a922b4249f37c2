"""One row per job: what was intended, what came of it, what it cost; on disk before the next step.

`State` and `MOVES` are shared by every ledger. A ledger of your own is a class with the methods of `Ledger`.
"""

from __future__ import annotations

import os
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOVES", "Entry", "FileLedger", "Ledger", "MemoryLedger", "State", "open_ledger", "read_paid_ids"]


class State(Enum):
    """Where a job stands."""

    PENDING = "pending"
    """Known, not sent; or shown to be unaccepted, and free to be sent again."""
    CLAIMED = "claimed"
    """Taken by a worker, not sent."""
    INTENT = "intent"
    """The paid request may have been sent. After a crash nobody knows."""
    SUBMITTED = "submitted"
    """Accepted and paid: there is an id."""
    COMPLETED = "completed"
    FAILED = "failed"
    """The service ended the prediction without a video."""
    REJECTED = "rejected"
    """Certainly not accepted, and not to be sent again as it is."""
    UNCERTAIN = "uncertain"
    """Sent, and whether it was accepted is not known."""
    SKIPPED = "skipped"
    """Not sent, because admission had stopped."""
    EXPIRED = "expired"
    """The prediction or its output was gone before it was fetched."""
    DOWNLOADED = "downloaded"


MOVES: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.CLAIMED, State.INTENT, State.REJECTED, State.SKIPPED}),
    State.CLAIMED: frozenset({State.PENDING, State.INTENT, State.REJECTED, State.SKIPPED}),
    State.INTENT: frozenset({State.PENDING, State.SUBMITTED, State.REJECTED, State.UNCERTAIN}),
    State.SUBMITTED: frozenset({State.COMPLETED, State.FAILED, State.EXPIRED}),
    State.COMPLETED: frozenset({State.DOWNLOADED, State.EXPIRED}),
    State.UNCERTAIN: frozenset({State.PENDING, State.SUBMITTED, State.REJECTED}),
    State.SKIPPED: frozenset({State.PENDING}),
    State.FAILED: frozenset({State.PENDING}),
    State.REJECTED: frozenset({State.PENDING}),
    State.EXPIRED: frozenset(),
    State.DOWNLOADED: frozenset(),
}
"""The legal moves. A failed, rejected or skipped job goes back to pending only when it is asked for anew."""


@attrs.frozen(kw_only=True)
class Entry:
    """One step of one job.

    Attributes:
        batch: The batch's name; empty outside a batch.
        key: The job's name.
        state: Where it now stands.
        at: Seconds since the epoch.
        model: The model's id.
        prediction_id: The paid id, once there is one.
        cost: USD by the price list, or None.
        error: Why, for the states that have a why.
    """

    batch: str
    key: str
    state: State
    at: float
    model: str
    prediction_id: str | None = None
    cost: Decimal | None = None
    error: str | None = None


class Ledger(Protocol):
    """Where a session writes down what it does."""

    async def record(self, entry: Entry) -> None:
        """Write one step down; return when it would survive a crash."""
        ...

    def note(self, entry: Entry) -> None:
        """Write one step down soon: it could be learned from the service again."""
        ...

    async def aclose(self) -> None:
        """Write what is left and let go of the file."""
        ...


from .file import FileLedger, read_paid_ids  # noqa: E402 -- they need the values above
from .memory import MemoryLedger  # noqa: E402 -- the same


def open_ledger(ledger: Ledger | str | os.PathLike[str] | None) -> Ledger:
    """The ledger that a session was given: one as it is, a path as a file of paid ids, None as memory alone."""
    if ledger is None:
        return MemoryLedger()
    if isinstance(ledger, (str, os.PathLike)):
        return FileLedger(ledger)
    return ledger

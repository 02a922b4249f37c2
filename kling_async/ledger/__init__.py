"""One row per job: the request, its result and its cost; on disk before the next step.

`State` and `MOVES` are shared by every ledger. A ledger of your own is a class with the methods of `Ledger`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

from kling_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from decimal import Decimal

    from kling_async._core.budget import Cap
    from kling_async._core.catalogue import Level
    from kling_async._core.content import Content
    from kling_async._core.prediction import Prediction
    from kling_async._core.reconciliation import Doubt
    from kling_async._core.states import MOVES, OPEN, Entry, Row, State, Step

    from .memory import MemoryLedger
    from .sqlite import SQLiteLedger

__all__ = [
    "MOVES",
    "OPEN",
    "Content",
    "Doubt",
    "Entry",
    "Ledger",
    "MemoryLedger",
    "Row",
    "SQLiteLedger",
    "SharedLedger",
    "State",
    "Step",
    "is_url",
    "open_ledger",
    "read_ledger",
    "read_steps",
]

_MODULES = {
    name: module
    for module, names in {
        "kling_async._core.content": "Content",
        "kling_async._core.reconciliation": "Doubt",
        "kling_async._core.states": "MOVES OPEN Entry Row State Step",
        "kling_async.ledger.memory": "MemoryLedger",
        "kling_async.ledger.sqlite": "SQLiteLedger",
    }.items()
    for name in names.split()
}
"""Modules of the names that are loaded when they are first used."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


class Ledger(Protocol):
    """Record of a session's jobs."""

    @property
    def durable(self) -> bool:
        """True when it outlives the process: only then can a batch be resumed."""
        ...

    async def open(self) -> None:
        """Open it for one session.

        Raises:
            LedgerError: It cannot be used; the advice says what to do.
        """
        ...

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """Return the row of a job, inserted when it is new.

        Raises:
            LedgerError: It cannot be written.
            KeyReusedError: The key names a job with other content.
        """
        ...

    async def identity(self, batch: str) -> int:
        """Return the version of the rule that a batch's digests and derived keys are made by.

        A new batch gets the newest rule, recorded before this returns, and keeps it; contents for `claim` are made by
        the rule of their batch.

        Raises:
            LedgerError: It cannot be recorded, or a later version of the package began the batch.
        """
        ...

    async def owner(self, prediction_id: str) -> Row | None:
        """Return the row of the job that the prediction is of, or None."""
        ...

    def unclaim(self, batch: str, key: str) -> None:
        """Release a job that is not going to be submitted now; a pending row may be removed."""
        ...

    async def record(self, entry: Entry) -> Row:
        """Record one step; return the row that it left, when it would survive a crash.

        Raises:
            LedgerError: It cannot be written, the move is not legal, or the row has another version (`Row.version`)
                than the step follows from (`Entry.expected_version`).
        """
        ...

    def note(self, entry: Entry) -> None:
        """Record one step best-effort; the service can supply it again."""
        ...

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """Return the row of a job with its content, or None."""
        ...

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """Return all rows in these states, of every batch."""
        ...

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """Return the keys of a batch's jobs in these states, by the time of submission: the first expire first."""
        ...

    async def spent(self, batch: str | None) -> Decimal:
        """Return the USD that a batch, or everything, has cost so far by the price list, less what was given back."""
        ...

    async def uploaded(self, digest: str, now: float) -> str | None:
        """Return the URL of an image that was uploaded and is available at that time, or None.

        Args:
            digest: Digest of the image.
            now: Time in seconds since the epoch.
        """
        ...

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """Record the URL of an uploaded image best-effort.

        Args:
            digest: Digest of the image.
            url: The URL.
            expires_at: Time at which it is deleted, in seconds since the epoch.
        """
        ...

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Return those of the ids that a row has, each with the fingerprint of what was sent and the model's id."""
        ...

    async def aclose(self) -> None:
        """Write what is left and release the file or connection."""
        ...


@runtime_checkable
class SharedLedger(Ledger, Protocol):
    """A ledger that several processes write: each job is claimed by one, and the account's slots are counted in it."""

    async def claim_unowned(self, states: Iterable[State], batch: str | None) -> list[Row]:
        """Claim the unowned jobs in these states, of a batch or of all, and return their rows."""
        ...

    async def admit(
        self, batch: str, key: str, level: Level, price: Decimal | None = None, caps: Sequence[Cap] = ()
    ) -> None:
        """Return when a claimed job may start: all sessions of the account together have a slot and the money for it.

        Args:
            batch: Name of the batch.
            key: Name of the job.
            level: Limits of the account.
            price: Price of the job in USD.
            caps: Budgets that it counts in.

        Raises:
            LedgerError: The job is not claimed by this process any more.
            BudgetExceededError: A budget has not enough money for it.
        """
        ...

    def fence(self, batch: str, key: str) -> None:
        """Check, right before a paid request, that this process owns the job.

        Raises:
            LedgerError: It may not.
        """
        ...

    def publish(self, prediction: Prediction, token_hash: str | None) -> None:
        """Publish what a webhook has reported to the account's other sessions.

        Args:
            prediction: The prediction as reported.
            token_hash: Digest of the token in the webhook's URL; None without a token.
        """
        ...

    async def published(self) -> list[tuple[Prediction, str | None]]:
        """Return what webhooks have reported to other sessions since the last call; waits a few seconds for some."""
        ...


def open_ledger(ledger: Ledger | str | os.PathLike[str] | None, *, account: str = "default") -> Ledger:
    """Return a ledger as it is, a path as SQLite, a URL as PostgreSQL, and None as memory.

    Args:
        ledger: One of these.
        account: Name of the account in a database.

    Raises:
        ConfigurationError: The URL cannot be parsed, or the extra for its database is not installed.
    """
    if ledger is None:
        from .memory import MemoryLedger  # noqa: PLC0415 -- with the first session

        return MemoryLedger()
    if is_url(ledger):
        with _driver(ledger):
            from .postgres import PostgresLedger  # noqa: PLC0415 -- it needs an extra
        return PostgresLedger(ledger, account=account)
    if isinstance(ledger, (str, os.PathLike)):
        from .sqlite import SQLiteLedger  # noqa: PLC0415 -- many sessions have no file

        return SQLiteLedger(ledger)
    return ledger


def read_ledger(
    ledger: str | os.PathLike[str],
    *,
    account: str = "default",
    batch: str | None = None,
    states: Iterable[State] | None = None,
) -> Iterator[Row]:
    """Return the rows of a ledger by the time of their last step, also while others write it. Memory stays flat.

    Tables of an older version are read as they are, and not migrated.

    Args:
        ledger: The file, or the URL of a database.
        account: Name of the account in a database.
        batch: Only this batch's; "" is what was submitted outside of batches.
        states: Only rows in these states.

    Returns:
        The rows, each with its job's content.

    Raises:
        ConfigurationError: The URL cannot be parsed, or the extra for its database is not installed.
        LedgerError: When it is iterated: there is no such ledger, or it cannot be read.
    """
    if is_url(ledger):
        with _driver(ledger):
            from ._postgres import reader as database  # noqa: PLC0415 -- it needs an extra
        return database.rows(ledger, account, batch, states)
    from ._sqlite import reader  # noqa: PLC0415 -- many sessions have no file

    return reader.read_ledger(ledger, batch=batch, states=states)


def read_steps(
    ledger: str | os.PathLike[str], *, account: str = "default", batch: str | None = None, key: str | None = None
) -> Iterator[Step]:
    """Return the steps of a ledger: all of a job one after another, in the order in which they were written.

    Args:
        ledger: The file, or the URL of a database.
        account: Name of the account in a database.
        batch: Only this batch's; "" is what was submitted outside of batches.
        key: Only of jobs with this key.

    Raises:
        ConfigurationError: The URL cannot be read, or the extra for its database is not installed.
        LedgerError: When it is iterated: there is no such ledger, or it cannot be read.
    """
    if is_url(ledger):
        with _driver(ledger):
            from ._postgres import reader as database  # noqa: PLC0415 -- it needs an extra
        return database.steps(ledger, account, batch, key)
    from ._sqlite import reader  # noqa: PLC0415 -- many sessions have no file

    return reader.read_steps(ledger, batch=batch, key=key)


def origin_of(ledger: Ledger) -> object:
    """Return a value that is equal for ledgers with the same rows."""
    if not ledger.durable:
        return ledger
    from .sqlite import SQLiteLedger  # noqa: PLC0415 -- many sessions have no file

    return ledger.path.absolute().resolve() if isinstance(ledger, SQLiteLedger) else ledger


def is_url(ledger: object) -> TypeGuard[str]:
    """Return whether it is a URL, which may have a password, and not a path."""
    return isinstance(ledger, str) and "://" in ledger


@contextmanager
def _driver(url: str) -> Iterator[None]:
    """Convert the errors of importing, in the block, the driver for the database of a URL.

    Raises:
        ConfigurationError: The database is not supported, or its driver is not installed.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError("ledger: the URL is of no database that is known", advice="postgresql://user@host/db")
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"ledger: PostgreSQL needs a driver: {error}", advice="pip install 'kling-async[postgres]'"
        ) from error

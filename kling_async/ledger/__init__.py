"""One row per job: what was intended, what came of it, what it cost; on disk before the next step.

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

_PLACES = {
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
"""Where the names are that are loaded when they are first used, as those of the package are."""


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


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

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """The row of a job, made when it is new.

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
        """The row of the job that the prediction is of, or None."""
        ...

    def unclaim(self, batch: str, key: str) -> None:
        """The job is not going to be submitted now; a pending row may be forgotten."""
        ...

    async def record(self, entry: Entry) -> Row:
        """Write one step down; return when it would survive a crash, with the row that it left.

        Raises:
            LedgerError: It cannot be written, the move is not legal, or the row has another version (`Row.version`)
                than the step follows from (`Entry.expected_version`).
        """
        ...

    def note(self, entry: Entry) -> None:
        """Write one step down soon: it could be learned from the service again."""
        ...

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """The row of a job with its content, or None."""
        ...

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """All rows in these states, of every batch."""
        ...

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """The keys of a batch's jobs in these states, those submitted first before the others: they expire first."""
        ...

    async def spent(self, batch: str | None) -> Decimal:
        """USD that a batch, or everything, has cost so far by the price list, less what was given back."""
        ...

    async def uploaded(self, digest: str, now: float) -> str | None:
        """The URL of an image that was uploaded and is still there at that time (seconds since the epoch), or None."""
        ...

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """An image was uploaded; it is there until that time. Written down soon."""
        ...

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Those of the ids that a row has, each with the fingerprint of what was sent and the model's id."""
        ...

    async def aclose(self) -> None:
        """Write what is left and let go of the file."""
        ...


@runtime_checkable
class SharedLedger(Ledger, Protocol):
    """A ledger that several processes write: a job is in one's hand, and the account's slots are counted in it."""

    async def left(self, states: Iterable[State], batch: str | None) -> list[Row]:
        """The rows in these states, of a batch or of all, that were in nobody's hand; they are in ours from now on."""
        ...

    async def admit(
        self, batch: str, key: str, level: Level, price: Decimal | None = None, caps: Sequence[Cap] = ()
    ) -> None:
        """Return when a claimed job may start: the account, all of its sessions together, has a slot and the money.

        Args:
            batch: The batch's name.
            key: The job's name.
            level: What the account permits.
            price: USD that the job costs.
            caps: What may be spent.

        Raises:
            LedgerError: The job is not in hand any more.
            BudgetExceededError: There is no money for it.
        """
        ...

    def fence(self, batch: str, key: str) -> None:
        """Make sure, right before a paid request, that the job is still in hand.

        Raises:
            LedgerError: It may not be.
        """
        ...

    def tell(self, prediction: Prediction, token_hash: str | None) -> None:
        """Let the account's other sessions know what a webhook told this one.

        Args:
            prediction: What it told.
            token_hash: Digest of the token in the webhook's URL, if it had one.
        """
        ...

    async def told(self) -> list[tuple[Prediction, str | None]]:
        """What webhooks have told other sessions since this was asked; waits a few seconds for some."""
        ...


def open_ledger(ledger: Ledger | str | os.PathLike[str] | None, *, account: str = "default") -> Ledger:
    """The ledger that a session was given: one as it is, a path as SQLite, a URL as PostgreSQL, None as memory.

    Args:
        ledger: One of these.
        account: Of a URL: what the account on the service is called in the database.

    Raises:
        ConfigurationError: The URL cannot be read, or the extra for its database is not installed.
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
    """The rows of a ledger by the time of their last step, also while others write it. Memory stays flat.

    Args:
        ledger: The file, or the URL of a database.
        account: Of a database: the account whose rows are wanted.
        batch: Only this batch's; "" is what was submitted outside of batches.
        states: Only rows in these states.

    Returns:
        The rows, each with its job's content.

    Raises:
        ConfigurationError: The URL cannot be read, or the extra for its database is not installed.
        LedgerError: When it is iterated: there is no such ledger, or it cannot be read.
    """
    if is_url(ledger):
        with _driver(ledger):
            from kling_async.ledger import _reading  # noqa: PLC0415 -- it needs an extra
        return _reading.rows(ledger, account, batch, states)
    from ._sqlite import reader  # noqa: PLC0415 -- many sessions have no file

    return reader.read_ledger(ledger, batch=batch, states=states)


def read_steps(
    ledger: str | os.PathLike[str], *, account: str = "default", batch: str | None = None, key: str | None = None
) -> Iterator[Step]:
    """The steps of a ledger: all of a job one after another, in the order in which they were written.

    Args:
        ledger: The file, or the URL of a database.
        account: Of a database: the account whose steps are wanted.
        batch: Only this batch's; "" is what was submitted outside of batches.
        key: Only of jobs with this key.

    Raises:
        ConfigurationError: The URL cannot be read, or the extra for its database is not installed.
        LedgerError: When it is iterated: there is no such ledger, or it cannot be read.
    """
    if is_url(ledger):
        with _driver(ledger):
            from kling_async.ledger import _reading  # noqa: PLC0415 -- it needs an extra
        return _reading.steps(ledger, account, batch, key)
    from ._sqlite import reader  # noqa: PLC0415 -- many sessions have no file

    return reader.read_steps(ledger, batch=batch, key=key)


def origin_of(ledger: Ledger) -> object:
    """Return a value that is equal for ledgers with the same rows."""
    if not ledger.durable:
        return ledger
    from .sqlite import SQLiteLedger  # noqa: PLC0415 -- many sessions have no file

    return ledger.path.absolute().resolve() if isinstance(ledger, SQLiteLedger) else ledger


def is_url(ledger: object) -> TypeGuard[str]:
    """Whether it is a URL, which may hold a password, and no path."""
    return isinstance(ledger, str) and "://" in ledger


@contextmanager
def _driver(url: str) -> Iterator[None]:
    """Import in the block what reads and writes the database of a URL.

    Raises:
        ConfigurationError: The database is none that is known, or there is no driver for it.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError("ledger: the URL is of no database that is known", advice="postgresql://user@host/db")
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"ledger: PostgreSQL needs a driver: {error}", advice="pip install 'kling-async[postgres]'"
        ) from error

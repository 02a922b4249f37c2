"""One row per job: the request, its result and its cost; on disk before the next step.

`State` and `MOVES` are shared by every ledger. A ledger of your own is a class with the methods of `Ledger`.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

from kling_async._core.frames import hides_arguments
from kling_async.errors import ConfigurationError

from ._labels import label_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from decimal import Decimal

    from kling_async._core.budget import Cap
    from kling_async._core.catalogue import Level
    from kling_async._core.content import Content, Identity
    from kling_async._core.marks import Mark, Marked
    from kling_async._core.prediction import Prediction
    from kling_async._core.reconciliation import Doubt
    from kling_async._core.sender import Sender
    from kling_async._core.states import MOVES, OPEN, Entry, Known, Row, State, Step

    from ._postgres.reader import DatabaseReader
    from ._sqlite.reader import FileReader
    from .memory import MemoryLedger
    from .sqlite import SQLiteLedger

__all__ = [
    "MOVES",
    "OPEN",
    "Content",
    "Doubt",
    "Entry",
    "Identity",
    "Known",
    "Ledger",
    "MemoryLedger",
    "Row",
    "SQLiteLedger",
    "Sender",
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
        "kling_async._core.content": "Content Identity",
        "kling_async._core.reconciliation": "Doubt",
        "kling_async._core.sender": "Sender",
        "kling_async._core.states": "MOVES OPEN Entry Known Row State Step",
        "kling_async.ledger.memory": "MemoryLedger",
        "kling_async.ledger.sqlite": "SQLiteLedger",
    }.items()
    for name in names.split()
}
"""Modules of the names that are loaded when they are first used."""


_MISSPELT_URL = re.compile(
    r"""^[A-Za-z][A-Za-z0-9+.-]+:/     # a scheme, longer than the letter of a drive: postgres:/user@host
      | (?<!^[A-Za-z]) : [^@]* @       # user info: postgresql//user:password@host
      | \b (ssl)?password \s* =        # libpq's other form: host=db.example password=...
    """,
    re.VERBOSE | re.DOTALL,
)


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

    async def identity(self, batch: str, *, ignored: tuple[str, ...] | None = None) -> Identity:
        """Return the identity of a batch, by which its digests and derived keys are made.

        A new batch gets `Identity(ignored=ignored or ())`, recorded before this returns, and keeps it; contents for
        `claim` are made by the identity of their batch.

        Args:
            batch: Name of the batch.
            ignored: Names of the query parameters in URLs of pictures that its jobs ignore, sorted. None for those of
                the batch; a new batch ignores none then.

        Raises:
            LedgerError: It cannot be recorded, or a later version of the package began the batch.
            ConfigurationError: The batch ignores other parameters.
        """
        ...

    async def ignored_parameters(self) -> list[tuple[str, ...]]:
        """Return the sets of parameters that batches ignore, each once, without the empty one.

        Raises:
            LedgerError: It cannot be read.
        """
        ...

    async def owner(self, prediction_id: str) -> Row | None:
        """Return the row of the job that the prediction is of, or None."""
        ...

    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        """Return the jobs of other batches that a paid request for a job would pay for again.

        They have the same content, and are paid for, or may be (`State.paid`), or a session that has claimed them
        before the job is about to send them: of two jobs that are claimed, at most one gets an empty list. An index
        finds them. A ledger that is not durable returns none.

        Args:
            batch: Name of the job's batch.
            key: Name of the job.
            digests: Digests of its content, one by each identity that batches have.
            any_key: Return jobs of other names, too.

        Raises:
            LedgerError: It cannot be read.
        """
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

    async def spent(self, batch: str | None, *, caller: str | None = None) -> Decimal:
        """Return the USD that a batch, or everything, has cost so far by the price list, less what was given back.

        Args:
            batch: Name of the batch; None for all.
            caller: Name of the caller whose jobs alone count; None for those of all.
        """
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

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, Known]:
        """Return what is known of those of the ids that a job has, or had in an earlier attempt."""
        ...

    async def senders(self) -> list[Sender]:
        """Return the senders of its jobs."""
        ...

    async def put_sender(self, sender: Sender) -> None:
        """Record a sender, or that it is of the same account as another one.

        Raises:
            LedgerError: It cannot be written.
        """
        ...

    async def aclose(self) -> None:
        """Write what is left and release the file or connection."""
        ...


@runtime_checkable
class SharedLedger(Ledger, Protocol):
    """A ledger that several processes write: each job is claimed by one, and the account's slots are counted in it."""

    async def claim_unowned(self, states: Iterable[State], senders: Iterable[str] = ()) -> list[Row]:
        """Claim the unowned jobs in these states and return their rows.

        Args:
            states: The states.
            senders: Ids of the senders whose jobs to claim, besides those whose sender was not recorded.
        """
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


@runtime_checkable
class EditableLedger(Ledger, Protocol):
    """A ledger on disk, whose jobs can get other content, and whose videos can be marked."""

    async def renew(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row | None:
        """Give the key of a job other content, so that it is sent, and paid for, again.

        Returns:
            The row of the job as it stays under another key, when there is a prediction of it; else None.

        Raises:
            LedgerError: There is no such job, it is being sent, runs or is in doubt, or it cannot be written.
        """
        ...

    async def put_mark(self, prediction_id: str, mark: Mark | None, at: float) -> None:
        """Record the mark of a video; None removes it.

        Raises:
            LedgerError: It cannot be written.
        """
        ...


@hides_arguments
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


@hides_arguments
def read_ledger(
    ledger: str | os.PathLike[str],
    *,
    account: str = "default",
    batch: str | None = None,
    states: Iterable[State] | None = None,
    labels: Mapping[str, object] | None = None,
) -> Iterator[Row]:
    """Return the rows of a ledger by the time of their last step, also while others write it. Memory stays flat.

    Tables of an older version are read as they are, and not migrated.

    Args:
        ledger: The file, or the URL of a database.
        account: Name of the account in a database.
        batch: Only this batch's; "" is what was submitted outside of batches.
        states: Only rows in these states.
        labels: Only rows of jobs with all of these labels. Values are compared as texts: 1742 and "1742" are equal.

    Returns:
        The rows, each with its job's content.

    Raises:
        ConfigurationError: The URL cannot be parsed, or the extra for its database is not installed, or a label has no
            value to compare.
        LedgerError: When it is iterated: there is no such ledger, or it cannot be read.
    """
    return _reader(ledger, account).rows(batch, states, label_texts(labels))


def page_reader(ledger: Ledger) -> Callable[..., list[Row]] | None:
    """Return a function that reads a page of a ledger's rows, to be called in a thread; None for one in memory.

    Its arguments are a batch, and by name `prefix` and `after` (keys), `labels` (texts) and `limit`.
    """
    from .sqlite import SQLiteLedger  # noqa: PLC0415 -- as above

    if isinstance(ledger, SQLiteLedger):
        return _reader(ledger.path, "").page
    if not ledger.durable:
        return None
    from .postgres import PostgresLedger  # noqa: PLC0415 -- it needs an extra

    if isinstance(ledger, PostgresLedger):
        from ._postgres.reader import DatabaseReader  # noqa: PLC0415 -- it needs an extra

        return DatabaseReader(ledger.address, ledger.account).page
    return None


@hides_arguments
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
    return _reader(ledger, account).steps(batch, key)


@hides_arguments
def read_identity(ledger: str | os.PathLike[str], batch: str, *, account: str = "default") -> Identity | None:
    """Return the identity of a batch, also while others write the ledger; None if the ledger has no such batch.

    Args:
        ledger: The file, or the URL of a database.
        batch: Name of the batch.
        account: Name of the account in a database.

    Raises:
        ConfigurationError: The URL cannot be parsed, or the extra for its database is not installed.
        LedgerError: There is no such ledger, or it cannot be read.
    """
    return _reader(ledger, account).identity(batch)


@hides_arguments
def read_batches(ledger: str | os.PathLike[str], *, account: str = "default") -> set[str]:
    """Return the names of the batches that have jobs in a ledger; "" is what was submitted outside of batches.

    Args:
        ledger: The file, or the URL of a database.
        account: Name of the account in a database.

    Raises:
        ConfigurationError: The URL cannot be parsed, or the extra for its database is not installed.
        LedgerError: There is no such ledger, or it cannot be read.
    """
    return _reader(ledger, account).batches()


@hides_arguments
def read_order(ledger: str | os.PathLike[str], batch: str, *, account: str = "default") -> list[str]:
    """Return the keys of a batch in the order of its input: in which its jobs came into the ledger.

    Args:
        ledger: The file, or the URL of a database.
        batch: Name of the batch.
        account: Name of the account in a database.

    Raises:
        ConfigurationError: The URL cannot be parsed, or the extra for its database is not installed.
        LedgerError: There is no such ledger, or it cannot be read.
    """
    return _reader(ledger, account).order(batch)


@hides_arguments
def read_marks(ledger: str | os.PathLike[str], *, account: str = "default") -> dict[str, Marked]:
    """Return the marks of the videos of a ledger, by prediction, also while others write it.

    Args:
        ledger: The file, or the URL of a database.
        account: Name of the account in a database.

    Raises:
        ConfigurationError: The URL cannot be parsed, or the extra for its database is not installed.
        LedgerError: There is no such ledger, or it cannot be read.
    """
    return _reader(ledger, account).marks()


def ledger_identity(ledger: Ledger) -> object:
    """Return a value that is equal for ledgers with the same rows."""
    if not ledger.durable:
        return ledger
    from .sqlite import SQLiteLedger  # noqa: PLC0415 -- many sessions have no file

    return ledger.path.absolute().resolve() if isinstance(ledger, SQLiteLedger) else ledger


def is_url(ledger: object) -> TypeGuard[str]:
    """Return whether it is a URL, which may have a password, and not a path.

    Raises:
        ConfigurationError: It is a text that looks like a misspelt URL: as a path, it would be shown, and made.
    """
    if not isinstance(ledger, str):
        return False
    if "://" not in ledger and _MISSPELT_URL.search(ledger):
        # A traceback may show local variables.
        del ledger
        raise ConfigurationError(
            "ledger: expected the path of a file, or postgresql://user:password@host/database, got what looks like a "
            "misspelt URL, which is not shown",
            advice="correct the URL; a file of such a name is given as a pathlib.Path",
        )
    return "://" in ledger


def _reader(ledger: str | os.PathLike[str], account: str) -> FileReader | DatabaseReader:
    """Return the reader of a ledger.

    Raises:
        ConfigurationError: The URL cannot be parsed, or the extra for its database is not installed.
    """
    if not is_url(ledger):
        from ._sqlite.reader import FileReader  # noqa: PLC0415 -- many sessions have no file

        return FileReader(ledger)
    with _driver(ledger):
        from ._postgres.connection import Address  # noqa: PLC0415 -- it needs an extra
        from ._postgres.reader import DatabaseReader  # noqa: PLC0415 -- it needs an extra
    return DatabaseReader(Address(ledger), account)


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

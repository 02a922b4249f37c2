"""Reading of a shared ledger while others write it: on a connection of its own, which changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import psycopg

from kling_async._core.frames import without_frames
from kling_async._core.marks import Mark, Marked
from kling_async._core.states import State, Step
from kling_async.errors import LedgerError
from kling_async.ledger._columns import after_all, restored_identity

from . import statements, tables
from .connection import Address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kling_async._core.content import Identity
    from kling_async._core.states import Row

PAGE_SIZE = 1_000
"""Rows that are fetched together, and in memory at once."""
ANSWER_WITHIN_S = 10
"""Seconds after which a server that does not answer is given up."""


@attrs.frozen
class WorkerTally:
    """A worker, or a session, that has the ledger open.

    Attributes:
        name: Host and process.
        lease: Seconds until its lease ends.
        jobs: Number of jobs that it has claimed.
    """

    name: str
    lease: float
    jobs: int


@attrs.frozen
class DatabaseReader:
    """Reads what an account has in a database.

    Attributes:
        address: Address of the database.
        account: Name of the account.
    """

    address: Address
    account: str

    def rows(
        self, batch: str | None, states: Iterable[State] | None, labels: Mapping[str, str] | None = None
    ) -> Iterator[Row]:
        """Yield the rows of an account, each with its job's content, by the time of their last step.

        Raises:
            LedgerError: The database cannot be reached, or has no ledger.
        """
        words = [state.value for state in (State if states is None else states)]
        found = (
            _found(
                self.address,
                statements.READ_LABELLED,
                statements.label_values(labels) | {"account": self.account, "batch": batch, "states": words},
            )
            if labels
            else _found(self.address, statements.READ_ROWS, [self.account, batch, words])
        )
        for line in found:
            yield statements.line_of(line).row

    def page(self, batch: str, *, prefix: str, after: str, labels: Mapping[str, str], limit: int) -> list[Row]:
        """Return rows of a batch by their keys: `limit` of those that begin with a prefix and come after a key.

        Raises:
            LedgerError: The database cannot be reached, or has no ledger.
        """
        query = statements.READ_LABELLED_PAGE if labels else statements.READ_PAGE
        values = statements.label_values(labels) | {"account": self.account, "batch": batch}
        values |= {"before": after_all(prefix), "after": after, "limit": limit}
        return [statements.line_of(line).row for line in _found(self.address, query, values)]

    def steps(self, batch: str | None, key: str | None) -> Iterator[Step]:
        """Yield the steps of an account's jobs: all of a job together, in the order in which they were written.

        Raises:
            LedgerError: The database cannot be reached, or has no ledger.
        """
        for of, name, state, *rest in _found(self.address, statements.READ_STEPS, [self.account, batch, key]):
            yield Step(of, name, State(state), *rest)

    def identity(self, batch: str) -> Identity | None:
        """Return the identity of a batch of an account; None if there is no such batch.

        Raises:
            LedgerError: The database cannot be reached, or has no ledger.
        """
        found = [*_found(self.address, statements.IDENTITY, [self.account, batch])]
        return restored_identity(*found[0]) if found else None

    def batches(self) -> set[str]:
        """Return the names of the batches that have jobs of an account.

        Raises:
            LedgerError: The database cannot be reached, or has no ledger.
        """
        return {batch for (batch,) in _found(self.address, statements.BATCHES, [self.account])}

    def order(self, batch: str) -> list[str]:
        """Return the keys of a batch in the order in which its jobs came into the database.

        Raises:
            LedgerError: The database cannot be reached, or has no ledger.
        """
        return [key for (key,) in _found(self.address, statements.ORDER, [self.account, batch])]

    def marks(self) -> dict[str, Marked]:
        """Return the marks of the videos of an account, by prediction.

        Raises:
            LedgerError: The database cannot be reached, or has no ledger.
        """
        return {id_: Marked(Mark(mark), at) for id_, mark, at in _found(self.address, statements.MARKS, [self.account])}


def workers(address: Address, account: str) -> list[WorkerTally]:
    """Return the workers and sessions of an account whose leases run.

    Raises:
        LedgerError: The database cannot be reached, or has no ledger.
    """
    return [WorkerTally(*values) for values in _found(address, statements.WORKERS, [account])]


def exists(address: Address) -> bool:
    """Return whether the database has a ledger.

    Raises:
        LedgerError: The database cannot be reached.
    """
    with _connected(address) as connection:
        return _is_ledger(connection)


def _found(address: Address, query: str, values: Sequence[object] | Mapping[str, object]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query for the newest tables, from tables of any version; a page is in memory at once.

    Raises:
        LedgerError: The database cannot be reached, has no ledger, or has one of a later version.
    """
    with _connected(address) as connection:
        if not _is_ledger(connection):
            raise LedgerError(
                f"there is no ledger in {address}", advice="name the database that a run, or enqueue, has written"
            )
        ((version,),) = connection.execute(tables.VERSION.encode()).fetchall()
        tables.check_version(version, address)
        with connection.cursor(name="kling_read") as cursor:
            cursor.itersize = PAGE_SIZE
            yield from cursor.execute((tables.as_newest(version) + query).encode(), values)


def _is_ledger(connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
    return bool(connection.execute(tables.EXISTS.encode()).fetchall()[0][0])


def _connect(address: Address) -> psycopg.Connection[tuple[Any, ...]] | BaseException:
    """Return a connection, or the exception to raise in its place: its frames have the password."""
    try:
        return psycopg.connect(address.parameters(name="kling_async reader", answer_within=ANSWER_WITHIN_S))
    except BaseException as error:  # noqa: BLE001 -- raised by the caller
        return error


@contextmanager
def _connected(address: Address) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Yield a connection whose only transaction cannot write.

    Raises:
        LedgerError: The database cannot be reached, or refused a statement.
    """
    opened = _connect(address)
    try:
        if isinstance(opened, BaseException):
            raise without_frames(opened)
        with opened as connection:
            connection.read_only = True
            yield connection
            return
    except psycopg.Error as trouble:
        what = "cannot be reached" if isinstance(trouble, psycopg.OperationalError) else "refused"
        failure = LedgerError(
            f"the ledger {address} {what}: {address.redact(trouble)}",
            advice="look whether the database runs and takes this user",
        )
    # Raised outside of the except block: the driver's exceptions have the password in their attributes.
    raise failure

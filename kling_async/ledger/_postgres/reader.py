"""Reading of a shared ledger while others write it: on a connection of its own, which changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import psycopg

from kling_async._core.states import State, Step
from kling_async.errors import LedgerError

from . import statements, tables
from .connection import Address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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


def rows(url: str, account: str, batch: str | None, states: Iterable[State] | None) -> Iterator[Row]:
    """Yield the rows of an account, each with its job's content, by the time of their last step.

    Raises:
        LedgerError: The database cannot be reached, or has no ledger.
    """
    words = [state.value for state in (State if states is None else states)]
    for line in _found(Address(url), statements.READ_ROWS, [account, batch, words]):
        yield statements.line_of(line).row


def steps(url: str, account: str, batch: str | None, key: str | None) -> Iterator[Step]:
    """Yield the steps of an account's jobs: all of a job one after another, in the order in which they were written.

    Raises:
        LedgerError: The database cannot be reached, or has no ledger.
    """
    for of, name, state, *rest in _found(Address(url), statements.READ_STEPS, [account, batch, key]):
        yield Step(of, name, State(state), *rest)


def workers(url: str, account: str) -> list[WorkerTally]:
    """Return the workers and sessions of an account whose leases run.

    Raises:
        LedgerError: The database cannot be reached, or has no ledger.
    """
    return [WorkerTally(*values) for values in _found(Address(url), statements.WORKERS, [account])]


def exists(url: str) -> bool:
    """Return whether the database has a ledger.

    Raises:
        LedgerError: The database cannot be reached.
    """
    with _connected(Address(url)) as connection:
        return _is_ledger(connection)


def _found(address: Address, query: str, values: Sequence[object]) -> Iterator[tuple[Any, ...]]:
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


@contextmanager
def _connected(address: Address) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Yield a connection whose only transaction cannot write.

    Raises:
        LedgerError: The database cannot be reached, or refused a statement.
    """
    options = {
        "application_name": "kling_async reader",
        "connect_timeout": ANSWER_WITHIN_S,
        "tcp_user_timeout": 1000 * ANSWER_WITHIN_S,
        "keepalives_idle": ANSWER_WITHIN_S,
        "keepalives_interval": ANSWER_WITHIN_S,
        "keepalives_count": 3,
    }
    try:
        with psycopg.connect(address.parameters(**options)) as connection:
            connection.read_only = True
            yield connection
    except psycopg.Error as trouble:
        what = "cannot be reached" if isinstance(trouble, psycopg.OperationalError) else "refused"
        raise LedgerError(
            f"the ledger {address} {what}: {address.redact(trouble)}",
            advice="look whether the database runs and takes this user",
        ) from None

"""Reading the shared ledger, beside those who write it: on a connection of its own, which changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from kling_async._core.states import State, Step
from kling_async.errors import LedgerError
from kling_async.ledger import _tables as tables

from ._link import Address
from ._tables import line_of
from .postgres import WorkerTally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kling_async._core.states import Row

PAGE = 1_000
"""Rows that are fetched together: what is in memory at once."""
_WITHIN = 10
"""Seconds after which a server that does not answer is taken for gone."""

_ROWS = f"""
SELECT {tables.LINE}, c.text, c.files FROM kling_job j LEFT JOIN kling_content c ON c.job = j.id
WHERE j.account = %s AND j.batch = coalesce(%s, j.batch) AND j.state = ANY(%s) ORDER BY j.updated_at, j.id
"""  # noqa: S608 -- the names of our own columns
_STEPS = """
SELECT j.batch, j.key, s.state, s.at, s.attempt, s.prediction_id, s.error
FROM kling_step s JOIN kling_job j ON j.id = s.job
WHERE j.account = %s AND j.batch = coalesce(%s, j.batch) AND j.key = coalesce(%s, j.key) ORDER BY s.job, s.id
"""


def rows(url: str, account: str, batch: str | None, states: Iterable[State] | None) -> Iterator[Row]:
    """The rows of an account, each with its job's content, by the time of their last step.

    Raises:
        LedgerError: The database cannot be reached, or has no ledger.
    """
    words = [state.value for state in (State if states is None else states)]
    for line in _found(Address(url), _ROWS, [account, batch, words]):
        yield line_of(line).row


def steps(url: str, account: str, batch: str | None, key: str | None) -> Iterator[Step]:
    """The steps of an account's jobs: all of a job one after another, in the order in which they were written.

    Raises:
        LedgerError: The database cannot be reached, or has no ledger.
    """
    for of, name, state, *rest in _found(Address(url), _STEPS, [account, batch, key]):
        yield Step(of, name, State(state), *rest)


def workers(url: str, account: str) -> list[WorkerTally]:
    """The workers and sessions of an account that are alive.

    Raises:
        LedgerError: The database cannot be reached, or has no ledger.
    """
    found = [WorkerTally(*values) for values in _found(Address(url), tables.WORKERS, [account, ""])]
    return [worker for worker in found if worker.lease > 0]


def exists(url: str) -> bool:
    """Whether the database has a ledger.

    Raises:
        LedgerError: The database cannot be reached.
    """
    with _connected(Address(url)) as connection:
        return _is_ledger(connection)


def _found(address: Address, query: str, values: Sequence[object]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query for the newest tables, from tables of any version; a page is in memory at once.

    Raises:
        LedgerError: The database cannot be reached, or has no ledger.
    """
    with _connected(address) as connection:
        if not _is_ledger(connection):
            raise LedgerError(
                f"there is no ledger in {address}", advice="name the database that a run, or enqueue, has written"
            )
        ((version,),) = connection.execute(tables.VERSION.encode()).fetchall()
        if version > len(tables.MIGRATIONS):
            raise LedgerError(
                f"the tables of the ledger {address} were made by a later version of kling_async",
                advice="upgrade kling_async, or name another database",
            )
        with connection.cursor(name="kling_read") as cursor:
            cursor.itersize = PAGE
            yield from cursor.execute((tables.as_newest(version) + query).encode(), values)


def _is_ledger(connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
    return bool(connection.execute(tables.VERSIONED.encode()).fetchall()[0][0])


@contextmanager
def _connected(address: Address) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection whose one transaction cannot write.

    Raises:
        LedgerError: The database cannot be reached, or refused.
    """
    options = {
        "application_name": "kling_async reader",
        "connect_timeout": _WITHIN,
        "tcp_user_timeout": 1000 * _WITHIN,
        "keepalives_idle": _WITHIN,
        "keepalives_interval": _WITHIN,
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

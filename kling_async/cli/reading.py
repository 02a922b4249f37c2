"""Read a ledger that another process may be writing: rows, steps and summaries of its batches."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kling_async._core.content import Identity, checked_identity
from kling_async._core.signed_urls import parameter_names
from kling_async.errors import ConfigurationError
from kling_async.ledger import Row, State, read_batches, read_identity, read_ledger, read_order, read_steps
from kling_async.ledger._recall import RETENTION_S
from kling_async.ledger._sqlite.reader import writer_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from kling_async.ledger import Step
    from kling_async.ledger._postgres.reader import WorkerTally  # noqa: TC004 -- needs an extra; attrs does not resolve it

    from .ledgers import LedgerName

_MAX_RUNNING_SHOWN: Final = 5


def rows_of(
    ledger: LedgerName,
    *,
    batch: str | None = None,
    states: Iterable[State] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """Read the rows of a ledger, each with its job's content.

    Raises:
        LedgerError: There is no such ledger.
    """
    return read_ledger(ledger.where, account=ledger.account, batch=batch, states=states, labels=labels)


def batches_of(ledger: LedgerName) -> set[str]:
    """Return the names of the batches that have jobs in a ledger; "" is what was submitted outside of batches.

    Raises:
        LedgerError: There is no such ledger.
    """
    return read_batches(ledger.where, account=ledger.account)


def order_of(ledger: LedgerName, batch: str) -> list[str]:
    """Return the keys of a batch in the order of its input.

    Raises:
        LedgerError: There is no such ledger.
    """
    return read_order(ledger.where, batch, account=ledger.account)


def identity_of(ledger: LedgerName, batch: str, ignored: Collection[str] | None) -> Identity:
    """Return the identity that the jobs of a batch have in a run: the batch's own, or that of a new one.

    Args:
        ledger: The ledger; it need not exist.
        batch: Name of the batch.
        ignored: The parameters that its jobs are to ignore; None for those of the batch.

    Raises:
        ConfigurationError: The batch ignores other parameters, or a name cannot be one.
        LedgerError: The ledger cannot be read, or a later version of the package began the batch.
    """
    names = parameter_names(ignored)
    own = read_identity(ledger.where, batch, account=ledger.account) if ledger.exists() else None
    return checked_identity(own or Identity(ignored=names or ()), batch, names)


def steps_of(ledger: LedgerName, *, batch: str | None = None, key: str | None = None) -> Iterator[Step]:
    """Read the steps of a ledger, grouped by job.

    Raises:
        LedgerError: There is no such ledger.
    """
    return read_steps(ledger.where, account=ledger.account, batch=batch, key=key)


@attrs.frozen
class Writers:
    """Processes that write a ledger now.

    Attributes:
        process: Id of the process that has the file open; None for a database, or if no process has.
        workers: Workers and sessions of a database whose lease has not expired.
    """

    process: int | None = None
    workers: tuple[WorkerTally, ...] = ()

    def __bool__(self) -> bool:
        return self.process is not None or bool(self.workers)


def writers_of(ledger: LedgerName) -> Writers:
    """Return the processes that write a ledger now.

    Raises:
        LedgerError: The database has no ledger, or cannot be reached.
    """
    if isinstance(ledger.where, Path):
        return Writers(writer_of(ledger.where))
    from kling_async.ledger._postgres import connection, reader  # noqa: PLC0415 -- needs an extra

    return Writers(workers=tuple(reader.workers(connection.Address(ledger.where), ledger.account)))


@attrs.define
class Summary:
    """Counts and amounts of a batch.

    Attributes:
        name: Name of the batch; empty for jobs submitted outside of batches.
        states: Number of jobs in each state.
        spent: USD of accepted jobs, at list price.
        refunded: USD of `spent` that the service refunded, as recorded in the ledger.
        refundable: USD of failed jobs that were not refunded.
        doubtful: USD of jobs in doubt.
        oldest: The paid and unsaved job whose video expires first; None if there is none.
        running: The oldest running jobs, at most `_MAX_RUNNING_SHOWN`.
        in_doubt: Number of jobs whose acceptance, or whose prediction, is unknown.
    """

    name: str
    states: Counter[State] = attrs.field(factory=Counter)
    spent: Decimal = Decimal(0)
    refunded: Decimal = Decimal(0)
    refundable: Decimal = Decimal(0)
    doubtful: Decimal = Decimal(0)
    oldest: Row | None = None
    running: list[Row] = attrs.field(factory=list)
    in_doubt: int = 0

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return self.states.total()

    @property
    def unsent(self) -> int:
        """Number of jobs that a resume would send."""
        # A rejected job would be refused again.
        return sum(count for state, count in self.states.items() if state.unsent and not state.unsuccessful)

    @property
    def unfinished(self) -> int:
        """Number of jobs that a resume would send, follow or save."""
        return self.unsent + sum(count for state, count in self.states.items() if state.in_doubt or state.unsaved)

    def add(self, row: Row, *, written: bool) -> None:
        """Count a job.

        Args:
            row: Row of the job.
            written: A process has the ledger open, so an intent may still be answered and is not in doubt.
        """
        self.states[row.state] += 1
        self.spent += row.spent or 0
        self.refunded += row.refunded or 0
        if row.state is State.FAILED and row.cost is not None:
            self.refundable += max(Decimal(0), row.cost - (row.refunded or 0))
        if in_doubt(row, written=written):
            self.in_doubt += 1
            self.doubtful += row.cost or 0
        if row.state.unsaved and (self.oldest is None or expires_at(row) < expires_at(self.oldest)):
            self.oldest = row
        if row.state is State.SUBMITTED:
            self.running.append(row)
            self.running.sort(key=expires_at)
            del self.running[_MAX_RUNNING_SHOWN:]


def in_doubt(row: Row, *, written: bool) -> bool:
    """Return whether it is unknown if the job was accepted, or as which prediction.

    Args:
        row: Row of the job.
        written: A process has the ledger open and may still receive the answer.
    """
    return row.state is State.UNCERTAIN or (row.state is State.INTENT and not written)


def expires_at(row: Row) -> float:
    """Return the time at which the service deletes the job's video, in seconds since the epoch."""
    return (row.submitted_at or row.updated_at) + RETENTION_S


def summaries(
    ledger: LedgerName, *, batch: str | None = None, labels: Mapping[str, str] | None = None
) -> tuple[Writers, dict[str, Summary]]:
    """Return the processes that write a ledger now, and a summary of each batch, sorted by name.

    Only jobs with the labels are counted, if there are any.

    Raises:
        LedgerError: There is no such ledger.
    """
    writers = writers_of(ledger)
    found: dict[str, Summary] = {}
    for row in rows_of(ledger, batch=batch, labels=labels):
        if row.batch not in found:
            found[row.batch] = Summary(row.batch)
        found[row.batch].add(row, written=bool(writers))
    return writers, dict(sorted(found.items()))


def the_batch(ledger: LedgerName, name: str | None) -> Summary:
    """Return the batch of a name, or without a name the only batch.

    Raises:
        ConfigurationError: There is no such batch, or there are several.
        LedgerError: There is no such ledger.
    """
    _, found = summaries(ledger, batch=name)
    if len(found) == 1:
        return next(iter(found.values()))
    if name is not None:
        _, found = summaries(ledger)
        raise ConfigurationError(f"{ledger} has no batch {name!r}", advice=f"it has {format_names(found)}")
    if not found:
        raise ConfigurationError(f"{ledger} has no jobs", advice="name the ledger of a run")
    raise ConfigurationError(
        f"{ledger} has {len(found)} batches: {format_names(found)}", advice="choose one with --name NAME"
    )


def format_names(batches: Iterable[str]) -> str:
    """Format names of batches for a message."""
    return ", ".join(name or "'' (outside of batches)" for name in batches) or "none"


def format_local_time(at: float | None) -> str:
    """Format a time for people, in the local time zone; None is empty."""
    return "" if at is None else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def format_iso_time(at: float | None) -> str | None:
    """Format a time in ISO 8601 with milliseconds, for JSON."""
    return None if at is None else datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds")

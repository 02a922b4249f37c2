"""What the commands read of a ledger while others may write it: rows, steps, and where its batches stand."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kling_async.errors import ConfigurationError
from kling_async.ledger import Row, State, read_ledger, read_steps
from kling_async.ledger._recall import RETENTION_S
from kling_async.ledger.sqlite import writer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kling_async.ledger import Step
    from kling_async.ledger.postgres import WorkerTally  # noqa: TC004 -- it needs an extra, and attrs does not look

    from .ledgers import LedgerName

_SHOWN: Final = 5


def rows_of(ledger: LedgerName, *, batch: str | None = None, states: Iterable[State] | None = None) -> Iterator[Row]:
    """The rows of a ledger, each with its job's content.

    Raises:
        LedgerError: There is no such ledger.
    """
    return read_ledger(ledger.where, account=ledger.account, batch=batch, states=states)


def steps_of(ledger: LedgerName, *, batch: str | None = None, key: str | None = None) -> Iterator[Step]:
    """The steps of a ledger, those of a job one after another.

    Raises:
        LedgerError: There is no such ledger.
    """
    return read_steps(ledger.where, account=ledger.account, batch=batch, key=key)


@attrs.frozen
class Writers:
    """Who writes a ledger now.

    Attributes:
        process: The process that has a file open.
        workers: The workers and sessions of a database that are alive.
    """

    process: int | None = None
    workers: tuple[WorkerTally, ...] = ()

    def __bool__(self) -> bool:
        return self.process is not None or bool(self.workers)


def writers_of(ledger: LedgerName) -> Writers:
    """Who writes a ledger now.

    Raises:
        LedgerError: The database has no ledger, or cannot be reached.
    """
    if isinstance(ledger.where, Path):
        return Writers(writer_of(ledger.where))
    from kling_async.ledger import _reading  # noqa: PLC0415 -- it needs an extra

    return Writers(workers=tuple(_reading.workers(ledger.where, ledger.account)))


@attrs.define
class Summary:
    """Where a batch stands.

    Attributes:
        name: The batch's name; empty for what was submitted outside of batches.
        states: How many jobs are in each state.
        spent: USD of what was accepted, by the price list.
        refunded: USD of it that the service gave back, as far as the ledger knows.
        refundable: USD of failed jobs whose price was not given back.
        doubtful: USD of what may have been accepted.
        oldest: Of what is paid for and not saved: what expires soonest.
        running: Some of what runs, the oldest first.
        in_doubt: Jobs of which it is not known whether they were accepted, or as what.
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
        """How many jobs there are."""
        return self.states.total()

    @property
    def unsent(self) -> int:
        """Jobs that were not accepted, and that a resume sends."""
        return sum(self.states[state] for state in (State.PENDING, State.CLAIMED, State.SKIPPED))

    @property
    def unfinished(self) -> int:
        """Jobs that a resume has something to do for."""
        return self.unsent + sum(
            self.states[state] for state in (State.INTENT, State.UNCERTAIN, State.SUBMITTED, State.COMPLETED)
        )

    def add(self, row: Row, *, written: bool) -> None:
        """Count a job.

        Args:
            row: Its row.
            written: Whether a process has the ledger open: what is between intent and answer is then no doubt.
        """
        self.states[row.state] += 1
        self.spent += row.spent or 0
        self.refunded += row.refunded or 0
        if row.state is State.FAILED and row.cost is not None:
            self.refundable += max(Decimal(0), row.cost - (row.refunded or 0))
        if in_doubt(row, written=written):
            self.in_doubt += 1
            self.doubtful += row.cost or 0
        if row.state in {State.SUBMITTED, State.COMPLETED} and (
            self.oldest is None or expires_at(row) < expires_at(self.oldest)
        ):
            self.oldest = row
        if row.state is State.SUBMITTED:
            self.running.append(row)
            self.running.sort(key=expires_at)
            del self.running[_SHOWN:]


def in_doubt(row: Row, *, written: bool) -> bool:
    """Whether it is not known if, or as what, the job was accepted.

    Args:
        row: Its row.
        written: Whether a process has the ledger open, which may be about to learn the answer.
    """
    return row.state is State.UNCERTAIN or (row.state is State.INTENT and not written)


def expires_at(row: Row) -> float:
    """When the service deletes the job's video; seconds since the epoch."""
    return (row.submitted_at or row.updated_at) + RETENTION_S


def summaries(ledger: LedgerName, *, batch: str | None = None) -> tuple[Writers, dict[str, Summary]]:
    """Who writes a ledger now, and where its batches stand, in the order of their names.

    Raises:
        LedgerError: There is no such ledger.
    """
    writers = writers_of(ledger)
    found: dict[str, Summary] = {}
    for row in rows_of(ledger, batch=batch):
        if row.batch not in found:
            found[row.batch] = Summary(row.batch)
        found[row.batch].add(row, written=bool(writers))
    return writers, dict(sorted(found.items()))


def the_batch(ledger: LedgerName, name: str | None) -> Summary:
    """The batch that is meant: the one of that name, or the only one.

    Raises:
        ConfigurationError: There is none, or there are several.
        LedgerError: There is no such ledger.
    """
    _, found = summaries(ledger, batch=name)
    if len(found) == 1:
        return next(iter(found.values()))
    if name is not None:
        _, found = summaries(ledger)
        raise ConfigurationError(f"{ledger} has no batch {name!r}", advice=f"it has {named(found)}")
    if not found:
        raise ConfigurationError(f"{ledger} has no jobs", advice="name the ledger of a run")
    raise ConfigurationError(f"{ledger} has {len(found)} batches: {named(found)}", advice="say which: --name NAME")


def named(found: Iterable[str]) -> str:
    """Names of batches, to be read and copied."""
    return ", ".join(name or "'' (outside of batches)" for name in found) or "none"


def moment(at: float | None) -> str:
    """A time to read, in the zone of the computer."""
    return "" if at is None else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def instant(at: float | None) -> str | None:
    """A time for machines."""
    return None if at is None else datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds")

"""Requests to the database: steps of jobs, slots for jobs, and any other work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from kling_async._core.budget import Cap
from kling_async._core.catalogue import Level
from kling_async._core.content import Content
from kling_async._core.states import Entry
from kling_async._log import log
from kling_async.errors import LedgerError, NotInHandError

from .connection import Connection

if TYPE_CHECKING:
    from .statements import Line

Name: TypeAlias = tuple[str, str]
"""Batch and key of a job."""
NewJob: TypeAlias = tuple[Content, str, float]
"""Content, model and time of a job."""
Change: TypeAlias = "Callable[[Line | None], Line | None]"


@attrs.define(eq=False)
class Request:
    """A request, and the future of its result; None when nobody waits for it."""

    future: asyncio.Future[Any] | None

    def resolve(self, result: object) -> None:
        """Give the result to the caller, if one waits."""
        if self.future is not None and not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Give the error to the caller; log it when nobody waits."""
        if self.future is None:
            # The worker that owns the job now records the same.
            level = logging.DEBUG if isinstance(error, NotInHandError) else logging.ERROR
            log.log(level, "a step could not be noted in the ledger: %s", error)
        elif not self.future.done():
            self.future.set_exception(error)


@attrs.define(eq=False)
class StepRequest(Request):
    """A step of one job.

    Attributes:
        name: Batch and key of the job.
        change: Returns the line as the step leaves it; refuses by raising, and then nothing changes.
        entry: Step for the history.
        new: Job that is inserted when there is none.
        owned_only: Do nothing unless this worker owns the job.
    """

    name: Name
    change: Change
    entry: Entry | None = None
    new: NewJob | None = None
    owned_only: bool = False


@attrs.define(eq=False)
class SlotRequest(Request):
    """A request for one of the account's slots, and for the price of a job out of some budgets.

    Attributes:
        name: Batch and key of a job that this worker owns.
        level: Limits of the account.
        price: Price of the job in USD; None when it is not known.
        caps: Budgets that it counts in.
    """

    name: Name
    level: Level
    price: Decimal | None = None
    caps: tuple[Cap, ...] = ()

    def is_granted(self, line: Line) -> bool:
        """Return whether the job has its slot, and its price is reserved."""
        return line.slot and (not self.caps or line.row.cost is not None)


@attrs.define(eq=False)
class WorkRequest(Request):
    """Any other work, in a transaction of its own.

    Attributes:
        work: The work; may be done several times.
        done: Called with the result, whether or not anybody waits for it.
    """

    work: Callable[[Connection], Awaitable[Any]]
    done: Callable[[Any], None] | None = None


def lease_ended(key: str) -> LedgerError:
    """Return the error for a job whose lease this worker has lost."""
    return NotInHandError(f"the lease on job {key} has ended", key=key)


def not_owned(key: str) -> LedgerError:
    """Return the error for a job that another worker has claimed."""
    return NotInHandError(f"job {key} is claimed by another worker", key=key)

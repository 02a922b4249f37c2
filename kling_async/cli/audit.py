"""What the service's bill says of a batch; what it gave back goes into the ledger, where later budgets find it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import attrs

from kling_async._budget.prices import MAX_IDS_PER_PAGE
from kling_async._core.states import OPEN, Entry
from kling_async._session.session import engine_of
from kling_async.errors import LedgerError, NotInHandError
from kling_async.ledger import Row

from .reading import rows_of, steps_of

if TYPE_CHECKING:
    from kling_async._core.account import Billing
    from kling_async._session.session import KlingSession

    from .ledgers import LedgerName

SECONDS: Final = 15.0
"""Real seconds that the reading may take: what was not read by then is left out."""
_AT_ONCE: Final = 8


@attrs.frozen(kw_only=True)
class Audit:
    """What the bill says.

    Attributes:
        predictions: How many were accepted in the time that was asked about.
        billed: How many of them are on the bill, as far as it was read.
        deducted: USD that was deducted for these.
        difference: USD by which that is more than by the price list, of those that have a price there.
        refunded: USD that was given back for the jobs of the batch, at any time.
        refundable: USD that predictions cost which failed and whose price was not given back yet.
    """

    predictions: int
    billed: int
    deducted: Decimal
    difference: Decimal
    refunded: Decimal
    refundable: Decimal


@attrs.define
class _Job:
    """A job with the predictions that were paid for it, and when each was first written down."""

    row: Row
    ids: dict[str, float] = attrs.field(factory=dict)

    @property
    def due(self) -> bool:
        """Whether the service may give more back for it than the ledger knows of."""
        return self.row.cost is not None and (self.row.refunded or 0) < self.row.cost * self.row.failures


class _Bill:
    """The lines of the bill that were read, by prediction."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Billing]] = {}

    async def read(self, kling: KlingSession, ids: list[str]) -> None:
        """Read what it has about predictions, several pages at once."""
        door = anyio.CapacityLimiter(_AT_ONCE)

        async def some(of: list[str]) -> None:
            async with door:
                for line in await engine_of(kling).money.prices.bill(of):
                    self._lines.setdefault(line.prediction_id or "", []).append(line)

        async with anyio.create_task_group() as tasks:
            for start in range(0, len(ids), MAX_IDS_PER_PAGE):
                tasks.start_soon(some, ids[start : start + MAX_IDS_PER_PAGE])

    def amounts(self, id_: str, kind: str) -> list[Decimal]:
        """What was deducted, or given back, for a prediction."""
        return [line.price for line in self._lines.get(id_, ()) if line.kind == kind]


async def audit(kling: KlingSession, ledger: LedgerName, batch: str, *, since: float) -> Audit:
    """Compare a batch with the bill, and write down what was given back.

    Args:
        kling: The session, open, which writes the ledger.
        ledger: The ledger.
        batch: The batch's name.
        since: Seconds since the epoch from which on accepted predictions are compared. What was given back is looked
            for whenever it failed.

    Raises:
        UnsupportedError: The provider shows no bill.
        ApiError: The service said no.
        TransportError: The service could not be asked.
    """
    # What was only noted is in the file when a question after it is answered.
    await engine_of(kling).ledger.spent(batch)
    jobs: list[_Job] = []
    bill = _Bill()
    with anyio.move_on_after(SECONDS):
        jobs = await anyio.to_thread.run_sync(_paid, ledger, batch, abandon_on_cancel=True)
        # What failed comes first, in case that time runs out.
        ids = [id_ for job in jobs if job.due for id_ in job.ids]
        ids += [id_ for job in jobs for id_, at in job.ids.items() if at >= since and not job.due]
        try:
            await bill.read(kling, ids)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    for job in jobs:
        await _note(kling, job, bill)
    return _compared(jobs, bill, since)


def _paid(ledger: LedgerName, batch: str) -> list[_Job]:
    """The jobs of a batch that were ever accepted."""
    jobs = {row.key: _Job(row) for row in rows_of(ledger, batch=batch)}
    for step in steps_of(ledger, batch=batch):
        # Others may have written more in between.
        if step.prediction_id is not None and step.key in jobs:
            jobs[step.key].ids.setdefault(step.prediction_id, step.at)
    return [job for job in jobs.values() if job.ids]


async def _note(kling: KlingSession, job: _Job, bill: _Bill) -> None:
    """Write down what was given back for a job."""
    refunded = sum((usd for id_ in job.ids for usd in bill.amounts(id_, "refund")), Decimal(0))
    if refunded <= (job.row.refunded or 0):
        return
    found = await engine_of(kling).ledger.find(job.row.batch, job.row.key)
    if found is None or found[0].state in OPEN:
        return
    # It stays where it stands, since when it stands there.
    row = found[0]
    step = Entry(
        batch=row.batch,
        key=row.key,
        state=row.state,
        at=row.updated_at,
        refunded=refunded,
        expected_version=row.version,
    )
    try:
        job.row = await engine_of(kling).ledger.record(step)
    except NotInHandError:
        pass  # another worker still saves it, say: the next run notes what was given back
    except LedgerError:
        found = await engine_of(kling).ledger.find(row.batch, row.key)
        if found is not None and found[0].version == row.version:
            raise
        # It has moved on, being sent again, say: the same.


def _compared(jobs: list[_Job], bill: _Bill, since: float) -> Audit:
    predictions = billed = 0
    deducted = difference = refunded = refundable = Decimal(0)
    for job in jobs:
        cost = job.row.cost
        refunded += job.row.refunded or 0
        if job.due and cost is not None:
            given = sum(bool(bill.amounts(id_, "refund")) for id_ in job.ids)
            refundable += cost * max(0, job.row.failures - given)
        for id_, at in job.ids.items():
            if at < since:
                continue
            predictions += 1
            amounts = bill.amounts(id_, "deduct")
            if amounts:
                billed += 1
                deducted += sum(amounts)
                difference += 0 if cost is None else sum(amounts) - cost
    return Audit(
        predictions=predictions,
        billed=billed,
        deducted=deducted,
        difference=difference,
        refunded=refunded,
        refundable=refundable,
    )

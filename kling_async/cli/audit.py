"""Compare a batch with the service's bill. Refunds are recorded in the ledger, where later budgets count them."""

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

READ_TIMEOUT_S: Final = 15.0
"""Real seconds that reading the bill may take; predictions not read by then are left out."""
_MAX_CONCURRENT_READS: Final = 8


@attrs.frozen(kw_only=True)
class Audit:
    """Comparison of a batch with the bill.

    Attributes:
        predictions: Number of predictions accepted since the given time.
        billed: Number of these found on the bill.
        deducted: USD deducted for `billed`.
        difference: USD by which `deducted` is above list price, of predictions that have a list price.
        refunded: USD refunded for jobs of the batch, at any time.
        refundable: USD of failed predictions that were not refunded yet.
    """

    predictions: int
    billed: int
    deducted: Decimal
    difference: Decimal
    refunded: Decimal
    refundable: Decimal


@attrs.define
class _Job:
    """A paid job.

    Attributes:
        row: Row of the job.
        ids: Time at which each of its predictions was first recorded, by id.
    """

    row: Row
    ids: dict[str, float] = attrs.field(factory=dict)

    @property
    def due(self) -> bool:
        """True if the service may refund more than the ledger has recorded."""
        return self.row.cost is not None and (self.row.refunded or 0) < self.row.cost * self.row.failures


class _Bill:
    """Lines of the bill, by prediction."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Billing]] = {}

    async def read(self, kling: KlingSession, ids: list[str]) -> None:
        """Read the lines of predictions, several pages concurrently."""
        limit = anyio.CapacityLimiter(_MAX_CONCURRENT_READS)

        async def read_page(page: list[str]) -> None:
            async with limit:
                for line in await engine_of(kling).money.prices.bill(page):
                    self._lines.setdefault(line.prediction_id or "", []).append(line)

        async with anyio.create_task_group() as tasks:
            for start in range(0, len(ids), MAX_IDS_PER_PAGE):
                tasks.start_soon(read_page, ids[start : start + MAX_IDS_PER_PAGE])

    def amounts(self, id_: str, kind: str) -> list[Decimal]:
        """Return the amounts of a prediction: deductions (`deduct`) or refunds (`refund`)."""
        return [line.price for line in self._lines.get(id_, ()) if line.kind == kind]


async def audit(kling: KlingSession, ledger: LedgerName, batch: str, *, since: float) -> Audit:
    """Compare a batch with the bill, and record refunds.

    Args:
        kling: The session, open, which writes the ledger.
        ledger: Name of the ledger.
        batch: Name of the batch.
        since: Seconds since the epoch; predictions accepted later are compared. Refunds are looked up for every
            failed job.

    Raises:
        UnsupportedError: The provider has no bill.
        ApiError: The service returned an error.
        TransportError: The service could not be reached.
    """
    # A query waits for buffered records, so that the file has them when it is read below.
    await engine_of(kling).ledger.spent(batch)
    jobs: list[_Job] = []
    bill = _Bill()
    with anyio.move_on_after(READ_TIMEOUT_S):
        jobs = await anyio.to_thread.run_sync(_paid, ledger, batch, abandon_on_cancel=True)
        # Failed jobs first, in case of the timeout.
        ids = [id_ for job in jobs if job.due for id_ in job.ids]
        ids += [id_ for job in jobs for id_, at in job.ids.items() if at >= since and not job.due]
        try:
            await bill.read(kling, ids)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    for job in jobs:
        await _record_refund(kling, job, bill)
    return _compare(jobs, bill, since)


def _paid(ledger: LedgerName, batch: str) -> list[_Job]:
    """Return the jobs of a batch that were ever accepted."""
    jobs = {row.key: _Job(row) for row in rows_of(ledger, batch=batch)}
    for step in steps_of(ledger, batch=batch):
        # Another process may have added jobs since the rows were read.
        if step.prediction_id is not None and step.key in jobs:
            jobs[step.key].ids.setdefault(step.prediction_id, step.at)
    return [job for job in jobs.values() if job.ids]


async def _record_refund(kling: KlingSession, job: _Job, bill: _Bill) -> None:
    """Record a refund that the ledger does not have yet."""
    refunded = sum((usd for id_ in job.ids for usd in bill.amounts(id_, "refund")), Decimal(0))
    if refunded <= (job.row.refunded or 0):
        return
    found = await engine_of(kling).ledger.find(job.row.batch, job.row.key)
    if found is None or found[0].state in OPEN:
        return
    # State and time stay the same; only the refund is added.
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
        pass  # another worker has the job, perhaps saving it: the next run records the refund
    except LedgerError:
        found = await engine_of(kling).ledger.find(row.batch, row.key)
        if found is not None and found[0].version == row.version:
            raise
        # The job has changed, perhaps sent again: the next run records the refund.


def _compare(jobs: list[_Job], bill: _Bill, since: float) -> Audit:
    predictions = billed = 0
    deducted = difference = refunded = refundable = Decimal(0)
    for job in jobs:
        cost = job.row.cost
        refunded += job.row.refunded or 0
        if job.due and cost is not None:
            refunds = sum(bool(bill.amounts(id_, "refund")) for id_ in job.ids)
            refundable += cost * max(0, job.row.failures - refunds)
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

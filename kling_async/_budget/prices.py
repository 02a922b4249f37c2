"""Prices of jobs, and their reservation in budgets."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio

from kling_async._core.answers import Kind as AnswerKind
from kling_async._core.budget import Reservation, reserve
from kling_async._core.prices import Certainty, Kind
from kling_async._log import log
from kling_async.errors import (
    ApiError,
    BudgetExceededError,
    KlingError,
    PriceUnknownError,
    ProtocolError,
    TransportError,
    UnsupportedError,
)
from kling_async.providers.protocol import account_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kling_async._core.account import Billing, ServicePrice
    from kling_async._core.budget import Budget, Origin
    from kling_async._core.clock import Clock
    from kling_async._core.http import HttpResponse
    from kling_async._core.job import Job
    from kling_async._http.reads import Reads
    from kling_async.providers import Provider

PRICE_RETRY_S = 60.0
"""Seconds for which a price that could not be read is not asked again: jobs wait for it one after the other."""
REFUND_CHECK_INTERVAL_S = 60.0
"""Least number of seconds between two reads of the bill for refunds."""
MAX_IDS_PER_PAGE = 50
"""Predictions per read of the bill: a deduction and a refund of each fill one page."""
MAX_BILL_PAGES = 4
"""Greatest number of pages read per group of ids, because a service that ignores the ids lists its whole bill."""


class Prices:
    """Prices and reservations of one session.

    Args:
        provider: Has prices and bills, where it offers them.
        clock: The session's clock.
        reads: Reads prices and bills.
        record_refund: Records a refund of a job, in USD.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        clock: Clock,
        reads: Reads,
        record_refund: Callable[[Origin, Decimal], Awaitable[None]],
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._reads = reads
        self._record_refund = record_refund
        self._prices: dict[Kind, ServicePrice] = {}
        # The error of the last read of a price, and the monotonic time until which it is not read again.
        self._unreadable: dict[Kind, tuple[KlingError, float]] = {}
        # Replies to requests that are the same for every job, such as a public list of prices.
        self._lists: dict[str, HttpResponse] = {}
        self._price_lock = anyio.Lock()
        self._refund_lock = anyio.Lock()
        self._refunds_read_at = -REFUND_CHECK_INTERVAL_S

    async def reserve(self, job: Job, budgets: Sequence[Budget], origin: Origin, *, wait: bool = True) -> Reservation:
        """Reserve a job's price in all of the budgets.

        Args:
            job: The job.
            budgets: The budgets.
            origin: The job's row.
            wait: Whether to wait for money that other jobs may release. A job with a slot must not wait: the others may
                be waiting for the slot.

        Raises:
            BudgetExceededError: A budget does not cover the job.
            PriceUnknownError: Neither the catalogue nor the service has a price.
        """
        if not budgets:
            return Reservation((), Decimal(0))
        usd = await self.price(job, estimate=all(budget.allow_estimate for budget in budgets))
        while True:
            try:
                found = reserve(budgets, usd, origin)
            except BudgetExceededError:
                if await self._refunded(budgets):
                    continue
                raise
            if isinstance(found, Reservation):
                return found
            if not wait:
                raise found.exceeded_error(usd)
            changed = asyncio.Event()
            stop = found.on_next_change(changed.set)
            try:
                await changed.wait()
            finally:
                stop()

    async def price(self, job: Job, *, estimate: bool) -> Decimal:
        """Return a job's price in USD: stated by the vendor's page, else reported by the service, else estimated.

        Args:
            job: The job.
            estimate: Whether to use the catalogue's estimate if the service reports no price.

        Raises:
            PriceUnknownError: Neither the catalogue nor the service has a price.
        """
        listed = job.price(self._provider.name)
        if listed.usd is not None and listed.certainty is Certainty.STATED:
            return listed.usd
        found = await self._known_price(job)
        if isinstance(found, Decimal):
            return found
        if estimate and listed.usd is not None:
            log.info("the price of %s is estimated, because the service reports none: %s", job.model, found.message)
            return listed.usd
        raise PriceUnknownError(
            f"the price of {job.model} at {self._provider.name} is unknown: no page states it, and the "
            f"service reports none: {found.message}",
            job=job,
        ) from found

    async def service_price(self, job: Job) -> ServicePrice:
        """Return the service's price of a job, read once for each kind of job.

        Raises:
            UnsupportedError: The provider does not report it.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        async with self._price_lock:
            return await self._read_price(job, job.kind)

    async def _known_price(self, job: Job) -> Decimal | KlingError:
        """Return the service's price in USD, or the error of the last read, which is repeated after a pause."""
        kind = job.kind
        async with self._price_lock:
            failed = None if kind in self._prices else self._unreadable.get(kind)
            if failed is not None and self._clock.monotonic() < failed[1]:
                return failed[0]
            try:
                priced = await self._read_price(job, kind)
            except (ApiError, TransportError, UnsupportedError) as error:
                self._unreadable[kind] = error.with_traceback(None), self._clock.monotonic() + PRICE_RETRY_S
                return error
        if priced.currency != "USD":
            return UnsupportedError(f"the service's price is in {priced.currency}, and budgets are in USD")
        if priced.discounted < 0:
            return UnsupportedError(f"the service's price is {priced.discounted} USD, expected at least 0")
        return priced.discounted

    async def _read_price(self, job: Job, kind: Kind) -> ServicePrice:
        if kind not in self._prices:
            provider = account_of(self._provider, "price")
            request = provider.price(job)
            if request.method != "GET":
                self._prices[kind] = await self._reads.read(request, lambda reply: provider.read_price(reply, job))
                return self._prices[kind]

            def parse(reply: HttpResponse) -> HttpResponse:
                try:
                    provider.read_price(reply, job)
                except ProtocolError:
                    # It may have the prices of other jobs.
                    if not _is_object(reply):
                        raise
                return reply

            if request.url not in self._lists:
                self._lists[request.url] = await self._reads.read(request, parse)
            self._prices[kind] = provider.read_price(self._lists[request.url], job)
        return self._prices[kind]

    async def _refunded(self, budgets: Sequence[Budget]) -> bool:
        """Read the bill for refunds of failed predictions; return whether a reservation may succeed now."""
        read_at = self._refunds_read_at
        async with self._refund_lock:
            if read_at != self._refunds_read_at:
                # Another job has just read it.
                return True
            failed = {id_: origin for budget in budgets for id_, origin in budget.failed.items()}
            if not failed or self._clock.monotonic() - self._refunds_read_at < REFUND_CHECK_INTERVAL_S:
                return False
            self._refunds_read_at = self._clock.monotonic()
            try:
                found = [line for line in await self.bill(sorted(failed)) if line.kind == "refund"]
            except (ApiError, TransportError, UnsupportedError) as error:
                log.warning("the account's bill could not be read for refunds: %s", error.message)
                return False
            refunds: defaultdict[str, Decimal] = defaultdict(Decimal)
            for line in found:
                if line.prediction_id is not None:
                    refunds[line.prediction_id] += line.price
            for prediction_id, usd in refunds.items():
                for budget in budgets:
                    budget.refund(prediction_id, usd)
                origin = failed[prediction_id]
                if origin is not None:
                    await self._record_refund(origin, usd)
            return bool(found)

    async def bill(self, prediction_ids: Sequence[str]) -> list[Billing]:
        """Return the lines of the bill about predictions.

        Args:
            prediction_ids: Ids of the predictions.

        Raises:
            UnsupportedError: The provider has no bill.
            ApiError: The service refused.
            TransportError: There was no reply.
        """
        provider = account_of(self._provider, "billings")
        lines: list[Billing] = []
        for start in range(0, len(prediction_ids), MAX_IDS_PER_PAGE):
            some = frozenset(prediction_ids[start : start + MAX_IDS_PER_PAGE])
            for page in range(1, MAX_BILL_PAGES + 1):
                request = provider.billings(page=page, page_size=2 * MAX_IDS_PER_PAGE, prediction_ids=sorted(some))
                read = await self._reads.read(request, provider.read_billings, AnswerKind.PAGE)
                # A service may ignore the ids and list other predictions.
                lines += [line for line in read.items if line.prediction_id in some]
                if read.size < 2 * MAX_IDS_PER_PAGE:
                    break
        return lines


def _is_object(reply: HttpResponse) -> bool:
    """Return whether a reply is a JSON object, and not the page of a portal."""
    try:
        return isinstance(json.loads(reply.body), dict)
    except (ValueError, RecursionError):
        return False

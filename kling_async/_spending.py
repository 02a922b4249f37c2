"""What jobs cost, and whether there is money for them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio

from ._core.budget import Reservation, reserve
from ._core.catalogue import Certainty
from ._core.errors import ApiError, BudgetExceededError, PriceUnknownError, TransportError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._core.account import Billing
    from ._core.budget import Budget, Origin
    from ._core.clock import Clock
    from ._core.http import HttpRequest, HttpResponse
    from ._core.job import Job
    from .providers import Provider

log = logging.getLogger("kling_async")

BETWEEN = 60.0
"""Seconds between two looks at the bill for what was given back."""
IDS_AT_ONCE = 50
"""Predictions that one page of the bill is asked about: what was deducted and what was given back fill it."""
PAGES = 4
"""Pages after which a bill is not read further: a service that ignores the ids would show all of it."""


class Spending:
    """Prices and reservations of one session.

    Args:
        provider: Says prices and bills, where it does.
        clock: The session's clock.
        ask: Sends a read.
        given_back: Is told what the service gave back, and of what.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        clock: Clock,
        ask: Callable[[HttpRequest], Awaitable[HttpResponse]],
        given_back: Callable[[Origin, Decimal], Awaitable[None]],
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._ask = ask
        self._given_back = given_back
        self._told: dict[tuple[str, int, bool], Decimal] = {}
        self._asking = anyio.Lock()
        self._looking = anyio.Lock()
        self._looked_at = -BETWEEN

    async def reserve(self, job: Job, budgets: Sequence[Budget], origin: Origin, *, wait: bool = True) -> Reservation:
        """What the job costs, set aside in all of the budgets.

        Args:
            job: The job.
            budgets: The budgets.
            origin: The job's row.
            wait: Whether to wait for what other jobs may give back. Whoever has a slot must not: they may wait for it.

        Raises:
            BudgetExceededError: One of them is used up.
            PriceUnknownError: Nobody tells what the job costs.
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
                raise found.exceeded(usd)
            changed = asyncio.Event()
            stop = found.listen(changed.set)
            try:
                await changed.wait()
            finally:
                stop()

    async def price(self, job: Job, *, estimate: bool) -> Decimal:
        """USD that a job costs: as a page of the vendor states it, else as the service says, else as estimated.

        Args:
            job: The job.
            estimate: Whether the catalogue's estimate will do when the service does not tell.

        Raises:
            PriceUnknownError: Nobody tells.
        """
        listed = job.price(self._provider.name)
        if listed.usd is not None and listed.certainty is Certainty.STATED:
            return listed.usd
        kind = (job.model, job.duration, bool(job.sound))
        async with self._asking:
            told = self._told.get(kind)
            if told is None:
                try:
                    told = self._provider.read_price(await self._ask(self._provider.price(job)), job).discounted
                except (ApiError, TransportError, UnsupportedError) as error:
                    if estimate and listed.usd is not None:
                        log.info("the price of %s is estimated: %s", job.model, error.message)
                        return listed.usd
                    raise PriceUnknownError(
                        f"no page states what {job.model} costs at {self._provider.name}, and the service does not "
                        f"tell: {error.message}",
                        job=job,
                    ) from error
                self._told[kind] = told
        return told

    async def _refunded(self, budgets: Sequence[Budget]) -> bool:
        """Whether the service may have given something back since the last look."""
        looked_at = self._looked_at
        async with self._looking:
            if looked_at != self._looked_at:
                # Somebody else has just looked.
                return True
            failed = {id_: origin for budget in budgets for id_, origin in budget.failed.items()}
            if not failed or self._clock.monotonic() - self._looked_at < BETWEEN:
                return False
            self._looked_at = self._clock.monotonic()
            try:
                found = [line for line in await self.bill(sorted(failed)) if line.kind == "refund"]
            except (ApiError, TransportError, UnsupportedError) as error:
                log.warning("the bill could not be read for what was given back: %s", error.message)
                return False
            given_back: defaultdict[str, Decimal] = defaultdict(Decimal)
            for line in found:
                if line.prediction_id is not None:
                    given_back[line.prediction_id] += line.price
            for prediction_id, usd in given_back.items():
                for budget in budgets:
                    budget.refund(prediction_id, usd)
                origin = failed[prediction_id]
                if origin is not None:
                    await self._given_back(origin, usd)
            return bool(found)

    async def bill(self, prediction_ids: Sequence[str]) -> list[Billing]:
        """The lines of the bill about predictions.

        Raises:
            UnsupportedError: The provider shows no bill.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        lines: list[Billing] = []
        for start in range(0, len(prediction_ids), IDS_AT_ONCE):
            some = frozenset(prediction_ids[start : start + IDS_AT_ONCE])
            for page in range(1, PAGES + 1):
                request = self._provider.billings(page=page, page_size=2 * IDS_AT_ONCE, prediction_ids=sorted(some))
                read = self._provider.read_billings(await self._ask(request))
                # A service that ignores the ids must not be taken at its word.
                lines += [line for line in read.items if line.prediction_id in some]
                if read.size < 2 * IDS_AT_ONCE:
                    break
        return lines

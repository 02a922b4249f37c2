"""Reservations of a session's jobs in its budgets."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

import attrs

from kling_async._core.budget import Budget, Cap, Origin, Reservation
from kling_async._core.states import Entry, State
from kling_async.errors import LedgerError, PriceUnknownError

from .prices import Prices

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from kling_async._core.clock import Clock
    from kling_async._core.http import HttpRequest, HttpResponse
    from kling_async._core.job import Job
    from kling_async.ledger import Ledger
    from kling_async.providers import Provider

log = logging.getLogger("kling_async")


class Reservations:
    """The reservations of a session's jobs, by batch and key: for requests on their way, or in doubt.

    Args:
        provider: Has prices and bills, where it offers them.
        clock: The session's clock.
        ask: Sends a read.
        ledger: Has what was spent before, and records refunds.
        origin: Equal for all sessions over the same rows.
        budget: The session's budget, beside those of batches; None without one.

    Attributes:
        prices: Prices of jobs.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        clock: Clock,
        ask: Callable[[HttpRequest], Awaitable[HttpResponse]],
        ledger: Ledger,
        origin: object,
        budget: Budget | None,
    ) -> None:
        self.prices = Prices(provider=provider, clock=clock, ask=ask, record_refund=self._record_refund)
        self._ledger = ledger
        self._rows_of = origin
        self._budget = budget
        self._of: dict[tuple[str, str], tuple[Reservation, ...]] = {}
        # Parts of the ledger that are counted, the whole (None) or a batch, each with the budget.
        self._counted: set[tuple[str | None, Budget]] = set()
        # USD by job, over all of its predictions.
        self._refunded: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)

    async def recall(
        self, batch: str | None, budget: Budget | None = None, *, claimed: Container[tuple[str, str]]
    ) -> None:
        """Count once, in its budgets, what the ledger has of a batch as spent and as possibly spent.

        Args:
            batch: Name of the batch; None counts the whole ledger.
            budget: The batch's budget, beside that of the session.
            claimed: Jobs that are being submitted: their money is reserved already.

        Raises:
            LedgerError: It cannot be read.
        """
        for each in dict.fromkeys((self._budget, budget)):
            if each is not None:
                await self._recall(each, batch, claimed)

    async def _recall(self, budget: Budget, batch: str | None, claimed: Container[tuple[str, str]]) -> None:
        ledger, which = self._ledger, self._rows_of
        part = budget.scope(which, batch)
        if (part, budget) in self._counted:
            return
        in_doubt = {
            Origin(which, row.batch, row.key): row
            for row in await ledger.rows([State.UNCERTAIN])
            if part in {None, row.batch}
        }
        settled: list[Reservation] = []
        for origin, reservation in budget.doubts.items():
            if origin.ledger == which and part in {None, origin.batch} and origin not in in_doubt:
                found = await ledger.find(origin.batch, origin.key)
                state = State.INTENT if found is None else found[0].state
                if not (state.in_doubt or state is State.ABANDONED):
                    settled.append(reservation)
        spent = await ledger.spent(part)
        # Without an await from here on, so that a cancellation cannot count half of it.
        self._counted.add((part, budget))
        if ledger.durable:
            budget.count_ledger(which, part, spent)
        for reservation in settled:
            if reservation.doubtful:
                # It was settled elsewhere, and is counted as the ledger has it.
                reservation.release()
        for origin, row in in_doubt.items():
            name = (row.batch, row.key)
            if row.cost is None or name in claimed:
                continue
            reservation = budget.doubts.get(origin) or Reservation([budget], row.cost, origin)
            reservation.hold()
            if reservation not in self.of(name):
                self._of[name] = (*self.of(name), reservation)

    def of(self, name: tuple[str, str]) -> tuple[Reservation, ...]:
        """Return the reservations of a job."""
        return self._of.get(name, ())

    def caps(self, batch: str, reserved: tuple[Reservation, ...]) -> list[Cap]:
        """Return the caps that hold for a job over a ledger that other processes share."""
        caps = []
        for budget in dict.fromkeys(each for reservation in reserved for each in reservation.budgets):
            parts = {part for part, each in self._counted if each is budget}
            batches = {batch, *(part for part in parts if part is not None)}
            caps.append(Cap(budget.usd, None if None in parts else tuple(sorted(batches))))
        return caps

    async def reserve(self, name: tuple[str, str], job: Job, budget: Budget | None) -> tuple[Reservation, ...]:
        """Reserve a job's price in every budget where it is not reserved yet, and return its reservations.

        Raises:
            BudgetExceededError: One of them is used up.
            PriceUnknownError: Neither the catalogue nor the service has a price.
        """
        budgets = self._uncovered(name, budget)
        if budgets:
            reservation = await self.prices.reserve(job, budgets, self._origin(name))
            self._of[name] = (*self.of(name), reservation)
        return self.of(name)

    async def reserve_again(
        self, name: tuple[str, str], job: Job, money: tuple[Reservation, ...]
    ) -> tuple[Reservation, ...]:
        """Reserve the price of a job with a slot once more: an earlier request of it may have been paid for.

        Raises:
            BudgetExceededError: A budget is used up.
            PriceUnknownError: Neither the catalogue nor the service has a price.
        """
        budgets = list(dict.fromkeys(budget for reservation in money for budget in reservation.budgets))
        for reservation in money:
            reservation.hold()
        if budgets:
            money = self._of[name] = (await self.prices.reserve(job, budgets, self._origin(name), wait=False),)
        return money

    async def resume(self, name: tuple[str, str], job: Job, budget: Budget | None) -> None:
        """Reserve the price of a job in doubt that is about to be settled, so that others wait for the result."""
        budgets = self._uncovered(name, budget)
        if budgets:
            # A job may have been sent without a known price.
            with contextlib.suppress(PriceUnknownError):
                usd = await self.prices.price(job, estimate=all(each.allow_estimate for each in budgets))
                self._of[name] = (*self.of(name), Reservation(budgets, usd, self._origin(name)))
        for reservation in self.of(name):
            reservation.resume()

    def settle(self, name: tuple[str, str], *, accepted: bool) -> None:
        """Settle a job that was in doubt; its reservations stay with its caller."""
        for reservation in self.of(name):
            reservation.doubtful = False
            if accepted:
                reservation.commit()

    def release(self, name: tuple[str, str]) -> None:
        """Release the reservations of a job, but hold what may have been paid for."""
        money = self._of.pop(name, ())
        for reservation in money:
            reservation.close()
        held = tuple(reservation for reservation in money if reservation.held)
        if held:
            self._of[name] = held

    def _uncovered(self, name: tuple[str, str], budget: Budget | None) -> list[Budget]:
        """Return the budgets in which nothing is reserved for a job."""
        covered = {each for reservation in self.of(name) for each in reservation.budgets}
        return [each for each in dict.fromkeys((self._budget, budget)) if each is not None and each not in covered]

    def _origin(self, name: tuple[str, str]) -> Origin:
        """Return the row that a job's money is spent for."""
        return Origin(self._rows_of, *name)

    async def _record_refund(self, origin: Origin, usd: Decimal) -> None:
        """Record a refund of a job. Refunds that other processes saw are found by the audit."""
        name = (origin.batch, origin.key)
        if origin.ledger != self._rows_of:
            # Of another session over another ledger that shares the budget.
            return
        self._refunded[name] += usd
        try:
            found = await self._ledger.find(*name)
            if found is None or found[0].state is State.INTENT or self._refunded[name] <= (found[0].refunded or 0):
                return
            row = found[0]
            step = Entry(batch=row.batch, key=row.key, state=row.state, at=row.updated_at, expected_version=row.version)
            await self._ledger.record(attrs.evolve(step, refunded=self._refunded[name]))
        except LedgerError as error:
            log.warning("the refund of job %s could not be recorded: %s", origin.key, error.message)

"""Reservations of a session's jobs in its budgets."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio

from kling_async._core.budget import Budget, CallerBudget, Cap, Origin, Reservation
from kling_async._core.states import MAYBE_ACCEPTED, Entry, State
from kling_async._log import log
from kling_async.errors import LedgerError, PriceUnknownError

from .prices import Prices

if TYPE_CHECKING:
    from collections.abc import Container

    from kling_async._core.clock import Clock
    from kling_async._core.job import Job
    from kling_async._http.reads import Reads
    from kling_async.ledger import Ledger
    from kling_async.limits import Callers
    from kling_async.providers import Provider


class Reservations:
    """The reservations of a session's jobs, by batch and key: of requests in flight and of submissions in doubt.

    Args:
        provider: Has prices and bills, where it offers them.
        clock: The session's clock.
        reads: Reads prices and bills.
        ledger: Has earlier costs, and records refunds.
        ledger_identity: Identity of the ledger's rows: equal for all sessions over the same rows.
        budget: The session's budget, beside those of batches; None without one.
        callers: Limits of the callers, who may have budgets of their own.

    Attributes:
        prices: Prices of jobs.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        clock: Clock,
        reads: Reads,
        ledger: Ledger,
        ledger_identity: object,
        budget: Budget | None,
        callers: Callers,
    ) -> None:
        self.prices = Prices(provider=provider, clock=clock, reads=reads, record_refund=self._record_refund)
        self._ledger = ledger
        self._ledger_identity = ledger_identity
        self.budget = budget
        self._callers = callers
        self._of_callers: dict[str, CallerBudget] = {}
        self._counting = anyio.Lock()
        self._reserved: dict[tuple[str, str], tuple[Reservation, ...]] = {}
        # The parts of the ledger (a batch; None for the whole) counted in each budget.
        self._counted: set[tuple[str | None, Budget]] = set()
        # USD refunded by job, over all of its predictions.
        self._refunded: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._awaited: dict[tuple[str, str], asyncio.Event] = {}

    async def recall(
        self, batch: str | None, budget: Budget | None = None, *, claimed: Container[tuple[str, str]]
    ) -> None:
        """Count the spent and the possibly spent money of a batch in its budgets, once.

        Args:
            batch: Name of the batch; None counts the whole ledger.
            budget: The batch's budget, beside that of the session.
            claimed: Jobs that are being submitted, whose money is reserved already.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        for each in dict.fromkeys((self.budget, budget)):
            if each is not None:
                await self._recall(each, batch, claimed)

    async def _recall(self, budget: Budget, batch: str | None, claimed: Container[tuple[str, str]]) -> None:
        ledger, identity = self._ledger, self._ledger_identity
        part = budget.scope(identity, batch)
        if (part, budget) in self._counted:
            return
        caller = budget.caller if isinstance(budget, CallerBudget) else None
        in_doubt = {
            Origin(identity, row.batch, row.key): row
            for row in await ledger.rows([State.UNCERTAIN])
            if part in {None, row.batch} and caller in {None, row.caller}
        }
        settled: list[Reservation] = []
        for origin, reservation in budget.doubts.items():
            if origin.ledger == identity and part in {None, origin.batch} and origin not in in_doubt:
                found = await ledger.find(origin.batch, origin.key)
                if found is not None and found[0].state not in MAYBE_ACCEPTED:
                    settled.append(reservation)
        spent = await (ledger.spent(part) if caller is None else ledger.spent(part, caller=caller))
        # No await from here on, so that a cancellation cannot leave it half counted.
        self._counted.add((part, budget))
        if ledger.durable:
            budget.count_ledger(identity, part, spent)
        for reservation in settled:
            if reservation.doubtful:
                # Settled by another process, and counted as the ledger has it.
                reservation.release()
        for origin, row in in_doubt.items():
            name = (row.batch, row.key)
            if row.cost is None or name in claimed:
                continue
            reservation = budget.doubts.get(origin) or Reservation([budget], row.cost, origin)
            reservation.hold()
            if reservation not in self.of(name):
                self._reserved[name] = (*self.of(name), reservation)

    def counts(self, budget: Budget | None, caller: str) -> bool:
        """Return whether there is a budget in which jobs count.

        Args:
            budget: The batch's budget, beside that of the session.
            caller: Name of the caller, who may have one too.
        """
        return budget is not None or self.budget is not None or self._callers.limits(caller).usd is not None

    def of(self, name: tuple[str, str]) -> tuple[Reservation, ...]:
        """Return the reservations of a job."""
        return self._reserved.get(name, ())

    def caps(self, batch: str, reserved: tuple[Reservation, ...]) -> list[Cap]:
        """Return the budgets' limits for a job, as conditions that a shared ledger checks for all processes.

        Args:
            batch: Name of the batch.
            reserved: Reservations of the job.
        """
        caps = []
        for budget in dict.fromkeys(each for reservation in reserved for each in reservation.budgets):
            if isinstance(budget, CallerBudget):
                caps.append(Cap(budget.usd, None, budget.caller))
                continue
            parts = {part for part, each in self._counted if each is budget}
            batches = {batch, *(part for part in parts if part is not None)}
            caps.append(Cap(budget.usd, None if None in parts else tuple(sorted(batches))))
        return caps

    async def reserve(self, name: tuple[str, str], job: Job, budget: Budget | None) -> tuple[Reservation, ...]:
        """Reserve a job's price in every budget where it is not reserved yet, and return its reservations.

        Raises:
            BudgetExceededError: A budget does not cover the job.
            PriceUnknownError: Neither the catalogue nor the service has a price.
        """
        budgets = self._budgets_without_reservation(name, budget, await self._budget_of(job.caller))
        if budgets:
            reservation = await self.prices.reserve(job, budgets, self._origin(name))
            self._reserved[name] = (*self.of(name), reservation)
            if name in self._awaited:
                self._awaited.pop(name).set()
        return self.of(name)

    async def until_reserved(self, name: tuple[str, str]) -> None:
        """Return once the price of a job that is being submitted is reserved, or its submission has ended."""
        if not self.of(name):
            await self._awaited.setdefault(name, asyncio.Event()).wait()

    async def reserve_again(
        self, name: tuple[str, str], job: Job, money: tuple[Reservation, ...]
    ) -> tuple[Reservation, ...]:
        """Reserve the price of a job a second time, because its first request may have been paid for.

        Raises:
            BudgetExceededError: A budget does not cover it.
            PriceUnknownError: Neither the catalogue nor the service has a price.
        """
        budgets = list(dict.fromkeys(budget for reservation in money for budget in reservation.budgets))
        for reservation in money:
            reservation.hold()
        if budgets:
            money = self._reserved[name] = (await self.prices.reserve(job, budgets, self._origin(name), wait=False),)
        return money

    async def resume(self, name: tuple[str, str], job: Job, budget: Budget | None) -> None:
        """Reserve the price of a job in doubt before it is settled, so that other jobs wait for the result."""
        budgets = self._budgets_without_reservation(name, budget, await self._budget_of(job.caller))
        if budgets:
            # A job may have been sent without a known price.
            with contextlib.suppress(PriceUnknownError):
                usd = await self.prices.price(job, estimate=all(each.allow_estimate for each in budgets))
                self._reserved[name] = (*self.of(name), Reservation(budgets, usd, self._origin(name)))
        for reservation in self.of(name):
            reservation.resume()

    def settle(self, name: tuple[str, str], *, accepted: bool) -> None:
        """Mark the reservations of a job as no longer in doubt, and as spent if it was accepted."""
        for reservation in self.of(name):
            reservation.doubtful = False
            if accepted:
                reservation.commit()

    def release(self, name: tuple[str, str]) -> None:
        """Release the reservations of a job, except those that may have been paid for."""
        if self._awaited and name in self._awaited:
            self._awaited.pop(name).set()
        money = self._reserved.pop(name, ())
        for reservation in money:
            reservation.close()
        held = tuple(reservation for reservation in money if reservation.held)
        if held:
            self._reserved[name] = held

    async def _budget_of(self, caller: str) -> CallerBudget | None:
        """Return the budget of a caller, with what the ledger has of it counted; None without one.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        if not self._callers.limited:
            return None
        found = self._of_callers.get(caller)
        if found is None and (budget := self._callers.limits(caller).budget(caller)) is not None:
            async with self._counting:
                if caller not in self._of_callers:
                    await self._recall(budget, None, ())
                    self._of_callers[caller] = budget
                found = self._of_callers[caller]
        return found

    def _budgets_without_reservation(self, name: tuple[str, str], *budgets: Budget | None) -> list[Budget]:
        """Return the budgets, with the session's, in which nothing is reserved for a job."""
        covered = {each for reservation in self.of(name) for each in reservation.budgets}
        given = dict.fromkeys((self.budget, *budgets))
        return [each for each in given if each is not None and each not in covered]

    def _origin(self, name: tuple[str, str]) -> Origin:
        """Return the identity of a job's row."""
        return Origin(self._ledger_identity, *name)

    async def _record_refund(self, origin: Origin, usd: Decimal) -> None:
        """Record a refund of a job in its row. `kling-async audit` finds refunds that no session has recorded."""
        name = (origin.batch, origin.key)
        if origin.ledger != self._ledger_identity:
            # A job of another session, with another ledger and the same budget.
            return
        self._refunded[name] += usd
        try:
            found = await self._ledger.find(*name)
            if found is None:
                return
            row = found[0]
            # An intent must not follow an intent: the sum is recorded with the job's next refund.
            if row.state is not State.INTENT and self._refunded[name] > (row.refunded or 0):
                await self._ledger.record(
                    Entry(
                        batch=row.batch,
                        key=row.key,
                        state=row.state,
                        at=row.updated_at,
                        refunded=self._refunded[name],
                        expected_version=row.version,
                    )
                )
        except LedgerError as error:
            log.warning("the refund of job %s could not be recorded in the ledger: %s", origin.key, error.message)

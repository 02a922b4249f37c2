"""What a session has set aside for its jobs, and in which budgets."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

import attrs

from ._core.budget import Budget, Cap, Origin, Reservation
from ._core.errors import LedgerError, PriceUnknownError
from ._core.states import Entry, State
from ._spending import Spending

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable

    from ._core.clock import Clock
    from ._core.http import HttpRequest, HttpResponse
    from ._core.job import Job
    from .ledger import Ledger
    from .providers import Provider

log = logging.getLogger("kling_async")


class Money:
    """The money of a session's jobs, by batch and key: on its way, or in doubt.

    Args:
        provider: Says prices and bills, where it does.
        clock: The session's clock.
        ask: Sends a read.
        ledger: Has what was spent before, and is told what is given back.
        origin: The same for every session over the same rows.
        budget: What all of it may cost, beside what a batch may.
        under_way: How many hold a job's name: they have seen to its money.

    Attributes:
        spending: Says what jobs cost.
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
        under_way: Counter[tuple[str, str]],
    ) -> None:
        self.spending = Spending(provider=provider, clock=clock, ask=ask, given_back=self._given_back)
        self._ledger = ledger
        self._rows_of = origin
        self._budget = budget
        self._under_way = under_way
        self._of: dict[tuple[str, str], tuple[Reservation, ...]] = {}
        # What is counted of the ledger, the whole or a batch of it, and in which budget.
        self._counted: set[tuple[str | None, Budget]] = set()
        # By job, over all of its predictions.
        self._refunded: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)

    async def recall(self, batch: str | None, budget: Budget | None = None) -> None:
        """Count, once in this session, what a batch's ledger says was spent and what it says may have been.

        Args:
            batch: The batch; None counts all of the ledger.
            budget: The batch's, beside that of the session.

        Raises:
            LedgerError: It cannot be read.
        """
        for each in dict.fromkeys((self._budget, budget)):
            if each is not None:
                await self._recall(each, batch)

    async def _recall(self, budget: Budget, batch: str | None) -> None:
        ledger, which = self._ledger, self._rows_of
        part = budget.part(which, batch)
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
                if found is not None and found[0].state not in {State.INTENT, State.ABANDONED}:
                    settled.append(reservation)
        spent = await ledger.spent(part)
        # From here on nothing is waited for: it is counted whole or not at all.
        self._counted.add((part, budget))
        if ledger.durable:
            budget.recall(which, part, spent)
        for reservation in settled:
            if reservation.doubtful:
                # What became of it was found out elsewhere, and is counted as the ledger has it.
                reservation.release()
        for origin, row in in_doubt.items():
            name = (row.batch, row.key)
            if row.cost is None or self._under_way[name]:
                continue
            reservation = budget.doubts.get(origin) or Reservation([budget], row.cost, origin)
            reservation.hold()
            if reservation not in self.of(name):
                self._of[name] = (*self.of(name), reservation)

    def of(self, name: tuple[str, str]) -> tuple[Reservation, ...]:
        """What is set aside for a job."""
        return self._of.get(name, ())

    def caps(self, batch: str, money: tuple[Reservation, ...]) -> list[Cap]:
        """What limits a job of a batch whose ledger other processes share, by what is set aside for it."""
        caps = []
        for budget in dict.fromkeys(each for reservation in money for each in reservation.budgets):
            parts = {part for part, each in self._counted if each is budget}
            batches = {batch, *(part for part in parts if part is not None)}
            caps.append(Cap(budget.usd, None if None in parts else tuple(sorted(batches))))
        return caps

    async def reserve(self, name: tuple[str, str], job: Job, budget: Budget | None) -> tuple[Reservation, ...]:
        """The job's price, set aside in every budget; a job in doubt has its own in some of them already.

        Raises:
            BudgetExceededError: One of them is used up.
            PriceUnknownError: Nobody tells what the job costs.
        """
        budgets = self._uncovered(name, budget)
        if budgets:
            reservation = await self.spending.reserve(job, budgets, self._origin(name))
            self._of[name] = (*self.of(name), reservation)
        return self.of(name)

    async def reserve_again(
        self, name: tuple[str, str], job: Job, money: tuple[Reservation, ...]
    ) -> tuple[Reservation, ...]:
        """The price of a job that has a slot, once more: what was sent for it may have been paid for.

        Raises:
            BudgetExceededError: A budget is used up.
            PriceUnknownError: Nobody tells what the job costs.
        """
        budgets = list(dict.fromkeys(budget for reservation in money for budget in reservation.budgets))
        for reservation in money:
            reservation.hold()
        if budgets:
            money = self._of[name] = (await self.spending.reserve(job, budgets, self._origin(name), wait=False),)
        return money

    async def take_up(self, name: tuple[str, str], job: Job, budget: Budget | None) -> None:
        """Somebody finds out what became of a job in doubt: others may wait for what is set aside for it."""
        budgets = self._uncovered(name, budget)
        if budgets:
            # It may have been paid for when nobody knew its price.
            with contextlib.suppress(PriceUnknownError):
                usd = await self.spending.price(job, estimate=all(each.allow_estimate for each in budgets))
                self._of[name] = (*self.of(name), Reservation(budgets, usd, self._origin(name)))
        for reservation in self.of(name):
            reservation.take_up()

    def found_out(self, name: tuple[str, str], *, accepted: bool) -> None:
        """What became of it is known; what is set aside stays with who has it in hand."""
        for reservation in self.of(name):
            reservation.doubtful = False
            if accepted:
                reservation.commit()

    def let_go(self, name: tuple[str, str]) -> None:
        """Nobody has the job in hand any more; what may have been paid for stays set aside."""
        money = self._of.pop(name, ())
        for reservation in money:
            reservation.let_go()
        held = tuple(reservation for reservation in money if reservation.held)
        if held:
            self._of[name] = held

    def _uncovered(self, name: tuple[str, str], budget: Budget | None) -> list[Budget]:
        """The budgets in which nothing is set aside for the job."""
        covered = {each for reservation in self.of(name) for each in reservation.budgets}
        return [each for each in dict.fromkeys((self._budget, budget)) if each is not None and each not in covered]

    def _origin(self, name: tuple[str, str]) -> Origin:
        """What the job's money is spent for."""
        return Origin(self._rows_of, *name)

    async def _given_back(self, origin: Origin, usd: Decimal) -> None:
        """Write down what the service gave back for a job; what other processes saw of it, the audit finds."""
        name = (origin.batch, origin.key)
        if origin.ledger != self._rows_of:
            # Of another session over another ledger, with which this one shares a budget.
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
            log.warning("what was given back for job %s could not be written down: %s", origin.key, error.message)

"""Caps on spending in USD: reserved before a paid request, committed when it is accepted, released when it is not."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import TYPE_CHECKING

import attrs

from kling_async.errors import BudgetExceededError, CallerBudgetExceededError, ConfigurationError

from .prices import dollars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


@attrs.frozen
class Origin:
    """The ledger row for which an amount is spent.

    Attributes:
        ledger: Hashable identity of the ledger, equal for all sessions over the same rows.
        batch: Name of the batch; empty outside a batch.
        key: Key of the job.
    """

    ledger: object
    batch: str
    key: str


class _Stage(Enum):
    RESERVED = "reserved"
    HELD = "held"
    COMMITTED = "committed"
    RELEASED = "released"


class Budget:
    """A cap in USD on everything that it is passed to: sessions, batches, or both.

    A submission in doubt counts as paid until it is shown not to be. A failed prediction counts too, until the service
    refunds it, which may take hours: the service's bill is read when the budget is used up.

    Several sessions may use a budget, one after another or at once: rows of a shared ledger count once. Over a
    PostgreSQL ledger, the cap holds for all processes that pass the same cap: before every start, the ledger counts
    what each of them spent, is sending or has in doubt. The attributes then show only this process's amounts, and
    refunds count once they are in the ledger.

    Args:
        usd: The cap in USD: a `Decimal`, a text, or a number.
        allow_estimate: Whether to use the catalogue's estimate for a price that neither the vendor's pages nor the
            service states.

    Attributes:
        usd: The cap in USD.
        allow_estimate: Whether estimated prices are used.
        spent: USD of accepted jobs, less refunds.
        reserved: USD of requests on their way to the service.
        held: USD of submissions in doubt.

    Raises:
        ConfigurationError: The cap is not an amount.
    """

    def __init__(self, usd: Decimal | str | float, *, allow_estimate: bool = False) -> None:
        try:
            # Through its text, because the float 0.1 is not exactly 0.1.
            self.usd = Decimal(str(usd))
        except InvalidOperation:
            raise ConfigurationError(f"budget: expected an amount in USD, got {usd!r:.40}") from None
        if isinstance(usd, bool) or not self.usd.is_finite() or self.usd < 0:
            raise ConfigurationError(f"budget: expected an amount in USD, got {usd!r:.40}")
        self.allow_estimate = allow_estimate
        self.spent = Decimal(0)
        self.reserved = Decimal(0)
        self.held = Decimal(0)
        # USD counted per ledger: by batch, or under None for the whole ledger.
        self._counted: dict[object, dict[str | None, Decimal]] = {}
        self._doubts: dict[Origin, Reservation] = {}
        self._failed: dict[str, tuple[Decimal, Origin | None]] = {}
        self._callbacks: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return (
            f"<Budget {dollars(self.usd)}: {dollars(self.spent)} spent, {dollars(self.reserved)} reserved, "
            f"{dollars(self.held)} held>"
        )

    @property
    def left(self) -> Decimal:
        """USD that can still be reserved."""
        return self.usd - self.spent - self.reserved - self.held

    @property
    def failed(self) -> dict[str, Origin | None]:
        """Origins of failed predictions that the service may refund, by prediction id."""
        return {id_: origin for id_, (_, origin) in self._failed.items()}

    @property
    def doubts(self) -> dict[Origin, Reservation]:
        """The latest held reservation of each origin."""
        return dict(self._doubts)

    def admits(self, usd: Decimal) -> bool:
        """Return whether an amount can be reserved now; False if it depends on the outcome of current reservations.

        Raises:
            BudgetExceededError: The amount exceeds the cap even if all current reservations are released.
        """
        if usd <= self.left:
            return True
        if usd <= self.left + self.reserved:
            return False
        raise self.exceeded_error(usd)

    def exceeded_error(self, usd: Decimal) -> BudgetExceededError:
        """Return the error of a job that costs `usd`, which the budget does not have."""
        return exceeded_error(self.usd, self.spent, self.held, usd)

    def scope(self, ledger: object, batch: str | None) -> str | None:
        """Return the part of a ledger to count for a batch: the batch, or None if the whole is counted already."""
        return None if None in self._counted.get(ledger, ()) else batch

    def count_ledger(self, ledger: object, scope: str | None, usd: Decimal) -> None:
        """Count the amount spent by a ledger, even above the cap. Counting again replaces the earlier amount.

        Args:
            ledger: Identity of the ledger.
            scope: A batch, or None for the whole ledger.
            usd: USD that were spent in total, less refunds.
        """
        counted = self._counted.setdefault(ledger, {})
        before = sum(counted.values(), Decimal(0)) if scope is None else counted.get(scope, Decimal(0))
        if scope is None:
            counted.clear()
        # Rows that are no longer in the ledger were paid for all the same.
        counted[scope] = max(before, usd)
        self.spent += counted[scope] - before

    def spend(self, usd: Decimal, origin: Origin | None) -> None:
        """Count an amount as spent, or as refunded if it is negative."""
        self.spent += usd
        if origin is not None and (counted := self._counted.get(origin.ledger)) is not None:
            scope = self.scope(origin.ledger, origin.batch)
            counted[scope] = counted.get(scope, 0) + usd

    def fail(self, prediction_id: str, usd: Decimal, origin: Origin | None) -> None:
        """Record a failed prediction, which the service may refund."""
        self._failed[prediction_id] = usd, origin

    def refund(self, prediction_id: str, usd: Decimal) -> None:
        """Count the refund of a failed prediction, up to its price."""
        price, origin = self._failed.pop(prediction_id, (Decimal(0), None))
        if price:
            self.spend(-min(usd, price), origin)
            self.notify()

    def hold(self, reservation: Reservation) -> None:
        """Count a reservation as held: its request may have been accepted."""
        self.held += reservation.usd
        if reservation.origin is not None:
            self._doubts[reservation.origin] = reservation

    def unhold(self, reservation: Reservation) -> None:
        """Stop counting a reservation as held."""
        self.held -= reservation.usd
        if reservation.origin is not None and self._doubts.get(reservation.origin) is reservation:
            del self._doubts[reservation.origin]

    def on_next_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` at the next change of the amounts, once; return a function that removes it."""
        self._callbacks.append(callback)

        def remove() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return remove

    def notify(self) -> None:
        """Call the callbacks: the amounts have changed."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class CallerBudget(Budget):
    """A cap in USD on what one caller spends.

    Args:
        caller: Name of the caller.
        usd: The cap in USD.
        allow_estimate: As for `Budget`.

    Attributes:
        caller: Name of the caller.
    """

    def __init__(self, caller: str, usd: Decimal | str | float, *, allow_estimate: bool = False) -> None:
        super().__init__(usd, allow_estimate=allow_estimate)
        self.caller = caller

    def exceeded_error(self, usd: Decimal) -> BudgetExceededError:
        """Return the error of a job of the caller that costs `usd`, which the budget does not have."""
        return exceeded_error(self.usd, self.spent, self.held, usd, caller=self.caller)


class Reservation:
    """An amount set aside in one or more budgets for one paid request.

    It is reserved, possibly held, and finally committed or released; those two are final.

    Attributes:
        usd: The amount in USD.
        budgets: The budgets that it is set aside in.
        origin: The ledger row that it is set aside for, or None.
        doubtful: Whether the request was sent with an unknown outcome.
    """

    __slots__ = ("_stage", "budgets", "doubtful", "origin", "usd")

    def __init__(self, budgets: Iterable[Budget], usd: Decimal, origin: Origin | None = None) -> None:
        self.usd = usd
        self.origin = origin
        self.doubtful = False
        self.budgets = tuple(budgets)
        self._stage = _Stage.RESERVED
        for budget in self.budgets:
            budget.reserved += usd

    @property
    def held(self) -> bool:
        """True while it is held for a submission in doubt."""
        return self._stage is _Stage.HELD

    def commit(self) -> None:
        """Count the amount as spent: the request was accepted."""
        if self._move(_Stage.COMMITTED):
            for budget in self.budgets:
                budget.spend(self.usd, self.origin)

    def hold(self) -> None:
        """Hold the amount: the outcome is unknown and may stay so. It counts, and other jobs do not wait for it."""
        self.doubtful = True
        if self._stage is _Stage.RESERVED and self._move(_Stage.HELD):
            for budget in self.budgets:
                budget.hold(self)

    def resume(self) -> None:
        """Reserve a held amount again while its doubt is being resolved: other jobs may wait for the outcome."""
        self.doubtful = True
        if self._stage is _Stage.HELD and self._move(_Stage.RESERVED):
            for budget in self.budgets:
                budget.reserved += self.usd

    def release(self) -> None:
        """Return the amount to the budgets: the request was not accepted."""
        self._move(_Stage.RELEASED)

    def close(self) -> None:
        """End the work on the request: hold the amount if it is in doubt, else release it."""
        if self.doubtful:
            self.hold()
        else:
            self.release()

    def fail(self, prediction_id: str) -> None:
        """Record that the prediction failed: the service may refund it."""
        if self._stage is _Stage.COMMITTED:
            for budget in self.budgets:
                budget.fail(prediction_id, self.usd, self.origin)

    def _move(self, stage: _Stage) -> bool:
        """Move to another stage and return True; return False if the current one is final."""
        if self._stage in {_Stage.COMMITTED, _Stage.RELEASED}:
            return False
        for budget in self.budgets:
            if self._stage is _Stage.HELD:
                budget.unhold(self)
            else:
                budget.reserved -= self.usd
        self._stage = stage
        for budget in self.budgets:
            budget.notify()
        return True


@attrs.frozen
class Cap:
    """A budget in a ledger that several processes share.

    Attributes:
        usd: The cap in USD.
        batches: Names of the batches that it covers; None for the whole account of the ledger.
        caller: Name of the caller whose jobs alone it covers; None for those of all.
    """

    usd: Decimal
    batches: tuple[str, ...] | None
    caller: str | None = None


@attrs.define
class CapUsage:
    """A cap and its use, all in USD.

    Attributes:
        usd: The cap.
        spent: USD of accepted jobs, less refunds.
        held: USD of submissions in doubt.
        reserved: USD of requests on their way.
        caller: Name of the caller whose jobs alone it covers; None for those of all.
    """

    usd: Decimal
    spent: Decimal
    held: Decimal
    reserved: Decimal
    caller: str | None = None


def reserve_caps(caps: Sequence[CapUsage], usd: Decimal) -> bool:
    """Reserve an amount in all caps and return True; return False if it depends on the outcome of reservations.

    Raises:
        BudgetExceededError: The amount exceeds a cap even if all of its reservations are released.
    """
    for cap in caps:
        remaining = cap.usd - cap.spent - cap.held - usd
        if remaining < 0:
            raise exceeded_error(cap.usd, cap.spent, cap.held, usd, caller=cap.caller)
        if remaining < cap.reserved:
            return False
    for cap in caps:
        cap.reserved += usd
    return True


def exceeded_error(
    cap: Decimal, spent: Decimal, held: Decimal, usd: Decimal, *, caller: str | None = None
) -> BudgetExceededError:
    """Return the error of a job that costs `usd`, which a cap does not have; all amounts in USD.

    Args:
        cap: The cap.
        spent: What was spent of it.
        held: What may have been spent of it besides.
        usd: Price of the job.
        caller: Name of the caller whose cap it is; None for one of all.
    """
    whose = "" if caller is None else f" of caller {caller!r}"
    message = (
        f"the budget of {dollars(cap)}{whose} is used up: {dollars(spent)} spent"
        + (f" and {dollars(held)} that may have been" if held else "")
        + f", and the job costs {dollars(usd)}"
    )
    if caller is None:
        return BudgetExceededError(message, budget=cap, used=spent + held, price=usd)
    return CallerBudgetExceededError(message, caller=caller, budget=cap, used=spent + held, price=usd)


def reserve(budgets: Sequence[Budget], usd: Decimal, origin: Origin | None = None) -> Reservation | Budget:
    """Reserve an amount in all budgets; if one of them has to wait for other reservations, return that budget instead.

    Args:
        budgets: The budgets.
        usd: The amount in USD.
        origin: The ledger row that it is reserved for, or None.

    Raises:
        BudgetExceededError: The amount exceeds a budget even if all of its reservations are released.
    """
    for budget in budgets:
        if not budget.admits(usd):
            return budget
    return Reservation(budgets, usd, origin)

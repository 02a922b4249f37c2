"""A cap on spending: reserved before a paid request, committed when it is accepted, released when it is not."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import TYPE_CHECKING

import attrs

from .errors import BudgetExceededError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class _Stage(Enum):
    RESERVED = "reserved"
    HELD = "held"
    COMMITTED = "committed"
    RELEASED = "released"


class Budget:
    """At most so many USD, over everything that it is given to: sessions, batches, or both.

    What may have been paid for counts as paid until it is shown that it was not. A prediction that fails counts too,
    until the service gives its price back, which may take hours: its bill is looked at when the budget is used up.

    Over a PostgreSQL ledger it holds for all processes together that are given the same cap: what each of them spent,
    is sending or has in doubt is counted in the ledger before every start. There the attributes say what this process
    knows, and what is given back counts when it stands in the ledger.

    Args:
        usd: The cap in USD: a `Decimal`, a text, or a number.
        allow_estimate: Whether a price that no page of the vendor states may be taken from the catalogue when the
            service does not tell it.

    Attributes:
        usd: The cap in USD.
        allow_estimate: As given.
        spent: USD of what was accepted, less what was given back.
        reserved: USD of what is on its way to the service.
        held: USD of what may have been accepted; it is not known.

    Raises:
        ConfigurationError: The cap is no amount.
    """

    def __init__(self, usd: Decimal | str | float, *, allow_estimate: bool = False) -> None:
        try:
            # By its text: 0.1 is meant, not the nearest binary fraction.
            self.usd = Decimal(str(usd))
        except InvalidOperation:
            raise ConfigurationError(f"budget: expected an amount in USD, got {usd!r:.40}") from None
        if isinstance(usd, bool) or not self.usd.is_finite() or self.usd < 0:
            raise ConfigurationError(f"budget: expected an amount in USD, got {usd!r:.40}")
        self.allow_estimate = allow_estimate
        self.spent = Decimal(0)
        self.reserved = Decimal(0)
        self.held = Decimal(0)
        self._failed: dict[str, Decimal] = {}
        self._changed: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return (
            f"<Budget {dollars(self.usd)}: {dollars(self.spent)} spent, {dollars(self.reserved)} reserved, "
            f"{dollars(self.held)} held>"
        )

    @property
    def left(self) -> Decimal:
        """USD that may still be reserved."""
        return self.usd - self.spent - self.reserved - self.held

    @property
    def failed(self) -> dict[str, Decimal]:
        """What the service may give back: USD by the ids of the predictions that failed."""
        return dict(self._failed)

    def admits(self, usd: Decimal) -> bool:
        """Whether an amount may be reserved now; False when that depends on what is on its way to the service.

        Raises:
            BudgetExceededError: It would go beyond the cap, whatever becomes of what is on its way.
        """
        if usd <= self.left:
            return True
        if usd <= self.left + self.reserved:
            return False
        raise self.exceeded(usd)

    def exceeded(self, usd: Decimal) -> BudgetExceededError:
        """The error of a job for which there is no money."""
        return exceeded(self.usd, self.spent, self.held, usd)

    def recall(self, usd: Decimal) -> None:
        """Count what an earlier process spent, even beyond the cap."""
        self.spent += usd

    def fail(self, prediction_id: str, usd: Decimal) -> None:
        """A prediction failed: the service may give its price back."""
        self._failed[prediction_id] = usd

    def refund(self, prediction_id: str, usd: Decimal) -> None:
        """The service gave the price of a failed prediction back, or a part of it; more than it cost does not count."""
        price = self._failed.pop(prediction_id, None)
        if price is not None:
            self.spent -= min(usd, price)
            self.tell()

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` once at the next change; the result stops that."""
        self._changed.append(changed)

        def stop() -> None:
            if changed in self._changed:
                self._changed.remove(changed)

        return stop

    def tell(self) -> None:
        """Wake those who listen: what is set aside has changed."""
        waiting, self._changed = self._changed, []
        for changed in waiting:
            changed()


class Reservation:
    """An amount that is set aside in one or more budgets, for one paid request.

    It is reserved, then perhaps held, and in the end committed or released; what is over stays over.

    Attributes:
        usd: The amount.
        budgets: Where it is set aside.
        doubtful: Whether the request was sent, and it is not known whether it was accepted.
    """

    __slots__ = ("_stage", "budgets", "doubtful", "usd")

    def __init__(self, budgets: Iterable[Budget], usd: Decimal) -> None:
        self.usd = usd
        self.doubtful = False
        self.budgets = tuple(budgets)
        self._stage = _Stage.RESERVED
        for budget in self.budgets:
            budget.reserved += usd

    @property
    def held(self) -> bool:
        """Whether it is kept for a request of which it is not known whether it was accepted."""
        return self._stage is _Stage.HELD

    def commit(self) -> None:
        """It was accepted: the money is spent."""
        if self._move(_Stage.COMMITTED):
            for budget in self.budgets:
                budget.spent += self.usd

    def hold(self) -> None:
        """Whether it was accepted is not known, and may never be: it counts, and nobody waits for it."""
        self.doubtful = True
        if self._stage is _Stage.RESERVED and self._move(_Stage.HELD):
            for budget in self.budgets:
                budget.held += self.usd

    def release(self) -> None:
        """It was not accepted."""
        self._move(_Stage.RELEASED)

    def let_go(self) -> None:
        """Nobody has it in hand any more: what is in doubt is held, else released."""
        if self.doubtful:
            self.hold()
        else:
            self.release()

    def fail(self, prediction_id: str) -> None:
        """What it was spent for failed: the service may give it back."""
        if self._stage is _Stage.COMMITTED:
            for budget in self.budgets:
                budget.fail(prediction_id, self.usd)

    def _move(self, stage: _Stage) -> bool:
        """Leave the stage for another, unless it is over."""
        if self._stage in {_Stage.COMMITTED, _Stage.RELEASED}:
            return False
        for budget in self.budgets:
            if self._stage is _Stage.HELD:
                budget.held -= self.usd
            else:
                budget.reserved -= self.usd
        self._stage = stage
        for budget in self.budgets:
            budget.tell()
        return True


@attrs.frozen
class Cap:
    """What a budget is for in a ledger that several processes share.

    Attributes:
        usd: The cap in USD.
        batches: The batches that it is for, by their names; None for all of the ledger's account.
    """

    usd: Decimal
    batches: tuple[str, ...] | None


@attrs.define
class Purse:
    """What of a cap is used, in USD: spent, perhaps spent, and set aside for what is on its way."""

    usd: Decimal
    spent: Decimal
    held: Decimal
    reserved: Decimal


def pay(purses: Sequence[Purse], usd: Decimal) -> bool:
    """Set an amount aside in all of them, or in none; False when that depends on what is on its way.

    Raises:
        BudgetExceededError: One of them is used up.
    """
    for purse in purses:
        left = purse.usd - purse.spent - purse.held - usd
        if left < 0:
            raise exceeded(purse.usd, purse.spent, purse.held, usd)
        if left < purse.reserved:
            return False
    for purse in purses:
        purse.reserved += usd
    return True


def exceeded(cap: Decimal, spent: Decimal, held: Decimal, usd: Decimal) -> BudgetExceededError:
    """The error of a job for which there is no money: all in USD."""
    return BudgetExceededError(
        f"the budget of {dollars(cap)} is used up: {dollars(spent)} spent"
        + (f" and {dollars(held)} that may have been" if held else "")
        + f", and the job costs {dollars(usd)}",
        budget=cap,
        used=spent + held,
        price=usd,
    )


def reserve(budgets: Sequence[Budget], usd: Decimal) -> Reservation | Budget:
    """Set an amount aside in all budgets, or in none: then the one whose change has to be waited for.

    Raises:
        BudgetExceededError: One of them is used up.
    """
    for budget in budgets:
        if not budget.admits(usd):
            return budget
    return Reservation(budgets, usd)


def dollars(usd: Decimal) -> str:
    """An amount to read: cents at least, and what there is below them."""
    return f"${max(usd.normalize(), usd.quantize(_CENT), key=_places):f}"


_CENT = Decimal("0.01")


def _places(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0

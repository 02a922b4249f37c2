"""A cap on spending: reserved before a paid request, committed when it is accepted, released when it is not."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import TYPE_CHECKING

import attrs

from kling_async.errors import BudgetExceededError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


@attrs.frozen
class Origin:
    """The row that an amount is spent for.

    Attributes:
        ledger: Which ledger has it: something hashable, the same for every session over the same rows.
        batch: The batch's name; empty outside a batch.
        key: The job's name.
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
    """At most so many USD, over everything that it is given to: sessions, batches, or both.

    What may have been paid for counts as paid until it is shown that it was not. A prediction that fails counts too,
    until the service gives its price back, which may take hours: its bill is looked at when the budget is used up.

    It may be used by one session after another, and by several at once: what they write into the same ledger counts
    once. Over a PostgreSQL ledger it holds for all processes together that are given the same cap: what each of them
    spent, is sending or has in doubt is counted in the ledger before every start. There the attributes say what this
    process knows, and what is given back counts when it stands in the ledger.

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
        # What is counted of ledgers that are read again: of some batches, or, under None, of the whole.
        self._counted: dict[object, dict[str | None, Decimal]] = {}
        self._doubts: dict[Origin, Reservation] = {}
        self._failed: dict[str, tuple[Decimal, Origin | None]] = {}
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
    def failed(self) -> dict[str, Origin | None]:
        """What the service may give back: ids of predictions that failed, and what they were spent for."""
        return {id_: origin for id_, (_, origin) in self._failed.items()}

    @property
    def doubts(self) -> dict[Origin, Reservation]:
        """What is held now, by what it may have been spent for: the latest of each."""
        return dict(self._doubts)

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

    def part(self, ledger: object, batch: str | None) -> str | None:
        """What has to be recalled of a ledger to count a batch: the batch, or, by None, the whole as before."""
        return None if None in self._counted.get(ledger, ()) else batch

    def recall(self, ledger: object, part: str | None, usd: Decimal) -> None:
        """Count what a ledger says was spent, even beyond the cap; what is counted of that already counts once.

        Args:
            ledger: Which one.
            part: What of it: a batch, or None for the whole.
            usd: What was spent in all, less what was given back.
        """
        counted = self._counted.setdefault(ledger, {})
        before = sum(counted.values(), Decimal(0)) if part is None else counted.get(part, Decimal(0))
        if part is None:
            counted.clear()
        # What is not in the ledger any more was spent all the same.
        counted[part] = max(before, usd)
        self.spent += counted[part] - before

    def spend(self, usd: Decimal, origin: Origin | None) -> None:
        """Count what was spent, or, with a minus, given back."""
        self.spent += usd
        if origin is not None and (counted := self._counted.get(origin.ledger)) is not None:
            part = self.part(origin.ledger, origin.batch)
            counted[part] = counted.get(part, 0) + usd

    def fail(self, prediction_id: str, usd: Decimal, origin: Origin | None) -> None:
        """A prediction failed: the service may give its price back."""
        self._failed[prediction_id] = usd, origin

    def refund(self, prediction_id: str, usd: Decimal) -> None:
        """The service gave the price of a failed prediction back, or a part of it; more than it cost does not count."""
        price, origin = self._failed.pop(prediction_id, (Decimal(0), None))
        if price:
            self.spend(-min(usd, price), origin)
            self.tell()

    def hold(self, reservation: Reservation) -> None:
        """What a reservation was made for may have been accepted."""
        self.held += reservation.usd
        if reservation.origin is not None:
            self._doubts[reservation.origin] = reservation

    def unhold(self, reservation: Reservation) -> None:
        """It is known what became of it."""
        self.held -= reservation.usd
        if reservation.origin is not None and self._doubts.get(reservation.origin) is reservation:
            del self._doubts[reservation.origin]

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
        origin: The row that it is set aside for.
        doubtful: Whether the request was sent, and it is not known whether it was accepted.
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
        """Whether it is kept for a request of which it is not known whether it was accepted."""
        return self._stage is _Stage.HELD

    def commit(self) -> None:
        """It was accepted: the money is spent."""
        if self._move(_Stage.COMMITTED):
            for budget in self.budgets:
                budget.spend(self.usd, self.origin)

    def hold(self) -> None:
        """Whether it was accepted is not known, and may never be: it counts, and nobody waits for it."""
        self.doubtful = True
        if self._stage is _Stage.RESERVED and self._move(_Stage.HELD):
            for budget in self.budgets:
                budget.hold(self)

    def take_up(self) -> None:
        """Somebody finds out whether it was accepted: others may wait for that."""
        self.doubtful = True
        if self._stage is _Stage.HELD and self._move(_Stage.RESERVED):
            for budget in self.budgets:
                budget.reserved += self.usd

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
                budget.fail(prediction_id, self.usd, self.origin)

    def _move(self, stage: _Stage) -> bool:
        """Leave the stage for another, unless it is over."""
        if self._stage in {_Stage.COMMITTED, _Stage.RELEASED}:
            return False
        for budget in self.budgets:
            if self._stage is _Stage.HELD:
                budget.unhold(self)
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


def reserve(budgets: Sequence[Budget], usd: Decimal, origin: Origin | None = None) -> Reservation | Budget:
    """Set an amount aside in all budgets, or in none: then the one whose change has to be waited for.

    Args:
        budgets: The budgets.
        usd: The amount.
        origin: The row that it is set aside for.

    Raises:
        BudgetExceededError: One of them is used up.
    """
    for budget in budgets:
        if not budget.admits(usd):
            return budget
    return Reservation(budgets, usd, origin)


def dollars(usd: Decimal) -> str:
    """An amount to read: cents at least, and what there is below them."""
    return f"${max(usd.normalize(), usd.quantize(_CENT), key=_places):f}"


_CENT = Decimal("0.01")


def _places(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0

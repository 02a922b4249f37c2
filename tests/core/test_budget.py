"""The arithmetic of a budget."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kling_async import Budget, BudgetExceededError, ConfigurationError
from kling_async._core.budget import Origin, Reservation, dollars, reserve

PRICES = st.sampled_from([Decimal("0.28"), Decimal("0.45"), Decimal("0.1"), Decimal("2.60")])


class Spending(RuleBasedStateMachine):
    """Whatever becomes of reservations, in whatever order, no cap is exceeded and no cent is lost."""

    set_aside = Bundle("set_aside")
    spent = Bundle("spent")

    def __init__(self) -> None:
        super().__init__()
        self.session = Budget("5.00")
        self.batch = Budget("3.00")
        self.paid = Decimal(0)
        self.maybe: dict[Reservation, Decimal] = {}

    @rule(target=set_aside, usd=PRICES, both=st.booleans())
    def reserve(self, usd: Decimal, both: bool) -> Reservation | None:  # noqa: FBT001 -- drawn
        budgets = [self.session, self.batch] if both else [self.batch]
        before = [budget.left for budget in budgets]
        if next((usd > each.left + each.reserved for each in budgets if usd > each.left), False):
            with pytest.raises(BudgetExceededError):
                reserve(budgets, usd)
            return None
        found = reserve(budgets, usd)
        if isinstance(found, Budget):
            assert found.left < usd
            assert [budget.left for budget in budgets] == before, "all or nothing"
            return None
        assert [budget.left for budget in budgets] == [left - usd for left in before]
        self.maybe[found] = usd
        return found

    @rule(reservation=set_aside)
    def hold(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            reservation.hold()

    @rule(reservation=set_aside)
    def take_up(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            reservation.take_up()
            assert not reservation.held

    @rule(target=spent, reservation=consumes(set_aside))
    def commit(self, reservation: Reservation | None) -> Reservation | None:
        if reservation is not None:
            reservation.commit()
            reservation.commit()
            reservation.release()
            self.paid += self.maybe.pop(reservation)
        return reservation

    @rule(reservation=consumes(set_aside))
    def release(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            reservation.release()
            reservation.release()
            reservation.commit()
            self.maybe.pop(reservation)

    @rule(reservation=consumes(spent))
    def refund(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            reservation.fail("p")
            for budget in (self.session, self.batch):
                budget.refund("p", reservation.usd)
                budget.refund("p", reservation.usd)
            self.paid -= reservation.usd

    @invariant()
    def nothing_is_exceeded_or_lost(self) -> None:
        for budget in (self.session, self.batch):
            assert 0 <= budget.spent + budget.reserved + budget.held <= budget.usd
            assert budget.left >= 0
        assert self.batch.spent == self.paid
        assert self.batch.reserved + self.batch.held == sum(self.maybe.values())


TestSpending = Spending.TestCase


def test_a_float_means_what_it_says() -> None:
    budget = Budget(0.3)
    for _ in range(3):
        assert isinstance(reserve([budget], Decimal("0.1")), Reservation)
    assert budget.left == 0
    with pytest.raises(BudgetExceededError):
        # Nothing is on its way that could be released.
        held = Budget("0.3")
        held.recall("run.db", None, Decimal("0.3"))
        reserve([held], Decimal("0.01"))


@pytest.mark.parametrize("usd", ["x", "nan", "inf", -1, True, "-0.01"])
def test_a_cap_is_an_amount(usd: str | float) -> None:
    with pytest.raises(ConfigurationError, match="budget: expected an amount in USD"):
        Budget(usd)


def test_who_listens_is_told_once_and_may_stop() -> None:
    budget = Budget(1)
    told: list[str] = []
    budget.listen(lambda: told.append("a"))
    stop = budget.listen(lambda: told.append("b"))
    stop()
    stop()
    found = reserve([budget], Decimal(1))
    assert isinstance(found, Reservation)
    found.release()
    found = reserve([budget], Decimal(1))
    assert told == ["a"]


def test_what_nobody_has_in_hand_is_released_unless_it_is_in_doubt() -> None:
    budget = Budget(2)
    clear, doubtful = Reservation([budget], Decimal(1)), Reservation([budget], Decimal(1))
    doubtful.doubtful = True
    clear.let_go()
    doubtful.let_go()
    assert [budget.held, budget.reserved, budget.left] == [1, 0, 1]


def test_its_repr_says_where_the_money_is() -> None:
    budget = Budget("2.50")
    Reservation([budget], Decimal("0.45")).commit()
    assert repr(budget) == "<Budget $2.50: $0.45 spent, $0.00 reserved, $0.00 held>"


@pytest.mark.parametrize(
    ("usd", "text"), [("1", "$1.00"), ("0.4500", "$0.45"), ("0.105", "$0.105"), ("1E+3", "$1000.00")]
)
def test_amounts_are_told_in_cents_at_least(usd: str, text: str) -> None:
    assert dollars(Decimal(usd)) == text


def test_a_ledger_that_is_read_again_counts_once() -> None:
    budget = Budget(10)
    budget.recall("run.db", "b", Decimal(2))
    Reservation([budget], Decimal(1), Origin("run.db", "b", "k")).commit()
    budget.recall("run.db", "b", Decimal(3))
    assert budget.spent == 3
    budget.recall("run.db", "c", Decimal(1))
    budget.recall("other.db", "b", Decimal(1))
    assert budget.spent == 5
    # The whole has its batches in it, and from then on a batch is counted with the whole.
    budget.recall("run.db", None, Decimal(6))
    assert budget.spent == 7
    assert (budget.part("run.db", "b"), budget.part("other.db", "b")) == (None, "b")
    Reservation([budget], Decimal(1), Origin("run.db", "d", "k")).commit()
    budget.recall("run.db", None, Decimal(7))
    assert budget.spent == 8


def test_what_a_ledger_has_lost_was_spent_and_what_was_given_back_was_not() -> None:
    budget = Budget(10)
    budget.recall("run.db", None, Decimal(0))
    for key in ("a", "b"):
        paid = Reservation([budget], Decimal(1), Origin("run.db", "", key))
        paid.commit()
        paid.fail(key)
    budget.recall("run.db", None, Decimal(0))
    assert budget.spent == 2
    budget.refund("a", Decimal(1))
    budget.recall("run.db", None, Decimal(1))
    assert budget.spent == 1


def test_what_is_held_is_known_by_the_row_that_it_is_held_for() -> None:
    budget, row = Budget(10), Origin("run.db", "", "k")
    first, second = (Reservation([budget], Decimal(1), row) for _ in range(2))
    first.hold()
    second.hold()
    assert budget.doubts == {row: second}
    first.commit()
    assert budget.doubts == {row: second}
    second.release()
    assert not budget.doubts
    assert budget.spent == 1
    assert budget.held == 0

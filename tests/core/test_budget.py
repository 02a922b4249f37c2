"""Arithmetic of budgets and reservations."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kling_async import Budget, BudgetExceededError, ConfigurationError
from kling_async._core.budget import Origin, Reservation, reserve
from kling_async._core.prices import dollars

PRICES = st.sampled_from([Decimal("0.28"), Decimal("0.45"), Decimal("0.1"), Decimal("2.60")])


class Spending(RuleBasedStateMachine):
    """In any order of steps, no cap is exceeded and no cent is lost."""

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
    def resume(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            reservation.resume()
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


def test_float_cap_is_exact() -> None:
    budget = Budget(0.3)
    for _ in range(3):
        assert isinstance(reserve([budget], Decimal("0.1")), Reservation)
    assert budget.left == 0
    with pytest.raises(BudgetExceededError):
        # There is no reservation that could be released.
        held = Budget("0.3")
        held.count_ledger("run.db", None, Decimal("0.3"))
        reserve([held], Decimal("0.01"))


@pytest.mark.parametrize("usd", ["x", "nan", "inf", -1, True, "-0.01"])
def test_cap_must_be_an_amount(usd: str | float) -> None:
    with pytest.raises(ConfigurationError, match="budget: expected an amount in USD"):
        Budget(usd)


def test_change_callback_runs_once_and_can_be_removed() -> None:
    budget = Budget(1)
    calls: list[str] = []
    budget.on_next_change(lambda: calls.append("a"))
    remove = budget.on_next_change(lambda: calls.append("b"))
    remove()
    remove()
    found = reserve([budget], Decimal(1))
    assert isinstance(found, Reservation)
    found.release()
    found = reserve([budget], Decimal(1))
    assert calls == ["a"]


def test_close_releases_reservation_unless_in_doubt() -> None:
    budget = Budget(2)
    clear, doubtful = Reservation([budget], Decimal(1)), Reservation([budget], Decimal(1))
    doubtful.doubtful = True
    clear.close()
    doubtful.close()
    assert [budget.held, budget.reserved, budget.left] == [1, 0, 1]


def test_repr_shows_spent_reserved_and_held() -> None:
    budget = Budget("2.50")
    Reservation([budget], Decimal("0.45")).commit()
    assert repr(budget) == "<Budget $2.50: $0.45 spent, $0.00 reserved, $0.00 held>"


@pytest.mark.parametrize(
    ("usd", "text"), [("1", "$1.00"), ("0.4500", "$0.45"), ("0.105", "$0.105"), ("1E+3", "$1000.00")]
)
def test_dollars_shows_at_least_cents(usd: str, text: str) -> None:
    assert dollars(Decimal(usd)) == text


def test_ledger_read_again_counts_once() -> None:
    budget = Budget(10)
    budget.count_ledger("run.db", "b", Decimal(2))
    Reservation([budget], Decimal(1), Origin("run.db", "b", "k")).commit()
    budget.count_ledger("run.db", "b", Decimal(3))
    assert budget.spent == 3
    budget.count_ledger("run.db", "c", Decimal(1))
    budget.count_ledger("other.db", "b", Decimal(1))
    assert budget.spent == 5
    # The whole ledger includes its batches; from then on, each batch is counted as part of the whole.
    budget.count_ledger("run.db", None, Decimal(6))
    assert budget.spent == 7
    assert (budget.scope("run.db", "b"), budget.scope("other.db", "b")) == (None, "b")
    Reservation([budget], Decimal(1), Origin("run.db", "d", "k")).commit()
    budget.count_ledger("run.db", None, Decimal(7))
    assert budget.spent == 8


def test_lost_ledger_rows_stay_spent_and_refunds_do_not() -> None:
    budget = Budget(10)
    budget.count_ledger("run.db", None, Decimal(0))
    for key in ("a", "b"):
        paid = Reservation([budget], Decimal(1), Origin("run.db", "", key))
        paid.commit()
        paid.fail(key)
    budget.count_ledger("run.db", None, Decimal(0))
    assert budget.spent == 2
    budget.refund("a", Decimal(1))
    budget.count_ledger("run.db", None, Decimal(1))
    assert budget.spent == 1


def test_held_amounts_are_listed_by_origin() -> None:
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

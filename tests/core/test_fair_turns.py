"""Turns that are kept elsewhere between claims, as in a database: nobody's share drifts."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from kling_async._core.turns import FairTurns
from support.shares import CALLERS, worst_deviation


def claimed(count: int, most: int) -> Iterator[str]:
    """Yield the callers of so many turns, taken up to so many at a time, each time by turns that begin anew."""
    rng, virtual, starts = random.Random(7), 0.0, dict[str, float]()
    while count > 0:
        turns = FairTurns(virtual)
        for caller, weight in CALLERS.items():
            turns.enter(caller, weight, starts.get(caller))
        for _ in range(rng.randint(1, most)):
            first = turns.first()
            assert first is not None
            turns.take(first)
            starts[first] = turns.start_of(first)
            count -= 1
            yield first
        virtual = turns.virtual


@pytest.mark.parametrize("most", [1, 5, 13])
def test_shares_do_not_drift_over_claims(most: int) -> None:
    callers = list(claimed(20_000, most))
    assert worst_deviation(callers, 200) <= 2
    assert worst_deviation(callers, 2000) <= 2


def test_a_caller_of_long_ago_has_no_credit() -> None:
    turns = FairTurns(100.0)
    turns.enter("long ago", 1.0, 10.0)
    turns.enter("late", 1.0, 98.5)
    turns.enter("ahead", 1.0, 101.0)
    assert {name: turns.start_of(name) for name in ("long ago", "late", "ahead")} == {
        "long ago": 100.0,
        "late": 98.5,
        "ahead": 101.0,
    }

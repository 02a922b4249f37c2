"""The limit on requests under way: quick growth while it pays, one more at a time, half after a refusal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async._core.adaptive import AdaptiveLimit


def rounds(limit: AdaptiveLimit, count: int, seconds: Callable[[int], float], *, full: bool = True) -> list[int]:
    """Let rounds of requests of size 1 succeed.

    Args:
        limit: The limit.
        count: Number of rounds.
        seconds: Duration of a request by the number of those under way.
        full: Whether others wait.

    Returns:
        The limit after each round.
    """
    totals = []
    for _ in range(count):
        at_once = limit.total
        for _ in range(at_once):
            limit.record_done(1.0, seconds(at_once), full=full)
        totals.append(limit.total)
    return totals


def far(_: int) -> float:
    """Latency of a line that carries everything."""
    return 1.3


def thin(at_once: int) -> float:
    """Duration on a line that carries 20 requests per second."""
    return max(1.0, at_once / 20)


def test_limit_doubles_while_that_pays() -> None:
    assert rounds(AdaptiveLimit(4, 100), 6, far) == [8, 16, 32, 64, 100, 100]


def test_limit_stays_where_more_bring_no_more() -> None:
    totals = rounds(AdaptiveLimit(4, 1000), 60, thin)
    assert totals[:3] == [8, 16, 32]
    assert all(20 <= total <= 48 for total in totals[3:]), "never too few to fill the line, nor more than twice as many"


def test_unrewarded_growth_is_taken_back() -> None:
    limit = AdaptiveLimit(4, 1000)
    totals = rounds(limit, 200, thin)
    falls = [before - after for before, after in pairwise(totals[6:]) if after < before]
    assert falls, "one more at a time is tried, in vain"
    assert max(totals[6:]) <= 1.6 * min(totals[6:])


def test_limit_follows_a_line_that_becomes_wider() -> None:
    limit = AdaptiveLimit(4, 1000)
    rounds(limit, 30, thin)
    totals = rounds(limit, 20, lambda at_once: max(1.0, at_once / 400))
    assert max(totals) >= 400


def test_limit_is_not_raised_while_nobody_waits() -> None:
    assert rounds(AdaptiveLimit(4, 100), 50, far, full=False)[-1] == 4


def test_a_burst_of_refusals_halves_once() -> None:
    limit = AdaptiveLimit(4, 100)
    rounds(limit, 4, far)
    epoch = limit.epoch
    for _ in range(64):
        limit.record_refused(epoch)
    assert limit.total == 32
    limit.record_refused(limit.epoch)
    assert limit.total == 16


def test_limit_comes_back_quickly_to_what_worked_and_then_slowly() -> None:
    limit = AdaptiveLimit(4, 1000)
    rounds(limit, 6, far)
    assert limit.total == 256
    limit.record_refused(limit.epoch, factor=0.0)
    assert limit.total == 1
    totals = rounds(limit, 12, far)
    assert totals[5] >= 32, "doubled up to half of the best"
    assert totals[-1] < 80, "and one more in each round from there"


def test_mean_duration_follows_the_latest() -> None:
    limit = AdaptiveLimit(4, 100)
    assert limit.seconds == 0
    rounds(limit, 1, far)
    assert limit.seconds == pytest.approx(1.3)
    rounds(limit, 10, lambda _: 5.0)
    assert limit.seconds == pytest.approx(5.0, abs=0.1)


def test_limit_may_begin_higher_until_it_was_tried() -> None:
    limit = AdaptiveLimit(16, 1000)
    limit.begin_with(100)
    limit.begin_with(50)
    assert limit.total == 100
    assert rounds(limit, 2, far) == [200, 400]
    limit.begin_with(1000)
    assert limit.total == 400, "it was tried"
    refused = AdaptiveLimit(16, 50)
    refused.begin_with(100)
    assert refused.total == 50, "the ceiling"
    refused.record_refused(refused.epoch)
    refused.begin_with(50)
    assert refused.total == 25


def test_limit_rises_with_the_first_success() -> None:
    limit = AdaptiveLimit(4, 1000, tried=100)
    assert limit.total == 4
    limit.record_done(1.0, 0.5, full=True)
    assert limit.total == 101
    assert rounds(limit, 1, far) == [202]
    lower = AdaptiveLimit(4, 1000, tried=2)
    lower.record_done(1.0, 0.5, full=False)
    assert lower.total == 4
    refused = AdaptiveLimit(4, 1000, tried=100)
    refused.record_refused(refused.epoch)
    refused.record_done(1.0, 0.5, full=False)
    assert refused.total == 2


def test_durations_of_zero_are_taken() -> None:
    assert rounds(AdaptiveLimit(4, 50), 10, lambda _: 0.0)[-1] >= 8


steps = st.one_of(
    st.tuples(st.just("done"), st.floats(0, 1e7), st.floats(0, 100)),
    st.tuples(st.just("refused"), st.integers(-1, 0), st.floats(0, 1)),
)


@given(initial=st.integers(1, 50), ceiling=st.integers(1, 50), taken=st.lists(steps, max_size=300))
def test_limit_stays_between_one_and_ceiling(initial: int, ceiling: int, taken: list[tuple[str, float, float]]) -> None:
    limit = AdaptiveLimit(initial, ceiling)
    for what, first, second in taken:
        before = limit.total
        if what == "done":
            limit.record_done(first, second, full=True)
        else:
            limit.record_refused(limit.epoch + int(first), factor=second)
            assert limit.total <= before
        assert 1 <= limit.total <= ceiling

"""Capacity learned from accepted and refused jobs, and the classification of 429 replies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async.limits import Capacity, Limit, which_limit
from kling_async.limits.capacity import MAX_UNANSWERED_SUBMITS


def saturate(capacity: Capacity, limit: int, jobs: int) -> tuple[list[int], int]:
    """Submit jobs one by one to an account that runs `limit` at once; one ends before each round.

    Returns:
        The total capacity after each round, and the number of refusals.
    """
    running = refused = 0
    totals: list[int] = []
    for _ in range(jobs):
        running = max(0, running - 1)
        while running < capacity.allowed(running):
            if running >= limit:
                capacity.record_refused(running, certain=True)
                refused += 1
                break
            running += 1
            capacity.record_accepted(running)
        totals.append(capacity.total)
    return totals, refused


def test_first_refusal_sets_the_limit() -> None:
    capacity = Capacity(300)
    for running in range(1, 101):
        capacity.record_accepted(running)
    assert capacity.total == 300
    capacity.record_refused(100, certain=True)
    assert capacity.total == 97


def test_repeated_refusals_shrink_geometrically() -> None:
    capacity = Capacity(300)
    totals = []
    for running in (100, 99, 68, 46):
        capacity.record_refused(running, certain=True)
        totals.append(capacity.total)
    assert totals == [97, 69, 47, 32]


def test_constant_limit_gives_few_refusals_and_few_idle_slots() -> None:
    totals, refused = saturate(Capacity(300), 100, 5000)
    assert refused <= 5000 / 400
    assert min(totals) >= 95
    assert max(totals[10:]) <= 103


def test_rising_limit_is_followed_with_growing_steps() -> None:
    capacity = Capacity(300)
    saturate(capacity, 40, 500)
    totals, _ = saturate(capacity, 100, 1000)
    assert totals[-1] >= 97
    reached = next(number for number, total in enumerate(totals) if total >= 100)
    assert reached < 700, "one more in each generation would take 4,200"


def test_unreached_limit_is_not_raised() -> None:
    capacity = Capacity(300)
    capacity.record_refused(50, certain=True)
    for _ in range(10_000):
        capacity.record_accepted(20)
    assert capacity.total == 49


def test_starts_ramp_up_after_a_refusal() -> None:
    capacity = Capacity(300)
    assert capacity.allowed(0) == 4
    capacity.record_refused(100, certain=True)
    assert capacity.allowed(20) == 21
    for running in range(21, 60):
        capacity.unanswered.record_done(1.0, 0.5, full=True)
        capacity.record_accepted(running)
    assert 24 <= capacity.allowed(20) <= 20 + 97 / 8
    capacity.slow_down()
    assert capacity.allowed(20) == 21
    assert capacity.total == 97


def test_starts_grow_with_what_runs() -> None:
    """An account that permits fewer than its level says refuses all that is unanswered when that shows."""
    capacity = Capacity(3000)
    assert capacity.allowed(0) == 4, "the line may lose every reply"
    for running in range(1, 401):
        capacity.unanswered.record_done(1.0, 0.5, full=True)
        capacity.record_accepted(running)
        assert capacity.allowed(running) == running + 3000 // 16
    assert capacity.allowed(700) == 700 + 700 // 3
    assert capacity.allowed(2000) == 2000 + MAX_UNANSWERED_SUBMITS
    assert capacity.allowed(2990) == 3000


def test_non_adaptive_capacity_stays_at_ceiling() -> None:
    capacity = Capacity(5, adaptive=False)
    capacity.record_refused(1, certain=True)
    capacity.slow_down()
    assert capacity.allowed(0) == capacity.total == 5


steps = st.one_of(
    st.tuples(st.just("accepted"), st.integers(1, 400)),
    st.tuples(st.just("refused"), st.integers(0, 400)),
    st.tuples(st.just("perhaps"), st.integers(0, 400)),
    st.tuples(st.just("slow"), st.just(0)),
)


@given(ceiling=st.integers(1, 300), taken=st.lists(steps, max_size=200))
def test_total_stays_between_one_and_ceiling(ceiling: int, taken: list[tuple[str, int]]) -> None:
    capacity = Capacity(ceiling)
    for what, running in taken:
        before = capacity.total
        match what:
            case "accepted":
                capacity.record_accepted(running)
                assert capacity.total >= before
            case "slow":
                capacity.slow_down()
                assert capacity.total == before
            case _:
                capacity.record_refused(running, certain=what == "refused")
                assert capacity.total <= before
                assert what == "perhaps" or capacity.total <= max(1, running)
        assert 1 <= capacity.total <= ceiling
        assert 1 <= capacity.allowed(0) <= capacity.total


@pytest.mark.parametrize(
    ("said", "running", "quiet", "limit"),
    [
        ("You have reached your concurrency limit", 3, False, Limit.RUNNING),
        ("You have reached your concurrency limit", 0, False, Limit.RUNNING),
        ("Too many concurrent tasks, rate limit applies", 3, False, Limit.RUNNING),
        ("Rate limit exceeded: 2 predictions per 1 minute", 3, True, Limit.STARTS),
        ("2 videos per minute", 3, False, Limit.STARTS),
        ("No available channel for model kling", 3, False, Limit.ELSEWHERE),
        ("upstream error: too many concurrent requests", 3, True, Limit.ELSEWHERE),
        ("Too many requests", 3, False, Limit.UNKNOWN),
        ("Too many requests", 0, False, Limit.STARTS),
        ("Too many requests", 3, True, Limit.RUNNING),
        ("", 0, True, Limit.STARTS),
    ],
)
def test_which_limit_classifies_refusals(said: str, running: int, *, quiet: bool, limit: Limit) -> None:
    assert which_limit(said, running=running, quiet=quiet) is limit

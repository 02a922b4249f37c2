"""When to look next: bounded, growing, jittered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import WatchPolicy
from kling_async._core.polling import Backoff

chances = st.floats(0, 1, exclude_max=True)


def test_a_video_is_first_read_after_the_vendors_five_seconds() -> None:
    assert WatchPolicy().delay(0, 0.5) == 5.0


def test_intervals_grow_to_the_cap() -> None:
    policy = WatchPolicy(first=4, growth=2, cap=20)
    assert [policy.delay(reads, 0.5) for reads in range(5)] == [4, 8, 16, 20, 20]


@given(st.integers(0, 10**9), chances)
def test_an_interval_stays_within_its_jitter_however_often_was_read(reads: int, chance: float) -> None:
    policy = WatchPolicy()
    assert policy.first * (1 - policy.jitter) <= policy.delay(reads, chance) <= policy.cap * (1 + policy.jitter)


@given(st.integers(0, 200))
def test_chance_spreads_reads_to_both_sides(reads: int) -> None:
    policy = WatchPolicy()
    early, middle, late = (policy.delay(reads, chance) for chance in (0.0, 0.5, 0.999))
    assert early == pytest.approx(middle * 0.85)
    assert late == pytest.approx(middle * 1.15, rel=1e-3)


def test_failures_double_the_delay_to_the_cap() -> None:
    backoff = Backoff(first=0.5, cap=15)
    assert [backoff.delay(failures, 0.5) for failures in range(1, 8)] == [0.5, 1, 2, 4, 8, 15, 15]


@given(st.integers(1, 10**9), chances)
def test_a_delay_after_failures_stays_within_its_jitter(failures: int, chance: float) -> None:
    backoff = Backoff()
    assert 0 < backoff.first * (1 - backoff.jitter) <= backoff.delay(failures, chance)
    assert backoff.delay(failures, chance) <= backoff.cap * (1 + backoff.jitter)

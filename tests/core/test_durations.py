"""Learned durations of predictions."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async._core.durations import BUCKET_EDGES, MAX_LEARNED_ENDS, PRIOR_MEDIAN, Durations, _bucket

ages = st.floats(0, 1e5, allow_nan=False)


def learn(durations: Durations, seconds: float, every: float = 3.0) -> None:
    """Poll a prediction of `seconds` at an interval until its end is seen."""
    for look in itertools.count(1):
        if seconds <= look * every:
            durations.ended((look - 1) * every, look * every)
            return
        durations.ran((look - 1) * every, look * every)


def test_prior_has_its_median_somewhat_below_usual_duration() -> None:
    durations = Durations(120)
    assert durations.chance(0, 120 * PRIOR_MEDIAN) == pytest.approx(0.5, abs=0.02)
    assert durations.chance(0, 24) < 0.03
    assert 0.95 < durations.chance(0, 600) < 0.999


def test_end_is_assigned_to_ages_at_which_others_ended() -> None:
    """A first read that comes late does not show that as many end at any age before it."""
    durations = Durations(120)
    for _ in range(50):
        durations.ran(0, 60)
        durations.ended(60, 60)
    for _ in range(5):
        durations.ended(0, 66)
    assert durations.chance(0, 50) < 0.05
    assert durations.chance(0, 66) > 0.8


def test_one_long_run_does_not_show_that_long_ones_never_end() -> None:
    durations = Durations(120)
    before = durations.chance(400, 410)
    durations.ran(0, 400)
    assert durations.chance(400, 410) > before / 2


@pytest.mark.parametrize(("ends", "off"), [(20, 0.2), (200, 0.07)])
def test_few_ends_outweigh_prior(ends: int, off: float) -> None:
    rng, durations = random.Random(1), Durations(240)
    for _ in range(ends):
        learn(durations, rng.gauss(60, 5))
    for age, share in ((45, 0.0), (60, 0.5), (80, 1.0)):
        assert durations.chance(0, age) == pytest.approx(share, abs=off)


def test_running_predictions_count() -> None:
    """After 60 s, 100 of 1,000 have ended: without the running ones, all would seem faster."""
    durations = Durations(120)
    for number in range(1000):
        durations.ran(0, 30)
        if number < 100:
            durations.ended(30, 60)
        else:
            durations.ran(30, 60)
    assert durations.chance(0, 60) == pytest.approx(0.1, abs=0.01)


def test_old_ends_lose_weight() -> None:
    durations = Durations(60)
    for _ in range(1000):
        learn(durations, 60)
    for _ in range(4 * MAX_LEARNED_ENDS):
        learn(durations, 180)
    assert durations.chance(0, 100) < 0.15
    assert durations.chance(0, 200) > 0.75


@given(ages, ages, ages)
def test_chance_is_a_probability_and_grows_with_age(first: float, second: float, third: float) -> None:
    durations = Durations(120)
    learn(durations, 50)
    one, two, three = sorted((first, second, third))
    assert 0 <= durations.chance(one, two) <= durations.chance(one, three) <= 1


@given(st.integers(0, len(BUCKET_EDGES) - 1), st.floats(0.001, 0.999))
def test_every_age_maps_to_its_bucket(number: int, part: float) -> None:
    end = BUCKET_EDGES[number + 1] if number + 1 < len(BUCKET_EDGES) else 1e6
    assert _bucket(BUCKET_EDGES[number] + part * (end - BUCKET_EDGES[number])) == number

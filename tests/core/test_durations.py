"""How long predictions take, learned from what is seen of them."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async._core.durations import EDGES, REMEMBERED, Durations, _stretch

ages = st.floats(0, 1e5, allow_nan=False)


def learn(durations: Durations, seconds: float, every: float = 3.0) -> None:
    """One that is looked at every few seconds until it is seen to have ended."""
    for look in itertools.count(1):
        if seconds <= look * every:
            durations.ended((look - 1) * every, look * every)
            return
        durations.ran((look - 1) * every, look * every)


def test_it_begins_with_the_usual_time() -> None:
    durations = Durations(120)
    assert durations.chance(0, 120) == pytest.approx(0.5, abs=0.02)
    assert durations.chance(0, 30) < 0.03
    assert 0.95 < durations.chance(0, 600) < 0.999


@pytest.mark.parametrize(("ends", "off"), [(20, 0.12), (200, 0.06)])
def test_few_ends_are_enough_to_know_better(ends: int, off: float) -> None:
    rng, durations = random.Random(1), Durations(240)
    for _ in range(ends):
        learn(durations, rng.gauss(60, 5))
    for age, share in ((45, 0.0), (60, 0.5), (80, 1.0)):
        assert durations.chance(0, age) == pytest.approx(share, abs=off)


def test_those_that_still_run_are_not_forgotten() -> None:
    """After 60 s a hundred of a thousand have ended: without the others all would seem to take less."""
    durations = Durations(120)
    for number in range(1000):
        durations.ran(0, 30)
        if number < 100:
            durations.ended(30, 60)
        else:
            durations.ran(30, 60)
    assert durations.chance(0, 60) == pytest.approx(0.1, abs=0.01)


def test_what_changes_is_learned_anew() -> None:
    durations = Durations(60)
    for _ in range(1000):
        learn(durations, 60)
    for _ in range(4 * REMEMBERED):
        learn(durations, 180)
    assert durations.chance(0, 100) < 0.15
    assert durations.chance(0, 200) > 0.75


@given(ages, ages, ages)
def test_a_chance_is_a_chance_and_grows(first: float, second: float, third: float) -> None:
    durations = Durations(120)
    learn(durations, 50)
    one, two, three = sorted((first, second, third))
    assert 0 <= durations.chance(one, two) <= durations.chance(one, three) <= 1


@given(st.integers(0, len(EDGES) - 1), st.floats(0.001, 0.999))
def test_every_age_lies_in_its_stretch(number: int, part: float) -> None:
    end = EDGES[number + 1] if number + 1 < len(EDGES) else 1e6
    assert _stretch(EDGES[number] + part * (end - EDGES[number])) == number

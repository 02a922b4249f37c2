"""Policies, backoff, and the planner: times of polls, single polls and pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import Prediction, Status, WatchPolicy
from kling_async._core.account import Page
from kling_async._core.planner import PAGE_SIZE, PAGES_PAUSE_S, LookAtOne, LookAtPage, Planner
from kling_async._core.polling import Backoff

EPOCH = datetime(2026, 11, 21, tzinfo=UTC)
chances = st.floats(0, 1, exclude_max=True)
PAGES = attrs.evolve(WatchPolicy.fixed(10), pages=True, jitter=0.0)
"""Polls every 10 seconds, so that tests of pages do not depend on learned durations."""


def test_backoff_doubles_up_to_cap() -> None:
    backoff = Backoff(first=0.5, cap=15)
    assert [backoff.delay(failures, 0.5) for failures in range(1, 8)] == [0.5, 1, 2, 4, 8, 15, 15]


@given(st.integers(1, 10**9), chances)
def test_backoff_stays_within_jitter(failures: int, chance: float) -> None:
    backoff = Backoff()
    assert 0 < backoff.first * (1 - backoff.jitter) <= backoff.delay(failures, chance)
    assert backoff.delay(failures, chance) <= backoff.cap * (1 + backoff.jitter)


def test_watch_policy_resolves_names_and_rejects_bad_values() -> None:
    assert WatchPolicy.named("balanced") == WatchPolicy.balanced() == WatchPolicy()
    assert WatchPolicy.named("webhook first") == WatchPolicy.named("webhook_first") == WatchPolicy.webhook_first()
    with pytest.raises(ValueError, match="expected gentle, balanced, eager, webhook first, got 'lazy'"):
        WatchPolicy.named("lazy")
    for wrong in ({"price": 0}, {"least": 0}, {"jitter": 1.0}, {"deliveries": 1.5}, {"least": 5.0, "most": 4.0}):
        with pytest.raises(ValueError, match=r"must|most"):
            WatchPolicy(**wrong)


def plan(
    policy: WatchPolicy, count: int = 1, *, random: float = 0.5, created: bool = True, apart: float = 0.01
) -> Planner:
    planner = Planner(attrs.evolve(policy, scouts=False), lambda: random)
    for number in range(count):
        planner.watch(
            f"p{number}",
            now=0,
            since=0,
            looked=0,
            created=EPOCH + timedelta(seconds=number * apart) if created else None,
            kind="kling",
            usual=120,
        )
    return planner


def shown(
    *ids: str, of: int | None = None, status: Status = Status.PROCESSING, at: datetime = EPOCH
) -> Page[Prediction]:
    items = tuple(Prediction(id=id_, status=status, raw_status=status.value, created_at=at) for id_ in ids)
    return Page(items=items, size=of or len(items))


def pages(planner: Planner, now: float) -> list[LookAtPage]:
    looks = planner.due(now)
    found = [look for look in looks if isinstance(look, LookAtPage)]
    assert found == looks
    return found


def singles(planner: Planner, now: float) -> list[str]:
    looks = planner.due(now)
    found = [look.prediction_id for look in looks if isinstance(look, LookAtOne)]
    assert len(found) == len(looks)
    return found


def test_fixed_policy_polls_at_its_interval() -> None:
    planner = plan(attrs.evolve(WatchPolicy.fixed(5), jitter=0.0))
    for now in (5.0, 10.0, 15.0):
        assert planner.next_due == now
        assert not planner.due(now - 0.1)
        assert singles(planner, now) == ["p0"]
        planner.mark_running("p0", now)


@given(chances)
def test_interval_stays_within_jitter(chance: float) -> None:
    planner = plan(attrs.evolve(WatchPolicy.fixed(10), jitter=0.2), random=chance)
    assert 8 <= planner.next_due <= 12


def test_polls_are_dense_around_usual_duration() -> None:
    """With a usual duration of 120 s: rare at first, then dense, then rare again for unusually long runs."""
    planner = plan(attrs.evolve(WatchPolicy.balanced(), jitter=0.0))
    times = [0.0]
    while len(times) < 40:
        times.append(planner.next_due)
        assert singles(planner, times[-1]) == ["p0"]
        planner.mark_running("p0", times[-1])
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 30 < gaps[0] <= 60
    assert min(gaps) < 20
    assert max(gaps) <= WatchPolicy.balanced().most
    assert gaps[-1] > 2 * min(gaps)


def test_lower_price_polls_earlier() -> None:
    firsts = [plan(policy).next_due for policy in (WatchPolicy.eager(), WatchPolicy.balanced(), WatchPolicy.gentle())]
    assert firsts == sorted(firsts)
    assert firsts[0] < firsts[1] < firsts[2]


def test_many_predictions_share_one_page() -> None:
    planner = plan(PAGES, 80)
    (look,) = pages(planner, 10)
    assert (look.number, look.size) == (1, PAGE_SIZE)
    assert look.before == EPOCH + timedelta(seconds=0.79, milliseconds=1), "counted from the newest prediction"
    planner.page_read(look, shown(*(f"p{number}" for number in range(80)), of=100), 10.2)
    assert planner.next_due == pytest.approx(20.2)
    (again,) = pages(planner, 20.2)
    assert (again.before, again.number) == (look.before, look.number), "new arrivals do not shift it"


def test_page_is_read_earlier_than_a_single_prediction() -> None:
    assert plan(WatchPolicy.balanced(), 80).next_due < plan(WatchPolicy.balanced(), 1).next_due / 2


def test_one_page_request_detects_missing_list() -> None:
    planner = plan(PAGES, 500)
    (look,) = pages(planner, 10)
    planner.pages_unsupported(look, 10.2)
    asked = set(singles(planner, 10.2))
    while len(asked) < 500:
        asked |= set(singles(planner, planner.next_due))
    assert planner.next_due == float("inf")
    for id_ in asked:
        planner.mark_running(id_, 30)
    assert len(singles(planner, 41)) == 500


def test_few_predictions_are_polled_one_by_one() -> None:
    planner = plan(PAGES, 2)
    assert sorted(singles(planner, 10)) == ["p0", "p1"]


def test_predictions_join_a_page_once_their_creation_time_is_known() -> None:
    planner = plan(PAGES, 5, created=False)
    assert len(singles(planner, 10)) == 5
    for number in range(5):
        planner.mark_running(f"p{number}", 10.2, EPOCH + timedelta(seconds=number))
    assert len(pages(planner, 20.2)) == 1


def test_predictions_missing_on_a_full_page_move_to_the_next() -> None:
    planner = plan(PAGES, 80)
    (look,) = pages(planner, 10)
    planner.page_read(look, shown(*(f"p{number}" for number in range(40, 80)), of=100), 10)
    (below,) = pages(planner, 10)
    assert (below.before, below.number) == (look.before, 2)
    planner.page_read(below, shown(*(f"p{number}" for number in range(40)), of=100), 10)
    assert {look.number for look in pages(planner, 20)} == {1, 2}


def test_prediction_missing_on_a_short_page_is_polled_alone() -> None:
    planner = plan(PAGES, 10)
    (look,) = pages(planner, 10)
    planner.page_read(look, shown(*(f"p{number}" for number in range(1, 10))), 10)
    assert singles(planner, 10) == ["p0"]
    planner.mark_running("p0", 10)
    assert sorted(map(type, planner.due(20)), key=str) == [LookAtOne, LookAtPage]


def test_predictions_with_equal_creation_time_use_consecutive_pages() -> None:
    planner = plan(PAGES, 300, apart=0.0)
    names = [f"p{number}" for number in reversed(range(300))]
    numbers = []
    while True:
        look = next(iter(pages(planner, 11)), None)
        if look is None:
            break
        numbers.append(look.number)
        start = (look.number - 1) * PAGE_SIZE
        planner.page_read(look, shown(*names[start : start + PAGE_SIZE]), 11)
    assert numbers == [1, 2, 3]
    assert sorted(look.number for look in pages(planner, 21)) == [1, 2, 3]


def strikes(planner: Planner, page: Page[Prediction], count: int) -> int:
    """Return the number of pages requested when each is answered by `page`."""
    asked = 0
    now = 10.0
    while asked < count and planner.next_due < 400:
        now = max(now, planner.next_due)
        for look in planner.due(now):
            if isinstance(look, LookAtPage):
                asked += 1
                planner.page_read(look, page, now)
            else:
                planner.mark_running(look.prediction_id, now)
    return asked


def test_list_without_our_predictions_pauses_pages() -> None:
    assert strikes(plan(PAGES, 500), shown("another", of=100), 50) == 3


def test_list_that_ignores_its_filter_pauses_pages() -> None:
    planner = plan(PAGES, 20)
    everything = shown(*(f"p{number}" for number in range(20)), of=100, at=EPOCH + timedelta(hours=1))
    assert strikes(planner, everything, 50) == 3


def test_failing_list_pauses_pages_and_is_retried_later() -> None:
    planner = plan(PAGES, 20)
    for now in (10.0, 15.0, 20.0):
        (look,) = pages(planner, now)
        planner.page_failed(look, now, now + 5)
    assert len(singles(planner, 20)) == 20
    for number in range(100, 120):
        planner.watch(f"p{number}", now=20 + PAGES_PAUSE_S, since=20, looked=20, created=EPOCH, kind="kling", usual=120)
    assert len(pages(planner, 20 + PAGES_PAUSE_S)) == 1


def test_list_that_shows_no_end_is_verified_by_single_polls() -> None:
    """The list shows every prediction as running; single polls report the ends."""
    planner = plan(attrs.evolve(WatchPolicy.balanced(), jitter=0.0), 80)
    left, asked, now = {f"p{number}" for number in range(80)}, 0, 0.0
    while left and now < 2000:
        now = max(now, planner.next_due)
        for look in planner.due(now):
            if isinstance(look, LookAtPage):
                asked += 1
                planner.page_read(look, shown(*left, of=100), now)
            elif now >= 120:
                planner.mark_ended(look.prediction_id, now)
                left.remove(look.prediction_id)
            else:
                planner.mark_running(look.prediction_id, now)
    assert not left
    assert now < 400
    assert asked < 60


def test_hold_delays_all_polls() -> None:
    planner = plan(PAGES, 2)
    planner.hold(100)
    assert planner.next_due == 100
    assert not planner.due(99)
    assert len(singles(planner, 100)) == 2


def test_page_read_postpones_the_next_look() -> None:
    planner = plan(PAGES, 200)
    first = pages(planner, 10)
    for look in first:
        planner.page_read(look, shown(*(f"p{number}" for number in range(200)), of=100), 10)
    pages(planner, 11)
    assert planner.next_due > 11


def first_look(planner: Planner) -> float:
    """Return the time of the first look; plans for the far future are made again before it."""
    while True:
        now = planner.next_due
        if planner.due(now):
            return now


def test_polls_become_rarer_as_webhooks_arrive() -> None:
    def after(told: bool) -> float:  # noqa: FBT001 -- one of two cases
        """Return the age of the first look after 200 ends, all or none of them via webhook."""
        planner = plan(attrs.evolve(WatchPolicy.webhook_first(), jitter=0.0), 200, created=False)
        for number in range(200):
            planner.mark_ended(f"p{number}", 120, via_webhook=told)
        planner.watch("new", now=120, since=120, looked=120, created=None, kind="other", usual=120)
        return first_look(planner) - 120

    alone = first_look(plan(attrs.evolve(WatchPolicy.webhook_first(), deliveries=0.0, jitter=0.0), created=False))
    assert after(told=False) == pytest.approx(alone, rel=0.01)
    assert after(told=True) > 1.5 * alone


def test_delay_is_bounded_by_last_poll_and_reported_duration() -> None:
    planner = plan(PAGES, 3, created=False)
    for number in range(3):
        planner.mark_running(f"p{number}", 100)
    planner.mark_ended("p0", 110)
    assert planner.delay == 10
    planner.mark_ended("p1", 110, took=104.0)
    planner.mark_ended("p2", 110, via_webhook=True)
    assert planner.delay == (10 + 6) / 2, "a webhook gives no bound"
    assert (planner.ended, planner.ended_via_webhook) == (3, 1)


def test_scout_detects_a_fast_service_for_all_of_its_kind() -> None:
    planner = Planner(attrs.evolve(WatchPolicy.balanced(), jitter=0.0), lambda: 0.5)
    for name in "abcd":
        planner.watch(name, now=0.0, since=0.0, looked=0.0, created=None, kind="k", usual=120.0)
    looked = []
    while planner.next_due < 41:
        at = planner.next_due
        for look in planner.due(at):
            assert isinstance(look, LookAtOne)
            looked.append((look.prediction_id, at))
            planner.mark_running(look.prediction_id, at)
    assert [look for look in looked if look[0] == "a"][:3] == [("a", 5.0), ("a", 10.0), ("a", 20.0)]
    assert [at for name, at in looked if name != "a" and at < 20] == []
    fast = Planner(attrs.evolve(WatchPolicy.balanced(), jitter=0.0), lambda: 0.5)
    for name in "abcd":
        fast.watch(name, now=0.0, since=0.0, looked=0.0, created=None, kind="k", usual=120.0)
    assert [fast.next_due for _ in fast.due(5.0)] != []
    before = fast.next_due
    fast.mark_ended("a", 5.0, took=2.0)
    for look in fast.due(5.0):
        raise AssertionError(look)
    assert fast.next_due < before / 1.5
    fast.watch("e", now=6.0, since=6.0, looked=6.0, created=None, kind="k", usual=120.0)
    fast.forget("e")

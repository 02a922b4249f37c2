"""Policies, backoff, and the planner: times of polls, single polls and pages."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import Prediction, Status, WatchPolicy
from kling_async._core.account import Page
from kling_async._core.answers import Kind
from kling_async._core.planner import PAGE_SIZE, PAGES_PAUSE_S, SCOUT_RATIO, LookAtOne, LookAtPage, Planner
from kling_async._core.polling import Backoff
from kling_async._core.read_rate import RECOVERY_S, ReadRate, default_ceiling

EPOCH = datetime(2026, 11, 21, tzinfo=UTC)
chances = st.floats(0, 1, exclude_max=True)
PAGES = attrs.evolve(WatchPolicy.fixed(10), pages=True)
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
    assert WatchPolicy.named("list").pages
    assert not [name for name in ("gentle", "balanced", "eager", "webhook first") if WatchPolicy.named(name).pages]
    with pytest.raises(ValueError, match="expected gentle, balanced, eager, webhook first, list, got 'lazy'"):
        WatchPolicy.named("lazy")
    for wrong in ({"price": 0}, {"least": 0}, {"least": 5.0, "most": 4.0}):
        with pytest.raises(ValueError, match=r"must|most"):
            WatchPolicy(**wrong)


def plan(
    policy: WatchPolicy, count: int = 1, *, created: bool = True, apart: float = 0.01, ceiling: float = math.inf
) -> Planner:
    planner = Planner(policy, ceiling)
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
    planner = plan(WatchPolicy.fixed(5))
    for now in (5.0, 10.0, 15.0):
        assert planner.next_due == now
        assert not planner.due(now - 0.1)
        assert singles(planner, now) == ["p0"]
        planner.mark_running("p0", now)


def test_polls_are_dense_around_usual_duration() -> None:
    """With a usual duration of 120 s: not at first, then dense, then rare again for unusually long runs."""
    planner = plan(WatchPolicy.balanced())
    times = [0.0]
    while len(times) < 150:
        times.append(planner.next_due)
        assert singles(planner, times[-1]) == ["p0"]
        planner.mark_running("p0", times[-1])
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 20 < gaps[0] < 30
    assert min(gaps) == pytest.approx(WatchPolicy.balanced().least)
    assert gaps[-1] > 1.5 * min(gaps)


def test_second_of_a_kind_is_read_early_too() -> None:
    """A first one that is alone is not: its caller pays no request for that."""
    planner = plan(WatchPolicy.balanced(), 3)
    times = []
    while planner.next_due < 20:
        times.append(planner.next_due)
        assert singles(planner, times[-1]) == ["p1"]
        planner.mark_running("p1", times[-1])
    assert times == [5.45, 5.45 * SCOUT_RATIO]
    assert plan(WatchPolicy.balanced(), 1).next_due > 20


def test_early_end_tells_that_all_are_faster() -> None:
    """With a usual duration of 120 s: the others are not read after 25 s, as they were planned, but now."""
    planner = plan(WatchPolicy.balanced(), 30)
    assert singles(planner, 6.0) == ["p1"]
    planner.mark_ended("p1", 6.0, took=3.0)
    found = [look for at in (6.5, 7.0, 7.5, 8.0) for look in singles(planner, at)]
    assert len(found) == 29


def test_eager_policy_reads_one_that_is_alone_early() -> None:
    assert plan(WatchPolicy.eager(), 1).next_due == 2.0


@pytest.mark.parametrize("name", ["balanced", "gentle", "webhook first", "list"])
def test_no_prediction_is_read_sooner_than_the_vendor_asks(name: str) -> None:
    """Not within 5 s of the last read (docs: get-result), whatever has been learned; `eager` asks for more."""
    planner, rng = Planner(WatchPolicy.named(name), math.inf), random.Random(2)
    for number in range(60):
        since = last = 1000.0 * number
        planner.watch("p", now=since, since=since, looked=since, created=None, kind="kling", usual=120)
        ends = since + 30 * rng.lognormvariate(0, 0.3)
        while last < ends:
            at = planner.next_due
            if singles(planner, at):
                assert at - last >= 5.0
                last = at
                planner.mark_running("p", at)
        planner.mark_ended("p", last)


def test_lower_price_polls_earlier() -> None:
    names = ("eager", "balanced", "gentle", "webhook first")
    firsts = [plan(WatchPolicy.named(name)).next_due for name in names]
    assert firsts == sorted(set(firsts))


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
    assert plan(WatchPolicy.listed(), 80).next_due < plan(WatchPolicy.listed(), 1).next_due / 2


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
    (look,) = pages(planner, 20 + PAGES_PAUSE_S)
    planner.page_failed(look, 21 + PAGES_PAUSE_S, 26 + PAGES_PAUSE_S)
    assert len(singles(planner, 21 + PAGES_PAUSE_S)) >= 20, "one failure is enough now"


def test_list_that_shows_no_end_is_verified_by_single_polls() -> None:
    """The list shows every prediction as running; single polls report the ends."""
    planner = plan(WatchPolicy.listed(), 80)
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


def test_hold_delays_requests_of_its_kind_alone() -> None:
    planner = plan(PAGES, 202)
    planner.hold(Kind.STATUS, 100)
    first = planner.due(10)
    assert {type(look) for look in first} == {LookAtPage}
    for look in first:
        planner.postpone(look, 20)
    planner.hold(Kind.PAGE, 100)
    planner.hold(Kind.PAGE, 50)
    assert not planner.due(99)
    assert {type(look) for look in planner.due(100)} == {LookAtPage}
    few = plan(PAGES, 2)
    few.hold(Kind.PAGE, 100)
    assert len(singles(few, 10)) == 2
    few.postpone(LookAtOne("p0"), 20)
    few.postpone(LookAtOne("not watched"), 20)
    few.hold(Kind.STATUS, 100)
    assert not few.due(99)
    assert singles(few, 100) == ["p0"]


def test_page_read_postpones_the_next_look() -> None:
    planner = plan(PAGES, 200)
    first = pages(planner, 10)
    for look in first:
        planner.page_read(look, shown(*(f"p{number}" for number in range(200)), of=100), 10)
    pages(planner, 11)
    assert planner.next_due > 11


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


# ---- reads per second ----


def test_default_ceiling_follows_slots() -> None:
    assert [default_ceiling(slots) for slots in (2, 300, 3000, 10_000)] == [100, 100, 300, 400]


def handed_out(planner: Planner, seconds: float, late: Callable[[], float] = lambda: 0.0) -> list[float]:
    """Return the times of all looks when each timer fires up to some seconds late."""
    times: list[float] = []
    while (now := planner.next_due + late()) < seconds:
        times += [now for _ in planner.due(now)]
    return times


@pytest.mark.parametrize("ceiling", [0.5, 1, 7, 100, 250, 333, 400])
@pytest.mark.parametrize("late", [0.0, 0.003, 0.05])
def test_no_second_has_more_reads_than_the_ceiling(ceiling: float, late: float) -> None:
    rng, seconds = random.Random(1), max(5.0, 20 / ceiling)
    planner = plan(WatchPolicy.fixed(5), int(seconds * ceiling) + 10, ceiling=ceiling)
    times = handed_out(planner, 5 + seconds, lambda: rng.uniform(0, late))
    most = max(bisect_left(times, at + 1) - number for number, at in enumerate(times))
    assert most <= max(ceiling, 1)
    if late < 0.01:
        assert len(times) >= 0.93 * seconds * ceiling, "the ceiling is used"


def test_reads_without_a_ceiling_are_not_spaced() -> None:
    planner = plan(WatchPolicy.fixed(5), 1000)
    assert len(planner.due(5)) == 1000
    planner.rate.refused(5)
    assert planner.rate.at(5) == math.inf


def test_refused_read_halves_the_rate_which_recovers() -> None:
    rate = ReadRate(100)
    rate.refused(10)
    rate.refused(10.5)
    assert rate.at(10.5) == pytest.approx(50, abs=1), "refusals of reads that were sent together count once"
    rate.refused(11.5)
    assert rate.at(11.5) == pytest.approx(26, abs=1)
    assert rate.at(11.5 + RECOVERY_S / 2) == pytest.approx(76, abs=1)
    assert rate.at(11.5 + RECOVERY_S) == 100
    for number in range(100):
        rate.refused(100 + number)
    assert rate.at(200) >= 1, "it never stops"


def test_most_overdue_prediction_is_read_first() -> None:
    planner = plan(WatchPolicy.fixed(5), 30, ceiling=1)
    looks = [name for _ in range(30) for name in singles(planner, planner.next_due)]
    assert looks == [f"p{number}" for number in range(30)]

"""Plans the polling of predictions, one by one or by pages of the list. Pure: no clock, no I/O, no chance."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import attrs

from .answers import Kind
from .durations import Durations
from .read_rate import ReadRate

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from .account import Page
    from .polling import WatchPolicy
    from .prediction import Prediction

PAGE_SIZE = 100
"""Most predictions on one page (docs: predictions)."""
MAX_GROUP_SIZE = 90
"""Predictions planned for one page; below `PAGE_SIZE`, because predictions of other sessions may lie in between."""
MIN_GROUP_SIZE = 3
"""Predictions that make a page worth one request; fewer are polled one by one."""
MAX_PAGE_STRIKES = 3
"""Useless or wrong pages, or failures in a row, after which pages are paused for `PAGES_PAUSE_S`.

After failures, one more failure pauses them again, until a page is read.
"""
PAGES_PAUSE_S = 600.0
"""Seconds for which the list is not read after `MAX_PAGE_STRIKES`."""
MAX_UNSEEN_ENDS = 3.0
"""Ends that were expected while the pages showed none, from which on the page is verified by polling one prediction."""
MAX_PLAN_AGE_S = 60.0
"""Seconds after which a plan for the far future is made again, with the durations learned meanwhile."""
LATER_PRICE_SHARE = 0.7
"""Share of the price for predictions that were polled before: their ends are near, and every pause adds delay."""
SCOUT_RATIO = 3.0
"""Ratio of the ages at which a scout is read: first after the shortest interval, until its plan is sooner."""
_SAMPLE_SIZE = 8
"""Predictions of a group that stand for all of them when its time is planned."""
_CREATED_MARGIN = timedelta(milliseconds=1)
"""Added to the newest creation time of a group, because services truncate times."""
_FILTER_TOLERANCE = timedelta(seconds=1)
"""Time by which a page may exceed its `created_before` before the service is taken to ignore that filter."""


@attrs.frozen(eq=False)
class LookAtOne:
    """Poll one prediction.

    Attributes:
        prediction_id: Its id.
        kind: Kind of the request.
    """

    prediction_id: str
    kind: ClassVar[Kind] = Kind.STATUS


@attrs.frozen(eq=False)
class LookAtPage:
    """Read one page of the list, counted back from a creation time, so that new predictions do not shift it.

    Attributes:
        before: The `created_before` of the request.
        number: Page number, from 1.
        size: Page size.
        group: The planner's own record of the page.
        kind: Kind of the request.
    """

    before: datetime
    number: int
    size: int
    group: _Group = attrs.field(repr=False)
    kind: ClassVar[Kind] = Kind.PAGE


Look: TypeAlias = LookAtOne | LookAtPage


@attrs.define(eq=False)
class _Planned:
    """An item of the heap.

    Attributes:
        due: Time of the next look; heap entries with another time are void.
        stale: Whether to plan it again at that time instead: its predictions were seen since, or the plan is old.
    """

    due: float = math.inf
    stale: bool = False


@attrs.define(eq=False)
class _Track(_Planned):
    """One prediction; polled alone unless it has a group.

    Attributes:
        durations: Learned durations of its kind.
        since: Creation time, by the local clock.
        looked: Time at which it was last known to run.
        created: Creation time by the service's clock, which gives its place in the list.
        checks: Whether its next poll verifies a page.
    """

    id: str = attrs.field(kw_only=True)
    durations: Durations = attrs.field(kw_only=True)
    since: float = attrs.field(kw_only=True)
    looked: float = attrs.field(kw_only=True)
    created: datetime | None = attrs.field(kw_only=True)
    group: _Group | None = None
    checks: bool = False

    def chance(self, at: float) -> float:
        """Return the probability that it has ended by `at`."""
        return self.durations.chance(self.looked - self.since, at - self.since)


@attrs.define(eq=False)
class _Group(_Planned):
    """Predictions on one page.

    Attributes:
        members: Predictions by id.
        before: The page's `created_before`; None until the page is first read.
        number: Page number, from 1.
        asked: Whether a request for the page is in flight.
        expected: Ends that were expected since the page last showed one.
    """

    members: dict[str, _Track] = attrs.Factory(dict)
    before: datetime | None = None
    number: int = 1
    asked: bool = False
    expected: float = 0.0


class Planner:
    """Plans the polling of all predictions of a session. All times are seconds of one monotonic clock.

    Args:
        policy: Polling policy.
        ceiling: Reads per second; infinite for no limit.

    Attributes:
        rate: Reads per second that may be sent.
        page_failures: Failed reads of pages since the last successful one.
        ended: Predictions whose end is known.
        ended_via_webhook: Subset of `ended` that a webhook reported first.
    """

    def __init__(self, policy: WatchPolicy, ceiling: float) -> None:
        self.rate = ReadRate(ceiling)
        self.page_failures = 0
        self.ended = 0
        self.ended_via_webhook = 0
        self._policy = policy
        # A fixed interval does not depend on durations.
        self._learns = policy.pages or policy.least < policy.most
        self._durations: dict[Hashable, Durations] = {}
        self._begun: Counter[Hashable] = Counter()
        # Read early, too: they may end long before the usual duration, by a refusal of their content, or because the
        # service is faster than the catalogue knows.
        self._scouts: set[_Track] = set()
        self._tracks: dict[str, _Track] = {}
        self._heap: list[tuple[float, int, _Track | _Group]] = []
        self._order = itertools.count()
        # Time before which no request of a kind is sent, as requested by the service.
        self._held_until: dict[Kind, float] = {}
        self._gathering = _Group()
        self._groups: dict[tuple[datetime, int], _Group] = {}
        self._pages_from = -math.inf if policy.pages else math.inf
        self._pages_proven = False
        self._strikes = 0
        self._delay_sum = 0.0
        self._delay_count = 0

    @property
    def delay(self) -> float | None:
        """Mean of the upper bounds of the seconds from an end to its being known; None before the first end."""
        return self._delay_sum / self._delay_count if self._delay_count else None

    @property
    def next_due(self) -> float:
        """Time at which to call `due` next; infinite when there is nothing to poll."""
        return max(self._heap[0][0], self.rate.free_at) if self._heap else math.inf

    def watch(
        self,
        prediction_id: str,
        *,
        now: float,
        since: float,
        looked: float,
        created: datetime | None,
        kind: Hashable,
        usual: float,
    ) -> None:
        """Begin to watch a prediction.

        Args:
            prediction_id: Its id.
            now: The time.
            since: Creation time, by the local clock.
            looked: Time at which it was last known to run.
            created: Creation time by the service's clock; without it the prediction cannot be found on a page.
            kind: Key of predictions with similar durations.
            usual: Expected duration in seconds, until the durations of its kind are learned.
        """
        durations = self._durations.get(kind)
        if durations is None:
            durations = self._durations[kind] = Durations(usual)
        track = _Track(id=prediction_id, durations=durations, since=since, looked=looked, created=created)
        if self._learns:
            self._begun[kind] += 1
            if self._begun[kind] == self._policy.scout:
                self._scouts.add(track)
        self._tracks[prediction_id] = track
        self._place(track, now)

    def due(self, now: float) -> list[Look]:
        """Return what to poll now, no more than the rate permits. Report each result by one of the methods below."""
        looks: list[Look] = []
        room = self.rate.room(now)
        while self._heap and self._heap[0][0] <= now and len(looks) + 1 <= room:
            due, _, planned = heapq.heappop(self._heap)
            if planned.due != due:
                continue
            planned.due = math.inf
            if planned.stale:
                self._plan(planned, now)
                continue
            for look in [LookAtOne(planned.id)] if isinstance(planned, _Track) else self._page_of(planned, now):
                held_until = self.held_until(look.kind)
                if held_until > now:
                    self.postpone(look, held_until)
                else:
                    looks.append(look)
        if looks:
            self.rate.take(len(looks), now)
        return looks

    def postpone(self, look: Look, at: float) -> None:
        """Take back a look that was not made; `due` returns it at the given time."""
        if isinstance(look, LookAtPage):
            look.group.asked = False
            self._push(look.group, at)
        elif look.prediction_id in self._tracks:
            self.look_again(look.prediction_id, at)

    def mark_running(self, prediction_id: str, now: float, created: datetime | None = None) -> None:
        """Record that a prediction was polled alone and still runs."""
        track = self._tracks[prediction_id]
        self._seen_running(track, now)
        if track.checks:
            track.checks = False
            if track.group is not None:
                track.group.expected = 0.0
        if track.created is None and created is not None:
            track.created = created
            self._place(track, now)
        elif track.group is None:
            self._plan(track, now)

    def look_again(self, prediction_id: str, at: float) -> None:
        """Poll a prediction alone at a time, after a failed poll or an incomplete list item."""
        self._push(self._tracks[prediction_id], at)

    def mark_ended(
        self, prediction_id: str, now: float, *, took: float | None = None, via_webhook: bool = False
    ) -> None:
        """Record the end of a prediction, and learn from it.

        Args:
            prediction_id: Its id.
            now: The time at which the end became known.
            took: Seconds of generation as the service reports them, or None. Queueing may come on top.
            via_webhook: Whether a webhook reported it.
        """
        track = self._tracks[prediction_id]
        looked, age = track.looked - track.since, now - track.since
        if via_webhook:
            self._seen_running(track, now)
            track.durations.ended(age, age)
        elif took is not None and looked < took <= age:
            track.durations.ran(looked, took)
            track.durations.ended(took, took)
        else:
            track.durations.ended(looked, age)
        if took is not None or not via_webhook:
            self._delay_sum += min(age - looked, max(0.0, age - (took or 0.0)))
            self._delay_count += 1
        self.ended += 1
        self.ended_via_webhook += via_webhook
        group, scouted = track.group, track in self._scouts
        self.forget(prediction_id)
        if scouted:
            # All others were planned for the usual duration.
            self._plan_again(track.durations, now)
        if track.checks:
            # The page showed it as running: either it ended just now, or the list lags. The next check shows which.
            self._strike(now)
            if group is not None and now >= self._pages_from:
                self._check(group, now)

    def forget(self, prediction_id: str) -> None:
        """Stop watching a prediction; no effect if it is not watched."""
        track = self._tracks.pop(prediction_id, None)
        if track is not None:
            track.due = math.inf
            self._scouts.discard(track)
            self._leave_group(track)

    def hold(self, kind: Kind, until: float) -> None:
        """Send no request of a kind before a time, as the service asked."""
        self._held_until[kind] = max(self.held_until(kind), until)

    def held_until(self, kind: Kind) -> float:
        """Return the time before which no request of a kind is sent."""
        return self._held_until.get(kind, -math.inf)

    def page_read(self, look: LookAtPage, page: Page[Prediction], now: float) -> None:
        """Record a page. Call `mark_ended` for the ended predictions on it afterwards."""
        group = look.group
        group.asked = False
        self.page_failures = 0
        shown = {item.id: item.status.ended for item in page.items if item.id in self._tracks}
        group.expected += sum(track.chance(now) for track in group.members.values() if track.id in shown)
        missing = [track for track in group.members.values() if track.id not in shown]
        self._pages_proven = self._pages_proven or bool(shown)
        if any(shown.values()):
            self._strikes = 0
            group.expected = 0.0
        for prediction_id, ended in shown.items():
            if not ended:
                self._on_page(self._tracks[prediction_id], group, now)
        limit = look.before + _FILTER_TOLERANCE
        ignores_filter = any(item.created_at is not None and item.created_at > limit for item in page.items)
        if ignores_filter or (missing and len(shown) < MIN_GROUP_SIZE):
            self._strike(now)
            self._ungroup(missing, now)
        elif page.size < look.size:
            self._ungroup(missing, now)
        elif missing:
            self._to_next_page(missing, look, now)
        if group.expected >= MAX_UNSEEN_ENDS:
            self._check(group, now)
        self._plan(group, now)

    def page_failed(self, look: LookAtPage, now: float, again: float) -> None:
        """Record that a page could not be read; try again at the time `again`."""
        look.group.asked = False
        self.page_failures += 1
        if self.page_failures >= MAX_PAGE_STRIKES:
            self._pause_pages(now)
            again = now
        self._push(look.group, again)

    def pages_unsupported(self, look: LookAtPage, now: float) -> None:
        """Stop reading pages: the provider has no list."""
        self._pages_from = math.inf
        look.group.asked = False
        self._push(look.group, now)

    def _place(self, track: _Track, now: float) -> None:
        """Add a prediction to the group that is being filled, or plan it alone."""
        if track.created is None or now < self._pages_from:
            self._plan(track, now)
            return
        group = self._gathering
        if group.before is not None or len(group.members) >= MAX_GROUP_SIZE:
            group = self._gathering = _Group()
        self._join_group(track, group)
        # The due time falls with the square root of the group's size: planning at each doubling is enough.
        if len(group.members).bit_count() == 1 or len(group.members) == MAX_GROUP_SIZE:
            self._plan(group, now)

    def _page_of(self, group: _Group, now: float) -> list[Look]:
        """Return the look at a group's page; empty when its members are polled alone, elsewhere, or later."""
        if group.asked:
            return []
        if now < self._pages_from or len(group.members) < MIN_GROUP_SIZE:
            self._ungroup(list(group.members.values()), now)
            return []
        if not self._pages_proven and any(other.asked for other in self._groups.values()):
            # One request is enough to learn whether the provider has a list.
            self._push(group, now + 1.0)
            return []
        if group.before is None:
            created = (track.created for track in group.members.values() if track.created is not None)
            group.before = max(created) + _CREATED_MARGIN
            there = self._groups.setdefault((group.before, group.number), group)
            if there is not group:
                # More predictions with one creation time than a page holds: the rest are on the following pages.
                for track in list(group.members.values()):
                    self._join_group(track, there)
                if not there.asked:
                    self._push(there, now)
                return []
        group.asked = True
        return [LookAtPage(group.before, group.number, PAGE_SIZE, group)]

    def _check(self, group: _Group, now: float) -> None:
        """Poll alone the member that has most likely ended, to verify a page that shows it as running."""
        if group.members:
            oldest = min(group.members.values(), key=lambda track: track.since)
            oldest.checks = True
            self._push(oldest, now)

    def _on_page(self, track: _Track, group: _Group, now: float) -> None:
        """Record that a page showed a prediction as running."""
        self._seen_running(track, now)
        if track.group is None:
            track.stale = True
        elif track.group is not group:
            if track.group.before in {None, group.before}:
                self._join_group(track, group)
            else:
                track.group.stale = True

    def _to_next_page(self, missing: Iterable[_Track], look: LookAtPage, now: float) -> None:
        """Move the members that a full page did not show to the next page."""
        key = (look.before, look.number + 1)
        below = self._groups.setdefault(key, _Group(before=look.before, number=look.number + 1))
        for track in missing:
            self._join_group(track, below)
        if not below.asked:
            self._push(below, now)

    def _ungroup(self, tracks: Iterable[_Track], now: float) -> None:
        for track in tracks:
            self._leave_group(track)
            self._plan(track, now)

    def _join_group(self, track: _Track, group: _Group) -> None:
        self._leave_group(track)
        track.due = math.inf
        track.group = group
        group.members[track.id] = track

    def _leave_group(self, track: _Track) -> None:
        group, track.group = track.group, None
        if group is not None:
            del group.members[track.id]
            if not group.members and not group.asked:
                self._disband(group)

    def _disband(self, group: _Group) -> None:
        group.due = math.inf
        if group.before is not None and self._groups.get((group.before, group.number)) is group:
            del self._groups[group.before, group.number]

    def _seen_running(self, track: _Track, now: float) -> None:
        if self._learns:
            track.durations.ran(track.looked - track.since, now - track.since)
        track.looked = now

    def _strike(self, now: float) -> None:
        self._strikes += 1
        if self._strikes >= MAX_PAGE_STRIKES:
            self._pause_pages(now)

    def _pause_pages(self, now: float) -> None:
        self._strikes = 0
        self._pages_from = max(self._pages_from, now + PAGES_PAUSE_S)
        for group in self._groups.values():
            self._push(group, now)

    def _plan_again(self, durations: Durations, now: float) -> None:
        """Plan all predictions of a kind again."""
        same = [track for track in self._tracks.values() if track.durations is durations]
        for planned in dict.fromkeys(track if track.group is None else track.group for track in same):
            if planned.due < math.inf:
                self._plan(planned, now)

    def _plan(self, planned: _Track | _Group, now: float) -> None:
        planned.stale = False
        if isinstance(planned, _Group) and not planned.members:
            self._disband(planned)
            return
        tracks = [planned] if isinstance(planned, _Track) else list(planned.members.values())
        at = self._next_look(tracks, now)
        for track in self._scouts.intersection(tracks) if self._scouts else ():
            early = track.since + max(self._policy.least, SCOUT_RATIO * (track.looked - track.since))
            if early >= at:
                self._scouts.discard(track)
            at = max(now, min(at, early))
        if at > now + MAX_PLAN_AGE_S:
            planned.stale, at = True, now + MAX_PLAN_AGE_S
        self._push(planned, at)

    def _push(self, planned: _Track | _Group, at: float) -> None:
        planned.due = at
        heapq.heappush(self._heap, (at, next(self._order), planned))

    def _next_look(self, tracks: list[_Track], now: float) -> float:
        """Return the time at which the expected delay of unnoticed ends has grown to the price of one request."""
        first = tracks[0].looked if len(tracks) == 1 else min(track.looked for track in tracks)
        at = max(now, first + self._policy.least)
        latest = max(now, first + self._policy.most)
        if at >= latest:
            return latest
        few = tracks[:: -(-len(tracks) // _SAMPLE_SIZE)]
        price = self._policy.price * len(few) / len(tracks)
        if all(track.looked > track.since for track in few):
            price *= LATER_PRICE_SHARE

        def unnoticed(at: float) -> float:
            """Return the expected number of unnoticed ends at a time."""
            return sum(track.chance(at) for track in few)

        # The integral of `unnoticed`: seconds of delay, summed over the predictions.
        delay = unnoticed(at) * (at - first) / 2
        step = (at - first) / 8
        while delay < price and at < latest:
            rate = unnoticed(at + step / 2)
            if delay + rate * step >= price:
                return min(at + (price - delay) / rate, latest)
            delay += rate * step
            at += step
            step *= 1.1
        return min(at, latest)

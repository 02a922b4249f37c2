"""When to look next, and in which way. Pure: times, news and random numbers in, what to ask for out."""

from __future__ import annotations

import heapq
import itertools
import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self, TypeAlias

import attrs

from .durations import Durations

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from .account import Page
    from .prediction import Prediction


@attrs.frozen(kw_only=True)
class Backoff:
    """Delays that double, with jitter.

    Attributes:
        first: Seconds before the second attempt, on average.
        cap: Seconds that no delay exceeds, before jitter.
        jitter: The share of a delay by which it varies to either side.
    """

    first: float = 0.5
    cap: float = 15.0
    jitter: float = 0.5

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after the `failures`-th failure in a row (from 1); `chance` is uniform in [0, 1)."""
        base = min(self.first * 2.0 ** min(failures - 1, 60), self.cap)
        return base * (1 + self.jitter * (2 * chance - 1))


@attrs.frozen(kw_only=True)
class WatchPolicy:
    """How eagerly it is found out which predictions have ended. Take one by name, or a copy with `attrs.evolve`.

    A prediction that has ended, and nobody knows, wastes the time of who waits for it. It is looked at when the time
    that has probably been wasted is worth the `price` of a look: rarely at ages at which hardly any end, often when
    most do, and many at once on a page of the list when many are watched.

    Attributes:
        price: Seconds of waiting that one status request is worth.
        least: Seconds from one look at a prediction to the next at least. The vendor asks for 5 or more for videos.
        most: Seconds from one look to the next at most.
        pages: Whether the list of predictions is read where many are watched: up to 100 for one request.
        deliveries: The share of ends that webhooks are trusted to tell, to begin with; what is trusted then follows
            what they do tell.
        scouts: Whether the first of an unknown kind is looked at early, at the age of 5 s and at every doubling, until
            an end has been seen: a service may be much faster than the catalogue says, and one finds out for all.
        jitter: The share by which the time to the next look varies to either side, so that a batch is not read in step.
    """

    price: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    least: float = attrs.field(default=2.0, validator=attrs.validators.gt(0))
    most: float = attrs.field(default=60.0)
    pages: bool = True
    deliveries: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    scouts: bool = True
    jitter: float = attrs.field(default=0.15, validator=[attrs.validators.ge(0), attrs.validators.lt(1)])

    def __attrs_post_init__(self) -> None:
        if not self.most >= self.least:
            raise ValueError(f"most: expected at least the {self.least:g} s of least, got {self.most!r}")

    @classmethod
    def gentle(cls) -> Self:
        """Few requests, later news; keeps to what the vendor asks of pollers."""
        return cls(price=4.0, least=5.0, most=120.0)

    @classmethod
    def balanced(cls) -> Self:
        """A request for a second of waiting. The default."""
        return cls()

    @classmethod
    def eager(cls) -> Self:
        """Early news for more requests."""
        return cls(price=0.25, least=1.0, most=30.0)

    @classmethod
    def fixed(cls, interval: float) -> Self:
        """One request for every prediction every `interval` seconds, whatever is known."""
        return cls(least=interval, most=interval, pages=False, scouts=False)

    @classmethod
    def webhook_first(cls) -> Self:
        """Webhooks tell, and reading is for what they do not: hardly any requests while they are delivered.

        As far as they fail to, it is read as by a policy of few requests.
        """
        return cls(price=20.0, least=5.0, most=600.0, deliveries=1.0, scouts=False)

    @classmethod
    def named(cls, name: str) -> Self:
        """The policy of a name: "gentle", "balanced", "eager" or "webhook first".

        Raises:
            ValueError: There is none.
        """
        named = {"gentle": cls.gentle, "balanced": cls.balanced, "eager": cls.eager, "webhook first": cls.webhook_first}
        policy = named.get(name.replace("_", " ").replace("-", " "))
        if policy is None:
            raise ValueError(f"no policy is called {name!r}: " + ", ".join(named))
        return policy()


@attrs.frozen(kw_only=True)
class WatchStatistics:
    """What the watching of a session has cost and brought, at one moment.

    Attributes:
        singles: Status requests for one prediction that were sent.
        pages: Status requests for a page of the list that were sent.
        ended: Predictions whose end was found out.
        told: Of these: those that a webhook told first.
        delay: Mean of the seconds between an end and its being known, at most; None before the first. The service does
            not say when a prediction ended: it was not before the last look at it, nor before the time that the
            generation took had passed.
        watched: Predictions that are watched.
        waiting: How many wait for one.
    """

    singles: int
    pages: int
    ended: int
    told: int
    delay: float | None
    watched: int
    waiting: int

    @property
    def requests(self) -> int:
        """Status requests that were sent."""
        return self.singles + self.pages

    @property
    def requests_per_end(self) -> float | None:
        """Status requests for each prediction whose end was found out; None before the first."""
        return self.requests / self.ended if self.ended else None


PAGE = 100
"""Predictions on a page at most (docs: predictions)."""
GATHERED = 90
"""Predictions that share a page to begin with: less than a page has, since others may lie in between."""
WORTH = 3
"""Predictions for which a page is read; fewer are read one by one."""
STRIKES = 3
"""Pages that told nothing or were wrong, or failed in a row, after which the list is left alone for a while."""
REST = 600.0
"""Seconds of that while."""
SILENT = 3.0
"""Ends that were expected while a page showed none, from which on it is checked by a single read."""
STANDS = 60.0
"""Seconds for which a plan stands: what is far off is planned again then, by what was learned meanwhile."""
UNTOLD = 0.002
"""The share of ends that webhooks are believed not to tell at least: reading remains the safety net."""
SCOUTING = 5.0
"""Seconds of age at which a scout is first looked at."""
_SAMPLE = 8
"""Predictions of a page that stand for all of them when its time is planned."""


@attrs.frozen(eq=False)
class LookAtOne:
    """Read one prediction."""

    prediction_id: str


@attrs.frozen(eq=False)
class LookAtPage:
    """Read a page of the list.

    It counts from a time of creation, not from the newest: what arrives meanwhile does not push anything down.

    Attributes:
        before: The `created_before` to ask for.
        number: The number of the page.
        size: Its size.
    """

    before: datetime
    number: int
    size: int
    _group: _Group = attrs.field(repr=False)


Look: TypeAlias = LookAtOne | LookAtPage


@attrs.define(eq=False)
class _Planned:
    """Something in the heap.

    Attributes:
        due: When it is to be looked at; an entry of the heap with another time is void.
        stale: Whether it is to be planned again then: its predictions were looked at since, or that is long ago.
    """

    due: float = math.inf
    stale: bool = False


@attrs.define(eq=False)
class _Track(_Planned):
    """One prediction. Without a group it is looked at by itself.

    Attributes:
        durations: What is known of its kind.
        since: When it was created, by our clock.
        looked: When it was last known to run.
        created: When it was created, by the service's clock: its place in the list.
        checks: Whether the read that is due checks what a page said.
        scouts: Whether it is looked at early, by itself, because nothing has been seen of its kind.
    """

    id: str = attrs.field(kw_only=True)
    durations: Durations = attrs.field(kw_only=True)
    since: float = attrs.field(kw_only=True)
    looked: float = attrs.field(kw_only=True)
    created: datetime | None = attrs.field(kw_only=True)
    group: _Group | None = None
    checks: bool = False
    scouts: bool = False

    def chance(self, at: float) -> float:
        """The probability that it has ended by then."""
        return self.durations.chance(self.looked - self.since, at - self.since)


@attrs.define(eq=False)
class _Group(_Planned):
    """Predictions that lie on one page.

    Attributes:
        members: By their ids.
        before: The time that the page counts from; None until it is first read.
        number: The number of the page from there.
        asked: Whether it is being read.
        expected: Ends that were expected since the page last showed one.
    """

    members: dict[str, _Track] = attrs.Factory(dict)
    before: datetime | None = None
    number: int = 1
    asked: bool = False
    expected: float = 0.0


class Planner:
    """Decides for all predictions of a session what to ask for, and when. All times are seconds of one clock.

    Args:
        policy: How eagerly.
        random: Draws from [0, 1), for jitter.
    """

    def __init__(self, policy: WatchPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random
        # A fixed interval is the same whatever is known.
        self._learns = policy.pages or policy.least < policy.most
        self._durations: dict[Hashable, Durations] = {}
        self._scouted: set[Durations] = set()
        self._tracks: dict[str, _Track] = {}
        self._heap: list[tuple[float, int, _Track | _Group]] = []
        self._order = itertools.count()
        self.held_until = -math.inf
        """Until when nothing is to be asked for: the service said so."""
        self._gathering = _Group()
        self._groups: dict[tuple[datetime, int], _Group] = {}
        self._pages_from = -math.inf if policy.pages else math.inf
        self._pages_proven = False
        self._page_failures = 0
        self._strikes = 0
        self._trusted = policy.deliveries
        self.ended = 0
        """Predictions whose end was found out."""
        self.told = 0
        """Of these: those that a webhook told first."""
        self._delays = 0.0
        self._delays_known = 0

    @property
    def delay(self) -> float | None:
        """The mean of the seconds between an end and its being known, at most; None before the first."""
        return self._delays / self._delays_known if self._delays_known else None

    @property
    def next_due(self) -> float:
        """When `due` is to be asked next."""
        return max(self._heap[0][0], self.held_until) if self._heap else math.inf

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
            since: When it was created.
            looked: When it was last known to run.
            created: The same by the service's clock, where it is known: only then it can be found on a page.
            kind: Those of one kind take alike times.
            usual: Seconds that its kind usually takes, until that is learned.
        """
        durations = self._durations.get(kind)
        if durations is None:
            durations = self._durations[kind] = Durations(usual)
        track = _Track(id=prediction_id, durations=durations, since=since, looked=looked, created=created)
        self._tracks[prediction_id] = track
        if self._policy.scouts and durations.unseen and durations not in self._scouted:
            self._scouted.add(durations)
            track.scouts = True
            self._scout(track, now)
        else:
            self._settle(track, now)

    def due(self, now: float) -> list[Look]:
        """What to ask for now. Every look must be answered by one of the methods below."""
        looks: list[Look] = []
        while self._heap and self._heap[0][0] <= now and self.held_until <= now:
            due, _, planned = heapq.heappop(self._heap)
            if planned.due != due:
                continue
            planned.due = math.inf
            if planned.stale:
                self._plan(planned, now)
            elif isinstance(planned, _Track):
                looks.append(LookAtOne(planned.id))
            else:
                looks += self._page_of(planned, now)
        return looks

    def runs(self, prediction_id: str, now: float, created: datetime | None = None) -> None:
        """It was looked at by itself, and runs."""
        track = self._tracks[prediction_id]
        self._ran(track, now)
        if track.checks:
            track.checks = False
            if track.group is not None:
                track.group.expected = 0.0
        if track.scouts:
            track.created = track.created or created
            self._scout(track, now)
        elif track.created is None and created is not None:
            track.created = created
            self._settle(track, now)
        elif track.group is None:
            self._plan(track, now)

    def look_again(self, prediction_id: str, at: float) -> None:
        """Look at it by itself at a time: it could not be read, or what was told of it was not all."""
        self._push(self._tracks[prediction_id], at)

    def ends(self, prediction_id: str, now: float, *, took: float | None = None, told: bool = False) -> None:
        """It has ended.

        Args:
            prediction_id: Its id.
            now: When that was found out.
            took: Seconds that its generation took, where the service says so. It may have waited before.
            told: Whether a webhook told it.
        """
        track = self._tracks[prediction_id]
        looked, age = track.looked - track.since, now - track.since
        if told:
            self._ran(track, now)
            track.durations.ended(age, age)
        elif took is not None and looked < took <= age:
            track.durations.ran(looked, took)
            track.durations.ended(took, took)
        else:
            track.durations.ended(looked, age)
        if took is not None or not told:
            self._delays += min(age - looked, max(0.0, age - (took or 0.0)))
            self._delays_known += 1
        self.ended += 1
        self.told += told
        if self._policy.deliveries:
            self._trusted += (told - self._trusted) / 20
        group = track.group
        self.forget(prediction_id)
        if track.scouts:
            self._replan(track.durations, now)
        if track.checks:
            # The page said that it runs: it ended just now, or the list lags or lies, and the next one tells which.
            self._strike(now)
            if group is not None and now >= self._pages_from:
                self._check(group, now)

    def forget(self, prediction_id: str) -> None:
        """Watch it no longer, if it still is."""
        track = self._tracks.pop(prediction_id, None)
        if track is not None:
            track.due = math.inf
            self._leave(track)
            if track.scouts:
                self._scouted.discard(track.durations)

    def hold(self, until: float) -> None:
        """Ask for nothing before a time: the service said so."""
        self.held_until = max(self.held_until, until)

    def page_read(self, look: LookAtPage, page: Page[Prediction], now: float) -> None:
        """A page came. Those on it that have ended are told to `ends` after this.

        Args:
            look: What was asked for.
            page: What came.
            now: The time.
        """
        group = look._group  # noqa: SLF001 -- a look is the planner's own
        group.asked = False
        self._page_failures = 0
        shown = {item.id: item.status.ended for item in page.items if item.id in self._tracks}
        silent = not any(shown.values())
        group.expected += sum(track.chance(now) for track in group.members.values() if track.id in shown)
        missing = [track for track in group.members.values() if track.id not in shown]
        self._pages_proven = self._pages_proven or bool(shown)
        if not silent:
            self._strikes = 0
            group.expected = 0.0
        for prediction_id, ended in shown.items():
            if not ended:
                self._on_page(self._tracks[prediction_id], group, now)
        # A page that reaches beyond what was asked for does not keep to the filter.
        wrong = any(item.created_at is not None and item.created_at > look.before + _SECOND for item in page.items)
        if wrong or (missing and len(shown) < WORTH):
            self._strike(now)
            self._part(missing, now)
        elif page.size < look.size:
            self._part(missing, now)
        elif missing:
            self._move_on(missing, look, now)
        if group.expected >= SILENT:
            self._check(group, now)
        self._plan(group, now)

    def page_failed(self, look: LookAtPage, now: float, again: float) -> None:
        """A page could not be read.

        Args:
            look: What was asked for.
            now: The time.
            again: When to ask again.
        """
        look._group.asked = False  # noqa: SLF001 -- a look is the planner's own
        self._page_failures += 1
        if self._page_failures >= STRIKES:
            self._rest(now)
            again = now
        self._push(look._group, again)  # noqa: SLF001 -- see above

    def no_pages(self, look: LookAtPage, now: float) -> None:
        """The provider has no list."""
        self._pages_from = math.inf
        look._group.asked = False  # noqa: SLF001 -- a look is the planner's own
        self._push(look._group, now)  # noqa: SLF001 -- see above

    def _scout(self, track: _Track, now: float) -> None:
        """Look at the first of its kind early, until its kind is known or it is as old as most become."""
        age = max(SCOUTING, 2 * (now - track.since))
        planned = self._time([track], now)
        if track.durations.unseen and track.since + age < planned:
            self._push(track, max(track.since + age, now + self._policy.least))
        else:
            track.scouts = False
            self._settle(track, now)

    def _replan(self, durations: Durations, now: float) -> None:
        """What was learned by the first end may change the plans of all of the kind."""
        for track in self._tracks.values():
            if track.durations is durations:
                planned = track.group or track
                if not planned.stale and planned.due < math.inf:
                    planned.stale = True
                    self._push(planned, now)

    def _settle(self, track: _Track, now: float) -> None:
        """Give a prediction a place among those that will share a page, or none."""
        if track.created is None or now < self._pages_from:
            self._plan(track, now)
            return
        group = self._gathering
        if group.before is not None or len(group.members) >= GATHERED:
            group = self._gathering = _Group()
        self._join(track, group)
        # Its time comes nearer with the root of its number: it is planned anew whenever that has doubled.
        if len(group.members).bit_count() == 1 or len(group.members) == GATHERED:
            self._plan(group, now)

    def _page_of(self, group: _Group, now: float) -> list[Look]:
        """The page that shows a group; nothing when its members are better read one by one, or later."""
        if group.asked:
            return []
        if now < self._pages_from or len(group.members) < WORTH:
            self._part(list(group.members.values()), now)
            return []
        if not self._pages_proven and any(other.asked for other in self._groups.values()):
            # One is enough to find out whether there is a list.
            self._push(group, now + 1.0)
            return []
        if group.before is None:
            created = (track.created for track in group.members.values() if track.created is not None)
            group.before = max(created) + _MARGIN
            there = self._groups.setdefault((group.before, group.number), group)
            if there is not group:
                # Many were created at once, so that no time divides them: they lie on the pages after this one.
                for track in list(group.members.values()):
                    self._join(track, there)
                if not there.asked:
                    self._push(there, now)
                return []
        group.asked = True
        return [LookAtPage(group.before, group.number, PAGE, group)]

    def _check(self, group: _Group, now: float) -> None:
        """Read one by itself that a page shows as running, the likeliest to have ended."""
        if group.members:
            oldest = min(group.members.values(), key=lambda track: track.since)
            oldest.checks = True
            self._push(oldest, now)

    def _on_page(self, track: _Track, group: _Group, now: float) -> None:
        """A page showed that it runs."""
        self._ran(track, now)
        if track.group is None:
            track.stale = True
        elif track.group is not group:
            if track.group.before in {None, group.before}:
                self._join(track, group)
            else:
                track.group.stale = True

    def _move_on(self, missing: Iterable[_Track], look: LookAtPage, now: float) -> None:
        """What a full page did not show lies on the next one."""
        key = (look.before, look.number + 1)
        below = self._groups.get(key)
        if below is None:
            below = self._groups[key] = _Group(before=look.before, number=look.number + 1)
        for track in missing:
            self._join(track, below)
        if not below.asked:
            self._push(below, now)

    def _part(self, tracks: Iterable[_Track], now: float) -> None:
        """From now on each is looked at by itself."""
        for track in tracks:
            self._leave(track)
            self._plan(track, now)

    def _join(self, track: _Track, group: _Group) -> None:
        self._leave(track)
        track.due = math.inf
        track.group = group
        group.members[track.id] = track

    def _leave(self, track: _Track) -> None:
        group, track.group = track.group, None
        if group is not None:
            del group.members[track.id]
            if not group.members and not group.asked:
                self._disband(group)

    def _disband(self, group: _Group) -> None:
        group.due = math.inf
        if group.before is not None and self._groups.get((group.before, group.number)) is group:
            del self._groups[group.before, group.number]

    def _ran(self, track: _Track, now: float) -> None:
        if self._learns:
            track.durations.ran(track.looked - track.since, now - track.since)
        track.looked = now

    def _strike(self, now: float) -> None:
        self._strikes += 1
        if self._strikes >= STRIKES:
            self._rest(now)

    def _rest(self, now: float) -> None:
        """Leave the list alone for a while."""
        self._strikes = self._page_failures = 0
        self._pages_from = max(self._pages_from, now + REST)
        for group in self._groups.values():
            self._push(group, now)

    def _plan(self, planned: _Track | _Group, now: float) -> None:
        planned.stale = False
        if isinstance(planned, _Track):
            at = self._time([planned], now)
            # Pages are few: they need not be kept from coming in step.
            at += self._policy.jitter * (2 * self._random() - 1) * (at - now)
        elif planned.members:
            at = self._time(list(planned.members.values()), now)
        else:
            self._disband(planned)
            return
        if at > now + STANDS:
            planned.stale, at = True, now + STANDS
        self._push(planned, at)

    def _push(self, planned: _Track | _Group, at: float) -> None:
        planned.due = at
        heapq.heappush(self._heap, (at, next(self._order), planned))

    def _time(self, tracks: list[_Track], now: float) -> float:
        """When the time that has probably been wasted on ends that nobody knows of is worth a look."""
        first = tracks[0].looked if len(tracks) == 1 else min(track.looked for track in tracks)
        at = max(now, first + self._policy.least)
        latest = max(now, first + self._policy.most)
        if at >= latest:
            return latest
        few = tracks[:: -(-len(tracks) // _SAMPLE)]
        trusted = min(self._trusted, 1 - UNTOLD)
        # As far as webhooks tell, many together need a look no sooner than one alone: hardly any has ended untold.
        price = self._policy.price * (1 + trusted * (len(tracks) - 1)) * len(few) / len(tracks)

        def wasting(at: float) -> float:
            """How many have probably ended by then, since they were last looked at; that none was told is evidence."""
            chances = (track.chance(at) for track in few)
            return sum((1 - trusted) * chance / (1 - trusted * chance) for chance in chances)

        wasted = wasting(at) * (at - first) / 2
        step = (at - first) / 8
        while wasted < price and at < latest:
            rate = wasting(at + step / 2)
            if wasted + rate * step >= price:
                return min(at + (price - wasted) / rate, latest)
            wasted += rate * step
            at += step
            step *= 1.1
        return min(at, latest)


_MARGIN = timedelta(milliseconds=1)
"""What is created no later than this after the newest of a group is on its page too: services cut times off."""
_SECOND = timedelta(seconds=1)

"""Policies and statistics of polling, and the backoff of retries."""

from __future__ import annotations

from typing import Self

import attrs

WATCH_VARIABLE = "KLING_WATCH"
"""Environment variable with the name of the policy of sessions and commands that are given none."""
DEADLINE_S = 1800.0
"""Default of the seconds from acceptance to wait for the end of a prediction."""
FORGET_AFTER_S = 7200.0
"""Default of the seconds after which a prediction that has not ended is no longer polled."""


@attrs.frozen(kw_only=True)
class Backoff:
    """Exponential backoff with jitter.

    Attributes:
        first: Mean delay before the second attempt, in seconds.
        cap: Longest mean delay, in seconds.
        jitter: Share of the delay by which it varies to either side.
    """

    first: float = 0.5
    cap: float = 15.0
    jitter: float = 0.5

    def delay(self, failures: int, chance: float) -> float:
        """Return the seconds to wait after `failures` failures in a row (from 1); `chance` is uniform in [0, 1)."""
        base = min(self.first * 2.0 ** min(failures - 1, 60), self.cap)
        return base * (1 + self.jitter * (2 * chance - 1))


@attrs.frozen(kw_only=True)
class WatchPolicy:
    """Policy of reading the status of running predictions. Take one by name, or a copy with `attrs.evolve`.

    A prediction is read when the delay that its waiter has probably suffered by then has grown to `price`: after a
    pause at ages at which hardly any prediction of its kind ends, else `least` seconds after the last read. How long a
    kind takes is learned. A session sends no more than its `max_reads_per_second`, whatever the policy.

    Attributes:
        price: Seconds of expected delay that may build up before the first read of a prediction; before each later one,
            seven tenths of it.
        least: Shortest interval between two reads of a prediction, in seconds. The vendor asks for 5 or more for videos
            (docs: get-result).
        most: Longest interval between two reads of a prediction, in seconds.
        scout: Which prediction of each kind in a session, from 1, is read early, too: it may end long before the usual
            duration, and its end plans the others anew. 0 for none. A caller who waits for a single one pays nothing
            for that by default.
        pages: Whether to read pages of the account's list, up to 100 predictions per request, when several are
            watched. The vendor asks not to poll the list for status (docs: predictions).
    """

    price: float = attrs.field(default=0.137, validator=attrs.validators.gt(0))
    least: float = attrs.field(default=5.45, validator=attrs.validators.gt(0))
    most: float = attrs.field(default=60.0)
    scout: int = attrs.field(default=2, validator=attrs.validators.ge(0))
    pages: bool = False

    def __attrs_post_init__(self) -> None:
        if not self.most >= self.least:
            raise ValueError(f"most: expected at least {self.least:g} s, the value of least, got {self.most!r}")

    @classmethod
    def gentle(cls) -> Self:
        """Read half as often as the vendor permits, or less: a third of the requests, and twice to thrice the delay."""
        return cls(price=1.0, least=10.0, most=120.0)

    @classmethod
    def balanced(cls) -> Self:
        """Read as often as the vendor permits at ages at which predictions end, and seldom before. The default."""
        return cls()

    @classmethod
    def eager(cls) -> Self:
        """Learn of ends within about a second, by more reads than the vendor wishes: one every 2 s."""
        return cls(price=0.02, least=2.0, most=30.0, scout=1)

    @classmethod
    def fixed(cls, interval: float) -> Self:
        """Read every prediction every `interval` seconds."""
        return cls(least=interval, most=interval)

    @classmethod
    def listed(cls) -> Self:
        """Read pages of the account's list, which the vendor asks not to poll: the fewest requests where many run."""
        return cls(pages=True)

    @classmethod
    def webhook_first(cls) -> Self:
        """Rely on webhooks, and read as a safety net: an end whose delivery is lost is found within 20 s on average.

        That takes reads while all are delivered, too, up to a fifth of those of a read every 5 s: nothing else shows a
        lost delivery from a long run.
        """
        return cls(price=4.0, least=25.0)

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the policy "gentle", "balanced", "eager", "webhook first" or "list".

        Raises:
            ValueError: No policy has this name.
        """
        named = {
            "gentle": cls.gentle,
            "balanced": cls.balanced,
            "eager": cls.eager,
            "webhook first": cls.webhook_first,
            "list": cls.listed,
        }
        policy = named.get(name.replace("_", " ").replace("-", " "))
        if policy is None:
            raise ValueError(f"watch policy: expected {', '.join(named)}, got {name!r}")
        return policy()


@attrs.frozen(kw_only=True)
class WatchStatistics:
    """Cost and results of a session's polling and webhooks at one moment.

    Attributes:
        singles: Status requests sent for one prediction.
        pages: Status requests sent for a page of the list.
        ended: Predictions whose end is known.
        told: Subset of `ended` that a webhook reported first.
        delay: Mean of the upper bounds of the seconds from an end to its being known; None before the first. The
            service does not report end times: an end is after the last poll that showed the prediction running, and
            after the reported generation time.
        ceiling: Status requests per second that may be sent now: the session's `max_reads_per_second`, or less for a
            while after the service refused some with a 429.
        watched: Predictions that are watched.
        waiting: Callers that wait for one of them.
    """

    singles: int
    pages: int
    ended: int
    told: int
    delay: float | None
    ceiling: float
    watched: int
    waiting: int

    @property
    def requests(self) -> int:
        """Number of status requests sent."""
        return self.singles + self.pages

    @property
    def requests_per_end(self) -> float | None:
        """Status requests per prediction whose end is known; None before the first."""
        return self.requests / self.ended if self.ended else None

"""Policies and statistics of polling, and the backoff of retries."""

from __future__ import annotations

from typing import Self

import attrs


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
    """Trade-off between requests and delay in polling. Take a policy by name, or a copy with `attrs.evolve`.

    An end that is not yet known delays its waiter. A prediction is polled when that expected delay outweighs the
    `price` of one request: rarely at ages at which few predictions end, often at ages at which most do, and as a page
    of the list when many are watched.

    Attributes:
        price: Seconds of delay that one status request is worth.
        least: Shortest interval between two polls of a prediction, in seconds. The vendor asks for 5 or more for
            videos.
        most: Longest interval between two polls of a prediction, in seconds.
        pages: Whether to read pages of the list, up to 100 predictions per request, when many are watched.
        deliveries: Share of ends that webhooks are first assumed to report; adjusted to their actual share.
        scouts: Whether to poll the first prediction of an unknown kind early, at the age of 5 s and at every doubling,
            until an end is known: the service may be much faster than the catalogue says.
        jitter: Share by which each interval varies to either side, so that the polls of a batch spread out.
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
            raise ValueError(f"most: expected at least {self.least:g} s, the value of least, got {self.most!r}")

    @classmethod
    def gentle(cls) -> Self:
        """Poll rarely and learn of ends later; keeps to the interval that the vendor asks for."""
        return cls(price=4.0, least=5.0, most=120.0)

    @classmethod
    def balanced(cls) -> Self:
        """Spend one request per second of expected delay. The default."""
        return cls()

    @classmethod
    def eager(cls) -> Self:
        """Poll often and learn of ends early."""
        return cls(price=0.25, least=1.0, most=30.0)

    @classmethod
    def fixed(cls, interval: float) -> Self:
        """Poll every prediction alone every `interval` seconds."""
        return cls(least=interval, most=interval, pages=False, scouts=False)

    @classmethod
    def webhook_first(cls) -> Self:
        """Rely on webhooks and poll as a safety net: hardly any requests while they arrive, more otherwise."""
        return cls(price=20.0, least=5.0, most=600.0, deliveries=1.0, scouts=False)

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the policy "gentle", "balanced", "eager" or "webhook first".

        Raises:
            ValueError: No policy has this name.
        """
        named = {"gentle": cls.gentle, "balanced": cls.balanced, "eager": cls.eager, "webhook first": cls.webhook_first}
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
        watched: Predictions that are watched.
        waiting: Callers that wait for one of them.
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
        """Number of status requests sent."""
        return self.singles + self.pages

    @property
    def requests_per_end(self) -> float | None:
        """Status requests per prediction whose end is known; None before the first."""
        return self.requests / self.ended if self.ended else None

"""Random faults: a fixed share of all exchanges fails, with any fault that can happen on the route.

    Emulator(chaos=Chaos(rate=0.1, seed=7))

The fault of the third submit depends only on the seed, the route name and the number 3. A run with the same seed meets
the same faults, in whatever order requests of different routes arrive.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import attrs

from kling_async.emulator import faults

from .faults import ROUTES, Fault

__all__ = ["KINDS", "Chaos", "ChaosRun"]

_FILE_ROUTES: Final = frozenset({"upload_put", "upload_get", "output"})
_REQUEST_ROUTES: Final = ROUTES - {"webhook"}
_JSON_ROUTES: Final = _REQUEST_ROUTES - _FILE_ROUTES
_BODY_ROUTES: Final = _REQUEST_ROUTES - {"upload_put"}
# An error after the request was handled matters only on routes that change something.
_WRITE_ROUTES: Final = frozenset({"submit", "delete", "upload_ticket", "upload_put", "upload_binary"})

FaultFactory = Callable[[random.Random, str], Fault]
"""Builds a fault of one kind for a route."""


def _unhandled(rng: random.Random, route: str, *, reset: bool) -> Fault:
    # A connection lost after the request was handled is a kind of its own, `lost_answer`.
    del route
    return rng.choice((faults.Drop(reset=reset), faults.DropAfterReading(reset=reset)))


def _rate_limit(rng: random.Random, route: str) -> Fault:
    del route
    return faults.Status(429, retry_after=rng.choice((None, 1, 2)))


def _accepted_error(rng: random.Random, route: str) -> Fault:
    del route
    return rng.choice((faults.Status(500, accepted=True), faults.Status(504, accepted=True), faults.Html502(True)))


def _failed_task(rng: random.Random, route: str) -> Fault:
    del route
    code, message = rng.choice(((5000, "Internal error."), (5003, "Service unavailable."), (5004, "Timeout.")))
    return faults.FailTask(code, message)


def _odd_result(rng: random.Random, route: str) -> Fault:
    if route == "submit":
        shapes = (faults.ObjectOutputs(), faults.StringOutputs(), faults.NullFlags(), faults.Sparse())
        return rng.choice(shapes)
    return faults.UnknownStatus(rng.choice(("pending", "queued", "warming_up")))


def _cut_body(rng: random.Random, route: str) -> Fault:
    return faults.CutBody(rng.randrange(1, 1500) if route in _FILE_ROUTES else rng.randrange(1, 15))


KINDS: Final[Mapping[str, tuple[frozenset[str], FaultFactory]]] = {
    "drop": (_REQUEST_ROUTES, lambda rng, route: _unhandled(rng, route, reset=False)),
    "reset": (_REQUEST_ROUTES, lambda rng, route: _unhandled(rng, route, reset=True)),
    "lost_answer": (_REQUEST_ROUTES, lambda rng, _: faults.AcceptThenDrop(reset=rng.choice((False, True)))),
    "rate_limit": (_JSON_ROUTES, _rate_limit),
    "server_error": (_REQUEST_ROUTES, lambda rng, _: faults.Status(rng.choice((500, 503, 504)))),
    "accepted_error": (_WRITE_ROUTES, _accepted_error),
    "html_502": (_REQUEST_ROUTES, lambda _, __: faults.Html502()),
    "envelope_code": (_JSON_ROUTES, lambda _, __: faults.EnvelopeCode(500)),
    "truncated_json": (_JSON_ROUTES, lambda _, __: faults.TruncatedJson()),
    "cut_body": (_BODY_ROUTES, _cut_body),
    "slow_body": (_BODY_ROUTES, lambda rng, _: faults.SlowBody(rng.uniform(1.0, 8.0))),
    "delay": (
        _REQUEST_ROUTES | {"webhook"},
        lambda rng, _: faults.Delay(rng.uniform(0.5, 5.0), accepted=rng.choice((False, True))),
    ),
    "failed_task": (frozenset({"submit"}), _failed_task),
    "lag_404": (frozenset({"submit", "result"}), lambda rng, _: faults.StatusLag404(rng.uniform(0.5, 2.0))),
    "odd_result": (frozenset({"submit", "result", "list"}), _odd_result),
    "webhook_lost": (frozenset({"webhook"}), lambda _, __: faults.Drop()),
    "webhook_twice": (frozenset({"webhook"}), lambda _, __: faults.Duplicate()),
}
"""Kinds of random faults: their routes and their factory. A correct client recovers from each of them."""


def _check_known(_: object, attribute: attrs.Attribute[tuple[str, ...] | None], value: tuple[str, ...] | None) -> None:
    known = KINDS if attribute.name == "kinds" else ROUTES
    unknown = sorted(set(value or ()) - set(known))
    if unknown:
        raise ValueError(f"{attribute.name}: expected any of {', '.join(sorted(known))}, got {', '.join(unknown)}")


def _as_tuple(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


@attrs.frozen
class Chaos:
    """Rate and kinds of random faults.

    Attributes:
        rate: share of the exchanges of every route that meet a fault, 0 to 1.
        seed: seed of the faults; equal seeds give equal faults to equal exchanges.
        kinds: names of `KINDS`; None selects all.
        routes: names of `faults.ROUTES`; None selects all.

    Raises:
        ValueError: if the rate is not between 0 and 1, or a kind or route is unknown.
    """

    rate: float = attrs.field(validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    seed: int = 0
    kinds: tuple[str, ...] | None = attrs.field(default=None, converter=_as_tuple, validator=_check_known)
    routes: tuple[str, ...] | None = attrs.field(default=None, converter=_as_tuple, validator=_check_known)

    def kinds_on(self, route: str) -> tuple[str, ...]:
        """Return the kinds that can happen on the route."""
        if self.routes is not None and route not in self.routes:
            return ()
        return tuple(
            kind
            for kind, (places, _) in KINDS.items()
            if route in places and (self.kinds is None or kind in self.kinds)
        )

    def fate(self, route: str, number: int) -> tuple[str, Fault] | None:
        """Return the kind and the fault of an exchange, or None if it meets none.

        Args:
            route: route name.
            number: index of the exchange on its route, from 0.
        """
        rng = random.Random(f"{self.seed} {route} {number}")  # noqa: S311 -- not used for security
        if rng.random() >= self.rate:
            return None
        kinds = self.kinds_on(route)
        if not kinds:
            return None
        kind = rng.choice(kinds)
        return kind, KINDS[kind][1](rng, route)


class ChaosRun:
    """A chaos in progress: counts the exchanges per route and the faults they met.

    Args:
        chaos: rate and kinds of faults.
    """

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self.counts: Counter[tuple[str, str]] = Counter()
        self._numbers: dict[str, itertools.count[int]] = {}

    def draw(self, route: str) -> Fault | None:
        """Return the fault of the next exchange on the route and count it; None if it meets none."""
        number = next(self._numbers.setdefault(route, itertools.count()))
        fate = self.chaos.fate(route, number)
        if fate is None:
            return None
        kind, fault = fate
        self.counts[route, kind] += 1
        return fault

    def summary(self) -> dict[str, object]:
        """Return the settings and the counts so far, as JSON."""
        by_kind: Counter[str] = Counter()
        by_route: Counter[str] = Counter()
        for (route, kind), count in self.counts.items():
            by_kind[kind] += count
            by_route[route] += count
        return {
            "rate": self.chaos.rate,
            "seed": self.chaos.seed,
            "kinds": None if self.chaos.kinds is None else list(self.chaos.kinds),
            "routes": None if self.chaos.routes is None else list(self.chaos.routes),
            "by_kind": dict(sorted(by_kind.items())),
            "by_route": dict(sorted(by_route.items())),
        }

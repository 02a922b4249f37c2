"""Faults by the dice: a share of all exchanges goes wrong, in every way that makes sense on its route.

    Emulator(chaos=Chaos(rate=0.1, seed=7))

What befalls the third submit depends on the seed, on `submit` and on 3, and on nothing else: however requests of
several routes overtake each other, a run with the same seed meets the same faults.
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

_FILES: Final = frozenset({"upload_put", "upload_get", "output"})
_SERVED: Final = ROUTES - {"webhook"}
_ANSWERS: Final = _SERVED - _FILES
_BODIES: Final = _SERVED - {"upload_put"}
# Carried out and then answered with an error: only where a second try would find something done.
_CHANGES: Final = frozenset({"submit", "delete", "upload_ticket", "upload_put", "upload_binary"})

Maker = Callable[[random.Random, str], Fault]
"""Makes a fault of a kind for a route."""


def _lost(rng: random.Random, route: str, *, reset: bool) -> Fault:
    # Unread, read and forgotten; what was read and done is a kind of its own.
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


def _cut(rng: random.Random, route: str) -> Fault:
    return faults.CutBody(rng.randrange(1, 1500) if route in _FILES else rng.randrange(1, 15))


KINDS: Final[Mapping[str, tuple[frozenset[str], Maker]]] = {
    "drop": (_SERVED, lambda rng, route: _lost(rng, route, reset=False)),
    "reset": (_SERVED, lambda rng, route: _lost(rng, route, reset=True)),
    "lost_answer": (_SERVED, lambda rng, _: faults.AcceptThenDrop(reset=rng.choice((False, True)))),
    "rate_limit": (_ANSWERS, _rate_limit),
    "server_error": (_SERVED, lambda rng, _: faults.Status(rng.choice((500, 503, 504)))),
    "accepted_error": (_CHANGES, _accepted_error),
    "html_502": (_SERVED, lambda _, __: faults.Html502()),
    "envelope_code": (_ANSWERS, lambda _, __: faults.EnvelopeCode(500)),
    "truncated_json": (_ANSWERS, lambda _, __: faults.TruncatedJson()),
    "cut_body": (_BODIES, _cut),
    "slow_body": (_BODIES, lambda rng, _: faults.SlowBody(rng.uniform(1.0, 8.0))),
    "delay": (
        _SERVED | {"webhook"},
        lambda rng, _: faults.Delay(rng.uniform(0.5, 5.0), accepted=rng.choice((False, True))),
    ),
    "failed_task": (frozenset({"submit"}), _failed_task),
    "lag_404": (frozenset({"submit", "result"}), lambda rng, _: faults.StatusLag404(rng.uniform(0.5, 2.0))),
    "odd_result": (frozenset({"submit", "result", "list"}), _odd_result),
    "webhook_lost": (frozenset({"webhook"}), lambda _, __: faults.Drop()),
    "webhook_twice": (frozenset({"webhook"}), lambda _, __: faults.Duplicate()),
}
"""Every kind: the routes it makes sense on, and what makes one. Each is something a careful client lives through."""


def _known(_: object, attribute: attrs.Attribute[tuple[str, ...] | None], value: tuple[str, ...] | None) -> None:
    known = KINDS if attribute.name == "kinds" else ROUTES
    unknown = sorted(set(value or ()) - set(known))
    if unknown:
        raise ValueError(f"no {attribute.name} {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def _names(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


@attrs.frozen
class Chaos:
    """How much goes wrong, and what.

    Attributes:
        rate: share of the exchanges of every route that meet a fault, 0 to 1.
        seed: the same seed brings the same faults upon the same exchanges.
        kinds: names of `KINDS`; None takes them all.
        routes: names of `faults.ROUTES`; None takes them all.

    Raises:
        ValueError: when the rate is no share, or there is no such kind or route.
    """

    rate: float = attrs.field(validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    seed: int = 0
    kinds: tuple[str, ...] | None = attrs.field(default=None, converter=_names, validator=_known)
    routes: tuple[str, ...] | None = attrs.field(default=None, converter=_names, validator=_known)

    def kinds_on(self, route: str) -> tuple[str, ...]:
        """The kinds that may befall an exchange of that route."""
        if self.routes is not None and route not in self.routes:
            return ()
        return tuple(
            kind
            for kind, (places, _) in KINDS.items()
            if route in places and (self.kinds is None or kind in self.kinds)
        )

    def fate(self, route: str, number: int) -> tuple[str, Fault] | None:
        """What befalls an exchange: the kind and the fault; None when nothing does.

        Args:
            route: name of the route.
            number: how many exchanges of that route went before it.
        """
        rng = random.Random(f"{self.seed} {route} {number}")  # noqa: S311 - nothing here is a secret
        if rng.random() >= self.rate:
            return None
        kinds = self.kinds_on(route)
        if not kinds:
            return None
        kind = rng.choice(kinds)
        return kind, KINDS[kind][1](rng, route)


class ChaosRun:
    """Chaos under way: how many exchanges each route has seen, and what befell them.

    Args:
        chaos: what to do.
    """

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self.counts: Counter[tuple[str, str]] = Counter()
        self._numbers: dict[str, itertools.count[int]] = {}

    def draw(self, route: str) -> Fault | None:
        """What befalls the next exchange of that route."""
        number = next(self._numbers.setdefault(route, itertools.count()))
        fate = self.chaos.fate(route, number)
        if fate is None:
            return None
        kind, fault = fate
        self.counts[route, kind] += 1
        return fault

    def summary(self) -> dict[str, object]:
        """What was set and what happened, as JSON."""
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

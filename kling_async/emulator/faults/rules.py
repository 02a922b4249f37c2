"""Fault rules: which exchanges a fault applies to, and how often."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from .kinds import (
    ROUTES,
    SHAPE_KINDS,
    Delay,
    Fault,
    Shape,
    UnknownStatus,
    is_applicable,
)

__all__ = ["Call", "Faults", "Rule"]


@attrs.frozen
class Call:
    """One exchange, as passed to a rule's `when`.

    Attributes:
        route: route name.
        method: HTTP method.
        path: path without query.
        persona: `wavespeed` or `gptproto`.
        body: JSON object of the request; empty if there is none.
    """

    route: str
    method: str
    path: str
    persona: str
    body: Mapping[str, object]


@attrs.define(eq=False)
class Rule:
    """A scripted fault and its hit counters.

    Attributes:
        route: route name, or `"*"`.
        fault: fault to apply.
        times: number of exchanges to hit; None means every one.
        after: matching exchanges to pass before the first hit, including those hit by other rules.
        when: predicate that selects exchanges; None selects all. With it, the request body is read first, even for
            `Drop`.
        seen: matching exchanges so far.
        hits: exchanges hit so far.
    """

    route: str
    fault: Fault
    times: int | None = 1
    after: int = 0
    when: Callable[[Call], bool] | None = None
    seen: int = 0
    hits: int = 0

    @property
    def spent(self) -> bool:
        """True if the rule cannot hit again."""
        return self.times is not None and self.hits >= self.times

    def hit(self, call: Call, *, free: bool = True) -> bool:
        """Count this exchange and return whether the rule hits it.

        Args:
            call: the exchange.
            free: False if an earlier rule already hit this exchange; it then only counts towards `after`.
        """
        if self.spent or self.route not in {"*", call.route} or (self.route == "*" and call.route == "webhook"):
            return False
        if self.when is not None and not self.when(call):
            return False
        self.seen += 1
        if self.seen <= self.after or not free:
            return False
        self.hits += 1
        return True


class Faults:
    """Fault rules, in the order they were added."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules, including spent ones."""
        return tuple(self._rules)

    def add(
        self,
        route: str,
        fault: Fault,
        *,
        times: int | None = 1,
        after: int = 0,
        when: Callable[[Call], bool] | None = None,
    ) -> Rule:
        """Add a rule.

        Args:
            route: one of `ROUTES`, or `"*"`.
            fault: fault to apply.
            times: number of exchanges to hit; None hits every one from now on.
            after: matching exchanges to pass before the first hit.
            when: predicate that selects exchanges; None selects all.

        Returns:
            The rule; read its `hits` to see how often it applied.

        Raises:
            ValueError: if the route is unknown or the fault cannot happen on it.
        """
        if route != "*" and route not in ROUTES:
            raise ValueError(f"route: expected one of {', '.join(sorted(ROUTES))} or *, got {route!r}")
        if not is_applicable(fault, route):
            raise ValueError(f"fault: {type(fault).__name__} cannot happen on route {route!r}")
        rule = Rule(route, fault, times, after, when)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def reads_first(self, route: str) -> bool:
        """Return whether a rule for the route needs the request body before it can match."""
        return any(rule.when is not None and rule.route in {"*", route} and not rule.spent for rule in self._rules)

    def armed(self, route: str) -> bool:
        """Return whether a rule can still hit the route."""
        return any(rule.route in {"*", route} and not rule.spent for rule in self._rules)

    def take(self, call: Call) -> tuple[Fault, ...]:
        """Return the faults of this exchange, counting the hits: any delays and at most one other fault.

        Deviations of a result are left to `take_shape`, except on `submit`.
        """
        taken: list[Fault] = []
        main = False
        for rule in self._rules:
            late = isinstance(rule.fault, SHAPE_KINDS) and call.route != "submit"
            delay = isinstance(rule.fault, Delay)
            if not late and rule.hit(call, free=delay or not main):
                taken.append(rule.fault)
                main = main or not delay
        return tuple(taken)

    def take_shape(self, call: Call, *, completed: bool) -> Shape | None:
        """Return the deviation of the result in this response, counting the hit; None if no rule matches.

        Args:
            call: the exchange.
            completed: True if the result has outputs; only `UnknownStatus` applies to one without.
        """
        for rule in self._rules:
            fault = rule.fault
            fits = isinstance(fault, UnknownStatus) or (completed and isinstance(fault, SHAPE_KINDS))
            if fits and isinstance(fault, SHAPE_KINDS) and rule.hit(call):
                return fault
        return None

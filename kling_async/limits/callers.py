"""Limits of the callers who share an account."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

import attrs

from kling_async._core.budget import CallerBudget
from kling_async.errors import CallerLimitError, ConfigurationError

RETRY_AFTER_S = 30.0
"""Seconds after which a caller with too many jobs waiting may try again: about half as long as a prediction takes."""

_WEIGHTS = (0.001, 1_000)
"""Least and greatest weight: sums of any others would lose the small ones."""


@attrs.frozen(kw_only=True)
class CallerLimits:
    """Share and limits of one caller.

    Attributes:
        weight: Share of the free slots while several callers wait, relative to the others' weights; 0.001 to 1,000.
        running: Maximum number of the caller's predictions that run at once in this session, or over all workers of a
            PostgreSQL ledger that have the same limits; None for no limit but the account's.
        usd: Most that the caller's jobs may cost in USD, those in the ledger included; a job for which it does not
            suffice is refused, unpaid, with a `CallerBudgetExceededError`, and other callers go on. None for no limit.
        allow_estimate: Whether to use the catalogue's estimate for a price that neither the vendor's pages nor the
            service states.
        queued: Maximum number of the caller's jobs that wait for a slot; one more is refused, unpaid, with a
            `CallerLimitError`. None for no limit.

    Raises:
        ConfigurationError: A limit is out of range.
    """

    weight: float = 1.0
    running: int | None = None
    queued: int | None = None
    usd: Decimal | str | float | None = None
    allow_estimate: bool = False

    def __attrs_post_init__(self) -> None:
        for name in ("weight", "running", "queued"):
            value = getattr(self, name)
            if value is None and name != "weight":
                continue
            kinds = (int, float) if name == "weight" else (int,)
            least, most = _WEIGHTS if name == "weight" else (1, math.inf)
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                expected = "a number from 0.001 to 1,000" if name == "weight" else "a whole number above 0, or None"
                raise ConfigurationError(f"callers: {name}: expected {expected}, got {value!r:.40}")
        if self.usd is not None:
            self.budget("")

    def budget(self, caller: str) -> CallerBudget | None:
        """Return a budget of a caller with these limits, of which nothing is counted yet; None without one.

        Raises:
            ConfigurationError: The cap is not an amount.
        """
        return None if self.usd is None else CallerBudget(caller, self.usd, allow_estimate=self.allow_estimate)


LimitsByCaller: TypeAlias = Mapping[str, CallerLimits] | Callable[[str], CallerLimits]
"""Limits by the names of callers, or a function that returns them. Those that a mapping lacks have the defaults."""

_DEFAULT = CallerLimits()


class Callers:
    """Limits of a session's callers, and what each has taken of them.

    Args:
        limits: Limits by the names of callers.

    Attributes:
        limited: False if nobody has limits or another weight.
    """

    def __init__(self, limits: LimitsByCaller | None = None) -> None:
        self.limited = limits is not None
        self._limits = limits
        self._taken: Counter[str] = Counter()
        self._preparing: Counter[str] = Counter()

    def limits(self, caller: str) -> CallerLimits:
        """Return the limits of a caller."""
        if self._limits is None:
            return _DEFAULT
        if isinstance(self._limits, Mapping):
            return self._limits.get(caller, _DEFAULT)
        return self._limits(caller)

    def share(self, caller: str) -> tuple[float, int | None]:
        """Return the weight of a caller, and the number of slots that it may have; None for no limit."""
        limits = self.limits(caller)
        return limits.weight, limits.running

    def weight(self, caller: str) -> float:
        """Return the weight of a caller."""
        return self.limits(caller).weight

    def check_queue(self, caller: str, waiting: int, *, retry_after: float = RETRY_AFTER_S, **about: Any) -> None:
        """Raise if a caller may have no more jobs waiting.

        Args:
            caller: Name of the caller.
            waiting: Number of the caller's jobs that wait.
            retry_after: Seconds after which to try again.
            about: The job and its key, for the error.

        Raises:
            CallerLimitError: As many wait as may.
        """
        queued = self.limits(caller).queued
        if queued is not None and waiting >= queued:
            raise CallerLimitError(
                f"caller {caller!r} has {waiting} jobs waiting, and may have {queued}; the job was not sent",
                caller=caller,
                queued=queued,
                retry_after=retry_after,
                **about,
            )

    def may_take(self, caller: str) -> bool:
        """Return whether a caller may have one more slot."""
        if self._limits is None:
            return True
        running = self.limits(caller).running
        return running is None or self._taken[caller] < running

    def may_prepare(self, caller: str) -> bool:
        """Return whether one more job of a caller may be prepared.

        Nobody prepares more than they may start: such jobs would wait in the places of others.
        """
        if self._limits is None:
            return True
        running = self.limits(caller).running
        return running is None or self._taken[caller] + self._preparing[caller] < running

    def take(self, caller: str) -> None:
        """Count one more slot of a caller."""
        if self.limited:
            _count(self._taken, caller, 1)

    def give_back(self, caller: str) -> None:
        """Count one slot less of a caller."""
        if self.limited:
            _count(self._taken, caller, -1)

    def begin_preparation(self, caller: str) -> None:
        """Count one more job of a caller that is being prepared."""
        _count(self._preparing, caller, 1)

    def end_preparation(self, caller: str) -> None:
        """Count one job less that is being prepared."""
        _count(self._preparing, caller, -1)


def _count(counter: Counter[str], caller: str, change: int) -> None:
    counter[caller] += change
    if not counter[caller]:
        del counter[caller]

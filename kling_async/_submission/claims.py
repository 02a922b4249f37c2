"""Claims: the jobs that a session is submitting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import attrs

from kling_async.errors import InvalidJobError, KlingError, Problem
from kling_async.events import Left

if TYPE_CHECKING:
    from types import TracebackType

    from kling_async._budget.reservations import Reservations
    from kling_async._core.clock import Clock
    from kling_async._core.job import Job
    from kling_async._observers import Observers
    from kling_async.ledger import Ledger


@attrs.define(eq=False)
class Claim:
    """A claim on a job, held by its caller and by each attempt, which may outlive the caller.

    The caller enters it as a context manager. It ends when its last holder releases it.

    Attributes:
        claims: All claims of the session.
        name: Batch and key of the job.
        holders: Number of holders.
        error: The error that the caller received; None while there is none.
    """

    claims: Claims
    name: tuple[str, str]
    holders: int = 0
    error: KlingError | None = None

    def __enter__(self) -> Self:
        self.hold()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, KlingError):
            self.error = exc
        self.release()

    def hold(self) -> None:
        """Add a holder."""
        self.holders += 1

    def release(self) -> None:
        """Remove a holder."""
        self.holders -= 1
        if not self.holders:
            self.claims.end(self.name, self.error)


class Claims:
    """The claims of one session, by batch and key.

    Args:
        ledger: Drops rows that were never submitted.
        money: Releases reservations, except for requests that may have been paid for.
        clock: The session's clock.
        observe: Publishes `Left`.
    """

    def __init__(self, *, ledger: Ledger, money: Reservations, clock: Clock, observe: Observers) -> None:
        self._ledger = ledger
        self._money = money
        self._clock = clock
        self._observe = observe
        self._held: dict[tuple[str, str], Claim] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def claim(self, name: tuple[str, str], job: Job) -> Claim:
        """Return a new claim on a job, to be entered.

        Raises:
            InvalidJobError: The job is being submitted already.
        """
        if name in self._held:
            problem = Problem(
                "key", f"expected a key that is not in use, got {name[1]!r}, which is being submitted already"
            )
            raise InvalidJobError([problem], job=job, key=name[1])
        claim = self._held[name] = Claim(self, name)
        return claim

    def end(self, name: tuple[str, str], error: KlingError | None = None) -> None:
        """Release the reservations and the row of a job that is no longer being submitted.

        Args:
            name: Batch and key.
            error: The error of its caller, if the job was not accepted or is in doubt.
        """
        self._held.pop(name, None)
        self._money.release(name)
        batch, key = name
        self._ledger.unclaim(batch, key)
        self._observe(Left, at=self._clock.now(), key=key, batch=batch, error=error)

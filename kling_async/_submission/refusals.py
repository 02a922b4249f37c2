"""Pauses between the attempts of one job, and the limits after which it gives up."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import attrs

from kling_async._core.clock import Clock
from kling_async._core.polling import Backoff
from kling_async.errors import KlingError, RateLimitedError, Spent
from kling_async.limits import Gate

if TYPE_CHECKING:
    from .pending import PendingSubmission

MAX_UNACCEPTED_ATTEMPTS = 3
"""Requests for one job that were in doubt and shown to be unaccepted, after which it gives up."""

MAX_CONNECT_ATTEMPTS = 5
"""Failed connections for one job, after which it gives up. Nothing is sent without a connection."""

MAX_RATE_LIMITED_S = 900.0
"""Seconds of refusals with 429 without any acceptance in the session, after which a job gives up."""

_BACKOFF = Backoff()


@attrs.define
class Refusals:
    """The refusals of one job.

    Attributes:
        gate: Session-wide back-off after a 429.
        clock: The session's clock.
        rng: Draws the jitter.
    """

    gate: Gate
    clock: Clock
    rng: Random
    _unconnected: int = attrs.field(default=0, init=False)
    _unaccepted: int = attrs.field(default=0, init=False)
    _limited_since: float | None = attrs.field(default=None, init=False)

    def count_unaccepted(self, pending: PendingSubmission, doubt: KlingError, *, resubmitted: bool) -> None:
        """Count a submission that was in doubt and may be sent again.

        Args:
            pending: The submission.
            doubt: The error of the doubt.
            resubmitted: True if it is sent again without proof that it was not accepted.

        Raises:
            KlingError: The cause of the doubt, if it has happened too often.
        """
        self._unaccepted += 1
        trouble = doubt.__cause__
        if self._unaccepted < MAX_UNACCEPTED_ATTEMPTS or not isinstance(trouble, KlingError):
            return
        trouble.job, trouble.key = pending.job, pending.key
        trouble.spent = Spent.UNKNOWN if resubmitted else Spent.NO
        trouble.advice = (
            f"it was sent {MAX_UNACCEPTED_ATTEMPTS} times and shown to be unaccepted each time; submit it again later"
        )
        raise trouble

    async def delay(self, pending: PendingSubmission, error: KlingError) -> float | None:
        """Return the seconds to wait before the job is sent again; None to give up."""
        chance = self.rng.random()
        if not isinstance(error, RateLimitedError):
            self._unconnected += 1
            return None if self._unconnected >= MAX_CONNECT_ATTEMPTS else _BACKOFF.delay(self._unconnected, chance)
        seconds = await self.gate.record_refused(error, pending.slot, chance)
        if seconds is None:
            self._limited_since = None
            return 0.0
        now = self.clock.monotonic()
        self._limited_since = max(self._limited_since or now, self.gate.accepted_at)
        return None if now + seconds - self._limited_since > MAX_RATE_LIMITED_S else seconds

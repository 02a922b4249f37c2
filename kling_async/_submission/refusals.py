"""Pauses between the attempts of one job, and the limits after which it gives up."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import attrs

from kling_async._core.answers import RULES, Answers, Kind
from kling_async._core.clock import Clock
from kling_async._core.polling import Backoff
from kling_async.errors import ApiError, KlingError, RateLimitedError, Spent
from kling_async.limits import Gate

if TYPE_CHECKING:
    from .pending import PendingSubmission

MAX_LOST_REPLIES = 3
"""Requests for one job whose replies were lost, after which it gives up."""

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
        spent: Whether an earlier request for the job was paid for: not known if it was sent again without proof.
    """

    gate: Gate
    clock: Clock
    rng: Random
    spent: Spent = Spent.NO
    _unconnected: int = attrs.field(default=0, init=False)
    _lost: int = attrs.field(default=0, init=False)
    _limited_since: float | None = attrs.field(default=None, init=False)
    _gateway: Answers = attrs.field(factory=lambda: Answers(Kind.SUBMIT), init=False)

    def count_lost_reply(self, pending: PendingSubmission, doubt: KlingError, *, unaccepted: bool) -> None:
        """Count a submission whose reply was lost, and that may be sent again.

        Args:
            pending: The submission.
            doubt: The error of the doubt.
            unaccepted: True if it was shown that it was not accepted.

        Raises:
            KlingError: The cause of the doubt, if it has happened too often.
        """
        self._lost += 1
        if not unaccepted:
            self.spent = Spent.UNKNOWN
        trouble = doubt.__cause__
        if self._lost < MAX_LOST_REPLIES or not isinstance(trouble, KlingError):
            return
        trouble.job, trouble.key = pending.job, pending.key
        trouble.spent = self.spent
        trouble.advice = f"it was sent {MAX_LOST_REPLIES} times " + (
            "and shown to be unaccepted each time; submit it again later"
            if self.spent is Spent.NO
            else "and may have been accepted; look for it in the account's history before you submit it again"
        )
        raise trouble

    async def delay(self, pending: PendingSubmission, error: KlingError) -> float | None:
        """Return the seconds to wait before the job is sent again; None to give up."""
        chance = self.rng.random()
        match error:
            case RateLimitedError():
                return await self._delay_by_limit(pending, error, chance)
            case ApiError():
                return self._delay_by_gateway(error, chance)
            case _:
                self._unconnected += 1
                return None if self._unconnected >= MAX_CONNECT_ATTEMPTS else _BACKOFF.delay(self._unconnected, chance)

    async def _delay_by_limit(self, pending: PendingSubmission, error: RateLimitedError, chance: float) -> float | None:
        seconds = await self.gate.record_refused(error, pending.slot, chance)
        if seconds is None:
            self._limited_since = None
            return 0.0
        now = self.clock.monotonic()
        self._limited_since = max(self._limited_since or now, self.gate.accepted_at)
        return None if now + seconds - self._limited_since > MAX_RATE_LIMITED_S else seconds

    def _delay_by_gateway(self, error: ApiError, chance: float) -> float | None:
        self._gateway.add(error, self.clock.monotonic())
        seconds = _BACKOFF.delay(self._gateway.count, chance)
        if self._gateway.seconds + seconds <= RULES[Kind.SUBMIT].within:
            return seconds
        # The error that is raised has all answers in its text.
        self._gateway.raised(error, final=True)
        return None

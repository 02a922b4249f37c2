"""Submissions in doubt: settle them, hold them, or send them again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from kling_async._core.reconciliation import Adopted, Doubt, Held, Settlement, Unaccepted
from kling_async._core.states import Entry, Row, State
from kling_async.errors import (
    BudgetExceededError,
    KlingError,
    LedgerError,
    PriceUnknownError,
    Spent,
    SubmissionUncertainError,
)

from .reconciler import Reconciler

if TYPE_CHECKING:
    from kling_async._budget.reservations import Reservations
    from kling_async._core.clock import Clock
    from kling_async._core.job import Job
    from kling_async._tasks import CriticalTasks
    from kling_async.ledger import Ledger

    from .claims import Claims
    from .history import History
    from .pending import PendingSubmission
    from .running import RunningPredictions

log = logging.getLogger("kling_async")

OnUncertain: TypeAlias = Literal["reconcile", "hold", "resubmit"]
"""Policy for a submission in doubt: it was sent, and may have been accepted.

"reconcile" settles it by the account's history; "hold" leaves it in doubt; "resubmit" reconciles, and sends it again
where the history shows nothing, which may pay twice.
"""


@attrs.frozen
class Resolved:
    """A submission that was settled, or may be sent again unsettled.

    Attributes:
        row: Its row: accepted, free to be sent, or, with `on_uncertain="resubmit"`, still in doubt.
        adopted: True if the caller has to watch the prediction; False if it is watched already.
    """

    row: Row
    adopted: bool = False


class Doubts:
    """The submissions in doubt of one session.

    Args:
        ledger: Has the rows in doubt.
        history: Reads the account's history and its bill.
        critical: Records settlements even if the caller is cancelled.
        money: Keeps the money of doubts reserved.
        running: Watches adopted predictions.
        claims: The jobs that have a caller.
        clock: The session's clock.
        on_uncertain: Policy for a submission in doubt.
        grace: Seconds after which absence from the history shows that a submission was not accepted.
        sole_user: True if only this ledger uses the API key.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        history: History,
        critical: CriticalTasks,
        money: Reservations,
        running: RunningPredictions,
        claims: Claims,
        clock: Clock,
        on_uncertain: OnUncertain,
        grace: float,
        sole_user: bool,
    ) -> None:
        self.resubmits = on_uncertain == "resubmit"
        self._holds = on_uncertain == "hold"
        self._ledger = ledger
        self._money = money
        self._running = running
        self._claims = claims
        self._clock = clock
        self._reconciler = Reconciler(
            ledger=ledger,
            clock=clock,
            history=history.predictions,
            bill=history.bill,
            grace=grace,
            sole_user=sole_user,
            critical=critical,
            on_settled=self.adopt,
        )

    async def add_evidence(self, token_hash: str, prediction_id: str) -> None:
        """Settle the submission whose webhook token named a prediction.

        Args:
            token_hash: Digest of the token in the URL of the webhook.
            prediction_id: Id of the prediction in its body.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        await self._reconciler.add_evidence(token_hash, prediction_id)

    async def resolve(self, job: Job, row: Row) -> Resolved:
        """Settle a job that an earlier submission left in doubt.

        Args:
            job: The job, for the errors.
            row: Its row, in doubt.

        Raises:
            SubmissionUncertainError: It stays in doubt.
        """
        if row.state is State.INTENT:
            # No process is sending it: its reply came, and could not be recorded.
            step = Entry(
                batch=row.batch, key=row.key, state=State.UNCERTAIN, at=self._clock.now(), error="not recorded"
            )
            row = await self._ledger.record(attrs.evolve(step, expected_version=row.version))
        match await self._settle(row):
            case Adopted(prediction_id):
                now = self._clock.now()
                known = attrs.evolve(row, prediction_id=prediction_id, error=None)
                return Resolved(
                    attrs.evolve(known, state=State.SUBMITTED, submitted_at=now, updated_at=now), adopted=True
                )
            case Unaccepted():
                return Resolved(attrs.evolve(row, state=State.PENDING))
            case Held() as held:
                if self._sends_again(held):
                    return Resolved(row)
                raise _held(held, row, None, job=job, key=row.key)

    async def resolve_sent(self, pending: PendingSubmission, doubt: KlingError) -> Resolved:
        """Settle a submission whose reply has just been lost.

        Args:
            pending: The submission. Its money stays reserved while it is in doubt.
            doubt: The error that came instead of a reply.

        Raises:
            SubmissionUncertainError: It stays in doubt.
        """
        row = await self._row_in_doubt(pending)
        end: Settlement = Held(Doubt.WHETHER, ())
        if row is not None and row.state is State.UNCERTAIN:
            end = await self._settle(row)
            if isinstance(end, Held):
                row = await self._row_in_doubt(pending) or row
        if row is not None and row.state is not State.UNCERTAIN:
            # Settled meanwhile together with another job, or by a webhook.
            if row.state is State.ABANDONED:
                raise _held(Held(Doubt.WHETHER, ()), row, doubt, job=pending.job, key=pending.key)
            if row.prediction_id is None:
                pending.mark_doubtful(False)
            return Resolved(row)
        match end:
            case Adopted(prediction_id) if row is not None:
                return Resolved(attrs.evolve(row, state=State.SUBMITTED, prediction_id=prediction_id), adopted=True)
            case Unaccepted() if row is not None:
                pending.mark_doubtful(False)
                return Resolved(attrs.evolve(row, state=State.PENDING))
            case Held() as held if row is not None and self._sends_again(held):
                return Resolved(await self.free_for_resubmit(pending, row, held, doubt))
            case _:
                held = end if isinstance(end, Held) else Held(Doubt.WHETHER, ())
                raise _held(held, row, doubt, job=pending.job, key=pending.key)

    async def free_for_resubmit(
        self, pending: PendingSubmission, row: Row, held: Held | None = None, doubt: KlingError | None = None
    ) -> Row:
        """Record that a job in doubt may be sent again, and return its row. Money for both requests stays reserved.

        Args:
            pending: The submission.
            row: Its row, in doubt.
            held: The result of the reconciliation; None without one.
            doubt: The error that came instead of a reply; None for a submission of an earlier process.

        Raises:
            SubmissionUncertainError: There is no money for a second request, or it cannot be recorded.
        """
        step = Entry(
            batch=row.batch,
            key=row.key,
            state=State.PENDING,
            at=self._clock.now(),
            error=None if doubt is None else doubt.message,
            expected_version=row.version,
        )
        try:
            pending.reserved = await self._money.reserve_again(pending.name, pending.job, pending.reserved)
            return await self._ledger.record(step)
        except (BudgetExceededError, PriceUnknownError, LedgerError) as trouble:
            why = f" because {trouble.message}"
            held = held or Held(Doubt.WHETHER, ())
            raise _held(held, row, doubt, job=pending.job, key=pending.key, why=why) from trouble

    def adopt(self, row: Row) -> None:
        """Follow up on a doubt that was settled without a caller: settle its money, and watch its prediction.

        Args:
            row: Its row: submitted, or free to be sent again.
        """
        name = (row.batch, row.key)
        accepted = row.state is State.SUBMITTED
        self._money.settle(name, accepted=accepted)
        if accepted:
            self._running.follow_adopted(row, self._money.of(name))
        if name not in self._claims:
            self._claims.end(name)

    async def _settle(self, row: Row) -> Settlement:
        return Held(Doubt.WHETHER, ()) if self._holds else await self._reconciler.settle(row)

    def _sends_again(self, held: Held) -> bool:
        """Return whether to send a held job again."""
        return self.resubmits and not held.candidates

    async def _row_in_doubt(self, pending: PendingSubmission) -> Row | None:
        """Return the job's row; None when its doubt could not be recorded."""
        try:
            found = await self._ledger.find(*pending.name)
        except LedgerError:
            # The caller must still receive the error of the submission: money may have been spent.
            log.exception("the ledger cannot be read: job %s stays in doubt", pending.key)
            return None
        # The doubt of a row that is still an intent could not be recorded.
        return found[0] if found is not None and found[0].state is not State.INTENT else None


def _held(
    held: Held, row: Row | None, doubt: KlingError | None, *, job: Job, key: str, why: str = ""
) -> SubmissionUncertainError:
    """Return the error of a submission that stays in doubt.

    Args:
        held: The result of the reconciliation.
        row: Its row; None when the doubt could not be recorded.
        doubt: The error that came instead of a reply; None for a submission of an earlier process.
        job: The job.
        key: Key of the job.
        why: Reason why it was not sent again, as a clause; empty if the policy is the reason.
    """
    message = f"{held.doubt.reason}; it was not sent again{why}"
    cause = None if doubt is None else doubt.__cause__
    if cause is not None:
        message += f": {getattr(cause, 'message', cause)}"
    error = SubmissionUncertainError(
        message,
        sent_at=row.intent_at if row else None,
        candidates=held.candidates,
        job=job,
        key=key,
        spent=Spent.YES if held.doubt is Doubt.WHOSE else Spent.UNKNOWN,
    )
    error.__cause__ = cause
    return error

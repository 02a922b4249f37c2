"""Submissions in doubt: settle them, hold them, or send them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from kling_async._core.reconciliation import Adopted, Doubt, Held, Settlement, Unaccepted
from kling_async._core.states import Entry, Row, State
from kling_async._log import log
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
    from .senders import Senders
    from .service_time import ServiceTime

OnUncertain: TypeAlias = Literal["reconcile", "hold", "resubmit"]
"""Policy for a submission in doubt: it was sent, and may have been accepted.

"reconcile" settles it by the account's history; "hold" leaves it in doubt; "resubmit" reconciles, and sends it again
where the history shows nothing, which may pay twice.
"""


_NO_EVIDENCE = Held(Doubt.WHETHER, ())
"""A submission of which neither acceptance nor its absence could be shown."""


@attrs.frozen
class Resolved:
    """A submission whose reply was lost, and that was settled or may be sent again.

    Attributes:
        row: Its row: accepted, or free to be sent.
        adopted: True if the caller has to watch the prediction; False if it is watched already.
        unaccepted: True if it was shown that the request was not accepted.
    """

    row: Row
    adopted: bool = False
    unaccepted: bool = False


class Doubts:
    """The submissions in doubt of one session.

    Args:
        ledger: Has the rows in doubt.
        senders: Tells which jobs the session's account has sent.
        times: Tells the service's time of the session's own submissions.
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
        senders: Senders,
        times: ServiceTime,
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
        self._resubmits = on_uncertain == "resubmit"
        self._holds = on_uncertain == "hold"
        self._ledger = ledger
        self._senders = senders
        self._money = money
        self._running = running
        self._claims = claims
        self._clock = clock
        self._reconciler = Reconciler(
            ledger=ledger,
            clock=clock,
            senders=senders,
            times=times,
            history=history.predictions,
            bill=history.bill,
            grace=grace,
            sole_user=sole_user,
            critical=critical,
            on_settled=self.follow_up,
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

    async def resolve(self, job: Job, row: Row) -> Row:
        """Settle a job that an earlier submission left in doubt, follow up on it, and return its row.

        Args:
            job: The job, for the errors.
            row: Its row, in doubt.

        Returns:
            The row: accepted, free to be sent, or, with `on_uncertain="resubmit"`, still in doubt.

        Raises:
            SubmissionUncertainError: It stays in doubt.
        """
        found = await self._ledger.find(row.batch, row.key)
        if found is not None and not found[0].state.in_doubt:
            # Settled meanwhile, together with another job or by another process, and watched there.
            self._settle_money(found[0])
            return found[0]
        await self._senders.learn(row)
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
                row = attrs.evolve(known, state=State.SUBMITTED, submitted_at=now, updated_at=now)
            case Unaccepted():
                row = attrs.evolve(row, state=State.PENDING)
            case Held() as held:
                if not self._senders.include(row):
                    raise self._of_others(row, job)
                if not self._sends_again(held):
                    raise _held(held, row, None, job=job, key=row.key)
                return row
        self.follow_up(row)
        return row

    async def resolve_sent(self, pending: PendingSubmission, doubt: KlingError) -> Resolved:
        """Settle a submission whose reply has just been lost.

        Args:
            pending: The submission. Its money stays reserved while it is in doubt.
            doubt: The error that came instead of a reply.

        Raises:
            SubmissionUncertainError: It stays in doubt.
        """
        row = await self._row_in_doubt(pending)
        if row is None:
            raise _held(_NO_EVIDENCE, None, doubt, job=pending.job, key=pending.key)
        end: Settlement = _NO_EVIDENCE
        if row.state is State.UNCERTAIN:
            end = await self._settle(row)
            if isinstance(end, Held):
                row = await self._row_in_doubt(pending) or row
        if row.state is State.ABANDONED:
            raise _held(_NO_EVIDENCE, row, doubt, job=pending.job, key=pending.key)
        if row.state is not State.UNCERTAIN:
            # Settled meanwhile together with another job, or by a webhook.
            if row.prediction_id is None:
                pending.mark_doubtful(False)
            return Resolved(row, unaccepted=row.prediction_id is None)
        match end:
            case Adopted(prediction_id):
                return Resolved(attrs.evolve(row, state=State.SUBMITTED, prediction_id=prediction_id), adopted=True)
            case Unaccepted():
                pending.mark_doubtful(False)
                return Resolved(attrs.evolve(row, state=State.PENDING), unaccepted=True)
            case Held():
                if not self._sends_again(end):
                    raise _held(end, row, doubt, job=pending.job, key=pending.key)
                return Resolved(await self.free_for_resubmit(pending, row, end, doubt))

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
        pending.slot.end_doubt(known=False)
        try:
            pending.reserved = await self._money.reserve_again(pending.name, pending.job, pending.reserved)
            return await self._ledger.record(step)
        except (BudgetExceededError, PriceUnknownError, LedgerError) as trouble:
            why = f" because {trouble.message}"
            raise _held(held or _NO_EVIDENCE, row, doubt, job=pending.job, key=pending.key, why=why) from trouble

    def follow_up(self, row: Row) -> None:
        """Settle the money of a job that was in doubt, watch its prediction, and end its claim if it has no caller.

        Args:
            row: Its row: submitted, or free to be sent again.
        """
        name = (row.batch, row.key)
        self._settle_money(row)
        if row.state is State.SUBMITTED:
            self._running.follow_adopted(row, self._money.of(name))
        if name not in self._claims:
            self._claims.end(name)

    def _settle_money(self, row: Row) -> None:
        self._money.settle((row.batch, row.key), accepted=row.state.accepted)

    async def _settle(self, row: Row) -> Settlement:
        return _NO_EVIDENCE if self._holds else await self._reconciler.settle(row)

    def _of_others(self, row: Row, job: Job) -> SubmissionUncertainError:
        """Return the error of a job in doubt whose account's history is not that of the session."""
        return SubmissionUncertainError(
            f"it was sent {self._senders.describe(row)}, and only the history of that account can show whether it was "
            "accepted; it was not sent again",
            sent_at=row.intent_at,
            candidates=row.candidates,
            job=job,
            key=row.key,
            advice="run it with the provider, base URL and key of that account; if this key is of the same account: "
            "kling-async ledger LEDGER same-account",
        )

    def _sends_again(self, held: Held) -> bool:
        """Return whether to send a held job again."""
        return self._resubmits and not held.candidates

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

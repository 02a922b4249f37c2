"""The paid request: record the intent, send, judge the reply, record the result."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs

from kling_async import events
from kling_async._core.clock import Clock
from kling_async._core.copies import changed
from kling_async._core.states import Entry, Row, State
from kling_async._core.submission import Accepted, Rejected, Uncertain, Verdict, judge
from kling_async._core.transport import Transport
from kling_async._log import log
from kling_async._observers import Observers
from kling_async._turns import Turns
from kling_async.errors import (
    ApiError,
    ConnectionLostError,
    KlingError,
    LedgerError,
    NotInHandError,
    Spent,
    SubmissionUncertainError,
    TransportError,
    WrongLoopError,
)
from kling_async.ledger import Ledger, SharedLedger
from kling_async.limits import Gate, Slots
from kling_async.limits.doubts import DoubtWindow
from kling_async.providers import Provider

from .senders import Senders
from .service_time import ServiceTime

if TYPE_CHECKING:
    from kling_async._core.prediction import Prediction
    from kling_async._core.statistics import Concurrency

    from .pending import PendingSubmission


@attrs.define
class Submitter:
    """Sends paid requests, each between its intent and its result in the ledger.

    Attributes:
        transport: Sends the request.
        provider: Parses the reply.
        ledger: Records intent and result.
        shared: The same ledger where several processes write it; None otherwise.
        senders: Has the sender that intents are recorded with.
        times: Keeps the times of submissions.
        gate: Session-wide back-off and rate limit.
        slots: The session's slots.
        turns: Limit on the requests between intent and reply: a crash leaves at most as many in doubt.
        window: Bound on submits whose replies are lost.
        clock: The session's clock.
        observe: Publishes events.
    """

    transport: Transport
    provider: Provider
    ledger: Ledger
    shared: SharedLedger | None
    senders: Senders
    times: ServiceTime
    gate: Gate
    slots: Slots
    turns: Turns
    window: DoubtWindow
    clock: Clock
    observe: Observers
    # Entries with a paid id that the ledger could not record when the reply came.
    _unrecorded: dict[tuple[str, str], Entry] = attrs.field(factory=dict, init=False)

    async def acquire_turn(self) -> None:
        """Wait for the back-off, the rate limit, and a turn. Release the turn later.

        While replies get lost there are fewer turns.
        """
        while True:
            await self.gate.wait()
            await self.turns.acquire()
            try:
                await self.window.begin()
            except BaseException:
                self.turns.release()
                raise
            if not self.gate.closed:
                return
            self.release_turn()

    def release_turn(self) -> None:
        """Release a turn acquired with `acquire_turn`."""
        self.window.end()
        self.turns.release()

    def statistics(self) -> Concurrency:
        """Return where the limit on unanswered requests stands."""
        waiting = self.slots.waiting if self.slots.are_held_back else 0
        return attrs.evolve(self.turns.statistics(), waiting=waiting)

    async def attempt(self, pending: PendingSubmission, attempt: int) -> Verdict:
        """Record the intent, send one paid request, record the verdict and return it. Must not be cancelled.

        Args:
            pending: The submission.
            attempt: Number of the request among those of the job, from 1.

        Raises:
            LedgerError: The intent could not be recorded, or another process owns the job; nothing was sent.
        """
        await self._record_intent(pending, attempt)
        self.times.sending(pending.batch, pending.key, attempt)
        self.observe(
            events.Submitting,
            at=self.clock.now(),
            key=pending.key,
            batch=pending.batch,
            job=pending.job,
            attempt=attempt,
        )
        sent_at, began = self.clock.now(), self.clock.monotonic()
        verdict = judge(await self._send(pending))
        if not isinstance(verdict, Uncertain):
            self.times.settled(pending.batch, pending.key, attempt)
            self.window.cleared()
        match verdict:
            case Accepted(prediction):
                self.gate.record_accepted()
                self.turns.limit.record_done(
                    1.0, self.clock.monotonic() - began, full=self.turns.full or self.slots.are_held_back
                )
                self.times.accepted(prediction.created_at)
                if not prediction.model or prediction.key != pending.key:
                    model = prediction.model or pending.job.model
                    verdict = Accepted(changed(prediction, key=pending.key, model=model))
                # Recorded before any other use of the reply, so that a crash does not lose the paid id.
                await self._record(pending, State.SUBMITTED, prediction_id=prediction.id, attempt=attempt)
            case Rejected(refusal, again):
                refusal.job, refusal.key, refusal.spent = pending.job, pending.key, Spent.NO
                await self._record(pending, State.PENDING if again else State.REJECTED, error=refusal)
            case Uncertain(trouble):
                pending.mark_doubtful(True)
                verdict = Uncertain(_uncertain(pending, trouble, sent_at))
                await self._record(pending, State.UNCERTAIN, error=trouble)
                self.observe(
                    events.Uncertain,
                    at=self.clock.now(),
                    key=pending.key,
                    batch=pending.batch,
                    job=pending.job,
                    error=verdict.error,
                )
        return verdict

    async def with_recorded_id(self, row: Row) -> Row:
        """Return a row with its paid id, recording the id if the ledger could not record it earlier."""
        name = (row.batch, row.key)
        entry = self._unrecorded.get(name)
        if entry is None or not _completes(entry, row):
            return row
        try:
            row = await self.ledger.record(entry)
        except LedgerError:
            return row.after(entry)
        self._unrecorded.pop(name, None)
        return row

    async def record_again(self) -> list[Row]:
        """Record the paid ids that the ledger could not record earlier, and return their rows.

        An id that cannot be recorded now either is only in the log.
        """
        recorded: list[Row] = []
        for name, entry in list(self._unrecorded.items()):
            try:
                found = await self.ledger.find(*name)
                if found is not None and _completes(entry, found[0]):
                    recorded.append(await self.ledger.record(entry))
                self._unrecorded.pop(name, None)
            except NotInHandError:
                self._unrecorded.pop(name, None)
                log.warning("job %s: another worker owns it and settles prediction %s", entry.key, entry.prediction_id)
            except LedgerError:
                log.exception(
                    "the ledger cannot be written: job %s is paid for as prediction %s", entry.key, entry.prediction_id
                )
        return recorded

    async def _send(self, pending: PendingSubmission) -> Prediction | TransportError | ApiError | WrongLoopError:
        try:
            return self.provider.read_prediction(await self.transport.send(pending.request), key=pending.key)
        except (TransportError, ApiError, WrongLoopError) as error:
            return error
        # A critical task is never cancelled, so a cancellation comes from the transport.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- money may have been spent
            lost = ConnectionLostError(f"{type(error).__name__} while the job was being submitted")
            lost.__cause__ = error
            return lost

    async def _record_intent(self, pending: PendingSubmission, attempt: int) -> None:
        entry = Entry(
            batch=pending.batch,
            key=pending.key,
            state=State.INTENT,
            at=self.clock.now(),
            attempt=attempt,
            fingerprint=pending.fingerprint,
            token_hash=pending.token_hash,
            sender=self.senders.own.id,
            cost=pending.cost,
        )
        try:
            await self.ledger.record(entry)
        # As in `_send`: a cancellation comes from the ledger.
        except (Exception, asyncio.CancelledError) as error:
            why, advice = (error.message, error.advice) if isinstance(error, KlingError) else (repr(error), None)
            raise LedgerError(
                f"the intent could not be recorded, so nothing was sent: {why}",
                job=pending.job,
                key=pending.key,
                advice=advice,
            ) from error
        if self.shared is None:
            return
        try:
            self.shared.fence(pending.batch, pending.key)
        except LedgerError as error:
            # Nothing was sent.
            await self._record(pending, State.PENDING, error=error)
            raise

    async def _record(
        self,
        pending: PendingSubmission,
        state: State,
        *,
        prediction_id: str | None = None,
        attempt: int | None = None,
        error: KlingError | None = None,
    ) -> None:
        entry = Entry(
            batch=pending.batch,
            key=pending.key,
            state=state,
            at=self.clock.now(),
            attempt=attempt,
            prediction_id=prediction_id,
            error=None if error is None else error.message,
        )
        try:
            await self.ledger.record(entry)
        except (Exception, asyncio.CancelledError):
            # The job continues. After a crash this line is the only record of a paid id.
            log.exception(
                "the ledger cannot be written: job %s is %s, prediction %s", pending.key, state, prediction_id
            )
            if state is State.SUBMITTED:
                self._unrecorded[pending.name] = entry


def _completes(entry: Entry, row: Row) -> bool:
    """Return whether an entry has the paid id of the attempt that a row is in doubt about."""
    return row.state.in_doubt and row.attempt == entry.attempt


def _uncertain(pending: PendingSubmission, error: KlingError, sent_at: float) -> SubmissionUncertainError:
    uncertain = SubmissionUncertainError(
        f"the job was sent, and there is no clear reply: {error.message}",
        sent_at=sent_at,
        job=pending.job,
        key=pending.key,
        request_id=error.request_id,
    )
    uncertain.__cause__ = error
    return uncertain

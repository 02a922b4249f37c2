"""The paid request: record the intent, send, judge the reply, record the result."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import anyio
import attrs

from kling_async import events
from kling_async._core.clock import Clock
from kling_async._core.copies import changed
from kling_async._core.states import Entry, Row, State
from kling_async._core.submission import Accepted, Rejected, Uncertain, Verdict, judge
from kling_async._core.transport import Transport
from kling_async._observers import Observers
from kling_async.errors import (
    ApiError,
    ConnectionLostError,
    KlingError,
    LedgerError,
    NotInHandError,
    Spent,
    SubmissionUncertainError,
    TransportError,
)
from kling_async.ledger import Ledger, SharedLedger
from kling_async.limits import Gate
from kling_async.providers import Provider

if TYPE_CHECKING:
    from kling_async._core.prediction import Prediction

    from .pending import PendingSubmission

log = logging.getLogger("kling_async")

MAX_CONCURRENT_SUBMITS = 32
"""Greatest number of paid requests between intent and reply: a crash leaves at most as many in doubt."""


@attrs.define
class Submitter:
    """Sends paid requests, each between its intent and its result in the ledger.

    Attributes:
        transport: Sends the request.
        provider: Parses the reply.
        ledger: Records intent and result.
        shared: The same ledger where several processes write it; None otherwise.
        gate: Session-wide back-off and rate limit.
        clock: The session's clock.
        observe: Publishes events.
    """

    transport: Transport
    provider: Provider
    ledger: Ledger
    shared: SharedLedger | None
    gate: Gate
    clock: Clock
    observe: Observers
    _turns: anyio.Semaphore = attrs.field(
        factory=lambda: anyio.Semaphore(MAX_CONCURRENT_SUBMITS, fast_acquire=True), init=False
    )
    # Entries with a paid id that the ledger could not record when the reply came.
    _unrecorded: dict[tuple[str, str], Entry] = attrs.field(factory=dict, init=False)

    async def acquire_turn(self) -> None:
        """Wait for the back-off, the rate limit, and one of `MAX_CONCURRENT_SUBMITS` turns. Release the turn later."""
        while True:
            await self.gate.wait()
            await self._turns.acquire()
            if not self.gate.closed:
                return
            self._turns.release()

    def release_turn(self) -> None:
        """Release a turn acquired with `acquire_turn`."""
        self._turns.release()

    async def attempt(self, pending: PendingSubmission, attempt: int) -> Verdict:
        """Record the intent, send one paid request, record the verdict and return it. Must not be cancelled.

        Args:
            pending: The submission.
            attempt: Number of the request among those of the job, from 1.

        Raises:
            LedgerError: The intent could not be recorded, or another process owns the job; nothing was sent.
        """
        await self._record_intent(pending, attempt)
        self.observe(
            events.Submitting,
            at=self.clock.now(),
            key=pending.key,
            batch=pending.batch,
            job=pending.job,
            attempt=attempt,
        )
        sent_at = self.clock.now()
        verdict = judge(await self._send(pending))
        match verdict:
            case Accepted(prediction):
                self.gate.record_accepted()
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

    async def _send(self, pending: PendingSubmission) -> Prediction | TransportError | ApiError:
        try:
            return self.provider.read_prediction(await self.transport.send(pending.request), key=pending.key)
        except (TransportError, ApiError) as error:
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
            cost=pending.cost,
        )
        try:
            await self.ledger.record(entry)
        except Exception as error:
            why, advice = (error.message, error.advice) if isinstance(error, KlingError) else (error, None)
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
        except Exception:
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

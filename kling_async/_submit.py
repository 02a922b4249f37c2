"""The paid section: intend, send, judge, record."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from decimal import Decimal
from random import Random
from typing import Literal, TypeAlias

import anyio
import attrs

from ._admission import Admission
from ._core import events
from ._core.budget import Reservation
from ._core.clock import Clock
from ._core.copies import changed
from ._core.errors import (
    ApiError,
    BudgetExceededError,
    ConnectionLostError,
    KlingError,
    LedgerError,
    NotInHandError,
    PriceUnknownError,
    RateLimitedError,
    Spent,
    SubmissionUncertainError,
    TransportError,
)
from ._core.http import HttpRequest
from ._core.job import Job
from ._core.polling import Backoff
from ._core.prediction import Prediction
from ._core.reconciliation import Adopted, Doubt, Held, Settlement, Unaccepted
from ._core.states import Entry, Row, State
from ._core.submission import Accepted, Rejected, Uncertain, Verdict, judge
from ._core.transport import Transport
from ._custody import Custody
from ._observers import Observers
from .ledger import Ledger
from .limits import Gate, Slot
from .providers import Provider

log = logging.getLogger("kling_async")

OnUncertain: TypeAlias = Literal["reconcile", "hold", "resubmit"]
"""What to do with a submission in doubt.

Find out by the account's history; leave it; or find out, and send it again when the history shows nothing either way,
which may pay twice.
"""

POSTS_AT_ONCE = 32
"""Paid requests that are between their intent and their answer at once: what a crash may leave in doubt."""

DOUBTS = 3
"""How often a job is sent that was in doubt and shown to be unaccepted each time."""

CONNECT_ATTEMPTS = 5
"""How often a connection is tried for one job; nothing was sent in between."""


@attrs.define
class Ask:
    """One job on its way to the service.

    Attributes:
        job: What to make.
        key: Its name.
        batch: The batch's name; empty outside a batch.
        request: The paid request.
        fingerprint: The digest of what the request asks for.
        price: USD of one paid request by the price list; None when it is not known.
        slot: The right to run it.
        admission: Whether it is still sent.
        token_hash: Digest of the token in its webhook's URL, if it has one.
        money: What is set aside for it.
    """

    job: Job
    key: str
    batch: str
    request: HttpRequest
    fingerprint: str
    price: Decimal | None
    slot: Slot
    admission: Admission
    token_hash: str | None = None
    money: tuple[Reservation, ...] = ()

    @property
    def cost(self) -> Decimal | None:
        """USD of one paid request: as it was set aside, else by the price list; None when it is not known."""
        return self.money[0].usd if self.money else self.price

    def mark(self, *, doubtful: bool) -> None:
        """Say whether it may have been accepted without our knowing."""
        for reservation in self.money:
            reservation.doubtful = doubtful


@attrs.define
class Submitter:
    """Submits jobs, each once.

    What is paid for runs in custody from the intent to the recorded id: cancelling the caller ends the caller's waiting
    and nothing else. Between two attempts, which there are only after a refusal, the caller may go.

    Attributes:
        transport: Sends the request.
        provider: Reads the reply.
        ledger: Is told before and after.
        admit: Waits until the account, in whatever processes it is used, has room and money for a job.
        fence: Raises a `LedgerError` when a job, by its batch and key, is not in this process's hand any more.
        custody: Runs the paid part.
        gate: What stands before every start, and hears what becomes of it.
        clock: The session's clock.
        rng: For jitter.
        observe: Is told what happens.
        accepted: Takes over what was accepted: the prediction, and the ask with its slot.
        settle: Finds out what became of a submission in doubt.
        reserve: Sets the price of a job aside once more.
        left: Is told the name of a job that nobody has in hand any more.
        under_way: How many hold a job's name: a second request for it must wait until nobody does.
        on_uncertain: What to do with one: find out, leave it, or send it again when it could not be found out.
        patience: Seconds in which the service accepts nothing and refuses by 429, after which a job gives up.
    """

    transport: Transport
    provider: Provider
    ledger: Ledger
    admit: Callable[[Ask], Awaitable[None]]
    fence: Callable[[str, str], None]
    custody: Custody
    gate: Gate
    clock: Clock
    rng: Random
    observe: Observers
    accepted: Callable[[Prediction, Ask], None]
    settle: Callable[[Row], Awaitable[Settlement]]
    reserve: Callable[[Ask], Awaitable[None]]
    left: Callable[[tuple[str, str]], None]
    under_way: Counter[tuple[str, str]]
    on_uncertain: OnUncertain = "reconcile"
    patience: float = 900.0
    _door: anyio.Semaphore = attrs.field(factory=lambda: anyio.Semaphore(POSTS_AT_ONCE, fast_acquire=True), init=False)
    # Paid ids that the ledger did not take when they came.
    _unwritten: dict[tuple[str, str], Entry] = attrs.field(factory=dict, init=False)

    async def written(self, row: Row) -> Row:
        """The row with its paid id, where the ledger did not take that when it came."""
        name = (row.batch, row.key)
        entry = self._unwritten.get(name)
        if entry is None or not _answers(entry, row):
            return row
        try:
            row = await self.ledger.record(entry)
        except LedgerError:
            # It is known all the same.
            return row.after(entry)
        self._unwritten.pop(name, None)
        return row

    async def write_down(self) -> list[Row]:
        """Once more what the ledger did not take, as it has it then; what it refuses again stands in the log alone."""
        written: list[Row] = []
        for name, entry in list(self._unwritten.items()):
            try:
                found = await self.ledger.find(*name)
                if found is not None and _answers(entry, found[0]):
                    written.append(await self.ledger.record(entry))
                self._unwritten.pop(name, None)
            except NotInHandError:
                self._unwritten.pop(name, None)
                log.warning("job %s is another worker's, who finds out about %s", entry.key, entry.prediction_id)
            except LedgerError:
                log.exception("the ledger could not be written: job %s, prediction %s", entry.key, entry.prediction_id)
        return written

    async def look_for(self, job: Job, row: Row) -> Row:
        """The row of a job that an earlier submit left in doubt, moved on: submitted, or free to be sent again.

        It stays in doubt only where it is to be sent again all the same.

        Raises:
            SubmissionUncertainError: What became of it cannot be found out.
        """
        if row.state is State.INTENT:
            # Nobody has it in hand: its answer came, and could not be written down.
            step = Entry(
                batch=row.batch, key=row.key, state=State.UNCERTAIN, at=self.clock.now(), error="not written down"
            )
            row = await self.ledger.record(attrs.evolve(step, expected_version=row.version))
        end = await self._end(row)
        match end:
            case Adopted(prediction_id):
                now = self.clock.now()
                known = attrs.evolve(row, prediction_id=prediction_id, error=None)
                return attrs.evolve(known, state=State.SUBMITTED, submitted_at=now, updated_at=now)
            case Unaccepted():
                return attrs.evolve(row, state=State.PENDING)
            case Held():
                if self._insists(end):
                    return row
                raise self._held(end, job, row, None)

    async def submit(self, ask: Ask, row: Row) -> Prediction:
        """The accepted prediction. From here on the slot is taken care of.

        Args:
            ask: The job on its way.
            row: Its row in the ledger; in doubt, when it was looked for and is to be sent all the same.

        Raises:
            SubmissionUncertainError: It was sent, and its end is not known.
            SkippedError: Its batch was drained before it was sent.
            KlingError: It was refused, or nothing could be sent.
        """
        attempt = row.attempt
        refusals = _Refusals(self)
        in_custody = False
        try:
            if row.state is State.UNCERTAIN:
                await self._once_more(ask, row, Held(Doubt.WHETHER, ()), None)
            while True:
                with ask.admission:
                    await self.admit(ask)
                    await self._admitted()
                attempt += 1
                in_custody = True
                verdict = await self._in_custody(ask, attempt)
                in_custody = False
                match verdict:
                    case Accepted(prediction):
                        return prediction
                    case Uncertain(error):
                        found = await self._settled(ask, error)
                        if found is not None:
                            return found
                        refusals.shown_unaccepted(ask, error)
                    case Rejected(error, again):
                        delay = await refusals.delay(ask, error) if again else None
                        self._refused(ask, error, delay)
                        if delay is None:
                            raise error
                        with ask.admission:
                            await self.clock.sleep(delay)
                            await ask.slot.turn()
        except BaseException:
            if not in_custody:
                ask.slot.release()
            raise

    async def _settled(self, ask: Ask, doubt: KlingError) -> Prediction | None:
        """The prediction that a submission in doubt turns out to be; None when it may be sent again.

        Raises:
            SubmissionUncertainError: It stays in doubt.
        """
        row = await self._row_in_doubt(ask)
        end: Settlement = Held(Doubt.WHETHER, ())
        if row is not None and row.state is State.UNCERTAIN:
            end = await self._end(row)
            if isinstance(end, Held):
                row = await self._row_in_doubt(ask) or row
        if row is not None and row.state is not State.UNCERTAIN:
            # Who looked for another job, or a webhook, has settled it meanwhile, and has seen to what follows from it.
            if row.state is State.ABANDONED:
                raise self._held(Held(Doubt.WHETHER, ()), ask.job, row, doubt)
            if row.prediction_id is None:
                ask.mark(doubtful=False)
                return None
            ask.slot.release()
            prediction = Prediction(id=row.prediction_id, model=ask.job.model, key=ask.key)
            self._tell_accepted(prediction, ask)
            return prediction
        match end:
            case Adopted(prediction_id):
                prediction = Prediction(id=prediction_id, model=ask.job.model, key=ask.key)
                self._take_over(prediction, ask)
                return prediction
            case Unaccepted():
                ask.mark(doubtful=False)
            case Held():
                if row is None or not self._insists(end):
                    raise self._held(end, ask.job, row, doubt)
                await self._once_more(ask, row, end, doubt)
        return None

    async def _end(self, row: Row) -> Settlement:
        return Held(Doubt.WHETHER, ()) if self.on_uncertain == "hold" else await self.settle(row)

    def _insists(self, end: Held) -> bool:
        """Whether a job is sent again that cannot be shown to be unaccepted."""
        return self.on_uncertain == "resubmit" and not end.candidates

    async def _once_more(self, ask: Ask, row: Row, end: Held, doubt: KlingError | None) -> None:
        """Free a job to be sent again that may have been accepted; what may have been paid for stays set aside.

        Raises:
            SubmissionUncertainError: There is no money for a second request, or it cannot be written down.
        """
        try:
            await self.reserve(ask)
            step = self._entry(ask, State.PENDING, error=doubt)
            await self.ledger.record(attrs.evolve(step, expected_version=row.version))
        except (BudgetExceededError, PriceUnknownError, LedgerError) as trouble:
            raise self._held(end, ask.job, row, doubt, f", because {trouble.message}") from trouble

    def _held(
        self, end: Held, job: Job, row: Row | None, doubt: KlingError | None, why: str = ""
    ) -> SubmissionUncertainError:
        what = f"{end.doubt.reason}; it was not sent again{why}"
        cause = None if doubt is None else doubt.__cause__
        if cause is not None:
            what += f": {getattr(cause, 'message', cause)}"
        error = SubmissionUncertainError(
            what,
            sent_at=row.intent_at if row else None,
            candidates=end.candidates,
            job=job,
            key=row.key if row else doubt.key if doubt else None,
            spent=Spent.YES if end.doubt is Doubt.WHOSE else Spent.UNKNOWN,
        )
        error.__cause__ = cause
        return error

    async def _row_in_doubt(self, ask: Ask) -> Row | None:
        try:
            found = await self.ledger.find(ask.batch, ask.key)
        except LedgerError:
            # What is known must still be told: money may have been spent.
            log.exception("the ledger cannot be read")
            return None
        # An intent is in doubt, and that could not be written down.
        return found[0] if found is not None and found[0].state is not State.INTENT else None

    async def _admitted(self) -> None:
        """Wait for all that stands before a paid request: 429s of others, the rate, the door."""
        while True:
            await self.gate.wait()
            await self._door.acquire()
            if not self.gate.closed:
                return
            self._door.release()

    async def _in_custody(self, ask: Ask, attempt: int) -> Verdict:
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        try:
            task = self.custody.start(lambda: self._attempt(ask, attempt), name=f"kling-submit-{ask.key}")
        except BaseException:
            self._door.release()
            ask.slot.release()
            raise
        self.under_way[ask.batch, ask.key] += 1
        task.add_done_callback(lambda done: self._answered(done, ask, answer))
        try:
            return await answer
        except asyncio.CancelledError as cancelled:
            if not answer.cancelled():
                # The answer had come, and its taker was cancelled before he took it.
                _let_go(ask.slot, answer)
            cancelled.add_note(f"kling_async: job {ask.key} was being submitted; if it is accepted, its id is recorded")
            raise
        except BaseException:
            ask.slot.release()
            raise

    def _answered(self, task: asyncio.Task[Verdict], ask: Ask, answer: asyncio.Future[Verdict]) -> None:
        """Give what came of an attempt to whoever still waits for it: cancelling `answer` ends that."""
        # A callback, because a task that is cancelled before its first step runs none of its code.
        name = (ask.batch, ask.key)
        self._door.release()
        self.under_way[name] -= 1
        if not self.under_way[name]:
            del self.under_way[name]
            self.left(name)
        if answer.cancelled() or task.cancelled():
            answer.cancel()
            _let_go(ask.slot, task)
        elif (error := task.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())

    async def _attempt(self, ask: Ask, attempt: int) -> Verdict:
        await self._intend(ask, attempt)
        try:
            self.fence(ask.batch, ask.key)
        except LedgerError as error:
            # Nothing was sent.
            await self._record(ask, State.PENDING, error=error)
            raise
        self.observe(events.Submitting, at=self.clock.now(), key=ask.key, batch=ask.batch, job=ask.job, attempt=attempt)
        sent_at = self.clock.now()
        end: Prediction | TransportError | ApiError
        try:
            end = self.provider.read_prediction(await self.transport.send(ask.request), key=ask.key)
        except (TransportError, ApiError) as error:
            end = error
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- money may have been spent; and nobody
            # cancels what is in custody, so that a cancellation is the transport's own.
            end = ConnectionLostError(f"{type(error).__name__} while the job was being submitted")
            end.__cause__ = error
        verdict = judge(end)
        match verdict:
            case Accepted(prediction):
                if not prediction.model or prediction.key != ask.key:
                    prediction = changed(prediction, key=ask.key, model=prediction.model or ask.job.model)
                    verdict = Accepted(prediction)
                await self._accepted(prediction, ask, attempt)
            case Rejected(refusal, again):
                refusal.job, refusal.key, refusal.spent = ask.job, ask.key, Spent.NO
                await self._record(ask, State.PENDING if again else State.REJECTED, error=refusal)
            case Uncertain(trouble):
                ask.mark(doubtful=True)
                verdict = Uncertain(self._uncertain(ask, trouble, sent_at))
                await self._record(ask, State.UNCERTAIN, error=trouble)
                self.observe(
                    events.Uncertain,
                    at=self.clock.now(),
                    key=ask.key,
                    batch=ask.batch,
                    job=ask.job,
                    error=verdict.error,
                )
        return verdict

    async def _accepted(self, prediction: Prediction, ask: Ask, attempt: int) -> None:
        self.gate.accepted()
        # Recorded before anything else is done with the reply.
        await self._record(ask, State.SUBMITTED, prediction_id=prediction.id, attempt=attempt)
        self._take_over(prediction, ask)

    def _take_over(self, prediction: Prediction, ask: Ask) -> None:
        for reservation in ask.money:
            reservation.commit()
        ask.slot.accepted()
        self.accepted(prediction, ask)
        self._tell_accepted(prediction, ask)

    def _tell_accepted(self, prediction: Prediction, ask: Ask) -> None:
        self.observe(
            events.Accepted, at=self.clock.now(), key=ask.key, batch=ask.batch, job=ask.job, prediction=prediction
        )

    async def _intend(self, ask: Ask, attempt: int) -> None:
        entry = Entry(
            batch=ask.batch,
            key=ask.key,
            state=State.INTENT,
            at=self.clock.now(),
            attempt=attempt,
            fingerprint=ask.fingerprint,
            token_hash=ask.token_hash,
            cost=ask.cost,
        )
        try:
            await self.ledger.record(entry)
        except Exception as error:
            why, advice = (error.message, error.advice) if isinstance(error, KlingError) else (error, None)
            raise LedgerError(
                f"the intent could not be written down, so nothing was sent: {why}",
                job=ask.job,
                key=ask.key,
                advice=advice,
            ) from error

    async def _record(
        self,
        ask: Ask,
        state: State,
        *,
        prediction_id: str | None = None,
        attempt: int | None = None,
        error: KlingError | None = None,
    ) -> None:
        entry = self._entry(ask, state, prediction_id=prediction_id, attempt=attempt, error=error)
        try:
            await self.ledger.record(entry)
        except Exception:
            # What was paid for goes on all the same; after a crash this line is the only record of it.
            log.exception("the ledger could not be written: job %s is %s, prediction %s", ask.key, state, prediction_id)
            if state is State.SUBMITTED:
                self._unwritten[ask.batch, ask.key] = entry

    def _entry(
        self,
        ask: Ask,
        state: State,
        *,
        prediction_id: str | None = None,
        attempt: int | None = None,
        error: KlingError | None = None,
    ) -> Entry:
        return Entry(
            batch=ask.batch,
            key=ask.key,
            state=state,
            at=self.clock.now(),
            attempt=attempt,
            prediction_id=prediction_id,
            error=None if error is None else error.message,
        )

    def _uncertain(self, ask: Ask, error: KlingError, sent_at: float) -> SubmissionUncertainError:
        uncertain = SubmissionUncertainError(
            f"the submit has no clear answer: {error.message}",
            sent_at=sent_at,
            job=ask.job,
            key=ask.key,
            request_id=error.request_id,
        )
        uncertain.__cause__ = error
        return uncertain

    def _refused(self, ask: Ask, error: KlingError, again: float | None) -> None:
        self.observe(
            events.Refused, at=self.clock.now(), key=ask.key, batch=ask.batch, job=ask.job, error=error, again=again
        )


@attrs.define
class _Refusals:
    """How long one job waits after each refusal, and when it gives up."""

    submitter: Submitter
    unconnected: int = 0
    unaccepted: int = 0
    limited_since: float | None = None

    def shown_unaccepted(self, ask: Ask, doubt: KlingError) -> None:
        """Count a submission that was in doubt and is shown to be unaccepted.

        Raises:
            KlingError: What came instead of an answer, when that has happened too often.
        """
        self.unaccepted += 1
        trouble = doubt.__cause__
        if self.unaccepted >= DOUBTS and isinstance(trouble, KlingError):
            trouble.job, trouble.key, trouble.spent = ask.job, ask.key, Spent.NO
            if self.submitter.on_uncertain == "resubmit":
                trouble.spent = Spent.UNKNOWN
            trouble.advice = f"it was sent {DOUBTS} times and shown to be unaccepted each time; ask again later"
            raise trouble

    async def delay(self, ask: Ask, error: KlingError) -> float | None:
        """Seconds until the job is sent again, when it is its turn; None when it is not."""
        chance = self.submitter.rng.random()
        if not isinstance(error, RateLimitedError):
            self.unconnected += 1
            return None if self.unconnected >= CONNECT_ATTEMPTS else _BACKOFF.delay(self.unconnected, chance)
        seconds = await self.submitter.gate.refused(error, ask.slot, chance)
        if seconds is None:
            self.limited_since = None
            return 0.0
        now = self.submitter.clock.monotonic()
        self.limited_since = max(self.limited_since or now, self.submitter.gate.accepted_at)
        return None if now + seconds - self.limited_since > self.submitter.patience else seconds


_BACKOFF = Backoff()


def _answers(entry: Entry, row: Row) -> bool:
    """Whether a step has the id that a row waits for."""
    return row.state in {State.INTENT, State.UNCERTAIN} and row.attempt == entry.attempt


def _let_go(slot: Slot, done: asyncio.Future[Verdict]) -> None:
    """Free the slot of an attempt that nobody waits for, unless what it brought holds it."""
    if done.cancelled() or done.exception() is not None or not isinstance(done.result(), Accepted):
        slot.release()

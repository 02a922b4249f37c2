"""What is alive while a session is open: shared by all of its views."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio
import attrs

from ._admission import Admission
from ._core.budget import Reservation
from ._core.content import Content, content_of
from ._core.errors import (
    ApiError,
    BudgetExceededError,
    InvalidJobError,
    KeyReusedError,
    KlingError,
    LedgerError,
    NotFoundError,
    PredictionError,
    Problem,
    SkippedError,
    SubmissionUncertainError,
)
from ._core.events import Accepted, Begun, Left, Retrying, Uploaded
from ._core.polling import Backoff
from ._core.prediction import RETRIED, Prediction, Status
from ._core.reconciliation import fingerprint
from ._core.states import Entry, Row, State
from ._core.statistics import SessionStatistics
from ._custody import Custody
from ._history import History
from ._media import Images, digest
from ._money import Money
from ._observers import Observers
from ._recall import KEPT, prediction_of, still_there
from ._reconcile import Reconciler
from ._retry import send_read
from ._saving import Saving
from ._submit import Ask, OnUncertain, Submitter
from ._watcher import Watcher
from .ledger import SharedLedger, identity
from .limits import Gate, RateLimiter, Slot, Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ._core.budget import Budget
    from ._core.catalogue import Level
    from ._core.clock import Clock
    from ._core.events import Observer
    from ._core.http import HttpRequest, HttpResponse
    from ._core.job import Job
    from ._core.polling import WatchPolicy
    from ._core.transport import Transport
    from .ledger import Ledger
    from .providers import Provider
    from .webhooks import Delivery

log = logging.getLogger("kling_async")


class Account:
    """One account on one provider, open.

    Args:
        provider: The wire dialect.
        transport: Sends and receives.
        owns_transport: Whether closing closes it.
        clock: The session's clock.
        ledger: Where what is paid for is written down.
        limiter: Starts per time.
        level: What the account permits; a shared ledger counts what all of its sessions use of it.
        adaptive: Whether fewer may while the service refuses them.
        max_saving: Outputs that are saved at once.
        inline: Whether images travel in the request instead of being uploaded.
        fit: Whether images are converted that the service would refuse.
        max_uploads: Images that are uploaded at once.
        policy: How often predictions are read.
        forget_after: Seconds after which a prediction that never ends is no longer watched.
        observers: Are told every event.
        on_uncertain: What to do with a submission in doubt.
        grace: Seconds until its absence from the history shows that it was not accepted.
        sole_user: Whether nothing but this ledger uses the key.
        budget: What all of it may cost, with what the ledger says it has cost already.
        retry_failed: How often a job is paid for again whose prediction the service failed by its own fault.
        webhook_url: Where the service can reach a receiver of this session's, or None.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        transport: Transport,
        owns_transport: bool,
        clock: Clock,
        ledger: Ledger,
        limiter: RateLimiter,
        level: Level,
        adaptive: bool,
        max_saving: int,
        inline: bool,
        fit: bool,
        max_uploads: int,
        policy: WatchPolicy,
        forget_after: float,
        observers: tuple[Observer, ...],
        on_uncertain: OnUncertain,
        grace: float,
        sole_user: bool,
        budget: Budget | None,
        retry_failed: int,
        webhook_url: str | None,
    ) -> None:
        self.provider = provider
        self.clock = clock
        self.ledger = ledger
        self.shared = ledger if isinstance(ledger, SharedLedger) else None
        self._ledger_open = False
        self.level = level
        self.slots = Slots(level.in_flight, adaptive=adaptive)
        self.gate = Gate(limiter, self.slots, clock)
        # Of what is in no batch.
        self._admission = Admission()
        self._transport = transport
        self._owns_transport = owns_transport
        self.observe = Observers(observers)
        self.saving = Saving(
            transport=transport, ledger=self.ledger, clock=clock, observe=self.observe, at_once=max_saving
        )
        self._rng = random.Random()  # noqa: S311 -- jitter
        self._custody = Custody()
        self.retry_failed = retry_failed
        self._webhook_url = webhook_url
        self.spent = Decimal(0)
        """USD of what was accepted since the session was opened, by the price list."""
        self.full_windows = 0
        """Batches whose input waits until their consumer has taken an outcome."""
        self._entering = anyio.Lock()
        self.images = Images(transport, provider, clock, limit=max_uploads, inline=inline, fit=fit, memory=self.ledger)
        self.watcher = Watcher(
            transport=transport,
            provider=provider,
            clock=clock,
            policy=policy,
            rng=self._rng,
            observe=self.observe,
            forget_after=forget_after,
        )
        # How many hold a job's name: its caller, and its attempt in custody, which may outlive the caller's waiting.
        self._under_way: Counter[tuple[str, str]] = Counter()
        self._money = Money(
            provider=provider,
            clock=clock,
            ask=self.ask,
            ledger=self.ledger,
            origin=identity(ledger),
            budget=budget,
            under_way=self._under_way,
        )
        self.spending = self._money.spending
        past = History(provider, self.ask, clock, self._rng)
        self._told: dict[tuple[str, str], KlingError] = {}
        self._reconciler = Reconciler(
            ledger=self.ledger,
            clock=clock,
            history=past.predictions,
            bill=past.bill,
            grace=grace,
            sole_user=sole_user,
            custody=self._custody,
            settled=self._settled,
        )
        self._submitter = Submitter(
            transport=transport,
            provider=provider,
            ledger=self.ledger,
            admit=self._admit,
            fence=self._fence,
            custody=self._custody,
            gate=self.gate,
            clock=clock,
            rng=self._rng,
            observe=self.observe,
            accepted=self._accepted,
            reserve=self._reserve_again,
            left=self._left,
            settle=self._reconciler.settle,
            under_way=self._under_way,
            on_uncertain=on_uncertain,
        )
        self._watching = asyncio.create_task(self.watcher.run(), name="kling-watcher")
        self._sharing: asyncio.Task[None] | None = None

    def statistics(self) -> SessionStatistics:
        """Where the jobs are, and what watching and waiting cost."""
        watch = self.watcher.statistics()
        return SessionStatistics(
            running=watch.watched,
            slots=self.slots.total,
            waiting_for_window=self.full_windows,
            waiting_for_slot=self.slots.waiting,
            waiting_for_rate=self.gate.waiting_for_rate,
            waiting_for_pause=self.gate.waiting_for_pause,
            pause_left=self.gate.pause_left,
            refusals={limit.value: count for limit, count in self.gate.refusals.items()},
            watch=watch,
            spent=self.spent,
        )

    async def content(self, job: Job) -> Content:
        """A job's content, its image files looked into.

        Raises:
            InvalidJobError: An image file cannot be read.
        """
        digests = {image: await digest(image) for image in (job.image, job.end_image) if image is not None}
        return content_of(job, digests.__getitem__)

    async def open(self) -> None:
        """Make the ledger ready, and follow what it knows to be running.

        What an earlier process left between intent and answer is in doubt from here on.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        await self.ledger.open()
        self._ledger_open = True
        await self._go_on()
        await self._money.recall(None)
        if self.shared is not None:
            self._sharing = asyncio.create_task(self._take_part(self.shared), name="kling-sharing")

    async def enter(self, batch: str, budget: Budget | None) -> None:
        """Count what a batch has cost already.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        async with self._entering:
            await self._money.recall(batch, budget)

    async def has(self, batch: str) -> None:
        """Make sure that the ledger knows the batch.

        Raises:
            LedgerError: It does not.
        """
        if not await self.ledger.keys(batch, State):
            raise LedgerError(
                f"the ledger has no job of a batch named {batch!r}",
                advice="name the batch as it was named when it was run; kling-async status shows the names",
            )

    async def _left_rows(self, state: State) -> list[Row]:
        """The rows in a state that an earlier process left: in a ledger of our own, all."""
        return await (self.ledger.rows([state]) if self.shared is None else self.shared.left([state], None))

    async def _go_on(self) -> None:
        """Take up what an earlier process left."""
        for row in await self._left_rows(State.INTENT):
            if not self._under_way[row.batch, row.key]:
                await self.ledger.record(
                    Entry(
                        batch=row.batch,
                        key=row.key,
                        state=State.UNCERTAIN,
                        at=self.clock.now(),
                        error="its process ended while it was being submitted",
                    )
                )
        for row in await self._left_rows(State.SUBMITTED):
            if row.prediction_id is not None:
                self._follow_row(row)

    async def _take_part(self, ledger: SharedLedger) -> None:
        """Hear what webhooks told other sessions, and follow what those have left: it takes the account's slots."""
        while True:
            told = await ledger.told()
            try:
                for prediction, token_hash in told:
                    await self._hear(prediction, token_hash)
                written = await self._submitter.write_down()
                for row in (*written, *await ledger.left([State.SUBMITTED], None)):
                    self._follow_row(row)
            except LedgerError as error:
                log.warning("what other sessions have left is not looked for: %s", error.message)

    def _follow_row(self, row: Row, money: tuple[Reservation, ...] = ()) -> None:
        """Watch what runs, whether or not anybody asks for it: it takes one of the account's slots."""
        if self.watcher.seen(row.prediction_id or "") is not None:
            return
        self._watch(
            prediction_of(row),
            batch=row.batch,
            key=row.key,
            slot=self.slots.take(),
            submitted_at=row.submitted_at,
            money=money,
        )

    async def make(
        self,
        job: Job,
        *,
        key: str,
        deadline: float,
        accepted: Callable[[Prediction], None] | None = None,
        batch: str = "",
        admission: Admission | None = None,
        content: Content | None = None,
        budget: Budget | None = None,
        recalled: bool = False,
    ) -> Prediction:
        """The ended prediction of a job; made again, where that is asked for, when the service failed it.

        Args:
            job: What to make.
            key: Its name.
            deadline: Seconds to wait for an end, from each acceptance.
            accepted: Is told every accepted prediction.
            batch: As of `submit`.
            admission: As of `submit`.
            content: As of `submit`.
            budget: As of `submit`.
            recalled: As of `submit`.

        Raises:
            KlingError: It was refused, could not be sent, or its end is not known.
        """
        failures = 0
        failed: Prediction | None = None
        admission = admission or self._admission
        while True:
            try:
                prediction = await self.submit(
                    job,
                    key=key,
                    batch=batch,
                    admission=admission,
                    content=content,
                    budget=budget,
                    recalled=recalled,
                    failures=failures,
                )
            except SkippedError:
                if failed is None:
                    raise
                return failed
            failed = None
            if accepted is not None:
                accepted(prediction)
            if prediction.status.ended:
                return prediction
            waiting = self.watcher.wait(prediction, deadline=deadline, job=job)
            # The watcher has it, and later ones: an old record takes more than all else of a running job.
            del prediction
            prediction = await waiting
            failures += 1
            if prediction.code not in RETRIED or failures > self.retry_failed:
                return prediction
            delay = _BETWEEN_FAILURES.delay(failures, self._rng.random())
            failed = prediction
            try:
                with admission:
                    self.observe(
                        Retrying, at=self.clock.now(), key=key, batch=batch, job=job, prediction=failed, again=delay
                    )
                    await self.clock.sleep(delay)
            except SkippedError:
                return failed

    async def submit(
        self,
        job: Job,
        *,
        key: str,
        batch: str = "",
        admission: Admission | None = None,
        content: Content | None = None,
        budget: Budget | None = None,
        recalled: bool = False,
        failures: int = 0,
    ) -> Prediction:
        """The prediction of a job: accepted now, or known from before.

        A ledger that has the job is believed: what was accepted is not sent again.

        Args:
            job: What to make.
            key: Its name.
            batch: The batch's name; empty outside a batch.
            admission: Of its batch: ends the job before anything is sent.
            content: Its content, where it is known already.
            budget: Of its batch, beside that of the session.
            recalled: Whether it comes out of the ledger: its image files are looked into only when it is sent.
            failures: How many predictions have failed for it under the eyes of the caller.

        Raises:
            KlingError: It was refused, could not be sent, or its end is not known.
        """
        name = (batch, key)
        admission = admission or self._admission
        if self._under_way[name]:
            raise InvalidJobError([Problem("key", f"{key!r} is being submitted already")], job=job, key=key)
        self._under_way[name] += 1
        try:
            content = content or await self.content(job)
            row = await self.ledger.claim(batch, key, content=content, model=job.model, at=self.clock.now())
            row = await self._submitter.written(row)
            known = row.state in _ACCEPTED and not (self._again(row, failures) and await _is_still(job, content, key))
            self.observe(
                Begun,
                at=self.clock.now(),
                key=key,
                batch=batch,
                job=job,
                known=row.prediction_id if known else None,
                ended=known and row.state is not State.SUBMITTED,
            )
            if known:
                return await self._known(job, row)
            try:
                if row.state in _IN_DOUBT:
                    row = await self._found_out(job, row, budget)
                    if row.state in _ACCEPTED:
                        return await self._known(job, row)
                return await self._submit(job, row, admission, budget, content if recalled else None)
            except (SkippedError, BudgetExceededError) as error:
                error.job, error.key = job, key
                # What a drained batch lets go stands where it stood, for whoever goes on with it.
                if row.state in _NOT_SENT and not admission.drained:
                    self.ledger.note(
                        Entry(batch=batch, key=key, state=State.SKIPPED, at=self.clock.now(), error=error.message)
                    )
                raise
        except KlingError as error:
            self._told[name] = error
            raise
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]
                self._left(name)

    def _left(self, name: tuple[str, str]) -> None:
        """Nobody has the job in hand any more; what may have been paid for stays set aside."""
        self._money.let_go(name)
        self.ledger.unclaim(*name)
        batch, key = name
        self.observe(Left, at=self.clock.now(), key=key, batch=batch, error=self._told.pop(name, None))

    def _again(self, row: Row, failures: int) -> bool:
        """Whether a job whose prediction failed is paid for once more."""
        return row.state is State.FAILED and row.code in RETRIED and max(row.failures, failures) <= self.retry_failed

    async def _known(self, job: Job, row: Row) -> Prediction:
        """The prediction of a job that was accepted before.

        Raises:
            PredictionError: The service has it no more.
        """
        known = prediction_of(row)
        if row.state in {State.SUBMITTED, State.COMPLETED} and self._old(row):
            # Whether it is gone is not for our clock to say.
            try:
                known = attrs.evolve(await self.get(known.id), key=row.key)
            except NotFoundError as error:
                step = Entry(batch=row.batch, key=row.key, state=State.EXPIRED, at=self.clock.now())
                self.ledger.note(step)
                raise _expired(job, row) from error
        if row.state is State.SUBMITTED:
            self._follow_row(row)
        return self.watcher.seen(known.id) or known

    def _old(self, row: Row) -> bool:
        """Whether the service may have deleted the prediction."""
        return self.clock.now() - (row.submitted_at or row.updated_at) > KEPT

    async def _found_out(self, job: Job, row: Row, budget: Budget | None) -> Row:
        """What became of a job that an earlier submit left in doubt: that takes neither image, nor money, nor a slot.

        Raises:
            SubmissionUncertainError: It stays in doubt.
        """
        name = (row.batch, row.key)
        await self._money.take_up(name, job, budget)
        # From its reading on, without a pause, it is known to be looked for.
        found = await self.ledger.find(*name)
        if found is not None and found[0].state not in _IN_DOUBT:
            # Who looked for another job has settled it meanwhile.
            row = found[0]
        else:
            row = await self._submitter.look_for(job, row)
            if row.state is State.SUBMITTED:
                self._settled(row)
                self.observe(
                    Accepted, at=self.clock.now(), key=row.key, batch=row.batch, job=job, prediction=prediction_of(row)
                )
        if row.state not in _IN_DOUBT:
            # There may be more in doubt than there is money for: what was not accepted takes its turn with the others.
            self._money.found_out(name, accepted=row.state in _ACCEPTED)
            self._money.let_go(name)
        return row

    async def _submit(
        self,
        job: Job,
        row: Row,
        admission: Admission,
        budget: Budget | None,
        recalled: Content | None,
    ) -> Prediction:
        if row.state is State.EXPIRED:
            raise _expired(job, row)
        if row.state is State.ABANDONED:
            raise SubmissionUncertainError(row.error or "", sent_at=row.intent_at, candidates=(), job=job, key=row.key)
        name = (row.batch, row.key)
        try:
            with admission:
                if recalled is not None:
                    await still_there(job, recalled, row.key, digest)
                money = await self._money.reserve(name, job, budget)
                since = self.clock.now()
                image = await self.images.url(job.image, field="image")
                end_image = None if job.end_image is None else await self.images.url(job.end_image, field="end_image")
                self.observe(Uploaded, at=self.clock.now(), key=row.key, batch=row.batch, since=since)
                webhook, token = self._webhook()
                request = self.provider.submit(job, image, end_image, webhook=webhook)
                sent = fingerprint(job.inputs(image, end_image))
                slot = await self.slots.acquire()
            try:
                if row.state in _IN_DOUBT:
                    # Who looked for another job may have settled it meanwhile.
                    found = await self.ledger.find(*name)
                    row = row if found is None else found[0]
                    if row.state in _ACCEPTED:
                        slot.release()
                        return await self._known(job, row)
                admission.check()
            except BaseException:
                slot.release()
                raise
        except KlingError as error:
            raise not_sent_now(error, job, row)  # noqa: B904 -- itself, or it has its cause
        price = job.price(self.provider.name).usd
        ask = Ask(job, row.key, row.batch, request, sent, price, slot, admission, token, money)
        return await self._submitter.submit(ask, row)

    def _webhook(self) -> tuple[str | None, str | None]:
        """The webhook's URL for one job, and the digest of the token in it."""
        if self._webhook_url is None:
            return None, None
        from .webhooks import new_token, token_hash, url_with  # noqa: PLC0415 -- most sessions have none

        token = new_token()
        return url_with(self._webhook_url, token), token_hash(token)

    async def deliver(self, delivery: Delivery) -> None:
        """Take what a webhook says: its signature was found good."""
        if not await self._hear(delivery.prediction, delivery.token_hash) and self.shared is not None:
            # It may be another session's that shares the ledger.
            self.shared.tell(delivery.prediction, delivery.token_hash)

    async def _hear(self, prediction: Prediction, token_hash: str | None) -> bool:
        """Take what a webhook told; whether it was news of what is watched here."""
        if token_hash is not None and not await self.ledger.known([prediction.id]):
            await self._reconciler.testify(token_hash, prediction.id)
        return self.watcher.tell(prediction)

    async def _admit(self, ask: Ask) -> None:
        """Wait until all sessions of the account together have room and money for a job, where they share a ledger."""
        if self.shared is not None:
            await self.shared.admit(ask.batch, ask.key, self.level, ask.cost, self._money.caps(ask.batch, ask.money))

    def _fence(self, batch: str, key: str) -> None:
        """Make sure that a job is still in this process's hand, where several share the ledger."""
        if self.shared is not None:
            self.shared.fence(batch, key)

    async def _reserve_again(self, ask: Ask) -> None:
        ask.money = await self._money.reserve_again((ask.batch, ask.key), ask.job, ask.money)

    def _accepted(self, prediction: Prediction, ask: Ask) -> None:
        self.spent += ask.cost or 0
        self._watch(prediction, batch=ask.batch, key=ask.key, slot=ask.slot, job=ask.job, money=ask.money)

    def _settled(self, row: Row) -> None:
        """A submission in doubt was found, or shown to be unaccepted, and nobody waits for that."""
        name = (row.batch, row.key)
        accepted = row.state is State.SUBMITTED
        self._money.found_out(name, accepted=accepted)
        if accepted:
            self.spent += row.cost or 0
            self._follow_row(row, self._money.of(name))
        if not self._under_way[name]:
            self._left(name)

    def _watch(
        self,
        prediction: Prediction,
        *,
        batch: str,
        key: str,
        slot: Slot,
        job: Job | None = None,
        submitted_at: float | None = None,
        money: tuple[Reservation, ...] = (),
    ) -> None:
        """Watch what runs; its end frees the slot and goes into the ledger, whoever waits or does not."""
        ended = _Running(self, batch, key, slot, money)
        self.watcher.add(prediction, batch=batch, on_end=ended, job=job, submitted_at=submitted_at)

    async def ask(self, request: HttpRequest) -> HttpResponse:
        """The reply to a read, whatever its status.

        Raises:
            TransportError: The service could not be asked.
        """
        return await send_read(self._transport, request, self.clock, rng=self._rng.random)

    async def get(self, prediction_id: str) -> Prediction:
        """The prediction as the service has it now.

        Raises:
            ApiError: The service said no.
            TransportError: It could not be asked.
        """
        response = await self.ask(self.provider.result(prediction_id))
        try:
            return self.provider.read_prediction(response)
        except ApiError as error:
            error.prediction_id = prediction_id
            raise

    async def known(self, prediction: Prediction | str) -> Prediction:
        """The prediction itself when it is watched or ended, else what the service says of it."""
        if isinstance(prediction, Prediction):
            if prediction.status.ended:
                return prediction
            key = prediction.key
            prediction_id = prediction.id
        else:
            key, prediction_id = None, prediction
        watched = self.watcher.seen(prediction_id)
        if watched is not None:
            return watched
        found = await self.get(prediction_id)
        return found if key is None else attrs.evolve(found, key=key)

    async def follow(self, prediction: Prediction | str) -> AsyncIterator[Prediction]:
        """The prediction now, and at every change of status."""
        async for change in self.watcher.follow(await self.known(prediction)):
            yield change

    async def close(self) -> tuple[Prediction, ...]:
        """Let what is being submitted be recorded, end the rest, and say what still runs at the service."""
        if self._sharing is not None:
            self._sharing.cancel()
            await asyncio.gather(self._sharing, return_exceptions=True)
        self.slots.close()
        await self._custody.join()
        await self._submitter.write_down()
        left = self.watcher.close()
        self._watching.cancel()
        await asyncio.wait([self._watching])
        try:
            # One that was never opened here may be another session's.
            if self._ledger_open:
                await self.ledger.aclose()
        finally:
            if self._owns_transport:
                await self._transport.aclose()
        return left


_BETWEEN_FAILURES = Backoff(first=10.0, cap=120.0)
_IN_DOUBT = frozenset({State.INTENT, State.UNCERTAIN})
_NOT_SENT = frozenset({State.PENDING, State.CLAIMED, State.REJECTED})
_ACCEPTED = frozenset({State.SUBMITTED, State.COMPLETED, State.FAILED, State.DOWNLOADED})


@attrs.define(eq=False)
class _Running:
    """What a running prediction holds until it has ended: an object, because a closure over as much is eight."""

    account: Account
    batch: str
    key: str
    slot: Slot
    money: tuple[Reservation, ...]

    def __call__(self, last: Prediction) -> None:
        """It has ended, or is no longer watched."""
        self.slot.release()
        if not last.status.ended:
            return
        if last.status is not Status.COMPLETED:
            for reservation in self.money:
                reservation.fail(last.id)
        self.account.ledger.note(
            Entry(
                batch=self.batch,
                key=self.key,
                state=State.COMPLETED if last.failure() is None else State.FAILED,
                at=self.account.clock.now(),
                prediction_id=last.id,
                output=last.output,
                code=last.code,
                error=last.error,
            )
        )


def not_sent_now(error: KlingError, job: Job, row: Row) -> KlingError:
    """Why a job was not sent now: the error itself, or that the job is in doubt, since it was sent before."""
    if row.state not in _IN_DOUBT or isinstance(error, SubmissionUncertainError):
        return error
    doubt = SubmissionUncertainError(
        f"it was sent before, and what became of it was not found out, because {error.message}",
        sent_at=row.intent_at,
        job=job,
        key=row.key,
    )
    doubt.__cause__ = error
    return doubt


async def _is_still(job: Job, content: Content, key: str) -> bool:
    """Whether the job's image files, which may have been looked into long ago, are what they were."""
    try:
        await still_there(job, content, key, digest)
    except (InvalidJobError, KeyReusedError):
        return False
    return True


def _expired(job: Job, row: Row) -> PredictionError:
    return PredictionError(
        "its prediction had expired before it was fetched: the service keeps them for 7 days",
        prediction_id=row.prediction_id,
        job=job,
        key=row.key,
        advice="give the job another key to make, and pay for, it again",
    )

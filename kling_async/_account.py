"""What is alive while a session is open: shared by all of its views."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from . import storage
from ._core.budget import Budget, Reservation
from ._core.content import Content, content_of
from ._core.errors import (
    ApiError,
    BudgetExceededError,
    InvalidJobError,
    KlingError,
    LedgerError,
    NoOutputError,
    NotFoundError,
    PredictionError,
    Problem,
    ProtocolError,
    ServerError,
    SkippedError,
    StorageError,
)
from ._core.events import Retrying, Saved
from ._core.polling import Backoff
from ._core.prediction import Prediction, SavedFile, Status
from ._core.reconciliation import fingerprint
from ._core.states import Entry, Row, State
from ._custody import Custody
from ._media import Images, digest
from ._reconcile import Reconciler
from ._retry import pause, send_read
from ._spending import Spending
from ._submit import Ask, OnUncertain, Submitter
from ._walk import MAX_PAGE, Walk
from ._watcher import Watcher
from .ledger.routed import Ledgers
from .limits import Pause, RateLimiter, Slot, Slots

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from ._core.account import Page
    from ._core.catalogue import Level
    from ._core.clock import Clock
    from ._core.events import Event, Observer
    from ._core.http import HttpRequest, HttpResponse
    from ._core.job import Job
    from ._core.polling import WatchPolicy
    from ._core.transport import Transport
    from .ledger import Ledger
    from .providers import Provider

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
        level: What the account permits, of which a shared ledger counts what all of its sessions use.
        inline: Whether images travel in the request instead of being uploaded.
        policy: How often predictions are read.
        forget_after: Seconds after which a prediction that never ends is no longer watched.
        observers: Are told every event.
        on_uncertain: What to do with a submission in doubt.
        grace: Seconds until its absence from the history shows that it was not accepted.
        sole_user: Whether nothing but this ledger uses the key.
        budget: What all of it may cost, with what the ledger says it has cost already.
        retry_failed: How often a job is paid for again whose prediction the service failed by its own fault.
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
        inline: bool,
        policy: WatchPolicy,
        forget_after: float,
        observers: tuple[Observer, ...],
        on_uncertain: OnUncertain,
        grace: float,
        sole_user: bool,
        budget: Budget | None,
        retry_failed: int,
    ) -> None:
        self.provider = provider
        self.clock = clock
        self.ledger = Ledgers(ledger)
        self.level = level
        self.slots = Slots(level.in_flight)
        self._transport = transport
        self._owns_transport = owns_transport
        self._observers = observers
        self._rng = random.Random()  # noqa: S311 -- jitter
        self._custody = Custody()
        self._budget = budget
        self.retry_failed = retry_failed
        self.spending = Spending(provider=provider, clock=clock, ask=self.ask)
        # What is set aside for jobs that are on their way, or were when an earlier process ended.
        self._money: dict[tuple[str, str], tuple[Reservation, ...]] = {}
        self._counted: set[tuple[str, Budget]] = set()
        self.images = Images(transport, provider, clock, inline=inline)
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
        self._submitter = Submitter(
            transport=transport,
            provider=provider,
            ledger=self.ledger,
            admit=lambda batch, key: self.ledger.admit(batch, key, level),
            fence=self.ledger.fence,
            custody=self._custody,
            limiter=limiter,
            pause=Pause(clock),
            clock=clock,
            rng=self._rng,
            observe=self.observe,
            accepted=self._accepted,
            reserve=self._reserve_again,
            left=self._left,
            settle=Reconciler(
                ledger=self.ledger,
                clock=clock,
                history=self._history,
                grace=grace,
                sole_user=sole_user,
                custody=self._custody,
                adopted=self._adopted,
            ).settle,
            under_way=self._under_way,
            on_uncertain=on_uncertain,
        )
        self._watching = asyncio.create_task(self.watcher.run(), name="kling-watcher")

    def observe(self, event: Event) -> None:
        """Tell everybody who listens."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                log.exception("an observer raised at %s", type(event).__name__)

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
        await self._go_on(None)
        if self._budget is not None:
            await self._recall(self._budget, None)

    async def enter(self, batch: str, ledger: Ledger | None, budget: Budget | None) -> None:
        """Make a batch's own ledger and budget ready.

        Raises:
            ConfigurationError: The batch has another ledger in this session.
            LedgerError: The ledger cannot be used.
        """
        if ledger is not None and await self.ledger.attach(batch, ledger):
            await self._go_on(batch)
        if budget is not None and budget is not self._budget and (batch, budget) not in self._counted:
            self._counted.add((batch, budget))
            await self._recall(budget, batch)

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

    async def _go_on(self, batch: str | None) -> None:
        """Take up what an earlier process left, of one batch or of all."""
        for row in await self.ledger.left([State.INTENT], batch):
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
        for row in await self.ledger.left([State.SUBMITTED], batch):
            if row.prediction_id is not None:
                self._follow_row(row)

    async def _recall(self, budget: Budget, batch: str | None) -> None:
        """Count in a budget what an earlier process spent, and set aside what it may have spent.

        Args:
            budget: The budget.
            batch: Only of this batch; None counts all of the ledger.
        """
        budget.recall(await self.ledger.spent(batch))
        for row in await self.ledger.rows([State.UNCERTAIN]):
            name = (row.batch, row.key)
            if batch in {None, row.batch} and row.cost is not None and not self._under_way[name]:
                reservation = Reservation([budget], row.cost)
                reservation.hold()
                self._money[name] = (*self._money.get(name, ()), reservation)

    def _follow_row(self, row: Row) -> None:
        """Watch what runs, whether or not anybody asks for it: it takes one of the account's slots."""
        if self.watcher.seen(row.prediction_id or "") is not None:
            return
        self._watch(_recalled(row), batch=row.batch, key=row.key, slot=self.slots.take())

    async def make(
        self,
        job: Job,
        *,
        key: str,
        deadline: float,
        accepted: Callable[[Prediction], None] | None = None,
        batch: str = "",
        gate: Callable[[], None] | None = None,
        content: Content | None = None,
        budget: Budget | None = None,
    ) -> Prediction:
        """The ended prediction of a job; made again, where that is asked for, when the service failed it.

        Args:
            job: What to make.
            key: Its name.
            deadline: Seconds to wait for an end, from each acceptance.
            accepted: Is told every accepted prediction.
            batch: As of `submit`.
            gate: As of `submit`.
            content: As of `submit`.
            budget: As of `submit`.

        Raises:
            KlingError: It was refused, could not be sent, or its end is not known.
        """
        failures = 0
        while True:
            prediction = await self.submit(
                job, key=key, batch=batch, gate=gate, content=content, budget=budget, failures=failures
            )
            if accepted is not None:
                accepted(prediction)
            if prediction.status.ended:
                return prediction
            prediction = await self.watcher.wait(prediction, deadline=deadline, job=job)
            failures += 1
            if prediction.code not in RETRIED or failures > self.retry_failed:
                return prediction
            delay = _BETWEEN_FAILURES.delay(failures, self._rng.random())
            self.observe(
                Retrying(at=self.clock.now(), key=key, batch=batch, job=job, prediction=prediction, again=delay)
            )
            await self.clock.sleep(delay)

    async def submit(
        self,
        job: Job,
        *,
        key: str,
        batch: str = "",
        gate: Callable[[], None] | None = None,
        content: Content | None = None,
        budget: Budget | None = None,
        failures: int = 0,
    ) -> Prediction:
        """The prediction of a job: accepted now, or known from before.

        A ledger that has the job is believed: what was accepted is not sent again.

        Args:
            job: What to make.
            key: Its name.
            batch: The batch's name; empty outside a batch.
            gate: Is called when the job has its slot; what it raises ends the job before anything is sent.
            content: Its content, where it is known already.
            budget: Of its batch, beside that of the session.
            failures: How many predictions have failed for it under the eyes of the caller.

        Raises:
            KlingError: It was refused, could not be sent, or its end is not known.
        """
        name = (batch, key)
        if self._under_way[name]:
            raise InvalidJobError([Problem("key", f"{key!r} is being submitted already")], job=job, key=key)
        self._under_way[name] += 1
        try:
            content = content or await self.content(job)
            row = await self.ledger.claim(batch, key, content=content, model=job.model, at=self.clock.now())
            if row.state in _ACCEPTED and not self._again(row, failures):
                return await self._known(job, row)
            try:
                return await self._submit(job, row, gate, budget)
            except (SkippedError, BudgetExceededError) as error:
                error.job, error.key = job, key
                if row.state in _NOT_SENT:
                    self.ledger.note(
                        Entry(batch=batch, key=key, state=State.SKIPPED, at=self.clock.now(), error=error.message)
                    )
                raise
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]
                self._left(name)

    def _left(self, name: tuple[str, str]) -> None:
        """Nobody has the job in hand any more."""
        for reservation in self._money.pop(name, ()):
            reservation.let_go()
        self.ledger.unclaim(*name)

    def _again(self, row: Row, failures: int) -> bool:
        """Whether a job whose prediction failed is paid for once more."""
        return row.state is State.FAILED and row.code in RETRIED and max(row.failures, failures) <= self.retry_failed

    async def _known(self, job: Job, row: Row) -> Prediction:
        """The prediction of a job that was accepted before.

        Raises:
            PredictionError: The service has it no more.
        """
        known = _recalled(row)
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

    async def _submit(self, job: Job, row: Row, gate: Callable[[], None] | None, budget: Budget | None) -> Prediction:
        if row.state is State.EXPIRED:
            raise _expired(job, row)
        name = (row.batch, row.key)
        if name not in self._money:
            # A held job has its own set aside.
            self._money[name] = await self._reserved(job, budget)
        image = await self.images.url(job.image, field="image")
        end_image = None if job.end_image is None else await self.images.url(job.end_image, field="end_image")
        request = self.provider.submit(job, image, end_image)
        sent = fingerprint(job.inputs(image, end_image))
        slot = await self.slots.acquire()
        try:
            if gate is not None:
                gate()
        except BaseException:
            slot.release()
            raise
        ask = Ask(job, row.key, row.batch, request, sent, slot, self._money[name])
        return await self._submitter.submit(ask, row)

    async def _reserved(self, job: Job, budget: Budget | None) -> tuple[Reservation, ...]:
        budgets = [each for each in dict.fromkeys((self._budget, budget)) if each is not None]
        return (await self.spending.reserve(job, budgets),) if budgets else ()

    async def _reserve_again(self, ask: Ask) -> None:
        """Set a job's price aside once more: what was sent for it may have been paid for."""
        budgets = list(dict.fromkeys(budget for reservation in ask.money for budget in reservation.budgets))
        for reservation in ask.money:
            reservation.hold()
        ask.money = self._money[ask.batch, ask.key] = (await self.spending.reserve(ask.job, budgets),)

    def _accepted(self, prediction: Prediction, ask: Ask) -> None:
        self._watch(prediction, batch=ask.batch, key=ask.key, slot=ask.slot, money=ask.money)

    def _adopted(self, row: Row) -> None:
        """An earlier submission in doubt was found, and nobody waits for it."""
        for reservation in self._money.pop((row.batch, row.key), ()):
            reservation.commit()
        self._follow_row(row)

    def _watch(
        self, prediction: Prediction, *, batch: str, key: str, slot: Slot, money: tuple[Reservation, ...] = ()
    ) -> None:
        """Watch what runs; its end frees the slot and goes into the ledger, whoever waits or does not."""

        def ended(last: Prediction) -> None:
            slot.release()
            if last.status is not Status.COMPLETED and last.status.ended:
                for reservation in money:
                    reservation.fail(last.id)
            if last.status.ended:
                self.ledger.note(
                    Entry(
                        batch=batch,
                        key=key,
                        state=State.COMPLETED if last.failure() is None else State.FAILED,
                        at=self.clock.now(),
                        prediction_id=prediction.id,
                        output=last.output,
                        code=last.code,
                        error=last.error,
                    )
                )

        self.watcher.add(prediction, batch=batch, on_end=ended)

    async def _history(self, since: float) -> tuple[list[Prediction], float]:
        """All predictions created since a time, and by how many seconds the service's clock is ahead of ours."""
        ahead = 0.0
        # The service's clock may be behind ours: what it calls earlier may be later.
        start = datetime.fromtimestamp(since - BEHIND, UTC)

        async def read(page: int, size: int) -> Page[Prediction]:
            nonlocal ahead
            request = self.provider.predictions(page=page, page_size=size, created_after=start)
            for attempt in range(1, PAGE_ATTEMPTS + 1):
                response = await self.ask(request)
                ahead = response.ahead(self.clock.now()) or ahead
                try:
                    listed = self.provider.read_predictions(response)
                    if listed.size < size and await self._goes_on(page, size, start):
                        raise ProtocolError("the pages of the list are shorter than was asked for", status=200)
                    if listed.unread:
                        # An orphan may be among them: nothing may be concluded from a list that is not understood.
                        raise ProtocolError(f"{listed.unread} predictions of a page cannot be read", status=200)
                except (ServerError, ProtocolError):
                    if attempt == PAGE_ATTEMPTS:
                        raise
                    await self.clock.sleep(pause(attempt, self._rng.random))
                else:
                    return listed
            raise AssertionError  # pragma: no cover -- the last attempt returns or raises

        walk = Walk(read, size=MAX_PAGE, key=lambda prediction: prediction.id)
        return [prediction async for prediction in walk.items(None)], ahead

    async def _goes_on(self, page: int, size: int, start: datetime) -> bool:
        """Whether there is something after a page that was shorter than was asked for."""
        request = self.provider.predictions(page=page + 1, page_size=size, created_after=start)
        return self.provider.read_predictions(await self.ask(request)).size > 0

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

    async def save(self, prediction: Prediction, where: str | os.PathLike[str], *, batch: str = "") -> SavedFile:
        """The video on the disk.

        Raises:
            NoOutputError: There is no output.
            StorageError: It could not be downloaded, checked or written.
        """
        name = prediction.key or prediction.id
        if prediction.output is None:
            raise NoOutputError("there is no output to save", prediction=prediction, key=prediction.key)
        target = storage.target_path(where, name)
        row = await self.ledger.owner(prediction.id)
        if row is not None and row.state is State.DOWNLOADED and row.path == str(target.absolute()):
            there = await anyio.to_thread.run_sync(_size, target)
            if there == row.bytes:
                return SavedFile(target, row.bytes or 0, row.sha256 or "")
        try:
            saved = await storage.save_output(self._transport, prediction.output, target, self.clock)
        except StorageError as error:
            error.prediction_id, error.key = prediction.id, prediction.key
            raise
        self.observe(Saved(at=self.clock.now(), key=name, batch=batch, file=saved))
        if row is not None:
            self._note_saved(row, prediction, saved)
        return saved

    async def rescue(self, batch: str, where: str | os.PathLike[str]) -> None:
        """Save what a batch has made and not saved, and the service is about to delete: soonest first.

        What cannot be saved now is told when its job has its turn.
        """
        urgent = [key for key in await self.ledger.keys(batch, [State.COMPLETED]) if await self._expires(batch, key)]
        door = anyio.CapacityLimiter(RESCUED_AT_ONCE)

        async def one(key: str) -> None:
            async with door:
                found = await self.ledger.find(batch, key)
                if found is not None:
                    with contextlib.suppress(KlingError):
                        await self.save(_recalled(found[0]), where, batch=batch)

        async with anyio.create_task_group() as tasks:
            for key in urgent:
                tasks.start_soon(one, key)

    async def _expires(self, batch: str, key: str) -> bool:
        found = await self.ledger.find(batch, key)
        if found is None:
            return False
        row, _ = found
        return self.clock.now() - (row.submitted_at or row.updated_at) > KEPT - URGENT

    def _note_saved(self, row: Row, prediction: Prediction, saved: SavedFile) -> None:
        step = Entry(batch=row.batch, key=row.key, state=State.COMPLETED, at=self.clock.now(), output=prediction.output)
        if row.state is not State.COMPLETED:
            self.ledger.note(step)
        self.ledger.note(
            attrs.evolve(
                step,
                state=State.DOWNLOADED,
                path=str(saved.path.absolute()),
                bytes=saved.bytes,
                sha256=saved.sha256,
            )
        )

    async def close(self) -> tuple[Prediction, ...]:
        """Let what is being submitted be recorded, end the rest, and say what still runs at the service."""
        self.slots.close()
        await self._custody.join()
        left = self.watcher.close()
        self._watching.cancel()
        await asyncio.wait([self._watching])
        try:
            await self.ledger.aclose()
        finally:
            if self._owns_transport:
                await self._transport.aclose()
        return left


BEHIND = 3600.0
"""Seconds by which the service's clock may be behind ours without hiding a prediction from its history."""
PAGE_ATTEMPTS = 5
"""How often a page of the history is asked for that does not come whole."""

URGENT = 86_400.0
"""Seconds before its deletion from which a video is saved before anything else."""
RESCUED_AT_ONCE = 8
"""Videos of this kind that are saved at the same time."""
KEPT = 7 * 86_400.0
"""Seconds that the service keeps predictions and outputs (docs: what-are-predictions)."""
RETRIED = frozenset({5000, 5003, 5004})
"""Task codes that are the service's own trouble (docs: error-codes): neither moderation, parameters nor media."""

_BETWEEN_FAILURES = Backoff(first=10.0, cap=120.0)
_NOT_SENT = frozenset({State.PENDING, State.CLAIMED, State.REJECTED})
_ACCEPTED = frozenset({State.SUBMITTED, State.COMPLETED, State.FAILED, State.DOWNLOADED})
_STATUS = {
    State.SUBMITTED: Status.CREATED,
    State.COMPLETED: Status.COMPLETED,
    State.DOWNLOADED: Status.COMPLETED,
    State.FAILED: Status.FAILED,
}


def _expired(job: Job, row: Row) -> PredictionError:
    return PredictionError(
        "its prediction had expired before it was fetched: the service keeps them for 7 days",
        prediction_id=row.prediction_id,
        job=job,
        key=row.key,
        advice="give the job another key to make, and pay for, it again",
    )


def _recalled(row: Row) -> Prediction:
    """The prediction as the ledger knows it."""
    status = _STATUS[row.state]
    return Prediction(
        id=row.prediction_id or "",
        model=row.model,
        status=status,
        raw_status=status.value,
        outputs=(row.output,) if row.output else (),
        error=row.error,
        code=row.code,
        key=row.key,
    )


def _size(path: Path) -> int | None:
    """Bytes of a file, or None when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return None

"""What is alive while a session is open: shared by all of its views."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
from anyio import CapacityLimiter

from . import storage
from ._core.errors import (
    ApiError,
    InvalidJobError,
    NoOutputError,
    PredictionError,
    Problem,
    ProtocolError,
    ServerError,
    StorageError,
)
from ._core.events import Saved
from ._core.prediction import Prediction, SavedFile, Status
from ._core.reconciliation import fingerprint
from ._core.states import Entry, Row, State
from ._custody import Custody
from ._media import Images, digest
from ._reconcile import Reconciler
from ._retry import pause, send_read
from ._submit import Ask, OnUncertain, Submitter
from ._walk import MAX_PAGE, Walk
from ._watcher import Watcher
from .limits import Pause, RateLimiter, Slot, Slots

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable

    from ._core.account import Page
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
        max_in_flight: Predictions that may run at once.
        max_saving: Outputs that are saved at once.
        inline: Whether images travel in the request instead of being uploaded.
        policy: How often predictions are read.
        forget_after: Seconds after which a prediction that never ends is no longer watched.
        observers: Are told every event.
        on_uncertain: What to do with a submission in doubt.
        grace: Seconds until its absence from the history shows that it was not accepted.
        sole_user: Whether nothing but this ledger uses the key.
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
        max_in_flight: int,
        max_saving: int,
        inline: bool,
        policy: WatchPolicy,
        forget_after: float,
        observers: tuple[Observer, ...],
        on_uncertain: OnUncertain,
        grace: float,
        sole_user: bool,
    ) -> None:
        self.provider = provider
        self.clock = clock
        self.ledger = ledger
        self.slots = Slots(max_in_flight)
        self._saving = CapacityLimiter(max_saving)
        self._transport = transport
        self._owns_transport = owns_transport
        self._observers = observers
        self._rng = random.Random()  # noqa: S311 -- jitter
        self._custody = Custody()
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
            ledger=ledger,
            custody=self._custody,
            limiter=limiter,
            pause=Pause(clock),
            clock=clock,
            rng=self._rng,
            observe=self.observe,
            accepted=self._accepted,
            settle=Reconciler(
                ledger=ledger,
                clock=clock,
                history=self._history,
                grace=grace,
                sole_user=sole_user,
                custody=self._custody,
                adopted=self._follow_row,
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

    async def digest(self, job: Job) -> str:
        """The digest of a job's content, that of its image files included.

        Raises:
            InvalidJobError: An image file cannot be read.
        """
        digests = {image: await digest(image) for image in (job.image, job.end_image) if image is not None}
        return job.digest(digests.__getitem__)

    async def open(self) -> None:
        """Make the ledger ready, and follow what it knows to be running.

        What an earlier process left between intent and answer is in doubt from here on.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        await self.ledger.open()
        for row in await self.ledger.rows([State.INTENT]):
            await self.ledger.record(
                Entry(
                    batch=row.batch,
                    key=row.key,
                    state=State.UNCERTAIN,
                    at=self.clock.now(),
                    error="its process ended while it was being submitted",
                )
            )
        for row in await self.ledger.rows([State.SUBMITTED]):
            if row.prediction_id is not None:
                self._follow_row(row)

    def _follow_row(self, row: Row) -> None:
        """Watch what runs, whether or not anybody asks for it: it takes one of the account's slots."""
        self._watch(_recalled(row), batch=row.batch, key=row.key, slot=self.slots.take())

    async def submit(
        self,
        job: Job,
        *,
        key: str,
        batch: str = "",
        gate: Callable[[], None] | None = None,
        digest: str | None = None,
    ) -> Prediction:
        """The prediction of a job: accepted now, or known from before.

        A ledger that has the job is believed: what was accepted is not sent again.

        Args:
            job: What to make.
            key: Its name.
            batch: The batch's name; empty outside a batch.
            gate: Is called when the job has its slot; what it raises ends the job before anything is sent.
            digest: The digest of its content, where it is known already.

        Raises:
            KlingError: It was refused, could not be sent, or its end is not known.
        """
        name = (batch, key)
        if self._under_way[name]:
            raise InvalidJobError([Problem("key", f"{key!r} is being submitted already")], job=job, key=key)
        self._under_way[name] += 1
        try:
            digest = digest or await self.digest(job)
            row = await self.ledger.claim(batch, key, digest=digest, model=job.model, at=self.clock.now())
            return await self._submit(job, row, gate)
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]
                self.ledger.unclaim(batch, key)

    async def _submit(self, job: Job, row: Row, gate: Callable[[], None] | None) -> Prediction:
        if row.state in _ACCEPTED:
            known = _recalled(row)
            if row.state is State.SUBMITTED and self.watcher.seen(known.id) is None:
                self._follow_row(row)
            return self.watcher.seen(known.id) or known
        if row.state is State.EXPIRED:
            raise PredictionError(
                "its prediction had expired before it was fetched",
                prediction_id=row.prediction_id,
                job=job,
                key=row.key,
            )
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
        return await self._submitter.submit(Ask(job, row.key, row.batch, request, sent, slot), row)

    def _accepted(self, prediction: Prediction, ask: Ask) -> None:
        self._watch(prediction, batch=ask.batch, key=ask.key, slot=ask.slot)

    def _watch(self, prediction: Prediction, *, batch: str, key: str, slot: Slot) -> None:
        """Watch what runs; its end frees the slot and goes into the ledger, whoever waits or does not."""

        def ended(last: Prediction) -> None:
            slot.release()
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

    async def save(
        self, prediction: Prediction, where: str | os.PathLike[str] | storage.Outputs, *, batch: str = ""
    ) -> SavedFile:
        """The video on the disk, or in an object store.

        Raises:
            ConfigurationError: `where` cannot be understood.
            NoOutputError: There is no output.
            StorageError: It could not be downloaded, checked or written.
        """
        outputs = storage.Outputs.of(where)
        name = prediction.key or prediction.id
        if prediction.output is None:
            raise NoOutputError("there is no output to save", prediction=prediction, key=prediction.key)
        row = await self.ledger.owner(prediction.id)
        created_at = row.submitted_at if row else None
        if created_at is None and prediction.created_at is not None:
            created_at = prediction.created_at.timestamp()
        target = outputs.target(
            storage.Fields(
                key=name,
                id=prediction.id,
                model=prediction.model or (row.model if row else ""),
                batch=row.batch if row else batch,
                at=self.clock.now() if created_at is None else created_at,
            )
        )
        if row is not None and row.state is State.DOWNLOADED:
            kept = await target.kept(row.path or "", row.bytes or 0, row.sha256 or "")
            if kept is not None:
                return kept
        try:
            async with self._saving:
                saved = await storage.save_output(
                    self._transport, prediction.output, target, self.clock, created_at=created_at
                )
        except StorageError as error:
            error.prediction_id, error.key = prediction.id, prediction.key
            raise
        self.observe(Saved(at=self.clock.now(), key=name, batch=batch, file=saved))
        if row is not None:
            self._note_saved(row, prediction, saved)
        return saved

    def _note_saved(self, row: Row, prediction: Prediction, saved: SavedFile) -> None:
        step = Entry(batch=row.batch, key=row.key, state=State.COMPLETED, at=self.clock.now(), output=prediction.output)
        if row.state is not State.COMPLETED:
            self.ledger.note(step)
        self.ledger.note(
            attrs.evolve(
                step,
                state=State.DOWNLOADED,
                path=saved.address,
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

_ACCEPTED = frozenset({State.SUBMITTED, State.COMPLETED, State.FAILED, State.DOWNLOADED})
_STATUS = {
    State.SUBMITTED: Status.CREATED,
    State.COMPLETED: Status.COMPLETED,
    State.DOWNLOADED: Status.COMPLETED,
    State.FAILED: Status.FAILED,
}


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

"""What is alive while a session is open: shared by all of its views."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from . import storage
from ._core.errors import ApiError, NoOutputError, StorageError, TransportError
from ._core.events import Saved
from ._core.prediction import Prediction
from ._custody import Custody
from ._media import Images, digest
from ._retry import send_read
from ._submit import Ask, Submitter
from ._watcher import Watcher
from .ledger import Entry, State
from .limits import Pause, RateLimiter, Slots

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable

    from ._core.clock import Clock
    from ._core.events import Event, Observer
    from ._core.http import HttpRequest, HttpResponse
    from ._core.job import Job
    from ._core.polling import WatchPolicy
    from ._core.prediction import SavedFile
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
        inline: Whether images travel in the request instead of being uploaded.
        policy: How often predictions are read.
        forget_after: Seconds after which a prediction that never ends is no longer watched.
        observers: Are told every event.
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
        inline: bool,
        policy: WatchPolicy,
        forget_after: float,
        observers: tuple[Observer, ...],
    ) -> None:
        self.provider = provider
        self.clock = clock
        self.ledger = ledger
        self.slots = Slots(max_in_flight)
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

    async def submit(
        self, job: Job, *, key: str, batch: str = "", gate: Callable[[], None] | None = None
    ) -> Prediction:
        """The accepted prediction of a job.

        Args:
            job: What to make.
            key: Its name.
            batch: The batch's name; empty outside a batch.
            gate: Is called when the job has its slot; what it raises ends the job before anything is sent.

        Raises:
            KlingError: It was refused, could not be sent, or its end is not known.
        """
        image = await self.images.url(job.image, field="image")
        end_image = None if job.end_image is None else await self.images.url(job.end_image, field="end_image")
        request = self.provider.submit(job, image, end_image)
        slot = await self.slots.acquire()
        try:
            if gate is not None:
                gate()
        except BaseException:
            slot.release()
            raise
        return await self._submitter.submit(Ask(job, key, batch, request, slot))

    def _accepted(self, prediction: Prediction, ask: Ask) -> None:
        def ended(last: Prediction) -> None:
            ask.slot.release()
            if last.status.ended:
                self.ledger.note(
                    Entry(
                        batch=ask.batch,
                        key=ask.key,
                        state=State.COMPLETED if last.failure() is None else State.FAILED,
                        at=self.clock.now(),
                        model=ask.job.model,
                        prediction_id=last.id,
                        error=last.error,
                    )
                )

        self.watcher.add(prediction, batch=ask.batch, on_end=ended)

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
        try:
            saved = await storage.save_output(self._transport, prediction.output, Path(target), self.clock)
        except StorageError as error:
            error.prediction_id, error.key = prediction.id, prediction.key
            raise
        except TransportError as error:  # pragma: no cover -- save_output maps them
            raise StorageError(error.message, target=str(target), prediction_id=prediction.id) from error
        self.observe(Saved(at=self.clock.now(), key=name, batch=batch, file=saved))
        self.ledger.note(
            Entry(
                batch=batch,
                key=name,
                state=State.DOWNLOADED,
                at=self.clock.now(),
                model=prediction.model,
                prediction_id=prediction.id,
            )
        )
        return saved

    async def close(self) -> tuple[Prediction, ...]:
        """Let what is being submitted be recorded, end the rest, and say what still runs at the service."""
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

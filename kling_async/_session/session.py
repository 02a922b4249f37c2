"""`KlingSession`: one account on one provider."""

from __future__ import annotations

import copy
import logging
import uuid
from typing import TYPE_CHECKING, Literal, Self, Unpack, cast

import attrs

from kling_async._clock import SystemClock
from kling_async._core.catalogue import Model
from kling_async._core.http import Timeouts
from kling_async._core.images import load_image
from kling_async._core.job import Job, JobFields
from kling_async._tasks import CriticalTasks, finish
from kling_async.errors import ConfigurationError, KlingError, SessionClosedError

from .account_calls import ServiceCalls
from .job_run import JobRun
from .options import (
    SessionOptions,
    budget_of,
    level_of,
    policy_of,
    positive_seconds,
    provider_of,
    refuse_ledger,
)

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterable
    from decimal import Decimal
    from types import TracebackType

    import aiohttp

    from kling_async._core.budget import Budget
    from kling_async._core.catalogue import Level
    from kling_async._core.clock import Clock
    from kling_async._core.images import ImageSource
    from kling_async._core.polling import WatchPolicy
    from kling_async._core.prediction import Prediction, SavedFile
    from kling_async._core.secret import Secret
    from kling_async._core.statistics import SessionStatistics
    from kling_async._core.transport import Transport
    from kling_async._submission.doubts import OnUncertain
    from kling_async.events import Observer
    from kling_async.ledger import Ledger
    from kling_async.limits import RateLimiter
    from kling_async.providers import Provider
    from kling_async.storage import Outputs
    from kling_async.webhooks import Delivery, WebhookReceiver

    from .batch import Batch, Jobs
    from .engine import SessionEngine

log = logging.getLogger("kling_async")

MAX_LOGGED_IDS = 10
"""Ids of running predictions that the warning at closing names."""


@attrs.frozen(kw_only=True)
class _Defaults:
    """Defaults that `with_options` may change."""

    deadline: float
    model: str | Model | None = None


class _Lifetime:
    """The state of a session that all of its views share."""

    def __init__(self) -> None:
        self.engine: SessionEngine | None = None
        self.used = False


class KlingSession(ServiceCalls):
    """One account on one provider: submits jobs, watches what runs, saves what comes.

    ```python
    async with KlingSession() as kling:
        prediction = await kling.generate(prompt="She turns and smiles", image=Path("face.png"))
        await kling.save(prediction, "out/")
    ```

    Args:
        api_key: The key; by default the provider's environment variable, `WAVESPEED_API_KEY` or `GPTPROTO_API_KEY`.
        provider: "wavespeed", "gptproto", or a `Provider` of your own, which has its key already.
        base_url: Another scheme and host, such as the emulator's; by default the provider's environment variable
            (`WAVESPEED_BASE_URL`, `GPTPROTO_BASE_URL`), else its public address.
        level: The account's level: "bronze", which is safe on every account, "silver", "gold", "ultra", or a `Level`
            of your own numbers.
        max_in_flight: Predictions that may run at once; by default the level's.
        adaptive: Whether fewer run, down to one, while the service refuses jobs because too many run: the account's
            real limit is found and followed. `max_in_flight` remains the most.
        max_saving: Outputs that are downloaded and saved at once; they share the line with submits.
        rate_limiter: Starts per time; by default the level's, in this process.
        ledger: Where to write down what is intended and paid for: a path for an SQLite file, which a later session can
            resume from; the URL of a PostgreSQL database, `postgresql://...`, which many processes may share; or a
            `Ledger`; by default memory.
        on_uncertain: What to do with a submission whose end is not known: "reconcile" finds out by the account's
            history; "hold" leaves it; "resubmit" finds out and, when nothing is found, sends it again, which may pay
            twice. Only what is shown to be unaccepted is sent again by the first two.
        grace: Seconds until absence from the history shows that a submission was not accepted.
        sole_user: Whether nothing but this ledger uses the key: only then can a prediction of unknown input be one of
            its own by counting.
        budget: What all of it may cost, with what the ledger says it has cost already: a `Budget`, or USD.
        retry_failed: How often a job is paid for again whose prediction the service failed by its own fault (codes
            5000, 5003, 5004; never for moderation, parameters or media).
        webhook_url: The https URL at which the service reaches `webhook_receiver()`; every job is then submitted with
            it, and a token of its own in its query.
        images: "upload" sends image files to the provider's storage; "inline" puts them into the request as data URIs,
            for providers without uploads.
        fit: Convert image files with Pillow (extra `images`) that the service would refuse: other formats than JPEG and
            PNG, more than 10 MB, and what its EXIF data turns.
        max_uploads: Images that are uploaded at once.
        deadline: Seconds from acceptance that `generate`, `wait` and batches wait for an end by default. Timed out is
            not failed: the prediction goes on.
        forget_after: Seconds after which a prediction that never ends is no longer watched and frees its slot.
        watch: How eagerly it is found out what has ended: "balanced", "gentle", "eager", "webhook first", or a
            `WatchPolicy`.
        timeouts: Of single HTTP requests.
        proxy: URL of an HTTP proxy; by default the environment's.
        ca: File of certificate authorities to trust instead of the system's.
        client_session: An `aiohttp.ClientSession` to use; it is not closed.
        transport: A `Transport` of your own, instead of aiohttp; it is not closed.
        clock: Another time.
        observers: Are called with every event.

    Attributes:
        provider: The wire dialect.
        level: What the account permits.
        max_in_flight: How many slots there are.
        left_running: After closing: the predictions that were still running. They go on at the service.

    Raises:
        ConfigurationError: There is no key, or an argument makes no sense.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        provider: str | Provider = "wavespeed",
        base_url: str | None = None,
        level: str | Level = "bronze",
        max_in_flight: int | None = None,
        adaptive: bool = True,
        max_saving: int = 8,
        rate_limiter: RateLimiter | None = None,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        on_uncertain: OnUncertain = "reconcile",
        grace: float = 90.0,
        sole_user: bool = False,
        budget: Budget | Decimal | str | float | None = None,
        retry_failed: int = 0,
        webhook_url: str | None = None,
        images: Literal["upload", "inline"] = "upload",
        fit: bool = False,
        max_uploads: int = 4,
        deadline: float = 1800.0,
        forget_after: float = 7200.0,
        watch: WatchPolicy | str = "balanced",
        timeouts: Timeouts | None = None,
        proxy: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        client_session: aiohttp.ClientSession | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.provider = provider_of(provider, api_key, base_url)
        self.level = level_of(level)
        self.max_in_flight = self.level.in_flight if max_in_flight is None else max_in_flight
        self.left_running: tuple[Prediction, ...] = ()
        self._options = SessionOptions(
            provider=self.provider,
            level=self.level,
            max_in_flight=self.max_in_flight,
            adaptive=adaptive,
            max_saving=max_saving,
            rate_limiter=rate_limiter,
            ledger=ledger,
            on_uncertain=on_uncertain,
            grace=grace,
            sole_user=sole_user,
            budget=budget_of(budget),
            retry_failed=retry_failed,
            webhook_url=webhook_url,
            images=images,
            fit=fit,
            max_uploads=max_uploads,
            deadline=deadline,
            forget_after=forget_after,
            watch=policy_of(watch),
            timeouts=timeouts or Timeouts(),
            proxy=proxy,
            ca=ca,
            client_session=client_session,
            transport=transport,
            clock=clock or SystemClock(),
            observers=tuple(observers),
        )
        self._defaults = _Defaults(deadline=deadline)
        self._lifetime = _Lifetime()

    def __repr__(self) -> str:
        state = "open" if self._lifetime.engine else "closed" if self._lifetime.used else "not open yet"
        return f"<KlingSession {self.provider.name} at {self.provider.base_url}, {state}>"

    async def __aenter__(self) -> Self:
        if self._lifetime.used:
            raise SessionClosedError("a session is opened once", advice="make another KlingSession")
        self._lifetime.used = True
        # Imported here: aiohttp and the parts of an open session are most of this package's import time, and values
        # alone do not need them.
        from .engine import SessionEngine  # noqa: PLC0415 -- see above

        transport = self._options.transport
        if transport is None:
            from kling_async._http.transport import AiohttpTransport  # noqa: PLC0415 -- see above

            transport = AiohttpTransport(
                timeouts=self._options.timeouts,
                proxy=self._options.proxy,
                ca=self._options.ca,
                client_session=self._options.client_session,
            )
        engine = SessionEngine(self._options, transport)
        try:
            await engine.open()
        except BaseException:
            await CriticalTasks().start(engine.close, name="kling-close")
            raise
        self._lifetime.engine = engine
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the session: what is being submitted is recorded first, what still runs is named in `left_running`.

        Cancelling this does not cut it short.
        """
        engine, self._lifetime.engine = self._lifetime.engine, None
        if engine is None:
            return
        closing = CriticalTasks().start(engine.close, name="kling-close")
        try:
            await finish(closing)
        finally:
            self.left_running = closing.result()
            if self.left_running:
                _warn_of_running(self.left_running)

    @property
    def _engine(self) -> SessionEngine:
        """The parts of the open session.

        Raises:
            SessionClosedError: It is not open.
        """
        engine = self._lifetime.engine
        if engine is None:
            raise SessionClosedError("the session is closed" if self._lifetime.used else "the session is not open yet")
        return engine

    @property
    def running(self) -> tuple[Prediction, ...]:
        """The predictions that run, as last seen."""
        return self._engine.watcher.running

    def statistics(self) -> SessionStatistics:
        """Where the jobs are now and what they wait for, what watching cost, and what was spent."""
        return self._engine.statistics()

    def add_observer(self, observer: Observer) -> None:
        """Call `observer` with every event from now on, as those of `observers`; its session is open already.

        Raises:
            SessionClosedError: It is not.
        """
        self._engine.observe.add(observer)

    def with_options(self, *, deadline: float | None = None, model: str | Model | None = None) -> KlingSession:
        """This session with other defaults, sharing transport, slots, limiter, watcher and ledger.

        Args:
            deadline: Seconds from acceptance to wait for an end.
            model: What jobs run on that name no model.
        """
        if deadline is not None:
            positive_seconds("deadline", deadline)
        view = copy.copy(self)
        view._defaults = _Defaults(  # noqa: SLF001 -- of the same class
            deadline=self._defaults.deadline if deadline is None else deadline,
            model=self._defaults.model if model is None else model,
        )
        return view

    async def generate(
        self,
        job: Job | None = None,
        /,
        *,
        key: str | None = None,
        deadline: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Prediction:
        """Make one video: submit the job and wait for its end.

        Cancelling ends the waiting. What was sent by then is recorded and watched all the same.

        Args:
            job: What to make; or give its fields by name.
            key: Its name in the ledger; by default a fresh one.
            deadline: Seconds from acceptance to wait; by default the session's.
            fields: The fields of `Job`.

        Returns:
            The completed prediction.

        Raises:
            InvalidJobError: The job is wrong; nothing was sent.
            SubmissionUncertainError: It was sent and its end is not known.
            PredictionFailedError: It was accepted and failed.
            PredictionTimeoutError: It still runs.
            KlingError: It was refused, or could not be sent.
        """
        job = self._job(job, fields)
        run = JobRun(job=job, key=key or fresh_key(), deadline=self._deadline(deadline))
        return _unwrap(await self._engine.runner.run(run), job)

    async def submit(
        self, job: Job | None = None, /, *, key: str | None = None, **fields: Unpack[JobFields]
    ) -> Prediction:
        """Submit one job and return when the service has accepted it: the prediction has its id, and no video yet.

        The session watches it, and its slot is free when it ends. `wait` waits for that.

        Args:
            job: What to make; or give its fields by name.
            key: Its name in the ledger; by default a fresh one.
            fields: The fields of `Job`.

        Raises:
            InvalidJobError: The job is wrong; nothing was sent.
            SubmissionUncertainError: It was sent and its end is not known.
            KlingError: It was refused, or could not be sent.
        """
        run = JobRun(job=self._job(job, fields), key=key or fresh_key(), deadline=self._defaults.deadline)
        return await self._engine.runner.submit(run)

    async def wait(self, prediction: Prediction | str, *, deadline: float | None = None) -> Prediction:
        """Wait for the end of a prediction, of this session or of another.

        Args:
            prediction: The prediction or its id.
            deadline: Seconds from now; by default the session's.

        Returns:
            The completed prediction.

        Raises:
            PredictionFailedError: It failed.
            PredictionTimeoutError: It still runs.
            PredictionError: Its state cannot be read.
            ApiError: The service does not know it.
        """
        engine = self._engine
        found = await engine.find(prediction)
        return _unwrap(await engine.watcher.wait(found, deadline=self._deadline(deadline)), None)

    async def follow(self, prediction: Prediction | str) -> AsyncIterator[Prediction]:
        """The prediction as it is now, and again at every change of status, its end included.

        ```python
        async for change in kling.follow(prediction_id):
            print(change.raw_status)
        ```

        Raises:
            PredictionError: Its state cannot be read.
            ApiError: The service does not know it.
        """
        async for change in self._engine.follow(prediction):
            yield change

    async def get(self, prediction_id: str) -> Prediction:
        """The prediction as the service has it now.

        Raises:
            NotFoundError: There is none, or it is older than 7 days.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        return await self._engine.reads.prediction(prediction_id)

    async def save(self, prediction: Prediction | str, where: str | os.PathLike[str] | Outputs) -> SavedFile:
        """Download the video of a completed prediction.

        The file appears under its name when it is complete and checked, not before. A file of that name with other
        content stays; the video is then saved beside it, and the result says where.

        Args:
            prediction: The prediction or its id.
            where: A file ending in `.mp4`; a folder, where the file is called by the prediction's key or id; a template
                such as `"out/{date}/{key}.mp4"`; the URL of an object store; or `Outputs`, which explains all of them.

        Raises:
            ConfigurationError: `where` cannot be understood.
            NoOutputError: There is no output.
            OutputGoneError: Its 7 days are over.
            StorageError: It could not be downloaded, checked or written.
        """
        from kling_async.storage import Outputs  # noqa: PLC0415 -- many sessions save nothing

        where = Outputs.of(where)
        engine = self._engine
        return await engine.saver.save(_unwrap(await engine.find(prediction), None), where)

    async def upload(self, image: ImageSource) -> str:
        """Upload an image, once per content, and return its URL. Uploads live 7 days.

        Raises:
            InvalidJobError: It is no image that the models take.
            UnsupportedError: The provider takes no uploads.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        return await self._engine.images.url(load_image(image), field="image")

    async def deliver(self, delivery: Delivery) -> None:
        """Take what a webhook says, verified: it wakes who waits for the prediction, and settles what is in doubt.

        For receivers of your own; `webhook_receiver` makes one that calls this.
        """
        await self._engine.takeover.deliver(delivery)

    async def webhook_receiver(
        self, secrets: str | Secret | Iterable[str | Secret] | None = None, *, max_body: int = 2**20
    ) -> WebhookReceiver:
        """A receiver of this session's webhooks, to be given to `webhooks.aiohttp_handler` or `webhooks.asgi_app`.

        Args:
            secrets: What signs them; asked of the service by default. Several are accepted while one replaces another.
            max_body: Bytes of a body that are read at most.

        Raises:
            UnsupportedError: The provider has no webhooks.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        # Imported here: most sessions have none.
        from kling_async.webhooks import WebhookReceiver, WebhookVerifier  # noqa: PLC0415 -- see above

        if secrets is None:
            secrets = await self.webhook_secret()
        return WebhookReceiver(WebhookVerifier(secrets, clock=self._options.clock), self.deliver, max_body=max_body)

    def batch(
        self,
        jobs: Jobs,
        *,
        name: str | None = None,
        ledger: None = None,
        budget: Budget | Decimal | str | float | None = None,
        save_to: str | os.PathLike[str] | Outputs | None = None,
        ordered: bool = False,
        window: int | None = None,
        deadline: float | None = None,
        failures_kept: int = 1000,
    ) -> Batch:
        """A bounded run over many jobs: enter it, then iterate over it.

        The same call again goes on where an earlier one ended: what the ledger has as accepted is not sent again.

        Args:
            jobs: Jobs, or pairs of a key and a job, or a mapping of keys to jobs; any iterable or async iterable, of
                any length. It is read as far ahead as the window allows.
            name: The batch's name, in ledger and events. Unnamed batches of one ledger share their keys.
            ledger: Not taken any more: a batch writes the session's ledger.
            budget: What it may cost, with what the ledger says it has cost already: a `Budget`, or USD.
            save_to: Folder for the videos, named by their keys; a template such as `"out/{date}/{key}.mp4"`; the URL of
                an object store; or `Outputs`, which explains all of them. None saves nothing.
            ordered: Whether outcomes come in the order of the input, instead of as they complete.
            window: Jobs that may be started and not yet taken; by default somewhat more than `max_in_flight`.
            deadline: Seconds from acceptance to wait for each; by default the session's.
            failures_kept: How many failed outcomes `failures` keeps, the latest ones.

        Raises:
            ConfigurationError: A number makes no sense, or `save_to` cannot be understood.
        """
        refuse_ledger(ledger)
        return self._batch(
            jobs,
            name=name,
            budget=budget,
            save_to=save_to,
            ordered=ordered,
            window=window,
            deadline=deadline,
            failures_kept=failures_kept,
        )

    def resume(
        self,
        ledger: None = None,
        *,
        name: str | None = None,
        budget: Budget | Decimal | str | float | None = None,
        save_to: str | os.PathLike[str] | Outputs | None = None,
        window: int | None = None,
        deadline: float | None = None,
        failures_kept: int = 1000,
    ) -> Batch:
        """A batch that an earlier process began, out of its ledger alone: its input is not needed.

        It yields an outcome for every job that the ledger knows, what expires soonest first. Jobs that the earlier
        process had not taken from its input yet are not in the ledger. Images that were given as bytes are in no
        ledger: a job that has to be sent can be resumed with them as long as their uploads live.

        Args:
            ledger: Not taken any more: it resumes from the session's ledger.
            name: The batch's name.
            budget: As of `batch`.
            save_to: As of `batch`.
            window: As of `batch`.
            deadline: As of `batch`.
            failures_kept: As of `batch`.

        Raises:
            ConfigurationError: A number makes no sense, or the session's ledger is in memory.
        """
        refuse_ledger(ledger)
        if not self._engine.ledger.durable:
            raise ConfigurationError(
                "resume: the session has no ledger on disk", advice="open KlingSession(ledger=...) with the file"
            )
        return self._batch(
            None,
            name=name,
            budget=budget,
            save_to=save_to,
            ordered=False,
            window=window,
            deadline=deadline,
            failures_kept=failures_kept,
        )

    def _batch(
        self,
        jobs: Jobs | None,
        *,
        name: str | None,
        budget: Budget | Decimal | str | float | None,
        save_to: str | os.PathLike[str] | Outputs | None,
        ordered: bool,
        window: int | None,
        deadline: float | None,
        failures_kept: int,
    ) -> Batch:
        if window is not None and window < 1:
            raise ConfigurationError(f"window: expected at least 1, got {window}")
        # Imported here: many sessions run no batches.
        from kling_async.storage import Outputs  # noqa: PLC0415 -- see above

        from .batch import Batch  # noqa: PLC0415 -- see above

        return Batch(
            self._engine,
            jobs,
            name=name or "",
            budget=budget_of(budget),
            save_to=None if save_to is None else Outputs.of(save_to, many=True),
            ordered=ordered,
            window=window or self.max_in_flight + min(self.max_in_flight, 64),
            deadline=self._deadline(deadline),
            failures_kept=failures_kept,
        )

    def _job(self, job: Job | None, fields: JobFields) -> Job:
        if job is None:
            if self._defaults.model is not None:
                fields = cast("JobFields", {"model": self._defaults.model, **fields})
            return Job(**fields)
        if fields:
            raise TypeError(f"a job is given whole or by its fields, not both: {', '.join(fields)}")
        return job

    def _deadline(self, deadline: float | None) -> float:
        if deadline is None:
            return self._defaults.deadline
        positive_seconds("deadline", deadline)
        return deadline


def fresh_key() -> str:
    """A name that no other job has."""
    return uuid.uuid4().hex[:16]


def _unwrap(prediction: Prediction, job: Job | None) -> Prediction:
    error: KlingError | None = prediction.failure(job=job)
    if error is not None:
        raise error
    return prediction


def engine_of(kling: KlingSession) -> SessionEngine:
    """Return the parts of an open session, for the other rooms of this package.

    Raises:
        SessionClosedError: It is not open.
    """
    return kling._engine  # noqa: SLF001 -- of this room


def _warn_of_running(running: tuple[Prediction, ...]) -> None:
    ids = ", ".join(prediction.id for prediction in running[:MAX_LOGGED_IDS])
    more = len(running) - MAX_LOGGED_IDS
    log.warning(
        "the session closed while %d %s running: %s%s",
        len(running),
        "prediction was" if len(running) == 1 else "predictions were",
        ids,
        f" and {more} more, see left_running" if more > 0 else "",
    )

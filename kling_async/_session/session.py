"""`KlingSession`: generate videos with one account at one provider."""

from __future__ import annotations

import copy
import itertools
import uuid
from typing import TYPE_CHECKING, Literal, Self, Unpack, cast

import anyio.to_thread
import attrs

from kling_async._clock import SystemClock
from kling_async._core import html
from kling_async._core.answers import Kind
from kling_async._core.catalogue import Model
from kling_async._core.frames import hides_arguments
from kling_async._core.http import MAX_OUTPUT_BYTES, MAX_REPLY_BYTES, Timeouts
from kling_async._core.images import is_decoded
from kling_async._core.job import Job, JobFields
from kling_async._core.job_key import checked_batch, checked_key
from kling_async._core.media import WHITE
from kling_async._core.polling import DEADLINE_S, FORGET_AFTER_S
from kling_async._core.signed_urls import parameter_names
from kling_async._log import log
from kling_async._loops import LoopBinding
from kling_async._tasks import CriticalTasks, finish
from kling_async.errors import ConfigurationError, KlingError, SessionClosedError
from kling_async.providers.protocol import key_of

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
    from collections.abc import AsyncIterator, Collection, Iterable
    from decimal import Decimal
    from types import TracebackType

    import aiohttp

    from kling_async._core.budget import Budget
    from kling_async._core.catalogue import Level
    from kling_async._core.clock import Clock
    from kling_async._core.images import ImageSource
    from kling_async._core.input_files import FileSource
    from kling_async._core.job_key import Key
    from kling_async._core.polling import WatchPolicy
    from kling_async._core.prediction import Prediction, SavedFile
    from kling_async._core.secret import Secret
    from kling_async._core.seen import Seen
    from kling_async._core.statistics import SessionStatistics
    from kling_async._core.transport import Transport
    from kling_async._submission.doubts import OnUncertain
    from kling_async.events import Observer
    from kling_async.ledger import Ledger
    from kling_async.limits import RateLimiter
    from kling_async.limits.callers import LimitsByCaller
    from kling_async.providers import Provider
    from kling_async.storage import Outputs
    from kling_async.webhooks import Delivery, WebhookReceiver

    from .batch import Batch, Jobs
    from .engine import SessionEngine

MAX_LOGGED_IDS = 10
"""Ids of running predictions named in the warning at closing."""


@attrs.frozen(kw_only=True)
class _Defaults:
    """Defaults that `with_options` may change.

    Attributes:
        deadline: Seconds from acceptance to wait for the end of a prediction.
        model: Model of jobs that name none; None for the default of `Job`.
    """

    deadline: float
    model: str | Model | None = None


class _Lifetime:
    """State shared by a session and its views.

    Attributes:
        engine: The parts of the open session; None before it is opened and after it is closed.
        used: True once the session was opened.
    """

    def __init__(self) -> None:
        self.engine: SessionEngine | None = None
        self.used = False


class KlingSession(ServiceCalls):
    """A session with one account at one provider: submit jobs, wait for predictions, save videos.

    Enter it once with `async with`. Its methods may be called from any number of tasks of one event loop; all of them
    share its connections, slots, rate limit, budget and ledger. From other threads use
    `asyncio.run_coroutine_threadsafe(kling.generate(...), loop)`; anything else is refused with `WrongLoopError`.

    ```python
    async with KlingSession() as kling:
        prediction = await kling.generate(prompt="She turns and smiles", image=Path("face.png"))
        await kling.save(prediction, "out/")
    ```

    Args:
        api_key: API key. Default: the environment variable `WAVESPEED_API_KEY` or `GPTPROTO_API_KEY`.
        provider: "wavespeed", "gptproto", or a `Provider`, which brings its own key and base URL.
        base_url: Scheme and host to use, such as the emulator's. Default: the environment variable
            `WAVESPEED_BASE_URL` or `GPTPROTO_BASE_URL`, else the provider's public address.
        allow_http: Send the key unencrypted, if the base URL is an `http://` URL of another machine. Default: False,
            unless the environment variable `KLING_ALLOW_HTTP` is 1.
        level: Limits of the account: "bronze" (safe on every account), "silver", "gold", "ultra", or a `Level` with
            other numbers.
        max_in_flight: Greatest number of predictions running at once. Default: the level's.
        adaptive: Run fewer predictions, down to 1, while the service refuses jobs because too many run, and more again
            once it accepts them. Never more than `max_in_flight`.
        max_saving: Greatest number of videos downloaded at once. Default: learned, as many as bring more per second.
        max_output_bytes: Greatest size of a video that is saved, 2 GiB by default. Larger ones are an error before the
            disk is full of them.
        rate_limiter: Limits how often jobs are submitted. Default: the level's starts per window, counted in this
            process.
        callers: Weights and limits of callers who share the account, by name, or a function that returns them. Free
            slots go round the callers whose jobs wait (`Job.caller`); those that are not named have `CallerLimits()`.
        ledger: Record of jobs, paid ids and costs: the path of an SQLite file, from which a later session can resume;
            the URL of a PostgreSQL database (`postgresql://...`), which several processes can share; or a `Ledger`.
            Default: memory, which ends with the session.
        on_uncertain: Policy for a submission whose reply was lost, so that it may have been paid for. "reconcile"
            settles it by the account's history and sends it again only once it is shown not to have been accepted.
            "hold" raises `SubmissionUncertainError` and leaves it. "resubmit" reconciles, and sends it again where the
            history shows nothing, which may pay twice.
        grace: Seconds after which absence from the account's history shows that a submission was not accepted.
        sole_user: Set it to True if only this ledger uses the API key. A prediction that the ledger does not have, and
            whose input the service does not report, can then be matched to a lost submission by elimination.
        budget: Limit on the cost of all jobs, including those in the ledger: a `Budget`, or USD. None for no limit.
        seen: What batches do with jobs that another batch of the ledger has paid for, or may have. "stop" refuses them:
            those with the same key and the same content, and those without a key of their own and with the same
            content. "reuse" hands out what was made, unpaid, where the content is the same, whatever the keys; it waits
            for what still runs. "pay" pays for another video. Default: "stop" with a ledger on disk, and "pay" without
            one. `generate` and `submit` always ask for another video.
        ignored_parameters: Names of query parameters that change whenever the URL of the same picture is made again,
            such as ("token", "v"): they are no part of a job's identity, as the signatures of object stores are not.
            Names are compared exactly. A batch keeps those that it was begun with, and others are refused before
            anything is sent; jobs that workers take have those of their batch. Default: those of each batch; a new one
            ignores none.
        retry_failed: Times to pay again for a job whose prediction failed by the service's own fault (codes 5000, 5003
            and 5004; never moderation, parameters or media).
        webhook_url: The https URL at which the service reaches `webhook_receiver()`. It is sent with every job, with a
            token of the job's own in the query. None for polling alone.
        images: "upload" uploads files to the provider's storage; "inline" sends image files in the request as data
            URIs, as is done at any provider without uploads. Videos and sounds are always uploaded.
        fit: Convert images that the service would refuse or may show otherwise than a viewer: formats other than JPEG
            and PNG, more than 10 MB, rotated by EXIF, transparent, of other colours than sRGB, of 16 bits a channel.
            Needs Pillow (extra `images`), and pillow-heif for HEIC (extra `heic`).
        background: Colour that `fit` lays transparent images on: a name or "#rrggbb". PIL images of a `Job` lie on
            white, and those whose fields are given to `generate`, `submit` or `upload`, too.
        verify: Decode each JPEG and PNG to its end before it is sent, so that damaged ones are found before they are
            paid for; what is converted is decoded anyway. It takes about 3 ms of a processor per million pixels of a
            JPEG and 15 ms of a PNG, off the event loop. True needs Pillow. Default: those of up to 50 million pixels
            where Pillow is installed.
        max_uploads: Greatest number of images uploaded at once. Default: learned, as many as bring more per second.
        deadline: Default number of seconds from acceptance to wait for the end of a prediction, in `generate`, `wait`
            and batches; and of seconds without progress to try to save its video. After a timeout the prediction still
            runs, is still paid for, and can be waited for again.
        forget_after: Seconds after which a prediction that has not ended is no longer polled, and its slot is freed.
        watch: When the status of predictions is read: "balanced" as the vendor asks, "gentle" less often, "eager" more
            often than the vendor wishes, "webhook first" as a safety net, "list" by pages of the account's list, which
            the vendor wishes not to be polled; or a `WatchPolicy`. Default: the environment variable `KLING_WATCH`,
            else "balanced".
        max_reads_per_second: Greatest number of status reads per second. A 429 to a read halves it for a while.
            Default: a tenth of `max_in_flight`, at least 100 and at most 400.
        timeouts: Timeouts of single HTTP requests. Default: `Timeouts()`.
        max_reply_bytes: Greatest size of a reply of the service, before and after decompression. A page of a list that
            is larger is requested again in smaller pages, of 20 items at least.
        proxy: URL of an HTTP or SOCKS proxy. Default: the proxies of the environment (`HTTPS_PROXY`, `ALL_PROXY`,
            `NO_PROXY`, ...). SOCKS needs aiohttp-socks (extra `socks`).
        ca: PEM file of certificate authorities to trust instead of the system's.
        client_session: An `aiohttp.ClientSession` to send requests with. The session does not close it.
        transport: A `Transport` to send requests with, instead of aiohttp. The session does not close it.
        clock: Time source. Default: the system's clock.
        observers: Callables that receive every event.

    Attributes:
        provider: The provider.
        level: Limits of the account.
        max_in_flight: Greatest number of predictions running at once.
        left_running: Predictions that were still running when the session closed. They go on at the service.

    Raises:
        ConfigurationError: There is no API key, or an argument is out of range.
    """

    @hides_arguments
    def __init__(
        self,
        api_key: str | None = None,
        *,
        provider: str | Provider = "wavespeed",
        base_url: str | None = None,
        allow_http: bool | None = None,
        level: str | Level = "bronze",
        max_in_flight: int | None = None,
        adaptive: bool = True,
        max_saving: int | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        rate_limiter: RateLimiter | None = None,
        callers: LimitsByCaller | None = None,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        on_uncertain: OnUncertain = "reconcile",
        grace: float = 90.0,
        sole_user: bool = False,
        budget: Budget | Decimal | str | float | None = None,
        seen: Seen | None = None,
        ignored_parameters: Collection[str] | None = None,
        retry_failed: int = 0,
        webhook_url: str | None = None,
        images: Literal["upload", "inline"] = "upload",
        fit: bool = False,
        background: str = WHITE,
        verify: bool | None = None,
        max_uploads: int | None = None,
        deadline: float = DEADLINE_S,
        forget_after: float = FORGET_AFTER_S,
        watch: WatchPolicy | str | None = None,
        max_reads_per_second: float | None = None,
        timeouts: Timeouts | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        proxy: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        client_session: aiohttp.ClientSession | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.provider = provider_of(provider, api_key, base_url, allow_http=allow_http)
        self.level = level_of(level)
        self.max_in_flight = self.level.in_flight if max_in_flight is None else max_in_flight
        self.left_running: tuple[Prediction, ...] = ()
        self._options = SessionOptions(
            provider=self.provider,
            level=self.level,
            max_in_flight=self.max_in_flight,
            adaptive=adaptive,
            max_saving=max_saving,
            max_output_bytes=max_output_bytes,
            rate_limiter=rate_limiter,
            callers=callers,
            ledger=ledger,
            on_uncertain=on_uncertain,
            grace=grace,
            sole_user=sole_user,
            budget=budget_of(budget),
            seen=seen,
            ignored_parameters=parameter_names(ignored_parameters),
            retry_failed=retry_failed,
            webhook_url=webhook_url,
            images=images,
            fit=fit,
            background=background,
            verify=verify,
            max_uploads=max_uploads,
            deadline=deadline,
            forget_after=forget_after,
            watch=policy_of(watch),
            max_reads_per_second=max_reads_per_second,
            timeouts=timeouts or Timeouts(),
            max_reply_bytes=max_reply_bytes,
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

    def _repr_html_(self) -> str:
        """Return the state and its figures, by which a notebook shows the session."""
        rows: list[tuple[str, object]] = [("level", self.level.name), ("slots", self.max_in_flight)]
        engine = self._lifetime.engine
        if engine is not None:
            figures = engine.statistics()
            rows += [("running", figures.running), ("spent", f"${figures.spent:.2f}")]
        return html.heading(repr(self).strip("<>")) + html.table(rows)

    async def __aenter__(self) -> Self:
        if self._lifetime.used:
            raise SessionClosedError(
                "expected a session that was not opened before; it can be opened only once",
                advice="make another KlingSession",
            )
        loop = LoopBinding("the session")
        loop.bind()
        self._lifetime.used = True
        # Imported here: aiohttp and the engine are most of this package's import time.
        from .engine import SessionEngine  # noqa: PLC0415 -- see above

        transport, own = self._options.transport, None
        if transport is None:
            from kling_async._http.transport import AiohttpTransport  # noqa: PLC0415 -- see above

            transport = own = AiohttpTransport(
                timeouts=self._options.timeouts,
                max_reply_bytes=self._options.max_reply_bytes,
                proxy=self._options.proxy,
                ca=self._options.ca,
                client_session=self._options.client_session,
            )
        engine = SessionEngine(self._options, transport, loop)
        try:
            if own is not None:
                # Raises if `client_session` belongs to another event loop, or the service's proxy cannot be used.
                await own.open(self.provider.base_url)
            await engine.open()
        except BaseException:
            await finish(CriticalTasks().start(engine.close, name="kling-close"))
            raise
        self._lifetime.engine = engine
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the session. `async with` calls this.

        Waits for paid requests in flight until their results are recorded. Predictions that still run go on at the
        service and are listed in `left_running`. Cancelling this method takes effect only after the session is closed.

        Raises:
            WrongLoopError: The session was opened in another event loop.
        """
        engine = self._lifetime.engine
        if engine is None:
            return
        engine.loop.check()
        self._lifetime.engine = None
        closing = CriticalTasks().start(engine.close, name="kling-close")
        try:
            await finish(closing)
        finally:
            self.left_running = engine.left_running
            if self.left_running:
                _warn_of_running(self.left_running)

    @property
    def _engine(self) -> SessionEngine:
        """The parts of the open session, to be used in its event loop.

        Raises:
            SessionClosedError: It is not open.
            WrongLoopError: It was opened in another event loop.
        """
        engine = self._open_engine
        engine.loop.check()
        return engine

    @property
    def _open_engine(self) -> SessionEngine:
        """The parts of the open session, for reading them in any thread.

        Raises:
            SessionClosedError: It is not open.
        """
        engine = self._lifetime.engine
        if engine is None:
            raise SessionClosedError("the session is closed" if self._lifetime.used else "the session is not open yet")
        return engine

    @property
    def running(self) -> tuple[Prediction, ...]:
        """Predictions of this session that have not ended, as last read.

        Raises:
            SessionClosedError: The session is not open.
        """
        return self._open_engine.watcher.running

    def statistics(self) -> SessionStatistics:
        """Return counts of running and waiting jobs, of polls, and the USD spent.

        Raises:
            SessionClosedError: The session is not open.
        """
        return self._open_engine.statistics()

    def add_observer(self, observer: Observer) -> None:
        """Add an observer of later events, beside those given as `observers`.

        Args:
            observer: Called with every event, in the event loop. An exception that it raises is logged.

        Raises:
            SessionClosedError: The session is not open.
        """
        self._open_engine.observe.add(observer)

    def with_options(self, *, deadline: float | None = None, model: str | Model | None = None) -> KlingSession:
        """Return a view of this session with other defaults. Everything else is shared.

        Args:
            deadline: Seconds from acceptance to wait for the end of a prediction; None keeps the present default.
            model: Model of jobs that name none; None keeps the present default.

        Raises:
            ConfigurationError: The deadline is not positive.
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
        key: Key | None = None,
        deadline: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Prediction:
        """Generate one video: submit a job and wait for its prediction to complete.

        Cancellation ends the wait only: a request that was sent is recorded in the ledger, and its prediction goes on.
        The same key with the same job returns the recorded prediction and pays nothing.

        Args:
            job: The job. Instead of it, its fields can be given by name.
            key: Key of the job in the ledger: text, or a whole number. Default: a random key.
            deadline: Seconds from acceptance to wait. Default: the session's.
            fields: Fields of `Job`.

        Returns:
            The completed prediction.

        Raises:
            InvalidJobError: The job is invalid; nothing was sent.
            KeyReusedError: The ledger has another job with this key; nothing was sent.
            BudgetExceededError: The budget does not cover the job; nothing was sent.
            SubmissionUncertainError: It was sent, and its reply was lost; it may have been paid for.
            PredictionFailedError: The prediction failed.
            PredictionTimeoutError: The prediction still runs at the deadline; `wait` can wait for it again.
            KlingError: The service refused the job, or could not be reached. `spent` tells whether it was paid for.
        """
        engine = self._engine
        job = await self._job(job, fields)
        run = JobRun(job=job, key=_key(key), drain=engine.no_drain, deadline=self._deadline(deadline), is_call=True)
        return _unwrap(await engine.runner.run(run), job)

    async def submit(
        self, job: Job | None = None, /, *, key: Key | None = None, **fields: Unpack[JobFields]
    ) -> Prediction:
        """Submit one job, and return its prediction as soon as the service has accepted it.

        The prediction has an id and no video yet; `wait` waits for its end. The session polls it, and it occupies a
        slot until it ends.

        Args:
            job: The job. Instead of it, its fields can be given by name.
            key: Key of the job in the ledger: text, or a whole number. Default: a random key.
            fields: Fields of `Job`.

        Raises:
            InvalidJobError: The job is invalid; nothing was sent.
            KeyReusedError: The ledger has another job with this key; nothing was sent.
            BudgetExceededError: The budget does not cover the job; nothing was sent.
            SubmissionUncertainError: It was sent, and its reply was lost; it may have been paid for.
            KlingError: The service refused the job, or could not be reached. `spent` tells whether it was paid for.
        """
        engine = self._engine
        run = JobRun(job=await self._job(job, fields), key=_key(key), drain=engine.no_drain, is_call=True)
        return await engine.runner.submit(run)

    async def wait(self, prediction: Prediction | str, *, deadline: float | None = None) -> Prediction:
        """Wait for a prediction to complete, whether or not this session submitted it.

        Args:
            prediction: The prediction or its id.
            deadline: Seconds from now to wait. Default: the session's.

        Returns:
            The completed prediction.

        Raises:
            PredictionFailedError: It failed.
            PredictionTimeoutError: It still runs at the deadline.
            PredictionError: Its state can no longer be read; `__cause__` has the error of the last read.
            NotFoundError: There is none, or it is older than 7 days.
            ApiError: The service refused the read.
            TransportError: The service could not be reached.
        """
        engine = self._engine
        seconds, began = self._deadline(deadline), engine.clock.monotonic()
        # A bare id may be mistyped: only a prediction is known to have been accepted.
        kind = Kind.CALL if isinstance(prediction, str) else Kind.STATUS
        found = await engine.find(prediction, kind, within=seconds)
        remaining = max(0.0, seconds - (engine.clock.monotonic() - began))
        return _unwrap(await engine.watcher.wait(found, deadline=remaining), None)

    async def follow(self, prediction: Prediction | str) -> AsyncIterator[Prediction]:
        """Yield a prediction as it is now, and again at each change of status up to its end.

        ```python
        async for change in kling.follow(prediction_id):
            print(change.raw_status)
        ```

        Args:
            prediction: The prediction or its id.

        Raises:
            PredictionError: Its state can no longer be read; `__cause__` has the error of the last read.
            NotFoundError: There is none, or it is older than 7 days.
            ApiError: The service refused the read.
            TransportError: The service could not be reached.
        """
        async for change in self._engine.follow(prediction):
            yield change

    async def get(self, prediction_id: str) -> Prediction:
        """Read a prediction from the service.

        Args:
            prediction_id: Id of the prediction.

        Raises:
            NotFoundError: There is none, or it is older than 7 days.
            ApiError: The service refused the read.
            TransportError: The service could not be reached.
        """
        return await self._engine.reads.prediction(prediction_id)

    async def save(
        self,
        prediction: Prediction | str,
        where: str | os.PathLike[str] | Outputs,
        *,
        deadline: float | None = None,
    ) -> SavedFile:
        """Download the video of a completed prediction.

        The file gets its name only when it is complete and checked. An existing file with other content is kept; the
        video is then saved beside it, and the result has the name.

        Refusals, broken connections and error pages are tried again after growing pauses, while nothing new arrives for
        at most `deadline` seconds and the service still keeps the output.

        Args:
            prediction: The prediction or its id.
            where: Path of a file ending in `.mp4`; a folder, in which the file is named by the prediction's key or id;
                a template such as `"out/{date}/{key}.mp4"`; the URL of an object store; or an `Outputs`, which
                documents all of these.
            deadline: Seconds without progress after which the download is given up. Default: the session's.

        Returns:
            Location, size and SHA-256 of the video.

        Raises:
            ConfigurationError: `where` is none of these.
            PredictionFailedError: The prediction failed.
            NoOutputError: The prediction has not ended, or has no output.
            OutputGoneError: The service has deleted the output, which it does after 7 days.
            StorageError: The video could not be downloaded, checked or written.
            ApiError: The service refused to read the prediction.
            TransportError: The service could not be reached.
        """
        from kling_async.storage import Outputs  # noqa: PLC0415 -- many sessions save nothing

        engine = self._engine
        where, seconds = Outputs.of(where), self._deadline(deadline)
        return await engine.saver.save(_unwrap(await engine.find(prediction), None), where, deadline=seconds)

    async def upload(self, file: ImageSource | FileSource) -> str:
        """Upload a file and return its URL, which the service keeps for 7 days. Equal content is uploaded once.

        Jobs upload their files themselves.

        Args:
            file: A picture as for `Job.image`, a video (MP4, MOV, WebM) or a sound (MP3, WAV). A URL is returned as it
                is.

        Raises:
            InvalidJobError: The file cannot be read, or the service would refuse it.
            UnsupportedError: The provider has no uploads.
            ApiError: The service refused the upload.
            TransportError: The service could not be reached.
        """
        return await self._engine.images.upload(file)

    async def deliver(self, delivery: Delivery) -> None:
        """Handle a verified webhook delivery: update its prediction, and settle the submission that it was sent for.

        For custom receivers; the receiver of `webhook_receiver` calls this itself.

        Args:
            delivery: The delivery. Its signature must have been verified.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        await self._engine.takeover.deliver(delivery)

    async def webhook_receiver(
        self, secrets: str | Secret | Iterable[str | Secret] | None = None, *, max_body: int = 2**20
    ) -> WebhookReceiver:
        """Return a receiver of this session's webhooks, for `webhooks.aiohttp_handler` or `webhooks.asgi_app`.

        Args:
            secrets: Signing secret, or several during a rotation. Default: the secret that the service reports.
            max_body: Greatest size of a body, in bytes.

        Raises:
            ConfigurationError: A secret is malformed.
            UnsupportedError: The provider has no webhooks.
            ApiError: The service refused to report the secret.
            TransportError: The service could not be reached.
        """
        # Imported here: most sessions have none.
        from kling_async.webhooks import WebhookReceiver, WebhookVerifier  # noqa: PLC0415 -- see above

        if secrets is None:
            secrets = await self.webhook_secret()
        try:
            verifier = WebhookVerifier(secrets, clock=self._options.clock)
        finally:
            # A traceback may show local variables.
            del secrets
        return WebhookReceiver(verifier, self.deliver, max_body=max_body, api_key=key_of(self.provider))

    def batch(
        self,
        jobs: Jobs,
        *,
        name: str | None = None,
        ledger: None = None,
        budget: Budget | Decimal | str | float | None = None,
        seen: Seen | None = None,
        save_to: str | os.PathLike[str] | Outputs | None = None,
        ordered: bool = False,
        window: int | None = None,
        deadline: float | None = None,
        failures_kept: int = 1000,
    ) -> Batch:
        """Return a batch over many jobs. Enter it with `async with`, then iterate over its outcomes.

        ```python
        async with kling.batch(jobs, save_to="out/") as batch:
            async for outcome in batch:
                print(outcome.key, outcome.error or outcome.saved)
        ```

        Over a ledger on disk, running the same batch again continues it: accepted jobs are not submitted again.

        Args:
            jobs: Jobs, pairs of a key and a job, or a mapping of keys to jobs: any iterable or async iterable, of any
                length. It is read only as far ahead as the window allows. Without a key, a job gets a hash of its
                content.
            name: Name of the batch in ledger and events. Unnamed batches of one ledger share their keys.
            ledger: No longer supported: a batch writes the session's ledger.
            budget: Limit on the cost of the batch, including what the ledger has of it: a `Budget`, or USD. None for
                no limit beside the session's.
            seen: What to do with jobs that another batch of the ledger has paid for, as in `KlingSession`. Default: the
                session's. "stop" looks up a whole `Manifest` when the batch is entered, before anything is sent, and
                stops any other input at its first such job.
            save_to: Folder for the videos, which are named by their keys; a template such as
                `"out/{date}/{key}.mp4"`; the URL of an object store; or an `Outputs`, which documents all of these.
                None saves nothing.
            ordered: Yield outcomes in the order of the input, instead of in order of completion.
            window: Greatest number of jobs started whose outcomes were not consumed yet. Default: `max_in_flight` plus
                those that may start in 10 seconds, at least 64 and at most `max_in_flight`: their pictures are
                uploaded, and the videos of those that ended are saved, meanwhile.
            deadline: Seconds from acceptance to wait for each prediction, and seconds without progress to try to save
                its video. Default: the session's.
            failures_kept: Number of latest failed outcomes kept in `Batch.failures`.

        Raises:
            ConfigurationError: A number is out of range, or `save_to` or `seen` is none of these.
            SessionClosedError: The session is not open.
        """
        refuse_ledger(ledger)
        return self._batch(
            jobs,
            name=name,
            budget=budget,
            seen=seen,
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
        seen: Seen | None = None,
        save_to: str | os.PathLike[str] | Outputs | None = None,
        window: int | None = None,
        deadline: float | None = None,
        failures_kept: int = 1000,
    ) -> Batch:
        """Return a batch that continues an earlier one from the ledger alone, without its input.

        It yields one outcome per job in the ledger, those that expire soonest first. Two things are missing there:
        jobs that the earlier process had not read from its input yet, and images that were given as bytes. A job with
        such an image can be submitted as long as the upload exists.

        Args:
            ledger: No longer supported: a batch is resumed from the session's ledger.
            name: Name of the batch.
            budget: As in `batch`.
            seen: As in `batch`, for jobs that are to be sent.
            save_to: As in `batch`.
            window: As in `batch`.
            deadline: As in `batch`.
            failures_kept: As in `batch`.

        Raises:
            ConfigurationError: A number is out of range, or the session's ledger is in memory.
            SessionClosedError: The session is not open.
        """
        refuse_ledger(ledger)
        if not self._open_engine.ledger.durable:
            raise ConfigurationError(
                "resume: expected a session with a ledger on disk, got one in memory",
                advice="open KlingSession(ledger=...) with the file of the batch",
            )
        return self._batch(
            None,
            name=name,
            budget=budget,
            seen=seen,
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
        seen: Seen | None,
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
            self._open_engine,
            jobs,
            name=checked_batch(name),
            budget=budget_of(budget),
            seen=self._engine.seen(seen),
            save_to=None if save_to is None else Outputs.of(save_to, many=True),
            ordered=ordered,
            window=window or self.max_in_flight + min(self.max_in_flight, max(64, self._starts_in(10.0))),
            deadline=self._deadline(deadline),
            failures_kept=failures_kept,
        )

    async def _job(self, job: Job | None, fields: JobFields) -> Job:
        if job is None:
            if self._defaults.model is not None:
                fields = cast("JobFields", {"model": self._defaults.model, **fields})
            lists = [each for name in ("keyframes", "images") if isinstance(each := fields.get(name), list | tuple)]
            if any(map(is_decoded, (fields.get("image"), fields.get("end_image"), *itertools.chain(*lists)))):
                # Encoding a PIL image takes seconds.
                return await anyio.to_thread.run_sync(lambda: Job(**fields))
            return Job(**fields)
        if fields:
            raise TypeError(f"expected a job or its fields, got a job and {', '.join(fields)}")
        return job

    def _starts_in(self, seconds: float) -> int:
        """Return the number of jobs that the level lets start in some seconds."""
        return round(seconds * self.level.starts / self.level.per)

    def _deadline(self, deadline: float | None) -> float:
        if deadline is None:
            return self._defaults.deadline
        positive_seconds("deadline", deadline)
        return deadline


def _key(key: object) -> str:
    """Return the caller's key as text, or a random one for None.

    Raises:
        InvalidJobError: It is no text or whole number.
    """
    return fresh_key() if key is None else checked_key(key)


def fresh_key() -> str:
    """Return a random key of 16 hex digits."""
    return uuid.uuid4().hex[:16]


def _unwrap(prediction: Prediction, job: Job | None) -> Prediction:
    """Return a completed prediction.

    Raises:
        PredictionError: It is not completed.
    """
    error: KlingError | None = prediction.failure(job=job)
    if error is not None:
        raise error
    return prediction


def engine_of(kling: KlingSession) -> SessionEngine:
    """Return the engine of an open session, for other modules of this package.

    Raises:
        SessionClosedError: It is not open.
        WrongLoopError: It was opened in another event loop.
    """
    return kling._engine  # noqa: SLF001 -- the same module


def requests_of(kling: KlingSession) -> int:
    """Return the number of polling requests of an open session. May be called in any thread.

    Raises:
        SessionClosedError: It is not open.
    """
    return kling._open_engine.watcher.requests  # noqa: SLF001 -- the same module


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

"""Blocking session and batch, written by tests/support/blocking.py. Do not edit."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from kling_async._core.frames import hides_arguments
from kling_async._core.http import MAX_OUTPUT_BYTES, MAX_REPLY_BYTES
from kling_async._core.media import WHITE
from kling_async._core.polling import DEADLINE_S, FORGET_AFTER_S
from kling_async._http.pagination import MAX_PAGE_SIZE
from kling_async._session.session import KlingSession as AsyncSession

from ._base import BatchBase, SessionBase
from ._thread import LoopThread, in_thread

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Iterator
    from decimal import Decimal
    from typing import Literal, Unpack

    from kling_async._core.account import Billing, ServiceModel, ServicePrice, Usage
    from kling_async._core.budget import Budget
    from kling_async._core.catalogue import Level, Model
    from kling_async._core.clock import Clock
    from kling_async._core.http import Timeouts
    from kling_async._core.images import ImageSource
    from kling_async._core.input_files import FileSource
    from kling_async._core.job import Job, JobFields
    from kling_async._core.job_key import Key
    from kling_async._core.polling import WatchPolicy
    from kling_async._core.prediction import Prediction, SavedFile
    from kling_async._core.secret import Secret
    from kling_async._core.seen import Seen
    from kling_async._core.statistics import SessionStatistics
    from kling_async._core.transport import Transport
    from kling_async._session.account_calls import When
    from kling_async._session.batch import BatchStatistics, Jobs
    from kling_async._submission.doubts import OnUncertain
    from kling_async.errors import KlingError
    from kling_async.events import Observer
    from kling_async.ledger import Ledger
    from kling_async.limits import RateLimiter
    from kling_async.limits.callers import LimitsByCaller
    from kling_async.providers import Provider
    from kling_async.storage import Outputs
    from kling_async.webhooks import Delivery


class KlingSession(SessionBase):
    """A session with one account at one provider, for programs without asyncio: the same names, without `await`.

    Enter it once with `with`. Its methods may be called from any number of threads; observers, a transport, a rate
    limiter and a clock of your own are used in the thread of the session. In a thread with a running event loop, calls
    are refused with `WrongLoopError`. For arguments and errors see `kling_async.KlingSession`.
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
        transport: Transport | None = None,
        clock: Clock | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._session = AsyncSession(
            api_key,
            provider=provider,
            base_url=base_url,
            allow_http=allow_http,
            level=level,
            max_in_flight=max_in_flight,
            adaptive=adaptive,
            max_saving=max_saving,
            max_output_bytes=max_output_bytes,
            rate_limiter=rate_limiter,
            callers=callers,
            ledger=ledger,
            on_uncertain=on_uncertain,
            grace=grace,
            sole_user=sole_user,
            budget=budget,
            seen=seen,
            ignored_parameters=ignored_parameters,
            retry_failed=retry_failed,
            webhook_url=webhook_url,
            images=images,
            fit=fit,
            background=background,
            verify=verify,
            max_uploads=max_uploads,
            deadline=deadline,
            forget_after=forget_after,
            watch=watch,
            max_reads_per_second=max_reads_per_second,
            timeouts=timeouts,
            max_reply_bytes=max_reply_bytes,
            proxy=proxy,
            ca=ca,
            transport=transport,
            clock=clock,
            observers=observers,
        )
        self._thread = LoopThread()

    @property
    def running(self) -> tuple[Prediction, ...]:
        """Predictions of this session that have not ended, as last read."""
        return self._thread.ask(lambda: self._session.running)

    def statistics(self) -> SessionStatistics:
        """Return counts of running and waiting jobs, of polls, and the USD spent.

        For arguments and errors see `kling_async.KlingSession.statistics`.
        """
        return self._thread.ask(self._session.statistics)

    def add_observer(self, observer: Observer) -> None:
        """Add an observer of later events, beside those given as `observers`.

        For arguments and errors see `kling_async.KlingSession.add_observer`.
        """
        self._thread.ask(lambda: self._session.add_observer(observer))

    def with_options(self, *, deadline: float | None = None, model: str | Model | None = None) -> KlingSession:
        """Return a view of this session with other defaults. Everything else is shared.

        For arguments and errors see `kling_async.KlingSession.with_options`.
        """
        view = copy.copy(self)
        view._session = self._session.with_options(deadline=deadline, model=model)  # noqa: SLF001 -- of the same class
        return view

    def generate(
        self,
        job: Job | None = None,
        /,
        *,
        key: Key | None = None,
        deadline: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Prediction:
        """Generate one video: submit a job and wait for its prediction to complete.

        For arguments and errors see `kling_async.KlingSession.generate`.
        """
        return self._thread.run(lambda: self._session.generate(job, key=key, deadline=deadline, **fields))

    def submit(self, job: Job | None = None, /, *, key: Key | None = None, **fields: Unpack[JobFields]) -> Prediction:
        """Submit one job, and return its prediction as soon as the service has accepted it.

        For arguments and errors see `kling_async.KlingSession.submit`.
        """
        return self._thread.run(lambda: self._session.submit(job, key=key, **fields))

    def wait(self, prediction: Prediction | str, *, deadline: float | None = None) -> Prediction:
        """Wait for a prediction to complete, whether or not this session submitted it.

        For arguments and errors see `kling_async.KlingSession.wait`.
        """
        return self._thread.run(lambda: self._session.wait(prediction, deadline=deadline))

    def follow(self, prediction: Prediction | str) -> Iterator[Prediction]:
        """Yield a prediction as it is now, and again at each change of status up to its end.

        For arguments and errors see `kling_async.KlingSession.follow`.
        """
        return self._thread.iterate(self._session.follow(prediction))

    def get(self, prediction_id: str) -> Prediction:
        """Read a prediction from the service.

        For arguments and errors see `kling_async.KlingSession.get`.
        """
        return self._thread.run(lambda: self._session.get(prediction_id))

    def save(
        self, prediction: Prediction | str, where: str | os.PathLike[str] | Outputs, *, deadline: float | None = None
    ) -> SavedFile:
        """Download the video of a completed prediction.

        For arguments and errors see `kling_async.KlingSession.save`.
        """
        return self._thread.run(lambda: self._session.save(prediction, where, deadline=deadline))

    def upload(self, file: ImageSource | FileSource) -> str:
        """Upload a file and return its URL, which the service keeps for 7 days. Equal content is uploaded once.

        For arguments and errors see `kling_async.KlingSession.upload`.
        """
        return self._thread.run(lambda: self._session.upload(file))

    def deliver(self, delivery: Delivery) -> None:
        """Handle a verified webhook delivery: update its prediction, and settle the submission that it was sent for.

        For arguments and errors see `kling_async.KlingSession.deliver`.
        """
        self._thread.run(lambda: self._session.deliver(delivery))

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
        """Return a batch over many jobs. Enter it with `with`, then iterate over its outcomes.

        For arguments and errors see `kling_async.KlingSession.batch`.
        """
        return Batch(
            self._thread,
            self._thread.ask(
                lambda: self._session.batch(
                    in_thread(jobs),
                    name=name,
                    ledger=ledger,
                    budget=budget,
                    seen=seen,
                    save_to=save_to,
                    ordered=ordered,
                    window=window,
                    deadline=deadline,
                    failures_kept=failures_kept,
                )
            ),
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

        For arguments and errors see `kling_async.KlingSession.resume`.
        """
        return Batch(
            self._thread,
            self._thread.ask(
                lambda: self._session.resume(
                    ledger,
                    name=name,
                    budget=budget,
                    seen=seen,
                    save_to=save_to,
                    window=window,
                    deadline=deadline,
                    failures_kept=failures_kept,
                )
            ),
        )

    def predictions(
        self,
        *,
        model: str | Model | None = None,
        status: str | None = None,
        created_after: When | None = None,
        created_before: When | None = None,
        page_size: int = MAX_PAGE_SIZE,
        limit: int | None = None,
    ) -> Iterator[Prediction]:
        """Yield the account's predictions of the last 7 days, newest first, including those of the web playground.

        For arguments and errors see `kling_async.KlingSession.predictions`.
        """
        return self._thread.iterate(
            self._session.predictions(
                model=model,
                status=status,
                created_after=created_after,
                created_before=created_before,
                page_size=page_size,
                limit=limit,
            )
        )

    def delete(self, predictions: str | Prediction | Iterable[str | Prediction]) -> int:
        """Delete predictions and their outputs at the service. This cannot be undone.

        For arguments and errors see `kling_async.KlingSession.delete`.
        """
        return self._thread.run(lambda: self._session.delete(predictions))

    def balance(self) -> Decimal:
        """Return the balance of the account in USD.

        For arguments and errors see `kling_async.KlingSession.balance`.
        """
        return self._thread.run(self._session.balance)

    def models(self) -> tuple[ServiceModel, ...]:
        """Return the service's catalogue, with models of every kind. `Model.from_service` makes one usable in jobs.

        For arguments and errors see `kling_async.KlingSession.models`.
        """
        return self._thread.run(self._session.models)

    def price(self, job: Job) -> ServicePrice:
        """Return the service's price of a job, with and without the account's discount.

        For arguments and errors see `kling_async.KlingSession.price`.
        """
        return self._thread.run(lambda: self._session.price(job))

    def usage(self, start: When, end: When, model: str | Model | None = None) -> Usage:
        """Return the account's usage and cost in a span of at most 31 days.

        For arguments and errors see `kling_async.KlingSession.usage`.
        """
        return self._thread.run(lambda: self._session.usage(start, end, model))

    def billings(
        self,
        *,
        kind: Literal["deduct", "refund"] | None = None,
        predictions: str | Prediction | Iterable[str | Prediction] = (),
        model: str | Model | None = None,
        start: When | None = None,
        end: When | None = None,
        page_size: int = MAX_PAGE_SIZE,
        limit: int | None = None,
    ) -> Iterator[Billing]:
        """Yield the lines of the account's bill, newest first: deductions and refunds.

        For arguments and errors see `kling_async.KlingSession.billings`.
        """
        return self._thread.iterate(
            self._session.billings(
                kind=kind, predictions=predictions, model=model, start=start, end=end, page_size=page_size, limit=limit
            )
        )

    def webhook_secret(self) -> Secret:
        """Return the secret that signs this account's webhooks; `Secret.reveal` returns its text.

        For arguments and errors see `kling_async.KlingSession.webhook_secret`.
        """
        return self._thread.run(self._session.webhook_secret)


class Batch(BatchBase):
    """A run over many jobs. Made by `KlingSession.batch`; enter it once with `with`, then iterate, in any threads.

    See `kling_async.Batch`. Ctrl-C and an exception leave it early: jobs that were not sent are not, and accepted
    predictions go on and are recorded.
    """

    def completed(self) -> Iterator[Prediction]:
        """Yield the predictions of successful jobs, each with its key. `failures` has the latest other outcomes.

        For arguments and errors see `kling_async.Batch.completed`.
        """
        return self._thread.iterate(self._batch.completed())

    @property
    def stopped(self) -> KlingError | None:
        """The error that stopped the batch, account-wide or of a job that was paid for; None while there is none."""
        return self._thread.ask(lambda: self._batch.stopped)

    @property
    def drained(self) -> bool:
        """True after `drain` was called."""
        return self._thread.ask(lambda: self._batch.drained)

    def drain(self) -> None:
        """Submit nothing more, and end the iteration once all accepted jobs have ended. Returns at once.

        For arguments and errors see `kling_async.Batch.drain`.
        """
        self._thread.ask(self._batch.drain)

    def statistics(self) -> BatchStatistics:
        """Return counts of the jobs by state.

        For arguments and errors see `kling_async.Batch.statistics`.
        """
        return self._thread.ask(self._batch.statistics)

"""Finds out, for all predictions of a session at once, which have ended.

One heap of due times and a few readers, no timer and no task per prediction: a running prediction is a small object.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import anyio
import attrs

from ._core.errors import (
    ApiError,
    AuthenticationError,
    InsufficientBalanceError,
    KlingError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    PredictionError,
    PredictionTimeoutError,
    RequestRejectedError,
    SessionClosedError,
    Spent,
    TransportError,
)
from ._core.events import Changed
from ._core.job import Job
from ._core.polling import Backoff, WatchPolicy
from ._core.prediction import Prediction, newer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from random import Random

    from ._core.clock import Clock
    from ._core.events import Observer
    from ._core.transport import Transport
    from .providers import Provider

GRAIN = 0.001
"""Seconds; nothing is timed more finely."""

MISSES = 4
"""How often in a row a prediction is not found before that is believed."""

_FINAL = (
    AuthenticationError,
    InsufficientBalanceError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    RequestRejectedError,
)
"""Answers about a prediction that will not change by asking again; everything else is a blip."""


@attrs.define(eq=False)
class _Waiter:
    """Somebody who waits for an end."""

    future: asyncio.Future[Prediction]
    deadline: float
    job: Job | None = None


@attrs.define(eq=False)
class _Watched:
    """One prediction that runs."""

    prediction: Prediction
    since: float
    batch: str
    on_end: Callable[[Prediction], None] | None
    reads: int = 0
    failures: int = 0
    missing: int = 0
    waiters: list[_Waiter] = attrs.Factory(list)
    changes: list[asyncio.Queue[Prediction | KlingError]] = attrs.Factory(list)
    ended: bool = False


class Watcher:
    """The watching of one session.

    Args:
        transport: Sends the reads.
        provider: Phrases them and reads the replies.
        clock: The session's clock.
        policy: How often a prediction is read.
        rng: For jitter.
        observe: Is told every change of status.
        forget_after: Seconds after which a prediction that never ends is no longer watched and its slot is freed.
        readers: Reads at once.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        provider: Provider,
        clock: Clock,
        policy: WatchPolicy,
        rng: Random,
        observe: Observer,
        forget_after: float,
        readers: int = 32,
    ) -> None:
        self._transport = transport
        self._provider = provider
        self._clock = clock
        self._policy = policy
        self._backoff = Backoff(first=policy.first, cap=60.0, jitter=0.3)
        self._rng = rng
        self._observe = observe
        self._forget_after = forget_after
        self._readers = readers
        self._watched: dict[str, _Watched] = {}
        self._due: list[tuple[float, int, _Watched]] = []
        self._deadlines: list[tuple[float, int, _Waiter, _Watched]] = []
        self._compact_at = 1024
        self._order = itertools.count()
        self._ready: asyncio.Queue[_Watched] = asyncio.Queue()
        self._nap: anyio.CancelScope | None = None
        self._wakes_at = math.inf
        self._broken: BaseException | None = None
        self._closed = False
        self.reads = 0
        """Status requests that were sent."""

    @property
    def running(self) -> tuple[Prediction, ...]:
        """The predictions that are watched, as last seen."""
        return tuple(watched.prediction for watched in self._watched.values())

    def add(
        self, prediction: Prediction, *, batch: str = "", on_end: Callable[[Prediction], None] | None = None
    ) -> None:
        """Watch a prediction until it ends.

        Args:
            prediction: As last seen.
            batch: The batch it belongs to, for the events.
            on_end: Is called once, when it has ended or is no longer watched.
        """
        if prediction.status.ended or self._broken is not None or self._closed:
            if on_end is not None:
                on_end(prediction)
            return
        watched = self._watched.get(prediction.id)
        if watched is not None:
            # The caller followed the id already, before its submit was recorded.
            watched.on_end = _both(watched.on_end, on_end)
            return
        watched = _Watched(prediction, self._clock.monotonic(), batch, on_end)
        self._watched[prediction.id] = watched
        self._schedule(watched, self._policy.delay(0, self._rng.random()))

    async def wait(self, prediction: Prediction, *, deadline: float, job: Job | None = None) -> Prediction:
        """The ended prediction.

        Args:
            prediction: As last seen.
            deadline: Seconds to wait.
            job: For the errors.

        Raises:
            PredictionTimeoutError: The deadline passed; the prediction goes on and is watched on.
            PredictionError: Its state cannot be read any more; `__cause__` says why.
        """
        if prediction.status.ended:
            return prediction
        self._check()
        self.add(prediction)
        watched = self._watched[prediction.id]
        waiter = _Waiter(asyncio.get_running_loop().create_future(), self._clock.monotonic() + deadline, job)
        watched.waiters.append(waiter)
        if deadline < math.inf:
            self._expect(waiter, watched)
        try:
            return await waiter.future
        finally:
            if waiter in watched.waiters:
                watched.waiters.remove(waiter)

    async def follow(self, prediction: Prediction) -> AsyncIterator[Prediction]:
        """The prediction as it is now, and again at every change of status, the end included."""
        yield prediction
        if prediction.status.ended:
            return
        self._check()
        self.add(prediction)
        watched = self._watched[prediction.id]
        news: asyncio.Queue[Prediction | KlingError] = asyncio.Queue()
        watched.changes.append(news)
        try:
            while True:
                item = await news.get()
                if isinstance(item, KlingError):
                    raise item
                yield item
                if item.status.ended:
                    return
        finally:
            watched.changes.remove(news)

    async def run(self) -> None:
        """Watch until cancelled. A mistake in here fails all waiters with its traceback, and ends the watching."""
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(self._readers):
                    tasks.start_soon(self._read_forever)
                await self._keep_time()
        except Exception as error:  # noqa: BLE001 -- it is handed to everybody who waits
            self._broken = error
            for watched in list(self._watched.values()):
                self._end(watched, PredictionError("the watcher broke", prediction=watched.prediction), cause=error)

    def seen(self, prediction_id: str) -> Prediction | None:
        """A watched prediction, as last seen; None when it is not watched."""
        watched = self._watched.get(prediction_id)
        return None if watched is None else watched.prediction

    def close(self) -> tuple[Prediction, ...]:
        """End all waiting, and say what still runs."""
        left = self.running
        self._closed = True
        for watched in list(self._watched.values()):
            watched.on_end = None
            self._end(
                watched,
                PredictionError(
                    "the session closed while the prediction was running",
                    prediction=watched.prediction,
                    key=watched.prediction.key,
                    advice="wait(prediction_id) in another session follows it further",
                ),
            )
        return left

    def _check(self) -> None:
        if self._closed:
            raise SessionClosedError("the session is closed", spent=Spent.UNKNOWN)
        if self._broken is not None:
            raise PredictionError("the watcher broke", spent=Spent.UNKNOWN) from self._broken

    def _schedule(self, watched: _Watched, delay: float) -> None:
        due = self._clock.monotonic() + delay
        heapq.heappush(self._due, (due, next(self._order), watched))
        self._wake_by(due)

    def _expect(self, waiter: _Waiter, watched: _Watched) -> None:
        if len(self._deadlines) >= self._compact_at:
            # Most waiters end long before their deadline: what is left of them must not pile up.
            self._deadlines = [item for item in self._deadlines if not item[2].future.done()]
            heapq.heapify(self._deadlines)
            self._compact_at = max(1024, 2 * len(self._deadlines))
        heapq.heappush(self._deadlines, (waiter.deadline, next(self._order), waiter, watched))
        self._wake_by(waiter.deadline)

    def _wake_by(self, due: float) -> None:
        if due < self._wakes_at and self._nap is not None:
            self._nap.cancel()

    async def _keep_time(self) -> NoReturn:
        while True:
            # What is due within the grain is due now: a timer may fire a little early.
            now = self._clock.monotonic() + GRAIN
            while self._due and self._due[0][0] <= now:
                self._ready.put_nowait(heapq.heappop(self._due)[2])
            while self._deadlines and self._deadlines[0][0] <= now:
                _, _, waiter, watched = heapq.heappop(self._deadlines)
                self._time_out(waiter, watched)
            self._wakes_at = min(
                self._due[0][0] if self._due else math.inf, self._deadlines[0][0] if self._deadlines else math.inf
            )
            with anyio.CancelScope() as self._nap:
                if self._wakes_at == math.inf:
                    await anyio.sleep_forever()
                await self._clock.sleep(self._wakes_at - now + GRAIN)
            self._nap = None

    def _time_out(self, waiter: _Waiter, watched: _Watched) -> None:
        if waiter.future.done():
            return
        waiter.future.set_exception(
            PredictionTimeoutError(
                f"the prediction is still {watched.prediction.raw_status} at the deadline",
                prediction=watched.prediction,
                job=waiter.job,
                key=watched.prediction.key,
            )
        )

    async def _read_forever(self) -> NoReturn:
        while True:
            watched = await self._ready.get()
            if not watched.ended:
                await self._read(watched)

    async def _read(self, watched: _Watched) -> None:
        watched.reads += 1
        self.reads += 1
        try:
            response = await self._transport.send(self._provider.result(watched.prediction.id))
            read = self._provider.read_prediction(response)
        except _FINAL as error:
            watched.missing += isinstance(error, NotFoundError)
            if 0 < watched.missing < MISSES:
                # A replica that lags, or a gateway that errs: what was accepted a while ago is not gone at once.
                self._again(watched, self._backoff.delay(watched.missing, self._rng.random()))
            else:
                self._end(watched, self._lost(watched, error), cause=error)
        except (TransportError, ApiError) as error:
            # A blip never fails a job that is paid for.
            watched.failures += 1
            delay = self._backoff.delay(watched.failures, self._rng.random())
            self._again(watched, max(delay, getattr(error, "retry_after", None) or 0.0))
        else:
            watched.failures = watched.missing = 0
            self._news(watched, read)

    def _news(self, watched: _Watched, read: Prediction) -> None:
        last = watched.prediction
        if read.status is last.status and read.raw_status == last.raw_status:
            self._again(watched, self._policy.delay(watched.reads, self._rng.random()))
            return
        if not (newer(last.status, read.status) or read.status is last.status):
            # Late news of a replica that lags.
            self._again(watched, self._policy.delay(watched.reads, self._rng.random()))
            return
        read = attrs.evolve(read, key=last.key, model=read.model or last.model)
        watched.prediction = read
        self._observe(Changed(at=self._clock.now(), key=read.key or "", batch=watched.batch, prediction=read))
        for news in watched.changes:
            news.put_nowait(read)
        if read.status.ended:
            self._end(watched, None)
        else:
            self._again(watched, self._policy.delay(watched.reads, self._rng.random()))

    def _again(self, watched: _Watched, delay: float) -> None:
        if self._clock.monotonic() - watched.since > self._forget_after:
            self._end(
                watched,
                PredictionTimeoutError(
                    f"the prediction has not ended in {self._forget_after:.0f} s and is no longer watched",
                    prediction=watched.prediction,
                    key=watched.prediction.key,
                ),
            )
            return
        self._schedule(watched, delay)

    def _lost(self, watched: _Watched, error: ApiError) -> PredictionError:
        return PredictionError(
            f"the state of the prediction cannot be read: {error.message}",
            prediction=watched.prediction,
            key=watched.prediction.key,
            advice="the prediction may still run; " + (error.advice or "wait(prediction_id) asks for it again"),
        )

    def _end(self, watched: _Watched, error: KlingError | None, *, cause: BaseException | None = None) -> None:
        watched.ended = True
        self._watched.pop(watched.prediction.id, None)
        if error is not None and cause is not None:
            error.__cause__ = cause
        for waiter in watched.waiters:
            if waiter.future.done():
                continue
            if error is None:
                waiter.future.set_result(watched.prediction)
            else:
                waiter.future.set_exception(error)
        if error is not None:
            for news in watched.changes:
                news.put_nowait(error)
        if watched.on_end is not None:
            watched.on_end(watched.prediction)


def _both(
    first: Callable[[Prediction], None] | None, second: Callable[[Prediction], None] | None
) -> Callable[[Prediction], None] | None:
    if first is None or second is None:
        return first or second

    def both(prediction: Prediction) -> None:
        first(prediction)
        second(prediction)

    return both

"""Finds out, for all predictions of a session at once, which have ended.

The planner says what to ask for and when; here is who asks, who waits, and what is made of the answers. A few readers,
no timer and no task per prediction: a running prediction is a small object.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import anyio
import attrs

from kling_async._core.catalogue import find_model
from kling_async._core.copies import changed
from kling_async._core.job import Job
from kling_async._core.planner import Look, LookAtPage, Planner
from kling_async._core.polling import Backoff, WatchPolicy, WatchStatistics
from kling_async._core.prediction import Prediction, Status, newer
from kling_async.errors import (
    ApiError,
    KlingError,
    NotFoundError,
    PredictionError,
    PredictionTimeoutError,
    RateLimitedError,
    SessionClosedError,
    Spent,
)
from kling_async.events import Changed

from .reader import Final, Passing, Reader, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from random import Random

    from kling_async._core.clock import Clock
    from kling_async._core.transport import Transport
    from kling_async._observers import Observers
    from kling_async.providers import Provider

TIMER_RESOLUTION_S = 0.001
"""Seconds; nothing is timed more finely."""

MAX_NOT_FOUND = 4
"""Replies in a row that a prediction is not found, after which it is taken for deleted."""

MAX_RECENT_ENDS = 1000
"""Ended predictions that are kept for later callers: a webhook may be faster than the reply to a submit."""

DEFAULT_RUN_S = 120.0
"""Seconds that 5 seconds of video of an unknown model usually take."""


@attrs.define(eq=False)
class _Waiter:
    """Somebody who waits for an end."""

    future: asyncio.Future[Prediction]
    deadline: float
    job: Job | None = None


@attrs.define(eq=False)
class _Watched:
    """One prediction that runs.

    Attributes:
        reply: Hash of the last reply to its own read; None before the first.
    """

    prediction: Prediction
    since: float
    batch: str
    on_end: Callable[[Prediction], None] | None
    failures: int = 0
    missing: int = 0
    reply: int | None = None
    waiters: list[_Waiter] = attrs.Factory(list)
    changes: tuple[asyncio.Queue[Prediction | KlingError], ...] = ()
    ended: bool = False


class Watcher:
    """The watching of one session.

    Args:
        transport: Sends the reads.
        provider: Phrases them and reads the replies.
        clock: The session's clock.
        policy: How eagerly ends are found out.
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
        observe: Observers,
        forget_after: float,
        readers: int = 32,
    ) -> None:
        self._clock = clock
        self._planner = Planner(policy, rng.random)
        self._reader = Reader(transport, provider)
        self._backoff = Backoff(first=min(5.0, policy.most), cap=60.0, jitter=0.3)
        self._rng = rng
        self._observe = observe
        self._forget_after = forget_after
        self._readers = readers
        self._watched: dict[str, _Watched] = {}
        self._recent: OrderedDict[str, Prediction] = OrderedDict()
        self._deadlines: list[tuple[float, int, _Waiter, _Watched]] = []
        self._compact_at = 1024
        self._order = itertools.count()
        self._ready: deque[Look] = deque()
        self._parked: deque[asyncio.Future[None]] = deque()
        self._nap: anyio.CancelScope | None = None
        self._wakes_at = math.inf
        self._broken: BaseException | None = None
        self._closed = False
        self._failed_pages = 0

    @property
    def running(self) -> tuple[Prediction, ...]:
        """The predictions that are watched, as last seen."""
        return tuple(watched.prediction for watched in self._watched.values())

    @property
    def requests(self) -> int:
        """How often it was asked until now."""
        return self._reader.singles + self._reader.pages

    def statistics(self) -> WatchStatistics:
        """What the watching has cost and brought until now."""
        return WatchStatistics(
            singles=self._reader.singles,
            pages=self._reader.pages,
            ended=self._planner.ended,
            told=self._planner.ended_via_webhook,
            delay=self._planner.delay,
            watched=len(self._watched),
            waiting=sum(len(watched.waiters) for watched in self._watched.values()),
        )

    def add(
        self,
        prediction: Prediction,
        *,
        batch: str = "",
        on_end: Callable[[Prediction], None] | None = None,
        job: Job | None = None,
        submitted_at: float | None = None,
    ) -> None:
        """Watch a prediction until it ends.

        Args:
            prediction: As last seen.
            batch: The batch it belongs to, for the events.
            on_end: Is called once, when it has ended or is no longer watched.
            job: What it makes, when it was accepted just now: says how long it may take.
            submitted_at: When it was accepted, in seconds since the epoch, when nothing was heard of it since then.
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
        now = self._clock.monotonic()
        watched = self._watched[prediction.id] = _Watched(prediction, now, batch, on_end)
        age = 0.0 if job is not None else self._age(prediction, submitted_at)
        row = find_model(prediction.model) if job is None else job.row
        length = None if job is None else job.duration
        self._planner.watch(
            prediction.id,
            now=now,
            since=now - age,
            looked=now if submitted_at is None else now - age,
            created=prediction.created_at,
            kind=(prediction.model, length),
            usual=(DEFAULT_RUN_S if row is None else row.usual) * (length or 5) / 5,
        )
        self._wake_for_looks()
        early = self._recent.pop(prediction.id, None)
        if early is not None:
            self.tell(early)

    def tell(self, prediction: Prediction) -> bool:
        """Take news that came by themselves: a webhook's. They must have been verified.

        Whichever comes first counts, a webhook or a read. Replays, late news and those of others change nothing.

        Args:
            prediction: As the service told it.

        Returns:
            Whether it was news of a prediction that is watched.
        """
        watched = self._watched.get(prediction.id)
        if watched is None:
            if prediction.status.ended:
                self._keep(prediction)
            return False
        if not newer(watched.prediction.status, prediction.status):
            return False
        self._handle(watched, prediction, via_webhook=True)
        # How long it took may bring the looks at others forward.
        self._wake_for_looks()
        return True

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
        prediction = self._recent.get(prediction.id, prediction)
        if prediction.status.ended:
            return prediction
        self._check()
        self.add(prediction)
        watched = self._watched[prediction.id]
        # What is known of it changes while this waits.
        del prediction
        waiter = _Waiter(asyncio.get_running_loop().create_future(), self._clock.monotonic() + deadline, job)
        watched.waiters.append(waiter)
        if deadline < math.inf:
            self._expect(waiter, watched)
        try:
            return await waiter.future
        finally:
            # It waits for its deadline on; the job, which may hold an image, need not.
            waiter.job = None
            if waiter in watched.waiters:
                watched.waiters.remove(waiter)

    async def follow(self, prediction: Prediction) -> AsyncIterator[Prediction]:
        """The prediction as it is now, and again at every change of status, the end included."""
        prediction = self._recent.get(prediction.id, prediction)
        yield prediction
        if prediction.status.ended:
            return
        self._check()
        self.add(prediction)
        watched = self._watched[prediction.id]
        news: asyncio.Queue[Prediction | KlingError] = asyncio.Queue()
        watched.changes = (*watched.changes, news)
        try:
            while True:
                item = await news.get()
                if isinstance(item, KlingError):
                    raise item
                yield item
                if item.status.ended:
                    return
        finally:
            watched.changes = tuple(each for each in watched.changes if each is not news)

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

    def _keep(self, ended: Prediction) -> None:
        self._recent.setdefault(ended.id, ended)
        if len(self._recent) > MAX_RECENT_ENDS:
            self._recent.popitem(last=False)

    def _age(self, prediction: Prediction, submitted_at: float | None) -> float:
        """Seconds since it was accepted. What cannot be, when the service's clock and ours differ, is taken for 0."""
        if submitted_at is None and prediction.created_at is not None:
            submitted_at = prediction.created_at.timestamp()
        age = 0.0 if submitted_at is None else self._clock.now() - submitted_at
        return age if 0 <= age <= self._forget_after else 0.0

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
            self._wakes_at = -math.inf
            self._nap.cancel()

    def _wake_for_looks(self) -> None:
        # While all readers are busy nobody could take what is due: the first who is not asks for it.
        if self._parked:
            self._wake_by(self._planner.next_due)

    async def _keep_time(self) -> NoReturn:
        while True:
            # What is due within the grain is due now: a timer may fire a little early.
            now = self._clock.monotonic() + TIMER_RESOLUTION_S
            self._collect(now)
            while self._deadlines and self._deadlines[0][0] <= now:
                _, _, waiter, watched = heapq.heappop(self._deadlines)
                self._time_out(waiter, watched)
            look = self._planner.next_due if self._parked else math.inf
            self._wakes_at = min(look, self._deadlines[0][0] if self._deadlines else math.inf)
            with anyio.CancelScope() as self._nap:
                if self._wakes_at == math.inf:
                    await anyio.sleep_forever()
                await self._clock.sleep(self._wakes_at - now + TIMER_RESOLUTION_S)
            self._nap = None

    def _collect(self, now: float) -> None:
        """Take what is due, and wake as many readers as that needs."""
        self._ready += self._planner.due(now)
        for _ in range(min(len(self._ready), len(self._parked))):
            turn = self._parked.popleft()
            if not turn.done():
                turn.set_result(None)

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
            look = await self._next_look()
            held = self._planner.held_until - self._clock.monotonic()
            if held > 0:
                await self._clock.sleep(held)
            if isinstance(look, LookAtPage):
                await self._read_page(look)
            elif look.prediction_id in self._watched:
                await self._read(self._watched[look.prediction_id])
            self._wake_for_looks()

    async def _next_look(self) -> Look:
        """What a reader is to ask for, when there is something."""
        while not self._ready:
            self._collect(self._clock.monotonic() + TIMER_RESOLUTION_S)
            if not self._ready:
                turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._parked.append(turn)
                self._wake_for_looks()
                await turn
        return self._ready.popleft()

    async def _read(self, watched: _Watched) -> None:
        prediction = watched.prediction
        match await self._reader.read(prediction.id, key=prediction.key, known_reply=watched.reply):
            case Final(error):
                if watched.ended:
                    return
                watched.missing += isinstance(error, NotFoundError)
                if 0 < watched.missing < MAX_NOT_FOUND:
                    # A replica that lags, or a gateway that errs: an accepted prediction is not gone at once.
                    self._look_again(watched, self._pause(watched.missing))
                else:
                    self._end(watched, _unreadable(watched, error), cause=error)
            case Passing(error):
                # A passing error never fails a job that is paid for.
                watched.failures += 1
                self._look_again(watched, self._pause(watched.failures, error))
            case Reply(read, reply):
                watched.failures = watched.missing = 0
                if watched.ended:
                    return
                if read is not None:
                    self._handle(watched, read, single=True)
                if not watched.ended:
                    watched.reply = reply
                    created = None if read is None else read.created_at
                    self._planner.mark_running(prediction.id, self._clock.monotonic(), created)
                    self._forget(watched)

    async def _read_page(self, look: LookAtPage) -> None:
        match await self._reader.read_page(look.number, look.size, look.before):
            case Final():
                self._planner.pages_unsupported(look, self._clock.monotonic())
            case Passing(error):
                self._failed_pages += 1
                delay = self._pause(self._failed_pages, error)
                now = self._clock.monotonic()
                self._planner.page_failed(look, now, now + delay)
            case page:
                self._failed_pages = 0
                self._planner.page_read(look, page, self._clock.monotonic())
                for item in page.items:
                    watched = self._watched.get(item.id)
                    if watched is not None:
                        self._handle(watched, item)
                        self._forget(watched)

    def _pause(self, failures: int, error: KlingError | None = None) -> float:
        """Seconds until the next attempt; what the service asks for is obeyed, for all reads if they are too many."""
        delay = self._backoff.delay(failures, self._rng.random())
        if isinstance(error, ApiError):
            delay = max(delay, error.retry_after or 0.0)
        if isinstance(error, RateLimitedError):
            self._planner.hold(self._clock.monotonic() + delay)
        return delay

    def _handle(self, watched: _Watched, read: Prediction, *, single: bool = False, via_webhook: bool = False) -> None:
        """Handle a record of a prediction: of its own read (`single`), of a list, or of a webhook."""
        last = watched.prediction
        if read.status is last.status and read.raw_status == last.raw_status:
            return
        if not (newer(last.status, read.status) or read.status is last.status):
            # Late news of a replica that lags.
            return
        if read.status is Status.COMPLETED and not read.outputs and not single:
            # Lists may leave outputs out, and what is paid for is not given up for that.
            self._planner.look_again(last.id, self._clock.monotonic())
            self._wake_for_looks()
            return
        if read.id != last.id or read.key != last.key or not read.model:
            # It was asked for by its id: a gateway may call it otherwise in its reply.
            read = changed(read, id=last.id, key=last.key, model=read.model or last.model)
        watched.prediction = read
        if read.status.ended:
            self._planner.mark_ended(read.id, self._clock.monotonic(), took=read.inference, via_webhook=via_webhook)
        self._observe(Changed, at=self._clock.now(), key=read.key or "", batch=watched.batch, prediction=read)
        for news in watched.changes:
            news.put_nowait(read)
        if read.status.ended:
            self._end(watched, None)

    def _look_again(self, watched: _Watched, delay: float) -> None:
        if not self._forget(watched):
            self._planner.look_again(watched.prediction.id, self._clock.monotonic() + delay)

    def _forget(self, watched: _Watched) -> bool:
        """Whether it is no longer watched; it is not when it has run for too long."""
        if not watched.ended and self._clock.monotonic() - watched.since > self._forget_after:
            self._end(
                watched,
                PredictionTimeoutError(
                    f"the prediction has not ended in {self._forget_after:.0f} s and is no longer watched",
                    prediction=watched.prediction,
                    key=watched.prediction.key,
                ),
            )
        return watched.ended

    def _end(self, watched: _Watched, error: KlingError | None, *, cause: BaseException | None = None) -> None:
        watched.ended = True
        if self._watched.pop(watched.prediction.id, None) is not None and error is not None:
            self._planner.forget(watched.prediction.id)
        if error is None:
            self._keep(watched.prediction)
        elif cause is not None:
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


def _unreadable(watched: _Watched, error: KlingError) -> PredictionError:
    return PredictionError(
        f"the state of the prediction cannot be read: {error.message}",
        prediction=watched.prediction,
        key=watched.prediction.key,
        advice="the prediction may still run; " + (error.advice or "wait(prediction_id) asks for it again"),
    )


def _both(
    first: Callable[[Prediction], None] | None, second: Callable[[Prediction], None] | None
) -> Callable[[Prediction], None] | None:
    if first is None or second is None:
        return first or second

    def both(prediction: Prediction) -> None:
        first(prediction)
        second(prediction)

    return both

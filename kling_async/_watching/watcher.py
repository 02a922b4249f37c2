"""Watch all running predictions of a session until they end.

The planner decides what to read and when. The watcher reads it, handles the replies, and serves the waiters. It has one
timer, and a reader task for each concurrent read, not for each prediction: a running prediction takes little memory.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, NoReturn

import anyio

from kling_async._core.answers import MAX_READ_PAUSE_S, Answers, Kind
from kling_async._core.catalogue import find_model
from kling_async._core.copies import changed
from kling_async._core.planner import Look, LookAtPage, Planner
from kling_async._core.polling import Backoff, WatchPolicy, WatchStatistics
from kling_async._core.prediction import Prediction, Status, newer
from kling_async._http.retry import pause
from kling_async.errors import (
    ApiError,
    KlingError,
    PredictionError,
    RateLimitedError,
    SessionClosedError,
    Spent,
    TransportError,
    UnsupportedError,
)
from kling_async.events import Changed

from .reader import FailedRead, Reader, Reply
from .watched import Deadlines, Waiter, Watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from random import Random

    from anyio.abc import TaskGroup

    from kling_async._core.clock import Clock
    from kling_async._core.job import Job
    from kling_async._core.transport import Transport
    from kling_async._observers import Observers
    from kling_async.providers import Provider

TIMER_RESOLUTION_S = 0.001
"""Seconds: times closer together than this count as equal."""

MAX_RECENT_ENDS = 1000
"""Ended predictions kept for later callers: a webhook may come before the reply to the submit."""

_BROKEN = "the watcher broke by a mistake in the program, see __cause__; the prediction goes on"

READERS_PER_READ_PER_S = 0.5
"""Concurrent reads for each read per second of the ceiling: enough while a reply takes half a second."""
MIN_READERS, MAX_READERS = 32, 200
"""Bounds of the greatest number of concurrent reads."""

DEFAULT_RUN_S = 120.0
"""Usual run time in seconds of 5 seconds of video by an unknown model."""


class Watcher:
    """Watches the running predictions of one session.

    Args:
        transport: Sends the reads.
        provider: Builds them and parses the replies.
        clock: The session's clock.
        policy: Polling policy.
        ceiling: Reads per second; infinite for no limit.
        rng: Draws jitter.
        observe: Publishes every change of status.
        forget_after: Seconds after which a prediction that has not ended is no longer watched.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        provider: Provider,
        clock: Clock,
        policy: WatchPolicy,
        ceiling: float,
        rng: Random,
        observe: Observers,
        forget_after: float,
    ) -> None:
        self._clock = clock
        self._planner = Planner(policy, ceiling)
        self._reader = Reader(transport, provider)
        self._least = policy.least
        self._backoff = Backoff(first=min(5.0, policy.most), cap=60.0, jitter=0.3)
        self._rng = rng
        self._observe = observe
        self._forget_after = forget_after
        self._tasks: TaskGroup | None = None
        self._readers = 0
        self._max_readers = min(max(READERS_PER_READ_PER_S * ceiling, MIN_READERS), MAX_READERS)
        self._watched: dict[str, Watched] = {}
        self._recent: OrderedDict[str, Prediction] = OrderedDict()
        self._deadlines = Deadlines()
        self._ready: deque[Look] = deque()
        self._idle_readers: deque[asyncio.Future[None]] = deque()
        self._timer_sleep: anyio.CancelScope | None = None
        self._timer_wakes_at = math.inf
        self._failure: BaseException | None = None
        self._closed = False

    @property
    def running(self) -> tuple[Prediction, ...]:
        """The watched predictions, as last read."""
        return tuple(watched.prediction for watched in self._watched.values())

    @property
    def requests(self) -> int:
        """Number of reads so far."""
        return self._reader.singles + self._reader.pages

    def statistics(self) -> WatchStatistics:
        """Return counts of reads, of ended and of watched predictions."""
        return WatchStatistics(
            singles=self._reader.singles,
            pages=self._reader.pages,
            ended=self._planner.ended,
            told=self._planner.ended_via_webhook,
            delay=self._planner.delay,
            ceiling=self._planner.rate.at(self._clock.monotonic()),
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
            prediction: Its latest record.
            batch: Name of its batch, for events.
            on_end: Called once, when it has ended or is no longer watched.
            job: Its job, if it was accepted just now; the expected run time depends on it.
            submitted_at: Time of acceptance in seconds since the epoch, if it was not read since; else None.
        """
        if prediction.status.ended or self._failure is not None or self._closed:
            if on_end is not None:
                on_end(prediction)
            return
        watched = self._watched.get(prediction.id)
        if watched is not None:
            # A caller followed the id before its submit was recorded.
            watched.also_on_end(on_end)
            return
        now = self._clock.monotonic()
        watched = self._watched[prediction.id] = Watched(prediction, now, batch, on_end)
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
        self._wake_timer_for_reads()
        early = self._recent.pop(prediction.id, None)
        if early is not None:
            self.handle_webhook(early)

    def handle_webhook(self, prediction: Prediction) -> bool:
        """Handle a prediction sent by a verified webhook.

        Replays, outdated records and predictions that are not watched change nothing.

        Args:
            prediction: The record in the webhook.

        Returns:
            True if it was newer than the record of a watched prediction.
        """
        watched = self._watched.get(prediction.id)
        if watched is None:
            if prediction.status.ended:
                self._keep_ended(prediction)
            return False
        if not newer(watched.prediction.status, prediction.status):
            return False
        self._handle(watched, prediction, via_webhook=True)
        # Its end may bring reads of others forward.
        self._wake_timer_for_reads()
        return True

    async def wait(self, prediction: Prediction, *, deadline: float, job: Job | None = None) -> Prediction:
        """Wait for a prediction to end, and return it.

        Args:
            prediction: Its latest record.
            deadline: Seconds to wait.
            job: The job, for errors.

        Raises:
            PredictionTimeoutError: The deadline passed. The prediction goes on and is still watched.
            PredictionError: Its state can no longer be read; `__cause__` has the reason.
            SessionClosedError: The session is closed.
        """
        prediction = self._recent.get(prediction.id, prediction)
        if prediction.status.ended:
            return prediction
        self._require_usable()
        self.add(prediction)
        watched = self._watched[prediction.id]
        # The watcher keeps the latest record; this one would only take memory.
        del prediction
        waiter = Waiter(asyncio.get_running_loop().create_future(), self._clock.monotonic() + deadline, job)
        watched.waiters.append(waiter)
        if deadline < math.inf:
            self._add_deadline(waiter, watched)
        try:
            return await waiter.future
        finally:
            # The waiter stays among the deadlines; the job, which may hold an image, must not.
            waiter.job = None
            if waiter in watched.waiters:
                watched.waiters.remove(waiter)

    async def follow(self, prediction: Prediction) -> AsyncIterator[Prediction]:
        """Yield a prediction as it is now, and again at each change of status up to its end.

        Args:
            prediction: Its latest record.

        Raises:
            PredictionError: Its state can no longer be read; `__cause__` has the reason.
            SessionClosedError: The session is closed.
        """
        prediction = self._recent.get(prediction.id, prediction)
        yield prediction
        if prediction.status.ended:
            return
        self._require_usable()
        self.add(prediction)
        watched = self._watched[prediction.id]
        updates: asyncio.Queue[Prediction | KlingError] = asyncio.Queue()
        watched.changes = (*watched.changes, updates)
        try:
            while True:
                item = await updates.get()
                if isinstance(item, KlingError):
                    raise item
                yield item
                if item.status.ended:
                    return
        finally:
            watched.changes = tuple(each for each in watched.changes if each is not updates)

    async def run(self) -> None:
        """Watch until cancelled. An unexpected exception fails all waiters, as the cause of their errors."""
        try:
            async with anyio.create_task_group() as self._tasks:
                await self._run_timer()
        except Exception as error:  # noqa: BLE001 -- every waiter raises it
            self._failure = error
            for watched in list(self._watched.values()):
                self._end(watched, PredictionError(_BROKEN, prediction=watched.prediction), cause=error)

    def seen(self, prediction_id: str) -> Prediction | None:
        """Return a watched prediction as last read; None if it is not watched."""
        watched = self._watched.get(prediction_id)
        return None if watched is None else watched.prediction

    def last_record(self, prediction_id: str) -> Prediction | None:
        """Return a prediction that is watched or has ended recently, as last read; None for any other."""
        return self.seen(prediction_id) or self._recent.get(prediction_id)

    def close(self) -> tuple[Prediction, ...]:
        """Stop watching, fail all waiters, and return the predictions that still run."""
        running = self.running
        self._closed = True
        for watched in list(self._watched.values()):
            watched.on_end = None
            self._end(
                watched,
                PredictionError(
                    "the session closed while the prediction was running",
                    prediction=watched.prediction,
                    key=watched.prediction.key,
                    advice="it goes on at the service; wait for it by its id in another session",
                ),
            )
        return running

    def _require_usable(self) -> None:
        if self._closed:
            raise SessionClosedError("the session is closed", spent=Spent.UNKNOWN)
        if self._failure is not None:
            raise PredictionError(_BROKEN, spent=Spent.UNKNOWN) from self._failure

    def _keep_ended(self, ended: Prediction) -> None:
        self._recent.setdefault(ended.id, ended)
        if len(self._recent) > MAX_RECENT_ENDS:
            self._recent.popitem(last=False)

    def _age(self, prediction: Prediction, submitted_at: float | None) -> float:
        """Return the seconds since a prediction was accepted; 0 if the clocks differ so that the age is impossible."""
        if submitted_at is None and prediction.created_at is not None:
            submitted_at = prediction.created_at.timestamp()
        age = 0.0 if submitted_at is None else self._clock.now() - submitted_at
        return age if 0 <= age <= self._forget_after else 0.0

    def _add_deadline(self, waiter: Waiter, watched: Watched) -> None:
        self._deadlines.add(waiter, watched)
        self._wake_timer_at(waiter.deadline)

    def _wake_timer_at(self, due: float) -> None:
        if due < self._timer_wakes_at and self._timer_sleep is not None:
            self._timer_wakes_at = -math.inf
            self._timer_sleep.cancel()

    @property
    def _may_read(self) -> bool:
        """True if another read may be sent beside those in flight."""
        return bool(self._idle_readers) or self._readers < self._max_readers

    def _wake_timer_for_reads(self) -> None:
        # A reader that becomes idle takes due reads itself, so the timer is needed only while one is idle.
        if self._may_read:
            self._wake_timer_at(self._planner.next_due)

    async def _run_timer(self) -> NoReturn:
        while True:
            # A timer may fire a little early.
            now = self._clock.monotonic() + TIMER_RESOLUTION_S
            if self._may_read:
                self._ready += self._planner.due(now)
                self._start_readers(len(self._ready))
            for waiter, watched in self._deadlines.pop_passed(now):
                waiter.future.set_exception(watched.timed_out(waiter.job))
            next_read = self._planner.next_due if self._may_read else math.inf
            self._timer_wakes_at = min(next_read, self._deadlines.next)
            with anyio.CancelScope() as self._timer_sleep:
                if self._timer_wakes_at == math.inf:
                    await anyio.sleep_forever()
                await self._clock.sleep(self._timer_wakes_at - now + TIMER_RESOLUTION_S)
            self._timer_sleep = None

    def _start_readers(self, count: int) -> None:
        """Let so many further readers take a read that is ready."""
        for _ in range(count):
            if self._idle_readers:
                turn = self._idle_readers.popleft()
                if not turn.done():
                    turn.set_result(None)
            elif self._tasks is not None and self._readers < self._max_readers:
                self._readers += 1
                self._tasks.start_soon(self._read_forever)

    async def _read_forever(self) -> NoReturn:
        while True:
            look = await self._next_read()
            held_until = self._planner.held_until(look.kind)
            if held_until > self._clock.monotonic():
                # The service has asked for a pause since this look was queued. Reads of the other kind go on.
                self._planner.postpone(look, held_until)
            elif isinstance(look, LookAtPage):
                await self._read_page(look)
            elif look.prediction_id in self._watched:
                await self._read(self._watched[look.prediction_id])
            self._wake_timer_for_reads()

    async def _next_read(self) -> Look:
        """Wait for a read to be due, and return it."""
        while not self._ready:
            self._ready += self._planner.due(self._clock.monotonic() + TIMER_RESOLUTION_S)
            # The first is for this reader.
            self._start_readers(len(self._ready) - 1)
            if not self._ready:
                turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle_readers.append(turn)
                self._wake_timer_for_reads()
                await turn
        return self._ready.popleft()

    async def _read(self, watched: Watched) -> None:
        prediction = watched.prediction
        match await self._reader.read(prediction.id, key=prediction.key, known_reply=watched.reply):
            case FailedRead(error):
                if watched.ended:
                    return
                watched.answers = answers = watched.answers or Answers(Kind.STATUS)
                if answers.add(error, self._clock.monotonic()):
                    self._end(watched, watched.unreadable(answers.raised(error, final=True)), cause=error)
                else:
                    # A passing error never fails a paid job.
                    self._read_again(watched, self._pause(Kind.STATUS, answers.count, error))
            case Reply(read, reply):
                watched.answers = None
                if watched.ended:
                    return
                if read is not None:
                    self._handle(watched, read, single=True)
                if not watched.ended:
                    watched.reply = reply
                    created = None if read is None else read.created_at
                    self._planner.mark_running(prediction.id, self._clock.monotonic(), created)
                    self._forget_if_overdue(watched)

    async def _read_page(self, look: LookAtPage) -> None:
        try:
            read = await self._reader.read_page(look.number, look.size, look.before)
        except UnsupportedError:
            self._planner.pages_unsupported(look, self._clock.monotonic())
            return
        match read:
            case FailedRead(error):
                delay = self._pause(Kind.PAGE, self._planner.page_failures + 1, error)
                now = self._clock.monotonic()
                self._planner.page_failed(look, now, now + delay)
            case page:
                self._planner.page_read(look, page, self._clock.monotonic())
                for item in page.items:
                    watched = self._watched.get(item.id)
                    if watched is not None:
                        watched.answers = None
                        self._handle(watched, item)
                        self._forget_if_overdue(watched)

    def _pause(self, kind: Kind, failures: int, error: ApiError | TransportError) -> float:
        """Return the seconds until the next attempt. `Retry-After` pauses all reads of the kind; a 429 slows all."""
        now = self._clock.monotonic()
        if isinstance(error, RateLimitedError):
            self._planner.rate.refused(now)
        hint = error.retry_after if isinstance(error, ApiError) else None
        if hint is not None:
            self._planner.hold(kind, now + min(hint, MAX_READ_PAUSE_S))
        return max(self._least, pause(failures, self._rng.random, hint, self._backoff))

    def _handle(self, watched: Watched, read: Prediction, *, single: bool = False, via_webhook: bool = False) -> None:
        """Handle a record of a prediction: from its single read, a page of the list, or a webhook."""
        last = watched.prediction
        if read.status is last.status and read.raw_status == last.raw_status:
            return
        if not (newer(last.status, read.status) or read.status is last.status):
            # An outdated record of a lagging replica.
            return
        if read.status is Status.COMPLETED and not read.outputs and not single:
            # Lists may omit outputs: a single read has them.
            self._planner.look_again(last.id, self._clock.monotonic())
            self._wake_timer_for_reads()
            return
        if read.id != last.id or read.key != last.key or not read.model:
            # A gateway may report another id than the one that was requested.
            read = changed(read, id=last.id, key=last.key, model=read.model or last.model)
        watched.prediction = read
        if read.status.ended:
            self._planner.mark_ended(read.id, self._clock.monotonic(), took=read.inference, via_webhook=via_webhook)
        self._observe(Changed, at=self._clock.now(), key=read.key or "", batch=watched.batch, prediction=read)
        for updates in watched.changes:
            updates.put_nowait(read)
        if read.status.ended:
            self._end(watched, None)

    def _read_again(self, watched: Watched, delay: float) -> None:
        if not self._forget_if_overdue(watched):
            self._planner.look_again(watched.prediction.id, self._clock.monotonic() + delay)

    def _forget_if_overdue(self, watched: Watched) -> bool:
        """Stop watching a prediction after `forget_after` seconds; return whether it is no longer watched."""
        if not watched.ended and self._clock.monotonic() - watched.since > self._forget_after:
            self._end(watched, watched.forgotten(self._forget_after))
        return watched.ended

    def _end(self, watched: Watched, error: KlingError | None, *, cause: BaseException | None = None) -> None:
        """Stop watching a prediction and notify its waiters: it has ended, or `error` says why it is not watched."""
        watched.ended = True
        if self._watched.pop(watched.prediction.id, None) is not None and error is not None:
            self._planner.forget(watched.prediction.id)
        if error is None:
            self._keep_ended(watched.prediction)
        elif cause is not None:
            error.__cause__ = cause
        watched.finish(error)

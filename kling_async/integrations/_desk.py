"""Jobs that outlive the requests they came with. No framework is needed here."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import anyio
import attrs

from kling_async._core import events
from kling_async._core.content import Content, recalled
from kling_async._core.errors import (
    ConfigurationError,
    KeyReusedError,
    KlingError,
    LedgerError,
    QueueFullError,
    SessionClosedError,
    SubmissionUncertainError,
    UnknownJobError,
)
from kling_async._core.prediction import Prediction, Status
from kling_async._core.states import Entry, Row, State
from kling_async._media import digest
from kling_async._recall import recall
from kling_async._session import fresh_key

from ._problems import answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from anyio.abc import TaskGroup

    from kling_async import KlingSession
    from kling_async._core.job import Job

log = logging.getLogger("kling_async")

JobState: TypeAlias = Literal["waiting", "running", "completed", "failed", "uncertain"]
"""Where a job stands, for whoever asked for it: a closed set. `uncertain` is an end that only the operator can mend."""

_ENDS: Final = frozenset({"completed", "failed", "uncertain"})
_LATEST: Final = 64
"""Changes that are kept of one job."""
_UNFINISHED: Final = ((State.SUBMITTED,), (State.INTENT, State.UNCERTAIN), (State.CLAIMED, State.PENDING))
_NOT_SENT: Final = frozenset({State.CLAIMED, State.PENDING})


# Not of attrs: FastAPI describes these in its schema, and answers with them.
@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """Where a job stands.

    Attributes:
        key: The job's name: what it is asked for by.
        state: Of a closed set, to act on.
        status: In more words, which may be new ones: the service's own while it runs.
        prediction_id: The paid id, once there is one.
        output: URL of the video, for 7 days.
        error: Why there is none: problem details (RFC 9457).
    """

    key: str
    state: JobState
    status: str
    prediction_id: str | None = None
    output: str | None = None
    error: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in _ENDS


@attrs.define(eq=False)
class _Course:
    """What has happened to one job so far.

    Attributes:
        told: The latest changes.
        count: How many there were.
        arrived: Is done when the job is written down.
        done: Its prediction, or why there is none.
        digest: Of its content.
    """

    told: deque[JobStatus]
    arrived: asyncio.Future[None]
    done: asyncio.Future[Prediction]
    digest: str = ""
    count: int = 1
    news: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def last(self) -> JobStatus:
        return self.told[-1]


@attrs.frozen
class Change:
    """One change of a job.

    Attributes:
        id: Its name, for `Last-Event-ID`.
        status: Where the job stands since then.
    """

    id: str
    status: JobStatus


class JobDesk:
    """Takes jobs from requests and sees them through, whoever goes away; `async with desk.open(kling):`.

    A job that was taken is in the ledger, pictures included (they are uploaded first). A desk over the same ledger
    goes on with it after a restart or a crash: what was accepted is watched, what is in doubt is reconciled, what was
    not sent is sent. What its caller was told had failed is not sent later.

    Args:
        batch: The name of its jobs in ledger and events; desks of one ledger need different ones.
        queue: Jobs that may wait to be accepted by the service; more are refused with `QueueFullError`.
        retry_after: Seconds after which those are told to ask again.
        kept: Ended jobs whose changes are remembered; older ones are read from the ledger.

    Raises:
        ConfigurationError: A number makes no sense.
    """

    def __init__(self, *, batch: str = "web", queue: int = 100, retry_after: float = 15.0, kept: int = 1000) -> None:
        for name, number in (("queue", queue), ("retry_after", retry_after), ("kept", kept)):
            if number <= 0:
                raise ConfigurationError(f"{name}: expected more than 0, got {number}")
        self._batch = batch
        self._queue = queue
        self._retry_after = retry_after
        self._kept = kept
        # Changes are numbered anew in every process: an id of another one is told from these by this.
        self._era = secrets.token_hex(4)
        self._courses: dict[str, _Course] = {}
        self._queued: set[str] = set()
        self._ended: deque[str] = deque()
        self._kling: KlingSession | None = None
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def open(self, kling: KlingSession) -> AsyncGenerator[None]:
        """Work while the block runs, on an open session; first of all go on with what an earlier desk left."""
        self._kling = kling
        kling.add_observer(self._observe)
        account = kling.account
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                async for item in recall(account.ledger, self._batch, account.clock, _UNFINISHED):
                    course = self._begin(item.row.key, item.content.digest)
                    course.arrived.set_result(None)
                    tasks.start_soon(self._see_through, course, item.row.key, item.job, item.content)
                yield
            finally:
                tasks.cancel_scope.cancel()
                self._tasks = None
                self._kling = None
                for course in self._courses.values():
                    if not course.done.done():
                        _refuse(course.done, SessionClosedError("the application is closing", key=course.last.key))
                    course.news.set()

    @property
    def kling(self) -> KlingSession:
        """The session.

        Raises:
            SessionClosedError: The desk is not open.
        """
        if self._kling is None:
            raise SessionClosedError("the desk is not open", advice="is the lifespan part of the application?")
        return self._kling

    @property
    def waiting(self) -> int:
        """Jobs that wait to be accepted."""
        return len(self._queued)

    async def submit(self, job: Job, *, key: str | None = None) -> JobStatus:
        """Take a job, and return when it is written down: it will be made, whatever becomes of the caller.

        The same key with the same job asks for nothing new: it is answered with where the job stands.

        Args:
            job: What to make.
            key: Its name; by default a fresh one that nobody guesses.

        Raises:
            QueueFullError: Too many wait already.
            InvalidJobError: A picture cannot be read, or the service would refuse it.
            KeyReusedError: The key names another job.
            KlingError: The picture could not be uploaded, or the job not be written down.
        """
        course = await self._take(job, key or fresh_key() + fresh_key())
        return course.last

    async def generate(self, job: Job, *, key: str | None = None) -> Prediction:
        """Take a job and wait for its video. Whoever stops waiting finds it again by its key.

        Raises:
            QueueFullError: Too many wait already.
            KlingError: As of `KlingSession.generate`.
        """
        course = await self._take(job, key or fresh_key() + fresh_key())
        return await asyncio.shield(course.done)

    async def get(self, key: str) -> JobStatus:
        """Where a job stands; of this process or of an earlier one with the same ledger.

        Raises:
            UnknownJobError: There is none of this key.
        """
        course = self._courses.get(key)
        # What is uncertain may have been settled meanwhile, by a webhook.
        if course is not None and course.arrived.done() and course.last.state != "uncertain":
            return course.last
        try:
            found = await self.kling.account.ledger.find(self._batch, key)
        except (LedgerError, ValueError):
            # Such as a key that no file can hold.
            found = None
        if found is None:
            raise UnknownJobError("no job has this key", key=ascii(key)[:80])
        return _as_written(found[0])

    async def follow(
        self, key: str, *, after: str | None = None, pulse: float = math.inf
    ) -> AsyncGenerator[Change | None, None]:
        """A job's changes up to its end, those first that happened already.

        Args:
            key: The job's name.
            after: The `id` of the last change that was seen: what came later follows. Of another process's, or of one
                that is not remembered any more, the job as it is now follows first.
            pulse: Seconds of silence after which None is given.

        Raises:
            UnknownJobError: There is none of this key.
        """
        status = await self.get(key)
        course = self._courses.get(key)
        if course is None:
            yield Change(f"{self._era}.0", status)
            return
        seen = self._seen(course, after)
        while self._kling is not None:
            news = course.news
            seen = max(seen, course.count - len(course.told))
            if seen < course.count:
                status = course.told[seen - course.count]
                seen += 1
                yield Change(f"{self._era}.{seen}", status)
            elif course.last.ended:
                return
            else:
                with anyio.move_on_after(pulse) as silence:
                    await news.wait()
                if silence.cancelled_caught:
                    yield None

    def has_seen_all(self, key: str, after: str | None) -> bool:
        """Whether a job has ended, and `after` is the id of its last change."""
        course = self._courses.get(key)
        return course is not None and course.last.ended and after == f"{self._era}.{course.count}"

    def _seen(self, course: _Course, after: str | None) -> int:
        if not after:
            return 0
        era, _, number = after.partition(".")
        if era == self._era and number.isascii() and number.isdecimal() and len(number) < 10:  # noqa: PLR2004 -- digits
            return min(int(number), course.count)
        return course.count - 1

    async def _take(self, job: Job, key: str) -> _Course:
        kling, tasks = self.kling, self._tasks
        assert tasks is not None  # noqa: S101 -- it is there with the session
        content = await kling.account.content(job)
        course = self._courses.get(key)
        if course is not None and not (course.last.state == "failed" and course.last.prediction_id is None):
            if course.digest != content.digest:
                raise KeyReusedError(key)
        else:
            if self.waiting >= self._queue:
                raise QueueFullError(
                    f"{self._queue} jobs are waiting already", retry_after=self._retry_after, job=job, key=key
                )
            course = self._begin(key, content.digest)
            tasks.start_soon(self._arrive, course, key, job, content)
        # In the job's own task: whoever else asks for the same key waits for it too, and nobody's leaving ends it.
        await asyncio.shield(course.arrived)
        return course

    def _begin(self, key: str, digest: str) -> _Course:
        loop = asyncio.get_running_loop()
        first = JobStatus(key=key, state="waiting", status="waiting")
        course = _Course(deque([first], _LATEST), loop.create_future(), loop.create_future(), digest)
        self._courses[key] = course
        self._queued.add(key)
        return course

    async def _arrive(self, course: _Course, key: str, job: Job, content: Content) -> None:
        """Write a job down with all that it needs."""
        account = self.kling.account
        try:
            uploads: dict[str, str] = {}
            for name in ("image", "end_image"):
                image: str | bytes | Path | None = getattr(job, name)
                if isinstance(image, bytes):
                    uploads[await digest(image)] = await account.images.url(image, field=name)
                elif isinstance(image, str):
                    uploads[image] = image
            await account.ledger.claim(self._batch, key, content=content, model=job.model, at=account.clock.now())
        except BaseException as error:
            # The caller is told; there is no job.
            self._queued.discard(key)
            if self._courses.get(key) is course:
                del self._courses[key]
            if not isinstance(error, Exception):
                _refuse(course.arrived, SessionClosedError("the application is closing; the job was not taken"))
                raise
            _refuse(course.arrived, error)
            if not isinstance(error, KlingError):
                log.exception("job %s could not be taken", key)
            return
        course.arrived.set_result(None)
        # Without the picture's bytes, which may be many while it waits.
        await self._see_through(course, key, recalled(content, uploads), content)

    async def _see_through(self, course: _Course, key: str, job: Job, content: Content) -> None:
        def accepted(prediction: Prediction) -> None:
            self._run(course, prediction)

        try:
            prediction = await self.kling.account.make(
                job,
                key=key,
                batch=self._batch,
                deadline=math.inf,
                content=content,
                recalled=True,
                accepted=accepted,
            )
        except SessionClosedError as error:
            # It goes on in the next process.
            _refuse(course.done, error)
        except KlingError as error:
            await self._fail(course, key, error)
        except Exception:
            # A mistake of ours, or of a provider or ledger of the user's: it must not end the application.
            log.exception("job %s broke", key)
            await self._fail(course, key, KlingError("the job broke", key=key, advice="see the log"))
        else:
            failure = prediction.failure(job=job)
            if failure is not None:
                await self._fail(course, key, failure)
                return
            self._tell(
                course, replace(course.last, state="completed", status=prediction.raw_status, output=prediction.output)
            )
            course.done.set_result(prediction)

    async def _fail(self, course: _Course, key: str, error: KlingError) -> None:
        """End a job without a video."""
        log.warning("job %s of the desk: %s", key, error)
        if not course.last.prediction_id:
            await self._forgo(key, error)
        self._tell(
            course,
            replace(
                course.last,
                state="uncertain" if isinstance(error, SubmissionUncertainError) else "failed",
                status="uncertain" if isinstance(error, SubmissionUncertainError) else "failed",
                prediction_id=error.prediction_id or course.last.prediction_id,
                error=answer(error).body,
            ),
        )
        _refuse(course.done, error)

    async def _forgo(self, key: str, error: KlingError) -> None:
        """See to it that what was told to have failed is not sent by the next process."""
        ledger = self.kling.account.ledger
        try:
            found = await ledger.find(self._batch, key)
            if found is not None and found[0].state in _NOT_SENT:
                at = self.kling.account.clock.now()
                ledger.note(Entry(batch=self._batch, key=key, state=State.SKIPPED, at=at, error=error.message))
        except LedgerError:
            log.exception("the ledger cannot be written")

    def _run(self, course: _Course, prediction: Prediction) -> None:
        self._tell(
            course,
            replace(course.last, state="running", status=prediction.raw_status, prediction_id=prediction.id),
        )

    def _observe(self, event: events.Event) -> None:
        if event.batch != self._batch:
            return
        course = self._courses.get(event.key)
        if course is None or course.last.ended:
            return
        match event:
            case events.Submitting():
                self._tell(course, replace(course.last, status="submitting"))
            case events.Refused(again=again) if again is not None:
                self._tell(course, replace(course.last, status="waiting"))
            case events.Uncertain():
                self._tell(course, replace(course.last, status="in doubt"))
            case events.Accepted(prediction=prediction):
                self._run(course, prediction)
            case events.Changed(prediction=prediction) if not prediction.status.ended:
                self._run(course, prediction)
            case events.Retrying():
                self._tell(course, replace(course.last, state="waiting", status="waiting", prediction_id=None))
            case _:
                pass

    def _tell(self, course: _Course, status: JobStatus) -> None:
        if status == course.last:
            return
        course.told.append(status)
        course.count += 1
        if status.state != "waiting":
            self._queued.discard(status.key)
        if status.ended:
            self._ended.append(status.key)
            if len(self._ended) > self._kept:
                oldest = self._ended.popleft()
                if oldest in self._courses and self._courses[oldest].last.ended:
                    del self._courses[oldest]
        # Who waits holds the old one.
        news, course.news = course.news, asyncio.Event()
        news.set()


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    future.set_exception(error)
    # Whoever asked may be gone.
    future.exception()


_WRITTEN: Mapping[State, tuple[JobState, str]] = {
    State.PENDING: ("waiting", "waiting"),
    State.CLAIMED: ("waiting", "waiting"),
    State.INTENT: ("waiting", "submitting"),
    State.SUBMITTED: ("running", Status.CREATED.value),
    State.COMPLETED: ("completed", Status.COMPLETED.value),
    State.DOWNLOADED: ("completed", Status.COMPLETED.value),
    State.FAILED: ("failed", "failed"),
    State.REJECTED: ("failed", "failed"),
    State.ABANDONED: ("failed", "failed"),
    State.SKIPPED: ("failed", "failed"),
    State.EXPIRED: ("failed", "expired"),
    State.UNCERTAIN: ("uncertain", "uncertain"),
}


def _as_written(row: Row) -> JobStatus:
    """Where a job stands by its row: the kind of its error is not written down."""
    state, status = _WRITTEN[row.state]
    error = None
    if state not in {"completed", "running", "waiting"}:
        error = {"type": "about:blank", "title": f"The job is {row.state.value}", "status": 502}
    return JobStatus(
        key=row.key,
        state=state,
        status=status,
        prediction_id=row.prediction_id,
        output=row.output if state == "completed" else None,
        error=error,
    )

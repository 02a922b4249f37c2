"""Job service: run jobs that outlive the web requests that submit them. Needs no web framework."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import attrs

from kling_async._core.content import Content, file_digests, recalled
from kling_async._core.job_key import Key, checked_batch, checked_key
from kling_async._core.prediction import Prediction
from kling_async._core.states import UNFINISHED_ORDER, Entry, State
from kling_async._log import log
from kling_async._loops import LoopBinding
from kling_async._session.job_run import JobRun
from kling_async._session.keys import claim_job, content_of_row
from kling_async._session.outcome import publish_finished, run_to_outcome
from kling_async._session.session import engine_of, fresh_key
from kling_async._submission.drain import Drain
from kling_async._tasks import is_cancelled
from kling_async.errors import (
    ConfigurationError,
    InvalidJobError,
    KeyReusedError,
    KlingError,
    LedgerError,
    Problem,
    QueueFullError,
    SessionClosedError,
    UnknownJobError,
)
from kling_async.ledger import page_reader
from kling_async.ledger._labels import label_texts
from kling_async.ledger._recall import recall

from ._callers import key_in_ledger, prefix_of, shown_as
from ._job_status import Change, JobPage, JobStatus, completed, failed, public_error, status_after, status_of_row

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from anyio.abc import TaskGroup

    from kling_async import KlingSession, events
    from kling_async._core.job import Job

_MAX_PAGE: Final = 1000
"""Most jobs of one page."""
_MAX_CHANGES: Final = 64
"""Latest changes kept in memory per job."""


@attrs.define(eq=False)
class _TrackedJob:
    """A job of this process, and its changes.

    Attributes:
        changes: The latest changes.
        recorded: Done when the job is in the ledger.
        done: The completed prediction, or the error.
        digest: Digest of the content.
        count: Number of all changes.
        changed: Set at the next change, and then replaced by a new event.
    """

    changes: deque[JobStatus]
    recorded: asyncio.Future[None]
    done: asyncio.Future[Prediction]
    digest: str = ""
    count: int = 1
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def last(self) -> JobStatus:
        return self.changes[-1]


class JobService:
    """Accepts jobs from web requests, and runs them to their ends even if clients disconnect.

    ```python
    service = JobService()
    async with KlingSession(ledger="jobs.db") as kling, service.open(kling):
        status = await service.submit(Job(prompt="She turns and smiles", image=photo))
    ```

    An accepted job is in the ledger, and its images are uploaded. After a restart or a crash, a service with the same
    ledger continues: it watches running predictions, settles submissions in doubt, and sends unsent jobs. A job that
    was reported to its client as failed is not sent later.

    Args:
        batch: Name of its jobs in ledger and events. Services with the same ledger need different names.
        queue: Greatest number of jobs that wait for acceptance by the provider; more are refused with
            `QueueFullError`.
        retry_after: Seconds after which refused clients should try again.
        kept: Number of ended jobs whose changes are kept in memory; older ones are read from the ledger.

    Raises:
        ConfigurationError: A number is not positive, or the name is no text.
    """

    def __init__(self, *, batch: str = "web", queue: int = 100, retry_after: float = 15.0, kept: int = 1000) -> None:
        for name, number in (("queue", queue), ("retry_after", retry_after), ("kept", kept)):
            if number <= 0:
                raise ConfigurationError(f"{name}: expected more than 0, got {number}")
        self._batch = checked_batch(batch)
        self._queue = queue
        self._retry_after = retry_after
        self._kept = kept
        # Prefix of change ids: every process numbers changes from 1.
        self._process_id = secrets.token_hex(4)
        self._jobs: dict[str, _TrackedJob] = {}
        # Callers, by the keys of jobs that wait for acceptance.
        self._queued: dict[str, str] = {}
        self._ended: deque[str] = deque()
        self._loop = LoopBinding("the job service")
        self._kling: KlingSession | None = None
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def open(self, kling: KlingSession) -> AsyncGenerator[None]:
        """Run jobs while the block runs, beginning with unfinished ones of an earlier process.

        Args:
            kling: An open session. Several processes need a ledger on disk to continue each other's jobs.

        Raises:
            LedgerError: The ledger cannot be read.
            ConfigurationError: The batch ignores other parameters than the session.
        """
        engine = engine_of(kling)
        await engine.contents.identity(self._batch)
        self._loop.bind()
        self._kling = kling
        kling.add_observer(self._observe)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                async for item in recall(engine.ledger, self._batch, engine.clock, UNFINISHED_ORDER):
                    tracked = self._track(item.row.key, item.content.digest, item.content.caller)
                    tracked.recorded.set_result(None)
                    tasks.start_soon(self._run, tracked, item.row.key, item.job, item.content)
                yield
            finally:
                tasks.cancel_scope.cancel()
                self._tasks = None
                self._kling = None
                for tracked in self._jobs.values():
                    if not tracked.done.done():
                        _fail(tracked.done, SessionClosedError("the application is closing", key=tracked.last.key))
                    tracked.changed.set()

    @property
    def kling(self) -> KlingSession:
        """The session.

        Raises:
            SessionClosedError: The service is not open.
        """
        if self._kling is None:
            raise SessionClosedError(
                "the job service is not open", advice="use it inside `async with service.open(kling):`, or its lifespan"
            )
        return self._kling

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for acceptance by the provider."""
        return len(self._queued)

    async def submit(self, job: Job, *, key: Key | None = None, caller: str | None = None) -> JobStatus:
        """Accept a job, and return its state as soon as it is in the ledger. It runs even if the caller is cancelled.

        Submitting the same job with the same key again returns the state of the first one.

        Args:
            job: The job.
            key: Key of the job: text, or a whole number. Default: 32 random hex digits, which cannot be guessed.
            caller: Name of the client that the key belongs to, as your login knows it. Callers have keys of their own:
                equal keys of two callers are two jobs, and the key of one is unknown to the other. Default: none.

        Raises:
            QueueFullError: The queue is full; nothing was sent.
            InvalidJobError: The key is no text or whole number, or an image cannot be read or would be refused.
            KeyReusedError: Another job has this key.
            KlingError: An image could not be uploaded, or the job could not be recorded; nothing was sent.
        """
        own = _checked_or_random(key)
        return shown_as((await self._accept(job, own, caller)).last, own)

    async def generate(self, job: Job, *, key: Key | None = None, caller: str | None = None) -> Prediction:
        """Accept a job and wait for its prediction. It runs even if the caller is cancelled; `get` has its state.

        Args:
            job: The job.
            key: Key of the job: text, or a whole number. Default: 32 random hex digits, which cannot be guessed.
            caller: Name of the client that the key belongs to, as your login knows it. Callers have keys of their own:
                equal keys of two callers are two jobs, and the key of one is unknown to the other. Default: none.

        Returns:
            The completed prediction.

        Raises:
            QueueFullError: The queue is full; nothing was sent.
            KlingError: As in `KlingSession.generate`.
        """
        tracked = await self._accept(job, _checked_or_random(key), caller)
        return await asyncio.shield(tracked.done)

    async def get(self, key: Key, *, caller: str | None = None) -> JobStatus:
        """Return the state of a job of this process, or of an earlier one with the same ledger.

        Args:
            key: Key of the job.
            caller: The caller that the key belongs to, as given to `submit`.

        Raises:
            UnknownJobError: No job of this caller has this key.
            LedgerError: The ledger cannot be read.
        """
        self._loop.check()
        try:
            own, name = checked_key(key), key_in_ledger(key, caller)
        except InvalidJobError:
            # No job can have it.
            raise UnknownJobError("no job has this key") from None
        return shown_as(await self._get(name, own), own)

    async def _get(self, name: str, own: str) -> JobStatus:
        known = self._known(name)
        if known is not None:
            return known
        found = await engine_of(self.kling).ledger.find(self._batch, name)
        if found is None:
            raise UnknownJobError("no job has this key", key=ascii(own)[:80])
        return status_of_row(found[0])

    def _known(self, name: str) -> JobStatus | None:
        """Return the state of a job of this process; None if the ledger knows it better."""
        tracked = self._jobs.get(name)
        # A webhook may have settled an uncertain job meanwhile.
        if tracked is None or not tracked.recorded.done() or tracked.last.state == "uncertain":
            return None
        return tracked.last

    async def page(
        self,
        *,
        caller: str | None = None,
        labels: Mapping[str, object] | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> JobPage:
        """Return a page of jobs, by their keys, of this process and of earlier ones with the same ledger.

        Args:
            caller: Only jobs of this caller; None for all jobs, each under its whole key in the ledger.
            labels: Only jobs with all of these labels (`Job.labels`), compared as texts.
            after: Only jobs after this one: `next` of the page before.
            limit: Greatest number of jobs, 1 to 1,000.

        Raises:
            InvalidJobError: The caller's name or the limit is none of these.
            ConfigurationError: A label is no text, number or truth value, or the session's ledger is not on disk: one
                in memory keeps no jobs that have ended.
            LedgerError: The ledger cannot be read.
        """
        self._loop.check()
        if not 1 <= limit <= _MAX_PAGE:
            raise InvalidJobError([Problem("limit", f"expected 1 to {_MAX_PAGE}, got {limit}")])
        read = page_reader(engine_of(self.kling).ledger)
        if read is None:
            raise ConfigurationError(
                "page: expected a session with a ledger on disk, got another one", advice="KlingSession(ledger=...)"
            )
        prefix, wanted = prefix_of(caller), label_texts(labels)
        reading = partial(
            read, self._batch, prefix=prefix, after=prefix + (after or ""), labels=wanted, limit=limit + 1
        )
        rows = await anyio.to_thread.run_sync(reading)
        found = [
            shown_as(self._known(row.key) or status_of_row(row), row.key.removeprefix(prefix)) for row in rows[:limit]
        ]
        return JobPage(jobs=found, next=found[-1].key if len(rows) > limit else None)

    async def follow(
        self, key: Key, *, caller: str | None = None, after: str | None = None, pulse: float = math.inf
    ) -> AsyncGenerator[Change | None, None]:
        """Yield a job's changes up to its end, beginning with earlier ones.

        Args:
            key: Key of the job.
            caller: The caller that the key belongs to.
            after: Id of the last change received; only later ones are yielded. If it comes from another process, or is
                no longer in memory, the present state is yielded first.
            pulse: Seconds without a change after which None is yielded.

        Raises:
            UnknownJobError: No job has this key.
        """
        status = await self.get(key, caller=caller)
        own = status.key
        tracked = self._jobs.get(key_in_ledger(own, caller))
        if tracked is None:
            yield Change(f"{self._process_id}.0", status)
            return
        seen = self._received(tracked, after)
        while self._kling is not None:
            changed = tracked.changed
            seen = max(seen, tracked.count - len(tracked.changes))
            if seen < tracked.count:
                status = tracked.changes[seen - tracked.count]
                seen += 1
                yield Change(f"{self._process_id}.{seen}", shown_as(status, own))
            elif tracked.last.ended:
                return
            else:
                with anyio.move_on_after(pulse) as silence:
                    await changed.wait()
                if silence.cancelled_caught:
                    yield None

    def has_seen_all(self, key: Key, after: str | None, *, caller: str | None = None) -> bool:
        """Return whether a job has ended and `after` is the id of its last change.

        Args:
            key: Key of the job.
            after: Id of the last change received; None without one.
            caller: The caller that the key belongs to.
        """
        tracked = self._jobs.get(key_in_ledger(key, caller))
        return tracked is not None and tracked.last.ended and after == f"{self._process_id}.{tracked.count}"

    def _received(self, tracked: _TrackedJob, after: str | None) -> int:
        """Return the number of changes that a client with the last id `after` has received."""
        if not after:
            return 0
        process_id, _, number = after.partition(".")
        if process_id == self._process_id and number.isascii() and number.isdecimal() and len(number) < 10:  # noqa: PLR2004 -- digits
            return min(int(number), tracked.count)
        return tracked.count - 1

    async def _accept(self, job: Job, own: str, caller: str | None) -> _TrackedJob:
        tasks = self._tasks
        engine = engine_of(self.kling)
        key = key_in_ledger(own, caller)
        assert tasks is not None  # noqa: S101 -- it is there with the session
        content = await engine.contents.read(job, self._batch)
        if caller is not None:
            content = attrs.evolve(content, caller=caller)
        tracked = self._jobs.get(key)
        if tracked is not None and not (tracked.last.state == "failed" and tracked.last.prediction_id is None):
            if tracked.digest != content.digest:
                same = await content_of_row(engine.ledger, self._batch, key, content)
                if same is None or tracked.digest != same.digest:
                    raise KeyReusedError(own)
        else:
            if self.waiting >= self._queue:
                raise QueueFullError(
                    f"the queue is full: {self._queue} jobs are waiting",
                    retry_after=self._retry_after,
                    job=job,
                    key=own,
                )
            name = content.caller
            waiting = sum(each == name for each in self._queued.values())
            engine.callers.check_queue(name, waiting, retry_after=self._retry_after, job=job, key=own)
            tracked = self._track(key, content.digest, name)
            tasks.start_soon(self._record, tracked, key, job, content)
        # In a separate task, because concurrent requests with the same key wait for it, and none may cancel it.
        await asyncio.shield(tracked.recorded)
        return tracked

    def _track(self, key: str, digest: str, caller: str) -> _TrackedJob:
        loop = asyncio.get_running_loop()
        first = JobStatus(key=key, state="waiting", status="waiting")
        tracked = _TrackedJob(deque([first], _MAX_CHANGES), loop.create_future(), loop.create_future(), digest)
        self._jobs[key] = tracked
        self._queued[key] = caller
        return tracked

    async def _record(self, tracked: _TrackedJob, key: str, job: Job, content: Content) -> None:
        """Upload the job's files, record it, and run it."""
        engine = engine_of(self.kling)
        try:
            uploads: dict[str, str] = {}
            files = job.files
            for place, sha256 in file_digests(content).items():
                # None for a frame of a video file, which is taken when the job is sent.
                file = files.get(place)
                if isinstance(file, bytes):
                    uploads[sha256] = await engine.images.url(file, field=place, sha256=sha256)
                elif isinstance(file, str):
                    uploads[sha256] = file
            await claim_job(engine.ledger, self._batch, key, content=content, model=job.model, at=engine.clock.now())
        except BaseException as error:
            # The job was not accepted: only the callers receive the error.
            self._queued.pop(key, None)
            if self._jobs.get(key) is tracked:
                del self._jobs[key]
            if not isinstance(error, Exception):
                if not isinstance(error, asyncio.CancelledError) or is_cancelled():
                    _fail(tracked.recorded, SessionClosedError("the application is closing; the job was not accepted"))
                    raise
                stray = KlingError("recording the job raised CancelledError; nothing was sent", key=key)
                stray.__cause__, error = error, stray
            _fail(tracked.recorded, error)
            if not isinstance(error, KlingError):
                log.exception("job %s could not be recorded; nothing was sent", key)
            return
        tracked.recorded.set_result(None)
        # With URLs instead of the files' bytes, which would take memory while it waits.
        await self._run(tracked, key, recalled(content, uploads), content)

    async def _run(self, tracked: _TrackedJob, key: str, job: Job, content: Content) -> None:
        """Run a job to its end."""
        # No deadline: waiting costs nothing. Its own drain: an account-wide error ends this job only, because the
        # account may be topped up before the next one.
        run = JobRun(job=job, key=key, drain=Drain(), batch=self._batch, content=content, recalled=True)
        outcome = await run_to_outcome(engine_of(self.kling), run)
        publish_finished(engine_of(self.kling), run, outcome)
        error, prediction = outcome.error, outcome.prediction
        if isinstance(error, SessionClosedError):
            # The next process continues the job.
            _fail(tracked.done, error)
        elif error is not None:
            await self._end_failed(tracked, key, public_error(error))
        elif prediction is not None:
            self._publish(tracked, completed(tracked.last, prediction))
            tracked.done.set_result(prediction)

    async def _end_failed(self, tracked: _TrackedJob, key: str, error: KlingError) -> None:
        """End a job without a video."""
        log.warning("job %s of the job service: %s", key, error)
        if not tracked.last.prediction_id:
            await self._record_skipped(key, error)
        self._publish(tracked, failed(tracked.last, error))
        _fail(tracked.done, error)

    async def _record_skipped(self, key: str, error: KlingError) -> None:
        """Record a job that was reported as failed as skipped, so that the next process does not send it."""
        engine = engine_of(self.kling)
        try:
            found = await engine.ledger.find(self._batch, key)
            if found is not None and found[0].state.waiting:
                at = engine.clock.now()
                engine.ledger.note(Entry(batch=self._batch, key=key, state=State.SKIPPED, at=at, error=error.message))
        except LedgerError:
            log.exception("the ledger cannot be written: after a restart job %s, reported as failed, may be sent", key)

    def _observe(self, event: events.Event) -> None:
        if event.batch != self._batch:
            return
        tracked = self._jobs.get(event.key)
        if tracked is None or tracked.last.ended:
            return
        self._publish(tracked, status_after(tracked.last, event))

    def _publish(self, tracked: _TrackedJob, status: JobStatus) -> None:
        if status == tracked.last:
            return
        tracked.changes.append(status)
        tracked.count += 1
        if status.state != "waiting":
            self._queued.pop(status.key, None)
        if status.ended:
            self._ended.append(status.key)
            if len(self._ended) > self._kept:
                oldest = self._ended.popleft()
                if oldest in self._jobs and self._jobs[oldest].last.ended:
                    del self._jobs[oldest]
        # Followers wait for the old event.
        changed, tracked.changed = tracked.changed, asyncio.Event()
        changed.set()


def _checked_or_random(key: Key | None) -> str:
    """Return a key as text, or one that cannot be guessed for None."""
    return fresh_key() + fresh_key() if key is None else checked_key(key)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    future.set_exception(error)
    # Retrieved here, because the caller may have disconnected.
    future.exception()

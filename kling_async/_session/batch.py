"""Batches: run many jobs with bounded memory."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence, Sized
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Self, TypeAlias, cast

import anyio
import attrs

from kling_async._core import html
from kling_async._core.budget import Budget
from kling_async._core.clock import Clock
from kling_async._core.job import Job
from kling_async._core.job_key import Key, checked_key
from kling_async._core.picture_names import NameCounter, UniqueNames, picture_name
from kling_async._observers import Observers
from kling_async._submission.drain import Drain
from kling_async._tasks import is_cancelled
from kling_async.errors import AlreadyPaidError, KlingError, SkippedError, SubmissionUncertainError
from kling_async.ledger._recall import Recalled, recall

from .chains import WAITING_PER_WINDOW, Chains, pairs_of
from .job_run import JobRun
from .keys import KeyAssigner
from .outcome import publish_finished, run_to_outcome
from .seen import look_up
from .videos import require_decoder

if TYPE_CHECKING:
    from kling_async._core.content import Content, Identity
    from kling_async._core.prediction import Outcome, Prediction, SavedFile
    from kling_async._core.seen import Seen
    from kling_async.storage import Outputs

    from .engine import SessionEngine

Item: TypeAlias = Job | tuple[Key | None, Job]
Jobs: TypeAlias = Iterable[Item] | AsyncIterable[Item] | Mapping[str, Job] | Mapping[int, Job]
"""Input of a batch: jobs, pairs of a key and a job, or a mapping of keys to jobs. Keys are texts or whole numbers."""

LATEST_SHOWN = 6
"""Saved videos that a batch shows in a notebook."""
MAX_KEYS_IN_MEMORY = 100_000
"""Keys kept for finding duplicates in a batch without a ledger on disk."""


@attrs.frozen(kw_only=True)
class BatchStatistics:
    """Counts of a batch's jobs by state, at one moment.

    Attributes:
        read: Jobs read from the input.
        waiting: Jobs not accepted yet: they wait for the job that they continue, an image upload, a slot or the rate
            limit.
        running: Jobs accepted, until they have ended and are saved.
        ready: Jobs that ended and whose outcomes were not consumed yet.
        completed: Jobs that succeeded.
        failed: Jobs that did not succeed, including uncertain and skipped ones.
        uncertain: Failed jobs that may have been accepted: their reply was lost.
        skipped: Failed jobs that were never submitted, because the batch had stopped or was drained.
        spent: USD of the accepted jobs by the price list; jobs without a known price count as 0.
        exhausted: True once nothing more is read from the input.
    """

    read: int
    waiting: int
    running: int
    ready: int
    completed: int
    failed: int
    uncertain: int
    skipped: int
    spent: Decimal
    exhausted: bool


class Batch(anyio.AsyncContextManagerMixin):
    """A run over many jobs. Made by `KlingSession.batch`; enter it once with `async with`, then iterate.

    Iteration yields one `Outcome` per job; `completed` yields the predictions of the successful ones.

    - A failed job is an outcome with an error, not an exception.
    - An account-wide error (API key, balance, budget) stops the batch: running jobs finish, and the rest come back as
      outcomes with a `SkippedError`.
    - With `seen="stop"`, a job that another batch of the ledger has paid for stops the batch likewise.
    - An exception of the input is raised by the iteration, after the outcomes of the jobs before it.
    - Leaving the block early cancels jobs that were not sent. Accepted predictions go on, and the session polls them.
      To stop early and still get all paid videos, call `drain` and continue to iterate.

    Attributes:
        name: Name of the batch.
        total: Number of jobs of the input; None if it has no length.
        failures: Latest outcomes that did not succeed.
    """

    def __init__(
        self,
        engine: SessionEngine,
        jobs: Jobs | None,
        *,
        name: str,
        budget: Budget | None,
        seen: Seen,
        save_to: Outputs | None,
        ordered: bool,
        window: int,
        deadline: float,
        failures_kept: int,
    ) -> None:
        self.name = name
        self.total = len(jobs) if isinstance(jobs, Sized) else None
        self.failures: deque[Outcome] = deque(maxlen=failures_kept)
        self._drain = Drain()
        self._engine = engine
        self._jobs = jobs
        self._budget = budget
        self._seen: Seen = seen
        self._save_to = save_to
        self._ordered = ordered
        self._deadline = deadline
        # The reader of the input waits for free places.
        self._window_free = window
        self._window = window
        self._window_opens: asyncio.Future[None] | None = None
        # A batch over a ledger on disk may be run again, so every key must stay the same.
        self._keys = KeyAssigner(math.inf if engine.ledger.durable else MAX_KEYS_IN_MEMORY)
        self._unique_names: UniqueNames | None = None
        # Those that were read, by key, without those that are refused: these may have the key of another.
        self._runs: dict[str, JobRun] = {}
        self._ready: list[tuple[int, Outcome]] = []
        self._arrived = 0
        self._consumed = 0
        self._changed = asyncio.Event()
        self._entered = False
        self._left = False
        self._exhausted = False
        self._input_error: Exception | None = None
        self._read = 0
        self._completed = self._failed = self._uncertain = self._skipped = 0
        self._spent = Decimal(0)
        self._latest: deque[SavedFile] = deque(maxlen=LATEST_SHOWN)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        self._engine.loop.check()
        if self._entered:
            raise RuntimeError("expected a batch that was not entered before; make another one by kling.batch(...)")
        self._jobs, parents = pairs_of(self._jobs)
        if parents:
            require_decoder()
        self._entered = True
        self._chains = Chains(
            self._engine,
            self.name,
            keys=self._keys,
            runs=self._runs,
            drain=self._drain,
            parents=parents,
            most=WAITING_PER_WINDOW * self._window,
        )
        await self._engine.enter(self.name, self._budget)
        if self._jobs is None:
            await self._engine.require(self.name)
        identity = await self._engine.contents.identity(self.name)
        if self._seen == "stop":
            await self._stop_if_seen(identity)
        if self._save_to is not None and self._jobs is not None:
            self._unique_names = await anyio.to_thread.run_sync(unique_names, self._jobs)
        try:
            async with self._reading():
                yield self
        finally:
            await self._chains.close()

    @asynccontextmanager
    async def _reading(self) -> AsyncGenerator[None]:
        """Read the input and run its jobs while the body consumes their outcomes."""
        raised: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._feed)
            try:
                yield
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 -- raised again below, not wrapped in a group
                raised = error
            finally:
                tasks.cancel_scope.cancel()
                self._left = True
                self._jobs = ()
                self._exhausted = True
                self._changed.set()
        if raised is not None:
            raise raised

    def __aiter__(self) -> Self:
        if not self._entered:
            raise RuntimeError("enter the batch first: `async with kling.batch(...) as batch:`")
        return self

    async def __anext__(self) -> Outcome:
        self._engine.loop.check()
        while True:
            outcome = self._take()
            if outcome is not None:
                return outcome
            if self._left or (self._exhausted and self._consumed == self._read):
                if self._input_error is not None:
                    error, self._input_error = self._input_error, None
                    raise error
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()

    async def completed(self) -> AsyncIterator[Prediction]:
        """Yield the predictions of successful jobs, each with its key. `failures` has the latest other outcomes."""
        async for outcome in self:
            if outcome.ok and outcome.prediction is not None:
                yield outcome.prediction

    @property
    def stopped(self) -> KlingError | None:
        """The error that stopped the batch, account-wide or of a job that was paid for; None while there is none."""
        return self._drain.stopped

    @property
    def drained(self) -> bool:
        """True after `drain` was called."""
        return self._drain.drained

    def drain(self) -> None:
        """Submit nothing more, and end the iteration once all accepted jobs have ended. Returns at once.

        The input is not read any further. Jobs that were read and not sent (they wait for an upload, a slot, the rate
        limit or a retry) become outcomes with a `SkippedError`. The ledger keeps them as they are, so that the batch
        can be run again or resumed. Accepted jobs run to their ends, are saved, and are yielded.

        Call it in the session's event loop; from another thread use `loop.call_soon_threadsafe(batch.drain)`.

        Raises:
            WrongLoopError: It was called elsewhere.
        """
        self._engine.loop.check()
        self._drain.drain()

    def statistics(self) -> BatchStatistics:
        """Return counts of the jobs by state."""
        running = sum(run.prediction_id is not None for run in self._runs.values())
        return BatchStatistics(
            read=self._read,
            waiting=len(self._runs) - running,
            running=running,
            ready=len(self._ready),
            completed=self._completed,
            failed=self._failed,
            uncertain=self._uncertain,
            skipped=self._skipped,
            spent=sum((run.cost for run in self._runs.values() if run.cost is not None), self._spent),
            exhausted=self._exhausted,
        )

    def _repr_html_(self) -> str:
        """Return progress, counts, and the latest saved videos and errors, by which a notebook shows the batch."""
        counts = self.statistics()
        rows: list[tuple[str, object]] = [
            (name, getattr(counts, name)) for name in ("waiting", "running", "completed", "failed")
        ]
        parts = [
            html.heading(f"batch {self.name}" if self.name else "batch"),
            html.bar(counts.completed + counts.failed, self.total or (counts.read if counts.exhausted else 0)),
            html.table([*rows, ("spent", f"${counts.spent:.2f}")]),
            *(html.video(each.location, each.bytes) for each in self._latest),
            *(html.note(f"{each.key}: {each.error}") for each in list(self.failures)[-LATEST_SHOWN:]),
        ]
        return "".join(parts)

    async def _stop_if_seen(self, identity: Identity) -> None:
        """Raise if the input is a manifest, and another batch of the ledger has paid for jobs of it.

        Raises:
            AlreadyPaidError: It has.
        """
        # Imported here: most inputs are none.
        from kling_async.manifest import Manifest  # noqa: PLC0415 -- see above

        if not isinstance(self._jobs, Manifest):
            return
        engine = self._engine
        found = await look_up(engine.ledger, self._jobs, self.name, identity=identity, provider=engine.provider.name)
        if found.jobs:
            raise found.error()

    async def _feed(self) -> None:
        """Read jobs from the input as the window allows, and return when all have ended."""
        # Not anyio's task group: it takes 2 KB more per task, and there may be thousands.
        async with asyncio.TaskGroup() as tasks:
            try:
                await self._read_all(tasks)
            except asyncio.CancelledError as stray:
                if is_cancelled():
                    raise
                self._input_error = KlingError(
                    "the input of the batch raised CancelledError, and nobody had cancelled the batch; no more of it "
                    "is read, and the jobs before it have their outcomes",
                    advice="correct the iterator, then run the batch again: a ledger pays for no job twice",
                )
                self._input_error.__cause__ = stray
            except Exception as error:  # noqa: BLE001 -- the input is the caller's, and may raise anything
                self._input_error = error
            finally:
                self._exhausted = True
                self._changed.set()

    async def _read_all(self, tasks: asyncio.TaskGroup) -> None:
        engine, index = self._engine, 0
        if self._save_to is not None:
            await engine.saver.save_expiring(self.name, self._save_to)
        jobs = recall(engine.ledger, self.name, engine.clock) if self._jobs is None else iterate(self._jobs)
        async with aclosing(jobs) as items:
            while True:
                try:
                    with self._drain:
                        await self._wait_for_window()
                        item = await anext(items)
                except (StopAsyncIteration, SkippedError):
                    break
                run, refused = await self._run_of(item, index)
                self._read += 1
                index += 1
                if refused is None:
                    self._runs[run.key] = run
                    if run.link is not None and run.link.waits:
                        # What it continues may need its place in the window.
                        self._window_free += 1
                        continue
                tasks.create_task(self._run(tasks, run, refused))

    async def _wait_for_window(self) -> None:
        """Wait for a free place in the window, and occupy it."""
        while self._window_free <= 0:
            self._engine.full_windows += 1
            self._window_opens = asyncio.get_running_loop().create_future()
            try:
                await self._window_opens
            finally:
                self._window_opens = None
                self._engine.full_windows -= 1
        self._window_free -= 1

    async def _run_of(self, item: Item | Recalled, index: int) -> tuple[JobRun, KlingError | None]:
        """Return the run of an item of the input, and the error of a job that cannot be run.

        Raises:
            TypeError: The item is no job.
        """
        if isinstance(item, Recalled):
            run = self._new_run(item.job, item.row.key, item.content, index, recalled=True)
            return run, None if item.content.frames is None else await self._chains.join(run)
        given, job = item if isinstance(item, tuple) else (None, item)
        if not isinstance(job, Job):
            raise TypeError(f"item {index} of the batch: expected a Job, got {type(job).__name__}")
        key = None
        try:
            key = None if given is None else checked_key(given, position=index)
            content = await self._engine.contents.read(job, self.name, self._chains.digest_of)
        except KlingError as error:
            if key is not None:
                self._chains.refuse(key)
            return self._new_run(job, key or f"unreadable-{index}", None, index), error
        assigned = self._keys.assign(key, content, index)
        run = self._new_run(job, assigned.key, content, index)
        run.named_alone = self._unique_names is not None and picture_name(job.image) in self._unique_names
        if content.frames is not None and assigned.duplicate is None:
            return run, await self._chains.join(run)
        return run, assigned.duplicate

    def _new_run(self, job: Job, key: str, content: Content | None, index: int, *, recalled: bool = False) -> JobRun:
        return JobRun(
            job=job,
            key=key,
            batch=self.name,
            deadline=self._deadline,
            drain=self._drain,
            budget=self._budget,
            seen=self._seen,
            content=content,
            recalled=recalled,
            index=index,
        )

    async def _run(self, tasks: asyncio.TaskGroup, run: JobRun, refused: KlingError | None) -> None:
        index = run.index
        try:
            outcome = await run_to_outcome(self._engine, run, save_to=self._save_to, refused=refused, index=index)
        except BaseException:
            if run.link is not None:
                await run.link.release()
            raise
        finally:
            known = self._runs.get(run.key) is run
            if known:
                del self._runs[run.key]
            self._spent += run.cost or 0
        if self._seen == "stop" and isinstance(outcome.error, AlreadyPaidError) and self._drain.stopped is None:
            # It is probably the same list under another name: the rest would be refused one by one.
            self._drain.stopped = outcome.error
        self._deliver(index, outcome)
        publish_finished(self._engine, run, outcome)
        for follower, skipped in self._chains.end(run, outcome) if known else ():
            # Whatever the window: a film must not wait for what begins after it.
            self._window_free -= 1
            tasks.create_task(self._run(tasks, follower, skipped))
        if run.link is not None:
            await run.link.release()

    def _deliver(self, index: int, outcome: Outcome) -> None:
        if outcome.ok:
            self._completed += 1
            if outcome.saved is not None:
                self._latest.append(outcome.saved)
        else:
            self._failed += 1
            self._uncertain += isinstance(outcome.error, SubmissionUncertainError)
            self._skipped += isinstance(outcome.error, SkippedError)
            self.failures.append(outcome)
        heapq.heappush(self._ready, (index if self._ordered else self._arrived, outcome))
        self._arrived += 1
        self._changed.set()

    def _take(self) -> Outcome | None:
        if not self._ready or (self._ordered and self._ready[0][0] != self._consumed):
            return None
        _, outcome = heapq.heappop(self._ready)
        self._consumed += 1
        self._window_free += 1
        if self._window_opens is not None and not self._window_opens.done():
            self._window_opens.set_result(None)
        return outcome


def unique_names(jobs: Jobs) -> UniqueNames | None:
    """Return the names of pictures that one job of an input has; None for an input that cannot be read twice."""
    known = getattr(jobs, "unique_names", None)
    if isinstance(known, UniqueNames):
        # Of a manifest.
        return known
    if not isinstance(jobs, (list, tuple)):
        return None
    names = NameCounter()
    for item in cast("Sequence[object]", jobs):
        key, job = item if isinstance(item, tuple) else (None, item)
        names.add(str(key) if key is not None else picture_name(getattr(job, "image", None)))
    return names.unique()


@attrs.frozen(kw_only=True)
class Scene:
    """Parts of a session that a display of a batch needs beside its events.

    Attributes:
        provider: Name of the provider, for list prices.
        clock: Clock of the session.
        total: Number of jobs of the input; None if it has no length.
        budget: Budget of the batch, or else of the session; None without one.
        observers: Observers of the session.
    """

    provider: str
    clock: Clock
    total: int | None
    budget: Budget | None
    observers: Observers


def scene_of(batch: Batch) -> Scene:
    """Return what a display of a batch needs of its session, for other modules of this package."""
    engine = batch._engine  # noqa: SLF001 -- the same module
    return Scene(
        provider=engine.provider.name,
        clock=engine.clock,
        total=batch.total,
        budget=engine.money.budget if batch._budget is None else batch._budget,  # noqa: SLF001 -- the same module
        observers=engine.observe,
    )


async def iterate(jobs: Jobs) -> AsyncGenerator[Item, None]:
    """Yield the items of any kind of input."""
    if isinstance(jobs, Mapping):
        for key, job in cast("Mapping[Key, Job]", jobs).items():
            yield key, job
    elif isinstance(jobs, AsyncIterable):
        items = aiter(jobs)
        try:
            async for item in items:
                yield item
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()
    else:
        for item in jobs:
            yield item

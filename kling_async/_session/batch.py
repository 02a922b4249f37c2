"""A bounded run over many jobs, entered and then iterated."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Self, TypeAlias, cast

import anyio
import attrs

from kling_async._core.job import Job
from kling_async._submission.drain import Drain
from kling_async.errors import KlingError, SkippedError, SubmissionUncertainError
from kling_async.ledger._recall import Recalled, recall

from .job_run import JobRun
from .keys import KeyAssigner
from .outcome import run_to_outcome

if TYPE_CHECKING:
    from kling_async._core.budget import Budget
    from kling_async._core.content import Content
    from kling_async._core.prediction import Outcome, Prediction
    from kling_async.storage import Outputs

    from .engine import SessionEngine

Item: TypeAlias = Job | tuple[str | None, Job]
Jobs: TypeAlias = Iterable[Item] | AsyncIterable[Item] | Mapping[str, Job]
"""What a batch takes: jobs, pairs of a key and a job, or a mapping of keys to jobs."""

MAX_KEYS_IN_MEMORY = 100_000
"""Keys that a batch without a ledger on disk remembers for finding duplicates."""


@attrs.frozen(kw_only=True)
class BatchStatistics:
    """Where the jobs of a batch are, at one moment.

    Attributes:
        read: Jobs taken from the input.
        waiting: Of these: not accepted yet (image, slot, rate).
        running: Accepted and not ended, or ended and being saved.
        ready: Ended, and not taken by the consumer.
        completed: Ended well.
        failed: Ended otherwise; uncertain and skipped ones are counted here too.
        uncertain: Of the failed: it is not known whether they were accepted.
        skipped: Of the failed: never submitted, because admission had stopped or the batch was drained.
        spent: USD of the accepted jobs by the price list; jobs without a known price count nothing.
        exhausted: Whether the input is at its end, or is not read any more.
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
    """A named, bounded run over many jobs. Made by `KlingSession.batch`.

    Iterating yields one `Outcome` per job; `completed()` yields the predictions of those that went well. A failed job
    is a value; what concerns the whole account (key, balance) stops admission, and the jobs after it are outcomes with
    a `SkippedError`. What the input itself raises is raised by the iteration, after the outcomes of the jobs before it.
    Leaving the block early detaches: the session goes on watching what was paid for. To end a batch before its end and
    have what was paid for, `drain` it and go on iterating.

    Attributes:
        name: The batch's name.
        failures: The latest outcomes that did not go well.
    """

    def __init__(
        self,
        engine: SessionEngine,
        jobs: Jobs | None,
        *,
        name: str,
        budget: Budget | None,
        save_to: Outputs | None,
        ordered: bool,
        window: int,
        deadline: float,
        failures_kept: int,
    ) -> None:
        self.name = name
        self.failures: deque[Outcome] = deque(maxlen=failures_kept)
        self._drain = Drain()
        self._engine = engine
        self._jobs = jobs
        self._budget = budget
        self._save_to = save_to
        self._ordered = ordered
        self._deadline = deadline
        # Free places in the window, and the one who waits for one: the reader of the input.
        self._places = window
        self._place_free: asyncio.Future[None] | None = None
        # A batch over a ledger on disk may be run again, so that every key counts.
        self._keys = KeyAssigner(math.inf if engine.ledger.durable else MAX_KEYS_IN_MEMORY)
        self._runs: set[JobRun] = set()
        self._ready: list[tuple[int, Outcome]] = []
        self._arrived = 0
        self._taken = 0
        self._news = asyncio.Event()
        self._entered = False
        self._left = False
        self._exhausted = False
        self._input_error: Exception | None = None
        self._read = 0
        self._completed = self._failed = self._uncertain = self._skipped = 0
        self._spent = Decimal(0)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        if self._entered:
            raise RuntimeError("a batch is entered once")
        self._entered = True
        await self._engine.enter(self.name, self._budget)
        if self._jobs is None:
            await self._engine.require(self.name)
        raised: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._feed)
            try:
                yield self
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 -- raised again below, not wrapped in a group
                raised = error
            finally:
                tasks.cancel_scope.cancel()
                self._left = True
                self._jobs = ()
                self._exhausted = True
                self._news.set()
        if raised is not None:
            raise raised

    def __aiter__(self) -> Self:
        if not self._entered:
            raise RuntimeError("enter the batch first: `async with kling.batch(...) as batch:`")
        return self

    async def __anext__(self) -> Outcome:
        while True:
            outcome = self._take()
            if outcome is not None:
                return outcome
            if self._left or (self._exhausted and self._taken == self._read):
                if self._input_error is not None:
                    error, self._input_error = self._input_error, None
                    raise error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    async def completed(self) -> AsyncIterator[Prediction]:
        """The predictions that went well, each with its key; the other outcomes are in `failures`."""
        async for outcome in self:
            if outcome.ok and outcome.prediction is not None:
                yield outcome.prediction

    @property
    def stopped(self) -> KlingError | None:
        """Why admission stopped, or None."""
        return self._drain.stopped

    @property
    def drained(self) -> bool:
        """Whether `drain` was called."""
        return self._drain.drained

    def drain(self) -> None:
        """Send nothing more, and end when what was accepted has ended.

        Nothing more is read from the input. What was read and stands before its paid request (its upload, a slot, the
        rate, a pause, the next attempt after a refusal) is let go: its outcome is a `SkippedError`, and in the ledger
        it stays as it is, so that the batch can be run again or resumed. What was sent is followed to its end, saved
        and yielded; then the iteration ends. Nothing is waited for here, and a second call does nothing.

        Call it from any task or callback of the session's loop; from another thread by `loop.call_soon_threadsafe`.
        """
        self._drain.drain()

    def statistics(self) -> BatchStatistics:
        """Return where the jobs are now."""
        running = sum(run.prediction_id is not None for run in self._runs)
        return BatchStatistics(
            read=self._read,
            waiting=len(self._runs) - running,
            running=running,
            ready=len(self._ready),
            completed=self._completed,
            failed=self._failed,
            uncertain=self._uncertain,
            skipped=self._skipped,
            spent=sum((run.cost for run in self._runs if run.cost is not None), self._spent),
            exhausted=self._exhausted,
        )

    async def _feed(self) -> None:
        """Take jobs from the input, each when the window has a place for it, and return when all have ended."""
        # One of asyncio's own: a task in a group of anyio's takes 2 KB more, and there may be thousands.
        async with asyncio.TaskGroup() as tasks:
            try:
                await self._read_all(tasks)
            except Exception as error:  # noqa: BLE001 -- the input is the caller's, and so is what it raises
                self._input_error = error
            finally:
                self._exhausted = True
                self._news.set()

    async def _read_all(self, tasks: asyncio.TaskGroup) -> None:
        engine, index = self._engine, 0
        if self._save_to is not None:
            await engine.saver.rescue(self.name, self._save_to)
        jobs = recall(engine.ledger, self.name, engine.clock) if self._jobs is None else each(self._jobs)
        async with aclosing(jobs) as items:
            while True:
                try:
                    with self._drain:
                        await self._place()
                        item = await anext(items)
                except (StopAsyncIteration, SkippedError):
                    break
                run, refused = await self._run_of(item, index)
                self._read += 1
                tasks.create_task(self._one(index, run, refused))
                index += 1

    async def _place(self) -> None:
        """Wait for a place in the window."""
        if not self._places:
            self._engine.full_windows += 1
            self._place_free = asyncio.get_running_loop().create_future()
            try:
                await self._place_free
            finally:
                self._place_free = None
                self._engine.full_windows -= 1
        self._places -= 1

    async def _run_of(self, item: Item | Recalled, index: int) -> tuple[JobRun, KlingError | None]:
        """Return the run of an item of the input, and why its job cannot be run.

        Raises:
            TypeError: The item is no job.
        """
        if isinstance(item, Recalled):
            return self._new_run(item.job, item.row.key, item.content, recalled=True), None
        given, job = item if isinstance(item, tuple) else (None, item)
        if not isinstance(job, Job):
            raise TypeError(f"item {index} of the batch is {type(job).__name__}, not a Job")
        try:
            content = await self._engine.contents.read(job, self.name)
        except KlingError as error:
            return self._new_run(job, given or f"unreadable-{index}", None), error
        assigned = self._keys.assign(given, content, index)
        return self._new_run(job, assigned.key, content), assigned.duplicate

    def _new_run(self, job: Job, key: str, content: Content | None, *, recalled: bool = False) -> JobRun:
        return JobRun(
            job=job,
            key=key,
            batch=self.name,
            deadline=self._deadline,
            drain=self._drain,
            budget=self._budget,
            content=content,
            recalled=recalled,
        )

    async def _one(self, index: int, run: JobRun, refused: KlingError | None) -> None:
        self._runs.add(run)
        try:
            outcome = await run_to_outcome(self._engine, run, save_to=self._save_to, refused=refused, index=index)
        finally:
            self._runs.discard(run)
            self._spent += run.cost or 0
        self._deliver(index, outcome)

    def _deliver(self, index: int, outcome: Outcome) -> None:
        if outcome.ok:
            self._completed += 1
        else:
            self._failed += 1
            self._uncertain += isinstance(outcome.error, SubmissionUncertainError)
            self._skipped += isinstance(outcome.error, SkippedError)
            self.failures.append(outcome)
        heapq.heappush(self._ready, (index if self._ordered else self._arrived, outcome))
        self._arrived += 1
        self._news.set()

    def _take(self) -> Outcome | None:
        if not self._ready or (self._ordered and self._ready[0][0] != self._taken):
            return None
        _, outcome = heapq.heappop(self._ready)
        self._taken += 1
        self._places += 1
        if self._place_free is not None and not self._place_free.done():
            self._place_free.set_result(None)
        return outcome


async def each(jobs: Jobs) -> AsyncGenerator[Item, None]:
    """The items of any kind of input."""
    if isinstance(jobs, Mapping):
        for key, job in cast("Mapping[str, Job]", jobs).items():
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

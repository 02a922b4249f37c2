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

from ._admission import Admission
from ._core import events
from ._core.content import Content
from ._core.errors import (
    InvalidJobError,
    KlingError,
    PredictionError,
    Problem,
    SkippedError,
    Spent,
    SubmissionUncertainError,
)
from ._core.job import Job
from ._core.prediction import Outcome, Prediction, SavedFile
from ._recall import Recalled, recall

if TYPE_CHECKING:
    from ._account import Account
    from ._core.budget import Budget
    from .storage import Outputs

Item: TypeAlias = Job | tuple[str | None, Job]
Jobs: TypeAlias = Iterable[Item] | AsyncIterable[Item] | Mapping[str, Job]
"""What a batch takes: jobs, pairs of a key and a job, or a mapping of keys to jobs."""

KEY_LENGTH = 16
NAMES = 100_000
"""Names that a batch without a ledger on disk remembers."""


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


@attrs.frozen
class _Name:
    """What a job is called, and why it cannot be."""

    key: str
    content: Content | None
    error: KlingError | None = None


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
        account: Account,
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
        self._admission = Admission()
        self._account = account
        self._jobs = jobs
        self._budget = budget
        self._save_to = save_to
        self._ordered = ordered
        self._deadline = deadline
        # Places in the window that are free, and who waits for one: nobody but the reader of the input.
        self._places = window
        self._place_free: asyncio.Future[None] | None = None
        # How often each name came, by its hash. Over a ledger that is read again every name counts; otherwise memory
        # must not follow the number of jobs, and a long input goes on with names that are told apart by their place.
        self._names: dict[int, int] = {}
        self._room_for_names: float = NAMES
        self._ready: list[tuple[int, Outcome]] = []
        self._arrived = 0
        self._taken = 0
        self._news = asyncio.Event()
        self._entered = False
        self._left = False
        self._exhausted = False
        self._input_error: Exception | None = None
        self._read = self._waiting = self._running = 0
        self._completed = self._failed = self._uncertain = self._skipped = 0
        self._spent = Decimal(0)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        if self._entered:
            raise RuntimeError("a batch is entered once")
        self._entered = True
        await self._account.enter(self.name, self._budget)
        if self._account.ledger.durable:
            self._room_for_names = math.inf
        if self._jobs is None:
            await self._account.has(self.name)
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
        return self._admission.stopped

    @property
    def drained(self) -> bool:
        """Whether `drain` was called."""
        return self._admission.drained

    def drain(self) -> None:
        """Send nothing more, and end when what was accepted has ended.

        Nothing more is read from the input. What was read and stands before its paid request (its upload, a slot, the
        rate, a pause, the next attempt after a refusal) is let go: its outcome is a `SkippedError`, and in the ledger
        it stays as it is, so that the batch can be run again or resumed. What was sent is followed to its end, saved
        and yielded; then the iteration ends. Nothing is waited for here, and a second call does nothing.

        Call it from any task or callback of the session's loop; from another thread by `loop.call_soon_threadsafe`.
        """
        self._admission.drain()

    def statistics(self) -> BatchStatistics:
        """Where the jobs are now."""
        return BatchStatistics(
            read=self._read,
            waiting=self._waiting,
            running=self._running,
            ready=len(self._ready),
            completed=self._completed,
            failed=self._failed,
            uncertain=self._uncertain,
            skipped=self._skipped,
            spent=self._spent,
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
        index = 0
        account = self._account
        recalled = self._jobs is None
        if self._save_to is not None:
            await account.saving.rescue(self.name, self._save_to)
        jobs = recall(account.ledger, self.name, account.clock) if self._jobs is None else each(self._jobs)
        async with aclosing(jobs) as items:
            while True:
                try:
                    with self._admission:
                        await self._place()
                        item = await anext(items)
                except (StopAsyncIteration, SkippedError):
                    break
                if isinstance(item, Recalled):
                    job, name = item.job, _Name(item.row.key, item.content)
                else:
                    given, job = item if isinstance(item, tuple) else (None, item)
                    if not isinstance(job, Job):
                        raise TypeError(f"item {index} of the batch is {type(job).__name__}, not a Job")
                    name = await self._named(given, job, index)
                self._read += 1
                tasks.create_task(self._one(index, job, name, recalled))
                index += 1

    async def _place(self) -> None:
        """Wait for a place in the window."""
        if not self._places:
            self._account.full_windows += 1
            self._place_free = asyncio.get_running_loop().create_future()
            try:
                await self._place_free
            finally:
                self._place_free = None
                self._account.full_windows -= 1
        self._places -= 1

    async def _named(self, given: str | None, job: Job, index: int) -> _Name:
        """The job's key and digest, and what is wrong with them."""
        try:
            content = await self._account.content(job)
        except KlingError as error:
            return _Name(given or f"unreadable-{index}", None, error)
        name = given or content.digest[:KEY_LENGTH]
        occurrence = self._names.get(hash(name), 0) + 1
        if occurrence > 1 or len(self._names) < self._room_for_names:
            self._names[hash(name)] = occurrence
        elif given is None:
            return _Name(f"{name}-at-{index}", content)
        if occurrence == 1:
            return _Name(name, content)
        if given is None:
            return _Name(f"{name}-{occurrence}", content)
        problem = Problem("key", f"{given!r} names an earlier job of this batch already")
        return _Name(f"{given}-{occurrence}", content, InvalidJobError([problem]))

    async def _one(self, index: int, job: Job, name: _Name, recalled: bool) -> None:  # noqa: FBT001 -- for start_soon
        """One job from its admission to its outcome."""
        account = self._account
        key, error = name.key, name.error
        prediction: Prediction | None = None
        saved: SavedFile | None = None
        taken = _Taken(self, job)
        account.observe(events.Admitted, at=account.clock.now(), key=key, batch=self.name, job=job)
        self._waiting += 1
        try:
            if error is not None:
                raise error
            prediction = await account.make(
                job,
                key=key,
                batch=self.name,
                deadline=self._deadline,
                admission=self._admission,
                content=name.content,
                budget=self._budget,
                recalled=recalled,
                accepted=taken,
            )
            error = prediction.failure(job=job)
            if error is None and self._save_to is not None:
                saved = await account.saving.save(prediction, self._save_to, batch=self.name)
        except KlingError as caught:
            error = caught
            if isinstance(caught, PredictionError) and caught.prediction is not None:
                prediction = caught.prediction
            if caught.account_wide and self.stopped is None:
                self._admission.stopped = caught
            # The frames hold images; an outcome may be kept for long.
            caught.__traceback__ = None
        except Exception as bug:  # noqa: BLE001 -- one broken job must not end the others
            error = KlingError(
                f"{type(bug).__name__}: {bug}",
                prediction_id=taken.id,
                spent=Spent.UNKNOWN if taken.id is None else Spent.YES,
                advice="this is a mistake in the program: see __cause__",
            )
            error.__cause__ = bug
        finally:
            if taken.id is None:
                self._waiting -= 1
            else:
                self._running -= 1
        if prediction is None and taken.id is not None:
            prediction = account.watcher.seen(taken.id) or Prediction(id=taken.id, model=job.model, key=key)
        self._deliver(
            index,
            Outcome(
                job=job,
                key=key,
                index=index,
                prediction=prediction,
                error=_about(error, job, key),
                saved=saved,
                cost=taken.cost,
            ),
        )

    def _accepted(self, taken: _Taken, prediction: Prediction) -> None:
        """One of its jobs was accepted, for the first time or again."""
        if taken.id is None:
            self._waiting -= 1
            self._running += 1
        # Not the record itself, which would be kept beside the later ones.
        taken.id = prediction.id
        usd = taken.job.price(self._account.provider.name).usd
        if usd is not None:
            taken.cost = (taken.cost or 0) + usd
            self._spent += usd

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
        self._account.observe(
            events.Finished, at=self._account.clock.now(), key=outcome.key, batch=self.name, outcome=outcome
        )
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


@attrs.define(eq=False)
class _Taken:
    """What the service took of one job: its latest id, and USD of all of its predictions. Called when it takes one."""

    batch: Batch
    job: Job
    id: str | None = None
    cost: Decimal | None = None

    def __call__(self, prediction: Prediction) -> None:
        self.batch._accepted(self, prediction)  # noqa: SLF001 -- an object of its own, lighter than a closure


def _about(error: KlingError | None, job: Job, key: str) -> KlingError | None:
    if error is not None:
        error.job = error.job or job
        error.key = error.key or key
    return error


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

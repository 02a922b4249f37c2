"""Watched predictions, the callers that wait for them, and their deadlines."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from kling_async._core.answers import Answers
from kling_async._core.job import Job
from kling_async._core.prediction import Prediction
from kling_async.errors import KlingError, PredictionError, PredictionTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_COMPACTED_DEADLINES = 1024
"""Fewer deadlines than this are not compacted."""


@attrs.define(eq=False)
class Waiter:
    """A caller that waits for a prediction to end.

    Attributes:
        future: Receives the ended prediction, or the caller's error.
        deadline: Monotonic time, in seconds.
        job: The job, for errors; None if it is not known.
    """

    future: asyncio.Future[Prediction]
    deadline: float
    job: Job | None = None


@attrs.define(eq=False)
class Watched:
    """A running prediction.

    Attributes:
        prediction: Its latest record.
        since: Monotonic time from which it is watched, in seconds.
        batch: Name of its batch, for events.
        on_end: Called once, when it has ended or is no longer watched.
        answers: Failed reads since the last successful one; None without one.
        reply: Hash of the last reply to its single read; None before the first.
        waiters: Callers that wait for its end.
        changes: Queues of its followers.
        ended: True when it has ended or is no longer watched.
    """

    prediction: Prediction
    since: float
    batch: str
    on_end: Callable[[Prediction], None] | None
    answers: Answers | None = None
    reply: int | None = None
    waiters: list[Waiter] = attrs.Factory(list)
    changes: tuple[asyncio.Queue[Prediction | KlingError], ...] = ()
    ended: bool = False

    def also_on_end(self, call: Callable[[Prediction], None] | None) -> None:
        """Add a call to those of `on_end`."""
        first = self.on_end
        if first is None or call is None:
            self.on_end = first or call
            return

        def both(prediction: Prediction) -> None:
            first(prediction)
            call(prediction)

        self.on_end = both

    def finish(self, error: KlingError | None) -> None:
        """Give waiters and followers the ended prediction, or the error because of which it is no longer watched."""
        for waiter in self.waiters:
            if waiter.future.done():
                continue
            if error is None:
                waiter.future.set_result(self.prediction)
            else:
                waiter.future.set_exception(error)
        if error is not None:
            for updates in self.changes:
                updates.put_nowait(error)
        if self.on_end is not None:
            self.on_end(self.prediction)

    def timed_out(self, job: Job | None) -> PredictionTimeoutError:
        """Return the error of a caller whose deadline passed."""
        return PredictionTimeoutError(
            f"the prediction is still {self.prediction.raw_status} at the deadline{self._unread}",
            prediction=self.prediction,
            job=job,
            key=self.prediction.key,
        )

    def forgotten(self, seconds: float) -> PredictionTimeoutError:
        """Return the error of a prediction that has not ended within the longest time for which any is watched."""
        return PredictionTimeoutError(
            f"the prediction has not ended within {seconds:.0f} s and is no longer watched{self._unread}",
            prediction=self.prediction,
            key=self.prediction.key,
        )

    @property
    def _unread(self) -> str:
        """The failed reads, for the end of an error text; empty without one."""
        return "" if self.answers is None else f"; the last reads of its state failed, {self.answers}"

    def unreadable(self, error: KlingError) -> PredictionError:
        """Return the error of a prediction whose state can no longer be read."""
        return PredictionError(
            f"the state of the prediction cannot be read: {error.message}",
            prediction=self.prediction,
            key=self.prediction.key,
            advice="the prediction may still run; " + (error.advice or "wait(prediction_id) reads it again"),
        )


class Deadlines:
    """The deadlines of waiters, in the order of time.

    Attributes:
        compact_at: Number of deadlines at which those of finished waiters are removed.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiter, Watched]] = []
        self._order = itertools.count()
        self.compact_at = MIN_COMPACTED_DEADLINES

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float:
        """Monotonic time of the next deadline, in seconds; infinite without one."""
        return self._heap[0][0] if self._heap else math.inf

    def add(self, waiter: Waiter, watched: Watched) -> None:
        """Add the deadline of a waiter."""
        if len(self._heap) >= self.compact_at:
            # Most waiters finish long before their deadline: theirs must not pile up.
            self._heap = [item for item in self._heap if not item[2].future.done()]
            heapq.heapify(self._heap)
            self.compact_at = max(MIN_COMPACTED_DEADLINES, 2 * len(self._heap))
        heapq.heappush(self._heap, (waiter.deadline, next(self._order), waiter, watched))

    def pop_passed(self, now: float) -> Iterator[tuple[Waiter, Watched]]:
        """Remove the deadlines that have passed, and yield those of waiters that still wait."""
        while self._heap and self._heap[0][0] <= now:
            _, _, waiter, watched = heapq.heappop(self._heap)
            if not waiter.future.done():
                yield waiter, watched

"""Counters of a run, updated by the events of sessions."""

from __future__ import annotations

from collections import Counter, deque
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import attrs

from kling_async import events
from kling_async._core.endings import state_of
from kling_async._core.job import Job
from kling_async._core.picture_names import shown_name
from kling_async._core.prediction import Status
from kling_async._core.states import State
from kling_async.errors import SkippedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.budget import Budget
    from kling_async._core.prediction import Outcome
    from kling_async.errors import KlingError
    from kling_async.events import Event, Observer

_RATE_WINDOW_JOBS: Final = 300
_MIN_JOBS_FOR_RATE: Final = 10


@attrs.define(eq=False)
class RunningJob:
    """An accepted job without an outcome.

    Attributes:
        key: Key of the job.
        job: The job.
        provider: Name of the provider.
        prediction_id: Id of the paid prediction.
        since: Time of acceptance, in seconds since the epoch on the session's clock.
        state: The service's word; "saving" during the download.
    """

    key: str
    job: Job
    provider: str
    prediction_id: str
    since: float
    state: str


class Board:
    """Counters of a run, and its running jobs. Memory follows the number of running jobs.

    Args:
        total: Number of jobs; None if it is unknown.
        budget: Limit of the cost; None if there is none.

    Attributes:
        waiting_reason: Returns why waiting jobs are not sent, if no event says so; else an empty string.
        draining: Nothing more is sent.
        running: Accepted jobs without an outcome, by batch and key.
        endings: Number of jobs whose outcome is an error, by the state in which it leaves them.
        unsaved: Ids and keys of paid predictions that may have a video which is not saved.
        uncertain: Batches and keys of jobs whose acceptance is unknown.
    """

    def __init__(self, total: int | None = None, budget: Budget | None = None) -> None:
        self.total = total
        self.budget = budget
        self.admitted = self.accepted = self.done = 0
        self.endings: Counter[State] = Counter()
        self.spent = Decimal(0)
        self.unpriced = 0
        self.reused = 0
        self.note = ""
        self.waiting_reason: Callable[[], str] = str
        self.draining = False
        self.running: dict[tuple[str, str], RunningJob] = {}
        self.unsaved: dict[str, str] = {}
        self.uncertain: set[tuple[str, str]] = set()
        self._settled_unaccepted = 0
        self._shown_account_error: KlingError | None = None
        self._end_times: deque[float] = deque(maxlen=_RATE_WINDOW_JOBS)

    def name(self, event: Event) -> str:
        """Return what is shown of the job of an event: its key, or of a key that is a hash, the name of its picture."""
        running = self.running.get((event.batch, event.key))
        job = running.job if running is not None else None
        match event:
            case events.Finished(outcome=outcome):
                job = outcome.job
            case events.Refused(job=given) | events.Uncertain(job=given):
                job = given
            case _:
                pass
        return event.key if job is None else shown_name(event.key, job.image)

    @property
    def waiting(self) -> int:
        """Number of jobs that were not accepted and are still to be sent, by this run or the next."""
        # Without a total, a job that could not be sent is admitted again.
        begun = self.total or self.admitted - self.endings[State.PENDING]
        return begun - self.accepted - self._settled_unaccepted

    @property
    def saving(self) -> int:
        """Number of jobs whose videos are being downloaded."""
        return sum(job.state == "saving" for job in self.running.values())

    @property
    def ended(self) -> int:
        """Number of jobs with an outcome, but for those that are still to be sent."""
        return self.done + self.endings.total() - self.endings[State.PENDING]

    def observer(self, provider: str) -> Observer:
        """Return an observer for a session.

        Args:
            provider: Name of the session's provider, for list prices.
        """

        def observe(event: Event) -> None:
            self.update(event, provider)

        return observe

    def update(self, event: Event, provider: str) -> None:
        """Count an event."""
        name = (event.batch, event.key)
        match event:
            case events.Admitted():
                self.admitted += 1
            case events.Accepted(job=job, prediction=prediction):
                # Counted once per job: a retried job is accepted, and paid for, more than once.
                self.accepted += name not in self.running
                self.uncertain.discard(name)
                self.note = ""
                price = job.price(provider).usd
                self.spent += price or 0
                self.unpriced += price is None
                self.running[name] = RunningJob(
                    event.key, job, provider, prediction.id, event.at, prediction.raw_status
                )
                self.unsaved[prediction.id] = event.key
            case events.Refused(error=error, again=again) if again is not None:
                self.note = f"not accepted yet, next attempt in {again:.0f} s: {error.message}"
            case events.Uncertain():
                self.uncertain.add(name)
            case events.Changed(prediction=prediction):
                running = self.running.get(name)
                if running is not None:
                    running.state = "saving" if prediction.status is Status.COMPLETED else prediction.raw_status
                if prediction.status.ended and prediction.status is not Status.COMPLETED:
                    self.unsaved.pop(prediction.id, None)
            case events.Retrying(again=again):
                self.note = f"{self.name(event)} failed at the service; sent and paid for again in {again:.0f} s"
            case events.Finished(outcome=outcome):
                self._finish(name, outcome, event.at)

    def _finish(self, name: tuple[str, str], outcome: Outcome, at: float) -> None:
        accepted = self.running.pop(name, None) is not None
        state = state_of(outcome)
        if state is State.UNCERTAIN:
            self.uncertain.add(name)
        else:
            self.uncertain.discard(name)
        if state is not State.PENDING:
            self._settled_unaccepted += not accepted
            self._end_times.append(at)
        if not outcome.ok:
            self.endings[state] += 1
            return
        self.done += 1
        self.reused += outcome.reused
        if outcome.prediction is not None:
            self.unsaved.pop(outcome.prediction.id, None)

    def rate(self, now: float) -> float | None:
        """Return how many jobs end per second, from the latest ends; None if they are too few.

        Args:
            now: Seconds since the epoch, on the session's clock.
        """
        if len(self._end_times) < _MIN_JOBS_FOR_RATE or now <= self._end_times[0]:
            return None
        return len(self._end_times) / (now - self._end_times[0])

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds until all jobs have ended at the current rate; None if it is unknown.

        Args:
            now: Seconds since the epoch, on the session's clock.
        """
        rate = self.rate(now)
        return None if rate is None or not self.total else max(0, self.total - self.ended) / rate

    def is_repeat(self, event: Event) -> bool:
        """Return whether the event ends a job for a reason that was shown for another one: skipped, or account-wide."""
        if not isinstance(event, events.Finished) or event.outcome.error is None:
            return False
        error = event.outcome.error
        if not error.account_wide:
            return isinstance(error, SkippedError)
        self._shown_account_error = self._shown_account_error or error
        return self._shown_account_error is not error

"""A job has the same events, cost and error in a batch, a worker and the job service."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import pytest

from kling_async import (
    AuthenticationError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    Job,
    KlingError,
    KlingSession,
    Outcome,
    PredictionFailedError,
    PredictionTimeoutError,
    SkippedError,
    Spent,
    SubmissionUncertainError,
    Worker,
    events,
)
from kling_async._core.content import content_of
from kling_async._core.http import Effect
from kling_async._session.job_run import JobRun
from kling_async._session.session import engine_of
from kling_async._submission.drain import Drain
from kling_async.integrations import _job_service as job_service
from kling_async.ledger import MemoryLedger
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

KEY = "the-key"
PRICE = Decimal("0.45")
JOB = Job(model="kling-v2.1-pro", prompt="a", image=IMAGE)


@attrs.define
class Course:
    """One course of a job.

    Attributes:
        events: Names of the events, in order.
        error: Type of the outcome's error; None when it is fine.
        cost: Cost of the outcome in USD.
        script: The service's answers.
        options: Options of the session.
        failures: Failures of the service, by prompt.
        drained: True to drain the job before it begins.
        spent: `spent` of the error.
        has_id: True if the error has the prediction's id.
    """

    events: list[str]
    error: type[KlingError] | None = None
    cost: Decimal | None = None
    script: Callable[[Service, HttpRequest, dict[str, Any]], HttpResponse | None] | None = None
    options: dict[str, Any] = attrs.Factory(dict)
    failures: dict[str, dict[str, Any]] = attrs.Factory(dict)
    drained: bool = False
    spent: Spent | None = None
    has_id: bool = False


def refuse(service: Service, request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
    del service, body
    return json_response({"code": 401, "message": "no"}, status=401) if request.effect is Effect.PAID else None


def accept_and_drop(service: Service, request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
    if request.effect is not Effect.PAID:
        return None
    service.accept(body, request.url.partition("/api/v3/")[2])
    raise ConnectionLostError("dropped")


def fail_once(service: Service, request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
    del body
    if request.effect is Effect.PAID and service.paid:
        service.failures.clear()
    return None


class BrokenLimiter:
    """Rate limiter that raises because of a bug."""

    async def acquire(self) -> None:
        raise ZeroDivisionError("a mistake")


BEGIN = ["Admitted", "Begun", "Uploaded"]
SENT = [*BEGIN, "Submitting"]
# The job is accepted, the submit is cancelled, and then the prediction runs and ends.
RUN = ["Accepted", "Left", "Changed", "Changed"]
COURSES = {
    "accepted": Course([*SENT, *RUN, "Finished"], cost=PRICE),
    "refused": Course([*SENT, "Refused", "Left", "Finished"], AuthenticationError, script=refuse, spent=Spent.NO),
    "in doubt and adopted": Course(
        [*SENT, "Uncertain", "Accepted", "Left", "Changed", "Finished"],
        cost=PRICE,
        script=accept_and_drop,
        options={"grace": 90.0},
    ),
    "in doubt and held": Course(
        [*SENT, "Uncertain", "Left", "Finished"],
        SubmissionUncertainError,
        script=accept_and_drop,
        options={"on_uncertain": "hold"},
        spent=Spent.UNKNOWN,
    ),
    "failed and retried": Course(
        [*SENT, *RUN, "Retrying", "Begun", "Uploaded", "Submitting", *RUN, "Finished"],
        cost=2 * PRICE,
        script=fail_once,
        options={"retry_failed": 1},
        failures={"a": {"code": 5000}},
    ),
    "failed": Course(
        [*SENT, *RUN, "Finished"],
        PredictionFailedError,
        cost=PRICE,
        failures={"a": {"code": 1200}},
        spent=Spent.YES,
        has_id=True,
    ),
    "timed out": Course(
        [*SENT, "Accepted", "Left", "Changed", "Finished"],
        PredictionTimeoutError,
        cost=PRICE,
        options={"forget_after": 20.0},
        spent=Spent.YES,
        has_id=True,
    ),
    "skipped by drain": Course(["Admitted", "Begun", "Left", "Finished"], SkippedError, drained=True, spent=Spent.NO),
    "a mistake in the program": Course(
        [*BEGIN, "Left", "Finished"], KlingError, options={"rate_limiter": BrokenLimiter()}, spent=Spent.UNKNOWN
    ),
}


async def through_batch(kling: KlingSession, course: Course) -> None:
    async with kling.batch({KEY: JOB}, name="b") as batch:
        if course.drained:
            # Drain after the job is read from the input: an unread job has no outcome.
            batch._drain.stopped = AuthenticationError("no", status=401)
        assert [outcome.key async for outcome in batch] == [KEY]


async def through_worker(kling: KlingSession, course: Course) -> None:
    engine = engine_of(kling)
    await engine.ledger.claim("b", KEY, content=content_of(JOB, str), model=JOB.model, at=0.0)
    found = await engine.ledger.find("b", KEY)
    assert found is not None
    worker = Worker(kling)
    if course.drained:
        worker._drain.stopped = AuthenticationError("no", status=401)
    outcome = await worker._run(engine, *found, drain=worker._drain)
    assert outcome.key == KEY
    assert (worker.finished, worker.failed) == (not course.drained, course.error is not None and not course.drained)


async def through_service(kling: KlingSession, course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    service = job_service.JobService(batch="b")
    drain = Drain()
    if course.drained:
        drain.stopped = AuthenticationError("no", status=401)
        monkeypatch.setattr(job_service, "JobRun", functools.partial(JobRun, drain=drain))
    async with service.open(kling):
        if course.error is None:
            assert (await service.generate(JOB, key=KEY)).output
        else:
            with pytest.raises(course.error):
                await service.generate(JOB, key=KEY)
        status = await service.get(KEY)
    uncertain = course.error is SubmissionUncertainError
    assert status.state == ("completed" if course.error is None else "uncertain" if uncertain else "failed")


@pytest.mark.parametrize("door", ["batch", "worker", "service"])
@pytest.mark.parametrize("name", COURSES)
async def test_job_runs_same_course_through_every_entry_point(
    name: str, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = COURSES[name]
    service = Service(seconds=60.0, echo=dict, failures=dict(course.failures))
    if course.script is not None:
        service.script = functools.partial(course.script, service)
    published: list[events.Event] = []
    async with open_session(service, ledger=MemoryLedger(), observers=[published.append], **course.options) as kling:
        if door == "batch":
            await through_batch(kling, course)
        elif door == "worker":
            await through_worker(kling, course)
        else:
            await through_service(kling, course, monkeypatch)
    seen = [event for event in published if event.key == KEY]
    assert [type(event).__name__ for event in seen] == course.events
    assert {event.batch for event in seen} == {"b"}
    (finished,) = [event for event in seen if isinstance(event, events.Finished)]
    outcome: Outcome = finished.outcome
    assert type(outcome.error) is (course.error or type(None))
    assert outcome.cost == course.cost
    assert (outcome.prediction is not None) is (course.cost is not None)
    if outcome.error is not None:
        assert outcome.error.key == KEY
        assert outcome.error.spent is course.spent
        paid = [*service.accepted][-1] if course.has_id else None
        assert outcome.error.prediction_id == paid
        if door != "service":
            assert outcome.error.__traceback__ is None, "an outcome that is kept keeps no frames, which hold images"


@pytest.mark.parametrize("door", ["batch", "worker"])
async def test_caller_deadline_ends_wait_but_not_prediction(door: str) -> None:
    """The job service has no deadline: its client decides how long it polls."""
    service = Service(seconds=600.0)
    async with open_session(service, ledger=MemoryLedger()) as kling:
        engine = engine_of(kling)
        if door == "batch":
            async with kling.batch({KEY: JOB}, name="b", deadline=30.0) as batch:
                (outcome,) = [outcome async for outcome in batch]
        else:
            await engine.ledger.claim("b", KEY, content=content_of(JOB, str), model=JOB.model, at=0.0)
            found = await engine.ledger.find("b", KEY)
            assert found is not None
            outcome = await Worker(kling, deadline=30.0)._run(engine, *found, drain=Drain())
        assert isinstance(outcome.error, PredictionTimeoutError)
        assert outcome.prediction is not None
        assert outcome.cost == PRICE
        assert (await kling.wait(outcome.prediction.id, deadline=math.inf)).output


async def test_account_error_stops_only_its_own_drain() -> None:
    service = Service()
    service.script = functools.partial(refuse, service)
    async with open_session(service, ledger=MemoryLedger()) as kling:
        async with kling.batch([JOB, JOB, JOB], name="b") as batch:
            outcomes = [outcome async for outcome in batch]
        assert isinstance(batch.stopped, AuthenticationError)
        assert AuthenticationError in {type(outcome.error) for outcome in outcomes}
        service.script = None
        # A client of the job service gets the error of its own job; the next job may meet an account that works again.
        async with kling.batch([JOB], name="c") as later:
            assert [outcome.ok async for outcome in later] == [True]

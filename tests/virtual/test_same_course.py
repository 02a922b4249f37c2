"""A job has the same events, cost and error in a batch, a worker and the job service."""

from __future__ import annotations

import asyncio
import copy
import functools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anyio
import attrs
import pytest

from kling_async import (
    AuthenticationError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    InsufficientBalanceError,
    Job,
    KlingError,
    KlingSession,
    Outcome,
    PredictionFailedError,
    PredictionTimeoutError,
    SkippedError,
    Spent,
    Status,
    SubmissionUncertainError,
    Worker,
    events,
)
from kling_async._core.content import content_of
from kling_async._core.http import Effect
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


@attrs.define
class BrokenLimiter:
    """Rate limiter that raises because of a bug, after `works` starts."""

    works: int = 0

    async def acquire(self) -> None:
        if not self.works:
            raise ZeroDivisionError("a mistake")
        self.works -= 1


class CancellingLimiter:
    """Rate limiter that raises `CancelledError` although nobody has cancelled the job."""

    async def acquire(self) -> None:
        raise asyncio.CancelledError


def answer_reads_from_proxy(service: Service, request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
    del body
    passes = request.effect is Effect.PAID or service.clock.monotonic() > 300.0
    return None if passes else HttpResponse(status=407, body=b"<html>Please sign in</html>")


def cancel_reads(service: Service, request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
    del body
    if request.effect is Effect.PAID or service.clock.monotonic() > 60.0:
        return None
    raise asyncio.CancelledError


BEGIN = ["Admitted", "Begun", "Uploaded"]
SENT = [*BEGIN, "Submitting"]
# The job is accepted, the submit is cancelled, and then the prediction runs and ends.
RUN = ["Accepted", "Left", "Changed", "Changed"]
COURSES = {
    "accepted": Course([*SENT, *RUN, "Finished"], cost=PRICE),
    "accepted, and read through a proxy": Course(
        [*SENT, "Accepted", "Left", "Changed", "Finished"], cost=PRICE, script=answer_reads_from_proxy
    ),
    "accepted, and read by a transport that cancels itself": Course(
        [*SENT, "Accepted", "Left", "Changed", "Finished"], cost=PRICE, script=cancel_reads
    ),
    "cancelled by its rate limiter": Course(
        [*BEGIN, "Left", "Finished"], KlingError, options={"rate_limiter": CancellingLimiter()}, spent=Spent.NO
    ),
    "refused": Course([*SENT, "Refused", "Left", "Finished"], AuthenticationError, script=refuse, spent=Spent.NO),
    "in doubt and adopted": Course(
        [*SENT, "Uncertain", *RUN, "Finished"],
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
    "a mistake in the program after acceptance": Course(
        [*SENT, *RUN, "Retrying", *BEGIN[1:], "Left", "Finished"],
        KlingError,
        cost=PRICE,
        options={"retry_failed": 1, "rate_limiter": BrokenLimiter(works=1)},
        failures={"a": {"code": 5000}},
        spent=Spent.YES,
        has_id=True,
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
        monkeypatch.setattr(job_service, "Drain", lambda: drain)
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
    # A rate limiter counts, and the courses are used again.
    options = copy.deepcopy(course.options)
    async with open_session(service, ledger=MemoryLedger(), observers=[published.append], **options) as kling:
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
async def test_finished_job_is_counted_before_its_event(door: str) -> None:
    counts: list[tuple[int, int]] = []
    count: Callable[[], tuple[int, int]] = lambda: (0, 0)  # noqa: E731 -- replaced below

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Finished):
            counts.append(count())

    async with open_session(Service(), ledger=MemoryLedger(), observers=[observe]) as kling:
        engine = engine_of(kling)
        if door == "batch":
            async with kling.batch({KEY: JOB}, name="b") as batch:
                count = lambda: (batch.statistics().completed, batch.statistics().running)  # noqa: E731 -- as above
                assert [outcome.ok async for outcome in batch] == [True]
        else:
            await engine.ledger.claim("b", KEY, content=content_of(JOB, str), model=JOB.model, at=0.0)
            found = await engine.ledger.find("b", KEY)
            assert found is not None
            worker = Worker(kling)
            count = lambda: (worker.finished, 0)  # noqa: E731 -- as above
            await worker._run(engine, *found, drain=worker._drain)
    assert counts == [(1, 0)]


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


@pytest.mark.parametrize("door", ["batch", "worker"])
async def test_outcome_of_a_broken_retry_has_the_failed_prediction(door: str) -> None:
    """The error is not of the prediction, so the outcome's prediction is the one that was read last."""
    course = COURSES["a mistake in the program after acceptance"]
    published: list[events.Event] = []
    options = copy.deepcopy(course.options)
    async with open_session(
        Service(failures=dict(course.failures)), ledger=MemoryLedger(), observers=[published.append], **options
    ) as kling:
        await (through_batch if door == "batch" else through_worker)(kling, course)
    (outcome,) = [event.outcome for event in published if isinstance(event, events.Finished)]
    assert outcome.prediction is not None
    assert (outcome.prediction.status, outcome.prediction.code) == (Status.FAILED, 5000)


async def test_first_account_error_stops_its_batch_and_no_later_one() -> None:
    """Three requests are under way when the first is refused, and the two others are refused for another reason."""
    service = Service()
    answers = [("key", 401, 1.0), ("money", 402, 2.0), ("money", 402, 3.0)]

    async def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse:
        del request, body
        message, status, seconds = answers.pop(0)
        await anyio.sleep(seconds)
        return json_response({"code": status, "message": message}, status=status)

    service.script = script
    async with open_session(service, ledger=MemoryLedger()) as kling:
        async with kling.batch([JOB, JOB, JOB, JOB], name="b", window=3) as batch:
            outcomes = [outcome async for outcome in batch]
        assert [type(outcome.error) for outcome in outcomes] == [
            AuthenticationError,
            SkippedError,
            InsufficientBalanceError,
            InsufficientBalanceError,
        ]
        assert batch.stopped is outcomes[0].error
        service.script = None
        # A client of the job service gets the error of its own job; the next job may meet an account that works again.
        async with kling.batch([JOB], name="c") as later:
            assert [outcome.ok async for outcome in later] == [True]

"""The order of steps around a paid id: recorded, then taken over; closing that is cancelled still does all of it."""

from __future__ import annotations

import asyncio

import attrs
import pytest

from kling_async import ConnectionLostError, HttpRequest, HttpResponse, Job, Prediction, SessionClosedError, events
from kling_async._core.http import Effect
from kling_async._session.session import engine_of
from kling_async.ledger import Entry, MemoryLedger, Row, State
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session
from support.slow import STEP, SlowLedger, SlowLimiter

pytestmark = pytest.mark.anyio


@pytest.mark.promise(2)
async def test_accepted_job_is_recorded_before_it_is_watched_or_published() -> None:
    service, ledger = Service(), SlowLedger()
    accepted: list[tuple[str, list[str | None]]] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Accepted):
            accepted.append((event.prediction.id, ledger.recorded))

    async with open_session(service, ledger=ledger, observers=[observe]) as kling:
        watched: list[tuple[Prediction, ...]] = []

        def look() -> None:
            for wait in (0.1 * STEP, 0.9 * STEP):
                asyncio.get_running_loop().call_later(wait, lambda: watched.append(kling.running))

        ledger.on_record = look
        prediction = await kling.submit(prompt="x", image=IMAGE)
        assert [each.id for each in kling.running] == [prediction.id]
    assert watched == [(), ()], "watched while its id was being written"
    assert accepted == [(prediction.id, [prediction.id])], "published before its id was written"


@pytest.mark.promise(2)
async def test_submit_returns_after_the_paid_id_is_recorded() -> None:
    service, ledger = Service(), SlowLedger()
    async with open_session(service, ledger=ledger) as kling:
        prediction = await kling.submit(prompt="x", image=IMAGE)
        assert ledger.recorded == [prediction.id]


@pytest.mark.promise(1)
async def test_intent_is_recorded_before_the_request_is_sent() -> None:
    states: list[list[State]] = []
    service, ledger = Service(), SlowLedger()

    def script(request: HttpRequest, body: object) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            states.append([row.state for row in ledger._rows.values()])
        return None

    service.script = script
    async with open_session(service, ledger=ledger) as kling:
        await kling.submit(prompt="x", image=IMAGE)
    assert states == [[State.INTENT]]


@pytest.mark.promise(1)
async def test_doubt_is_recorded_before_it_is_published() -> None:
    service, ledger = Service(), SlowLedger()
    states: list[list[State]] = []

    def script(request: HttpRequest, body: object) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            raise ConnectionLostError("dropped")
        return None

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Uncertain):
            states.append([row.state for row in ledger._rows.values()])

    service.script = script
    async with open_session(service, ledger=ledger, observers=[observe], on_uncertain="hold") as kling:
        with pytest.raises(Exception, match="not sent again"):
            await kling.submit(prompt="x", image=IMAGE)
    assert states == [[State.UNCERTAIN]]


async def test_step_of_each_attempt_is_recorded_with_its_number_and_reason() -> None:
    """The number tells the result of one attempt from that of another, where it could not be recorded at once."""
    service = Service()
    steps: list[Entry] = []

    class Remembering(MemoryLedger):
        async def record(self, entry: Entry) -> Row:
            steps.append(entry)
            return await super().record(entry)

    def script(request: HttpRequest, body: object) -> HttpResponse | None:
        if request.effect is Effect.PAID and len(steps) == 1:
            raise ConnectionLostError("the line is cut")
        return None

    service.script = script
    async with open_session(service, ledger=Remembering()) as kling:
        prediction = await kling.submit(prompt="x", image=IMAGE)
    assert [(step.state, step.attempt, step.prediction_id) for step in steps] == [
        (State.INTENT, 1, None),
        (State.UNCERTAIN, None, None),
        (State.PENDING, None, None),
        (State.INTENT, 2, None),
        (State.SUBMITTED, 2, prediction.id),
    ]
    assert "the line is cut" in (steps[1].error or "")
    assert steps[2].error


async def test_reply_without_model_or_key_is_completed_by_the_job() -> None:
    service = Service()

    def script(request: HttpRequest, body: dict[str, object]) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            service.accept(body)
            return json_response({"code": 200, "data": {"id": "p00000", "status": "created"}})
        return None

    service.script = script
    published: list[events.Event] = []
    async with open_session(service, observers=[published.append]) as kling:
        prediction = await kling.submit(model="kling-v2.1-pro", prompt="x", image=IMAGE, key="mine")
    assert (prediction.key, "kling-v2.1" in prediction.model) == ("mine", True)
    (accepted,) = [event for event in published if isinstance(event, events.Accepted)]
    assert accepted.prediction == prediction


async def test_events_of_a_refused_job_name_its_batch_and_error() -> None:
    def refuse(request: HttpRequest, _: object) -> HttpResponse | None:
        return json_response({"code": 400, "message": "no"}, status=400) if request.effect is Effect.PAID else None

    published: list[events.Event] = []
    async with (
        open_session(Service(script=refuse), observers=[published.append]) as kling,
        kling.batch({"k": Job(prompt="x", image=IMAGE)}, name="b") as batch,
    ):
        (outcome,) = [outcome async for outcome in batch]
    assert outcome.error is not None
    assert {(event.batch, event.key) for event in published} == {("b", "k")}
    (left,) = [event for event in published if isinstance(event, events.Left)]
    assert left.error is outcome.error
    assert all(event.job == outcome.job for event in published if isinstance(event, events.Submitting))


@attrs.define
class _Closing:
    """A session whose close waits first for a paid request, then for its ledger."""

    service: Service = attrs.field(factory=lambda: Service(latency=2 * STEP, seconds=1e6))
    ledger: SlowLedger = attrs.field(factory=SlowLedger)


@pytest.mark.promise(2, 4)
@pytest.mark.parametrize("after", [STEP / 2, 1.5 * STEP, 2.5 * STEP, 3.5 * STEP, 4.5 * STEP])
async def test_cancelled_close_still_runs_to_its_end(after: float) -> None:
    """While the intent is written, while the request is sent, while its id is written, and while the ledger closes."""
    closing = _Closing()
    kling = await open_session(closing.service, ledger=closing.ledger).__aenter__()
    engine = engine_of(kling)
    watching_done: list[bool] = []
    closing.ledger.on_close = lambda: watching_done.append(engine._watching.done())
    submit = asyncio.create_task(kling.submit(prompt="x", image=IMAGE))
    await asyncio.sleep(0)
    close = asyncio.create_task(kling.aclose())
    await asyncio.sleep(after)
    close.cancel()
    with pytest.raises(asyncio.CancelledError):
        await close
    assert closing.ledger.closed, "the ledger was left open"
    assert closing.ledger.recorded == list(closing.service.accepted)
    assert [prediction.id for prediction in kling.left_running] == list(closing.service.accepted)
    assert engine.watcher.running == ()
    assert watching_done == [True], "the ledger closed while predictions, which it records the ends of, were watched"
    await asyncio.wait([submit])


async def test_close_that_is_cancelled_many_times_runs_to_its_end() -> None:
    closing = _Closing()
    kling = await open_session(closing.service, ledger=closing.ledger).__aenter__()
    submit = asyncio.create_task(kling.submit(prompt="x", image=IMAGE))
    await asyncio.sleep(STEP / 10)
    close = asyncio.create_task(kling.aclose())
    await asyncio.sleep(0)
    while not close.done():
        close.cancel()
        await asyncio.sleep(STEP / 10)
    assert close.cancelled()
    assert closing.ledger.closed
    assert len(kling.left_running) == 1
    await asyncio.wait([submit])


async def test_failed_open_leaves_no_task_behind() -> None:
    class Broken(SlowLedger):
        async def open(self) -> None:
            await super().open()
            await asyncio.sleep(STEP)
            raise OSError("no disk")

    ledger = Broken()
    service = Service()
    tasks = asyncio.all_tasks()
    with pytest.raises(OSError, match="no disk"):
        await open_session(service, ledger=ledger).__aenter__()
    await asyncio.sleep(STEP)
    assert asyncio.all_tasks() == tasks


@pytest.mark.promise(2)
async def test_submit_that_critical_tasks_refuse_releases_slot_turn_and_claim() -> None:
    """The session closes while the job waits for the rate limit, after it has its slot."""
    service = Service()
    kling = await open_session(service, rate_limiter=SlowLimiter(), max_in_flight=1).__aenter__()
    engine = engine_of(kling)
    submit = asyncio.create_task(kling.submit(prompt="x", image=IMAGE, key="x"))
    await asyncio.sleep(STEP / 2)
    assert engine.slots.taken == 1
    await kling.aclose()
    with pytest.raises(SessionClosedError, match="nothing was spent"):
        await submit
    assert not service.paid
    assert engine.slots.taken == 0
    assert ("", "x") not in engine._claims
    free = engine.slots.unanswered.total
    turns = [engine._submitter.acquire_turn() for _ in range(free)]
    await asyncio.wait_for(asyncio.gather(*turns), 2 * free * STEP)


@pytest.mark.promise(4)
@pytest.mark.parametrize(
    ("count", "named", "more"), [(1, 1, ""), (10, 10, ""), (11, 10, " and 1 more"), (300, 10, " and 290 more")]
)
async def test_warning_at_closing_names_at_most_ten_ids(
    count: int, named: int, more: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(seconds=1e6)
    async with open_session(service, max_in_flight=count) as kling:
        await asyncio.gather(*(kling.submit(prompt=str(number), image=IMAGE) for number in range(count)))
    (warning,) = [record.getMessage() for record in caplog.records if "the session closed while" in record.getMessage()]
    ids = [prediction.id for prediction in kling.left_running]
    assert len(ids) == count
    assert [id_ for id_ in ids if id_ in warning] == ids[:named]
    assert f"while {count} prediction" in warning
    assert more in warning
    assert ("left_running" in warning) == bool(more)


async def test_close_without_running_predictions_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(seconds=5)
    async with open_session(service) as kling:
        await kling.generate(prompt="x", image=IMAGE)
    assert kling.left_running == ()
    assert not [record for record in caplog.records if "the session closed" in record.getMessage()]

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from pathlib import Path
from typing import Any

import anyio
import pytest

from kling_async import (
    ConfigurationError,
    ConnectFailedError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    InvalidJobError,
    Job,
    KlingSession,
    LedgerError,
    Level,
    NoOutputError,
    NotFoundError,
    PredictionError,
    PredictionFailedError,
    PredictionTimeoutError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
    Spent,
    Status,
    SubmissionUncertainError,
    UnsupportedError,
    events,
)
from kling_async._core.http import Effect
from kling_async.ledger import Entry, MemoryLedger, Row
from kling_async.providers import WaveSpeed
from kling_async.testing import ScriptedTransport, json_response
from support.media import video
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


def refuse_first(service: Service, count: int, response: HttpResponse | Exception) -> list[float]:
    """Answer the first `count` paid requests with `response`; return the times of all paid requests."""
    times: list[float] = []

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is not Effect.PAID:
            return None
        times.append(service.clock.monotonic())
        if len(times) > count:
            return None
        if isinstance(response, Exception):
            raise response
        return response

    service.script = script
    return times


async def test_generate_returns_completed_prediction() -> None:
    service = Service()
    async with open_session(service) as kling:
        prediction = await kling.generate(
            model="kling-v2.1-pro", prompt="She turns", image=IMAGE, duration=10, key="mine"
        )
    assert prediction.status is Status.COMPLETED
    assert prediction.output == "https://outputs.example/p00000.mp4"
    assert prediction.key == "mine"
    assert prediction.model == "kwaivgi/kling-v2.1-i2v-pro"
    assert service.paid == [{"prompt": "She turns", "image": IMAGE, "duration": 10}]


async def test_generate_refuses_job_mixed_with_fields() -> None:
    async with open_session(Service()) as kling:
        with pytest.raises(TypeError, match="expected a job or its fields, got a job and prompt"):
            await kling.generate(Job(prompt="x", image=IMAGE), prompt="y")


async def test_submitted_job_can_be_awaited_later() -> None:
    service = Service()
    async with open_session(service) as kling:
        submitted = await kling.submit(prompt="x", image=IMAGE)
        assert submitted.status is Status.CREATED
        assert [running.id for running in kling.running] == [submitted.id]
        await anyio.sleep(500)
        reads = service.reads
        assert (await kling.wait(submitted)).output
        assert (await kling.wait(submitted.id)).output
        assert service.reads == reads + 2, "one look is enough for what has ended"
        assert (await kling.get(submitted.id)).status is Status.COMPLETED


async def test_follow_yields_each_status_change() -> None:
    service = Service()
    async with open_session(service) as kling:
        submitted = await kling.submit(prompt="x", image=IMAGE)
        assert [change.raw_status async for change in kling.follow(submitted)] == ["created", "processing", "completed"]
        assert [change.raw_status async for change in kling.follow(submitted.id)] == ["completed"]


async def test_follow_can_be_left_early() -> None:
    service = Service()
    async with open_session(service) as kling:
        submitted = await kling.submit(prompt="x", image=IMAGE)
        async for _ in kling.follow(submitted):
            break
        assert (await kling.wait(submitted)).output


@pytest.mark.promise(7)
async def test_deadline_counts_from_acceptance_and_timeout_is_not_failure() -> None:
    service = Service(seconds=1000)
    async with open_session(service, deadline=100) as kling:
        began = service.clock.monotonic()
        with pytest.raises(PredictionTimeoutError) as caught:
            await kling.generate(prompt="x", image=IMAGE)
        assert 100 <= service.clock.monotonic() - began < 101
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.prediction_id == "p00000"
        assert caught.value.spent is Spent.YES
        assert caught.value.job is not None
        assert kling._engine.slots.taken == 1, "it still runs at the service"
        assert (await kling.wait("p00000", deadline=2000)).output
        assert kling._engine.slots.taken == 0


@pytest.mark.promise(7)
async def test_session_keeps_watching_timed_out_prediction() -> None:
    service = Service(seconds=300)
    async with open_session(service) as kling:
        with pytest.raises(PredictionTimeoutError) as caught:
            await kling.generate(prompt="x", image=IMAGE, deadline=30)
        assert [running.id for running in kling.running] == [caught.value.prediction_id]
        assert kling._engine.slots.taken == 1, "it runs, and takes one of the account's places"
        await anyio.sleep(600)
        assert kling.running == ()
        assert kling._engine.slots.taken == 0
    assert len(service.paid) == 1


@pytest.mark.promise(7)
async def test_endless_prediction_eventually_releases_slot() -> None:
    service = Service(seconds=1e9)
    async with open_session(service, max_in_flight=1, forget_after=3600) as kling:
        await kling.submit(prompt="x", image=IMAGE)
        await anyio.sleep(3700)
        assert kling._engine.slots.taken == 0
        assert kling.running == ()


async def test_failed_prediction_raises_with_code() -> None:
    service = Service(failures={"x": {"code": 1402, "error": "Failed to download image from the provided URL."}})
    async with open_session(service) as kling:
        with pytest.raises(PredictionFailedError) as caught:
            await kling.generate(prompt="x", image=IMAGE)
    assert caught.value.code == 1402
    assert "Failed to download image" in str(caught.value)
    assert "refunds" in str(caught.value)
    assert "make sure that the service can download the image" in str(caught.value)


async def test_completion_without_output_raises_with_id() -> None:
    service = Service(failures={"x": {"status": "completed"}})
    async with open_session(service) as kling:
        with pytest.raises(NoOutputError) as caught:
            await kling.generate(prompt="x", image=IMAGE)
    assert caught.value.prediction_id == "p00000"


@pytest.mark.promise(10)
async def test_unknown_status_counts_as_running() -> None:
    service = Service(seconds=30, failures={"x": {"status": "warming_up", "code": 0}})
    async with open_session(service, deadline=200) as kling:
        with pytest.raises(PredictionTimeoutError) as caught:
            await kling.generate(prompt="x", image=IMAGE)
    assert caught.value.prediction is not None
    assert caught.value.prediction.raw_status == "warming_up"


async def test_429_is_retried_and_pauses_session() -> None:
    service = Service()
    times = refuse_first(service, 1, json_response({"code": 429, "message": "slow down"}, status=429))
    async with open_session(service) as kling:
        first = asyncio.create_task(kling.submit(prompt="first", image=IMAGE))
        await anyio.sleep(1)
        await kling.submit(prompt="second", image=IMAGE)
        await first
    assert len(times) == 3
    assert times[1] - times[0] > 3.5
    assert times[2] - times[0] > 3.5
    assert len(service.paid) == 2


async def test_retry_after_is_honoured() -> None:
    service = Service()
    refusal = json_response({"code": 429, "message": "slow down"}, status=429, headers={"retry-after": "37"})
    times = refuse_first(service, 1, refusal)
    async with open_session(service) as kling:
        await kling.submit(prompt="first", image=IMAGE)
    assert 37 <= times[1] - times[0] < 42


async def test_backoff_grows_to_a_minute_and_is_limited() -> None:
    service = Service()
    times = refuse_first(service, 10**6, json_response({"code": 429, "message": "slow down"}, status=429))
    async with open_session(service) as kling:
        with pytest.raises(RateLimitedError) as caught:
            await kling.submit(prompt="first", image=IMAGE)
        assert kling._engine.slots.taken == 0
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[0] < 6
    assert 60 < max(gaps) < 75
    assert 780 < times[-1] - times[0] < 1000
    assert caught.value.spent is Spent.NO


async def test_connection_failure_is_retried() -> None:
    service = Service()
    times = refuse_first(service, 3, ConnectFailedError("refused"))
    async with open_session(service) as kling:
        await kling.submit(prompt="first", image=IMAGE)
    assert len(times) == 4
    assert len(service.paid) == 1


async def test_persistent_connection_failure_reports_nothing_spent() -> None:
    service = Service()
    times = refuse_first(service, 10**6, ConnectFailedError("refused"))
    async with open_session(service) as kling:
        with pytest.raises(ConnectFailedError, match="nothing was spent"):
            await kling.submit(prompt="first", image=IMAGE)
        assert kling._engine.slots.taken == 0
    assert len(times) == 5


@pytest.mark.parametrize(
    "end",
    [
        ConnectionLostError("dropped"),
        json_response({"code": 500, "message": "oops"}, status=500),
        json_response({"code": 500, "message": "oops"}),
        json_response({"code": 200, "message": "success", "data": {}}),
        HttpResponse(status=502, body=b"<html><title>Bad gateway</title></html>"),
        HttpResponse(status=200, body=b'{"code":200,"message":"success","da'),
    ],
)
@pytest.mark.promise(1)
async def test_possibly_accepted_submission_is_sent_once(end: HttpResponse | Exception) -> None:
    service = Service()
    times = refuse_first(service, 10**6, end)
    async with open_session(service, on_uncertain="hold") as kling:
        with pytest.raises(SubmissionUncertainError) as caught:
            await kling.generate(prompt="first", image=IMAGE, key="mine")
        assert kling._engine.slots.taken == 0
    assert len(times) == 1
    assert caught.value.spent is Spent.UNKNOWN
    assert caught.value.key == "mine"
    assert caught.value.sent_at is not None
    assert "not sent again" in str(caught.value)


async def test_submission_repeatedly_unaccepted_is_given_up() -> None:
    service = Service()
    times = refuse_first(service, 10**6, json_response({"code": 500, "message": "oops"}, status=500))
    async with open_session(service) as kling:
        with pytest.raises(ServerError, match=r"oops.*nothing was spent.*3 times") as caught:
            await kling.generate(prompt="first", image=IMAGE, key="mine")
        assert kling._engine.slots.taken == 0
    assert len(times) == 3
    assert caught.value.key == "mine"


async def test_refused_job_raises_api_error_with_job() -> None:
    service = Service()
    refuse_first(service, 1, json_response({"code": 400, "message": "image is too small"}, status=400))
    async with open_session(service) as kling:
        with pytest.raises(RequestRejectedError, match="image is too small") as caught:
            await kling.generate(prompt="first", image=IMAGE)
    assert caught.value.job is not None
    assert caught.value.spent is Spent.NO


async def test_transient_read_errors_do_not_fail_paid_job() -> None:
    service = Service()
    rng = random.Random(7)
    troubles: list[HttpResponse | Exception] = [
        ConnectionLostError("dropped"),
        ConnectFailedError("refused"),
        json_response({"code": 429, "message": "slow down"}, status=429),
        HttpResponse(status=502, body=b"<html>"),
        HttpResponse(status=200, body=b"garbage"),
        json_response({"code": 500, "message": "oops"}),
    ]

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.READ and rng.random() < 0.7:
            trouble = rng.choice(troubles)
            if isinstance(trouble, Exception):
                raise trouble
            return trouble
        return None

    service.script = script
    async with open_session(service) as kling:
        done = await asyncio.gather(*(kling.generate(prompt=f"{number}", image=IMAGE) for number in range(50)))
    assert len(done) == 50


async def test_missing_prediction_ends_wait() -> None:
    service = Service(seconds=100)
    async with open_session(service) as kling:
        prediction = await kling.submit(prompt="x", image=IMAGE)
        service.accepted.clear()
        with pytest.raises(PredictionError) as caught:
            await kling.wait(prediction)
        assert isinstance(caught.value.__cause__, NotFoundError)
        assert caught.value.prediction_id == prediction.id
        with pytest.raises(NotFoundError):
            await kling.wait("never-heard-of")
        assert kling._engine.slots.taken == 0


@pytest.mark.promise(2, 7)
async def test_close_ends_all_waits_with_id() -> None:
    service = Service()
    kling = open_session(service)
    async with kling:
        prediction = await kling.submit(prompt="x", image=IMAGE)
        waiting = asyncio.create_task(kling.wait(prediction))
        await anyio.sleep(1)
    with pytest.raises(PredictionError, match="session closed") as caught:
        await waiting
    assert caught.value.prediction_id == prediction.id


async def test_stale_status_update_is_ignored() -> None:
    service = Service()
    seen: list[str] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Changed):
            seen.append(event.prediction.raw_status)

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.READ and service.reads % 2:
            service.reads += 1
            return json_response({"code": 200, "data": {"id": "p00000", "status": "created"}})
        return None

    service.script = script
    async with open_session(service, observers=[observe]) as kling:
        await kling.generate(prompt="x", image=IMAGE)
    assert seen == ["processing", "completed"]


async def test_single_job_needs_few_status_requests() -> None:
    service = Service(seconds=300)
    async with open_session(service) as kling:
        await kling.generate(prompt="x", image=IMAGE)
    assert service.reads <= 300 / 5 * 0.9, "the vendor permits one every 5 s"


async def test_with_options_shares_slots_and_overrides_defaults() -> None:
    service = Service(seconds=500)
    async with open_session(service, max_in_flight=1) as kling:
        hasty = kling.with_options(deadline=50, model="kling-v2.1-master")
        with pytest.raises(PredictionTimeoutError):
            await hasty.generate(prompt="x", image=IMAGE)
        assert kling._engine.slots.taken == 1
        assert hasty._engine is kling._engine
        assert kling.running[0].model == "kwaivgi/kling-v2.1-i2v-master"
        with pytest.raises(ConfigurationError, match="deadline"):
            kling.with_options(deadline=0)


async def test_events_cover_job_in_order() -> None:
    told: list[events.Event] = []
    service = Service()
    async with (
        open_session(service, observers=[told.append]) as kling,
        kling.batch([Job(prompt="x", image=IMAGE)]) as batch,
    ):
        async for _ in batch:
            pass
    assert [type(event).__name__ for event in told] == [
        "Admitted",
        "Begun",
        "Uploaded",
        "Submitting",
        "Accepted",
        "Left",
        "Changed",
        "Changed",
        "Finished",
    ]
    assert len({event.key for event in told}) == 1


async def test_unwritable_ledger_sends_nothing() -> None:
    class Full(MemoryLedger):
        async def record(self, entry: Entry) -> Row:
            raise OSError(28, "No space left on device")

    service = Service()
    async with open_session(service, ledger=Full()) as kling:
        with pytest.raises(LedgerError, match=r"No space left.*nothing was spent"):
            await kling.generate(prompt="x", image=IMAGE)
        assert kling._engine.slots.taken == 0
    assert not service.paid


async def test_missing_image_file_is_refused_before_sending(tmp_path: Path) -> None:
    service = Service()
    async with open_session(service) as kling:
        with pytest.raises(InvalidJobError) as caught:
            await kling.generate(prompt="x", image=tmp_path / "missing.png")
        assert caught.value.problems[0].path == "image"
        async with kling.batch([Job(prompt="x", image=tmp_path / "missing.png")]) as batch:
            outcomes = [outcome async for outcome in batch]
        assert isinstance(outcomes[0].error, InvalidJobError)
        transport = kling._engine._transport
    assert isinstance(transport, ScriptedTransport)
    assert transport.requests == []


async def test_gptproto_refuses_unsupported_features_before_sending(tmp_path: Path) -> None:
    (tmp_path / "walk.mp4").write_bytes(video())
    service = Service()
    async with open_session(service, provider="gptproto") as kling:
        with pytest.raises(UnsupportedError, match=r"extra\.video: gptproto takes no uploads, and a video \(MP4\)"):
            await kling.generate(prompt="x", image=IMAGE, extra={"video": tmp_path / "walk.mp4"})
        with pytest.raises(UnsupportedError, match="gptproto has no model"):
            await kling.generate(model="kling-v2.0-master", prompt="x", image=IMAGE)
    assert not service.paid


def test_session_options_are_keywords_and_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAVESPEED_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="WAVESPEED_API_KEY"):
        KlingSession()
    monkeypatch.setenv("WAVESPEED_API_KEY", "wsk_from_environment")
    monkeypatch.setenv("WAVESPEED_BASE_URL", "http://127.0.0.1:9/")
    assert KlingSession().provider.base_url == "http://127.0.0.1:9"
    assert "wsk_from_environment" not in repr(KlingSession()) + repr(KlingSession().provider)
    for wrong in (
        {"provider": "fal"},
        {"level": "platinum"},
        {"max_in_flight": 0},
        {"deadline": 0},
        {"images": "attach"},
        {"base_url": "ftp://x"},
        {"api_key": "a\nb"},
    ):
        with pytest.raises(ConfigurationError):
            KlingSession(**wrong)
    assert KlingSession(level=Level("mine", 7, 9)).max_in_flight == 9
    assert KlingSession().level.name == "bronze"


def test_http_base_url_of_another_machine_is_allowed_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVESPEED_BASE_URL", "http://emulator:8000")
    monkeypatch.delenv("KLING_ALLOW_HTTP", raising=False)
    with pytest.raises(ConfigurationError, match="unencrypted"):
        KlingSession("wsk_key")
    assert KlingSession("wsk_key", allow_http=True).provider.base_url == "http://emulator:8000"
    monkeypatch.setenv("KLING_ALLOW_HTTP", "1")
    assert KlingSession("wsk_key").provider.base_url == "http://emulator:8000"
    with pytest.raises(ConfigurationError, match="unencrypted"):
        KlingSession("wsk_key", allow_http=False)
    with pytest.raises(ConfigurationError, match="has its key and its base URL already"):
        KlingSession(provider=WaveSpeed(api_key="wsk_key"), allow_http=True)


@pytest.mark.promise(6)
async def test_watcher_crash_fails_waiters_not_host(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    async with open_session(service) as kling:

        def broken(prediction_id: str) -> HttpRequest:
            raise RuntimeError("a bug in a provider")

        monkeypatch.setattr(type(kling.provider), "result", lambda self, id_: broken(id_))
        prediction = await kling.submit(prompt="x", image=IMAGE)
        with pytest.raises(PredictionError, match="watcher broke") as caught:
            await kling.wait(prediction)
        assert isinstance(caught.value.__cause__, RuntimeError | ExceptionGroup)
        with pytest.raises(PredictionError, match="watcher broke"):
            await kling.generate(prompt="x", image=IMAGE)
        assert kling._engine.slots.taken == 0


async def test_failing_log_handler_fails_no_job() -> None:
    def fail(record: logging.LogRecord) -> bool:
        if "was accepted" in record.msg:
            raise ZeroDivisionError
        return True

    log = logging.getLogger("kling_async")
    level = log.level
    log.addFilter(fail)
    log.setLevel(logging.INFO)
    try:
        async with open_session(Service(), max_in_flight=1) as kling:
            prediction = await kling.submit(prompt="x", image=IMAGE)
            assert kling._engine.slots.taken == 1, "it runs"
            assert (await kling.wait(prediction)).output
    finally:
        log.removeFilter(fail)
        log.setLevel(level)

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from kling_async import (
    AuthenticationError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    InvalidJobError,
    Job,
    KlingSession,
    PredictionFailedError,
    PredictionTimeoutError,
    SkippedError,
    SubmissionUncertainError,
)
from kling_async._core.http import Effect
from kling_async.limits.capacity import MAX_UNANSWERED_SUBMITS
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


def jobs(count: int) -> Iterator[Job]:
    return (Job(prompt=f"number {number}", image=IMAGE) for number in range(count))


async def test_batch_yields_one_outcome_per_job() -> None:
    service = Service()
    async with open_session(service, max_in_flight=50) as kling, kling.batch(jobs(300), name="spring") as batch:
        outcomes = [outcome async for outcome in batch]
    assert sorted(outcome.index for outcome in outcomes) == list(range(300))
    assert len({outcome.key for outcome in outcomes}) == 300
    assert all(outcome.ok and outcome.prediction and outcome.prediction.output for outcome in outcomes)
    assert len(service.paid) == 300
    assert service.peak == 50


async def test_outcomes_arrive_as_completed_or_in_order() -> None:
    service = Service(seconds=lambda body: 100.0 if body["prompt"] == "number 0" else 30.0)
    async with open_session(service, max_in_flight=10) as kling:
        async with kling.batch(jobs(10)) as batch:
            assert [outcome.index async for outcome in batch][-1] == 0
        async with kling.batch(jobs(10), ordered=True) as batch:
            assert [outcome.index async for outcome in batch] == list(range(10))


async def test_stuck_head_blocks_at_most_window_until_its_deadline() -> None:
    service = Service(seconds=lambda body: 1e9 if body["prompt"] == "number 0" else 30.0)
    pulled = 0

    def counted() -> Iterator[Job]:
        nonlocal pulled
        for job in jobs(100):
            pulled += 1
            yield job

    async with (
        open_session(service, max_in_flight=4, forget_after=1e6) as kling,
        kling.batch(counted(), ordered=True, window=12, deadline=600) as batch,
    ):
        first = await anext(batch)
        assert pulled == 12
        assert isinstance(first.error, PredictionTimeoutError)
        assert first.prediction is not None
        assert first.prediction.id == first.error.prediction_id
        rest = [outcome async for outcome in batch]
    assert [outcome.index for outcome in rest] == list(range(1, 100))


@pytest.mark.promise(3)
async def test_window_bounds_input_read_ahead() -> None:
    service = Service(seconds=10)
    pulled = 0

    async def lazy() -> AsyncIterator[Job]:
        nonlocal pulled
        for job in jobs(1_000_000):
            pulled += 1
            yield job

    async with open_session(service, max_in_flight=5) as kling, kling.batch(lazy(), window=8) as batch:
        await anyio.sleep(1000)
        assert pulled == 8
        assert batch.statistics().ready == 8
        await anext(batch)
        await anyio.sleep(1000)
        assert pulled == 9


@pytest.mark.promise(3)
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_job_is_freed_once_its_outcome_is_consumed(*, ordered: bool) -> None:
    """Regression: expired waiters' deadlines kept references to jobs and their images."""
    service = Service(seconds=10)
    alive: weakref.WeakSet[Job] = weakref.WeakSet()
    watched: list[tuple[int, int]] = []

    def lazy() -> Iterator[Job]:
        for job in jobs(400):
            alive.add(job)
            yield job

    async with (
        open_session(service, max_in_flight=10) as kling,
        kling.batch(lazy(), window=20, ordered=ordered) as batch,
    ):
        taken = 0
        async for outcome in batch:
            assert outcome.ok
            taken += 1
            if taken % 100 == 0:
                del outcome
                gc.collect()
                watched.append((len(alive), len(asyncio.all_tasks())))
    # The window, plus the jobs that the input and this loop hold; a few tasks for each.
    assert all(kept <= 20 + 3 and tasks <= 3 * 20 for kept, tasks in watched), watched


async def test_gather_of_1000_generates_is_bounded_like_batch() -> None:
    service = Service()
    async with open_session(service, max_in_flight=20) as kling:
        done = await asyncio.gather(*(kling.generate(job) for job in jobs(1000)))
    assert len(done) == len(service.paid) == 1000
    assert service.peak == 20


async def test_concurrent_submits_are_capped_independently_of_slots() -> None:
    service = Service(latency=5)
    asking = peak = 0

    async def slow(request: HttpRequest, body: dict[str, Any]) -> HttpResponse:
        nonlocal asking, peak
        asking += 1
        peak = max(peak, asking)
        await anyio.sleep(5)
        asking -= 1
        return service.accept(body)

    service.script = lambda request, body: slow(request, body) if request.effect is Effect.PAID else None
    async with open_session(service, max_in_flight=2000, adaptive=False) as kling:
        await asyncio.gather(*(kling.generate(job) for job in jobs(1500)))
    assert peak == MAX_UNANSWERED_SUBMITS == 512


@pytest.mark.promise(5)
async def test_generate_in_batch_loop_body_does_not_deadlock() -> None:
    service = Service()
    async with open_session(service, max_in_flight=2) as kling, kling.batch(jobs(12), window=2) as batch:
        async for outcome in batch:
            assert outcome.ok
            again = await kling.generate(prompt="nested", image=IMAGE)
            assert again.output
            async with kling.batch(jobs(2)) as inner:
                assert len([one async for one in inner]) == 2
    assert len(service.paid) == 12 + 12 + 24
    assert service.peak <= 2


@pytest.mark.promise(5)
@pytest.mark.parametrize("ordered", [False, True])
async def test_nested_batches_on_one_slot_complete(*, ordered: bool) -> None:
    """Slots belong to running predictions; outcomes that are not consumed yet take none."""
    service = Service(seconds=5)

    async def nested(kling: KlingSession, depth: int) -> int:
        count = 0
        async with kling.batch(jobs(3), window=1, ordered=ordered) as batch:
            async for outcome in batch:
                assert outcome.ok
                count += 1
                if depth:
                    count += await nested(kling, depth - 1)
                    count += len(await asyncio.gather(*(kling.generate(prompt="x", image=IMAGE) for _ in range(2))))
        return count

    async with open_session(service, max_in_flight=1) as kling:
        count = await asyncio.wait_for(nested(kling, 2), 100_000)
    assert count == len(service.paid) == 3 + 3 * (3 + 3 * (3 + 2) + 2)
    assert service.peak == 1


@pytest.mark.promise(4)
async def test_leaving_batch_early_detaches_and_session_keeps_watching() -> None:
    service = Service(seconds=lambda body: 60.0 if body["prompt"] == "number 0" else 500.0)
    async with open_session(service, max_in_flight=4) as kling:
        async with kling.batch(jobs(1000), window=4) as batch:
            async for outcome in batch:
                assert outcome.ok
                break
        await anyio.sleep(1)
        paid = len(service.paid)
        assert paid == 4
        before = len(kling.running)
        await anyio.sleep(1000)
        assert len(service.paid) == paid
        assert (before, len(kling.running)) == (3, 0)
        assert kling._engine.slots.taken == 0
    assert not kling.left_running


@pytest.mark.promise(4)
async def test_close_warns_about_running_predictions(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    async with open_session(service) as kling:
        prediction = await kling.submit(prompt="one", image=IMAGE)
    assert [left.id for left in kling.left_running] == [prediction.id]
    assert prediction.id in caplog.text


@pytest.mark.promise(6)
async def test_failed_job_is_returned_as_outcome() -> None:
    service = Service(failures={"number 3": {"code": 1200, "error": "The content contains sensitive information."}})
    async with open_session(service) as kling:
        async with kling.batch(jobs(5)) as batch:
            outcomes = {outcome.index: outcome async for outcome in batch}
        assert isinstance(outcomes[3].error, PredictionFailedError)
        assert outcomes[3].error.code == 1200
        assert outcomes[3].error.job is outcomes[3].job
        with pytest.raises(PredictionFailedError):
            outcomes[3].unwrap()
        assert [outcome.index for outcome in batch.failures] == [3]
        async with kling.batch(jobs(5)) as batch:
            completed = [prediction async for prediction in batch.completed()]
        assert len(completed) == 4
        assert all(prediction.key for prediction in completed)
        assert len(batch.failures) == 1
        statistics = batch.statistics()
    assert (statistics.completed, statistics.failed, statistics.read) == (4, 1, 5)
    assert str(statistics.spent) == "1.25"


async def test_batch_keeps_failures_up_to_limit() -> None:
    service = Service(failures={f"number {number}": {"code": 1405} for number in range(50)})
    async with open_session(service) as kling, kling.batch(jobs(50), failures_kept=7) as batch:
        assert [prediction async for prediction in batch.completed()] == []
        assert len(batch.failures) == 7
        assert batch.statistics().failed == 50


@pytest.mark.promise(6)
async def test_error_of_one_job_does_not_stop_others() -> None:
    """After a refusal, a doubt, a timeout or a bug the next job is still sent."""

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is not Effect.PAID:
            return None
        match body["prompt"]:
            case "number 0":
                return json_response({"code": 400, "message": "no such thing"}, status=400)
            case "number 1":
                raise ConnectionLostError("dropped")
            case "number 3":
                raise RuntimeError("a bug in a transport")
        return None

    service = Service(script=script, seconds=lambda body: 1e6 if body["prompt"] == "number 2" else 60.0)
    async with (
        open_session(service, on_uncertain="hold", max_in_flight=2) as kling,
        kling.batch(jobs(6), window=1, deadline=600) as batch,
    ):
        outcomes = [outcome async for outcome in batch]
    assert [outcome.ok for outcome in outcomes] == [False, False, False, False, True, True]
    assert not any(isinstance(outcome.error, SkippedError) for outcome in outcomes)
    assert batch.stopped is None


@pytest.mark.promise(6)
async def test_provider_bug_fails_only_its_own_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service()
    async with open_session(service) as kling:
        phrase = type(kling.provider).submit

        def broken(provider: Any, job: Job, *images: Any, **options: Any) -> HttpRequest:
            if job.prompt == "number 1":
                raise RuntimeError("a bug in a provider")
            return phrase(provider, job, *images, **options)

        monkeypatch.setattr(type(kling.provider), "submit", broken)
        async with kling.batch(jobs(4), ordered=True, window=2) as batch:
            outcomes = [outcome async for outcome in batch]
    assert [outcome.ok for outcome in outcomes] == [True, False, True, True]
    error = outcomes[1].error
    assert error is not None
    assert isinstance(error.__cause__, RuntimeError)
    assert "mistake in the program" in str(error)


@pytest.mark.promise(6)
async def test_account_error_stops_admission_and_drains_running_jobs() -> None:
    def out_of_money(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and len(service.paid) >= 5:
            asked.append(body)
            return json_response({"code": 401, "message": "Unauthorized"}, status=401)
        return None

    asked: list[dict[str, Any]] = []
    service = Service(script=out_of_money)
    async with open_session(service, max_in_flight=2) as kling, kling.batch(jobs(40), window=10) as batch:
        outcomes = [outcome async for outcome in batch]
    assert len(outcomes) == 40
    assert sum(outcome.ok for outcome in outcomes) == 5
    assert isinstance(batch.stopped, AuthenticationError)
    skipped = [outcome for outcome in outcomes if isinstance(outcome.error, SkippedError)]
    assert len(skipped) == batch.statistics().skipped == 40 - 5 - len(asked)
    assert 1 <= len(asked) <= 2
    assert all(outcome.error.__cause__ is batch.stopped for outcome in skipped if outcome.error)


async def test_input_exception_is_raised_after_started_jobs() -> None:
    def broken() -> Iterator[Job]:
        yield from jobs(3)
        raise OSError("the manifest is gone")

    service = Service()
    async with open_session(service) as kling, kling.batch(broken()) as batch:
        outcomes = []
        with pytest.raises(OSError, match="manifest is gone"):
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401 -- the list is wanted after the error
    assert len(outcomes) == 3


async def test_body_exception_is_not_wrapped_in_group() -> None:
    service = Service()
    with pytest.raises(ZeroDivisionError):
        async with open_session(service) as kling, kling.batch(jobs(10)) as batch:
            async for _ in batch:
                raise ZeroDivisionError
    assert len(service.paid) == 10


async def test_leaving_batch_closes_async_generator_input() -> None:
    closed = False

    async def lazy() -> AsyncIterator[Job]:
        nonlocal closed
        try:
            for job in jobs(1000):
                yield job
        finally:
            closed = True

    service = Service()
    async with open_session(service) as kling, kling.batch(lazy(), window=3) as batch:
        async for _ in batch:
            break
    assert closed


async def test_key_is_given_or_derived_from_content_and_occurrence() -> None:
    service = Service()
    one, two = Job(prompt="one", image=IMAGE), Job(prompt="two", image=IMAGE)
    async with open_session(service) as kling:
        async with kling.batch([one, two, one, one], ordered=True) as batch:
            first = [outcome.key async for outcome in batch]
        async with kling.batch([two, one, one], ordered=True) as batch:
            second = [outcome.key async for outcome in batch]
        async with kling.batch({"a": one, "b": two}, ordered=True) as batch:
            named = [outcome.key async for outcome in batch]
        async with kling.batch([("a", one), ("a", two)], ordered=True) as batch:
            clash = [outcome async for outcome in batch]
    assert first[2] == f"{first[0]}-2"
    assert first[3] == f"{first[0]}-3"
    assert second == [first[1], first[0], first[2]]
    assert named == ["a", "b"]
    assert clash[0].ok
    assert isinstance(clash[1].error, InvalidJobError)
    assert clash[1].error.problems[0].path == "key"


async def test_uncertain_submission_is_reported_and_not_resent() -> None:
    def dropped(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "number 1":
            service.accept(body)
            raise ConnectionLostError("dropped")
        return None

    service = Service(script=dropped)
    async with open_session(service) as kling, kling.batch(jobs(3), ordered=True) as batch:
        outcomes = [outcome async for outcome in batch]
    assert isinstance(outcomes[1].error, SubmissionUncertainError)
    assert outcomes[1].cost is None
    assert [body["prompt"] for body in service.paid].count("number 1") == 1
    assert batch.statistics().uncertain == 1


async def test_observer_exception_is_isolated(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("the observer is broken")

    service = Service()
    async with open_session(service, observers=[broken]) as kling:
        assert (await kling.generate(prompt="x", image=IMAGE)).output
    assert "the observer is broken" in caplog.text


@pytest.mark.promise(6)
async def test_program_bug_fails_one_job_with_traceback() -> None:
    def broken(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "number 1":
            raise RuntimeError("a bug in a transport")
        return None

    service = Service(script=broken)
    async with open_session(service) as kling, kling.batch(jobs(3), ordered=True) as batch:
        outcomes = [outcome async for outcome in batch]
    error = outcomes[1].error
    assert isinstance(error, ConnectionLostError)
    assert isinstance(error.__cause__, RuntimeError)
    assert [outcome.ok for outcome in outcomes] == [True, False, True]


@pytest.mark.promise(4)
async def test_batch_must_be_entered_once_before_iteration() -> None:
    service = Service()
    async with open_session(service) as kling:
        batch = kling.batch(jobs(1))
        with pytest.raises(RuntimeError, match="enter the batch"):
            aiter(batch)
        async with batch:
            assert len([outcome async for outcome in batch]) == 1
            assert [outcome async for outcome in batch] == []
        with pytest.raises(RuntimeError, match="not entered before"):
            await batch.__aenter__()


async def test_non_job_item_ends_input_and_is_named() -> None:
    service = Service()
    async with open_session(service) as kling, kling.batch([*jobs(2), "oops"]) as batch:  # type: ignore[list-item]  # that
        outcomes = []
        with pytest.raises(TypeError, match="item 2 of the batch: expected a Job, got str"):
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401 -- the list is wanted after the error
    assert len(outcomes) == 2
    assert [outcome async for outcome in batch] == []


async def test_consumers_share_one_stream() -> None:
    service = Service()
    taken: list[int] = []

    async def consume() -> None:
        async for outcome in batch:
            taken.append(outcome.index)
            await anyio.sleep(3)

    async with (
        open_session(service, max_in_flight=10) as kling,
        kling.batch(jobs(40)) as batch,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(4):
            tasks.start_soon(consume)
    assert sorted(taken) == list(range(40))

"""Draining a batch: no more jobs are sent, and sent jobs are followed to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from kling_async import (
    Batch,
    HttpRequest,
    HttpResponse,
    Job,
    Level,
    Outcome,
    PredictionFailedError,
    SkippedError,
    Spent,
)
from kling_async._core.http import Effect
from kling_async.events import Event, Retrying
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


def jobs(count: int) -> Iterator[tuple[str, Job]]:
    return ((f"{number}", Job(prompt=f"number {number}", image=IMAGE)) for number in range(count))


async def drained(batch: Batch, *, after: float) -> list[Outcome]:
    """Return all outcomes of a batch that another task drains twice."""

    async def drain() -> None:
        await anyio.sleep(after)
        batch.drain()
        await anyio.sleep(1)
        batch.drain()

    outcomes: list[Outcome] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        outcomes += [outcome async for outcome in batch]
    return outcomes


def let_go(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if isinstance(outcome.error, SkippedError)]


def refused(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
    """Refuse all jobs but the first, for longer than the first runs."""
    if request.effect is not Effect.PAID or body["prompt"] == "number 0":
        return None
    return json_response({"code": 429, "message": "too many requests"}, status=429, headers={"retry-after": "280"})


async def test_drain_follows_running_jobs_and_skips_slot_waiters() -> None:
    service, pulled = Service(seconds=100), 0

    def counted() -> Iterator[tuple[str, Job]]:
        nonlocal pulled
        for pair in jobs(1000):
            pulled += 1
            yield pair

    async with (
        open_session(service, max_in_flight=4) as kling,
        kling.batch(counted(), name="spring", window=10) as batch,
    ):
        outcomes = await drained(batch, after=50)
        assert batch.drained
        assert batch.statistics().exhausted
        assert batch.statistics().skipped == 6
        assert (kling.statistics().waiting_for_slot, kling.statistics().running) == (0, 0)
        # The session stays usable.
        assert (await kling.generate(Job(prompt="after", image=IMAGE))).output
    assert pulled == len(outcomes) == 10
    assert len(service.paid) == 5
    assert sorted(outcome.key for outcome in outcomes if outcome.ok) == ["0", "1", "2", "3"]
    for outcome in let_go(outcomes):
        assert outcome.error is not None
        assert "the batch was drained" in str(outcome.error)
        assert (outcome.error.spent, outcome.error.key, outcome.cost) == (Spent.NO, outcome.key, None)


async def test_drain_skips_jobs_waiting_for_rate() -> None:
    """Jobs that wait for the rate limiter or for the end of a pause are skipped at once."""
    service = Service(seconds=100)
    async with (
        open_session(service, level=Level("slow", 2, 100)) as kling,
        kling.batch(jobs(50), window=50) as batch,
    ):
        begun = service.clock.monotonic()
        outcomes = await drained(batch, after=5)
        assert service.clock.monotonic() - begun < 120
        assert kling.statistics().waiting_for_rate == 0
    assert (len(service.paid), len(let_go(outcomes))) == (2, 48)


async def test_drain_does_not_retry_refused_job() -> None:
    service = Service(seconds=100, script=refused)
    async with open_session(service) as kling, kling.batch(jobs(5)) as batch:
        begun = service.clock.monotonic()
        outcomes = await drained(batch, after=30)
        assert service.clock.monotonic() - begun < 120
    assert (len(service.paid), len(let_go(outcomes))) == (1, 4)


async def test_drain_follows_job_being_submitted() -> None:
    service = Service(seconds=100, latency=20)
    async with open_session(service) as kling, kling.batch(jobs(3)) as batch:
        outcomes = await drained(batch, after=10)
    assert [outcome.ok for outcome in outcomes] == [True] * 3


async def test_drain_does_not_wait_for_slow_input() -> None:
    closed = False

    async def slow() -> AsyncIterator[tuple[str, Job]]:
        nonlocal closed
        try:
            for pair in jobs(3):
                yield pair
            await anyio.sleep_forever()
        finally:
            closed = True

    service = Service(seconds=100)
    async with open_session(service) as kling, kling.batch(slow()) as batch:
        outcomes = await drained(batch, after=10)
        assert closed
    assert [outcome.ok for outcome in outcomes] == [True] * 3


async def test_drain_does_not_retry_failed_prediction() -> None:
    batches: list[Batch] = []
    at = 0.0

    def observe(event: Event) -> None:
        nonlocal at
        if isinstance(event, Retrying):
            at = loop.time()
            loop.call_later(1, batches[0].drain)

    loop = asyncio.get_running_loop()
    service = Service(seconds=100, failures={"number 0": {"code": 5000, "error": "internal"}})
    async with (
        open_session(service, retry_failed=3, observers=[observe]) as kling,
        kling.batch(jobs(1)) as batch,
    ):
        batches.append(batch)
        (outcome,) = [outcome async for outcome in batch]
        assert loop.time() - at < 2
    assert isinstance(outcome.error, PredictionFailedError)
    assert len(service.paid) == 1


async def test_drain_before_first_job_reads_nothing() -> None:
    left = jobs(3)
    async with open_session(Service()) as kling:
        batch = kling.batch(left)
        batch.drain()
        async with batch:
            assert [outcome async for outcome in batch] == []
    assert len(list(left)) == 3


async def test_observer_may_drain_batch() -> None:
    """The observer runs inside the tasks of the jobs that it drains."""
    batches: list[Batch] = []

    def observe(event: Event) -> None:
        batches[0].drain()

    service = Service()
    async with open_session(service, max_in_flight=2) as kling, kling.batch(jobs(9), window=4) as batch:
        batches.append(batch)
        kling._engine.observe.add(observe)
        outcomes = [outcome async for outcome in batch]
    assert service.paid == []
    assert len(let_go(outcomes)) == len(outcomes) >= 1


@pytest.mark.parametrize("first", ["drain", "leave"])
async def test_drained_batch_can_be_left(first: str) -> None:
    service = Service(seconds=1e6)
    async with open_session(service, max_in_flight=2) as kling:
        async with kling.batch(jobs(9), window=4) as batch:
            await anyio.sleep(10)
            if first == "drain":
                batch.drain()
        batch.drain()
        assert kling.statistics().running == 2
    assert len(service.paid) == len(kling.left_running) == 2


async def test_drain_does_not_affect_other_batches() -> None:
    service = Service(seconds=100)
    async with (
        open_session(service, max_in_flight=2) as kling,
        kling.batch(jobs(6), name="one") as one,
        kling.batch(jobs(6), name="two") as two,
    ):
        await anyio.sleep(50)
        one.drain()
        assert all(outcome.ok for outcome in [outcome async for outcome in two])
        outcomes = [outcome async for outcome in one]
    assert (len(outcomes), len(let_go(outcomes)), len(service.paid)) == (4, 2, 8)

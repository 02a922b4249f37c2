"""Session statistics: number of waiting jobs by what they wait for."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from kling_async import HttpRequest, HttpResponse, Job, KlingSession, StartsPerWindow
from kling_async._core.http import Effect
from kling_async._core.statistics import Concurrency
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


def jobs(count: int) -> list[Job]:
    return [Job(model="kling-v2.1-pro", prompt=f"number {number}", image=IMAGE) for number in range(count)]


async def begun(kling: KlingSession, count: int) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(kling.generate(job)) for job in jobs(count)]
    await asyncio.sleep(5)
    return tasks


async def test_statistics_count_slot_waiters() -> None:
    async with open_session(Service(), max_in_flight=3) as kling:
        assert kling.statistics().spent == 0
        tasks = await begun(kling, 8)
        now = kling.statistics()
        assert (now.running, now.slots, now.waiting_for_slot, now.waiting_for_rate) == (3, 3, 5, 0)
        assert now.spent == Decimal("1.35")
        await asyncio.gather(*tasks)
        after = kling.statistics()
    assert (after.running, after.waiting_for_slot, after.spent) == (0, 0, Decimal("3.60"))
    assert after.watch.ended == 8
    assert after.watch.requests_per_end
    assert after.watch.delay is not None
    assert after.refusals == {}


async def test_statistics_count_rate_waiters() -> None:
    service = Service()
    async with open_session(service, rate_limiter=StartsPerWindow(2, 60, clock=service.clock)) as kling:
        tasks = await begun(kling, 5)
        now = kling.statistics()
        assert (now.running, now.waiting_for_rate, now.waiting_for_slot) == (2, 3, 0)
        await asyncio.gather(*tasks)


async def test_statistics_count_backoff_waiters() -> None:
    service = Service()
    refused = 0

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        nonlocal refused
        if request.effect is Effect.PAID and body["prompt"] == "number 0" and not refused:
            refused += 1
            return json_response({"code": 429, "message": "too many requests"}, status=429)
        return None

    service.script = script
    async with open_session(service, max_in_flight=1) as kling:
        first = asyncio.create_task(kling.generate(jobs(1)[0]))
        await asyncio.sleep(1)
        now = kling.statistics()
        assert sum(now.refusals.values()) == 1
        assert now.pause_left > 0
        await first


async def test_statistics_count_unconsumed_outcomes() -> None:
    service = Service(seconds=10)
    async with open_session(service) as kling, kling.batch(jobs(10), window=4) as batch:
        await asyncio.sleep(100)
        assert kling.statistics().waiting_for_window == 1
        assert batch.statistics().ready == 4
        assert [outcome.ok async for outcome in batch] == [True] * 10
        assert kling.statistics().waiting_for_window == 0


async def test_statistics_tell_where_limits_stand() -> None:
    service = Service(latency=2.0)
    async with open_session(service, max_in_flight=50, max_uploads=3, max_saving=5) as kling:
        before = kling.statistics()
        assert (before.uploads.limit, before.submits.limit, before.downloads.limit) == (3, 4, 5)
        assert before.connections is None
        tasks = [asyncio.create_task(kling.generate(job)) for job in jobs(60)]
        await asyncio.sleep(1)
        first = kling.statistics().submits
        assert (first.limit, first.taken, first.waiting, first.seconds) == (4, 4, 56, 0)
        await asyncio.sleep(2)
        second = kling.statistics().submits
        assert second.limit == 8
        assert second.seconds == pytest.approx(2.0)
        await asyncio.gather(*tasks)
        assert kling.statistics().submits.taken == 0


async def test_limits_of_uploads_and_downloads_are_found_out_by_default() -> None:
    async with open_session(Service()) as kling:
        now = kling.statistics()
    assert now.uploads == now.downloads == Concurrency(limit=16, taken=0, waiting=0, seconds=0)

"""Many lost replies: nobody else waits for a doubt, and a line that drops every reply does not go on paying."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kling_async import ConnectionLostError, HttpRequest, HttpResponse, Job, LineLostError, SkippedError, WatchPolicy
from kling_async._core.http import Effect
from kling_async.ledger import MemoryLedger
from kling_async.limits.doubts import MAX_BLIND_SUBMITS
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

JOBS = 200
ROOM = 10_000
SELDOM = WatchPolicy.fixed(200)
"""Watching that does not keep the test busy: how videos end is not its matter."""


def jobs(count: int) -> Iterator[tuple[str, Job]]:
    for number in range(count):
        yield f"k{number}", Job(prompt=f"number {number}", image=IMAGE)


def losing(service: Service, first: int, count: float) -> dict[str, float]:
    """Lose the replies to the paid requests from `first` on; return the times at which replies arrived, by prompt."""
    replied: dict[str, float] = {}
    sent = 0

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        nonlocal sent
        if request.effect is not Effect.PAID:
            return None
        sent += 1
        reply = service.accept(body, request.url.partition("/api/v3/")[2])
        if first < sent <= first + count:
            raise ConnectionLostError("dropped")
        replied[body["prompt"]] = service.clock.monotonic()
        return reply

    service.script = script
    return replied


@pytest.mark.parametrize("first", [0, 100], ids=["at the start", "in the middle"])
@pytest.mark.parametrize("count", [4, 32, 100])
@pytest.mark.repeats
async def test_no_other_job_waits_for_doubts(first: int, count: int) -> None:
    """Each request takes 0.1 s; a doubt is settled 5 s later at best, by its echo."""
    service = Service(seconds=1000, echo=lambda inputs: inputs)
    replied = losing(service, first, count)
    began = service.clock.monotonic()
    session = open_session(service, max_in_flight=ROOM, watch=SELDOM, ledger=MemoryLedger())
    async with session as kling, kling.batch(jobs(JOBS)) as batch:
        outcomes = [outcome async for outcome in batch]
    assert all(outcome.ok for outcome in outcomes)
    assert len(service.paid) == JOBS
    assert len(replied) == JOBS - count
    assert max(replied.values()) - began < 30


async def test_doubts_without_evidence_hold_up_nobody() -> None:
    """Without an echo they are held at the end of the grace, which nobody else waits for."""
    service = Service(seconds=1000)
    replied = losing(service, 0, 32)
    began = service.clock.monotonic()
    session = open_session(service, max_in_flight=ROOM, watch=SELDOM, grace=5000, forget_after=10_000)
    async with session as kling, kling.batch(jobs(JOBS)) as batch:
        outcomes = [outcome async for outcome in batch]
    assert sum(outcome.ok for outcome in outcomes) == JOBS - 32
    assert max(replied.values()) - began < 30


@pytest.mark.promise(1)
@pytest.mark.parametrize("adaptive", [True, False])
async def test_line_that_drops_every_reply_stops(*, adaptive: bool) -> None:
    service = Service()
    losing(service, 0, float("inf"))
    session = open_session(service, max_in_flight=ROOM, watch=SELDOM, adaptive=adaptive)
    async with session as kling, kling.batch(jobs(JOBS)) as batch:
        outcomes = [outcome async for outcome in batch]
    lost = [outcome.error for outcome in outcomes if not isinstance(outcome.error, SkippedError)]
    assert len(service.paid) == len(lost)
    assert MAX_BLIND_SUBMITS <= len(lost) <= MAX_BLIND_SUBMITS + 32
    assert any(isinstance(error, LineLostError) for error in lost)
    assert len(outcomes) == JOBS


async def test_single_job_waits_for_no_doubt() -> None:
    service = Service(seconds=10)
    losing(service, 0, 4)
    began = service.clock.monotonic()
    async with open_session(service, grace=5000, forget_after=10_000, max_in_flight=ROOM) as kling:
        doubtful = [asyncio.create_task(kling.submit(job, key=key)) for key, job in jobs(4)]
        await asyncio.sleep(1)
        await kling.submit(prompt="innocent", image=IMAGE)
        assert service.clock.monotonic() - began < 3
        for each in doubtful:
            each.cancel()
        await asyncio.gather(*doubtful, return_exceptions=True)

"""A captive portal or a corporate proxy that answers for the service for a while costs no job, over real sockets."""

from __future__ import annotations

import pytest

from kling_async import Job, KlingSession, PredictionTimeoutError
from kling_async.emulator import Emulator, faults
from kling_async.integrations.fastapi import JobService
from support.pictures import png

pytestmark = pytest.mark.anyio

PAGE = "<html><h1>Please sign in</h1></html>"
STATUSES = (302, 307, 403, 407, 408, 409, 425, 451, 499, 511, 520, 524)


def service() -> Emulator:
    return Emulator(level="gold", speed=200, profile="tiny", seed=7)


def session(emulator: Emulator) -> KlingSession:
    return KlingSession(emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, level="gold")


def stand_between(emulator: Emulator, status: int) -> None:
    """Answer some requests of every unpaid kind with the page of a proxy."""
    for route in ("result", "list", "upload_ticket", "upload_put"):
        emulator.faults.add(route, faults.Status(status, body=PAGE), times=4)


@pytest.mark.promise(6)
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.repeats
async def test_batch_outlives_a_proxy(status: int) -> None:
    async with service() as emulator, session(emulator) as kling:
        stand_between(emulator, status)
        jobs = [Job(prompt=str(number), image=png()) for number in range(6)]
        async with kling.batch(jobs) as batch:
            assert [outcome.error async for outcome in batch] == [None] * 6
        assert len(emulator.charges()) == 6
        assert emulator.counts["result"] > 4


async def test_job_service_outlives_a_proxy() -> None:
    async with service() as emulator, session(emulator) as kling:
        stand_between(emulator, 407)
        made = JobService()
        async with made.open(kling):
            assert (await made.generate(Job(prompt="x", image=png()))).output
        assert len(emulator.charges()) == 1


async def test_error_at_the_deadline_counts_the_pages() -> None:
    async with service() as emulator, session(emulator) as kling:
        emulator.faults.add("result", faults.Status(403, body=PAGE), times=None)
        with pytest.raises(PredictionTimeoutError, match=r"failed, answers within \d+ s: \d+ x HTTP 403"):
            await kling.generate(prompt="x", image=png(), deadline=600.0)
        emulator.faults.clear()
        (prediction,) = kling.running
        assert (await kling.wait(prediction)).output


async def test_balance_is_read_through_a_proxy() -> None:
    async with service() as emulator, session(emulator) as kling:
        emulator.faults.add("balance", faults.Status(302, body=PAGE), times=3)
        assert await kling.balance() > 0
        assert emulator.counts["balance"] == 4

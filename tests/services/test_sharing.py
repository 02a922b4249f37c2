"""Sessions and workers that share an account: what one leaves or hears, another takes up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from kling_async import Job, KlingSession, Level, State, SubmissionUncertainError, Worker
from kling_async.emulator import Emulator, faults
from kling_async.ledger.postgres import PostgresLedger
from support import postgres

pytestmark = pytest.mark.anyio

LEVEL = Level("test", 1_000_000, 3)


def job(name: str) -> Job:
    return Job(model="kling-v2.1-pro", prompt=name, image="https://p.example/face.png")


def session(emulator: Emulator, url: str, *, poll: float = 0.2, lease: float = 30.0, **options: Any) -> KlingSession:
    options = {"level": LEVEL, "ledger": PostgresLedger(url, lease=lease, poll=poll), **options}
    return KlingSession(emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, **options)


@asynccontextmanager
async def emulated(**options: Any) -> AsyncIterator[Emulator]:
    settings = {"level": "gold", "profile": "tiny", "timing": 1.0, "speed": 20, "downloads": False, **options}
    async with Emulator(**settings) as emulator:
        yield emulator


@asynccontextmanager
async def working(kling: KlingSession, **options: Any) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Worker(kling, **options).run)
        yield
        tasks.cancel_scope.cancel()


async def until(url: str, state: State, count: int, *, within: float = 20.0) -> None:
    query = "SELECT count(*) FROM kling_job WHERE state = %s"
    with anyio.fail_after(within):
        while await anyio.to_thread.run_sync(postgres.rows, url, query, state.value) != [(count,)]:
            await anyio.sleep(0.05)


async def test_doubts_that_take_long_keep_no_new_job_waiting(database: str) -> None:
    async with emulated(input_echo=False) as emulator:
        emulator.faults.add("submit", faults.AcceptThenDrop(), times=3)
        async with session(emulator, database, on_uncertain="hold") as kling:
            doubts = [kling.submit(job(f"doubt {number}"), key=f"doubt-{number}") for number in range(3)]
            ends = await asyncio.gather(*doubts, return_exceptions=True)
        assert [type(end) for end in ends] == [SubmissionUncertainError] * 3
        postgres.rows(database, "UPDATE kling_job SET started_at = started_at - interval '1 hour'")
        # As many doubts as slots, and a day until anything is shown.
        async with session(emulator, database, grace=86_400) as kling, working(kling, again=0.2):
            ledger = kling.account.ledger.of("")
            assert isinstance(ledger, PostgresLedger)
            await ledger.enqueue(
                "b", [(key, await kling.account.content(job(key)), job(key).model) for key in "xyz"], at=0.0
            )
            await until(database, State.COMPLETED, 3)
        assert len(emulator.charges()) == 6

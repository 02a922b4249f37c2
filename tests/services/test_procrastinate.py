"""Procrastinate workers that are killed: jobs that the queue runs again are not paid again."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import procrastinate
import procrastinate.exceptions
import pytest

from kling_async import ConfigurationError, InvalidJobError, Job, KeyReusedError, KlingSession, State, Worker, enqueue
from kling_async.emulator import Emulator
from kling_async.integrations.procrastinate import KlingTasks, install
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.patience import PATIENCE_S
from support.workers import asked, check, counts, fleet, portions, settled, until

pytestmark = pytest.mark.anyio

JOBS = int(os.environ.get("KLING_WORKER_JOBS", "60"))
KILLS = int(os.environ.get("KLING_WORKER_KILLS", "3"))
SEED = int(os.environ.get("KLING_SEED", "7"))


@asynccontextmanager
async def application(url: str) -> AsyncIterator[KlingTasks]:
    """Open the application as a web process does, to enqueue and query."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=2))
    ledger = PostgresLedger(url, poll=0.2)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await ledger.open()
        try:
            yield install(app, ledger)
        finally:
            await ledger.aclose()


@pytest.mark.timeout(3000)
async def test_killed_procrastinate_workers_pay_once_and_lose_nothing(database: str) -> None:
    rng = random.Random(SEED)
    async with application(database) as tasks, fleet("procrastinate_worker.py") as workers:
        for _ in range(2):
            await workers.start(database)
        for portion in portions(JOBS, KILLS):
            held = workers.hold()
            assert await tasks.enqueue(asked(portion), batch="b") == len(portion)
            victim = await workers.holder(database, held)
            await anyio.sleep(rng.random())
            await workers.kill(victim, database)
            await workers.start(database)
        assert await tasks.enqueue(asked(range(JOBS)), batch="b") == 0
        await until(database, settled(JOBS), jobs=JOBS)
        print(f"seed {SEED}, {KILLS} kills, {counts(database)}")
        check(database, workers.emulator, JOBS)
        retried = "SELECT 1 FROM procrastinate_events WHERE type = 'deferred_for_retry'"
        assert postgres.rows(database, retried), "no worker died with a job in its hands"
        with anyio.fail_after(PATIENCE_S):
            row = await tasks.outcome("job-0", batch="b")
        assert row.state is State.COMPLETED


async def test_rows_and_queue_jobs_are_enqueued_atomically(database: str) -> None:
    async with application(database) as tasks:
        job = Job(prompt="a", image="https://p.example/a.png")
        assert await tasks.enqueue([("k", job)]) == 1
        with pytest.raises(KeyReusedError):
            await tasks.enqueue([("new", job), ("k", Job(prompt="b", image="https://p.example/a.png"))])
        with pytest.raises(InvalidJobError, match="bytes"):
            await tasks.enqueue([("bytes", Job(prompt="a", image="data:image/png;base64,AAAA"))])
        assert [key for (key,) in postgres.rows(database, "SELECT key FROM kling_job")] == ["k"]
        assert postgres.rows(database, "SELECT args FROM procrastinate_jobs") == [({"batch": "", "key": "k"},)]
        signed = [Job(prompt="b", image=f"https://p.example/a.png?token={token}") for token in range(3)]
        assert await tasks.enqueue([signed[0]], batch="b", ignored_parameters=["token"]) == 1
        assert await tasks.enqueue([signed[1]], batch="b") == 0
        with pytest.raises(ConfigurationError, match="begun with"):
            await tasks.enqueue([signed[2]], batch="b", ignored_parameters=["v"])
        postgres.rows(database, "DELETE FROM kling_job WHERE batch = 'b'")
        # A job that the queue refuses is not in the ledger either.
        postgres.rows(database, "ALTER TABLE procrastinate_jobs ADD CHECK (args ->> 'key' <> 'refused')")
        with pytest.raises(procrastinate.exceptions.ConnectorException):
            await tasks.enqueue([("refused", job)])
        assert [key for (key,) in postgres.rows(database, "SELECT key FROM kling_job")] == ["k"]


async def test_second_run_of_running_job_is_not_reported_done(database: str) -> None:
    """The queue runs a stalled job again in the process where its first run is still going on."""
    async with Emulator(level="gold", profile="tiny", timing=1.0, speed=20, downloads=False) as emulator:
        ledger = PostgresLedger(database)
        async with KlingSession(
            emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, ledger=ledger, level="gold"
        ) as kling:
            await enqueue(ledger, {"k": Job(prompt="a", image="https://p.example/a.png")}, batch="b")
            worker = Worker(kling)
            first, second = await asyncio.gather(worker.run_one("b", "k"), worker.run_one("b", "k"))
            assert first is None
            assert "running in this process" in str(second)
            assert await worker.run_one("b", "k") is None
        assert len(emulator.charges()) == 1

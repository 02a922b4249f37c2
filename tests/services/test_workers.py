"""Workers that die, are cut off and are replaced: nothing is paid for twice, nothing is lost, the cap holds."""

from __future__ import annotations

import os
import random
import signal

import anyio
import pytest

from kling_async import State, enqueue
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.workers import LEASE, asked, check, counts, fleet, peak, settled, until

pytestmark = pytest.mark.anyio

JOBS = int(os.environ.get("KLING_WORKER_JOBS", "90"))
KILLS = int(os.environ.get("KLING_WORKER_KILLS", "3"))
SEED = int(os.environ.get("KLING_SEED", "7"))


async def fill(url: str, jobs: int) -> None:
    ledger = PostgresLedger(url)
    await ledger.open()
    assert await enqueue(ledger, asked(jobs), batch="b") == jobs
    await ledger.aclose()


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("echo", [True, False], ids=["echo", "no echo"])
async def test_kill_9_of_any_worker_pays_once_and_loses_nothing(database: str, *, echo: bool) -> None:
    rng = random.Random(SEED)
    await fill(database, JOBS)
    async with fleet(echo=echo) as workers:
        for _ in range(3):
            await workers.start(database)
        await until(database, lambda found: found[State.SUBMITTED] > 0, within=60)
        for _ in range(KILLS):
            await anyio.sleep(0.1 + 0.4 * rng.random())
            await until(database, lambda found: found[State.INTENT] > 2 or not found[State.PENDING], within=60)
            await workers.end(rng.choice(workers.processes), signal.SIGKILL)
            await workers.start(database)
        await until(database, settled(JOBS, echo=echo), within=60 + JOBS / 4)
        doubtful = "SELECT count(DISTINCT job) FROM kling_step WHERE state = 'uncertain'"
        ((in_doubt,),) = postgres.rows(database, doubtful)
        most = peak(workers.emulator.predictions())
        print(f"seed {SEED}, {KILLS} kills, {in_doubt} intents left by them, {counts(database)}, {most} at once")
        check(database, workers.emulator, JOBS, echo=echo)
        assert in_doubt, "no kill met a submit on its way"


async def test_a_worker_that_is_cut_off_stops_and_comes_back_by_itself(database: str) -> None:
    await fill(database, 120)
    async with fleet(seconds=0.5) as workers, anyio.create_task_group() as tasks:
        wire = postgres.Cut(database)
        await tasks.start(wire.serve)
        await workers.start(wire.url)
        await until(database, lambda found: found[State.COMPLETED] > 5, within=60)
        wire.cut()
        # What is in flight was intended before the cut; the lease ends while the wire is dead.
        await anyio.sleep(LEASE)
        before = len(workers.emulator.predictions())
        await anyio.sleep(LEASE)
        assert len(workers.emulator.predictions()) == before, "it went on submitting without its lease"
        # Another one follows what it had sent, and settles what is in doubt.
        done = counts(database)[State.COMPLETED]
        other = await workers.start(database)
        await until(database, lambda found: found[State.COMPLETED] > done + 5, within=60)
        assert await workers.end(other, signal.SIGTERM) == 0
        wire.mend()
        await until(database, settled(120), within=60)
        check(database, workers.emulator, 120)
        assert len(workers.processes) == 1
        tasks.cancel_scope.cancel()


async def test_a_rolling_deploy_waits_for_no_lease(database: str) -> None:
    await fill(database, 180)
    # Were anything left to a lease, the test would end before it.
    async with fleet(seconds=1.5, lease=300.0) as workers:
        for _ in range(3):
            await workers.start(database)
        for _ in range(3):
            await until(database, lambda found: found[State.SUBMITTED] >= 5, within=60)
            oldest = workers.processes[0]
            await workers.start(database)
            assert await workers.end(oldest, signal.SIGTERM) == 0
        await until(database, settled(180), within=60)
        check(database, workers.emulator, 180)
        taken_over = postgres.rows(database, "SELECT 1 FROM kling_step GROUP BY job HAVING count(DISTINCT worker) > 1")
        assert taken_over, "nothing was handed over"

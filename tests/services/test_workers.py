"""Workers that are killed, disconnected or replaced: jobs are paid once, none is lost, the cap holds."""

from __future__ import annotations

import os
import random
import signal
import time

import anyio
import pytest

from kling_async import State, enqueue
from kling_async.emulator import ManualClock
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.manual import advance_until
from support.workers import CAP, asked, check, counts, fleet, peak, portions, settled, until

pytestmark = pytest.mark.anyio

JOBS = int(os.environ.get("KLING_WORKER_JOBS", "90"))
KILLS = int(os.environ.get("KLING_WORKER_KILLS", "3"))
SEED = int(os.environ.get("KLING_SEED", "7"))
CUT_OFF_S = 1.0
"""Lease in seconds, short enough to expire while its worker cannot renew it."""


async def fill(url: str, jobs: range) -> None:
    ledger = PostgresLedger(url)
    await ledger.open()
    assert await enqueue(ledger, asked(jobs), batch="b") == len(jobs)
    await ledger.aclose()


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("echo", [True, False], ids=["echo", "no echo"])
async def test_killed_worker_pays_once_and_loses_nothing(database: str, *, echo: bool) -> None:
    rng = random.Random(SEED)
    async with fleet(echo=echo) as workers:
        for _ in range(3):
            await workers.start(database)
        for portion in portions(JOBS, KILLS):
            held = workers.hold()
            await fill(database, portion)
            victim = await workers.holder(database, held)
            # The others continue, as do the victim's other jobs.
            await anyio.sleep(0.4 * rng.random())
            await workers.kill(victim, database)
            await workers.start(database)
        await until(database, settled(JOBS, echo=echo), jobs=JOBS)
        in_doubt = len(postgres.rows(database, "SELECT DISTINCT job FROM kling_step WHERE state = 'uncertain'"))
        most = peak(workers.emulator.predictions())
        print(f"seed {SEED}, {KILLS} kills, {in_doubt} intents left by them, {counts(database)}, {most} at once")
        check(database, workers.emulator, JOBS, echo=echo)
        assert in_doubt >= KILLS, "each kill met a submit on its way"


async def test_disconnected_worker_stops_and_reconnects(database: str) -> None:
    await fill(database, range(120))
    async with fleet(seconds=0.5, lease=CUT_OFF_S) as workers, anyio.create_task_group() as tasks:
        wire = postgres.Cut(database)
        await tasks.start(wire.serve)
        await workers.start(wire.url)
        await until(database, lambda found: found[State.COMPLETED] > 5)
        wire.cut()
        # The lease ends while the connection is cut.
        await anyio.sleep(2 * CUT_OFF_S)
        intents = "SELECT DISTINCT j.key FROM kling_step s JOIN kling_job j ON j.id = s.job WHERE s.state = 'intent'"
        intended = {key for (key,) in postgres.rows(database, intents)}
        sent = {str(record.inputs["prompt"]).replace("number ", "job-") for record in workers.emulator.predictions()}
        assert sent <= intended, "it went on submitting what it could not write down"
        paid = len(workers.emulator.predictions())
        await anyio.sleep(CUT_OFF_S)
        assert len(workers.emulator.predictions()) == paid, "it went on submitting after its lease had ended"
        # Another worker follows its sent jobs and settles its doubts.
        done = counts(database)[State.COMPLETED]
        other = await workers.start(database)
        await until(database, lambda found: found[State.COMPLETED] > done + 5)
        assert await workers.end(other, signal.SIGTERM) == 0
        wire.mend()
        await until(database, settled(120))
        check(database, workers.emulator, 120)
        assert len(workers.processes) == 1
        tasks.cancel_scope.cancel()


async def test_rolling_deploy_does_not_wait_for_leases(database: str) -> None:
    await fill(database, range(180))
    clock = ManualClock(time.time())
    # A row left to its lease would fail the test, which ends before the lease does. Released rows keep their slots, as
    # long as it may take until another worker claims them.
    async with fleet(seconds=10.0, lease=3600.0, runs=3600.0, clock=clock) as workers:
        for _ in range(3):
            await workers.start(database)
        for _ in range(3):
            await until(database, lambda found: found[State.SUBMITTED] == CAP)
            oldest = workers.processes[0]
            await workers.start(database)
            assert await workers.end(oldest, signal.SIGTERM) == 0
            # Predictions running at the deploy end after it, in whichever worker.
            await clock.advance(60.0)

        async def done() -> bool:
            await anyio.sleep(0.1)
            return settled(180)(await anyio.to_thread.run_sync(counts, database))

        await advance_until(clock, done, step=5.0)
        check(database, workers.emulator, 180)
        taken_over = postgres.rows(database, "SELECT 1 FROM kling_step GROUP BY job HAVING count(DISTINCT worker) > 1")
        assert taken_over, "nothing was handed over"

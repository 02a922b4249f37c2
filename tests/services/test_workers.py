"""Workers that die, are cut off and are replaced: nothing is paid for twice, nothing is lost, the cap holds."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import pytest

from kling_async import Job, State
from kling_async._worker import enqueue
from kling_async.emulator import Emulator, faults
from kling_async.emulator.predictions import PredictionRecord
from kling_async.ledger.postgres import PostgresLedger
from support import postgres

pytestmark = pytest.mark.anyio

WORKER = Path(__file__).parents[1] / "support" / "shared_worker.py"
JOBS = int(os.environ.get("KLING_WORKER_JOBS", "120"))
KILLS = int(os.environ.get("KLING_WORKER_KILLS", "4"))
SEED = int(os.environ.get("KLING_SEED", "7"))
CAP = 25
LEASE = 1.0


def peak(records: Iterable[PredictionRecord]) -> int:
    """How many ran at once, by the emulator's own record."""
    ends = [(record.created_at, 1) for record in records] + [(record.ends_at, -1) for record in records]
    running = most = 0
    for _, change in sorted(ends):
        running += change
        most = max(most, running)
    return most


@attrs.define
class Fleet:
    """Worker processes over one ledger."""

    emulator: Emulator
    processes: list[anyio.abc.Process] = attrs.Factory(list)

    async def start(self, url: str) -> anyio.abc.Process:
        # The worker imports what this process imports.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        words = [url, self.emulator.base_url, self.emulator.api_key, str(CAP), str(LEASE)]
        process = await anyio.open_process([sys.executable, str(WORKER), *words], stderr=None, env=environment)
        self.processes.append(process)
        assert process.stdout is not None
        assert (await process.stdout.receive()).startswith(b"open")
        return process

    async def end(self, process: anyio.abc.Process, number: signal.Signals) -> int:
        process.send_signal(number)
        status = await process.wait()
        self.processes.remove(process)
        await process.aclose()
        return status


@asynccontextmanager
async def fleet(*, echo: bool = True, seconds: float = 0.7) -> AsyncIterator[Fleet]:
    async with Emulator(
        level="ultra", profile="tiny", timing=seconds, balance=1e6, input_echo=echo, downloads=False
    ) as emulator:
        # Answers take a moment, so that kills meet submits on their way.
        emulator.faults.add("submit", faults.Delay(0.03, accepted=True), times=None)
        made = Fleet(emulator)
        try:
            yield made
        finally:
            for process in list(made.processes):
                await made.end(process, signal.SIGKILL)


async def fill(url: str, jobs: int) -> None:
    ledger = PostgresLedger(url)
    await ledger.open()
    asked = (
        (f"job-{number}", Job(prompt=f"number {number}", image=f"https://p.example/{number}.png"))
        for number in range(jobs)
    )
    assert await enqueue(ledger, asked, batch="b", at=time.time()) == jobs
    await ledger.aclose()


def counts(url: str) -> Counter[State]:
    found = postgres.rows(url, "SELECT state, count(*) FROM kling_job GROUP BY state")
    return Counter({State(str(state)): int(str(count)) for state, count in found})


async def until(url: str, done: Callable[[Counter[State]], bool], *, within: float) -> None:
    deadline = anyio.current_time() + within
    while not done(found := await anyio.to_thread.run_sync(counts, url)):
        assert anyio.current_time() < deadline, f"after {within} s: {found}"
        await anyio.sleep(0.2)


def settled(jobs: int) -> Callable[[Counter[State]], bool]:
    return lambda found: found[State.COMPLETED] + found[State.UNCERTAIN] == jobs


def check(url: str, emulator: Emulator, jobs: int, *, echo: bool = True) -> None:
    """Every job paid once, none lost, and never more at once than the account permits."""
    records = emulator.predictions()
    paid = Counter(str(record.inputs["prompt"]) for record in records)
    found = counts(url)
    assert max(paid.values()) == 1, "paid twice"
    assert found[State.COMPLETED] + found[State.UNCERTAIN] == jobs, f"lost: {found}"
    if echo:
        assert found[State.UNCERTAIN] == 0
    ids = {id_ for (id_,) in postgres.rows(url, "SELECT prediction_id FROM kling_job") if id_}
    orphans = {record.id for record in records} - ids
    assert len(orphans) <= found[State.UNCERTAIN], "a paid id is lost"
    assert peak(records) <= CAP, f"{peak(records)} at once"


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
            await anyio.sleep(0.2 + rng.random())
            await workers.end(rng.choice(workers.processes), signal.SIGKILL)
            await workers.start(database)
        await until(database, settled(JOBS), within=60 + JOBS / 4)
        in_doubt = postgres.rows(database, "SELECT count(DISTINCT job) FROM kling_step WHERE state = 'uncertain'")
        print(
            f"seed {SEED}, {KILLS} kills, {counts(database)}, peak {peak(workers.emulator.predictions())}, {in_doubt}"
        )
        check(database, workers.emulator, JOBS, echo=echo)


async def test_a_worker_that_is_cut_off_stops_and_comes_back_by_itself(database: str) -> None:
    await fill(database, 100)
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
        await until(database, settled(100), within=60)
        check(database, workers.emulator, 100)
        assert len(workers.processes) == 1
        tasks.cancel_scope.cancel()


async def test_a_rolling_deploy_waits_for_no_lease(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Were anything left to a lease, the test would end before it.
    monkeypatch.setattr(sys.modules[__name__], "LEASE", 300.0)
    await fill(database, 90)
    async with fleet(seconds=1.5) as workers:
        for _ in range(3):
            await workers.start(database)
        for _ in range(3):
            await until(database, lambda found: found[State.SUBMITTED] >= 10, within=60)
            oldest = workers.processes[0]
            await workers.start(database)
            assert await workers.end(oldest, signal.SIGTERM) == 0
        await until(database, settled(90), within=60)
        check(database, workers.emulator, 90)
        taken_over = postgres.rows(database, "SELECT FROM kling_step GROUP BY job HAVING count(DISTINCT worker) > 1")
        assert taken_over, "nothing was handed over"

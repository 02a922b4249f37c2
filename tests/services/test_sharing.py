"""Sessions and workers sharing an account: one resumes the rows and uses the webhooks of another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import web

from kling_async import (
    BudgetExceededError,
    Job,
    KeyReusedError,
    KlingSession,
    Level,
    Outcome,
    State,
    SubmissionUncertainError,
    UnknownPredictionError,
    WatchPolicy,
    Worker,
    enqueue,
)
from kling_async.emulator import Emulator, faults
from kling_async.integrations.fastapi import JobDesk
from kling_async.ledger import Entry, Row
from kling_async.ledger.postgres import PostgresLedger
from kling_async.webhooks import aiohttp_handler
from support import postgres
from support.patience import PATIENCE_S
from support.pictures import png

pytestmark = pytest.mark.anyio

LEVEL = Level("test", 1_000_000, 3)
LEASE = 600.0
"""Lease in seconds, longer than any test; `postgres.end_leases` ends leases on purpose."""
RARELY = 3600.0
"""Seconds between two polls; anything sooner came by a notification."""


def job(name: str) -> Job:
    return Job(model="kling-v2.1-pro", prompt=name, image="https://p.example/face.png")


def session(emulator: Emulator, url: str, *, poll: float = 0.2, **options: Any) -> KlingSession:
    options = {"level": LEVEL, "watch": "eager", "ledger": PostgresLedger(url, lease=LEASE, poll=poll), **options}
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


def ledger_of(kling: KlingSession) -> PostgresLedger:
    ledger = kling._engine.ledger
    assert isinstance(ledger, PostgresLedger)
    return ledger


async def died(kling: KlingSession, url: str) -> None:
    """Drop a session as a killed process does, without handover, and end its lease."""
    ledger = ledger_of(kling)
    ledger._queue.is_open = False
    for task in ledger._lease._tasks:
        task.cancel()
    await asyncio.gather(*ledger._lease._tasks, return_exceptions=True)
    await ledger._queue.join()
    await ledger._queue._database.aclose()
    postgres.end_leases(url, ledger._lease.worker_id)


@asynccontextmanager
async def told(kling: KlingSession) -> AsyncIterator[str]:
    """Serve a session's webhook receiver and yield its URL."""
    app = web.Application()
    app.router.add_route("*", "/hooks", aiohttp_handler(await kling.webhook_receiver()))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
    finally:
        await runner.cleanup()


async def until(url: str, state: State, count: int) -> None:
    query = "SELECT count(*) FROM kling_job WHERE state = %s"
    with anyio.fail_after(PATIENCE_S):
        while await anyio.to_thread.run_sync(postgres.rows, url, query, state.value) != [(count,)]:  # noqa: ASYNC110 -- another process's
            await anyio.sleep(0.05)


async def test_slow_doubts_do_not_block_new_jobs(database: str) -> None:
    async with emulated(input_echo=False) as emulator:
        emulator.faults.add("submit", faults.AcceptThenDrop(), times=3)
        async with session(emulator, database, on_uncertain="hold") as kling:
            doubts = [kling.submit(job(f"doubt {number}"), key=f"doubt-{number}") for number in range(3)]
            ends = await asyncio.gather(*doubts, return_exceptions=True)
        assert [type(end) for end in ends] == [SubmissionUncertainError] * 3
        postgres.rows(database, "UPDATE kling_job SET started_at = started_at - interval '1 hour'")
        # As many doubts as slots, and a day until any is settled.
        async with session(emulator, database, grace=86_400) as kling, working(kling, again=0.2):
            ledger = ledger_of(kling)
            await ledger.enqueue(
                "b", [(key, await kling._engine.contents.read(job(key), "b"), job(key).model) for key in "xyz"], at=0.0
            )
            await until(database, State.COMPLETED, 3)
        assert len(emulator.charges()) == 6


async def test_open_sessions_take_over_rows_of_dead_session(database: str) -> None:
    """There is no worker and no new session: open sessions follow the rows that it left."""
    async with emulated(timing=20.0) as emulator, session(emulator, database) as other:
        async with session(emulator, database) as one:
            running = [await one.submit(job(f"{number}"), key=f"left-{number}") for number in range(3)]
            await died(one, database)
        assert len(running) == 3
        await ledger_of(other)._lease.renew()
        with anyio.fail_after(PATIENCE_S):
            await other.generate(job("new"), key="new")
        await until(database, State.COMPLETED, 4)
        assert len(emulator.charges()) == 4


UNWATCHED = WatchPolicy(price=1e6, least=86_000, most=86_400)
"""Watch policy that reads nothing during a test."""


async def test_webhook_to_one_session_wakes_waiter_in_another(database: str) -> None:
    async with (
        emulated(timing=20.0) as emulator,
        session(emulator, database, poll=RARELY) as receiving,
        told(receiving) as url,
        session(emulator, database, poll=RARELY, webhook_url=url, watch=UNWATCHED) as waiting,
    ):
        ledger = PostgresLedger(database, poll=RARELY)
        await ledger.open()
        accepted = await waiting.submit(job("told"), key="k")
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                # Such as a web handler that waits for a worker's job.
                tasks.start_soon(ledger.outcome, "", "k")
                assert (await waiting.wait(accepted)).output
        assert not [request for request in emulator.requests if request.route in {"result", "list"}]
        assert receiving.running == ()
        await ledger.aclose()


async def test_webhook_to_one_session_settles_doubt_of_another(database: str) -> None:
    """There is no echo and the key is shared: without the token the job would be held."""
    async with (
        emulated(timing=20.0, input_echo=False) as emulator,
        session(emulator, database, poll=RARELY) as receiving,
        told(receiving) as url,
        session(emulator, database, poll=RARELY, webhook_url=url, watch=UNWATCHED, grace=86_400) as waiting,
    ):
        emulator.faults.add("submit", faults.AcceptThenDrop(), times=1)
        with anyio.fail_after(PATIENCE_S):
            assert (await waiting.generate(job("told"), key="k")).output
        assert len(emulator.charges()) == 1


async def test_unrecorded_paid_id_is_recorded_after_outage(database: str) -> None:
    async with (
        emulated(timing=60.0, input_echo=False) as emulator,
        anyio.create_task_group() as tasks,
        session(emulator, database) as other,
    ):
        wire = postgres.Cut(database)
        await tasks.start(wire.serve)
        ledger = PostgresLedger(wire.url, lease=LEASE, poll=0.2, patience=0.1)
        async with session(emulator, database, ledger=ledger) as kling:
            # Answered after the connection was cut, and given up before it is restored.
            emulator.faults.add("submit", faults.Delay(40.0, accepted=True), times=1)
            submitted = asyncio.create_task(kling.submit(job("paid"), key="k"))
            await until(database, State.INTENT, 1)
            ledger._queue._database._within = 0.5
            wire.cut()
            prediction = await submitted
            postgres.end_leases(database, ledger._lease.worker_id)
            await ledger_of(other)._lease.renew()
            await until(database, State.UNCERTAIN, 1)
            wire.mend()
            await until(database, State.COMPLETED, 1)
            found = await other._engine.ledger.find("", "k")
            assert found is not None
            assert found[0].prediction_id == prediction.id
        tasks.cancel_scope.cancel()


async def test_budget_is_shared_by_all_sessions(database: str) -> None:
    """The budget covers four jobs in each session alone."""

    async def run(emulator: Emulator, name: str) -> list[Outcome]:
        level = Level("test", 1_000_000, 100)
        jobs = [(f"{name}-{number}", job(f"{name} {number}")) for number in range(8)]
        async with (
            session(emulator, database, level=level) as kling,
            kling.batch(jobs, name="b", budget="2.00") as batch,
        ):
            return [outcome async for outcome in batch]

    async with emulated() as emulator:
        one, other = await asyncio.gather(run(emulator, "one"), run(emulator, "other"))
        assert len(emulator.charges()) == 4
        outcomes = [*one, *other]
        assert len([outcome for outcome in outcomes if outcome.ok]) == 4
        said = [str(outcome.error) for outcome in outcomes if not outcome.ok]
        assert all("the budget of $2.00 is used up" in error and "nothing was spent" in error for error in said), said


async def test_budget_is_shared_by_all_workers(database: str) -> None:
    async with emulated() as emulator:
        async with session(emulator, database) as kling:
            ledger = ledger_of(kling)
            jobs = [
                (f"{key}", await kling._engine.contents.read(job(f"{key}"), "b"), job("x").model) for key in range(12)
            ]
            await ledger.enqueue("b", jobs, at=0.0)

        async def work(budget: int) -> None:
            async with session(emulator, database, budget=budget) as kling:
                with pytest.raises(BudgetExceededError):
                    await Worker(kling, again=0.2).run()

        await asyncio.gather(work(2), work(2), work(2))
        assert len(emulator.charges()) == 4
        await asyncio.gather(work(4), work(4))
        assert len(emulator.charges()) == 8


class StrayLedger(PostgresLedger):
    """Raises `CancelledError` once in each of the methods whose names are in `left`."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.left: list[str] = []

    def stray(self, name: str) -> None:
        if name in self.left:
            self.left.remove(name)
            raise asyncio.CancelledError

    async def take(self, *args: Any, **options: Any) -> Any:
        self.stray("take")
        return await super().take(*args, **options)

    async def uploaded(self, *args: Any) -> str | None:
        self.stray("uploaded")
        return await super().uploaded(*args)

    async def record(self, entry: Entry) -> Row:
        if entry.state is State.SUBMITTED:
            self.stray("record")
        return await super().record(entry)


@pytest.mark.promise(2)
async def test_stray_cancellations_inside_of_the_ledger_end_no_worker(database: str) -> None:
    async with emulated() as emulator:
        ledger = StrayLedger(database, lease=LEASE, poll=0.2)
        async with session(emulator, database, ledger=ledger) as kling, working(kling, again=0.1):
            picture = Job(model="kling-v2.1-pro", prompt="x", image=png())
            jobs = [(key, await kling._engine.contents.read(picture, "b"), picture.model) for key in "abc"]
            await kling.upload(png())
            ledger.left += ["take", "uploaded", "record"]
            await ledger.enqueue("b", jobs, at=0.0)
            await until(database, State.COMPLETED, 3)
        assert ledger.left == []
        assert len(emulator.charges()) == 3


@pytest.mark.promise(1)
async def test_worker_of_a_restored_database_pays_for_no_job_of_later(database: str) -> None:
    """The database has lost the rows of two jobs, as an older copy; the service echoes inputs."""
    async with emulated(input_echo=True) as emulator:
        async with session(emulator, database) as kling, working(kling):
            await enqueue(ledger_of(kling), {key: job(key) for key in "abcd"}, batch="b")
            await until(database, State.COMPLETED, 4)
        lost = "(SELECT id FROM kling_job WHERE key IN ('c', 'd'))"
        postgres.rows(database, f"DELETE FROM kling_step WHERE job IN {lost}")
        postgres.rows(database, f"DELETE FROM kling_job WHERE id IN {lost}")
        async with session(emulator, database) as kling:
            await enqueue(ledger_of(kling), {key: job(key) for key in "abcde"}, batch="b")
            with anyio.fail_after(PATIENCE_S), pytest.raises(UnknownPredictionError, match="older copy"):
                await Worker(kling).run()
        assert len(emulator.charges()) <= 5, "e may have been sent before"
        postgres.rows(database, "UPDATE kling_job SET due_at = now()")  # a minute later otherwise
        async with session(emulator, database) as kling, working(kling, seen="pay"):
            await until(database, State.COMPLETED, 5)
        assert len(emulator.charges()) == 7, "c and d were paid for again, as told"


async def test_next_worker_retries_failed_job(database: str) -> None:
    """The first worker stops while it waits for the second attempt."""
    async with emulated(speed=2) as emulator:
        emulator.faults.add("submit", faults.FailTask(code=5000, seconds=1), times=1)
        emulator.faults.add("submit", faults.FailTask(code=1402, seconds=1), times=1)
        async with session(emulator, database, retry_failed=1) as kling, working(kling):
            ledger = ledger_of(kling)
            jobs = [(key, await kling._engine.contents.read(job(key), "b"), job(key).model) for key in "ab"]
            await ledger.enqueue("b", jobs, at=0.0)
            await until(database, State.FAILED, 2)
        assert len(emulator.charges()) == 2
        async with session(emulator, database) as kling, working(kling):
            await until(database, State.FAILED, 2)
            await anyio.sleep(0.5)
        assert len(emulator.charges()) == 2
        async with session(emulator, database, retry_failed=1) as kling, working(kling):
            await until(database, State.COMPLETED, 1)
        # An image that could not be loaded is not a fault of the service.
        assert len(emulator.charges()) == 3


async def test_any_process_serves_any_key(database: str) -> None:
    async with (
        emulated() as emulator,
        session(emulator, database) as one,
        session(emulator, database) as two,
        AsyncExitStack() as desks,
    ):
        here, there = JobDesk(), JobDesk()
        await desks.enter_async_context(here.open(one))
        await desks.enter_async_context(there.open(two))
        taken = await here.submit(job("a"), key="a")
        assert not taken.ended
        with pytest.raises(KeyReusedError):
            await there.submit(job("b"), key="a")
        with anyio.fail_after(PATIENCE_S):
            # The same job, submitted to the other process: awaited, not paid again.
            again = await there.generate(job("a"), key="a")
            assert (await here.generate(job("a"), key="a")).id == again.id
        assert (await there.get("a")).state == (await here.get("a")).state == "completed"
    assert len(emulator.charges()) == 1

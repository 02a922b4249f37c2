"""Jobs that another batch of a shared ledger has paid for: enqueued, taken by workers, sent by two sessions at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal

import anyio
import psycopg
import pytest

from kling_async import AlreadyPaidError, Job, KlingSession, Level, Outcome, Row, State, WatchPolicy, Worker, enqueue
from kling_async._core.seen import Seen
from kling_async.ledger import Content
from kling_async.ledger._postgres import statements
from kling_async.ledger.postgres import PostgresLedger
from kling_async.manifest import read_rows
from support import postgres
from support.patience import PATIENCE_S
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

LEVEL = Level("test", 1_000_000, 3)
LEASE_S = 600.0
JOBS: Mapping[str, Job] = {name: Job(prompt=name, image=IMAGE) for name in "xyz"}


def fast() -> Service:
    return Service(seconds=0.05, latency=0.001)


def session(service: Service, url: str, *, seen: Seen | None = None) -> KlingSession:
    ledger = PostgresLedger(url, lease=LEASE_S, poll=0.1)
    return open_session(service, ledger=ledger, watch=WatchPolicy.fixed(0.02), level=LEVEL, seen=seen)


async def run(kling: KlingSession, name: str, *, seen: Seen | None = None) -> dict[str, Outcome]:
    async with kling.batch(JOBS, name=name, seen=seen) as batch:
        return {outcome.key: outcome async for outcome in batch}


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(url, lease=LEASE_S, poll=0.1)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


async def worked(service: Service, url: str, *batches: str, seen: Seen | None = None, workers: int = 1) -> list[Row]:
    """Run workers until the batches have ended, and return the rows of the last one."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(session(service, url)) for _ in range(workers)]
        ledger = await stack.enter_async_context(opened(url))
        async with anyio.create_task_group() as tasks:
            for kling in sessions:
                tasks.start_soon(Worker(kling, seen=seen).run)
            with anyio.fail_after(PATIENCE_S):
                rows = [await ledger.outcome(batch, key) for batch in batches for key in JOBS]
            tasks.cancel_scope.cancel()
    return rows[-len(JOBS) :]


@pytest.mark.promise(1)
async def test_other_name_in_a_shared_ledger_is_refused_or_reused(database: str) -> None:
    service = fast()
    async with session(service, database) as kling:
        await run(kling, "a")
        assert not any(outcome.ok for outcome in (await run(kling, "b")).values())
        reused = await run(kling, "c", seen="reuse")
    assert [(outcome.ok, outcome.reused, outcome.cost) for outcome in reused.values()] == 3 * [(True, True, Decimal(0))]
    async with session(service, database) as kling, kling.resume(name="c") as batch:
        assert [outcome.reused async for outcome in batch] == 3 * [True]
    assert len(service.paid) == 3


@pytest.mark.promise(1)
async def test_two_sessions_at_once_pay_once(database: str) -> None:
    service = fast()
    async with session(service, database) as one, session(service, database) as other:
        first, second = await asyncio.gather(run(one, "a"), run(other, "b"))
    assert len(service.paid) <= 3
    for key in JOBS:
        assert not (first[key].ok and second[key].ok), key


@pytest.mark.promise(1)
async def test_only_one_of_two_claims_is_to_be_sent(database: str) -> None:
    content = Content("{}")
    async with opened(database) as one, opened(database) as other:
        for number in range(20):
            key = f"k{number}"
            await one.claim("a", key, content=content, model="m", at=0.0)
            await other.claim("b", key, content=content, model="m", at=0.0)
            found = await asyncio.gather(
                one.paid_elsewhere("a", key, digests=[content.digest], any_key=False),
                other.paid_elsewhere("b", key, digests=[content.digest], any_key=False),
            )
            assert sorted(len(rows) for rows in found) == [0, 1]


async def test_released_claim_does_not_count(database: str) -> None:
    content = Content("{}")
    async with opened(database) as other:
        async with opened(database) as one:
            await one.claim("a", "k", content=content, model="m", at=0.0)
            assert await one.paid_elsewhere("a", "k", digests=[content.digest], any_key=False) == []
            found = await other.paid_elsewhere("b", "k", digests=[content.digest], any_key=False)
            assert [row.batch for row in found] == ["a"]
        assert await other.paid_elsewhere("b", "k", digests=[content.digest], any_key=False) == []


async def test_index_finds_jobs_of_other_batches(database: str) -> None:
    async with opened(database):
        pass
    values = {"account": "default", "digests": ["d", "e"], "batch": "b", "key": "k", "any_key": False}
    with psycopg.connect(database) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN {statements.PAID_ELSEWHERE}".encode(), values).fetchall()
    assert any("kling_job_sent" in line for (line,) in plan)


@pytest.mark.promise(1)
async def test_enqueue_refuses_what_another_batch_has_paid_for(database: str) -> None:
    service = fast()
    async with session(service, database) as kling:
        await run(kling, "a")
    async with opened(database) as ledger:
        with pytest.raises(AlreadyPaidError, match=r"3 jobs of batch 'b' were sent in batch 'a' already.*\$0\.75"):
            await enqueue(ledger, JOBS, batch="b")
        rows = [{"key": key, "prompt": key, "image": IMAGE} for key in ["new", *JOBS]]
        with pytest.raises(AlreadyPaidError) as caught:
            await enqueue(ledger, read_rows(rows), batch="b")
        assert (caught.value.batch, caught.value.jobs) == ("a", 3)
        assert await ledger.keys("b", State) == []
        assert await enqueue(ledger, JOBS, batch="a") == 0, "its own batch is enqueued again as ever"
    assert len(service.paid) == 3
    async with session(service, database) as kling:
        await run(kling, "b", seen="pay")
    async with opened(database) as ledger:
        assert await enqueue(ledger, JOBS, batch="b") == 0, "its own jobs are not another's"


@pytest.mark.promise(1)
@pytest.mark.parametrize("workers", [1, 3])
async def test_batches_enqueued_before_either_was_sent_are_paid_for_once(database: str, workers: int) -> None:
    service = fast()
    async with opened(database) as ledger:
        for batch in ("a", "b"):
            assert await enqueue(ledger, JOBS, batch=batch) == 3
    await worked(service, database, "a", "b", workers=workers)
    assert len(service.paid) == 3
    states = postgres.rows(database, "SELECT state, count(*) FROM kling_job GROUP BY state ORDER BY state")
    assert states == [("completed", 3), ("rejected", 3)]
    reasons = postgres.rows(database, "SELECT error FROM kling_job WHERE state = 'rejected'")
    assert all("already" in str(error) for (error,) in reasons)


@pytest.mark.parametrize(("seen", "paid"), [("reuse", 3), ("pay", 6)])
async def test_choice_at_enqueueing_goes_with_the_jobs(database: str, seen: Seen, paid: int) -> None:
    service = fast()
    async with session(service, database) as kling:
        await run(kling, "a")
    async with opened(database) as ledger:
        assert await enqueue(ledger, JOBS, batch="b", seen=seen) == 3
    rows = await worked(service, database, "b")
    assert {row.state for row in rows} == {State.REUSED if seen == "reuse" else State.COMPLETED}
    assert len(service.paid) == paid

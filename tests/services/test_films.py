"""Films over the shared ledger: a worker claims a clip once its parent has a video, whichever worker made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from kling_async import InvalidJobError, Job, Level, State, WatchPolicy, Worker, enqueue, read_ledger
from kling_async.ledger import Entry
from kling_async.ledger.postgres import PostgresLedger
from kling_async.manifest import read_rows
from support import postgres
from support.films import chain, clip, pictures, take_ids
from support.patience import PATIENCE_S
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

FAST = WatchPolicy.fixed(0.05)
LEVEL = Level("test", 1_000_000, 20)


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return take_ids(monkeypatch, 0.0)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(url, lease=600.0, poll=0.2, patience=PATIENCE_S)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


async def work(service: Service, url: str, count: int = 1, **options: Any) -> None:
    """Run workers until every job has ended."""
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        for _ in range(count):
            ledger = PostgresLedger(url, lease=600.0, poll=0.2, patience=PATIENCE_S)
            kling = await stack.enter_async_context(open_session(service, watch=FAST, ledger=ledger, **options))
            tasks.start_soon(Worker(kling, again=1.0).run)
        with anyio.fail_after(2 * PATIENCE_S):
            while any(not row.state.ended for row in read_ledger(url)):  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()


def states(url: str) -> dict[str, State]:
    return {row.key: row.state for row in read_ledger(url)}


async def test_three_workers_make_films_whole_and_pay_for_each_clip_once(database: str) -> None:
    service = Service(seconds=0.2, latency=0.002)
    jobs: dict[str, Job] = {}
    for film in range(8):
        jobs |= chain(f"f{film}", 4)
    jobs["side"] = clip("side", "f0-1")
    async with opened(database) as ledger:
        assert await enqueue(ledger, dict(reversed(jobs.items())), batch="films") == 33
        assert await enqueue(ledger, jobs, batch="films") == 0
    await work(service, database, 3)
    assert {*states(database).values()} == {State.COMPLETED}
    assert Counter(body["prompt"] for body in service.paid) == Counter(jobs.keys())
    expected = {key: job.parents[0] for key, job in jobs.items() if job.parents}
    assert pictures(service) == expected


async def test_clip_is_claimed_only_when_its_parent_has_a_video(database: str) -> None:
    async with opened(database) as ledger, opened(database) as other:
        await enqueue(ledger, chain("film", 2), batch="films")
        (taken,) = await ledger.take(10, LEVEL)
        assert taken[0].key == "film-0"
        assert not await other.take(10, LEVEL)
        step = Entry(batch="films", key="film-0", state=State.INTENT, at=1.0, attempt=1)
        await ledger.record(step)
        for state in (State.SUBMITTED, State.COMPLETED):
            assert not await other.take(10, LEVEL)
            await ledger.record(
                Entry(
                    batch="films", key="film-0", state=state, at=2.0, prediction_id="p1", output="https://o.example/1"
                )
            )
        (claimed,) = await other.take(10, LEVEL)
        assert claimed[0].key == "film-1"
        assert claimed[1].parents == ("film-0",)


async def test_failed_clip_ends_what_continues_it_until_it_has_a_video(database: str) -> None:
    service = Service(seconds=0.1, latency=0.002, failures={"film-1": {"error": "internal", "code": 5000}})
    async with opened(database) as ledger:
        await enqueue(ledger, {**chain("film", 4), "side": clip("side", "film-0")}, batch="films")
    await work(service, database)
    assert states(database) == {
        "film-0": State.COMPLETED,
        "film-1": State.FAILED,
        "film-2": State.SKIPPED,
        "film-3": State.SKIPPED,
        "side": State.COMPLETED,
    }
    errors = {row.key: row.error for row in read_ledger(database)}
    assert errors["film-2"] == "never submitted: it continues the job 'film-1', which has no video"
    assert errors["film-3"] == "never submitted: it continues the job 'film-2', which has no video"
    assert len(service.paid) == 3
    service.failures.clear()
    # Another worker tries the failed one again, and its video wakes the rest.
    async with (
        open_session(service, watch=FAST, ledger=database, retry_failed=2) as kling,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(Worker(kling, again=1.0).run)
        with anyio.fail_after(2 * PATIENCE_S):
            while {*states(database).values()} != {State.COMPLETED}:  # noqa: ASYNC110 -- as above
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    assert Counter(body["prompt"] for body in service.paid)["film-1"] == 2
    assert len(service.paid) == 6


async def test_batch_and_worker_share_a_film(database: str) -> None:
    """Clips that a batch has read are in the ledger, and a worker may be the one that makes them."""
    service = Service(seconds=0.3, latency=0.002)
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        worker = await stack.enter_async_context(open_session(service, watch=FAST, ledger=database))
        tasks.start_soon(Worker(worker, again=1.0).run)
        kling = await stack.enter_async_context(open_session(service, watch=FAST, ledger=database))
        async with kling.batch(chain("film", 5), name="films") as batch:
            with anyio.fail_after(2 * PATIENCE_S):
                outcomes = [outcome async for outcome in batch]
        tasks.cancel_scope.cancel()
    assert [outcome.key for outcome in outcomes if outcome.ok] == [f"film-{number}" for number in range(5)]
    assert len(service.paid) == 5


async def test_manifests_are_enqueued_in_any_order_and_broken_chains_not_at_all(database: str) -> None:
    rows = [{"key": "b", "prompt": "b", "continues": "a"}, {"key": "a", "prompt": "a", "image": IMAGE}]
    async with opened(database) as ledger:
        assert await enqueue(ledger, read_rows(rows), batch="films") == 2
        with pytest.raises(InvalidJobError, match="x: continues 'y', which is no key of the same batch"):
            await enqueue(ledger, {"x": clip("x", "y")}, batch="films")
        found = await ledger.find("films", "b")
    assert found is not None
    assert found[1].frames == '{"image": "a"}'
    assert postgres.rows(database, "SELECT count(*) FROM kling_parent") == [(1,)]

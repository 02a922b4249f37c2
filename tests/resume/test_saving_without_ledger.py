"""Saving of paid videos while the ledger cannot be written: full disk, read-only disk, lock of another program."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kling_async import HttpRequest, HttpResponse, Job, KlingSession, Outcome, Spent, State, WatchPolicy, read_ledger
from kling_async.events import Accepted, Event, Retrying
from kling_async.ledger import SQLiteLedger
from support.clocks import AdjustedClock
from support.service import IMAGE, Service, open_session
from support.videos import mp4

pytestmark = pytest.mark.anyio

VIDEO = mp4(5_000)
JOBS = 12
BLOCKED = ("full", "read-only", "locked")


def new_service(**options: Any) -> Service:
    """Return a service whose outputs can be downloaded."""

    def script(request: HttpRequest, _: dict[str, Any]) -> HttpResponse | None:
        if "outputs.example" not in request.url:
            return None
        return HttpResponse(status=200, headers={"content-type": "video/mp4"}, body=VIDEO)

    return Service(seconds=0.3, latency=0.001, script=script, **options)


def block(ledger: SQLiteLedger, how: str, meddler: sqlite3.Connection) -> None:
    """Make the ledger unable to take more."""
    if how == "locked":
        meddler.execute("BEGIN IMMEDIATE")
    else:
        pragma = "max_page_count = 1" if how == "full" else "query_only = 1"
        ledger._writer.put(lambda connection: connection.execute(f"PRAGMA {pragma}").fetchone())


async def run(
    path: Path, service: Service, *, blocks: Callable[[Event], bool] = lambda _: False, how: str = "", **options: Any
) -> list[Outcome]:
    """Run the same batch; the ledger is blocked from an event on, until the batch has ended."""
    ledger = SQLiteLedger(path, lock_timeout=0.05)
    count = options.pop("count", JOBS)
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as meddler:

        def observe(event: Event) -> None:
            if blocks(event):
                block(ledger, how, meddler)

        kling: KlingSession = open_session(
            service, ledger=ledger, observers=[observe], watch=WatchPolicy.fixed(0.02), grace=0.05, **options
        )
        jobs = [Job(prompt=f"number {number}", image=IMAGE) for number in range(count)]
        async with kling:
            async with kling.batch(jobs, name="b", save_to=path.parent / "videos") as batch:
                outcomes = [outcome async for outcome in batch]
            if meddler.in_transaction:
                meddler.execute("ROLLBACK")
    return outcomes


@pytest.mark.promise(1, 2)
@pytest.mark.parametrize("how", BLOCKED)
async def test_videos_are_saved_while_the_ledger_cannot_be_written(how: str, tmp_path: Path) -> None:
    service = new_service()
    accepted = 0

    def all_are_accepted(event: Event) -> bool:
        nonlocal accepted
        accepted += isinstance(event, Accepted)
        return isinstance(event, Accepted) and accepted == JOBS

    outcomes = await run(tmp_path / "run.db", service, blocks=all_are_accepted, how=how)
    assert [outcome.error for outcome in outcomes] == [None] * JOBS
    for outcome in outcomes:
        assert outcome.saved is not None
        assert outcome.saved.path.read_bytes() == VIDEO
    unsaved = [row for row in read_ledger(tmp_path / "run.db") if row.state is not State.DOWNLOADED]
    assert unsaved, "the ledger could be written"
    again = await run(tmp_path / "run.db", service)
    assert [(outcome.error, outcome.saved) for outcome in again] == [(None, outcome.saved) for outcome in again]
    assert {outcome.saved for outcome in again} == {outcome.saved for outcome in outcomes}
    assert {row.state for row in read_ledger(tmp_path / "run.db")} == {State.DOWNLOADED}
    assert len(service.paid) == JOBS


async def test_failed_retry_tells_what_the_first_attempt_spent(tmp_path: Path) -> None:
    """Nothing was spent on the second attempt, and the first was paid for and may be refunded."""
    service = new_service(failures={"number 0": {"code": 5000, "error": "internal"}})
    (outcome,) = await run(
        tmp_path / "run.db",
        service,
        blocks=lambda event: isinstance(event, Retrying),
        how="locked",
        clock=AdjustedClock(service, pace=0.01),
        retry_failed=1,
        count=1,
    )
    assert outcome.error is not None
    assert "locked" in outcome.error.message
    assert outcome.error.spent is Spent.REFUNDABLE
    assert len(service.paid) == 1

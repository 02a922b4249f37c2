"""Claims among many thousands of jobs under a cap: constant cost, by the indexes."""

from __future__ import annotations

import json
import os
import time
from statistics import median
from typing import Any

import psycopg
import pytest

from kling_async import Level
from kling_async.ledger import Content, Entry, State
from kling_async.ledger._postgres import statements
from kling_async.ledger.postgres import PostgresLedger

pytestmark = pytest.mark.anyio

JOBS = int(os.environ.get("KLING_CLAIM_JOBS", "20000"))
CLAIMED = int(os.environ.get("KLING_CLAIMED_JOBS", "1000"))
"""Jobs claimed at the beginning, and again when all but this many have ended."""
CAP = 300


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Yield a plan's nodes from the root down."""
    return [plan, *(node for below in plan.get("Plans", ()) for node in nodes(below))]


def explained(url: str, query: str, values: dict[str, Any], how: bytes = b"FORMAT JSON") -> list[dict[str, Any]]:
    with psycopg.connect(url) as connection:
        found = connection.execute(b"EXPLAIN (" + how + b") " + query.encode(), values).fetchone()
        assert found is not None
        plan = found[0] if isinstance(found[0], list) else json.loads(found[0])
        connection.rollback()
    return nodes(plan[0]["Plan"])


def pages(url: str, values: dict[str, Any]) -> int:
    """Return the number of pages a second claim reads; the first one marks dead index entries."""
    _, top = (explained(url, statements.CLAIM, values, b"ANALYZE, BUFFERS, FORMAT JSON")[0] for _ in range(2))
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


async def fill(ledger: PostgresLedger, jobs: int) -> None:
    for start in range(0, jobs, 10_000):
        some = [(f"job-{number:06}", Content(f'{{"n":{number}}}'), "m") for number in range(start, start + 10_000)]
        await ledger.enqueue("b", some, at=0.0)
    await ledger.analyze()


async def drain(ledger: PostgresLedger, jobs: int, level: Level) -> list[float]:
    """Claim and end `count` jobs, ten at a time; return claims per second for every hundred."""
    rates: list[float] = []
    for _ in range(0, jobs, 100):
        spent = 0.0
        for _ in range(10):
            start = time.perf_counter()
            taken = await ledger.take(10, level)
            spent += time.perf_counter() - start
            assert len(taken) == 10
            for row, _ in taken:
                ledger.note(Entry(batch="b", key=row.key, state=State.REJECTED, at=1.0))
                ledger.give_back("b", row.key, again=None)
            # Commit before the next claim is timed.
            await ledger.find("b", row.key)
        rates.append(100 / spent)
    return rates


@pytest.mark.timeout(600)
async def test_claim_cost_is_constant_and_uses_indexes(database: str) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    level = Level("test", 1_000_000_000, CAP)
    try:
        await fill(ledger, JOBS)
        # All slots are taken.
        running = await ledger.take(CAP - 20, level)
        assert len(running) == CAP - 20
        values = {
            **ledger._queue.limits(level),
            "worker_id": "me",
            "limit": 10,
            "states": ["submitted"],
            "batch": None,
            "failures": 1,
            "senders": [],
            "callers": [""],
            "numbers": [10],
            "started": [0.0],
            "virtual": 0.0,
        }
        looked_at = [pages(database, values)]
        first = await drain(ledger, CLAIMED, level)
        for query, index in (
            (statements.CLAIM, {"kling_job_ready", "kling_job_pkey"}),
            (statements.WAITING, {"kling_job_ready", "kling_job_slot"}),
            (statements.FREE_SLOTS, {"kling_job_slot"}),
            # Unowned rows are found among those that take a slot, by the smaller index.
            (statements.CLAIM_OPEN, {"kling_job_pkey"}),
            (statements.CLAIM_UNSAVED, {"kling_job_unsaved", "kling_job_pkey"}),
            (statements.CLAIM_FAILED, {"kling_job_failed", "kling_job_pkey"}),
        ):
            found = explained(database, query, values)
            # There is a row of `kling_caller` for each caller who ever waited, here one.
            scans = {node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan"}
            assert scans <= {"kling_caller"}, found
            assert index <= {node.get("Index Name") for node in found}
        # All but the last thousands end, as after days of work.
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "UPDATE kling_job SET state = 'completed', started_at = now() - interval '1 hour' WHERE id IN "
                "(SELECT id FROM kling_job WHERE state = 'pending' ORDER BY id DESC OFFSET %s)",
                [CLAIMED],
            )
            # As autovacuum does eventually.
            connection.execute("VACUUM kling_job")
        looked_at.append(pages(database, values))
        last = await drain(ledger, CLAIMED, level)
        looked_at.append(pages(database, values))
    finally:
        await ledger.aclose()
    rates = f"{median(first):.0f} claims/s at first, {median(last):.0f} at last"
    print(f"{JOBS} rows: {rates}, cap {CAP}; pages {looked_at}")
    # Compare pages, because times depend on the load of the machine.
    assert max(looked_at) < 2 * looked_at[0], looked_at

"""Callers who share the claims of several workers over one ledger in PostgreSQL."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from decimal import Decimal
from functools import partial
from itertools import pairwise

import anyio
import attrs
import pytest

from kling_async import CallerBudgetExceededError, Level
from kling_async._core.budget import Cap
from kling_async._core.content import Content
from kling_async._core.states import Entry, State
from kling_async.ledger.postgres import PostgresLedger
from support import postgres
from support.patience import PATIENCE_S
from support.shares import CALLERS, worst_deviation

pytestmark = pytest.mark.anyio

JOBS = int(os.environ.get("KLING_CALLER_JOBS", "150"))
"""Jobs of each caller."""
CLAIMED = int(os.environ.get("KLING_CALLER_STARTS", "1500"))
"""Jobs that three workers claim, while each caller has some left."""
ROWS_READ = """
SELECT coalesce(sum(i.read), 0) + coalesce(sum(t.seq_tup_read), 0) FROM pg_stat_user_tables t
CROSS JOIN LATERAL (SELECT sum(idx_tup_read) AS read FROM pg_stat_user_indexes WHERE relid = t.relid) AS i
"""
OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
LEVEL = Level("test", 1_000_000_000, 100)


def content(caller: str, number: int, priority: int = 0) -> Content:
    return Content(f'{{"of":"{caller}","n":{number}}}', caller=caller, priority=priority)


async def enqueue(ledger: PostgresLedger, jobs: list[tuple[str, int]]) -> None:
    for start in range(0, len(jobs), 10_000):
        some = jobs[start : start + 10_000]
        await ledger.enqueue("b", [(f"{caller} {n}", content(caller, n), "m") for caller, n in some], at=0.0)
    await ledger.analyze()


async def work(
    ledger: PostgresLedger, taken: list[str], count: int, *, at_once: int, times: list[float] | None = None
) -> None:
    """Claim and end jobs until so many were claimed; add the callers to `taken`, and the seconds of the clock."""
    while len(taken) < count:
        claimed = await ledger.take(at_once, LEVEL, callers=lambda caller: (CALLERS.get(caller, 1.0), None))
        assert claimed
        taken += [found.caller for _, found in claimed]
        if times is not None:
            times += [time.perf_counter()] * len(claimed)
        for row, _ in claimed:
            ledger.note(Entry(batch="b", key=row.key, state=State.REJECTED, at=1.0))
            ledger.give_back("b", row.key, again=None)
        # Commit before the next claim.
        await ledger.find("b", claimed[-1][0].key)


@pytest.mark.timeout(900)
async def test_three_workers_share_their_claims_by_weight(database: str) -> None:
    ledgers = [PostgresLedger(database) for _ in range(3)]
    for ledger in ledgers:
        await ledger.open()
    jobs = [(caller, number) for caller in CALLERS for number in range(JOBS)]
    random.Random(7).shuffle(jobs)
    taken: list[str] = []
    times: list[float] = []
    try:
        await enqueue(ledgers[0], jobs)
        async with anyio.create_task_group() as tasks:
            for at_once, ledger in zip((1, 5, 13), ledgers, strict=True):
                tasks.start_soon(partial(work, ledger, taken, CLAIMED, at_once=at_once, times=times))
    finally:
        for ledger in ledgers:
            await ledger.aclose()
    quarter = CLAIMED // 4
    rates = [f"{quarter / (times[at + quarter - 1] - times[at]):.0f}" for at in range(0, 4 * quarter, quarter)]
    for window in (200, 2000):
        if len(taken) >= window:
            worst = worst_deviation(taken, window)
            print(
                f"{len(jobs):,} rows: off by at most {worst:.1f} of any {window:,} claims; {'; '.join(rates)} claims/s"
            )
            assert worst <= 5


async def test_a_list_with_callers_is_added_at_constant_cost(database: str) -> None:
    """Until the planner knows the tables, statements about jobs that exist read all of them."""
    read = [0]
    for start in range(0, 12_000, 4_000):
        ledger = PostgresLedger(database)
        await ledger.open()
        try:
            jobs = [(f"{n}", content(f"caller {n % 20}", n), "m") for n in range(start, start + 4_000)]
            await ledger.enqueue("b", jobs, at=0.0)
        finally:
            await ledger.aclose()
        # A server process counts what it has read when it ends.
        with anyio.fail_after(PATIENCE_S):
            while postgres.rows(database, OTHERS) != [(0,)]:  # noqa: ASYNC110 -- another process's
                await anyio.sleep(0.05)
        read.append(int(str(postgres.rows(database, ROWS_READ)[0][0])))
    first, *_, last = (after - before for before, after in pairwise(read))
    assert last <= 2 * first + 100, read


async def test_a_newcomer_is_claimed_within_one_round(database: str) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    taken: list[str] = []
    try:
        await enqueue(ledger, [(caller, number) for caller in CALLERS for number in range(20)])
        await work(ledger, taken, 100, at_once=10)
        await enqueue(ledger, [("newcomer", 0)])
        await work(ledger, taken, 170, at_once=10)
    finally:
        await ledger.aclose()
    assert "newcomer" in taken[100:170], "the weights add up to 61"


async def test_priorities_order_the_jobs_of_a_caller(database: str) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    try:
        jobs = [
            (f"{caller} {priority}", content(caller, priority, priority), "m")
            for caller in "ab"
            for priority in (0, 9, -9)
        ]
        await ledger.enqueue("b", jobs, at=0.0)
        keys = [row.key for _ in range(6) for row, _ in await ledger.take(1, LEVEL)]
    finally:
        await ledger.aclose()
    assert [key for key in keys if key.startswith("a")] == ["a 9", "a 0", "a -9"]
    assert Counter(key[0] for key in keys[:4]) == {"a": 2, "b": 2}


async def test_a_callers_budget_holds_over_all_workers(database: str) -> None:
    ledgers = [PostgresLedger(database) for _ in range(2)]
    for ledger in ledgers:
        await ledger.open()
    price = Decimal("0.45")
    try:
        await enqueue(ledgers[0], [(caller, number) for caller in ("few", "many") for number in range(4)])
        admitted, refused = Counter[str](), Counter[str]()
        for ledger in ledgers:
            for row, found in await ledger.take(4, LEVEL):
                caps = [Cap(Decimal("1.00"), None, found.caller)] if found.caller == "few" else []
                try:
                    await ledger.admit("b", row.key, LEVEL, price, caps)
                except CallerBudgetExceededError as error:
                    refused[error.caller] += 1
                    continue
                admitted[found.caller] += 1
                await ledger.record(Entry(batch="b", key=row.key, state=State.INTENT, at=1.0, cost=price))
                await ledger.record(
                    Entry(batch="b", key=row.key, state=State.SUBMITTED, at=2.0, prediction_id=f"p-{row.key}")
                )
        assert admitted == {"few": 2, "many": 4}
        assert refused == {"few": 2}
        assert await ledgers[0].spent(None, caller="few") == 2 * price
    finally:
        for ledger in ledgers:
            await ledger.aclose()


async def test_a_callers_limit_holds_over_all_workers(database: str) -> None:
    ledgers = [PostgresLedger(database) for _ in range(2)]
    for ledger in ledgers:
        await ledger.open()
    try:
        await enqueue(ledgers[0], [("few", number) for number in range(5)] + [("many", number) for number in range(5)])
        claimed = Counter[str]()
        for ledger in ledgers:
            found = await ledger.take(10, LEVEL, callers=lambda caller: (1.0, 3 if caller == "few" else None))
            claimed.update(content.caller for _, content in found)
        assert claimed == {"few": 3, "many": 5}
    finally:
        for ledger in ledgers:
            await ledger.aclose()


@pytest.mark.parametrize("paid", [False, True])
async def test_a_session_renews_callers_but_for_who_has_paid(database: str, *, paid: bool) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    given = content("ann", 0, 1)
    try:
        await ledger.claim("b", "k", content=given, model="m", at=0.0)
        if paid:
            await ledger.record(Entry(batch="b", key="k", state=State.INTENT, at=1.0, cost=Decimal("1.50")))
            await ledger.record(Entry(batch="b", key="k", state=State.SUBMITTED, at=2.0, prediction_id="p1"))
            await ledger.record(Entry(batch="b", key="k", state=State.COMPLETED, at=3.0, prediction_id="p1"))
        for caller, priority in (("", 2), ("bob", 0)):
            ledger.unclaim("b", "k")
            await ledger.claim(
                "b", "k", content=attrs.evolve(given, caller=caller, priority=priority), model="m", at=4.0
            )
        found = await ledger.find("b", "k")
        assert found is not None
        assert (found[0].caller, found[0].priority) == ("ann" if paid else "bob", 2)
        assert await ledger.spent(None, caller="ann") == (Decimal("1.50") if paid else 0)
    finally:
        await ledger.aclose()

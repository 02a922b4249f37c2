"""Callers who share the claims of several workers over one ledger in PostgreSQL."""

from __future__ import annotations

import random
from collections import Counter
from decimal import Decimal
from itertools import accumulate

import anyio
import attrs
import pytest

from kling_async import CallerBudgetExceededError, Level
from kling_async._core.budget import Cap
from kling_async._core.content import Content
from kling_async._core.states import Entry, State
from kling_async.ledger.postgres import PostgresLedger

pytestmark = pytest.mark.anyio

WEIGHTS = {f"caller-{number:02}": 1.0 + number % 5 for number in range(20)}
LEVEL = Level("test", 1_000_000_000, 100)


def content(caller: str, number: int, priority: int = 0) -> Content:
    return Content(f'{{"of":"{caller}","n":{number}}}', caller=caller, priority=priority)


async def enqueue(ledger: PostgresLedger, jobs: list[tuple[str, int]]) -> None:
    await ledger.enqueue("b", [(f"{caller} {number}", content(caller, number), "m") for caller, number in jobs], at=0.0)
    await ledger.analyze()


async def work(ledger: PostgresLedger, taken: list[str], count: int, *, at_once: int) -> None:
    """Claim and end jobs until so many were claimed; add the callers to `taken`."""
    while len(taken) < count:
        claimed = await ledger.take(at_once, LEVEL, callers=lambda caller: (WEIGHTS.get(caller, 1.0), None))
        assert claimed
        taken += [found.caller for _, found in claimed]
        for row, _ in claimed:
            ledger.note(Entry(batch="b", key=row.key, state=State.REJECTED, at=1.0))
            ledger.give_back("b", row.key, again=None)
        # Commit before the next claim.
        await ledger.find("b", claimed[-1][0].key)


async def test_three_workers_share_their_claims_by_weight(database: str) -> None:
    ledgers = [PostgresLedger(database) for _ in range(3)]
    for ledger in ledgers:
        await ledger.open()
    jobs = [(caller, number) for caller in WEIGHTS for number in range(150)]
    random.Random(7).shuffle(jobs)
    taken: list[str] = []
    try:
        await enqueue(ledgers[0], jobs)
        async with anyio.create_task_group() as tasks:
            for at_once, ledger in zip((1, 5, 13), ledgers, strict=True):
                tasks.start_soon(lambda of, many: work(of, taken, 1500, at_once=many), ledger, at_once)
    finally:
        for ledger in ledgers:
            await ledger.aclose()
    total = sum(WEIGHTS.values())
    for caller, weight in WEIGHTS.items():
        sums = [0, *accumulate(each == caller for each in taken)]
        share = 200 * weight / total
        assert max(abs(sums[at + 200] - sums[at] - share) for at in range(len(taken) - 199)) <= 5


async def test_a_newcomer_is_claimed_within_one_round(database: str) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    taken: list[str] = []
    try:
        await enqueue(ledger, [(caller, number) for caller in WEIGHTS for number in range(20)])
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

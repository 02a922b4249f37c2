"""Budgets of callers, counted over sessions."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from kling_async import CallerBudgetExceededError, CallerLimits, Job, Outcome, WatchPolicy, read_ledger
from kling_async.ledger import Content, Entry, SQLiteLedger, State
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

LIMITS = {"a": CallerLimits(usd="1.00")}


async def run(service: Service, ledger: Path, *callers: str, first: int = 0) -> list[Outcome]:
    """Run three jobs of each caller in a session of its own."""
    jobs = [
        Job(model="kling-v2.1-pro", prompt=f"{caller} {number}", image=IMAGE, caller=caller, priority=number)
        for number in range(first, first + 3)
        for caller in callers
    ]
    async with (
        open_session(service, ledger=ledger, callers=LIMITS, watch=WatchPolicy.fixed(0.02)) as kling,
        kling.batch(jobs, name="+".join(callers)) as batch,
    ):
        return [outcome async for outcome in batch]


async def test_a_callers_budget_stops_its_own_jobs_alone(tmp_path: Path) -> None:
    service, ledger = Service(seconds=0.05, latency=0.001), tmp_path / "run.db"
    outcomes = await run(service, ledger, "a", "b")
    refused = [outcome for outcome in outcomes if not outcome.ok]
    assert Counter(body["prompt"][0] for body in service.paid) == {"a": 2, "b": 3}
    assert len(refused) == 1
    error = refused[0].error
    assert isinstance(error, CallerBudgetExceededError)
    found = error.caller, error.budget, error.used, error.price
    assert found == ("a", Decimal("1.00"), Decimal("0.90"), Decimal("0.45"))
    # A later session counts what the ledger has, of other batches too.
    again = await run(service, ledger, "a", first=3)
    assert Counter(body["prompt"][0] for body in service.paid) == {"a": 2, "b": 3}
    assert all(isinstance(outcome.error, CallerBudgetExceededError) for outcome in again)


async def test_a_ledger_knows_callers_and_priorities(tmp_path: Path) -> None:
    service, ledger = Service(seconds=0.05, latency=0.001), tmp_path / "run.db"
    await run(service, ledger, "b")
    assert sorted((row.caller, row.priority) for row in read_ledger(ledger)) == [("b", 0), ("b", 1), ("b", 2)]


@pytest.mark.parametrize("paid", [False, True])
async def test_who_has_paid_stays_and_the_rest_is_as_given_last(tmp_path: Path, *, paid: bool) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    try:
        content = Content("{}", caller="ann", priority=1)
        await ledger.claim("b", "k", content=content, model="m", at=0.0)
        if paid:
            await ledger.record(Entry(batch="b", key="k", state=State.INTENT, at=1.0, cost=Decimal("1.50")))
            await ledger.record(Entry(batch="b", key="k", state=State.SUBMITTED, at=2.0, prediction_id="p1"))
        await ledger.claim("b", "k", content=Content("{}", priority=2), model="m", at=3.0)
        row = await ledger.claim("b", "k", content=Content("{}", caller="bob"), model="m", at=4.0)
        assert (row.caller, row.priority) == ("ann" if paid else "bob", 2)
        assert await ledger.spent(None, caller="ann") == (Decimal("1.50") if paid else 0)
    finally:
        await ledger.aclose()

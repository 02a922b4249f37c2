"""Budgets of callers, counted over sessions."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from kling_async import CallerBudgetExceededError, CallerLimits, Job, Outcome, WatchPolicy, read_ledger
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

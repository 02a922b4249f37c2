"""`retry_failed`: predictions that failed by a fault of the service are paid again, and every payment is counted."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from kling_async import Budget, BudgetExceededError, Job, PredictionFailedError, events
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


def failing(times: int, code: int) -> Service:
    """Return a service that fails the first predictions of the prompt "bad"."""
    service = Service()

    def seconds(body: dict[str, Any]) -> float:
        if body["prompt"] == "bad" and len(service.paid) >= times:
            service.failures.pop("bad", None)
        return 30.0

    service.seconds = seconds
    service.failures["bad"] = {"code": code, "error": "trouble"}
    return service


async def generate(service: Service, **options: Any) -> str | None:
    async with open_session(service, **options) as kling:
        return (await kling.generate(model="kling-v2.1-pro", prompt="bad", image=IMAGE)).output


@pytest.mark.parametrize("code", [5000, 5003, 5004])
async def test_service_failure_is_retried_up_to_retry_failed(code: int) -> None:
    told: list[events.Event] = []
    budget = Budget(5)
    service = failing(2, code)
    assert await generate(service, retry_failed=2, observers=[told.append], budget=budget)
    assert len(service.paid) == 3
    assert budget.spent == Decimal("1.35")
    assert [event.prediction.code for event in told if isinstance(event, events.Retrying)] == [code, code]
    service = failing(3, code)
    with pytest.raises(PredictionFailedError):
        await generate(service, retry_failed=2)
    assert len(service.paid) == 3


@pytest.mark.parametrize("code", [1200, 1400, 1401, 1402, 1403, 1405, 1407, 5001, 0])
async def test_other_failures_are_not_retried(code: int) -> None:
    service = failing(1, code)
    with pytest.raises(PredictionFailedError):
        await generate(service, retry_failed=5)
    assert len(service.paid) == 1


async def test_retry_failed_is_off_by_default() -> None:
    service = failing(1, 5000)
    with pytest.raises(PredictionFailedError):
        await generate(service)
    assert len(service.paid) == 1


async def test_budget_bounds_retries() -> None:
    service = failing(9, 5000)
    with pytest.raises(BudgetExceededError):
        await generate(service, retry_failed=9, budget="1.00")
    assert len(service.paid) == 2


async def test_batch_counts_every_payment() -> None:
    service = failing(1, 5000)
    async with (
        open_session(service, retry_failed=1) as kling,
        kling.batch([Job(model="kling-v2.1-pro", prompt="bad", image=IMAGE)]) as batch,
    ):
        (outcome,) = [outcome async for outcome in batch]
        statistics = batch.statistics()
    assert outcome.ok
    assert outcome.cost == Decimal("0.90")
    assert (statistics.waiting, statistics.running, statistics.completed) == (0, 0, 1)


async def test_wait_for_next_attempt_can_be_cancelled() -> None:
    service = failing(9, 5000)
    failed = asyncio.Event()

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Retrying):
            failed.set()

    async with open_session(service, retry_failed=9, observers=[observe]) as kling:
        task = asyncio.create_task(kling.generate(model="kling-v2.1-pro", prompt="bad", image=IMAGE))
        await failed.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert kling._engine.slots.taken == 0

"""Budgets of sessions: never exceeded, however submissions end."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from kling_async import (
    Budget,
    BudgetExceededError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    Job,
    KlingSession,
    Outcome,
    PredictionFailedError,
    PriceUnknownError,
    RequestRejectedError,
    SkippedError,
    State,
    SubmissionUncertainError,
)
from kling_async._core.http import Effect
from kling_async.ledger import Content, Entry, MemoryLedger, Row
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

PRO = "kling-v2.1-pro"
"""Model that costs 0.45 USD by the vendor's price page."""


async def outcomes(kling: KlingSession, count: int, **options: Any) -> list[Outcome]:
    jobs = (Job(model=PRO, prompt=f"number {number}", image=IMAGE) for number in range(count))
    async with kling.batch(jobs, **options) as batch:
        return [outcome async for outcome in batch]


async def test_batch_stops_at_budget_and_skips_rest() -> None:
    service = Service()
    budget = Budget("2.00")
    async with open_session(service) as kling:
        found = await outcomes(kling, 40, budget=budget)
    good = [outcome for outcome in found if outcome.ok]
    assert len(good) == len(service.paid) == 4
    assert budget.spent == Decimal("1.80") == sum(outcome.cost or 0 for outcome in good)
    errors = [outcome.error for outcome in found if outcome.error is not None]
    assert len(errors) == 36
    assert {type(error) for error in errors} <= {BudgetExceededError, SkippedError}
    assert all("the budget of $2.00 is used up" in str(error) and "nothing was spent" in str(error) for error in errors)


async def test_calls_and_batches_share_session_budget() -> None:
    service = Service()
    async with open_session(service, budget=1) as kling:
        await kling.generate(model=PRO, prompt="a", image=IMAGE)
        assert sum(outcome.ok for outcome in await outcomes(kling, 5)) == 1
        with pytest.raises(BudgetExceededError) as caught:
            await kling.generate(model=PRO, prompt="b", image=IMAGE, key="b")
    assert [caught.value.budget, caught.value.used, caught.value.price] == [1, Decimal("0.90"), Decimal("0.45")]
    assert (caught.value.key, caught.value.job is not None) == ("b", True)
    assert len(service.paid) == 2


async def test_refused_job_releases_reservation_to_waiters() -> None:
    service = Service()

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "bad":
            return json_response({"code": 400, "message": "no"}, status=400)
        return None

    service.script = script
    async with open_session(service, budget="0.45") as kling:
        bad, good = await asyncio.gather(
            kling.generate(model=PRO, prompt="bad", image=IMAGE),
            kling.generate(model=PRO, prompt="good", image=IMAGE),
            return_exceptions=True,
        )
    assert isinstance(bad, RequestRejectedError)
    assert not isinstance(good, BaseException)
    assert [body["prompt"] for body in service.paid] == ["good"]


async def test_cancelled_waiter_releases_reservation() -> None:
    service = Service()
    budget = Budget("0.45")
    async with open_session(service, budget=budget) as kling:
        await kling.submit(model=PRO, prompt="a", image=IMAGE)
        waiting = [asyncio.create_task(kling.generate(model=PRO, prompt=prompt, image=IMAGE)) for prompt in ("b", "c")]
        await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert [budget.spent, budget.reserved, budget.held] == [Decimal("0.45"), 0, 0]


async def test_uncertain_submission_keeps_reservation() -> None:
    service = Service()

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "lost":
            service.accept(body)
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    budget = Budget("1.00")
    async with open_session(service, budget=budget) as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(model=PRO, prompt="lost", image=IMAGE)
        assert [budget.spent, budget.reserved, budget.held] == [0, 0, Decimal("0.45")]
        await kling.generate(model=PRO, prompt="a", image=IMAGE)
        with pytest.raises(BudgetExceededError, match=r"\$0.45 that may have been"):
            await kling.generate(model=PRO, prompt="b", image=IMAGE)


async def test_resubmission_in_doubt_is_reserved_twice() -> None:
    service = Service()
    lost = iter([True, False])

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and next(lost, False):
            raise ConnectionLostError("dropped")
        if request.url.endswith("/api/v3/predictions"):
            return json_response({"code": 403, "message": "no"}, status=403)
        return None

    service.script = script
    budget = Budget("1.00")
    async with open_session(service, budget=budget, on_uncertain="resubmit") as kling:
        await kling.generate(model=PRO, prompt="a", image=IMAGE)
        assert [budget.spent, budget.held] == [Decimal("0.45")] * 2
        lost = iter([True, False])
        with pytest.raises(BudgetExceededError):
            await kling.generate(model=PRO, prompt="b", image=IMAGE)
    small = Budget("0.50")
    lost = iter([True, False])
    async with open_session(service, budget=small, on_uncertain="resubmit") as kling:
        with pytest.raises(SubmissionUncertainError, match="budget"):
            await kling.generate(model=PRO, prompt="c", image=IMAGE)
    assert small.held == Decimal("0.45")


async def test_failed_job_counts_until_refunded() -> None:
    service = Service(failures={"bad": {"code": 1405}})
    refunds: list[str] = []
    looks = 0

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        nonlocal looks
        if not request.url.endswith("/api/v3/billings/search"):
            return None
        looks += 1
        lines = [
            {"uuid": f"b{id_}", "billing_type": "refund", "price": 0.45, "prediction": {"uuid": id_}}
            for id_ in [*refunds, "of-another-job"]
        ]
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": lines}})

    service.script = script
    budget = Budget("0.50")
    async with open_session(service, budget=budget) as kling:
        with pytest.raises(PredictionFailedError) as failed:
            await kling.generate(model=PRO, prompt="bad", image=IMAGE)
        with pytest.raises(BudgetExceededError):
            await kling.generate(model=PRO, prompt="b", image=IMAGE)
        assert budget.spent == Decimal("0.45")
        refunds.append(failed.value.prediction_id or "")
        with pytest.raises(BudgetExceededError):
            await kling.generate(model=PRO, prompt="b", image=IMAGE)
        assert looks == 1, "the bill is not asked for at every turn"
        await asyncio.sleep(61)
        await kling.generate(model=PRO, prompt="b", image=IMAGE)
    assert (looks, budget.spent, budget.failed) == (2, Decimal("0.45"), {})


async def test_unlisted_price_is_requested_once_per_kind() -> None:
    service = Service()
    asked: list[dict[str, Any]] = []

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if not request.url.endswith("/api/v3/model/price"):
            return None
        asked.append(body)
        return json_response({"code": 200, "message": "success", "data": {"price": 0.30, "discounted_price": 0.27}})

    service.script = script
    budget = Budget("1.00")
    async with open_session(service, budget=budget) as kling:
        await asyncio.gather(
            *(kling.generate(model="kling-v2.1-standard", prompt=prompt, image=IMAGE) for prompt in "abc")
        )
    assert budget.spent == Decimal("0.81")
    assert len(asked) == 1


async def test_price_that_was_read_meanwhile_is_used_at_once() -> None:
    service = Service()
    known = False

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if not request.url.endswith("/api/v3/model/price"):
            return None
        if not known:
            return json_response({"code": 404, "message": "not found"}, status=404)
        data = {"price": 0.30, "discounted_price": 0.27}
        return json_response({"code": 200, "message": "success", "data": data})

    service.script = script
    budget, job = Budget(1), Job(model="kling-v2.1-standard", prompt="a", image=IMAGE)
    async with open_session(service, budget=budget) as kling:
        with pytest.raises(PriceUnknownError):
            await kling.submit(job)
        known = True
        assert (await kling.price(job)).discounted == Decimal("0.27")
        await kling.submit(job)
    assert budget.spent == Decimal("0.27")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"price": -0.30, "discounted_price": -0.27}, "expected at least 0"),
        ({"price": 2.1, "discounted_price": 2.1, "currency": "CNY"}, "budgets are in USD"),
    ],
    ids=["negative", "other currency"],
)
async def test_price_that_no_budget_can_count_is_unknown(data: dict[str, Any], said: str) -> None:
    service = Service()
    service.script = lambda request, _: (
        json_response({"code": 200, "message": "success", "data": data})
        if request.url.endswith("/api/v3/model/price")
        else None
    )
    budget = Budget(1)
    async with open_session(service, budget=budget) as kling:
        with pytest.raises(PriceUnknownError, match=said):
            await kling.submit(model="kling-v2.1-standard", prompt="a", image=IMAGE)
    assert (service.paid, budget.spent) == ([], Decimal(0))


async def test_price_that_cannot_be_read_is_asked_again_after_a_minute() -> None:
    service = Service()
    asked: list[float] = []

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if not request.url.endswith("/api/v3/model/price"):
            return None
        asked.append(service.clock.monotonic())
        if service.clock.monotonic() < 100:
            return json_response({"code": 404, "message": "not found"}, status=404)
        return json_response({"code": 200, "message": "success", "data": {"price": 0.30, "discounted_price": 0.27}})

    service.script = script
    budget = Budget(10, allow_estimate=True)
    async with open_session(service, budget=budget) as kling:

        async def submit(count: int) -> None:
            for number in range(count):
                await kling.submit(model="kling-v2.1-standard", prompt=f"{number}", image=IMAGE)

        await submit(5)
        assert max(asked) - min(asked) < 5, "the jobs do not wait for the price one after the other"
        assert budget.spent == 5 * Decimal("0.25")
        await asyncio.sleep(120)
        await submit(1)
        assert budget.spent == 5 * Decimal("0.25") + Decimal("0.27")


@pytest.mark.parametrize("estimate", [False, True])
async def test_unknown_price_is_refused_or_estimated(estimate: bool) -> None:  # noqa: FBT001 -- a case
    service = Service()

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if request.url.endswith("/api/v3/model/price"):
            return json_response({"code": 404, "message": "not found"}, status=404)
        return None

    service.script = script
    budget = Budget(1, allow_estimate=estimate)
    async with open_session(service, budget=budget) as kling:
        if estimate:
            await kling.generate(model="kling-v2.1-standard", prompt="a", image=IMAGE)
            assert budget.spent == Decimal("0.25")
        else:
            with pytest.raises(PriceUnknownError, match="allow_estimate"):
                await kling.generate(model="kling-v2.1-standard", prompt="a", image=IMAGE)
            assert not service.paid
        with pytest.raises(PriceUnknownError):
            await kling.generate(model="kling-v1.6-pro", prompt="no page and no estimate", image=IMAGE)


async def test_skipped_jobs_can_run_later() -> None:
    service = Service()
    async with open_session(service) as kling:
        await outcomes(kling, 5, budget="0.90", name="b")
        again = await outcomes(kling, 5, name="b")
    # The ledger is in memory, so all five are new; none stays skipped.
    assert sum(outcome.ok for outcome in again) == 5
    assert State.SKIPPED.value == "skipped"


def loses_the_first_reply_to(service: Service, prompt: str) -> None:
    """Lose the first response to `prompt` and refuse history requests, so that the doubt stays."""
    lost = False

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        nonlocal lost
        if request.effect is Effect.PAID and body["prompt"] == prompt and not lost:
            lost = True
            raise ConnectionLostError("dropped")
        if request.url.endswith("/api/v3/predictions"):
            return json_response({"code": 403, "message": "no"}, status=403)
        return None

    service.script = script


async def test_resubmission_does_not_wait_for_money_of_slot_waiter() -> None:
    service = Service()
    loses_the_first_reply_to(service, "a")
    budget = Budget("0.90")
    async with open_session(service, budget=budget, on_uncertain="resubmit", max_in_flight=1) as kling:
        async with asyncio.timeout(3600):
            a, b = await asyncio.gather(
                kling.generate(model=PRO, prompt="a", image=IMAGE),
                kling.generate(model=PRO, prompt="b", image=IMAGE),
                return_exceptions=True,
            )
    assert isinstance(a, SubmissionUncertainError)
    assert "the budget of $0.90 is used up" in str(a)
    assert not isinstance(b, BaseException)
    assert [budget.spent, budget.reserved, budget.held] == [Decimal("0.45"), 0, Decimal("0.45")]


async def test_resubmission_without_budget_records_price() -> None:
    service = Service()
    loses_the_first_reply_to(service, "a")
    ledger = MemoryLedger()
    async with open_session(service, on_uncertain="resubmit", ledger=ledger) as kling:
        await kling.submit(model=PRO, prompt="a", image=IMAGE)
        (row,) = await ledger.rows([State.SUBMITTED])
    assert (row.cost, row.spent) == (Decimal("0.45"), Decimal("0.45"))


@pytest.mark.parametrize("accepted", [True, False])
async def test_doubt_settled_by_another_process_is_charged_or_released(accepted: bool) -> None:  # noqa: FBT001 -- a case
    """In a shared ledger another process may settle a doubt right after this one has read its row."""

    class Settled(MemoryLedger):
        async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
            row = await super().claim(batch, key, content=content, model=model, at=at)
            if row.state is State.UNCERTAIN:
                state, id_ = (State.SUBMITTED, "p00000") if accepted else (State.PENDING, None)
                await self.record(Entry(batch=batch, key=key, state=state, at=at, prediction_id=id_))
            return row

    service, ledger = Service(), Settled()

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            if accepted:
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with open_session(service, ledger=ledger, on_uncertain="hold") as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(model=PRO, prompt="a", image=IMAGE, key="a")
    service.script = None
    budget = Budget("0.90")
    async with open_session(service, ledger=ledger, budget=budget) as kling:
        assert (await kling.generate(model=PRO, prompt="a", image=IMAGE, key="a")).id == "p00000"
    assert [budget.spent, budget.reserved, budget.held] == [Decimal("0.45"), 0, 0]
    assert len(service.paid) == 1


@pytest.mark.parametrize("accepted", [True, False])
async def test_abandoned_doubt_counts_once_when_settled(accepted: bool) -> None:  # noqa: FBT001 -- a case
    service = Service(echo=dict)
    lost = iter([True])

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and next(lost, False):
            if accepted:
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    budget = Budget("0.90")
    async with open_session(service, budget=budget) as kling:
        left = asyncio.create_task(kling.generate(model=PRO, prompt="a", image=IMAGE, key="a"))
        await asyncio.sleep(1)
        left.cancel()
        await asyncio.wait([left])
        assert [budget.spent, budget.reserved, budget.held] == [0, 0, Decimal("0.45")]
        await kling.generate(model=PRO, prompt="a", image=IMAGE, key="a")
        assert [budget.spent, budget.reserved, budget.held] == [Decimal("0.45"), 0, 0]
    assert len(service.paid) == 1


async def test_doubt_settled_by_another_job_releases_or_spends_reservation() -> None:
    service = Service(echo=dict)
    lost = {"found", "unaccepted", "last"}

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] in lost:
            lost.remove(body["prompt"])
            if body["prompt"] == "found":
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    budget = Budget(5)
    async with open_session(service, budget=budget) as kling:
        left = [
            asyncio.create_task(kling.generate(model=PRO, prompt=prompt, image=IMAGE, key=prompt))
            for prompt in ("found", "unaccepted")
        ]
        await asyncio.sleep(1)
        for task in left:
            task.cancel()
        await asyncio.wait(left)
        assert budget.held == Decimal("0.90")
        await kling.generate(model=PRO, prompt="last", image=IMAGE)
        assert [budget.spent, budget.reserved, budget.held] == [Decimal("0.90"), 0, 0]


async def test_doubt_is_charged_to_session_budget() -> None:
    service = Service(echo=dict)
    ledger = MemoryLedger()

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if request.effect is Effect.PAID:
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with open_session(service, on_uncertain="hold", ledger=ledger) as kling:
        assert not any(outcome.ok for outcome in await outcomes(kling, 3, name="b"))
    service.script = None
    all_of_it = Budget("0.50")
    async with open_session(service, budget=all_of_it, ledger=ledger) as kling:
        found = await outcomes(kling, 3, name="b", budget=100)
    assert sum(outcome.ok for outcome in found) == len(service.paid) == 1
    assert all_of_it.spent == Decimal("0.45")


async def test_partial_refund_releases_only_its_amount() -> None:
    service = Service(failures={"bad": {"code": 1405}})

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if not request.url.endswith("/api/v3/billings/search"):
            return None
        lines = [
            {"uuid": f"b{id_}", "billing_type": "refund", "price": 0.10, "prediction": {"uuid": id_}}
            for id_ in service.accepted
        ]
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": lines}})

    service.script = script
    budget = Budget("0.50")
    async with open_session(service, budget=budget) as kling:
        with pytest.raises(PredictionFailedError):
            await kling.generate(model=PRO, prompt="bad", image=IMAGE)
        with pytest.raises(BudgetExceededError):
            await kling.generate(model=PRO, prompt="b", image=IMAGE)
    assert (len(service.paid), budget.spent) == (1, Decimal("0.35"))


async def test_refund_is_available_to_all_concurrent_jobs() -> None:
    service = Service(failures={"bad": {"code": 1405}})

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if not request.url.endswith("/api/v3/billings/search"):
            return None
        lines = [
            {"uuid": f"b{id_}", "billing_type": "refund", "price": 0.45, "prediction": {"uuid": id_}}
            for id_ in body["prediction_uuids"]
        ]
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": lines}})

    service.script = script
    budget = Budget("0.90")
    async with open_session(service, budget=budget) as kling:
        for _ in range(2):
            with pytest.raises(PredictionFailedError):
                await kling.generate(model=PRO, prompt="bad", image=IMAGE)
        await asyncio.gather(*(kling.generate(model=PRO, prompt=prompt, image=IMAGE) for prompt in "ab"))
    assert [budget.spent, budget.reserved] == [Decimal("0.90"), 0]

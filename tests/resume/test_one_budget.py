"""One `Budget` over several sessions counts every ledger's spending once."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

from kling_async import (
    Budget,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    Job,
    KlingSession,
    PredictionFailedError,
    SubmissionUncertainError,
    WatchPolicy,
    read_ledger,
)
from kling_async._core.http import Effect
from kling_async._core.polling import Backoff
from kling_async.ledger import Entry, MemoryLedger, SQLiteLedger, State
from kling_async.testing import json_response
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

PRICE = Decimal("0.45")
NOTHING = [0, 0]


def session(service: Service, **options: Any) -> KlingSession:
    return open_session(service, watch=WatchPolicy.fixed(0.02), **options)


def job(prompt: str) -> Job:
    return Job(model="kling-v2.1-pro", prompt=prompt, image=IMAGE)


def drop(service: Service, *, accepted: bool) -> None:
    """Drop the next responses; `accepted` says whether the jobs are accepted."""

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is not Effect.PAID:
            return None
        if accepted:
            service.accept(body, request.url.partition("/api/v3/")[2])
        raise ConnectionLostError("dropped")

    service.script = script


@pytest.mark.parametrize("kind", ["the session's", "the batch's", "now one, now the other"])
async def test_successive_sessions_count_ledger_once(tmp_path: Path, kind: str) -> None:
    service, budget, ledger = Service(seconds=0.05, latency=0.001), Budget(10), tmp_path / "run.db"
    for number in range(4):
        whole = kind == "the session's" or (kind != "the batch's" and number % 2)
        given: dict[str, Any] = {"budget": budget} if whole else {}
        own: dict[str, Any] = {} if whole else {"budget": budget}
        async with session(service, ledger=ledger, **given) as kling:
            assert budget.spent == PRICE * number or not whole
            async with kling.batch([job(f"{n}") for n in range(number + 1)], name="b", **own) as batch:
                assert [outcome.ok async for outcome in batch] == [True] * (number + 1)
        assert [budget.spent, budget.held, budget.reserved] == [PRICE * (number + 1), *NOTHING]
    assert len(service.paid) == 4


async def test_budget_counts_spending_of_others_in_between(tmp_path: Path) -> None:
    service, budget, ledger = Service(seconds=0.05, latency=0.001), Budget(10), tmp_path / "run.db"
    for given in (budget, None, budget):
        async with session(service, ledger=ledger, budget=given) as kling:
            await kling.generate(job("x"))
    assert budget.spent == 3 * PRICE


async def test_batches_of_ledger_count_in_session_budget(tmp_path: Path) -> None:
    service, ledger = Service(seconds=0.05, latency=0.001), tmp_path / "run.db"
    for budget in (Budget(10), Budget("0.50"), Budget("0.50")):
        async with session(service, budget=budget, ledger=ledger) as kling:
            async with kling.batch([job("a")], name="run") as batch:
                assert [outcome.ok async for outcome in batch] == [True]
            async with kling.batch([job("a")], name="run") as batch:
                assert [outcome.ok async for outcome in batch] == [True]
            assert budget.spent == PRICE
    assert len(service.paid) == 1


async def test_concurrent_sessions_over_two_ledgers_share_budget(tmp_path: Path) -> None:
    service, budget = Service(seconds=0.05, latency=0.001), Budget("2.00")

    async def run(name: str) -> None:
        jobs = [job(f"{name} {n}") for n in range(5)]
        shared = session(service, ledger=tmp_path / name, budget=budget)
        async with shared as kling, kling.batch(jobs, name="b") as batch:
            async for _ in batch:
                pass

    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "one.db")
            tasks.start_soon(run, "two.db")
        assert len(service.paid) == 4
        assert [budget.spent, budget.held, budget.reserved] == [4 * PRICE, *NOTHING]


@pytest.mark.parametrize("accepted", [True, False])
async def test_doubt_is_reserved_once_however_often_resumed(
    tmp_path: Path,
    accepted: bool,  # noqa: FBT001 -- a case
) -> None:
    service, budget, ledger = Service(seconds=0.05, latency=0.001, echo=dict), Budget(10), tmp_path / "run.db"
    drop(service, accepted=accepted)
    for _ in range(3):
        async with session(service, ledger=ledger, budget=budget, on_uncertain="hold") as kling:
            with pytest.raises(SubmissionUncertainError):
                await kling.generate(job("x"), key="x")
        assert [budget.spent, budget.held, budget.reserved] == [0, PRICE, 0]
    service.script = None
    async with session(service, ledger=ledger, budget=budget, grace=0.1) as kling:
        await kling.generate(job("x"), key="x")
        assert [budget.spent, budget.held, budget.reserved] == [PRICE, *NOTHING]
    assert len(service.paid) == 1


@pytest.mark.parametrize("state", [State.SUBMITTED, State.PENDING])
async def test_doubt_settled_elsewhere_releases_reservation(tmp_path: Path, state: State) -> None:
    service, budget, path = Service(seconds=0.05, latency=0.001), Budget(10), tmp_path / "run.db"
    drop(service, accepted=True)
    async with session(service, ledger=path, budget=budget, on_uncertain="hold") as kling:
        with pytest.raises(SubmissionUncertainError):
            await kling.generate(job("x"), key="x")
    service.script = None
    by_hand = SQLiteLedger(path)
    await by_hand.open()
    id_ = next(iter(service.accepted)) if state is State.SUBMITTED else None
    await by_hand.record(Entry(batch="", key="x", state=state, at=0.0, prediction_id=id_))
    await by_hand.aclose()
    async with session(service, ledger=path, budget=budget):
        assert [budget.spent, budget.held, budget.reserved] == [PRICE if id_ else 0, *NOTHING]


async def test_spending_of_session_without_ledger_file_stays_counted() -> None:
    service, budget = Service(seconds=0.05, latency=0.001), Budget(10)
    ledger = MemoryLedger()
    for number in range(1, 4):
        service.script = None
        async with session(service, ledger=ledger, budget=budget, on_uncertain="hold") as kling:
            await kling.generate(job("good"))
            drop(service, accepted=True)
            with pytest.raises(SubmissionUncertainError):
                await kling.generate(job("x"), key=f"x{number}")
        assert [budget.spent, budget.held, budget.reserved] == [number * PRICE, number * PRICE, 0]


async def test_refund_is_recorded_in_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kling_async._budget.prices.REFUND_CHECK_INTERVAL_S", 0.0)
    service = Service(seconds=0.05, latency=0.001, failures={"bad": {"code": 1405}, "worse": {"code": 1405}})

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if not request.url.endswith("/api/v3/billings/search"):
            return None
        lines = [
            {"uuid": f"b{id_}", "billing_type": "refund", "price": 0.45, "prediction": {"uuid": id_}}
            for id_ in body["prediction_uuids"]
        ]
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": lines}})

    service.script = script
    budget, ledger = Budget("0.50"), tmp_path / "run.db"
    async with session(service, ledger=ledger, budget=budget) as kling:
        for prompt in ("bad", "worse", "good"):
            with contextlib.suppress(PredictionFailedError):
                await kling.generate(job(prompt), key=prompt)
    refunded = {row.key: row.refunded for row in read_ledger(ledger)}
    assert refunded == {"bad": PRICE, "worse": PRICE, "good": None}
    assert {row.key: row.state for row in read_ledger(ledger)} == {
        "bad": State.FAILED,
        "worse": State.FAILED,
        "good": State.COMPLETED,
    }
    # A new budget computes the same amounts, and so does the same one a second time.
    for again in (Budget("0.50"), budget):
        async with session(service, ledger=ledger, budget=again):
            assert [again.spent, again.held, again.reserved] == [PRICE, *NOTHING]


async def test_refunds_of_one_jobs_attempts_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kling_async._budget.prices.REFUND_CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr("kling_async._session.job_runner._RETRY_BACKOFF", Backoff(first=0.01, cap=0.02))
    service = Service(seconds=0.05, latency=0.001, failures={"bad": {"code": 5000}})

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if not request.url.endswith("/api/v3/billings/search"):
            return None
        lines = [
            {"uuid": f"b{id_}", "billing_type": "refund", "price": 0.45, "prediction": {"uuid": id_}}
            for id_ in body["prediction_uuids"]
        ]
        return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": lines}})

    service.script = script
    ledger = tmp_path / "run.db"
    async with session(service, ledger=ledger, budget="0.50", retry_failed=2) as kling:
        with pytest.raises(PredictionFailedError):
            await kling.generate(job("bad"), key="bad")
    (row,) = read_ledger(ledger)
    assert (row.state, row.failures, row.spent, row.refunded) == (State.FAILED, 3, 3 * PRICE, 2 * PRICE)

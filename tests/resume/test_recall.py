"""Batches resumed from their ledger alone, and spending counted from the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

from kling_async import (
    Budget,
    BudgetExceededError,
    ConfigurationError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    InvalidJobError,
    Job,
    KeyReusedError,
    KlingSession,
    LedgerError,
    Outcome,
    PredictionError,
    PredictionFailedError,
    SkippedError,
    Spent,
    State,
    SubmissionUncertainError,
    WatchPolicy,
    read_ledger,
)
from kling_async._core.content import content_of
from kling_async._core.http import Effect
from kling_async.ledger import Entry, MemoryLedger
from kling_async.ledger._recall import recall
from kling_async.testing import LoopClock, json_response
from support.clocks import AdjustedClock, FastClock
from support.pictures import png
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

FAST = WatchPolicy.fixed(0.05)
PRO = "kling-v2.1-pro"


def jobs(count: int) -> list[Job]:
    return [Job(model=PRO, prompt=f"number {number}", image=IMAGE) for number in range(count)]


def session(service: Service, **options: Any) -> KlingSession:
    return open_session(service, watch=FAST, **options)


async def resumed(kling: KlingSession, **options: Any) -> dict[str, Outcome]:
    async with kling.resume(**options) as batch:
        return {outcome.job.prompt: outcome async for outcome in batch}


async def test_batch_resumes_without_input(tmp_path: Path) -> None:
    service = Service(seconds=0.3, latency=0.001)
    ledger = tmp_path / "run.db"
    kling = session(service, max_in_flight=3, ledger=ledger)
    async with kling, kling.batch(jobs(8), name="run", window=8) as batch:
        for _ in range(3):
            await anext(batch)
    states = {row.state for row in read_ledger(ledger, batch="run")}
    assert states >= {State.COMPLETED, State.SUBMITTED, State.PENDING}
    async with session(service, ledger=ledger) as kling:
        outcomes = await resumed(kling, name="run")
        assert next(iter(outcomes.values())).ok
    assert outcomes.keys() == {f"number {number}" for number in range(8)}
    assert all(outcome.ok for outcome in outcomes.values())
    assert [outcome.job for outcome in outcomes.values() if outcome.job.prompt == "number 7"] == [jobs(8)[7]]
    assert len(service.paid) == 8
    reads, paid = service.reads, len(service.paid)
    async with session(service, ledger=ledger) as kling:
        again = await resumed(kling, name="run")
    assert all(outcome.ok for outcome in again.values())
    assert (service.reads, len(service.paid)) == (reads, paid), "what is done is yielded without a request"


class CompletingLedger(MemoryLedger):
    """Ledger in which a running job completes after the completed ones were listed."""

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        found = await super().keys(batch, states)
        row = await self.find(batch, "b")
        if row is not None and row[0].state is State.SUBMITTED:
            await self.record(Entry(batch=batch, key="b", state=State.COMPLETED, at=3.0))
        return found


async def test_job_that_completes_during_recall_is_yielded_once() -> None:
    ledger = CompletingLedger()
    await ledger.open()
    for key in ("a", "b", "c"):
        await ledger.claim("run", key, content=content_of(jobs(1)[0], str), model=PRO, at=1.0)
    for state, prediction_id in ((State.INTENT, None), (State.SUBMITTED, "p1")):
        await ledger.record(Entry(batch="run", key="b", state=state, at=2.0, attempt=1, prediction_id=prediction_id))
    found = [(item.row.key, item.row.state) async for item in recall(ledger, "run", LoopClock())]
    assert found == [("a", State.PENDING), ("c", State.PENDING), ("b", State.COMPLETED)]
    await ledger.aclose()


async def test_files_are_reread_only_for_unsent_jobs(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    kept, edited, gone, done = (tmp_path / f"{name}.png" for name in ("kept", "edited", "gone", "done"))
    for number, path in enumerate((kept, edited, gone, done)):
        path.write_bytes(png(320, 320 + number))
    waiting = True

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if waiting and request.effect is Effect.PAID and body["prompt"] != "done":
            return json_response({"code": 401, "message": "no"}, status=401)
        return None

    service.script = script
    ledger = tmp_path / "run.db"
    async with session(service, ledger=ledger, images="inline") as kling:
        paths = (done, kept, edited, gone)
        async with kling.batch([Job(prompt=path.stem, image=path) for path in paths], name="b", window=1) as batch:
            assert sum([outcome.ok async for outcome in batch]) == 1
    waiting = False
    edited.write_bytes(png(333, 333))
    gone.unlink()
    done.unlink()
    async with session(service, ledger=ledger, images="inline") as kling:
        outcomes = await resumed(kling, name="b")
    assert {prompt for prompt, outcome in outcomes.items() if outcome.ok} == {"done", "kept"}
    assert isinstance(outcomes["edited"].error, KeyReusedError)
    assert isinstance(outcomes["gone"].error, InvalidJobError)
    assert len(service.paid) == 2


async def test_job_with_lost_image_bytes_is_reported_and_not_sent(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "unsent":
            return json_response({"code": 401, "message": "no"}, status=401)
        return None

    service.script = script
    given = [Job(prompt=prompt, image=png(320, 320)) for prompt in ("sent", "unsent")]
    async with session(service, ledger=ledger, images="inline") as kling, kling.batch(given, window=1) as batch:
        assert [outcome.ok async for outcome in batch] == [True, False]
    service.script = None
    async with session(service, ledger=ledger, images="inline") as kling:
        outcomes = await resumed(kling, name="")
    assert outcomes["sent"].ok
    error = outcomes["unsent"].error
    assert isinstance(error, InvalidJobError)
    assert "run the batch with its input" in str(error)
    assert len(service.paid) == 1


async def test_missing_batch_or_file_is_refused(tmp_path: Path) -> None:
    service = Service()
    ledger = tmp_path / "run.db"
    async with session(service) as kling:
        with pytest.raises(
            ConfigurationError, match=r"all batches of a session write.* open a session for that ledger"
        ):
            kling.resume(tmp_path / "other.db")  # type: ignore[arg-type]  # refused
        with pytest.raises(
            ConfigurationError, match=r"all batches of a session write.* open a session for that ledger"
        ):
            kling.batch(jobs(1), ledger=tmp_path / "other.db")  # type: ignore[arg-type]  # refused
        with pytest.raises(ConfigurationError, match="expected a session with a ledger on disk"):
            kling.resume(name="b")
    async with session(service, ledger=ledger) as kling:
        with pytest.raises(LedgerError, match="no job of a batch named 'b'"):
            await resumed(kling, name="b")
    assert not (tmp_path / "other.db").exists()


async def test_budget_counts_spending_of_earlier_processes(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"

    async def run() -> list[Outcome]:
        async with session(service, ledger=ledger) as kling, kling.batch(jobs(6), name="run", budget="1.00") as batch:
            return [outcome async for outcome in batch]

    for _ in range(3):
        outcomes = await run()
        assert sum(outcome.ok for outcome in outcomes) == 2
    assert len(service.paid) == 2
    assert {row.state for row in read_ledger(ledger)} == {State.COMPLETED, State.SKIPPED}
    async with session(service, ledger=ledger, budget=Budget(1)) as kling:
        with pytest.raises(BudgetExceededError):
            await kling.generate(jobs(1)[0])
        async with kling.batch(jobs(6), name="run") as batch:
            assert sum([outcome.ok async for outcome in batch]) == 2
    async with session(service, ledger=ledger) as kling, kling.resume(name="run", budget=10) as batch:
        assert all([outcome.ok async for outcome in batch]), "what was skipped is sent when there is money"
    assert len(service.paid) == 6


async def test_budget_counts_possible_spending_of_earlier_process(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "number 0":
            service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with session(service, on_uncertain="hold", ledger=ledger) as kling, kling.batch(jobs(1), name="run") as batch:
        assert [outcome.ok async for outcome in batch] == [False]
    service.script = None
    budget = Budget("0.50")
    async with session(service, on_uncertain="hold", ledger=ledger) as kling:
        async with kling.batch(jobs(2), name="run", budget=budget) as batch:
            errors = [outcome.error async for outcome in batch]
        assert [budget.spent, budget.held] == [0, Decimal("0.45")]
    assert any(isinstance(error, (BudgetExceededError, SkippedError)) for error in errors)
    # Found, it is spent.
    service.echo = dict
    budget = Budget("0.50")
    async with session(service, grace=0.1, ledger=ledger) as kling:
        async with kling.batch(jobs(1), name="run", budget=budget) as batch:
            assert [outcome.ok async for outcome in batch] == [True]
        assert [budget.spent, budget.held, budget.reserved] == [Decimal("0.45"), 0, 0]
    assert len(service.paid) == 1


async def test_failures_are_counted_across_processes(tmp_path: Path) -> None:
    service = Service(seconds=0.05, latency=0.001, failures={"number 0": {"code": 5000}})
    ledger = tmp_path / "run.db"
    for retry_failed, paid in ((0, 1), (0, 1), (1, 2), (1, 2), (2, 3)):
        hasty = session(service, retry_failed=retry_failed, clock=AdjustedClock(service, pace=0.01), ledger=ledger)
        async with hasty as kling, kling.batch(jobs(1), name="run") as batch:
            assert [outcome.ok async for outcome in batch] == [False]
        assert len(service.paid) == paid
    (row,) = read_ledger(ledger)
    assert (row.failures, row.attempt, row.spent) == (3, 3, Decimal("1.35"))


async def test_prediction_deleted_by_service_expires_and_is_not_repaid(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"
    async with session(service, ledger=ledger) as kling, kling.batch(jobs(2), name="run") as batch:
        assert all([outcome.ok async for outcome in batch])
    kept = next(iter(service.accepted))
    deleted = {id_ for id_ in service.accepted if id_ != kept}

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if any(id_ in request.url for id_ in deleted):
            return json_response({"code": 404, "message": "not found"}, status=404)
        return None

    service.script = script
    for _ in range(2):
        async with session(service, clock=FastClock(service, 8 * 86_400.0, pace=0.02), ledger=ledger) as kling:
            outcomes = await resumed(kling, name="run")
        assert sorted(outcome.ok for outcome in outcomes.values()) == [False, True], "our clock alone shows nothing"
        (error,) = [outcome.error for outcome in outcomes.values() if outcome.error is not None]
        assert isinstance(error, PredictionError)
        assert "expired" in str(error)
    assert sorted(row.state.value for row in read_ledger(ledger)) == ["completed", "expired"]
    assert len(service.paid) == 2


async def test_batches_of_one_session_begin_concurrently(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"
    budget = Budget(100)

    async def run(kling: KlingSession, name: str) -> list[bool]:
        async with kling.batch(jobs(1), name=name, budget=budget, seen="pay") as batch:
            return [outcome.ok async for outcome in batch]

    async with session(service, ledger=ledger) as kling:
        assert list(await asyncio.gather(run(kling, "a"), run(kling, "b"))) == [[True], [True]]
    assert budget.spent == Decimal("0.90")


async def test_cancelled_batch_entry_can_be_repeated(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"
    async with session(service, ledger=ledger) as kling, kling.batch(jobs(2), name="run") as batch:
        assert all([outcome.ok async for outcome in batch])
    budget = Budget("1.00")
    # At whatever point it was cancelled.
    for turns in range(40):
        budget = Budget("1.00")
        async with session(service, ledger=ledger) as kling:

            async def enter(kling: KlingSession = kling, budget: Budget = budget) -> None:
                async with kling.batch(jobs(2), name="run", budget=budget):
                    pass

            task = asyncio.create_task(enter())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await enter()
        assert budget.spent == Decimal("0.90")


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("kind", ["bytes", "file", "edited"])
async def test_doubt_is_settled_without_image_and_budget(
    tmp_path: Path,
    kind: str,
    accepted: bool,  # noqa: FBT001 -- a case
) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"
    file = tmp_path / "face.png"
    file.write_bytes(png(320, 320))

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            if accepted:
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    given = [Job(prompt="lost", image=png(320, 320) if kind == "bytes" else file)]
    held = session(service, ledger=ledger, images="inline", on_uncertain="hold")
    async with held as kling, kling.batch(given, name="b") as batch:
        assert [outcome.ok async for outcome in batch] == [False]
    service.script, service.echo = None, dict
    if kind == "edited":
        file.write_bytes(png(333, 333))
    else:
        file.unlink()
    budget = Budget("0.01")
    again = session(service, ledger=ledger, images="inline", grace=0.1, budget=budget)
    async with again as kling:
        (outcome,) = (await resumed(kling, name="b")).values()
    assert len(service.paid) == accepted
    if accepted:
        assert outcome.ok
    else:
        assert isinstance(outcome.error, KeyReusedError if kind == "edited" else InvalidJobError)
        assert outcome.error.spent is Spent.NO
    assert [budget.spent > 0, budget.held, budget.reserved] == [accepted, 0, 0]


@pytest.mark.parametrize("accepted", [True, False])
async def test_doubt_is_settled_without_free_budget_or_slot(
    tmp_path: Path,
    accepted: bool,  # noqa: FBT001 -- a case
) -> None:
    service = Service(seconds=lambda body: 0.1 if body["prompt"][-1] in "012" else 1e9, latency=0.001, echo=dict)
    ledger = tmp_path / "run.db"

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] != "endless 9":
            if accepted:
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    async with session(service, ledger=ledger, on_uncertain="hold") as kling:
        async with kling.batch(jobs(3), name="b") as batch:
            assert [outcome.ok async for outcome in batch] == [False] * 3
        await kling.submit(Job(prompt="endless 9", image=IMAGE))
    service.script = None
    budget = Budget("0.01")
    async with session(service, ledger=ledger, grace=0.1, max_in_flight=1, budget=budget) as kling:
        assert kling._engine.slots.taken == 1
        async with kling.batch(jobs(3), name="b") as batch:
            outcomes = [outcome async for outcome in batch]
    assert [outcome.ok for outcome in outcomes] == [accepted] * 3
    assert all(accepted or isinstance(outcome.error, (BudgetExceededError, SkippedError)) for outcome in outcomes)
    assert len(service.paid) == 1 + 3 * accepted


@attrs.define
class WithUploads(Service):
    """Service that accepts uploads."""

    uploads: int = 0

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.url.startswith("https://storage.example/"):
            return HttpResponse(status=200, headers={"etag": '"1"'})
        if request.url.endswith("media/uploads"):
            self.uploads += 1
            upload = {"url": f"https://storage.example/{self.uploads}", "method": "PUT", "headers": {}}
            data = {"upload": upload, "download_url": f"https://pictures.example/{self.uploads}.png"}
            return json_response({"code": 200, "message": "success", "data": data})
        return await super().__call__(request)


@pytest.mark.parametrize("kind", ["resumed", "again", "retried"])
async def test_job_with_file_and_bytes_images_is_resumed(tmp_path: Path, kind: str) -> None:
    service = WithUploads(seconds=0.1, latency=0.001, failures={"mixed": {"code": 5000}} if kind == "retried" else {})
    ledger = tmp_path / "run.db"
    file = tmp_path / "face.png"
    file.write_bytes(png(320, 320))

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if request.effect is Effect.PAID and kind != "retried":
            return json_response({"code": 401, "message": "no"}, status=401)
        return None

    service.script = script
    given = [Job(model="kling-v1.6-pro", prompt="mixed", image=file, end_image=png(320, 321))]
    async with session(service, ledger=ledger) as kling, kling.batch(given, name="b") as batch:
        assert [outcome.ok async for outcome in batch] == [False]
    service.script, service.failures = None, {}
    async with session(service, ledger=ledger, retry_failed=1) as kling:
        if kind == "again":
            async with kling.batch(given, name="b") as batch:
                outcomes = [outcome async for outcome in batch]
        else:
            outcomes = list((await resumed(kling, name="b")).values())
    assert [outcome.error for outcome in outcomes] == [None]
    assert service.uploads == 2


async def test_other_batch_of_same_file_is_possible_owner(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            if body["prompt"] == "accepted":
                service.accept(body, request.url.partition("/api/v3/")[2])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    for name in ("lost", "accepted"):
        given = [Job(model=PRO, prompt=name, image=IMAGE)]
        held = session(service, ledger=ledger, on_uncertain="hold")
        async with held as kling, kling.batch(given, name=name) as batch:
            assert [outcome.ok async for outcome in batch] == [False]
    service.script = None
    async with session(service, ledger=ledger, sole_user=True, grace=0.1) as kling:
        outcomes = await resumed(kling, name="lost")
    error = outcomes["lost"].error
    assert isinstance(error, SubmissionUncertainError), "the only orphan may be of the other batch"
    assert error.candidates == tuple(service.accepted)


async def test_failed_job_with_edited_file_is_not_repaid(tmp_path: Path) -> None:
    service = Service(seconds=0.05, latency=0.001, failures={"a": {"code": 5000}, "b": {"code": 5000}})
    ledger = tmp_path / "run.db"
    given = []
    for name in "ab":
        path = tmp_path / f"{name}.png"
        path.write_bytes(png(320, 320))
        given.append(Job(prompt=name, image=path))
    async with session(service, images="inline", ledger=ledger) as kling, kling.batch(given, name="run") as batch:
        assert not any([outcome.ok async for outcome in batch])
    (tmp_path / "a.png").write_bytes(png(333, 333))
    hasty = session(service, images="inline", retry_failed=1, clock=AdjustedClock(service, pace=0.01), ledger=ledger)
    async with hasty as kling:
        outcomes = await resumed(kling, name="run")
    assert {type(outcome.error) for outcome in outcomes.values()} == {PredictionFailedError}
    assert [body["prompt"] for body in service.paid][2:] == ["b"]


async def test_video_that_cannot_be_saved_before_it_expires_ends_no_batch(tmp_path: Path) -> None:
    service = Service(seconds=0.1, latency=0.001)
    ledger = tmp_path / "run.db"
    async with session(service, ledger=ledger) as kling, kling.batch(jobs(1), name="run") as batch:
        assert [outcome.ok async for outcome in batch] == [True]

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        if request.url.startswith("https://outputs.example"):
            raise ZeroDivisionError
        return None

    service.script = script
    later = session(service, clock=FastClock(service, 6.5 * 86_400.0, pace=0.02), ledger=ledger)
    async with later as kling, kling.batch(jobs(2), name="run", save_to=tmp_path / "out") as batch:
        outcomes = [outcome async for outcome in batch]
    assert len(outcomes) == 2
    assert len(service.paid) == 2, "the second was sent"

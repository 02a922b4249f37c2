"""Jobs that another batch of the same ledger has paid for: refused, reused, or paid for again.

In real time, because the ledger writes in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kling_async import (
    AlreadyPaidError,
    ConfigurationError,
    ConnectionLostError,
    HttpRequest,
    HttpResponse,
    InDoubtElsewhereError,
    Job,
    KlingError,
    KlingSession,
    Outcome,
    PredictionFailedError,
    SkippedError,
    State,
    SubmissionUncertainError,
    WatchPolicy,
    read_ledger,
)
from kling_async._core import content as contents
from kling_async._core.content import Content
from kling_async._core.http import Effect
from kling_async._session.batch import Jobs
from kling_async._session.seen import look_up
from kling_async._session.session import engine_of
from kling_async.ledger import Entry, Row, SQLiteLedger
from kling_async.ledger._recall import saved_file
from kling_async.manifest import read_rows
from kling_async.testing import json_response
from support.leaps import until
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
PRICE = Decimal("0.25")


class Ahead:
    """The service's clock, some seconds ahead."""

    def __init__(self, service: Service, seconds: float) -> None:
        self._clock, self._ahead = service.clock, seconds
        self.monotonic = service.clock.monotonic

    def now(self) -> float:
        return self._clock.now() + self._ahead

    async def sleep(self, seconds: float, /) -> None:
        await self._clock.sleep(min(seconds, 0.02))


def fast() -> Service:
    return Service(seconds=0.05, latency=0.001)


def session(service: Service, ledger: Path | None, *, ahead: float = 0.0, **options: Any) -> KlingSession:
    clock = Ahead(service, ahead)
    return open_session(service, ledger=ledger, watch=WatchPolicy.fixed(0.02), clock=clock, **options)


def job(prompt: str) -> Job:
    return Job(prompt=prompt, image=IMAGE)


KEYED: Mapping[str, Job] = {name: job(name) for name in "xyz"}
UNKEYED = [*KEYED.values()]


async def run(kling: KlingSession, jobs: Jobs, name: str | None, **options: Any) -> dict[str, Outcome]:
    async with kling.batch(jobs, name=name, **options) as batch:
        return {outcome.job.prompt: outcome async for outcome in batch}


def deleted(id_: str) -> Callable[[HttpRequest, dict[str, Any]], HttpResponse | None]:
    """Return a script of a service that has deleted a prediction."""

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        del body
        return json_response({"code": 404, "message": "not found"}, status=404) if id_ in request.url else None

    return script


# ---- stop ----


@pytest.mark.promise(1)
@pytest.mark.parametrize("jobs", [KEYED, UNKEYED], ids=["keyed", "unkeyed"])
async def test_same_jobs_under_other_names_are_paid_for_once(tmp_path: Path, jobs: Jobs) -> None:
    service = fast()
    for name in (None, "a", "b"):
        async with session(service, tmp_path / "run.db") as kling:
            outcomes = await run(kling, jobs, name)
        if name is not None:
            errors = [outcome.error for outcome in outcomes.values()]
            assert {type(error) for error in errors} <= {AlreadyPaidError, SkippedError}
            error = next(error for error in errors if isinstance(error, AlreadyPaidError))
            assert (error.batch, error.jobs, error.cost) == ("", 1, PRICE)
            assert f"batch {name!r}" in str(error)
            assert "nothing was spent" in str(error)
    assert len(service.paid) == 3
    async with session(service, tmp_path / "run.db") as kling:
        assert all(outcome.ok for outcome in (await run(kling, jobs, None)).values()), "the first is run again as ever"
    assert len(service.paid) == 3


@pytest.mark.promise(1)
async def test_keyed_job_is_found_by_one_without_a_key(tmp_path: Path) -> None:
    service = fast()
    async with session(service, tmp_path / "run.db") as kling:
        await run(kling, KEYED, "a")
        outcomes = await run(kling, UNKEYED, "b")
    assert not any(outcome.ok for outcome in outcomes.values())
    assert len(service.paid) == 3


async def test_key_of_its_own_and_generate_ask_for_another_video(tmp_path: Path) -> None:
    service = fast()
    async with session(service, tmp_path / "run.db") as kling:
        await run(kling, {"x": job("x")}, "a")
        outcomes = await run(kling, {"x-2": job("x"), "x": job("other content")}, "b")
        assert all(outcome.ok for outcome in outcomes.values())
        await kling.generate(job("x"))
        await kling.generate(job("x"))
    assert len(service.paid) == 5


async def test_pay_asks_for_another_video(tmp_path: Path) -> None:
    service = fast()
    async with session(service, tmp_path / "run.db", seen="pay") as kling:
        await run(kling, KEYED, "a")
        await run(kling, KEYED, "b")
        await run(kling, KEYED, "c", seen="stop")
    assert len(service.paid) == 6


@pytest.mark.promise(1)
@pytest.mark.parametrize("seen", ["stop", "reuse"])
async def test_two_batches_at_once_pay_once(tmp_path: Path, seen: str) -> None:
    service = fast()
    async with session(service, tmp_path / "run.db", seen=seen, max_in_flight=1) as kling:
        first, second = await asyncio.gather(run(kling, KEYED, "a"), run(kling, KEYED, "b"))
    assert sorted(body["prompt"] for body in service.paid) == ["x", "y", "z"]
    assert all(outcome.ok and not outcome.reused for outcome in first.values()), "the first claim decides"
    assert [outcome.reused for outcome in second.values()] == 3 * [seen == "reuse"]


async def test_manifest_is_looked_up_before_anything_is_sent(tmp_path: Path) -> None:
    service = fast()
    async with session(service, tmp_path / "run.db") as kling:
        await run(kling, {"z": job("z")}, "a")
        rows = [{"key": prompt, "prompt": prompt, "image": IMAGE} for prompt in "xyz"]
        with pytest.raises(
            AlreadyPaidError, match=r"1 job of batch 'b' was sent in batch 'a' already.*\$0\.25"
        ) as caught:
            await run(kling, read_rows(rows), "b")
        assert (caught.value.batch, caught.value.jobs, caught.value.cost) == ("a", 1, PRICE)
        assert len(service.paid) == 1
        assert [row.batch for row in read_ledger(tmp_path / "run.db")] == ["a"]
        outcomes = await run(kling, read_rows(rows), "b", seen="pay")
        assert len(service.paid) == 4
        again = await run(kling, read_rows(rows), "b")
    assert {prompt: outcome.ok for prompt, outcome in again.items()} == dict.fromkeys(outcomes, True)
    assert len(service.paid) == 4


async def test_lazy_input_stops_at_its_first_such_job(tmp_path: Path) -> None:
    service = fast()
    async with session(service, tmp_path / "run.db") as kling:
        await run(kling, {"x": job("x")}, "a")
        jobs = ((key, job(key)) for key in ["x", *map(str, range(50))])
        async with kling.batch(jobs, name="b", window=1) as batch:
            outcomes = [outcome async for outcome in batch]
            assert isinstance(batch.stopped, AlreadyPaidError)
    assert [type(outcome.error) for outcome in outcomes] == [AlreadyPaidError, *50 * [SkippedError]]
    assert len(service.paid) == 1


@pytest.mark.parametrize("state", State)
async def test_states_that_count(tmp_path: Path, state: State) -> None:
    """A job counts in the states in which another payment would be a second one."""
    path = {
        State.PENDING: [],
        State.CLAIMED: [State.CLAIMED],
        State.INTENT: [State.INTENT],
        State.SUBMITTED: [State.INTENT, State.SUBMITTED],
        State.COMPLETED: [State.INTENT, State.SUBMITTED, State.COMPLETED],
        State.DOWNLOADED: [State.INTENT, State.SUBMITTED, State.COMPLETED, State.DOWNLOADED],
        State.FAILED: [State.INTENT, State.SUBMITTED, State.FAILED],
        State.EXPIRED: [State.INTENT, State.SUBMITTED, State.EXPIRED],
        State.UNCERTAIN: [State.INTENT, State.UNCERTAIN],
        State.ABANDONED: [State.INTENT, State.UNCERTAIN, State.ABANDONED],
        State.REJECTED: [State.INTENT, State.REJECTED],
        State.SKIPPED: [State.SKIPPED],
        State.REUSED: [State.REUSED],
    }[state]
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    content = Content("{}")
    await ledger.claim("a", "k", content=content, model="m", at=0.0)
    for step in path:
        await ledger.record(Entry(batch="a", key="k", state=step, at=1.0))
    ledger.unclaim("a", "k")
    found = await ledger.paid_elsewhere("b", "k", digests=[content.digest], any_key=False)
    await ledger.aclose()
    assert [row.state for row in found] == ([state] if state.paid else [])
    assert state.paid == (state.value in {"intent", "uncertain", "submitted", "completed", "downloaded", "abandoned"})


async def test_batch_of_an_older_rule_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = fast()
    async with session(service, tmp_path / "run.db") as kling:
        await run(kling, UNKEYED, "a")
    monkeypatch.setattr(contents, "RULES", {**contents.RULES, 9: lambda text: text + " "})
    monkeypatch.setattr(contents, "IDENTITY_VERSION", 9)
    async with session(service, tmp_path / "run.db") as kling:
        assert not any(outcome.ok for outcome in (await run(kling, UNKEYED, "b")).values())
    assert len(service.paid) == 3


async def test_setting_needs_a_ledger_on_disk() -> None:
    service = fast()
    with pytest.raises(ConfigurationError, match="ledger on disk for 'reuse'"):
        async with session(service, None, seen="reuse"):
            pass
    async with session(service, None) as kling:
        with pytest.raises(ConfigurationError, match="ledger on disk for 'stop'"):
            kling.batch(KEYED, seen="stop")
        with pytest.raises(ConfigurationError, match="expected one of stop, reuse, pay, got 'no'"):
            kling.batch(KEYED, seen="no")  # type: ignore[arg-type]  # what is tested
        await run(kling, KEYED, "a")
        await run(kling, KEYED, "b")
    assert len(service.paid) == 6


# ---- reuse ----


async def test_reuse_hands_out_what_was_made_and_pays_nothing(tmp_path: Path) -> None:
    service = fast()
    path = tmp_path / "run.db"
    async with session(service, path) as kling:
        made = await run(kling, KEYED, "a")
    for name in ("b", "c"):
        async with session(service, path, budget="1.00") as kling:
            again = await run(kling, UNKEYED, name, seen="reuse", budget="0.01")
        for prompt, outcome in again.items():
            assert outcome.ok
            assert (outcome.reused, outcome.cost) == (True, Decimal(0))
            assert (one := outcome.prediction) is not None
            assert (two := made[prompt].prediction) is not None
            assert (one.id, one.output) == (two.id, two.output)
            assert (one.key, two.key) == (outcome.key, prompt)
    async with session(service, path) as kling, kling.resume(name="b") as batch:
        resumed = [outcome async for outcome in batch]
    assert [(outcome.ok, outcome.reused, outcome.cost) for outcome in resumed] == 3 * [(True, True, Decimal(0))]
    assert len(service.paid) == 3
    reused = [row for row in read_ledger(path) if row.batch != "a"]
    assert {(row.state, row.spent, row.prediction_id) for row in reused} == {(State.REUSED, None, None)}
    ledger = SQLiteLedger(path)
    await ledger.open()
    assert await ledger.spent(None) == 3 * PRICE
    assert await ledger.spent("b") == 0
    await ledger.aclose()


async def test_reuse_goes_by_content_whatever_the_keys(tmp_path: Path) -> None:
    service = fast()
    async with session(service, tmp_path / "run.db", seen="reuse") as kling:
        await run(kling, {"x": job("x")}, "a")
        outcomes = await run(kling, {"another": job("x"), "x": job("other content")}, "b")
    assert {prompt: outcome.reused for prompt, outcome in outcomes.items()} == {"x": True, "other content": False}
    assert len(service.paid) == 2


async def test_reuse_waits_for_what_still_runs(tmp_path: Path) -> None:
    service = Service(seconds=0.3, latency=0.001)
    async with session(service, tmp_path / "run.db") as kling:
        first = asyncio.create_task(run(kling, KEYED, "a"))
        await until(lambda: len(service.paid) == 3)
        second = await run(kling, KEYED, "b", seen="reuse")
        assert [(outcome.ok, outcome.reused, outcome.cost) for outcome in second.values()] == 3 * [
            (True, True, Decimal(0))
        ]
        assert all(outcome.prediction and outcome.prediction.output for outcome in second.values())
        await first
    assert len(service.paid) == 3


async def test_job_is_paid_for_once_what_it_was_to_reuse_has_failed(tmp_path: Path) -> None:
    service = Service(seconds=0.3, latency=0.001, failures={"x": {"code": 1200}})
    one = {"x": job("x")}
    async with session(service, tmp_path / "run.db") as kling:
        first = asyncio.create_task(run(kling, one, "a"))
        await until(lambda: len(service.paid) == 1)
        second = await run(kling, one, "b", seen="reuse")
        assert isinstance(second["x"].error, PredictionFailedError)
        await first
    (row,) = read_ledger(tmp_path / "run.db", batch="b")
    assert (row.state, row.reused) == (State.PENDING, None)
    assert "has failed" in (row.error or "")
    service.failures.clear()
    async with session(service, tmp_path / "run.db") as kling:
        third = await run(kling, one, "b", seen="reuse")
    assert (third["x"].ok, third["x"].reused, third["x"].cost) == (True, False, PRICE)
    assert len(service.paid) == 2


async def test_job_in_doubt_is_not_reused(tmp_path: Path) -> None:
    service = fast()

    def lost(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID:
            service.accept(body)
            return json_response({"code": 500, "message": "lost"}, status=502)
        return None

    service.script = lost
    async with session(service, tmp_path / "run.db", on_uncertain="hold") as kling:
        await run(kling, {"x": job("x")}, "a")
        outcome = (await run(kling, {"x": job("x")}, "b", seen="reuse"))["x"]
        assert isinstance(outcome.error, InDoubtElsewhereError)
        assert not outcome.error.permanent
        assert outcome.error.batch == "a"
        stopped = (await run(kling, {"x": job("x")}, "c"))["x"]
        assert isinstance(stopped.error, AlreadyPaidError)
    assert len(service.paid) == 1


async def test_video_that_is_gone_is_not_handed_out(tmp_path: Path) -> None:
    service = fast()
    path = tmp_path / "run.db"
    one = {"x": job("x")}
    async with session(service, path) as kling:
        await run(kling, one, "a")
    async with session(service, path, ahead=8 * DAY_S) as kling:
        there = await run(kling, one, "b", seen="reuse")
        assert there["x"].reused, "our clock alone shows nothing"
    service.script = deleted("p00000")
    async with session(service, path, ahead=8 * DAY_S) as kling:
        for name in ("b", "c"):
            error = (await run(kling, one, name, seen="reuse"))["x"].error
            assert isinstance(error, AlreadyPaidError), name
            assert "cannot be reused" in str(error)
            assert 'seen="pay"' in error.advice
    assert len(service.paid) == 1
    async with session(service, path, ahead=8 * DAY_S) as kling:
        assert (await run(kling, one, "c", seen="pay"))["x"].cost == PRICE
    assert len(service.paid) == 2


async def test_reused_job_whose_video_is_gone_is_paid_for_on_request(tmp_path: Path) -> None:
    service = fast()
    path = tmp_path / "run.db"
    one = {"x": job("x")}
    async with session(service, path) as kling:
        await run(kling, one, "a")
        await run(kling, one, "b", seen="reuse")
        again = (await run(kling, one, "b", seen="pay"))["x"]
        assert (again.reused, again.cost) == (True, Decimal(0)), "what is there is not paid for again"
    service.script = deleted("p00000")
    async with session(service, path, ahead=8 * DAY_S) as kling:
        outcome = (await run(kling, one, "b", seen="pay"))["x"]
    assert (outcome.ok, outcome.reused, outcome.cost) == (True, False, PRICE)
    assert len(service.paid) == 2
    (row,) = read_ledger(path, batch="b")
    assert (row.state, row.reused, row.path) == (State.COMPLETED, None, None)


async def test_resume_sends_a_reused_job_whose_other_one_failed(tmp_path: Path) -> None:
    """The process ended before it could learn that."""
    service = Service(seconds=0.05, latency=0.001, failures={"x": {"code": 1200}})
    path = tmp_path / "run.db"
    async with session(service, path) as kling:
        failed = (await run(kling, {"x": job("x")}, "a"))["x"].prediction
        assert failed is not None
    ((content, files),) = [(row.job, row.files) for row in read_ledger(path)]
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.claim("b", "x", content=Content(content or "", files), model="m", at=0.0)
    await ledger.record(Entry(batch="b", key="x", state=State.REUSED, at=1.0, reused=failed.id))
    await ledger.aclose()
    service.failures.clear()
    async with session(service, path) as kling, kling.resume(name="b") as batch:
        (outcome,) = [outcome async for outcome in batch]
    assert (outcome.ok, outcome.reused, outcome.cost) == (True, False, PRICE)
    assert len(service.paid) == 2


async def test_each_key_gets_its_own_of_several_videos_of_one_content(tmp_path: Path) -> None:
    service = fast()
    same = dict.fromkeys("xyz", job("x"))

    async def ids(kling: KlingSession, name: str, **options: Any) -> dict[str, str]:
        async with kling.batch(same, name=name, **options) as batch:
            return {outcome.key: outcome.prediction.id async for outcome in batch if outcome.prediction}

    async with session(service, tmp_path / "run.db") as kling:
        made = await ids(kling, "a")
        assert len(set(made.values())) == 3
        assert await ids(kling, "b", seen="reuse") == made
    assert len(service.paid) == 3


# ---- doubts, failures and prices ----


@pytest.mark.promise(1)
async def test_job_shown_to_be_unaccepted_is_looked_up_like_a_new_one(tmp_path: Path) -> None:
    """Another batch has paid for it while it was in doubt."""
    service = fast()
    lost: list[str] = []

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and not lost:
            lost.append(body["prompt"])
            raise ConnectionLostError("dropped")
        return None

    service.script = script
    ledger = tmp_path / "run.db"
    async with session(service, ledger, on_uncertain="hold") as kling:
        assert isinstance((await run(kling, {"x": job("x")}, "a"))["x"].error, SubmissionUncertainError)
        assert (await run(kling, {"x": job("x")}, "b", seen="pay"))["x"].ok
    async with session(service, ledger, grace=0.01) as kling:
        outcome = (await run(kling, {"x": job("x")}, "a"))["x"]
    assert isinstance(outcome.error, AlreadyPaidError)
    assert len(service.paid) == 1


async def test_failed_job_of_the_batch_itself_refuses_no_manifest(tmp_path: Path) -> None:
    """Nothing would be sent for it."""
    service = fast()
    service.failures["x"] = {"error": "no", "code": 1200}
    ledger = tmp_path / "run.db"
    async with session(service, ledger) as kling:
        assert isinstance((await run(kling, {"x": job("x")}, "b"))["x"].error, KlingError)
        service.failures.clear()
        assert (await run(kling, {"x": job("x")}, "a", seen="pay"))["x"].ok
        manifest = read_rows([{"key": "x", "prompt": "x", "image": IMAGE}])
        assert isinstance((await run(kling, manifest, "b"))["x"].error, PredictionFailedError)
        identity = await engine_of(kling).contents.identity("b")
        found = await look_up(engine_of(kling).ledger, manifest, "b", identity=identity, provider="wavespeed")
    assert found.jobs == 0
    assert len(service.paid) == 2


@pytest.mark.parametrize("name", ["10:30 shoot@studio", "password=1"])
def test_saved_video_may_have_any_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "x.mp4"
    path.parent.mkdir()
    path.write_bytes(b"x")
    row = Row(
        batch="b", key="k", digest="d", model="m", state=State.DOWNLOADED, updated_at=0.0, path=str(path), bytes=1
    )
    saved = saved_file(row)
    assert saved is not None
    assert saved.path == path

"""Films over a ledger file: the same call again goes on where it stopped, and pays for no clip twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from kling_async import (
    HttpRequest,
    HttpResponse,
    Job,
    KeyReusedError,
    Outcome,
    PredictionExpiredError,
    SkippedError,
    State,
    WatchPolicy,
    read_ledger,
)
from kling_async._core.content import Content
from kling_async._core.http import Effect
from kling_async._core.states import Row
from kling_async.emulator import Emulator, faults
from kling_async.ledger import SQLiteLedger
from kling_async.testing import json_response
from support.films import chain, clip, pictures, take_ids
from support.patience import PATIENCE_S
from support.service import Service, open_session

pytestmark = pytest.mark.anyio

FAST = WatchPolicy.fixed(0.02)
WORKER = Path(__file__).parents[1] / "support" / "film_worker.py"


@pytest.fixture(autouse=True)
def taken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return [] if "real" in request.node.name else take_ids(monkeypatch, 0.0)


def service_of(**options: Any) -> Service:
    return Service(seconds=0.1, latency=0.001, **options)


async def run(service: Service, ledger: Path | SQLiteLedger, jobs: Any, **options: Any) -> dict[str, Outcome]:
    retry_failed = options.pop("retry_failed", 0)
    async with (
        open_session(service, watch=FAST, ledger=ledger, retry_failed=retry_failed) as kling,
        kling.batch(jobs, name="film", **options) as batch,
    ):
        return {outcome.key: outcome async for outcome in batch}


def states(ledger: Path) -> dict[str, State]:
    return {row.key: row.state for row in read_ledger(ledger)}


async def test_same_call_again_pays_nothing(tmp_path: Path) -> None:
    service, ledger = service_of(), tmp_path / "run.db"
    jobs = chain("film", 4)
    first = await run(service, ledger, jobs)
    again = await run(service, ledger, dict(reversed(jobs.items())))
    assert [outcome.ok for outcome in (*first.values(), *again.values())] == [True] * 8
    assert len(service.paid) == 4
    rows = {row.key: row for row in read_ledger(ledger)}
    assert rows["film-2"].frames == '{"image": "film-1"}'
    assert rows["film-0"].frames is None


class CountingLedger(SQLiteLedger):
    """A ledger that counts how often each job is looked up."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lookups: Counter[str] = Counter()

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        self.lookups[key] += 1
        return await super().find(batch, key)


async def test_same_call_again_looks_every_clip_up_once(tmp_path: Path) -> None:
    service, ledger = service_of(), tmp_path / "run.db"
    jobs = chain("film", 4)
    await run(service, ledger, jobs)
    counting = CountingLedger(ledger)
    await run(service, counting, jobs)
    assert counting.lookups == {"film-1": 1, "film-2": 1, "film-3": 1}


async def test_what_a_failed_clip_ended_is_sent_once_there_is_a_video(tmp_path: Path) -> None:
    service = service_of(failures={"film-1": {"error": "internal", "code": 5000}})
    ledger, jobs = tmp_path / "run.db", chain("film", 4)
    outcomes = await run(service, ledger, jobs)
    assert isinstance(outcomes["film-3"].error, SkippedError)
    assert states(ledger) == {
        "film-0": State.COMPLETED,
        "film-1": State.FAILED,
        "film-2": State.SKIPPED,
        "film-3": State.SKIPPED,
    }
    errors = {row.key: row.error for row in read_ledger(ledger)}
    assert "it continues the job 'film-1', which has no video" in str(errors["film-2"])
    service.failures.clear()
    outcomes = await run(service, ledger, jobs, retry_failed=1)
    assert all(outcome.ok for outcome in outcomes.values())
    assert Counter(body["prompt"] for body in service.paid) == {
        "film-0": 1,
        "film-1": 2,
        "film-2": 1,
        "film-3": 1,
    }
    assert pictures(service) == {"film-1": "film-0", "film-2": "film-1", "film-3": "film-2"}


@pytest.mark.parametrize("again", ["input", "ledger"])
async def test_batch_that_was_left_goes_on_from_its_input_and_from_its_ledger(tmp_path: Path, again: str) -> None:
    service, ledger, jobs = service_of(), tmp_path / "run.db", chain("film", 5)
    service.seconds = lambda body: 0.1 if body["prompt"] < "film-2" else 3600.0
    async with (
        open_session(service, watch=FAST, ledger=ledger) as kling,
        kling.batch(jobs, name="film") as batch,
    ):
        await anext(batch)
        await anext(batch)
        with anyio.fail_after(PATIENCE_S):
            while len(service.paid) < 3:  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.01)
    assert states(ledger)["film-4"] is State.PENDING, "it is recorded when it is read"
    service.accepted = {id_: (since, 0.1, body) for id_, (since, _, body) in service.accepted.items()}
    service.seconds = 0.1
    if again == "input":
        outcomes = await run(service, ledger, jobs)
    else:
        async with open_session(service, watch=FAST, ledger=ledger) as kling, kling.resume(name="film") as batch:
            outcomes = {outcome.key: outcome async for outcome in batch}
    assert sorted(outcomes) == sorted(jobs)
    assert all(outcome.ok for outcome in outcomes.values())
    assert sorted(body["prompt"] for body in service.paid) == sorted(jobs)
    assert pictures(service) == {f"film-{number}": f"film-{number - 1}" for number in range(1, 5)}


async def test_resume_reads_a_parent_first_that_was_touched_last(tmp_path: Path) -> None:
    service, ledger, jobs = service_of(), tmp_path / "run.db", chain("film", 4)
    service.seconds = 3600.0
    async with open_session(service, watch=FAST, ledger=ledger) as kling, kling.batch(jobs, name="film"):
        with anyio.fail_after(PATIENCE_S):
            while len(states(ledger)) < 4 or not service.paid:  # noqa: ASYNC110 -- nothing announces it
                await anyio.sleep(0.01)
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE job SET updated_at = updated_at + 1000 WHERE key IN ('film-1', 'film-2')")
        connection.execute("UPDATE step SET at = at + 1000 WHERE key IN ('film-1', 'film-2')")
    connection.close()
    service.accepted = {id_: (since, 0.1, body) for id_, (since, _, body) in service.accepted.items()}
    service.seconds = 0.1
    async with open_session(service, watch=FAST, ledger=ledger) as kling, kling.resume(name="film") as batch:
        outcomes = [outcome async for outcome in batch]
    assert [outcome.key for outcome in outcomes if outcome.ok] == [*jobs]
    assert len(service.paid) == 4


async def test_resume_yields_parents_first_whatever_their_states(tmp_path: Path) -> None:
    """Covers a clip in doubt, which is listed before the finished one that it continues."""
    service, ledger = service_of(), tmp_path / "run.db"
    lost = [True]

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and body["prompt"] == "film-1" and lost:
            lost.clear()
            return json_response({"code": 500, "message": "later"}, status=503)
        return None

    service.script = script
    jobs = chain("film", 3)
    async with (
        open_session(service, watch=FAST, ledger=ledger, on_uncertain="hold", grace=0.01) as kling,
        kling.batch(jobs, name="film") as batch,
    ):
        async for _ in batch:
            pass
    async with (
        open_session(service, watch=FAST, ledger=ledger, grace=0.01, sole_user=True) as kling,
        kling.resume(name="film") as batch,
    ):
        outcomes = [outcome async for outcome in batch]
    assert [outcome.key for outcome in outcomes if outcome.ok] == ["film-0", "film-1", "film-2"]
    assert sorted(body["prompt"] for body in service.paid) == sorted(jobs)


async def test_paid_clip_is_delivered_although_its_parent_is_gone(tmp_path: Path) -> None:
    """Clips that were accepted need no frame any more, and are not skipped."""
    service, ledger, jobs = service_of(), tmp_path / "run.db", chain("film", 3)
    await run(service, ledger, {key: jobs[key] for key in ("film-0", "film-1")})
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE job SET state = 'expired' WHERE key = 'film-0'")
        connection.execute("UPDATE step SET state = 'expired' WHERE key = 'film-0' AND state = 'completed'")
    connection.close()
    outcomes = await run(service, ledger, jobs)
    assert isinstance(outcomes["film-0"].error, PredictionExpiredError)
    assert outcomes["film-1"].ok
    assert outcomes["film-2"].ok
    assert len(service.paid) == 3


async def test_expired_video_is_a_clear_error_for_what_continues_it(tmp_path: Path) -> None:
    service, ledger, jobs = service_of(), tmp_path / "run.db", chain("film", 2)
    await run(service, ledger, {"film-0": jobs["film-0"]})
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE job SET state = 'expired'")
        connection.execute("UPDATE step SET state = 'expired' WHERE state = 'completed'")
    connection.close()
    outcomes = await run(service, ledger, jobs)
    error = outcomes["film-1"].error
    assert isinstance(error, SkippedError)
    assert "it continues the job 'film-0', which has no video: its prediction expired" in str(error)
    assert states(ledger) == {"film-0": State.EXPIRED, "film-1": State.SKIPPED}
    assert len(service.paid) == 1


async def test_edited_clip_is_refused_with_all_that_follow_it(tmp_path: Path) -> None:
    service, ledger, jobs = service_of(), tmp_path / "run.db", chain("film", 3)
    await run(service, ledger, jobs)
    outcomes = await run(service, ledger, {**jobs, "film-1": clip("other", "film-0")})
    assert outcomes["film-0"].ok
    assert isinstance(outcomes["film-1"].error, KeyReusedError)
    assert isinstance(outcomes["film-2"].error, KeyReusedError)
    assert "--redo KEY of the clip that was edited makes, and pays for, all of them again" in str(
        outcomes["film-2"].error
    )
    assert len(service.paid) == 3


async def test_clips_without_keys_are_told_apart_by_their_films(tmp_path: Path) -> None:
    service, ledger = service_of(), tmp_path / "run.db"
    pairs = [("a", clip("a")), (None, clip("x", "a")), ("b", clip("b")), (None, clip("x", "b"))]
    first = await run(service, ledger, pairs)
    assert len(first) == 4
    assert len(service.paid) == 4
    again = await run(service, ledger, pairs)
    assert again.keys() == first.keys()
    assert len(service.paid) == 4


async def test_unreadable_duplicate_ends_no_film_of_its_key(tmp_path: Path) -> None:
    service, ended = service_of(), anyio.Event()

    async def lazy() -> AsyncIterator[tuple[str, Job]]:
        yield "a", clip("a")
        yield "a", Job(prompt="again", image=tmp_path / "gone.png")
        await ended.wait()
        yield "b", clip("b", "a")

    async with (
        open_session(service, watch=FAST, ledger=tmp_path / "run.db") as kling,
        kling.batch(lazy(), name="film") as batch,
    ):
        outcomes = []
        async for outcome in batch:
            outcomes.append((outcome.key, outcome.ok))
            if outcome.ok:
                ended.set()
    assert sorted(outcomes) == [("a", False), ("a", True), ("b", True)]


@pytest.mark.timeout(600)
@pytest.mark.repeats
async def test_real_processes_that_are_killed_pay_for_every_clip_once(tmp_path: Path) -> None:
    """Kills at random moments, the end of one clip and the beginning of the next included."""
    rng = random.Random(4)
    path, films, length = tmp_path / "run.db", 12, 4
    async with Emulator(level="ultra", profile="video", timing=0.5, balance=1e6, input_echo=True) as emulator:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(WORKER), str(path), emulator.base_url, emulator.api_key, str(films), str(length)]
        kills = 5
        for kill in range(kills + 1):
            process = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=None, env=environment)
            with anyio.fail_after(PATIENCE_S + 400):
                if kill == kills:
                    assert await process.wait() == 0
                    continue
                unanswered = emulator.faults.add("submit", faults.Delay(86_400.0, accepted=True)) if kill % 2 else None
                enough = round(films * length * (kill + rng.random()) / (kills + 1)) + 1
                while len(emulator.predictions()) < enough or (unanswered is not None and not unanswered.spent):
                    assert process.returncode is None, "it ended before it was killed"
                    await anyio.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        paid = Counter(str(record.inputs["prompt"]) for record in emulator.predictions())
    rows = list(read_ledger(path))
    assert len(rows) == films * length
    assert max(paid.values()) == 1, "paid twice"
    assert {row.state for row in rows} == {State.COMPLETED}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", ["take", "send"])
async def test_real_process_that_dies_between_two_clips_pays_for_each_once(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "run.db"
    async with Emulator(level="ultra", profile="video", timing=0.5, balance=1e6, input_echo=True) as emulator:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(WORKER), str(path), emulator.base_url, emulator.api_key, "1", "3"]
        with anyio.fail_after(PATIENCE_S + 200):
            dying = await anyio.open_process(command, stderr=None, env=environment | {"KLING_DIES": moment})
            assert await dying.wait() == -signal.SIGKILL
            assert states(path) == {"f0-0": State.COMPLETED, "f0-1": State.PENDING, "f0-2": State.PENDING}
            again = await anyio.open_process(command, stderr=None, env=environment)
            assert await again.wait() == 0
        paid = Counter(str(record.inputs["prompt"]) for record in emulator.predictions())
    assert paid == {"f0-0": 1, "f0-1": 1, "f0-2": 1}
    assert {*states(path).values()} == {State.COMPLETED}

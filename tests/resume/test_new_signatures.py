"""The same picture with a new signature is the same job: not paid for again, and sent with the newest URL."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from kling_async import (
    Field,
    Job,
    KeyReusedError,
    KlingError,
    KlingSession,
    Outcome,
    SubmissionUncertainError,
    WatchPolicy,
    enqueue,
    read_ledger,
)
from kling_async._core import content as contents
from kling_async._core.catalogue import find_model
from kling_async.integrations.fastapi import JobService
from kling_async.ledger.postgres import PostgresLedger
from kling_async.testing import LoopClock
from support.service import Service, open_session

pytestmark = pytest.mark.anyio

KEYED, UNKEYED = "k", None
NAME = "b"


def url(signature: int | str, picture: str = "face", store: str = "https://pictures.example") -> str:
    return f"{store}/{picture}.png?width=300&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={signature}"


def job(signature: int | str, **fields: Any) -> Job:
    return Job(prompt="She turns", image=url(signature, **fields))


class NothingStarts:
    """Rate limiter that refuses every job right before it would be sent."""

    async def acquire(self) -> None:
        raise KlingError("not now")


def service() -> Service:
    epoch = 1_800_000_000.0 - asyncio.get_running_loop().time()
    return Service(seconds=0.01, latency=0.0, clock=LoopClock(epoch), epoch=epoch)


def session(at: Service, ledger: Path | PostgresLedger | str, **options: Any) -> KlingSession:
    return open_session(at, watch=WatchPolicy.fixed(0.02), ledger=ledger, grace=0.01, **options)


async def run(at: Service, ledger: Path | str, jobs: Any, **options: Any) -> list[Outcome]:
    async with session(at, ledger, **options) as kling, kling.batch(jobs, name=NAME) as batch:
        return [outcome async for outcome in batch]


@pytest.fixture
def first_rule(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Begin batches under the first identity rule, until the returned function is called."""
    newest = contents.IDENTITY_VERSION
    monkeypatch.setattr(contents, "IDENTITY_VERSION", 1)
    return lambda: monkeypatch.setattr(contents, "IDENTITY_VERSION", newest)


def identity(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        ((found,),) = connection.execute("SELECT identity FROM batch WHERE name = ?", (NAME,)).fetchall()
    connection.close()
    return int(found)


@pytest.mark.promise(1)
@pytest.mark.parametrize("key", [KEYED, UNKEYED])
async def test_run_again_with_new_signatures_pays_nothing(key: str | None, tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    for signature in (1, 2):
        outcomes = await run(at, path, [(key, job(signature))])
        assert [outcome.error for outcome in outcomes] == [None]
    assert [body["image"] for body in at.paid] == [url(1)]
    assert identity(path) == contents.IDENTITY_VERSION


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", ["end_image", "keyframes", "images"])
async def test_run_again_with_new_signatures_of_further_pictures_pays_nothing(name: str, tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    newest = find_model("kling-v4.0")
    assert newest is not None
    lists = (Field(name="keyframes", type="array"), Field(name="images", type="array"))
    model = attrs.evolve(newest, id="kwaivgi/own", name="own", aliases=(), inputs=lists)
    for signature in (1, 2):
        further = url(signature, picture="further")
        given: dict[str, Any] = {name: further if name == "end_image" else [further]}
        outcomes = await run(at, path, [Job(prompt="She turns", image=url(1), model=model, **given)])
        assert [outcome.error for outcome in outcomes] == [None]
    assert len(at.paid) == 1


async def test_duplicates_with_other_signatures_are_told_apart_by_count(tmp_path: Path) -> None:
    """Two rows with the same picture are two videos, as they are with the same URL."""
    at, path = service(), tmp_path / "jobs.db"
    for first in (1, 3):
        outcomes = await run(at, path, [job(first), job(first + 1)])
        assert [outcome.error for outcome in outcomes] == [None, None]
    assert sorted(body["image"] for body in at.paid) == [url(1), url(2)]


@pytest.mark.parametrize("other", [{"picture": "hand"}, {"store": "https://others.example"}])
async def test_other_picture_under_the_same_key_is_refused(other: dict[str, str], tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    await run(at, path, {KEYED: job(1)})
    (outcome,) = await run(at, path, {KEYED: job(2, **other)})
    assert isinstance(outcome.error, KeyReusedError)
    assert len(at.paid) == 1


async def test_job_that_was_not_sent_is_resumed_with_the_newest_url(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    for signature in (1, 2):
        (outcome,) = await run(at, path, {KEYED: job(signature)}, rate_limiter=NothingStarts())
        assert "not now" in str(outcome.error)
    (row,) = read_ledger(path)
    assert json.loads(row.job or "")["image"] == url(2)
    async with session(at, path) as kling, kling.resume(name=NAME) as batch:
        assert [outcome.error async for outcome in batch] == [None]
    assert [body["image"] for body in at.paid] == [url(2)]


async def test_job_that_was_sent_keeps_the_url_that_was_sent(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    for signature in (1, 2):
        await run(at, path, {KEYED: job(signature)})
    (row,) = read_ledger(path)
    assert json.loads(row.job or "")["image"] == url(1)


async def test_job_in_doubt_is_settled_by_what_was_sent(tmp_path: Path) -> None:
    """Its echo has the old signature: the new one must not make it another job's."""
    at, path = service(), tmp_path / "jobs.db"
    at.echo = lambda inputs: inputs

    def lose(request: Any, body: dict[str, Any]) -> Any:
        if request.url.endswith("i2v-standard"):
            at.accept(body)
            raise ConnectionError
        return None

    at.script = lose
    (outcome,) = await run(at, path, {KEYED: job(1)}, on_uncertain="hold")
    assert isinstance(outcome.error, SubmissionUncertainError)
    at.script = None
    (outcome,) = await run(at, path, {KEYED: job(2)})
    assert outcome.error is None
    assert [body["image"] for body in at.paid] == [url(1)]


@pytest.mark.promise(1)
async def test_batch_of_the_first_rule_keeps_it_and_compares_keyed_jobs_by_the_new_one(
    tmp_path: Path, first_rule: Callable[[], None]
) -> None:
    at, path = service(), tmp_path / "jobs.db"
    await run(at, path, [(KEYED, job(1)), (UNKEYED, job("x"))])
    first_rule()
    outcomes = await run(at, path, [(KEYED, job(2)), (UNKEYED, job("x"))])
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert sorted(body["image"] for body in at.paid) == [url(1), url("x")]
    assert identity(path) == 1
    (outcome,) = await run(at, path, {KEYED: job(3, picture="hand")})
    assert isinstance(outcome.error, KeyReusedError)


async def test_unsent_job_of_the_first_rule_is_sent_with_the_newest_url(
    tmp_path: Path, first_rule: Callable[[], None]
) -> None:
    at, path = service(), tmp_path / "jobs.db"
    await run(at, path, {KEYED: job(1)}, rate_limiter=NothingStarts())
    first_rule()
    await run(at, path, {KEYED: job(2)}, rate_limiter=NothingStarts())
    async with session(at, path) as kling, kling.resume(name=NAME) as batch:
        assert [outcome.error async for outcome in batch] == [None]
    assert [body["image"] for body in at.paid] == [url(2)]


@pytest.mark.parametrize("old", [False, True])
async def test_job_service_takes_a_new_signature_for_the_same_job(
    old: bool,  # noqa: FBT001 -- a parameter of the test
    tmp_path: Path,
    first_rule: Callable[[], None],
) -> None:
    at, path = service(), tmp_path / "jobs.db"
    if not old:
        first_rule()
    async with session(at, path) as kling, (jobs := JobService()).open(kling):
        first = await jobs.generate(job(1), key=KEYED)
        assert (await jobs.generate(job(2), key=KEYED)).id == first.id
        with pytest.raises(KeyReusedError):
            await jobs.submit(job(3, picture="hand"), key=KEYED)
    assert len(at.paid) == 1


async def test_enqueued_job_is_renewed_until_it_is_sent(database: str) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    images = []
    for signature in (1, 2):
        await enqueue(ledger, {KEYED: job(signature)}, batch=NAME)
        found = await ledger.find(NAME, KEYED)
        assert found is not None
        images.append(json.loads(found[1].text)["image"])
    await ledger.aclose()
    assert images == [url(1), url(2)]
    at = service()
    async with session(at, ledger) as kling, kling.batch({KEYED: job(3)}, name=NAME) as batch:
        assert [outcome.error async for outcome in batch] == [None]
    assert [body["image"] for body in at.paid] == [url(3)]
    await ledger.open()
    assert await enqueue(ledger, {KEYED: job(4)}, batch=NAME) == 0
    found = await ledger.find(NAME, KEYED)
    await ledger.aclose()
    assert found is not None
    assert json.loads(found[1].text)["image"] == url(3)


async def test_restarted_job_service_knows_a_running_job_by_a_new_signature(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    at.seconds = 3600.0
    async with session(at, path) as kling, (jobs := JobService()).open(kling):
        await jobs.submit(job(1), key=KEYED)
        async for change in jobs.follow(KEYED):
            if change is not None and change.status.prediction_id is not None:
                break
    async with session(at, path) as kling, (jobs := JobService()).open(kling):
        assert (await jobs.submit(job(2), key=KEYED)).prediction_id == "p00000"
    assert len(at.paid) == 1

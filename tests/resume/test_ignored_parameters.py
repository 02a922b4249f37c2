"""Query parameters that a batch ignores: the same picture under a new URL is the same job, and not paid for again."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from kling_async import (
    AlreadyPaidError,
    ConfigurationError,
    Job,
    KeyReusedError,
    KlingSession,
    Outcome,
    WatchPolicy,
    Worker,
    enqueue,
    read_ledger,
)
from kling_async.integrations.fastapi import JobService
from kling_async.ledger import Identity, SQLiteLedger, read_identity
from kling_async.ledger._sqlite import tables
from kling_async.ledger.postgres import PostgresLedger
from kling_async.manifest import read_rows
from kling_async.testing import LoopClock
from support import first_release
from support.first_release import BATCH, GATE, STATES
from support.service import Service, open_session

pytestmark = pytest.mark.anyio

KEYED, UNKEYED = "k", None
NAME = "b"
IGNORED = ("v", "token")


def url(token: int | str, picture: str = "face", more: str = "width=300") -> str:
    return f"https://pictures.example/{picture}.png?{more}&token={token}&v={token}"


def job(token: int | str, **more: str) -> Job:
    return Job(prompt="She turns", image=url(token, **more))


def service() -> Service:
    epoch = 1_800_000_000.0 - asyncio.get_running_loop().time()
    return Service(seconds=0.01, latency=0.0, clock=LoopClock(epoch), epoch=epoch)


def session(at: Service, ledger: Path | PostgresLedger | str | None, *ignored: str, **options: Any) -> KlingSession:
    return open_session(
        at, watch=WatchPolicy.fixed(0.02), ledger=ledger, grace=0.01, ignored_parameters=ignored or None, **options
    )


async def run(
    at: Service, ledger: Path | str, jobs: Any, *ignored: str, name: str = NAME, **options: Any
) -> list[Outcome]:
    async with session(at, ledger, *ignored, **options) as kling, kling.batch(jobs, name=name) as batch:
        return [outcome async for outcome in batch]


def paid(at: Service) -> list[str]:
    return sorted(body["image"] for body in at.paid)


@pytest.mark.promise(1)
@pytest.mark.parametrize("key", [KEYED, UNKEYED])
@pytest.mark.parametrize("again", [IGNORED, ("token", "v", "v"), ()], ids=["same", "same in other words", "not given"])
async def test_run_again_with_new_urls_pays_nothing(key: str | None, again: tuple[str, ...], tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    for token, ignored in ((1, IGNORED), (2, again)):
        outcomes = await run(at, path, [(key, job(token))], *ignored)
        assert [outcome.error for outcome in outcomes] == [None]
    assert paid(at) == [url(1)]
    assert read_identity(path, NAME) == Identity(ignored=("token", "v"))


async def test_other_parameters_tell_jobs_apart(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    await run(at, path, [(KEYED, job(1)), (UNKEYED, job(1))], *IGNORED)
    for more in ("width=400", "width=300&Token=1", "width=300&token2=1"):
        keyed, unkeyed = await run(at, path, [(KEYED, job(2, more=more)), (UNKEYED, job(2, more=more))])
        assert isinstance(keyed.error, KeyReusedError)
        assert unkeyed.error is None
    assert len(at.paid) == 5


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("began", "asked"), [(IGNORED, ["token"]), (IGNORED, ["token", "v", "w"]), (IGNORED, []), ((), ["token"])]
)
async def test_other_set_than_that_of_the_batch_is_refused(
    began: tuple[str, ...], asked: list[str], tmp_path: Path
) -> None:
    """Otherwise its jobs would have other keys, and be paid for again."""
    at, path = service(), tmp_path / "jobs.db"
    await run(at, path, [job(1), job(1, picture="hand")], *began)
    own, other = (", ".join(sorted(names)) or "none" for names in (began, asked))
    said = f"begun with \\({own}\\), got {other}: .*; nothing was spent; leave out ignored_parameters="
    options = {"watch": WatchPolicy.fixed(0.02), "ledger": path, "ignored_parameters": asked}
    async with open_session(at, **options) as kling:
        for refused in (kling.batch([job(2)], name=NAME), kling.resume(name=NAME)):
            with pytest.raises(ConfigurationError, match=said):
                async with refused:
                    raise AssertionError
        async with kling.batch([job(2)], name="another", seen="pay") as batch:
            assert [outcome.error async for outcome in batch] == [None]
    assert len(at.paid) == 3
    assert read_identity(path, NAME) == Identity(ignored=tuple(sorted(began)))


async def test_single_jobs_are_a_batch_too(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    for token, ignored in ((1, IGNORED), (2, ())):
        async with session(at, path, *ignored) as kling:
            await kling.generate(job(token), key=KEYED)
    async with session(at, path, "token") as kling:
        with pytest.raises(ConfigurationError, match="begun with"):
            await kling.generate(job(1), key="other")
    assert paid(at) == [url(1)]


async def test_unsent_job_is_resumed_with_the_newest_url(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    await run(at, path, {KEYED: job(1)}, *IGNORED, budget="0.01")
    await run(at, path, {KEYED: job(2)}, budget="0.01")
    assert at.paid == []
    async with session(at, path) as kling, kling.resume(name=NAME) as batch:
        assert [outcome.error async for outcome in batch] == [None]
    async with session(at, path, *IGNORED) as kling, kling.resume(name=NAME) as batch:
        assert [outcome.error async for outcome in batch] == [None]
    assert paid(at) == [url(2)]


@pytest.mark.promise(1)
@pytest.mark.parametrize("key", [KEYED, UNKEYED])
@pytest.mark.parametrize("ignored", [IGNORED, ("v", "other"), ()])
async def test_other_batch_with_any_set_finds_what_was_paid_for(
    key: str | None, ignored: tuple[str, ...], tmp_path: Path
) -> None:
    at, path = service(), tmp_path / "jobs.db"
    await run(at, path, [(key, job(1))], *IGNORED)
    (outcome,) = await run(at, path, [(key, job(2))], *ignored, name="other")
    assert isinstance(outcome.error, AlreadyPaidError)
    rows = [{"prompt": "She turns", "image": url(3), **({} if key is None else {"key": key})}]
    with pytest.raises(AlreadyPaidError, match="1 job of batch 'manifest' was sent in batch 'b' already"):
        await run(at, path, read_rows(rows), *ignored, name="manifest")
    (outcome,) = await run(at, path, [(key, job(4))], *ignored, name="third", seen="reuse")
    assert (outcome.error, outcome.reused) == (None, True)
    assert paid(at) == [url(1)]


async def test_set_of_a_batch_that_begins_meanwhile_counts(tmp_path: Path) -> None:
    """The sets of the ledger's batches are kept in memory."""
    at = service()
    async with session(at, tmp_path / "jobs.db", *IGNORED) as kling:
        for token, name in enumerate(("a", "b", "c")):
            async with kling.batch([job(token)], name=name) as batch:
                errors = [type(outcome.error) async for outcome in batch]
            assert errors == [AlreadyPaidError if token else type(None)]
    ledger = SQLiteLedger(tmp_path / "jobs.db")
    await ledger.open()
    assert await ledger.ignored_parameters() == [("token", "v")]
    await ledger.identity("new", ignored=("w",))
    assert sorted(await ledger.ignored_parameters()) == [("token", "v"), ("w",)]
    await ledger.aclose()


async def test_job_service_takes_a_new_url_for_the_same_job(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "jobs.db"
    for token, ignored in ((1, IGNORED), (2, ())):
        async with session(at, path, *ignored) as kling, (jobs := JobService()).open(kling):
            await jobs.generate(job(token), key=KEYED)
    async with session(at, path, "token") as kling:
        with pytest.raises(ConfigurationError, match="batch 'web' was begun with"):
            async with JobService().open(kling):
                raise AssertionError
    assert paid(at) == [url(1)]


async def test_memory_has_the_setting_too() -> None:
    at = service()
    async with session(at, None, *IGNORED) as kling, kling.batch([job(1), job(2)]) as batch:
        keys = [outcome.key async for outcome in batch]
    assert sorted(keys) == [min(keys), f"{min(keys)}-2"]


@pytest.mark.promise(1)
@pytest.mark.parametrize("key", [KEYED, UNKEYED])
async def test_enqueued_jobs_have_the_set_of_their_batch(key: str | None, database: str) -> None:
    at = service()
    async with aclosing(PostgresLedger(database)) as ledger:
        await ledger.open()
        assert await enqueue(ledger, [(key, job(1))], batch=NAME, ignored_parameters=IGNORED) == 1
        assert await enqueue(ledger, [(key, job(2))], batch=NAME) == 0
        (row,) = read_ledger(database)
        assert json.loads(row.job or "")["image"] == url(2)
        # A worker never begins a batch, so its session's setting concerns none of its jobs.
        async with session(at, database, "other") as kling:
            assert await Worker(kling).run_one(NAME, row.key) is None
        assert await enqueue(ledger, [(key, job(3))], batch=NAME, ignored_parameters=IGNORED) == 0
        with pytest.raises(ConfigurationError, match="begun with"):
            await enqueue(ledger, [(key, job(4))], batch=NAME, ignored_parameters=["token"])
        with pytest.raises(AlreadyPaidError):
            await enqueue(ledger, [(key, job(5))], batch="other")
        assert [row.key for row in read_ledger(database)] == [row.key]
        assert await enqueue(ledger, [(key, job(6))], batch="worked", seen="reuse") == 1
        (other,) = read_ledger(database, batch="worked")
        async with session(at, database) as kling:
            assert await Worker(kling, seen="stop").run_one("worked", other.key) is None
            (outcome,) = await run(at, database, [(key, job(7))], *IGNORED)
            assert outcome.error is None
    assert paid(at) == [url(2)]
    assert read_identity(database, NAME) == Identity(ignored=("token", "v"))
    assert read_identity(database, "none") is None


# ---- older ledgers ----


@pytest.mark.promise(1)
async def test_batch_of_the_first_release_ignores_nothing_more(tmp_path: Path) -> None:
    """Its keys are derived from whole URLs: with others, all of it would be paid for again."""
    path = Path(shutil.copy(GATE, tmp_path / "run.db"))
    at = service()
    jobs = first_release.gate_jobs(tmp_path / "pictures")
    assert read_identity(path, BATCH) == Identity(1)
    async with session(at, path, "X-Amz-Signature") as kling:
        with pytest.raises(ConfigurationError, match=r"begun with \(none\), got X-Amz-Signature"):
            async with kling.batch(jobs, name=BATCH):
                raise AssertionError
    assert at.paid == []


async def test_identity_is_read_from_older_files(tmp_path: Path) -> None:
    path = Path(shutil.copy(STATES, tmp_path / "run.db"))
    connection = sqlite3.connect(path, isolation_level=None)
    for version in (1, 2, 3):
        if version > 1:
            tables.MIGRATIONS[version - 1](connection)
            connection.execute(f"PRAGMA user_version = {version}")
        assert [read_identity(path, batch) for batch in (BATCH, "", "new")] == [Identity(1), Identity(1), None]
    connection.close()

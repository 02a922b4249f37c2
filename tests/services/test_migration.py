"""Tables of the first release: readable unmigrated, migrated atomically, then closed to workers of older versions."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import anyio
import psycopg
import pytest

from kling_async import LedgerError, Prediction, State, read_ledger
from kling_async._core import content as contents
from kling_async.ledger import Content, Entry, Identity, read_identity, read_marks, read_steps
from kling_async.ledger._postgres import statements, tables
from kling_async.ledger.postgres import PostgresLedger
from support import first_release, postgres
from support.first_release import BATCH, STATES
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

RELEASED = ("86516a", "7e6c7e")


@pytest.fixture
def old(database: str) -> str:
    """Return a database with tables of version 2 and a row in every state."""
    first_release.into_postgres(STATES, database)
    return database


def everything(url: str) -> list[tuple[object, ...]]:
    rows = postgres.rows(url, "SELECT * FROM kling_job ORDER BY id")
    return [*rows, *postgres.rows(url, "SELECT * FROM kling_step ORDER BY id")]


def version_of(url: str) -> object:
    return postgres.rows(url, "SELECT version FROM kling_version")[0][0]


async def migrate(url: str) -> None:
    ledger = PostgresLedger(url)
    await ledger.open()
    await ledger.aclose()


def copies(url: str, *, silenced: bool) -> Callable[[], str]:
    """Return a factory of migrated tables with a row in every state, each in its own schema.

    Args:
        url: The database.
        silenced: Replace every error text.
    """
    made = 0

    def fresh() -> str:
        nonlocal made
        made += 1
        schema = f"copy_{made}_{silenced}".lower()
        postgres.rows(url, f"CREATE SCHEMA {schema}")
        copy = f"{url}&options=-csearch_path%3D{schema}"
        first_release.into_postgres(STATES, copy, version=len(tables.MIGRATIONS))
        if silenced:
            for table in ("kling_job", "kling_step"):
                postgres.rows(copy, f"UPDATE {table} SET error = 'x'")
        return copy

    return fresh


def test_released_migrations_are_unchanged() -> None:
    assert tuple(hashlib.sha256(step.encode()).hexdigest()[:6] for step in tables.MIGRATIONS[:2]) == RELEASED


def test_old_tables_are_read_unmigrated(old: str) -> None:
    before = everything(old)
    read = {row.key: row for row in read_ledger(old)}
    assert read_marks(old) == {}
    assert read == {row.key: row for row in read_ledger(STATES)}
    assert {row.key for row in read_ledger(old, states=[State.ABANDONED])} == {"given-up", "given-up-intent", "single"}
    assert [row.key for row in read_ledger(old, states=[State.REJECTED])] == ["rejected"]
    assert [step.state for step in read_steps(old, key="given-up")][-1] is State.ABANDONED
    assert [read_identity(old, batch) for batch in (BATCH, "", "new")] == [Identity(1), Identity(1), None]
    assert everything(old) == before
    assert version_of(old) == 2


def test_tables_of_version_3_are_read_unmigrated(old: str) -> None:
    rows, steps = list(read_ledger(old)), list(read_steps(old))
    postgres.rows(old, tables.MIGRATIONS[2])
    postgres.rows(old, "UPDATE kling_version SET version = 3")
    assert ([*read_ledger(old)], [*read_steps(old)]) == (rows, steps)
    assert [read_identity(old, batch) for batch in (BATCH, "", "new")] == [Identity(1), Identity(1), None]
    assert version_of(old) == 3


async def test_migration_keeps_every_row_and_step(old: str) -> None:
    rows, steps = list(read_ledger(old)), list(read_steps(old))
    slots = postgres.rows(old, "SELECT key FROM kling_job WHERE slot ORDER BY key")
    await migrate(old)
    assert version_of(old) == len(tables.MIGRATIONS) == 7
    # Opening puts rows being sent in doubt, since their worker is gone.
    assert {row.key: row for row in read_ledger(old)} == {row.key: row for row in rows}
    assert list(read_steps(old)) == steps
    assert postgres.rows(old, "SELECT key FROM kling_job WHERE slot ORDER BY key") == slots
    found = postgres.rows(old, "SELECT account, batch, identity FROM kling_batch ORDER BY batch")
    assert found == [("default", "", 1), ("default", BATCH, 1)]


async def test_migration_that_fails_changes_nothing(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(old)
    monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, "SELECT 1 / 0"))
    with pytest.raises((LedgerError, psycopg.DataError)):
        await PostgresLedger(old).open()
    monkeypatch.undo()
    assert everything(old) == before
    assert version_of(old) == 2
    await migrate(old)


async def test_workers_migrate_concurrently(old: str) -> None:
    ledgers = [PostgresLedger(old) for _ in range(5)]
    await asyncio.gather(*(ledger.open() for ledger in ledgers))
    await asyncio.gather(*(ledger.aclose() for ledger in ledgers))
    assert version_of(old) == len(tables.MIGRATIONS)


@pytest.mark.timeout(300)
@pytest.mark.repeats
async def test_decisions_ignore_error_texts(database: str, tmp_path: Path) -> None:
    said = await first_release.decisions(copies(database, silenced=False), tmp_path)
    unsaid = await first_release.decisions(copies(database, silenced=True), tmp_path)
    for name, decided in said.items():
        assert unsaid[name] == decided, name
    # The decisions equal those over a file, except for rows that the next worker claims by itself.
    in_file = await first_release.decisions(first_release.copies(STATES, tmp_path / "files"), tmp_path)
    for name in ("hold, run", "hold, resume", "retry, run", "retry, resume", "by hand", "rows"):
        assert said[name] == in_file[name], name


OF_THE_FIRST_RELEASE = {
    "read": "SELECT j.id, j.owner, j.slot, j.batch, j.key, j.state FROM kling_job j WHERE account = %(account)s",
    "insert": "INSERT INTO kling_job(account, batch, key, digest, model, state, updated_at, owner) "
    "VALUES (%(account)s, 'b', 'k', 'd', 'm', 'pending', 0, %(me)s)",
    "write": "UPDATE kling_job AS j SET state = 'intent', owner = %(me)s WHERE j.owner IS NOT DISTINCT FROM %(me)s",
    "claim": "UPDATE kling_job AS j SET state = 'claimed', owner = %(me)s, slot = true, cost = NULL WHERE j.id = 1",
    "admit": "UPDATE kling_job AS j SET slot = true WHERE j.id = 1 AND j.owner = %(me)s",
    "free": "UPDATE kling_job SET owner = NULL WHERE owner = ANY(ARRAY[%(me)s])",
    "beat": "SELECT id FROM kling_job WHERE owner = %(me)s",
}
"""Statements of a worker of the first release, shortened; each names the column that the migration renames."""


@pytest.mark.parametrize("statement", OF_THE_FIRST_RELEASE.values(), ids=list(OF_THE_FIRST_RELEASE))
async def test_database_refuses_open_workers_of_first_release(old: str, statement: str) -> None:
    values = {"account": "default", "me": "old"}
    with psycopg.connect(old, autocommit=True) as worker:
        worker.execute(statement.encode(), values)
        await migrate(old)
        before = everything(old)
        with pytest.raises(psycopg.errors.UndefinedColumn, match="owner"):
            worker.execute(statement.encode(), values)
        assert everything(old) == before


async def test_later_version_refuses_open_worker(database: str, caplog: pytest.LogCaptureFixture) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    row = await ledger.claim("b", "k", content=Content("d"), model="m", at=0.0)
    assert row.state is State.PENDING
    postgres.rows(database, "UPDATE kling_version SET version = 99")
    before = everything(database)
    intent = Entry(batch="b", key="k", state=State.INTENT, at=1.0, attempt=1)
    for refused in (
        ledger.record(intent),
        ledger.claim("b", "new", content=Content("d"), model="m", at=0.0),
        ledger.identity("new"),
        ledger.find("b", "k"),
        ledger.rows(State),
        ledger.claim_unowned([State.SUBMITTED]),
        ledger.take(1, first_release.LEVEL),
        ledger.admit("b", "k", first_release.LEVEL),
        ledger.enqueue("b", [("other", Content("d"), "m")], at=0.0),
        ledger._lease.renew(),
    ):
        with pytest.raises(LedgerError, match="later version"):
            await refused
    ledger.note_upload("digest", "https://pictures.example/1.png", 9e9)
    ledger.publish(Prediction(id="p", model="m"), None)
    await ledger.aclose()
    unnoted = [record.getMessage() for record in caplog.records if "could not be noted" in record.getMessage()]
    assert ["later version" in message for message in unnoted] == [True, True]
    assert everything(database) == before
    assert postgres.rows(database, "SELECT 1 FROM kling_upload") == []
    assert postgres.rows(database, "SELECT 1 FROM kling_worker") == [(1,)], "its lease ends by itself"


async def test_migration_and_steps_are_serialized(database: str) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.claim("b", "k", content=Content("d"), model="m", at=0.0)
    intent = Entry(batch="b", key="k", state=State.INTENT, at=1.0, attempt=1)
    async with await psycopg.AsyncConnection.connect(database) as migration, anyio.create_task_group() as tasks:
        await migration.execute(tables.LOCK_VERSION.encode())
        refused = anyio.Event()

        async def record() -> None:
            with pytest.raises(LedgerError, match="later version"):
                await ledger.record(intent)
            refused.set()

        tasks.start_soon(record)
        await anyio.sleep(0.2)
        assert not refused.is_set()
        await migration.execute(b"UPDATE kling_version SET version = 99")
        await migration.commit()
        with anyio.fail_after(PATIENCE_S):
            await refused.wait()
        # Conversely, the migration waits for a transaction that has read the version.
        await migration.execute(b"UPDATE kling_version SET version = 3")
        await migration.commit()
        begun, go_on = anyio.Event(), anyio.Event()

        async def work(connection: object) -> None:
            del connection
            begun.set()
            await go_on.wait()

        tasks.start_soon(ledger._queue.do, work)
        await begun.wait()
        await migration.execute(b"SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await migration.execute(tables.LOCK_VERSION.encode())
        go_on.set()
    await ledger.aclose()


async def test_workers_agree_on_identity_rule_of_new_batch(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledgers = [PostgresLedger(database) for _ in range(2)]
    for ledger in ledgers:
        await ledger.open()
    async with await psycopg.AsyncConnection.connect(database) as other:
        # A worker of another version, with another rule, that has not committed yet.
        await other.execute(statements.BEGIN_BATCH.encode(), ["default", "b", 1, '["token"]'])
        monkeypatch.setattr(contents, "RULES", {**contents.RULES, 9: contents.RULES[1]})
        monkeypatch.setattr(contents, "IDENTITY_VERSION", 9)
        async with anyio.create_task_group() as tasks:
            found: list[Identity] = []

            async def ask(ledger: PostgresLedger) -> None:
                found.append(await ledger.identity("b"))

            for ledger in ledgers:
                tasks.start_soon(ask, ledger)
            await anyio.sleep(0.2)
            assert found == []
            await other.commit()
    assert found == 2 * [Identity(1, ("token",))]
    assert await ledgers[0].identity("new") == await ledgers[1].identity("new") == Identity(9)
    for ledger in ledgers:
        await ledger.aclose()

"""`read_ledger` and `read_steps` of a database: same rows as from a file, bounded memory, no writes."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from kling_async import ConfigurationError, LedgerError
from kling_async.ledger import Content, Entry, Ledger, SQLiteLedger, State, read_ledger, read_order, read_steps
from kling_async.ledger._postgres import reader
from kling_async.ledger._postgres.connection import Address
from kling_async.ledger.postgres import PostgresLedger
from kling_async.results import Format, export
from support import postgres

pytestmark = pytest.mark.anyio


async def fill(ledger: Ledger) -> None:
    await ledger.open()
    for number, batch in enumerate(("b", "a", "b")):
        key, at = f"k{number}", 100.0 - number
        content = Content(f'{{"n": {number}}}', '{"image": "/p.png"}', labels=f'{{"sku": {number}}}')
        await ledger.claim(batch, key, content=content, model="m", at=at)
        for state in (State.INTENT, State.SUBMITTED, State.COMPLETED)[: number + 1]:
            await ledger.record(
                Entry(
                    batch=batch,
                    key=key,
                    state=state,
                    at=at,
                    attempt=1,
                    cost=Decimal("0.28") if state is State.INTENT else None,
                    prediction_id=f"id{number}" if state is State.SUBMITTED else None,
                )
            )
    await ledger.claim("b", "new", content=Content("{}"), model="m", at=1000.0)


async def test_database_reads_like_file(database: str, tmp_path: Path) -> None:
    file, shared = SQLiteLedger(tmp_path / "run.db"), PostgresLedger(database)
    await fill(file)
    await fill(shared)
    for batch in (None, "a", "b", ""):
        for states in (None, [State.COMPLETED, State.PENDING], []):
            wanted = list(read_ledger(tmp_path / "run.db", batch=batch, states=states))
            assert list(read_ledger(database, batch=batch, states=states)) == wanted
        for key in (None, "k0"):
            steps = list(read_steps(tmp_path / "run.db", batch=batch, key=key))
            found = list(read_steps(database, batch=batch, key=key))
            assert sorted(found, key=lambda step: (step.batch, step.key)) == steps
    for where in (tmp_path / "run.db", database):
        assert read_order(where, "b") == ["k0", "k2", "new"]
    assert read_order(database, "b", account="other") == []
    assert [row.key for row in read_ledger(database)] == ["k2", "k1", "k0", "new"]
    assert [row.labels for row in read_ledger(database)] == ['{"sku": 2}', '{"sku": 1}', '{"sku": 0}', None]
    found_again = await shared.find("b", "k2")
    assert found_again is not None
    assert found_again[1].labels == '{"sku": 2}'
    await shared.enqueue("b", [("k2", Content('{"n": 2}', labels='{"sku": 9}'), "m")], at=1.0)
    assert next(iter(read_ledger(database))).labels == '{"sku": 9}'
    assert list(read_ledger(database, account="other")) == []
    assert list(read_steps(database, account="other")) == []
    assert [worker.name for worker in reader.workers(Address(database), "default")] == [shared._lease.name]
    assert reader.workers(Address(database), "other") == []
    await file.aclose()
    await shared.aclose()
    assert reader.workers(Address(database), "default") == []


async def test_reader_holds_one_page_and_ends_its_transaction(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.enqueue("b", [(str(number), Content("{}"), "m") for number in range(50)], at=1.0)
    await ledger.aclose()
    fetched: list[int] = []
    fetch = psycopg.ServerCursor[tuple[object, ...]]._fetch_gen

    def counted(self: psycopg.ServerCursor[tuple[object, ...]], num: int | None) -> object:
        fetched.append(num or 0)
        return fetch(self, num)

    monkeypatch.setattr(psycopg.ServerCursor, "_fetch_gen", counted)
    monkeypatch.setattr(reader, "PAGE_SIZE", 20)
    rows = read_ledger(database)
    next(rows)
    assert fetched == [20]
    ((reading, transaction),) = postgres.rows(
        database,
        "SELECT count(*), min(state) FROM pg_stat_activity WHERE application_name = 'kling_async reader'",
    )
    assert (reading, transaction) == (1, "idle in transaction")
    assert len(list(rows)) == 49
    assert fetched == [20, 20, 20]
    left = read_steps(database)
    next(left)
    left.close()  # type: ignore[attr-defined]  # it is a generator
    query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'kling_async reader' AND state <> 'idle'"
    assert postgres.rows(database, query) == []


async def test_queued_rows_are_not_exported_as_errors(database: str, tmp_path: Path) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    text = '{"model": "kling-v2.1-pro", "prompt": "x", "image": "https://p.example/a.png", "duration": 5}'
    for key in ("waits", "refused"):
        await ledger.claim("b", key, content=Content(text), model="kling-v2.1-pro", at=1.0)
    for state in (State.INTENT, State.REJECTED):
        await ledger.record(Entry(batch="b", key="refused", state=state, at=1.0, error="no"))
    await ledger.aclose()
    (errors,) = export(database, tmp_path, [Format.ERRORS])
    assert [json.loads(line)["key"] for line in errors.path.read_text().splitlines()] == ["refused"]
    assert errors.left_out == {"a worker may still take it": 1}


async def test_reader_creates_no_tables_and_refuses_later_ones(database: str) -> None:
    for read in (read_ledger, read_steps):
        with pytest.raises(LedgerError, match="there is no ledger in postgresql://"):
            list(read(database))
    assert not reader.exists(Address(database))
    assert postgres.rows(database, "SELECT 1 FROM pg_tables WHERE tablename LIKE 'kling%%'") == []
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.aclose()
    assert reader.exists(Address(database))
    postgres.rows(database, "UPDATE kling_version SET version = 99")
    with pytest.raises(LedgerError, match="later version"):
        list(read_ledger(database))


def test_read_error_hides_password() -> None:
    with pytest.raises(LedgerError, match=r"me@127\.0\.0\.1:1/db cannot be reached") as refused:
        list(read_ledger("postgresql://me:geheim@127.0.0.1:1/db?connect_timeout=2"))
    assert "geheim" not in repr(refused.value)
    with pytest.raises(ConfigurationError, match="no database that is known") as unknown:
        read_steps("mysql://me:geheim@h/db")
    assert "geheim" not in repr(unknown.value)


def test_missing_driver_names_package_to_install() -> None:
    script = """
import sys
sys.modules["psycopg"] = None
from kling_async import ConfigurationError, read_ledger
try:
    read_ledger("postgresql://me:geheim@h/db")
except ConfigurationError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "kling-async[postgres]" in said
    assert "geheim" not in said

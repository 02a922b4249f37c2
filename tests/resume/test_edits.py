"""Other content for the key of a job, and marks of videos, in a ledger file."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from kling_async.ledger import SQLiteLedger, read_marks
from kling_async.ledger._sqlite import tables
from support.edits import check_edits

pytestmark = pytest.mark.anyio


async def test_ledger_file_can_be_edited(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await check_edits(lambda: SQLiteLedger(path), path)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
async def test_older_file_has_no_marks_and_is_read_as_it_is(tmp_path: Path, version: int) -> None:
    path = tmp_path / "run.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for step in tables.MIGRATIONS[:version]:
            step(connection)
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    assert read_marks(path) == {}
    assert path.read_bytes() == before
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.aclose()
    assert read_marks(path) == {}

"""Ledger files of the first release: readable unmigrated, migrated atomically, with the same decisions."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

from kling_async import KlingSession, LedgerError, State, read_ledger
from kling_async.emulator import Emulator
from kling_async.ledger import Doubt, Row, SQLiteLedger, read_steps
from kling_async.ledger._sqlite import tables
from support import first_release
from support.first_release import BATCH, GATE, STATES

pytestmark = pytest.mark.anyio

EXPECTED = {
    "pending": State.PENDING,
    "claimed": State.CLAIMED,
    "intent": State.INTENT,
    "submitted": State.SUBMITTED,
    "completed": State.COMPLETED,
    "downloaded": State.DOWNLOADED,
    "failed": State.FAILED,
    "moderated": State.FAILED,
    "expired": State.EXPIRED,
    "rejected": State.REJECTED,
    "skipped": State.SKIPPED,
    "uncertain": State.UNCERTAIN,
    "whose": State.UNCERTAIN,
    "whether": State.UNCERTAIN,
    "whether-none": State.UNCERTAIN,
    "given-up": State.ABANDONED,
    "given-up-intent": State.ABANDONED,
    "resent": State.COMPLETED,
}
DOUBTS: dict[str, tuple[Doubt | None, tuple[str, ...]]] = {
    "uncertain": (None, ()),
    "whose": (Doubt.WHOSE, ("id-1", "id-2")),
    "whether": (Doubt.WHETHER, ("id-3",)),
    "whether-none": (Doubt.WHETHER, ()),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a copy of the ledger with a row in every state."""
    return Path(shutil.copy(STATES, tmp_path / "run.db"))


async def migrate(path: Path) -> None:
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.aclose()


def version_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(version)


def rows_of(path: Path) -> dict[str, Row]:
    return {row.key: row for row in read_ledger(path, batch=BATCH)}


def test_old_file_is_read_unmigrated(path: Path) -> None:
    before = path.read_bytes()
    rows = rows_of(path)
    assert {key: row.state for key, row in rows.items()} == EXPECTED
    assert {key: (rows[key].doubt, rows[key].candidates) for key in DOUBTS} == DOUBTS
    assert [row.key for row in read_ledger(path, states=[State.ABANDONED], batch=BATCH)] == [
        "given-up-intent",
        "given-up",
    ]
    assert [row.key for row in read_ledger(path, states=[State.REJECTED])] == ["rejected"]
    assert (rows["resent"].spent, rows["resent"].attempt) == (Decimal("0.90"), 2)
    steps = [step.state for step in read_steps(path, batch=BATCH, key="given-up")]
    assert steps == [State.PENDING, State.INTENT, State.UNCERTAIN, State.ABANDONED]
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["run.db"]


@pytest.mark.parametrize("version", range(2, len(tables.MIGRATIONS) + 1))
async def test_file_of_any_version_is_read_unmigrated(path: Path, version: int) -> None:
    rows, steps = list(read_ledger(path)), list(read_steps(path))
    connection = sqlite3.connect(path, isolation_level=None)
    for migration in tables.MIGRATIONS[1:version]:
        migration(connection)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    assert (list(read_ledger(path)), list(read_steps(path))) == (rows, steps)
    assert version_of(path) == version


async def test_migration_keeps_every_row_and_step(path: Path) -> None:
    rows, steps = list(read_ledger(path)), list(read_steps(path))
    await migrate(path)
    assert version_of(path) == len(tables.MIGRATIONS) == 8
    assert list(read_ledger(path)) == rows
    assert list(read_steps(path)) == steps
    with sqlite3.connect(path) as connection:
        batches = dict(connection.execute("SELECT name, identity FROM batch"))
    connection.close()
    assert batches == {"": 1, BATCH: 1}
    # A second migration changes nothing.
    await migrate(path)
    assert list(read_ledger(path)) == rows


async def test_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(read_ledger(path))

    def fail(connection: sqlite3.Connection) -> None:
        del connection
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, fail))
    with pytest.raises(LedgerError, match="disk is full"):
        await SQLiteLedger(path).open()
    monkeypatch.undo()
    assert version_of(path) == 1
    assert list(read_ledger(path)) == before
    await migrate(path)
    assert list(read_ledger(path)) == before


KILLED = """
import asyncio, os, signal, sys
from kling_async.ledger import SQLiteLedger
from kling_async.ledger._sqlite import tables

def kill(connection):
    os.kill(os.getpid(), signal.SIGKILL)

tables.MIGRATIONS = (*tables.MIGRATIONS, kill)
asyncio.run(SQLiteLedger(sys.argv[1]).open())
"""


async def test_migration_that_is_killed_changes_nothing(path: Path) -> None:
    before = list(read_ledger(path))
    killed = await anyio.run_process([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert version_of(path) == 1
    assert list(read_ledger(path)) == before
    await migrate(path)
    assert list(read_ledger(path)) == before


async def test_decisions_ignore_error_texts(tmp_path: Path, path: Path) -> None:
    await migrate(path)
    silenced = Path(shutil.copy(path, tmp_path / "silenced.db"))
    with sqlite3.connect(silenced) as connection:
        changed = [connection.execute(f"UPDATE {table} SET error = 'x'").rowcount for table in ("job", "step")]
    connection.close()
    assert min(changed) > len(EXPECTED)
    assert {row.error for row in read_ledger(silenced)} == {"x"}
    said = await first_release.decisions(first_release.copies(path, tmp_path / "said"), tmp_path)
    unsaid = await first_release.decisions(first_release.copies(silenced, tmp_path / "unsaid"), tmp_path)
    for name, decided in said.items():
        assert unsaid[name] == decided, name
    _check(said)


def _check(decided: dict[str, Any]) -> None:
    """Check the decisions about a ledger of the first release against those of that release."""
    again = {"pending", "claimed", "rejected", "skipped"}
    assert set(decided["hold, run"]["paid"]) == again
    assert set(decided["hold, resume"]["paid"]) == again
    assert set(decided["retry, run"]["paid"]) == again | {"failed"}
    # Submissions missing from the history were not accepted, and are sent.
    unaccepted = {"intent", "uncertain", "whose", "whether", "whether-none"}
    assert set(decided["reconcile own, run"]["paid"]) == again | unaccepted
    # Unless they may be another account's: who sent them was not recorded.
    assert set(decided["reconcile, run"]["paid"]) == again
    assert {decided["reconcile, run"]["outcomes"][key][0] for key in unaccepted} == {"SubmissionUncertainError"}
    for run in decided.values():
        if isinstance(run, dict) and "paid" in run:
            assert max(run["paid"].values()) == 1
            assert run["states"]["given-up"] is State.ABANDONED
            assert run["outcomes"]["given-up"][0] == "SubmissionUncertainError"
            assert run["outcomes"]["submitted"] == (None, True, None)


async def test_rerun_of_gate_ledger_costs_nothing(tmp_path: Path) -> None:
    """Run the same call over a ledger of the first release with PIL images, signed URLs and no keys."""
    assert first_release.pillow_encodes_as_then(), "a PIL image is identified by the bytes that Pillow encodes"
    path = Path(shutil.copy(GATE, tmp_path / "run.db"))
    known = {row.key: row for row in read_ledger(path)}
    async with Emulator(
        clock=first_release.clock(3600.0), profile="tiny", timing=1.0, downloads=False, level="gold"
    ) as emulator:
        jobs = first_release.gate_jobs(tmp_path / "pictures")
        async with (
            KlingSession(
                emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, ledger=path, level="gold"
            ) as kling,
            kling.batch(jobs, name=BATCH) as batch,
        ):
            outcomes = [outcome async for outcome in batch]
        assert emulator.charges() == ()
    assert {outcome.key for outcome in outcomes} == set(known)
    for outcome in outcomes:
        assert outcome.ok
        assert outcome.prediction is not None
        assert outcome.prediction.id == known[outcome.key].prediction_id
        assert outcome.prediction.output == known[outcome.key].output

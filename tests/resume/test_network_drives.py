"""A ledger on a drive without shared memory maps, as network drives are, mounted for the test."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from kling_async import Job, LedgerError, read_ledger
from kling_async.ledger import SQLiteLedger
from support import drives
from support.cli import Cli
from support.pictures import png
from support.service import IMAGE, Service, open_session

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(drives.missing()), reason=f"needs {drives.missing()}")]


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Path]:
    with drives.mounted(tmp_path) as path:
        yield path


def journal(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        found: str = connection.execute("PRAGMA journal_mode").fetchone()[0]
        return found
    finally:
        connection.close()


@pytest.mark.promise(2)
async def test_jobs_run_and_are_resumed_there(drive: Path) -> None:
    service = Service(seconds=0.0)
    for _ in range(3):
        async with open_session(service, ledger=drive / "run.db") as kling:
            jobs = [Job(prompt=f"{number}", image=IMAGE) for number in range(3)]
            async with kling.batch(jobs, name="b") as batch:
                assert all([outcome.ok async for outcome in batch])
            rows = await run_sync(lambda: list(read_ledger(drive / "run.db")))
            assert len(rows) == 3, "read while it is open"
            assert all(row.state.accepted for row in rows)
    assert len(service.paid) == 3
    assert journal(drive / "run.db") == "delete"
    assert sorted(path.name for path in drive.iterdir()) == ["run.db"], "nothing is left beside it"


async def test_commands_run_there(drive: Path) -> None:
    (drive / "jobs.jsonl").write_text('{"prompt": "x", "image": "a.png"}\n')
    (drive / "a.png").write_bytes(png())
    cli = Cli(drive)
    words = ("run", "jobs.jsonl", "--out", "videos", "--emulator", "--speed", "500", "--profile", "tiny")
    done = await run_sync(lambda: cli(*words))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 video" in done.stdout
    shown = await run_sync(lambda: cli("status", "videos/rehearsal/rehearsal.db"))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    (video,) = (drive / "videos").rglob("*.mp4")
    assert video.stat().st_size


async def test_ledger_of_another_drive_is_refused_with_the_reason(drive: Path, tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await ledger.aclose()
    (drive / "run.db").write_bytes((tmp_path / "run.db").read_bytes())
    with pytest.raises(LedgerError, match="no shared memory maps, as network drives: copy it") as caught:
        await SQLiteLedger(drive / "run.db").open()
    assert "see to the disk" not in str(caught.value)
    with pytest.raises(LedgerError, match="no shared memory maps"):
        await run_sync(lambda: list(read_ledger(drive / "run.db")))


async def test_ledger_made_there_goes_on_on_a_local_drive(drive: Path, tmp_path: Path) -> None:
    ledger = SQLiteLedger(drive / "run.db")
    await ledger.open()
    await ledger.aclose()
    (tmp_path / "run.db").write_bytes((drive / "run.db").read_bytes())
    moved = SQLiteLedger(tmp_path / "run.db")
    await moved.open()
    await moved.aclose()
    assert journal(tmp_path / "run.db") == "wal"

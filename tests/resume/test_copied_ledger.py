"""Copies of ledger files: one that lacks steps is refused before anything is sent, and a whole one is opened."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kling_async import Job, KlingSession, LedgerError, Outcome, Spent, State, WatchPolicy, read_ledger
from kling_async.ledger import Content, Entry, SQLiteLedger
from kling_async.ledger._sqlite import completeness, statements
from kling_async.ledger._sqlite.reader import writer_of
from kling_async.ledger._sqlite.registration import unregister
from support.first_release import GATE, STATES
from support.service import IMAGE, Service, open_session
from support.writers import start_writer

pytestmark = pytest.mark.anyio
MISSING = r"did not close the ledger .*run.db-wal beside it, which has the latest steps, is missing"
JOBS = 12


def session(service: Service, path: Path) -> KlingSession:
    return open_session(service, ledger=path, watch=WatchPolicy.fixed(0.02), grace=0.05)


async def run(service: Service, path: Path) -> list[Outcome]:
    jobs = {f"k{number}": Job(prompt=f"number {number}", image=IMAGE) for number in range(JOBS)}
    async with session(service, path) as kling, kling.batch(jobs, name="b", window=3) as batch:
        return [outcome async for outcome in batch]


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def copy(path: Path, folder: str, *, log: bool = False) -> Path:
    """Copy a ledger file, with its log or alone, into a new folder beside it."""
    target = path.parent / folder / path.name
    target.parent.mkdir()
    shutil.copy(path, target)
    if log:
        shutil.copy(log_of(path), log_of(target))
    return target


def states_of(path: Path) -> dict[str, State]:
    return {row.key: row.state for row in read_ledger(path)}


async def add(ledger: SQLiteLedger, key: str, *states: State) -> None:
    await ledger.claim("b", key, content=Content("d" * 100), model="m", at=0.0)
    for state in states:
        id_ = f"id-{key}" if state is State.SUBMITTED else None
        attempt = 1 if state is State.INTENT else None
        await ledger.record(Entry(batch="b", key=key, state=state, at=1.0, attempt=attempt, prediction_id=id_))


async def refused(path: Path, match: str = MISSING) -> LedgerError:
    with pytest.raises(LedgerError, match=match) as error:
        await SQLiteLedger(path, lock_timeout=0.05).open()
    return error.value


async def reopen(path: Path) -> None:
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.aclose()


# ---- the file alone ----


@pytest.mark.promise(1)
async def test_copy_without_log_is_refused_before_sending(tmp_path: Path) -> None:
    """Regression: it opened as an empty ledger, and all 12 jobs were paid for again."""
    service, path = Service(seconds=0.05, latency=0.001), tmp_path / "run.db"
    async with session(service, path) as kling:
        for number in range(JOBS):
            await kling.generate(Job(prompt=f"number {number}", image=IMAGE), key=f"k{number}")
        copied = copy(path, "copied")
        before = copied.read_bytes()
        with pytest.raises(LedgerError, match=MISSING) as error:
            await run(service, copied)
    assert len(service.paid) == JOBS
    assert error.value.spent is Spent.NO
    assert "go on with the original" in str(error.value)
    assert copied.read_bytes() == before
    assert [entry.name for entry in copied.parent.iterdir()] == ["run.db"]


async def test_copy_made_before_first_step_is_refused(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    copied = copy(ledger.path, "copied")
    await ledger.aclose()
    await refused(copied)


@pytest.mark.parametrize("log", [True, False])
async def test_copy_after_kill_needs_its_log(tmp_path: Path, *, log: bool) -> None:
    path = tmp_path / "run.db"
    process = start_writer(path)
    assert process.stdout is not None
    recorded = [process.stdout.readline().strip() for _ in range(20)]
    process.kill()
    process.communicate()
    copied = copy(path, "copied", log=log)
    if log:
        await reopen(copied)
        assert states_of(copied).keys() >= set(recorded)
    else:
        await refused(copied)
    await reopen(path)


async def test_hard_link_of_open_ledger_is_refused(tmp_path: Path) -> None:
    """Regression: SQLite has a log for each name, so that neither process saw the steps of the other."""
    path, link = tmp_path / "run.db", tmp_path / "link" / "run.db"
    process = start_writer(path)
    link.parent.mkdir()
    link.hardlink_to(path)
    try:
        await refused(link)
    finally:
        process.kill()
        process.communicate()


async def test_copy_is_known_once_a_reader_lets_the_checkpoint_through(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await reopen(path)
    ledger = SQLiteLedger(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM job").fetchall()
        await ledger.open()
        await add(ledger, "k")
    await add(ledger, "l")
    copied = copy(path, "copied")
    await ledger.aclose()
    await refused(copied)


async def test_readers_read_incomplete_copy_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await add(ledger, "k")
    copied = copy(ledger.path, "copied")
    assert [row.key for row in read_ledger(ledger.path)] == ["k"]
    assert not caplog.records
    # Said once.
    assert list(read_ledger(copied)) == list(read_ledger(copied)) == []
    (record,) = caplog.records
    assert "which has the latest steps, is missing" in record.getMessage()
    assert writer_of(ledger.path) is not None
    assert writer_of(copied) is None
    await ledger.aclose()


# ---- after a clean end ----


async def test_ledger_moves_after_clean_end(tmp_path: Path) -> None:
    service, path = Service(seconds=0.05, latency=0.001), tmp_path / "run.db"
    await run(service, path)
    copied = copy(path, "copied")
    path.unlink()
    assert all(outcome.ok for outcome in await run(service, copied))
    assert len(service.paid) == JOBS


async def test_copy_made_while_ledger_is_closed_lacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registration is removed after the last step is in the file."""
    path, copies = tmp_path / "run.db", []

    def copied_first(connection: sqlite3.Connection, token: str) -> None:
        copies.append(copy(path, "copied"))
        unregister(connection, token)

    monkeypatch.setattr("kling_async.ledger._sqlite.writer.unregister", copied_first)
    ledger = SQLiteLedger(path)
    await ledger.open()
    await add(ledger, "k", State.INTENT)
    await ledger.aclose()
    assert states_of(copies[0]) == {"k": State.INTENT}


async def test_ledger_closed_while_it_is_read_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    await add(ledger, "k")
    rows = read_ledger(path)
    next(rows)
    await add(ledger, "l")
    await ledger.aclose()
    list(rows)
    await reopen(path)
    assert states_of(path).keys() == {"k", "l"}


# ---- files and logs of different moments ----


@pytest.mark.promise(1)
async def test_torn_copies_are_refused(tmp_path: Path) -> None:
    """A copy of the file with a later log lacks steps in between."""
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    keys = [f"{number:04d}" for number in range(700)]
    await asyncio.gather(*(add(ledger, key) for key in keys))
    # A checkpoint after each 50 pages instead of 1000: more generations of the log in fewer steps.
    await ledger._ask(lambda connection: connection.execute("PRAGMA wal_autocheckpoint = 50").fetchone())
    moments: list[tuple[Path, dict[str, State]]] = []
    for number, key in enumerate(keys[:360]):
        await add(ledger, key, State.INTENT, State.SUBMITTED)
        if number % 20 == 0:
            moments.append((copy(ledger.path, f"moment-{number}", log=True), states_of(ledger.path)))
    await ledger.aclose()
    lacking = 0
    torn = tmp_path / "torn" / "run.db"
    for number, (early, known) in enumerate(moments):
        for late, _ in moments[number:]:
            shutil.rmtree(torn.parent, ignore_errors=True)
            torn.parent.mkdir()
            shutil.copy(early, torn)
            shutil.copy(log_of(late), log_of(torn))
            try:
                await reopen(torn)
            except LedgerError:
                lacking += 1
                continue
            found = states_of(torn)
            assert [key for key, state in known.items() if state is not State.PENDING and found[key] is not state] == []
    assert lacking > len(moments)


@pytest.mark.parametrize(
    "change",
    ["state = 'pending'", "prediction_id = NULL", "attempt = 0", "updated_at = 0.5"],
    ids=lambda text: text[:5],
)
async def test_row_that_differs_from_its_last_step_is_found_after_crash(tmp_path: Path, change: str) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await add(ledger, "k", State.INTENT, State.SUBMITTED)
    await ledger._ask(lambda connection: connection.execute(f"UPDATE job SET {change}"))
    copied = copy(ledger.path, "copied", log=True)
    await ledger.aclose()
    error = await refused(copied, "do not belong together: job k differs from its last step")
    assert "make it again, with the -wal file" in str(error)
    assert log_of(copied).exists(), "it was folded into the file"


async def test_index_that_differs_from_its_table_is_found_after_crash(tmp_path: Path) -> None:
    """SQLite's quick check does not compare them."""
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await add(ledger, "k", State.INTENT)
    copied = copy(ledger.path, "copied", log=True)
    await ledger.aclose()
    with contextlib.closing(sqlite3.connect(copied, isolation_level=None)) as connection:
        # An index of which SQLite does not know what belongs into it.
        connection.execute("PRAGMA writable_schema = ON")
        change = "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = 'job_open'"
        connection.execute(change, ("'intent'", "'none'"))
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("REINDEX job_open")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(change, ("'none'", "'intent'"))
        connection.execute("PRAGMA writable_schema = RESET")
        again = copy(copied, "again", log=True)
    await refused(again, "damaged: row 1 missing from index job_open")


@pytest.mark.parametrize("file", [STATES, GATE], ids=lambda path: path.name)
async def test_rows_of_first_release_agree_with_their_last_steps(tmp_path: Path, file: Path) -> None:
    path = Path(shutil.copy(file, tmp_path / "run.db"))
    for _ in ("as it was", "migrated"):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute(statements.MISMATCHED).fetchone() is None
        await reopen(path)


# ---- declared complete ----


def folded(path: Path) -> None:
    """Open a ledger with another program, which copies the log into the file when it closes it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT count(*) FROM job").fetchone()
    assert not log_of(path).exists()


def backed_up(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(f"{path}.new")) as to:
        source.backup(to)
    Path(f"{path}.new").replace(path)


def vacuumed(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"VACUUM INTO '{path}.new'")
    Path(f"{path}.new").replace(path)


@pytest.mark.parametrize("write", [folded, backed_up, vacuumed])
async def test_file_of_database_tool_is_opened_once_declared_complete(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await add(ledger, "k", State.INTENT)
    copied = copy(ledger.path, "copied", log=True)
    await ledger.aclose()
    write(copied)
    error = await refused(copied)
    assert f"kling-async ledger {copied} declare-complete" in str(error)
    completeness.declare_complete(copied, 1.0)
    await reopen(copied)
    assert states_of(copied) == {"k": State.INTENT}
    with pytest.raises(LedgerError, match="lacks no file, so nothing was changed"):
        completeness.declare_complete(copied, 1.0)


async def test_torn_file_is_not_declared_complete(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await add(ledger, "k", State.INTENT)
    await ledger._ask(lambda connection: connection.execute("UPDATE job SET state = 'pending'"))
    copied = copy(ledger.path, "copied", log=True)
    with pytest.raises(LedgerError, match="being written by process"):
        completeness.declare_complete(ledger.path, 1.0)
    await ledger.aclose()
    folded(copied)
    with pytest.raises(LedgerError, match="do not belong together"):
        completeness.declare_complete(copied, 1.0)
    await refused(copied)


# ---- other journals ----


async def test_ledger_without_write_ahead_log_is_opened_after_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite keeps another journal on file systems without shared memory; the file lacks nothing without it."""
    connect = sqlite3.connect

    def without_shared_memory(path: Path | str, **options: Any) -> sqlite3.Connection:
        uri = str(path) if options.pop("uri", False) else f"{Path(path).absolute().as_uri()}?mode=rwc"
        made: sqlite3.Connection = connect(f"{uri}&vfs=unix-none", uri=True, **options)
        return made

    monkeypatch.setattr(sqlite3, "connect", without_shared_memory)
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await add(ledger, "k", State.INTENT)
    assert not log_of(ledger.path).exists()
    copied = copy(ledger.path, "copied")
    await ledger.aclose()
    await reopen(copied)
    assert states_of(copied) == {"k": State.INTENT}


async def test_ledger_that_a_reader_kept_from_unregistering_is_opened_again(tmp_path: Path) -> None:
    """Also when the lock file is emptied by whoever locks it next, as some versions of filelock do."""
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path, lock_timeout=0.1)
    await ledger.open()
    await add(ledger, "a", State.INTENT, State.SUBMITTED)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    await ledger.aclose()
    blocker.execute("ROLLBACK")
    blocker.close()
    log_of(path).unlink(missing_ok=True)
    lock = path.with_name("run.db.lock")
    if lock.exists():
        lock.write_bytes(b"")
    again = SQLiteLedger(path)
    await again.open()
    assert [row.key for row in await again.rows([State.SUBMITTED])] == ["a"]
    await again.aclose()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run.db"]

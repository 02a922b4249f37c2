"""The SQLite ledger, with real files, threads and processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from kling_async import KeyReusedError, LedgerError
from kling_async.ledger import (
    MOVES,
    Content,
    Entry,
    Known,
    Ledger,
    MemoryLedger,
    Row,
    SQLiteLedger,
    State,
    read_ledger,
    read_steps,
)
from kling_async.ledger._sqlite import connection as _connection
from support.writers import start_writer

pytestmark = pytest.mark.anyio


def step(key: str, state: State, at: float = 1.0, **fields: object) -> Entry:
    return Entry(batch="b", key=key, state=state, at=at, **fields)  # type: ignore[arg-type]  # each by its test


async def changed(path: Path, statement: str) -> Path:
    """Make a ledger with one job, and change the file by a statement of SQL."""
    ledger = SQLiteLedger(path)
    await ledger.open()
    await claim(ledger, "a")
    await ledger.aclose()
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    return path


async def claim(ledger: Ledger, key: str, text: str = "d") -> Row:
    return await ledger.claim("b", key, content=Content(text), model="m", at=0.0)


@pytest.fixture(params=["memory", "sqlite"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    made: Ledger = MemoryLedger() if request.param == "memory" else SQLiteLedger(tmp_path / "run.db")
    await made.open()
    yield made
    await made.aclose()


async def test_steps_update_row(ledger: Ledger) -> None:
    assert (await claim(ledger, "k")).state is State.PENDING
    row = await ledger.record(step("k", State.INTENT, 5.0, attempt=1, fingerprint="f"))
    assert (row.state, row.attempt, row.intent_at, row.fingerprint) == (State.INTENT, 1, 5.0, "f")
    row = await ledger.record(step("k", State.SUBMITTED, 6.0, prediction_id="p", cost=Decimal("0.45")))
    assert (row.prediction_id, row.submitted_at, row.cost) == ("p", 6.0, Decimal("0.45"))
    assert await claim(ledger, "k") == row
    assert await ledger.owner("p") == (row if ledger.durable else None)
    assert await ledger.known(["p", "q"]) == {"p": Known("f", "m", None)}
    assert [found.key for found in await ledger.rows([State.SUBMITTED])] == ["k"]
    assert await ledger.rows([State.INTENT]) == []


async def test_claim_refuses_key_with_other_content(ledger: Ledger) -> None:
    await claim(ledger, "k")
    with pytest.raises(KeyReusedError, match="other content"):
        await claim(ledger, "k", text="other")
    assert (await claim(ledger, "k")).digest == Content("d").digest


async def test_record_refuses_illegal_moves(ledger: Ledger) -> None:
    """The moves out of pending and intent; the table itself is enumerated below."""
    await claim(ledger, "k")
    for before in (State.PENDING, State.INTENT):
        for state in set(State) - MOVES[before] - {before}:
            with pytest.raises(LedgerError, match="cannot go from"):
                await ledger.record(step("k", state))
        if before is State.PENDING:
            await ledger.record(step("k", State.INTENT))
    with pytest.raises(LedgerError, match="cannot go from intent to intent"):
        await ledger.record(step("k", State.INTENT))


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_rows_obey_table_of_moves(before: State, after: State) -> None:
    row = Row(batch="b", key="k", digest="d", model="m", state=before, updated_at=0.0)
    # An intent is no place to stay: a second request would be a second payment.
    if (after is before is not State.INTENT) or after in MOVES[before]:
        assert row.after(step("k", after)).state is after
    else:
        with pytest.raises(ValueError, match="cannot go"):
            row.after(step("k", after))


def test_only_settled_states_return_to_pending() -> None:
    """Only an intent that was refused, and a doubt that was settled, may be sent again."""
    assert {state for state in State if State.PENDING in MOVES[state]} == {
        State.CLAIMED,
        State.INTENT,
        State.UNCERTAIN,
        State.SKIPPED,
        State.REJECTED,
        State.FAILED,
        # By hand alone.
        State.ABANDONED,
        # Never sent.
        State.REUSED,
    }
    assert State.INTENT not in MOVES[State.UNCERTAIN] | MOVES[State.SUBMITTED] | MOVES[State.COMPLETED]


async def test_record_refuses_unclaimed_job(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="never claimed"):
        await ledger.record(step("k", State.INTENT))


async def test_ledger_takes_concurrent_steps(ledger: Ledger) -> None:
    async def one(number: int) -> None:
        await claim(ledger, f"{number}")
        await ledger.record(step(f"{number}", State.INTENT))
        await ledger.record(step(f"{number}", State.SUBMITTED, prediction_id=f"p{number}"))

    await asyncio.gather(*(one(number) for number in range(500)))
    assert len(await ledger.rows([State.SUBMITTED])) == 500


async def test_refused_step_leaves_its_group_intact(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await asyncio.gather(*(claim(ledger, key) for key in "abc"))
    await asyncio.gather(*(ledger.record(step(key, State.INTENT)) for key in "abc"))
    ends = await asyncio.gather(
        ledger.record(step("a", State.SUBMITTED, prediction_id="p")),
        ledger.record(step("b", State.SUBMITTED, prediction_id="p")),
        ledger.record(step("c", State.SUBMITTED, prediction_id="q")),
        return_exceptions=True,
    )
    assert [isinstance(end, LedgerError) for end in ends] == [False, True, False]
    await ledger.aclose()
    assert {row.key: row.state for row in read_ledger(tmp_path / "run.db")} == {
        "a": State.SUBMITTED,
        "b": State.INTENT,
        "c": State.SUBMITTED,
    }


async def test_reader_leaves_no_files(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    for key in ("j", "k"):
        await claim(ledger, key)
    await ledger.aclose()
    assert [row.key for row in read_ledger(path)] == ["j", "k"]
    assert [each.name for each in tmp_path.iterdir()] == ["run.db"]
    # A writer that comes while one reads, and is there when that ends, keeps what it writes.
    rows = read_ledger(path)
    assert next(rows).key == "j"
    await ledger.open()
    await ledger.record(step("k", State.INTENT))
    assert next(rows).state is State.PENDING
    assert list(rows) == []
    await ledger.record(step("k", State.UNCERTAIN))
    assert [row.state for row in read_ledger(path)] == [State.PENDING, State.UNCERTAIN]
    await ledger.aclose()
    assert [each.state for each in read_steps(path, key="k")] == [State.PENDING, State.INTENT, State.UNCERTAIN]
    assert [each.name for each in tmp_path.iterdir()] == ["run.db"]


async def test_reader_leaves_log_of_killed_process_alone(tmp_path: Path) -> None:
    path, left = tmp_path / "run.db", tmp_path / "left"
    ledger = SQLiteLedger(path)
    await ledger.open()
    await claim(ledger, "k")
    await ledger.record(step("k", State.INTENT))
    left.mkdir()
    for name in ("run.db", "run.db-wal"):
        (left / name).write_bytes((tmp_path / name).read_bytes())
    await ledger.aclose()
    before = {name: (left / name).read_bytes() for name in ("run.db", "run.db-wal")}
    assert [row.state for row in read_ledger(left / "run.db")] == [State.INTENT]
    assert {name: (left / name).read_bytes() for name in before} == before


async def test_file_is_readable_while_written_and_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    await claim(ledger, "k")
    await ledger.record(step("k", State.INTENT))
    assert [row.state for row in read_ledger(path)] == [State.INTENT]
    ledger.note(step("k", State.UNCERTAIN, error="dropped"))
    await ledger.aclose()
    again = SQLiteLedger(path)
    await again.open()
    row = await claim(again, "k")
    assert (row.state, row.error) == (State.UNCERTAIN, "dropped")
    await again.aclose()
    assert [row.key for row in read_ledger(path, batch="b", states=[State.UNCERTAIN])] == ["k"]
    assert list(read_ledger(path, batch="other")) == []
    with sqlite3.connect(path) as connection:
        states = [state for (state,) in connection.execute("SELECT state FROM step")]
        assert states == ["pending", "intent", "uncertain"]
    connection.close()


async def test_read_steps_returns_steps_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    await claim(ledger, "k")
    await ledger.record(step("k", State.INTENT, 5.0, attempt=1))
    await ledger.record(step("k", State.SUBMITTED, 7.0, prediction_id="p"))
    await ledger.record(step("k", State.COMPLETED, 6.5))
    taken = [(found.batch, found.key, found.state, found.at, found.attempt) for found in read_steps(path, batch="b")]
    assert taken == [
        ("b", "k", State.PENDING, 0.0, 0),
        ("b", "k", State.INTENT, 5.0, 1),
        ("b", "k", State.SUBMITTED, 7.0, 1),
        ("b", "k", State.COMPLETED, 6.5, 1),
    ]
    assert list(read_steps(path, batch="")) == []
    assert len(list(read_steps(path))) == 4
    await ledger.aclose()
    with pytest.raises(LedgerError, match="there is no ledger"):
        list(read_steps(tmp_path / "missing.db"))


async def test_second_writer_is_refused_until_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    other = start_writer(path)
    try:
        with pytest.raises(LedgerError, match=f"being written by process {other.pid}"):
            await SQLiteLedger(path).open()
        list(read_ledger(path))
    finally:
        other.kill()
        other.communicate()
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.aclose()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.db"]


async def test_recorded_steps_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    other = start_writer(path)
    assert other.stdout is not None
    for _ in range(50):
        other.stdout.readline()
    os.kill(other.pid, signal.SIGKILL)
    said, _ = other.communicate()
    last = int(said.split()[-1]) if said.split() else 49
    states = {row.key: row.state for row in read_ledger(path)}
    assert all(states[str(number)] is State.INTENT for number in range(last + 1))


async def test_writer_is_refused_after_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(LedgerError, match="fork"):
        await claim(ledger, "k")
    monkeypatch.undo()
    await ledger.aclose()


async def test_open_refuses_other_files_with_advice(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, and not a database at all\n" * 100)
    with pytest.raises(LedgerError, match="is no ledger"):
        await SQLiteLedger(text).open()
    assert text.read_text().startswith("these are my notes")

    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE mine(x)")
    connection.close()
    with pytest.raises(LedgerError, match="another program's database"):
        await SQLiteLedger(foreign).open()

    newer = await changed(tmp_path / "newer.db", "PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match=r"later version.*upgrade"):
        await SQLiteLedger(newer).open()
    with pytest.raises(LedgerError, match="later version"):
        list(read_ledger(newer))
    with pytest.raises(LedgerError, match="there is no ledger"):
        list(read_ledger(tmp_path / "missing.db"))


async def test_open_refuses_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    await asyncio.gather(*(claim(ledger, f"{number}" * 50) for number in range(500)))
    await ledger.aclose()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LedgerError, match="damaged"):
        await SQLiteLedger(path).open()


async def test_open_refuses_unwritable_file() -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        await SQLiteLedger("/proc/self/run.db").open()


async def test_full_disk_fails_steps_and_keeps_rows(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    await claim(ledger, "before")
    # SQLite's own limit on the size of a file says the same as a full disk.
    await ledger._ask(lambda connection: connection.execute("PRAGMA max_page_count = 8").fetchone())
    with pytest.raises(LedgerError, match="full"):
        for number in range(10_000):
            await claim(ledger, f"{number}" * 100)
    await ledger.aclose()
    assert "before" in {row.key for row in read_ledger(path)}


async def test_locked_file_fails_steps_after_timeout(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path, lock_timeout=0.05)
    await ledger.open()
    meddler = sqlite3.connect(path, isolation_level=None)
    meddler.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(LedgerError, match=r"locked.*let it end"):
            await claim(ledger, "k")
        ends = await asyncio.gather(*(claim(ledger, key) for key in "abc"), return_exceptions=True)
        assert len({id(end) for end in ends}) == 3, "one for each, since it is going to say whose it is"
    finally:
        meddler.execute("ROLLBACK")
        meddler.close()
    assert (await claim(ledger, "k")).state is State.PENDING
    await ledger.aclose()


async def test_id_with_lone_surrogate_is_stored(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    try:
        await claim(ledger, "a")
        await ledger.record(step("a", State.INTENT))
        row, owner, known = await asyncio.gather(
            ledger.record(step("a", State.SUBMITTED, prediction_id="p\ud800")),
            ledger.owner("p\ud800"),
            ledger.known(["p\ud800", "\ud800"]),
        )
    finally:
        await ledger.aclose()
    assert row.state is State.SUBMITTED
    assert owner is not None
    assert known.keys() == {"p\ud800"}


async def test_values_that_no_column_holds_are_replaced(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await claim(ledger, "a")
    await ledger.record(step("a", State.INTENT))
    await ledger.record(step("a", State.SUBMITTED, prediction_id="p"))
    row = await ledger.record(step("a", State.FAILED, error="no\ud800", code=10**30))
    await ledger.aclose()
    assert (row.error, row.code) == ("no?", None)


def test_rows_and_entries_are_hashable() -> None:
    rows = [Row(batch="", key="one", digest="", model="", state=State.PENDING, updated_at=0.0) for _ in range(2)]
    entries = [step("one", State.INTENT) for _ in range(2)]
    assert len({*rows}) == len({*entries}) == 1


async def test_every_commit_is_to_outlast_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fullfsync` matters on macOS alone; without a write-ahead log only synchronous=EXTRA (3) syncs the folder."""
    for maps, journal, synchronous in ((True, "wal", 2), (False, "delete", 3)):
        monkeypatch.setattr(_connection, "_has_shared_maps", lambda _, maps=maps: maps)
        path = tmp_path / f"{journal}.db"
        with contextlib.closing(_connection.connect(path, 1.0, "token")) as made:

            def pragma(name: str, made: sqlite3.Connection = made) -> object:
                return made.execute(f"PRAGMA {name}").fetchone()[0]

            assert pragma("journal_mode") == journal
            assert pragma("synchronous") == synchronous
            assert pragma("fullfsync") == 1
            assert pragma("checkpoint_fullfsync") == 1
        assert [found.name for found in tmp_path.iterdir() if found.name.startswith(".")] == []


async def test_file_with_a_view_is_refused(tmp_path: Path) -> None:
    """It may have rows without end."""
    path = await changed(tmp_path / "run.db", "CREATE VIEW endless AS SELECT 1")
    with pytest.raises(LedgerError, match="has views or triggers"):
        list(read_ledger(path))


@pytest.mark.parametrize(
    "change",
    [
        "cost = 'abc'",
        "spent = 'sNaN'",
        "spent = 'NaN'",
        "spent = '1E+999990'",
        "refunded = x'00'",
        "state = 'bogus'",
        "doubt = 'bogus'",
        "candidates = '" + "[" * 100_000 + "'",
        "candidates = '5'",
    ],
    ids=lambda change: change[:24],
)
async def test_row_that_cannot_be_read_is_named(change: str, tmp_path: Path) -> None:
    path = await changed(tmp_path / "run.db", f"UPDATE job SET {change}")
    with pytest.raises(LedgerError, match="the row of job 'a' cannot be read"):
        list(read_ledger(path))

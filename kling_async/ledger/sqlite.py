"""The embedded ledger: one SQLite file, one writer, any number of readers.

Steps are committed with `synchronous=FULL` by one writer thread, as many together as have arrived meanwhile (group
commit): durable, and faster than one by one without durability.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import attrs

from kling_async._core.content import Content
from kling_async._core.errors import KeyReusedError, LedgerError
from kling_async._core.states import OPEN, Row, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kling_async._core.states import Entry

log = logging.getLogger("kling_async")

APPLICATION_ID = 0x4B4C4E47
"""`KLNG`, in the header of every ledger file."""
VERSION = 1
"""Of the tables; a file of a later one is refused."""
REMEMBERED = 20_000
"""Rows that the writer remembers, so as not to ask the file for them."""
GROUP = 512
"""Steps that are committed together at most."""

_SCHEMA = f"""
CREATE TABLE job(
  batch TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL,
  updated_at REAL NOT NULL, attempt INTEGER NOT NULL, fingerprint TEXT, token_hash TEXT, intent_at REAL,
  submitted_at REAL, prediction_id TEXT UNIQUE, cost TEXT, spent TEXT, refunded TEXT, failures INTEGER NOT NULL,
  output TEXT, code INTEGER, error TEXT, path TEXT, bytes INTEGER, sha256 TEXT,
  PRIMARY KEY(batch, key)) WITHOUT ROWID;
-- Apart, because it is long and never changes.
CREATE TABLE content(
  batch TEXT NOT NULL, key TEXT NOT NULL, job TEXT NOT NULL, files TEXT, PRIMARY KEY(batch, key)) WITHOUT ROWID;
CREATE TABLE upload(digest TEXT PRIMARY KEY, url TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX job_open ON job(state) WHERE state IN ('intent', 'submitted', 'uncertain');
CREATE TABLE step(
  batch TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL, at REAL NOT NULL, attempt INTEGER NOT NULL,
  prediction_id TEXT, error TEXT);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

_APART = ("job", "files")
_COLUMNS = tuple(name for name in attrs.fields_dict(Row) if name not in _APART)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM job "  # noqa: S608 -- the names of our own fields
_PUT = (
    f"INSERT INTO job({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608 -- the same
    f"ON CONFLICT(batch, key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[2:])}"
)
_WITH_CONTENT = (
    f"SELECT {', '.join(f'job.{name}' for name in _COLUMNS)}, content.job, content.files "  # noqa: S608 -- the same
    "FROM job LEFT JOIN content ON content.batch = job.batch AND content.key = job.key "
)
_STEP = "INSERT INTO step(batch, key, state, at, attempt, prediction_id, error) VALUES (?, ?, ?, ?, ?, ?, ?)"

_End: TypeAlias = "tuple[asyncio.Future[Any], Any, Exception | None]"
_Work: TypeAlias = "Callable[[sqlite3.Connection], Any]"


@attrs.frozen
class _Asked:
    """A piece of work for the writer, and who waits for it; nobody waits for a note."""

    work: _Work
    future: asyncio.Future[Any] | None
    loop: asyncio.AbstractEventLoop


class SQLiteLedger:
    """A ledger in a file.

    Args:
        path: The file; made when it is not there. Beside it lie SQLite's `-wal` and `-shm` while it is open, and a lock
            that keeps a second writer out.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._queue: SimpleQueue[_Asked | None] = SimpleQueue()
        self._lock: IO[str] | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._pid = os.getpid()
        # Rows of jobs under way, as they stand in the file: the writer is alone, and need not ask it again.
        self._under_way: dict[tuple[str, str], Row] = {}

    async def open(self) -> None:
        """Take the file for writing.

        Raises:
            LedgerError: It is written by another process, cannot be written, is no ledger, is damaged, or was made by
                a later version.
        """
        # What an earlier opening knew may be old.
        self._under_way.clear()
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._ended = loop.create_future()
        self._thread = threading.Thread(
            target=self._write, args=(loop, opened, self._ended), name="kling-ledger", daemon=True
        )
        self._thread.start()
        try:
            await opened
        except LedgerError:
            self._thread = None
            raise

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """The row of a job, made when it is new.

        Raises:
            LedgerError: It cannot be written.
            KeyReusedError: The key names a job with other content.
        """
        for text in (batch, key, model):
            if not _encodable(text):
                raise LedgerError(f"{text!r} is no text that a file can hold", key=ascii(key))
        digest = content.digest

        def work(connection: sqlite3.Connection) -> Row:
            row = self._row(connection, batch, key)
            if row is None:
                row = Row(batch=batch, key=key, digest=digest, model=model, state=State.PENDING, updated_at=at)
                connection.execute(_PUT, _values(row))
                connection.execute(
                    "INSERT INTO content(batch, key, job, files) VALUES (?, ?, ?, ?)",
                    (batch, key, content.text, content.files),
                )
                self._under_way[batch, key] = row
            elif row.digest != digest:
                raise KeyReusedError(key)
            return row

        claimed: Row = await self._ask(work)
        return claimed

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """The row of a job with its content, or None."""
        query = f"{_WITH_CONTENT} WHERE job.batch = ? AND job.key = ?"
        found = await self._ask(lambda connection: connection.execute(query, (batch, key)).fetchone())
        if found is None:
            return None
        row = _read(found)
        return row, Content(row.job or "", row.files)

    async def owner(self, prediction_id: str) -> Row | None:
        """The row of the job that the prediction is of, or None."""
        query = f"{_SELECT} WHERE prediction_id = ?"

        def work(connection: sqlite3.Connection) -> Row | None:
            found = connection.execute(query, (prediction_id,)).fetchone()
            return None if found is None else _read(found)

        row: Row | None = await self._ask(work)
        return row

    async def record(self, entry: Entry) -> Row:
        """Write one step down; return when it is on the disk, with the row that it left.

        Raises:
            LedgerError: It cannot be written, or the move is not legal.
        """
        row: Row = await self._ask(lambda connection: self._step(connection, entry))
        return row

    def note(self, entry: Entry) -> None:
        """Write one step down with the next group."""
        self._check()
        loop = asyncio.get_running_loop()
        self._queue.put(_Asked(lambda connection: self._step(connection, entry), None, loop))

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """All rows in these states, of every batch, by the time of their last step."""
        words = [state.value for state in states]
        query = f"{_SELECT} WHERE state IN ({', '.join('?' * len(words))}) ORDER BY updated_at"
        found: list[Row] = await self._ask(lambda connection: [_read(row) for row in connection.execute(query, words)])
        return found

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """The keys of a batch's jobs in these states, those submitted first before the others: they expire first."""
        words = [state.value for state in states]
        query = (
            f"SELECT key FROM job WHERE batch = ? AND state IN ({', '.join('?' * len(words))}) "  # noqa: S608 -- marks
            "ORDER BY submitted_at IS NULL, submitted_at, updated_at"
        )
        keys: list[str] = await self._ask(
            lambda connection: [key for (key,) in connection.execute(query, (batch, *words))]
        )
        return keys

    async def spent(self, batch: str | None) -> Decimal:
        """USD that a batch, or everything, has cost so far by the price list, less what was given back."""
        # Sums of decimals are not left to SQLite, which would make them floats; there are few different amounts.
        query = "SELECT spent, refunded, count(*) FROM job WHERE batch = coalesce(?, batch) GROUP BY spent, refunded"

        def work(connection: sqlite3.Connection) -> Decimal:
            amounts = connection.execute(query, (batch,)).fetchall()
            return sum(
                (count * (Decimal(spent or 0) - Decimal(refunded or 0)) for spent, refunded, count in amounts),
                Decimal(0),
            )

        spent: Decimal = await self._ask(work)
        return spent

    async def uploaded(self, digest: str, now: float) -> str | None:
        """The URL of an image that was uploaded and is still there at that time, or None."""
        query = "SELECT url FROM upload WHERE digest = ? AND expires_at > ?"
        found = await self._ask(lambda connection: connection.execute(query, (digest, now)).fetchone())
        return None if found is None else str(found[0])

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """An image was uploaded; it is there until that time. Written down with the next group."""
        self._check()
        put = "INSERT OR REPLACE INTO upload(digest, url, expires_at) VALUES (?, ?, ?)"
        values = (digest, url.encode("utf-8", "replace").decode(), expires_at)
        loop = asyncio.get_running_loop()
        self._queue.put(_Asked(lambda connection: connection.execute(put, values), None, loop))

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Those of the ids that a row has, each with the fingerprint of what was sent and the model's id."""
        ids = list(prediction_ids)

        def work(connection: sqlite3.Connection) -> dict[str, tuple[str | None, str]]:
            query = "SELECT fingerprint, model FROM job WHERE prediction_id = ?"
            found = ((id_, connection.execute(query, (id_,)).fetchone()) for id_ in ids)
            return {id_: row for id_, row in found if row is not None}

        known: dict[str, tuple[str | None, str]] = await self._ask(work)
        return known

    async def aclose(self) -> None:
        """Commit what is left, and let go of the file."""
        if self._thread is None or self._ended is None:
            return
        self._thread = None
        self._queue.put(None)
        await self._ended

    def _check(self) -> None:
        if self._thread is None:
            raise LedgerError(f"the ledger {self.path} is not open")
        if os.getpid() != self._pid:
            raise LedgerError(
                f"the ledger {self.path} was opened before a fork and has no writer in this process",
                advice="make the session in the process that uses it",
            )

    async def _ask(self, work: _Work) -> Any:
        self._check()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Asked(work, future, loop))
        return await future

    # In the writer's thread

    def _write(
        self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None], ended: asyncio.Future[None]
    ) -> None:
        try:
            self._lock = _locked(self.path)
            try:
                connection = _connect(self.path)
            except BaseException:
                self._unlock()
                raise
        except LedgerError as error:
            _tell(loop, [(opened, None, error)])
            return
        except BaseException as error:  # noqa: BLE001 -- a path that is none, for one: somebody waits for this
            _tell(loop, [(opened, None, LedgerError(f"the ledger {self.path} cannot be opened: {error}"))])
            return
        _tell(loop, [(opened, None, None)])
        try:
            more = True
            while more:
                group, more = self._group()
                self._commit(connection, group)
        finally:
            connection.close()
            self._unlock()
            _tell(loop, [(ended, None, None)])

    def _group(self) -> tuple[list[_Asked], bool]:
        """What has arrived, at least one thing; and whether the ledger stays open."""
        group: list[_Asked] = []
        with contextlib.suppress(Empty):
            while len(group) < GROUP:
                asked = self._queue.get(block=not group)
                if asked is None:
                    return group, False
                group.append(asked)
        return group, True

    def _commit(self, connection: sqlite3.Connection, group: list[_Asked]) -> None:
        ends: list[tuple[_Asked, Any, Exception | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for asked in group:
                try:
                    ends.append((asked, asked.work(connection), None))
                except LedgerError as error:
                    # The work looks before it writes: what it refuses has changed nothing.
                    ends.append((asked, None, error))
                except sqlite3.IntegrityError as error:
                    # An id that another job has already: SQLite has undone this statement alone.
                    ends.append((asked, None, LedgerError(f"the ledger {self.path} refused a step: {error}")))
            connection.execute("COMMIT")
        except Exception as trouble:  # noqa: BLE001 -- whatever it is, nobody may wait for ever
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            self._under_way.clear()
            failed = LedgerError(f"the ledger {self.path} cannot be written: {trouble}")
            ends = [(asked, None, failed) for asked in group]
        by_loop: dict[asyncio.AbstractEventLoop, list[_End]] = defaultdict(list)
        for asked, result, failure in ends:
            if asked.future is not None:
                by_loop[asked.loop].append((asked.future, result, failure))
            elif failure is not None:
                log.error("a step could not be noted in the ledger: %s", failure)
        for loop, told in by_loop.items():
            _tell(loop, told)

    def _row(self, connection: sqlite3.Connection, batch: str, key: str) -> Row | None:
        row = self._under_way.get((batch, key))
        if row is None:
            found = connection.execute(f"{_SELECT} WHERE batch = ? AND key = ?", (batch, key)).fetchone()
            row = None if found is None else _read(found)
        return row

    def _step(self, connection: sqlite3.Connection, entry: Entry) -> Row:
        name = (entry.batch, entry.key)
        row = self._row(connection, *name)
        if row is None:
            raise LedgerError(f"job {entry.key} was never claimed", key=entry.key)
        try:
            row = row.after(_storable(entry))
        except ValueError as error:
            raise LedgerError(str(error), key=entry.key, prediction_id=entry.prediction_id) from None
        connection.execute(_PUT, _values(row))
        step = (entry.batch, entry.key, entry.state.value, entry.at, row.attempt, row.prediction_id, row.error)
        connection.execute(_STEP, step)
        if row.state in _UNDER_WAY:
            if len(self._under_way) >= REMEMBERED:
                # It is a cache: the file knows.
                self._under_way.clear()
            self._under_way[name] = row
        else:
            self._under_way.pop(name, None)
        return row

    def unclaim(self, batch: str, key: str) -> None:
        """Nothing: a pending row stays in the file, for the next time."""

    def _unlock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                Path(self._lock.name).unlink()
            self._lock.close()
            self._lock = None


def is_url(ledger: object) -> bool:
    """Whether it is a URL, which may hold a password, and no path."""
    return isinstance(ledger, str) and "://" in ledger


def read_ledger(
    path: str | os.PathLike[str], *, batch: str | None = None, states: Iterable[State] | None = None
) -> Iterator[Row]:
    """The rows of a ledger file, also while another process writes it.

    Args:
        path: The file.
        batch: Only this batch's; "" is what was submitted outside of batches.
        states: Only rows in these states.

    Yields:
        The rows, each with its job's content.

    Raises:
        LedgerError: There is no such file, or it is no ledger.
    """
    if is_url(path):
        raise LedgerError(
            "read_ledger reads files",
            advice="open a PostgresLedger and ask it for its rows; kling-async status shows them",
        )
    path = Path(path)
    if not path.exists():
        raise LedgerError(f"there is no ledger {path}", advice="name the file that was given as ledger=")
    words = None if states is None else [state.value for state in states]
    conditions = ["1"]
    values: list[object] = []
    if batch is not None:
        conditions.append("job.batch = ?")
        values.append(batch)
    if words is not None:
        conditions.append(f"state IN ({', '.join('?' * len(words))})")
        values += words
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            _verify(connection, path)
            query = f"{_WITH_CONTENT} WHERE {' AND '.join(conditions)} ORDER BY updated_at"
            for row in connection.execute(query, values):
                yield _read(row)
    except sqlite3.DatabaseError as error:
        raise _unusable(path, error) from error


_UNDER_WAY = OPEN | {State.PENDING, State.CLAIMED}
_STATE = _COLUMNS.index("state")
_AMOUNTS = tuple(_COLUMNS.index(name) for name in ("cost", "spent", "refunded"))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _storable(entry: Entry) -> Entry:
    """The step without what a file cannot hold: lone surrogates and endless numbers in what the service said."""
    changed: dict[str, Any] = {
        name: value.encode("utf-8", "replace").decode()
        for name in ("prediction_id", "output", "error", "path")
        if (value := getattr(entry, name)) is not None and not _encodable(value)
    }
    if entry.code is not None and abs(entry.code) > _LARGEST:
        changed["code"] = None
    return attrs.evolve(entry, **changed) if changed else entry


_LARGEST = 2**62


def _values(row: Row) -> list[object]:
    values: list[object] = [getattr(row, name) for name in _COLUMNS]
    values[_STATE] = row.state.value
    for place in _AMOUNTS:
        if values[place] is not None:
            values[place] = str(values[place])
    return values


def _read(values: tuple[Any, ...]) -> Row:
    """A row, with its content when that was selected too."""
    fields = dict(zip((*_COLUMNS, *_APART), values, strict=False))
    fields["state"] = State(fields["state"])
    for place in _AMOUNTS:
        if values[place] is not None:
            fields[_COLUMNS[place]] = Decimal(values[place])
    return Row(**fields)


def _connect(path: Path) -> sqlite3.Connection:
    """The writer's connection, to a file that is shown to be a ledger of ours, whole and writable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    try:
        fresh = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        if not fresh:
            # Before anything is changed in a file that may not be ours.
            _verify(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if fresh:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        # A file that cannot be written is found out before money is spent.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        connection.close()
        raise _unusable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _verify(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise LedgerError(f"{path} is another program's database", advice="name another file as the ledger")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise LedgerError(
            f"the ledger {path} was made by a later version of kling_async",
            advice="upgrade kling_async, or name another file",
        )
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise LedgerError(f"the ledger {path} is damaged: {found}", advice=_DAMAGED)


_DAMAGED = (
    "restore it from a copy; `sqlite3 FILE .recover` reads what is left; do not submit its jobs again before that"
)


def _unusable(path: Path, error: Exception) -> LedgerError:
    text = str(error)
    if "not a database" in text:
        return LedgerError(f"{path} is no ledger: {text}", advice="name another file as the ledger")
    if "malformed" in text:
        return LedgerError(f"the ledger {path} is damaged: {text}", advice=_DAMAGED)
    return LedgerError(f"the ledger {path} cannot be opened for writing: {text}")


def _locked(path: Path) -> IO[str]:
    """A lock that ends with the process, however that ends."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = lock_path.open("a+", encoding="ascii")
            if not _try_lock(lock):
                lock.seek(0)
                owner = lock.read(20).strip() or "unknown"
                lock.close()
                raise LedgerError(
                    f"the ledger {path} is being written by process {owner}",
                    advice="end that process, or name another file; reading with read_ledger() is always possible",
                )
            # The owner before us may have removed the file between our opening and our locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), lock_path.stat()):
                    break
            lock.close()
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
    except OSError as error:
        raise LedgerError(f"the ledger {path} cannot be opened for writing: {error}") from error
    return lock


try:
    import fcntl
except ImportError:  # pragma: no cover -- Windows
    import msvcrt

    def _try_lock(lock: IO[str]) -> bool:
        try:
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # there only
        except OSError:
            return False
        return True

else:

    def _try_lock(lock: IO[str]) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _tell(loop: asyncio.AbstractEventLoop, ends: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    """Resolve futures of a loop, in its thread, at once."""

    def tell() -> None:
        for future, result, error in ends:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    # A loop that is closed has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(tell)

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
import time
from collections import defaultdict
from decimal import Decimal
from functools import cache
from itertools import chain, count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import anyio
import attrs

from kling_async._core import content as contents
from kling_async._core.content import Content, checked_identity
from kling_async._core.copies import changed
from kling_async._core.states import Row, State, Step
from kling_async.errors import KeyReusedError, LedgerError
from kling_async.ledger._sqlite.tables import APPLICATION_ID, MIGRATIONS, as_newest, migrate

from ._columns import restore, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kling_async._core.states import Entry

log = logging.getLogger("kling_async")

REMEMBERED = 20_000
"""Rows that the writer remembers, so as not to ask the file for them."""
GROUP = 512
"""Steps that are committed together at most."""
GATHERING = 0.004
"""Seconds that a step waits for others of its group, where there were others last time: fewer commits."""
LINES = 64
"""Lines that one statement inserts at most."""
LOCK_TIMEOUT = 10.0
"""Seconds that the writer waits for another program that holds the file."""

_BESIDE = ("-wal", "-shm")
_APART = ("job", "files")
_COLUMNS = tuple(name for name in attrs.fields_dict(Row) if name not in _APART)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM job "  # noqa: S608 -- the names of our own fields
_INSERT = (
    "INSERT INTO job(batch, key, digest, model, updated_at, state, attempt, failures) "
    "VALUES (?, ?, ?, ?, ?, 'pending', 0, 0) ON CONFLICT(batch, key) DO NOTHING"
)
_WITH_CONTENT = (
    f"SELECT {', '.join(f'job.{name}' for name in _COLUMNS)}, content.job, content.files "  # noqa: S608 -- the same
    "FROM job LEFT JOIN content ON content.batch = job.batch AND content.key = job.key "
)
_STEP = "INSERT INTO step(batch, key, state, at, attempt, prediction_id, error)"
# What lies there of a row that somebody has deleted must not undo the whole group.
_CONTENT = "INSERT OR REPLACE INTO content(batch, key, job, files)"

_End: TypeAlias = "tuple[asyncio.Future[Any], Any, Exception | None]"
_Work: TypeAlias = "Callable[[sqlite3.Connection], Any]"


@attrs.define
class _Asked:
    """A piece of work for the writer, and who waits for it; nobody waits for a note."""

    work: _Work
    future: asyncio.Future[Any] | None
    loop: asyncio.AbstractEventLoop


class SQLiteLedger:
    """A ledger in a file.

    Args:
        path: The file; made when it is not there. Beside it lie SQLite's `-wal` and `-shm` while it is open, and a lock
            that keeps a second writer out. Deleted while it is open, it is put back; when another file takes its place,
            nothing more is sent, and what it knew is beside it under a name that the errors say.
        lock_timeout: Seconds that a step waits for another program that has locked the file.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self.path = Path(path)
        self._lock_timeout = lock_timeout
        # Where the rows are: beside `path`, once another file has taken its place.
        self._place = self.path
        self._file: os.stat_result | None = None
        self._replaced = False
        self._queue: SimpleQueue[_Asked | None] = SimpleQueue()
        self._lock: IO[str] | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._pid = os.getpid()
        # Rows of jobs under way, as they stand in the file: the writer is alone, and need not ask it again.
        self._under_way: dict[tuple[str, str], Row] = {}
        # Lines that are inserted before the group is committed, by their statement.
        self._put_off: defaultdict[str, list[tuple[object, ...]]] = defaultdict(list)
        # Identity rules of batches, as the file has them. What is recorded never changes.
        self._identities: dict[str, int] = {}

    async def open(self) -> None:
        """Take the file for writing.

        Raises:
            LedgerError: It is written by another process, cannot be written, is no ledger, is damaged, or was made by
                a later version.
        """
        if self._thread is not None and os.getpid() == self._pid:
            raise LedgerError(
                f"the ledger {self.path} is open in another session",
                advice="end that one first, or give this one another file",
            )
        # What an earlier opening knew may be old.
        self._under_way.clear()
        self._identities.clear()
        self._queue = SimpleQueue()
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
        except asyncio.CancelledError:
            # Nobody else would let go of the file.
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """The row of a job, made when it is new.

        Raises:
            LedgerError: It cannot be written.
            KeyReusedError: The key names a job with other content.
        """
        _check_names(batch, key, model)
        digest = content.digest

        def work(connection: sqlite3.Connection) -> Row:
            if self._replaced:
                raise self._out_of_place()
            checked_identity(self._identity(connection, batch), batch)
            row = self._under_way.get((batch, key))
            if row is None and connection.execute(_INSERT, (batch, key, digest, model, at)).rowcount:
                row = Row(batch=batch, key=key, digest=digest, model=model, state=State.PENDING, updated_at=at)
                self._put_off[_CONTENT].append((batch, key, content.text, content.files))
                self._put_off[_STEP].append((batch, key, row.state.value, at, row.attempt, None, None))
                self._under_way[batch, key] = row
                return row
            row = row or self._row(connection, batch, key)
            if row is None or row.digest != digest:
                raise KeyReusedError(key)
            return row

        claimed: Row = await self._ask(work)
        return claimed

    async def identity(self, batch: str) -> int:
        """Return the version of the rule that a batch's digests and keys are made by; a new batch gets the newest.

        Raises:
            LedgerError: The file cannot be written, or a later version began the batch.
        """
        self._check()
        identity = self._identities.get(batch)
        if identity is None:
            _check_names(batch)
            identity = await self._ask(lambda connection: self._identity(connection, batch))
        return checked_identity(identity, batch)

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """The row of a job with its content, or None."""
        query = f"{_WITH_CONTENT} WHERE job.batch = ? AND job.key = ?"

        def work(connection: sqlite3.Connection) -> Any:
            self._catch_up(connection)
            return connection.execute(query, (batch, key)).fetchone()

        found = await self._ask(work)
        if found is None:
            return None
        row = _read(found)
        return row, Content(row.job or "", row.files)

    async def owner(self, prediction_id: str) -> Row | None:
        """The row of the job that the prediction is of, or None."""
        query = f"{_SELECT} WHERE prediction_id = ?"

        def work(connection: sqlite3.Connection) -> Row | None:
            found = connection.execute(query, (_encoded(prediction_id),)).fetchone()
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
        values = (digest, _encoded(url), expires_at)
        loop = asyncio.get_running_loop()
        self._queue.put(_Asked(lambda connection: connection.execute(put, values), None, loop))

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Those of the ids that a row has, each with the fingerprint of what was sent and the model's id."""
        ids = list(prediction_ids)

        def work(connection: sqlite3.Connection) -> dict[str, tuple[str | None, str]]:
            self._catch_up(connection)
            # What a job that was paid for again had before is still its own.
            query = (
                "SELECT fingerprint, model FROM job WHERE prediction_id = :id UNION ALL "
                "SELECT NULL, job.model FROM step JOIN job USING (batch, key) "
                "WHERE step.prediction_id = :id AND step.state = 'failed' LIMIT 1"
            )
            found = ((id_, connection.execute(query, {"id": _encoded(id_)}).fetchone()) for id_ in ids)
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

    def _ask(self, work: _Work) -> asyncio.Future[Any]:
        """What comes of a piece of work, when it is on the disk."""
        self._check()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Asked(work, future, loop))
        return future

    # In the writer's thread

    def _write(
        self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None], ended: asyncio.Future[None]
    ) -> None:
        try:
            self._lock = _locked(self.path)
            try:
                connection = _connect(self.path, self._lock_timeout)
                self._place, self._file, self._replaced = self.path, self.path.stat(), False
            except BaseException:
                self._unlock()
                raise
        except LedgerError as error:
            _tell(loop, [(opened, None, error), (ended, None, None)])
            return
        except BaseException as error:  # noqa: BLE001 -- a path that is none, for one: somebody waits for this
            unusable = LedgerError(f"the ledger {self.path} cannot be opened: {error}")
            _tell(loop, [(opened, None, unusable), (ended, None, None)])
            return
        _tell(loop, [(opened, None, None)])
        try:
            group: list[_Asked] = []
            more = True
            while more:
                group, more = self._group(wait=len(group) > 1)
                connection = self._commit(connection, group)
        finally:
            connection.close()
            self._unlock()
            _tell(loop, [(ended, None, None)])

    def _group(self, *, wait: bool) -> tuple[list[_Asked], bool]:
        """What has arrived, at least one thing; and whether the ledger stays open.

        Args:
            wait: Whether to wait a moment for more of it.
        """
        group: list[_Asked] = []
        with contextlib.suppress(Empty):
            while len(group) < GROUP:
                asked = self._queue.get(block=not group)
                if asked is None:
                    return group, False
                if wait and not group:
                    time.sleep(GATHERING)
                group.append(asked)
        return group, True

    def _commit(self, connection: sqlite3.Connection, group: list[_Asked]) -> sqlite3.Connection:
        """Do what was asked and say what came of it; the connection to be used from here on."""
        ends: list[tuple[_Asked, Any, Exception | None]] = []
        try:
            connection = self._in_place(connection)
            if not group:
                return connection
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
            self._catch_up(connection)
            connection.execute("COMMIT")
        except Exception as trouble:
            self._put_off.clear()
            # Whatever it is, nobody may wait for ever.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            self._under_way.clear()
            self._identities.clear()
            if not group:
                log.exception("the ledger %s cannot be closed as it should", self.path)
            ends = [(asked, None, self._unwritable(trouble)) for asked in group]
        by_loop: dict[asyncio.AbstractEventLoop, list[_End]] = defaultdict(list)
        for asked, result, failure in ends:
            if asked.future is not None:
                by_loop[asked.loop].append((asked.future, result, failure))
            elif failure is not None:
                log.error("a step could not be noted in the ledger: %s", failure)
        for loop, told in by_loop.items():
            _tell(loop, told)
        return connection

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        """Insert what was put off: between two statements the loop may have the interpreter, and one is as quick."""
        for insert, lines in self._put_off.items():
            start = 0
            while start < len(lines):
                # Powers of two, so that the statements are few, and remembered.
                many = min(LINES, 1 << (len(lines) - start).bit_length() - 1)
                some = lines[start : start + many]
                connection.execute(_of_lines(insert, many, len(some[0])), [*chain.from_iterable(some)])
                start += many
        self._put_off.clear()

    def _in_place(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """The connection, to a file that is found under its name.

        SQLite goes on writing a file that was deleted, and what it holds is gone with the process: what was paid for
        would be paid for again.
        """
        try:
            found: os.stat_result | None = self._place.stat()
        except FileNotFoundError:
            found = None
        if found is not None and self._file is not None and os.path.samestat(found, self._file):
            return connection
        place = self._place if found is None else _free(self.path)
        if found is None and self._lock is not None and not Path(self._lock.name).exists():
            deleted, self._lock = self._lock, _locked(self.path)
            deleted.close()
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = place.with_name(place.name + ".part")
        copy.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(copy)) as copied:
            connection.backup(copied)
        copy.replace(place)
        connection.close()
        for suffix in _BESIDE:
            # It is left there, and another file of this name would be repaired with it.
            self._place.with_name(self._place.name + suffix).unlink(missing_ok=True)
        connection = _connect(place, self._lock_timeout)
        self._place, self._file, self._replaced = place, place.stat(), place != self.path
        if self._replaced:
            log.error("%s", self._out_of_place())
        else:
            log.error("the ledger %s was deleted while it was open, and was put back", self.path)
        return connection

    def _unwritable(self, trouble: Exception) -> LedgerError:
        # One for each who asked: it is going to say whose it is.
        why, advice = (
            (trouble.message, trouble.advice) if isinstance(trouble, LedgerError) else (trouble, _advice(trouble))
        )
        return LedgerError(f"the ledger {self.path} cannot be written: {why}", advice=advice)

    def _out_of_place(self) -> LedgerError:
        return LedgerError(
            f"another file took the place of the ledger {self.path} while it was open; "
            f"what it knew is in {self._place}",
            advice="end this run, put that file back in its place, and run the same call again: "
            "what was accepted is not paid for again",
        )

    def _row(self, connection: sqlite3.Connection, batch: str, key: str) -> Row | None:
        row = self._under_way.get((batch, key))
        if row is None:
            found = connection.execute(f"{_SELECT} WHERE batch = ? AND key = ?", (batch, key)).fetchone()
            row = None if found is None else _read(found)
        return row

    def _identity(self, connection: sqlite3.Connection, batch: str) -> int:
        """Return the identity rule of a batch, recorded now if it is new."""
        identity = self._identities.get(batch)
        if identity is None:
            new = (batch, contents.IDENTITY_VERSION)
            connection.execute("INSERT INTO batch(name, identity) VALUES (?, ?) ON CONFLICT DO NOTHING", new)
            (identity,) = connection.execute("SELECT identity FROM batch WHERE name = ?", (batch,)).fetchone()
            self._identities[batch] = identity
        return identity

    def _step(self, connection: sqlite3.Connection, entry: Entry) -> Row:
        name = (entry.batch, entry.key)
        if self._replaced and entry.state is State.INTENT:
            raise self._out_of_place()
        row = self._row(connection, *name)
        if row is None:
            raise LedgerError(f"job {entry.key} was never claimed", key=entry.key)
        try:
            changes = row.changes(_storable(entry))
        except ValueError as error:
            raise LedgerError(str(error), key=entry.key, prediction_id=entry.prediction_id) from None
        connection.execute(_update(tuple(changes)), (*(_stored(*change) for change in changes.items()), *name))
        row = changed(row, **changes)
        step = (entry.batch, entry.key, entry.state.value, entry.at, row.attempt, row.prediction_id, row.error)
        self._put_off[_STEP].append(step)
        if not row.state.ended:
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
            path = Path(self._lock.name)
            with contextlib.suppress(OSError):
                # Where the lock was deleted, another writer's may have its name.
                if os.path.samestat(os.fstat(self._lock.fileno()), path.stat()):
                    path.unlink()
            self._lock.close()
            self._lock = None


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
    path = Path(path)
    words = None if states is None else [state.value for state in states]
    conditions = ["1"]
    values: list[object] = []
    if batch is not None:
        conditions.append("job.batch = ?")
        values.append(batch)
    if words is not None:
        conditions.append(f"state IN ({', '.join('?' * len(words))})")
        values += words
    query = f"{_WITH_CONTENT} WHERE {' AND '.join(conditions)} ORDER BY updated_at"
    for row in _found(path, query, values):
        yield _read(row)


def read_steps(path: str | os.PathLike[str], *, batch: str | None = None, key: str | None = None) -> Iterator[Step]:
    """The steps of a ledger file: all of a job one after another, in the order in which they were written.

    Args:
        path: The file.
        batch: Only this batch's; "" is what was submitted outside of batches.
        key: Only of jobs with this key.

    Raises:
        LedgerError: There is no such file, or it is no ledger.
    """
    query = """
        SELECT batch, key, state, at, attempt, prediction_id, error FROM step
        WHERE batch = coalesce(?, batch) AND key = coalesce(?, key) ORDER BY batch, key, rowid
    """
    for of, name, state, at, attempt, prediction_id, error in _found(Path(path), query, (batch, key)):
        yield Step(of, name, State(state), at, attempt, prediction_id, error)


def writer_of(path: str | os.PathLike[str]) -> int | None:
    """The process that has a ledger file open for writing, or None.

    It is looked up and not proved: a lock, even for a moment, could keep a writer out that comes just then.
    """
    try:
        owner = int(Path(f"{os.fspath(path)}.lock").read_text(encoding="ascii")[:20])
        if os.name == "posix":
            # Killed processes leave the file behind. (Elsewhere this call would be a signal.)
            with contextlib.suppress(PermissionError):
                os.kill(owner, 0)
    except (OSError, ValueError, OverflowError):
        return None
    return owner


def _found(path: Path, query: str, values: Iterable[object]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query for the newest tables, from a file of any version.

    Raises:
        LedgerError: There is no such file, or it is no ledger.
    """
    if not path.exists():
        raise LedgerError(f"there is no ledger {path}", advice="name the file that was given as ledger=")
    # Who may only read leaves behind what SQLite lays beside the file; who may write removes it with the last
    # connection. Where steps stand there, a writer's that lives or was killed, reading leaves them alone.
    mode = "ro" if _steps_beside(path) else "rw"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)) as connection:
            connection.execute("PRAGMA query_only = ON")
            # One snapshot for the version and the rows: a writer may migrate the file meanwhile.
            connection.execute("BEGIN")
            version = _verify(connection, path)
            yield from connection.execute(as_newest(connection, version) + query, tuple(values))
    except sqlite3.DatabaseError as error:
        raise _unusable(path, error) from error


def _steps_beside(path: Path) -> bool:
    """Whether steps wait beside the file to be taken into it."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    except OSError:
        return False


_AMOUNTS = tuple(_COLUMNS.index(name) for name in ("cost", "spent", "refunded"))


def _check_names(*names: str) -> None:
    for name in names:
        if not _encodable(name):
            raise LedgerError(f"{name!r} is no text that a file can hold", key=ascii(name))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoded(text: str) -> str:
    """A text as a file holds it: without lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def _storable(entry: Entry) -> Entry:
    """The step without what a file cannot hold: lone surrogates and endless numbers in what the service said."""
    changed: dict[str, Any] = {
        name: _encoded(value)
        for name in ("prediction_id", "output", "error", "path")
        if (value := getattr(entry, name)) is not None and not _encodable(value)
    }
    if entry.code is not None and abs(entry.code) > _LARGEST:
        changed["code"] = None
    return attrs.evolve(entry, **changed) if changed else entry


_LARGEST = 2**62


@cache
def _of_lines(insert: str, lines: int, width: int) -> str:
    line = f"({', '.join('?' * width)})"
    return f"{insert} VALUES {', '.join([line] * lines)}"


@cache
def _update(names: tuple[str, ...]) -> str:
    """Changes what has changed: an index whose column stays is not touched."""
    return f"UPDATE job SET {', '.join(f'{name} = ?' for name in names)} WHERE batch = ? AND key = ?"  # noqa: S608 -- ours


def _stored(name: str, value: object) -> object:
    """Return an attribute of a row as the file holds it: amounts are texts, so that they stay exact."""
    return str(value) if isinstance(value, Decimal) else stored(name, value)


def _read(values: tuple[Any, ...]) -> Row:
    """A row, with its content when that was selected too."""
    fields = dict(zip((*_COLUMNS, *_APART), values, strict=False))
    for place in _AMOUNTS:
        if values[place] is not None:
            fields[_COLUMNS[place]] = Decimal(values[place])
    return Row(**restore(fields))


def _free(path: Path) -> Path:
    """A name beside a file that nothing has."""
    names = (path.with_name(f"{path.name}.rescued{f'-{number}' if number else ''}") for number in count())
    return next(name for name in names if not name.exists())


def _connect(path: Path, lock_timeout: float) -> sqlite3.Connection:
    """The writer's connection, to a file that is shown to be a ledger of ours, whole and writable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for beside in (path.with_name(path.name + suffix) for suffix in _BESIDE):
            # SQLite gave it the rights of a file that could only be read then.
            if path.exists() and beside.exists() and not os.access(beside, os.W_OK):
                beside.chmod(path.stat().st_mode)
        connection = sqlite3.connect(path, timeout=lock_timeout, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    try:
        fresh = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        if not fresh:
            # Before anything is changed in a file that may not be ours.
            _verify(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        migrate(connection)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        connection.close()
        raise _unusable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _verify(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of a file's tables.

    Raises:
        LedgerError: It is no ledger, is damaged, or was made by a later version.
    """
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise LedgerError(f"{path} is another program's database", advice="name another file as the ledger")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"the ledger {path} was made by a later version of kling_async",
            advice="upgrade kling_async, or name another file",
        )
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise LedgerError(f"the ledger {path} is damaged: {found}", advice=_DAMAGED)
    return int(version)


_DAMAGED = (
    "restore it from a copy; `sqlite3 FILE .recover` reads what is left; do not submit its jobs again before that"
)


def _unusable(path: Path, error: Exception) -> LedgerError:
    text = str(error)
    if "not a database" in text:
        return LedgerError(f"{path} is no ledger: {text}", advice="name another file as the ledger")
    if "malformed" in text:
        return LedgerError(f"the ledger {path} is damaged: {text}", advice=_DAMAGED)
    return LedgerError(f"the ledger {path} cannot be opened: {text}", advice=_advice(error))


def _advice(trouble: Exception) -> str:
    """What to do about a file that cannot be used. Never to name another one: what that does not know is paid again."""
    text = str(trouble)
    if "malformed" in text or "not a database" in text:
        return _DAMAGED
    if "locked" in text or "busy" in text:
        first = "another program holds the file (sqlite3, a backup): let it end"
    elif "full" in text or "No space" in text:
        first = "make room on the disk"
    elif isinstance(trouble, OSError) or "readonly" in text or "unable to open" in text:
        first = "let this user write the file and its folder"
    else:
        first = "see to the disk: room, quota, a limit on the length of files"
    return f"{first}; then run the same call again with this ledger: what was accepted is not paid for again"


def _locked(path: Path) -> IO[str]:
    """A lock that ends with the process, however that ends."""
    lock_path = path.with_name(path.name + ".lock")
    lock: IO[str] | None = None
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
        if lock is not None:
            lock.close()
        raise _unusable(path, error) from error
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

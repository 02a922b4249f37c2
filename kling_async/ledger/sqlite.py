"""The embedded ledger: one SQLite file, one writer, any number of readers.

Steps are committed with `synchronous=FULL` by one writer thread, as many together as have arrived meanwhile (group
commit): durable, and faster than one by one without durability.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kling_async._core import content as contents
from kling_async._core.content import Content, checked_identity
from kling_async._core.copies import changed
from kling_async._core.states import ENDED, Row, State
from kling_async.errors import KeyReusedError, LedgerError

from ._sqlite import statements
from ._sqlite.statements import check_names, encodable, read_row
from ._sqlite.writer import Writer

if TYPE_CHECKING:
    import asyncio
    import os
    import sqlite3
    from collections.abc import Iterable

    from kling_async._core.states import Entry

    from ._sqlite.writer import Work

CACHED_ROWS = 20_000
"""Rows of jobs under way that the writer keeps in memory."""
LOCK_TIMEOUT_S = 10.0
"""Seconds to wait for another program that has locked the file."""


class SQLiteLedger:
    """A ledger in a file.

    Args:
        path: The file; created when it does not exist. Beside it are SQLite's `-wal` and `-shm` while it is open, and a
            lock file that keeps a second writer out. Deleted while it is open, it is restored; when another file takes
            its place, nothing more is sent, and its rows are saved beside it under a name that the errors say.
        lock_timeout: Seconds to wait for another program that has locked the file.

    Attributes:
        path: The file.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = LOCK_TIMEOUT_S) -> None:
        self.path = Path(path)
        self._writer = Writer(self.path, lock_timeout=lock_timeout, reset=self._reset)
        self._deferred = self._writer.deferred
        # Caches of the writer's thread; there is no other writer. Rows are those of jobs under way.
        self._rows: dict[tuple[str, str], Row] = {}
        self._identities: dict[str, int] = {}

    async def open(self) -> None:
        """Open the file for writing; a file of an older version is migrated.

        Raises:
            LedgerError: Another session or process writes it, it cannot be written, is no ledger, is damaged, or was
                made by a later version.
        """
        await self._writer.open()

    async def aclose(self) -> None:
        """Commit what is left, and release the file."""
        await self._writer.aclose()

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """Return the row of a job, inserted when it is new.

        Raises:
            LedgerError: It cannot be written, or a later version of the package began the batch.
            KeyReusedError: The key names a job with other content.
        """
        check_names(batch, key, model)
        digest = content.digest

        def work(connection: sqlite3.Connection) -> Row:
            if self._writer.replaced:
                raise self._writer.out_of_place()
            if batch not in self._identities:
                self._identity(connection, batch)
            row = self._rows.get((batch, key))
            if row is None and connection.execute(statements.INSERT, (batch, key, digest, model, at)).rowcount:
                row = Row(batch=batch, key=key, digest=digest, model=model, state=State.PENDING, updated_at=at)
                step = (batch, key, row.state.value, at, row.attempt, None, None)
                self._deferred[statements.INSERT_CONTENT].append((batch, key, content.text, content.files))
                self._deferred[statements.INSERT_STEP].append(step)
                self._rows[batch, key] = row
                return row
            row = row or self._row(connection, batch, key)
            if row is None or row.digest != digest:
                raise KeyReusedError(key)
            return row

        claimed: Row = await self._ask(work)
        return claimed

    def unclaim(self, batch: str, key: str) -> None:
        """Do nothing: a pending row stays in the file, for the next run."""

    async def identity(self, batch: str) -> int:
        """Return the version of the rule that a batch's digests and keys are made by; a new batch gets the newest.

        Raises:
            LedgerError: The file cannot be written, or a later version of the package began the batch.
        """
        self._writer.check_open()
        identity = self._identities.get(batch)
        if identity is None:
            check_names(batch)
            identity = await self._ask(lambda connection: self._identity(connection, batch))
        return identity

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """Return the row of a job with its content, or None."""
        query = f"{statements.SELECT_WITH_CONTENT} WHERE job.batch = ? AND job.key = ?"

        def work(connection: sqlite3.Connection) -> Any:
            self._writer.flush(connection)
            return connection.execute(query, (batch, key)).fetchone()

        found = await self._ask(work)
        if found is None:
            return None
        row = read_row(found)
        return row, Content(row.job or "", row.files)

    async def owner(self, prediction_id: str) -> Row | None:
        """Return the row of the job that the prediction is of, or None."""
        query = f"{statements.SELECT} WHERE prediction_id = ?"

        def work(connection: sqlite3.Connection) -> Row | None:
            found = connection.execute(query, (encodable(prediction_id),)).fetchone()
            return None if found is None else read_row(found)

        row: Row | None = await self._ask(work)
        return row

    async def record(self, entry: Entry) -> Row:
        """Record one step; return the row that it left, when it is on the disk.

        Raises:
            LedgerError: It cannot be written, or the move is not legal.
        """
        row: Row = await self._ask(lambda connection: self._step(connection, entry))
        return row

    def note(self, entry: Entry) -> None:
        """Record one step with the next group."""
        self._writer.put(lambda connection: self._step(connection, entry))

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """Return all rows in these states, of every batch, by the time of their last step."""
        condition, words = statements.is_in(states)
        query = f"{statements.SELECT} WHERE {condition} ORDER BY updated_at"
        found: list[Row] = await self._ask(lambda connection: [*map(read_row, connection.execute(query, words))])
        return found

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """Return the keys of a batch's jobs in these states, by the time of submission: the first expire first."""
        condition, words = statements.is_in(states)
        query = (
            f"SELECT key FROM job WHERE batch = ? AND {condition} "  # noqa: S608 -- question marks
            "ORDER BY submitted_at IS NULL, submitted_at, updated_at"
        )
        keys: list[str] = await self._ask(
            lambda connection: [key for (key,) in connection.execute(query, (batch, *words))]
        )
        return keys

    async def spent(self, batch: str | None) -> Decimal:
        """Return the USD that a batch, or everything, has cost so far by the price list, less what was given back."""

        def work(connection: sqlite3.Connection) -> Decimal:
            amounts = connection.execute(statements.AMOUNTS, (batch,)).fetchall()
            return sum(
                (count * (Decimal(spent or 0) - Decimal(refunded or 0)) for spent, refunded, count in amounts),
                Decimal(0),
            )

        spent: Decimal = await self._ask(work)
        return spent

    async def uploaded(self, digest: str, now: float) -> str | None:
        """Return the URL of an image that was uploaded and is available at that time, or None."""
        query = "SELECT url FROM upload WHERE digest = ? AND expires_at > ?"
        found = await self._ask(lambda connection: connection.execute(query, (digest, now)).fetchone())
        return None if found is None else str(found[0])

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """Record the URL of an uploaded image with the next group."""
        values = (digest, encodable(url), expires_at)
        self._writer.put(lambda connection: connection.execute(statements.PUT_UPLOAD, values))

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Return those of the ids that a row has, each with the fingerprint of what was sent and the model's id."""
        ids = list(prediction_ids)

        def work(connection: sqlite3.Connection) -> dict[str, tuple[str | None, str]]:
            self._writer.flush(connection)
            found = ((id_, connection.execute(statements.KNOWN, {"id": encodable(id_)}).fetchone()) for id_ in ids)
            return {id_: row for id_, row in found if row is not None}

        known: dict[str, tuple[str | None, str]] = await self._ask(work)
        return known

    def _ask(self, work: Work) -> asyncio.Future[Any]:
        return self._writer.ask(work)

    # In the writer's thread

    def _row(self, connection: sqlite3.Connection, batch: str, key: str) -> Row | None:
        row = self._rows.get((batch, key))
        if row is None:
            found = connection.execute(f"{statements.SELECT} WHERE batch = ? AND key = ?", (batch, key)).fetchone()
            row = None if found is None else read_row(found)
        return row

    def _identity(self, connection: sqlite3.Connection, batch: str) -> int:
        """Return the identity rule of a batch, recorded now if it is new.

        Raises:
            LedgerError: A later version of the package began the batch.
        """
        connection.execute(statements.INSERT_BATCH, (batch, contents.IDENTITY_VERSION))
        (identity,) = connection.execute("SELECT identity FROM batch WHERE name = ?", (batch,)).fetchone()
        self._identities[batch] = checked_identity(identity, batch)
        return self._identities[batch]

    def _step(self, connection: sqlite3.Connection, entry: Entry) -> Row:
        name = (entry.batch, entry.key)
        if self._writer.replaced and entry.state is State.INTENT:
            raise self._writer.out_of_place()
        row = self._row(connection, *name)
        if row is None:
            raise LedgerError(f"job {entry.key} was never claimed", key=entry.key)
        try:
            changes = row.changes(statements.storable(entry))
        except ValueError as error:
            raise LedgerError(str(error), key=entry.key, prediction_id=entry.prediction_id) from None
        connection.execute(statements.update(tuple(changes)), (*statements.columns(changes), *name))
        row = changed(row, **changes)
        step = (entry.batch, entry.key, entry.state.value, entry.at, row.attempt, row.prediction_id, row.error)
        self._deferred[statements.INSERT_STEP].append(step)
        if row.state in ENDED:
            self._rows.pop(name, None)
        else:
            if len(self._rows) >= CACHED_ROWS:
                self._rows.clear()
            self._rows[name] = row
        return row

    def _reset(self) -> None:
        """Clear the caches."""
        self._rows.clear()
        self._identities.clear()

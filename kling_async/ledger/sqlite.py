"""The embedded ledger: one SQLite file, one writer, any number of readers.

Steps are committed with `synchronous=FULL` by one writer thread, as many together as have arrived meanwhile (group
commit): durable, and faster than one by one without durability.
"""

from __future__ import annotations

import math
from collections import defaultdict
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from kling_async._core.content import Content, Identity, checked_identity, content_in
from kling_async._core.copies import changed
from kling_async._core.sender import Sender
from kling_async._core.states import ENDED, Known, Row, State
from kling_async.errors import KeyReusedError, LedgerError

from ._columns import check_names, new_row, no_job, restored_identity, restored_names, storable, stored_names
from ._labels import scalar_labels
from ._sqlite import edits, statements
from ._sqlite.statements import read_row, storable_text
from ._sqlite.writer import Writer

if TYPE_CHECKING:
    import asyncio
    import os
    import sqlite3
    from collections.abc import Collection, Iterable

    from kling_async._core.marks import Mark
    from kling_async._core.states import Entry

    from ._sqlite.writer import Work

CACHED_ROWS = 20_000
"""Rows of jobs under way that the writer keeps in memory."""
LOCK_TIMEOUT_S = 10.0
"""Seconds to wait for another program that has locked the file."""


class SQLiteLedger:
    """A ledger in a file.

    Args:
        path: The file; created when it does not exist, for its owner only (mode 0600 on POSIX), since prompts are in
            it; the mode of an existing file is left. Beside it are SQLite's `-wal` and `-shm` while it is open, and a
            lock file that keeps a second writer out. A second writer that comes all the same, because the lock file was
            removed, takes the ledger over: the first one sends nothing more. Deleted while it is open, the file is
            restored; when another file takes its place, nothing more is sent, and its rows are saved beside it under a
            name that the errors say.
        lock_timeout: Seconds to wait for another program that has locked the file.

    Attributes:
        path: The file.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = LOCK_TIMEOUT_S) -> None:
        self.path = Path(path)
        self._writer = Writer(self.path, lock_timeout=lock_timeout, reset=self._reset)
        self._deferred = self._writer.deferred
        # Caches of the writer's thread, cleared when another connection writes. Rows are those of jobs under way.
        self._rows: dict[tuple[str, str], Row] = {}
        self._identities: dict[str, Identity] = {}
        self._ignored: list[tuple[str, ...]] | None = None
        # Names of the batches in the file; None before they are read.
        self._batches: set[str] | None = None
        # Numbers of the claims of claimed jobs, by the digest of their content; the digests by the jobs' names.
        self._claimed: defaultdict[str, dict[tuple[str, str], int]] = defaultdict(dict)
        self._digests: dict[tuple[str, str], str] = {}
        self._claims = count()

    async def open(self) -> None:
        """Open the file for writing; a file of an older version is migrated.

        Raises:
            LedgerError: Another session or process writes it, it cannot be written, is no ledger, is damaged, or was
                made by a later version.
        """
        self._claimed.clear()
        self._digests.clear()
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
        check_names(batch, key, model, text=storable_text)
        digest = content.digest

        def work(connection: sqlite3.Connection) -> Row:
            self._writer.check_sending()
            if batch not in self._identities:
                self._identity(connection, batch)
            row = self._rows.get((batch, key))
            new = (batch, key, digest, model, at, content.caller, content.priority)
            if row is None and connection.execute(statements.INSERT, new).rowcount:
                row = new_row(batch, key, content=content, model=model, at=at)
                step = (batch, key, row.state.value, at, row.attempt, None, None)
                self._put_content(batch, key, content)
                self._deferred[statements.INSERT_STEP].append(step)
                self._rows[batch, key] = row
                return row
            row = row or self._row(connection, batch, key)
            if row is None or row.digest != digest:
                raise KeyReusedError(key)
            if content.renews and not row.state.accepted:
                self._put_content(batch, key, content)
            elif content.labels is not None:
                connection.execute(statements.RENEW_LABELS, (content.labels, batch, key, content.labels))
                self._put_labels(batch, key, content)
            # The latest count, as with labels, but for who has paid; a job given without them keeps what it has.
            caller = content.caller if content.caller and row.spent is None else row.caller
            priority = content.priority or row.priority
            if (caller, priority) != (row.caller, row.priority):
                connection.execute(statements.update(("caller", "priority")), (caller, priority, batch, key))
                row = self._rows[batch, key] = attrs.evolve(row, caller=caller, priority=priority)
            return row

        claimed: Row = await self._ask(work)
        self._claimed[digest].setdefault((batch, key), next(self._claims))
        self._digests[batch, key] = digest
        return claimed

    def unclaim(self, batch: str, key: str) -> None:
        """Release a job that is not going to be submitted now; its row stays in the file, for the next run."""
        digest = self._digests.pop((batch, key), None)
        if digest is not None:
            del self._claimed[digest][batch, key]
            if not self._claimed[digest]:
                del self._claimed[digest]

    async def identity(self, batch: str, *, ignored: tuple[str, ...] | None = None) -> Identity:
        """Return the identity of a batch; a new batch gets the newest rule, and ignores these parameters.

        Raises:
            LedgerError: The file cannot be written, or a later version of the package began the batch.
            ConfigurationError: The batch ignores other parameters.
        """
        self._writer.check_open()
        identity = self._identities.get(batch)
        if identity is None:
            check_names(batch, text=storable_text)
            identity = await self._ask(lambda connection: self._identity(connection, batch, ignored or ()))
        return checked_identity(identity, batch, ignored)

    async def ignored_parameters(self) -> list[tuple[str, ...]]:
        """Return the sets of parameters that batches ignore, each once, without the empty one."""

        def work(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
            if self._ignored is None:
                self._ignored = [restored_names(stored) for (stored,) in connection.execute(statements.IGNORED)]
            return self._ignored

        self._writer.check_open()
        found: list[tuple[str, ...]] = await self._ask(work) if self._ignored is None else self._ignored
        return found

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
        return row, content_in(row)

    async def owner(self, prediction_id: str) -> Row | None:
        """Return the row of the job that the prediction is of, or None."""
        query = f"{statements.SELECT} WHERE prediction_id = ?"

        def work(connection: sqlite3.Connection) -> Row | None:
            found = connection.execute(query, (storable_text(prediction_id),)).fetchone()
            return None if found is None else read_row(found)

        row: Row | None = await self._ask(work)
        return row

    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        """Return the jobs of other batches that a paid request for a job would pay for again.

        Raises:
            LedgerError: The file cannot be read.
        """
        if self._batches == {batch}:
            # The usual case, at no cost.
            return []
        claimed = {name: number for digest in digests for name, number in self._claimed.get(digest, {}).items()}
        own = claimed.get((batch, key), math.inf)
        claimed_before = [
            name
            for name, number in claimed.items()
            if number < own and name[0] != batch and (any_key or name[1] == key)
        ]
        values = [{"digest": digest, "batch": batch, "key": None if any_key else key} for digest in digests]

        def work(connection: sqlite3.Connection) -> list[Row]:
            paid = [
                read_row(found)
                for of_rule in values
                for found in connection.execute(statements.PAID_ELSEWHERE, of_rule).fetchall()
            ]
            rows = (self._row(connection, *name) for name in claimed_before)
            return paid + [row for row in rows if row is not None and row.state.sendable]

        found: list[Row] = await self._ask(work)
        return found

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

    async def spent(self, batch: str | None, *, caller: str | None = None) -> Decimal:
        """Return the USD that a batch, or everything, has cost so far by the price list, less what was given back."""

        def work(connection: sqlite3.Connection) -> Decimal:
            query, values = (
                (statements.AMOUNTS, (batch,)) if caller is None else (statements.AMOUNTS_OF, (caller, batch))
            )
            amounts = connection.execute(query, values).fetchall()
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
        values = (digest, storable_text(url), expires_at)
        self._writer.put(lambda connection: connection.execute(statements.PUT_UPLOAD, values))

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, Known]:
        """Return what is known of those of the ids that a job has, or had in an earlier attempt."""
        ids = list(prediction_ids)

        def work(connection: sqlite3.Connection) -> dict[str, Known]:
            self._writer.flush(connection)
            found = ((id_, connection.execute(statements.KNOWN, {"id": storable_text(id_)}).fetchone()) for id_ in ids)
            return {id_: Known(*row) for id_, row in found if row is not None}

        known: dict[str, Known] = await self._ask(work)
        return known

    async def senders(self) -> list[Sender]:
        """Return the senders of its jobs."""
        found: list[tuple[str, ...]] = await self._ask(
            lambda connection: connection.execute(statements.SENDERS).fetchall()
        )
        return [Sender(*values) for values in found]

    async def put_sender(self, sender: Sender) -> None:
        """Record a sender, or that it is of the same account as another one.

        Raises:
            LedgerError: It cannot be written.
        """
        await self._ask(lambda connection: connection.execute(statements.PUT_SENDER, attrs.astuple(sender)))

    async def renew(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row | None:
        """Give the key of a job other content; return the row under which the job stays, or None if nothing is left.

        Raises:
            LedgerError: There is no such job, it is being sent, runs or is in doubt, or the file cannot be written.
        """
        check_names(model, text=storable_text)

        def work(connection: sqlite3.Connection) -> Row | None:
            self._writer.check_sending()
            self._writer.flush(connection)
            row = self._row(connection, batch, key)
            if row is None:
                raise no_job(batch, key)
            self._rows.pop((batch, key), None)
            return edits.renew(connection, row, content, model=model, at=at)

        kept: Row | None = await self._ask(work)
        return kept

    async def put_mark(self, prediction_id: str, mark: Mark | None, at: float) -> None:
        """Record the mark of a video; None removes it.

        Raises:
            LedgerError: The file cannot be written.
        """
        await self._ask(lambda connection: edits.put_mark(connection, prediction_id, mark, at))

    def _ask(self, work: Work) -> asyncio.Future[Any]:
        return self._writer.ask(work)

    # In the writer's thread

    def _put_content(self, batch: str, key: str, content: Content) -> None:
        values = (batch, key, content.text, content.files, content.labels, content.frames)
        self._deferred[statements.INSERT_CONTENT].append(values)
        self._put_labels(batch, key, content)

    def _put_labels(self, batch: str, key: str, content: Content) -> None:
        """Add the labels of a job to the table in which jobs are found by them."""
        if content.labels is not None:
            rows = [(name, value, batch, key) for name, value in scalar_labels(content.labels)]
            self._deferred[statements.INSERT_LABEL] += rows

    def _row(self, connection: sqlite3.Connection, batch: str, key: str) -> Row | None:
        row = self._rows.get((batch, key))
        if row is None:
            found = connection.execute(f"{statements.SELECT} WHERE batch = ? AND key = ?", (batch, key)).fetchone()
            row = None if found is None else read_row(found)
        return row

    def _identity(self, connection: sqlite3.Connection, batch: str, ignored: tuple[str, ...] = ()) -> Identity:
        """Return the identity of a batch, recorded now if it is new.

        Raises:
            LedgerError: A later version of the package began the batch.
        """
        new = Identity(ignored=ignored)
        connection.execute(statements.INSERT_BATCH, (batch, new.rule, stored_names(new.ignored)))
        found = connection.execute(statements.IDENTITY, (batch,)).fetchone()
        self._identities[batch] = checked_identity(restored_identity(*found), batch)
        self._ignored = None
        self._batches = {name for (name,) in connection.execute("SELECT name FROM batch")}
        return self._identities[batch]

    def _step(self, connection: sqlite3.Connection, entry: Entry) -> Row:
        name = (entry.batch, entry.key)
        if entry.state is State.INTENT:
            self._writer.check_sending()
        row = self._row(connection, *name)
        if row is None:
            raise LedgerError(f"job {entry.key} was never claimed", key=entry.key)
        if self._writer.successor is not None and not _is_late_answer(row, entry):
            raise self._writer.superseded()
        try:
            changes = row.changes(storable(entry, text=storable_text))
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
        self._batches = None
        self._ignored = None


def _is_late_answer(row: Row, entry: Entry) -> bool:
    """Return whether a step answers a request that was sent before another process opened the ledger.

    Nobody knows better, and its paid id must not be lost. A later attempt is another process's.
    """
    return (
        entry.state is State.SUBMITTED
        and (row.state.in_doubt or row.state is State.ABANDONED)
        and entry.attempt == row.attempt
    )

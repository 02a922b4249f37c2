"""Edits of a ledger file on request, in the writer's thread: other content for a key, and marks of videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kling_async._core.renewal import free_key, is_kept, renewed
from kling_async._core.states import Row, State

from . import statements

if TYPE_CHECKING:
    import sqlite3

    from kling_async._core.content import Content
    from kling_async._core.marks import Mark


def renew(connection: sqlite3.Connection, row: Row, content: Content, *, model: str, at: float) -> Row | None:
    """Give the key of a job other content; return the row under which the job stays, or None if nothing is left of it.

    Raises:
        LedgerError: The job is being sent, runs, or is in doubt.
    """
    name = (row.batch, row.key)
    kept: Row | None = None
    attempt = row.attempt
    if is_kept(row):
        taken = "SELECT 1 FROM job WHERE batch = ? AND key = ?"
        key = free_key(row.key, lambda key: connection.execute(taken, (row.batch, key)).fetchone() is not None)
        for rename in statements.RENAME:
            connection.execute(rename, (key, *name))
        connection.execute(statements.INSERT, (*name, content.digest, model, at))
        kept, attempt = attrs.evolve(row, key=key), 0
    else:
        after = renewed(row, content, model=model, at=at)
        changes = {
            field: getattr(after, field)
            for field in attrs.fields_dict(Row)
            if getattr(after, field) != getattr(row, field)
        }
        connection.execute(statements.update(tuple(changes)), (*statements.columns(changes), *name))
    put, step = (
        statements.values_of(statements.INSERT_CONTENT, 1, 6),
        statements.values_of(statements.INSERT_STEP, 1, 7),
    )
    connection.execute(put, (*name, content.text, content.files, content.labels, content.frames))
    connection.execute(step, (*name, State.PENDING.value, at, attempt, None, None))
    return kept


def put_mark(connection: sqlite3.Connection, prediction_id: str, mark: Mark | None, at: float) -> None:
    """Record the mark of a video; None removes it."""
    if mark is None:
        connection.execute(statements.REMOVE_MARK, (prediction_id,))
    else:
        connection.execute(statements.PUT_MARK, (prediction_id, mark.value, at))

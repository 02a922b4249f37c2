"""Edits of a ledger file on request, in the writer's thread: other content for a key, and marks of videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kling_async._core.renewal import free_key, is_kept, renewed
from kling_async._core.states import Row, State
from kling_async.ledger._labels import scalar_labels

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
    labels: str | None = None
    if is_kept(row):
        (labels,) = connection.execute(statements.LABELS, name).fetchone() or (None,)
        taken = "SELECT 1 FROM job WHERE batch = ? AND key = ?"
        key = free_key(row.key, lambda key: connection.execute(taken, (row.batch, key)).fetchone() is not None)
        for rename in statements.RENAME:
            connection.execute(rename, (key, *name))
        connection.execute(statements.INSERT, (*name, content.digest, model, at, content.caller, content.priority))
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
    put_labels(connection, *name, content.labels)
    if kept is not None:
        put_labels(connection, row.batch, kept.key, labels)
    return kept


def put_labels(connection: sqlite3.Connection, batch: str, key: str, labels: str | None) -> None:
    """Add the labels of a job to the table in which jobs are found by them."""
    rows = [] if labels is None else [(name, value, batch, key) for name, value in scalar_labels(labels)]
    if rows:
        put = statements.values_of(statements.INSERT_LABEL, len(rows), 4)
        connection.execute(put, [value for label in rows for value in label])


def put_mark(connection: sqlite3.Connection, prediction_id: str, mark: Mark | None, at: float) -> None:
    """Record the mark of a video; None removes it."""
    if mark is None:
        connection.execute(statements.REMOVE_MARK, (prediction_id,))
    else:
        connection.execute(statements.PUT_MARK, (prediction_id, mark.value, at))

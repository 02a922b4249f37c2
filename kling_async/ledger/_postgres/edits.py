"""Edits of a shared ledger on request: other content for a key, and marks of videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kling_async._core.renewal import free_key, is_kept
from kling_async._core.states import State
from kling_async.errors import LedgerError
from kling_async.ledger._columns import no_job

from . import chains, statements
from .connection import fetch
from .requests import Name, NewJob, not_owned
from .statements import line_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kling_async._core.content import Content
    from kling_async._core.marks import Mark
    from kling_async._core.states import Row

    from .connection import Connection


_REFRESHED: tuple[tuple[str, Callable[[Content], bool]], ...] = (
    (statements.RENEW_TEXTS, lambda content: content.renews),
    (statements.RENEW_LABELS, lambda content: content.labels is not None),
    (statements.RENEW_CALLERS, lambda content: bool(content.caller or content.priority)),
)
"""Statements that replace something of jobs, and whether a content has it."""


async def refresh(connection: Connection, account: str, given: Mapping[Name, NewJob]) -> None:
    """Replace what may differ between equal jobs, where these exist: signatures, labels, callers and priorities.

    Args:
        connection: Connection in a transaction.
        account: Name of the account.
        given: Jobs by their names.
    """
    for statement, is_given in _REFRESHED:
        some = {name: new for name, new in given.items() if is_given(new[0])}
        if some:
            await fetch(connection, statement, {**statements.inserted_values(some), "account": account})


async def renew(
    connection: Connection, account: str, batch: str, key: str, content: Content, *, model: str, at: float
) -> Row | None:
    """Give the key of a job other content; return the row under which the job stays, or None if nothing is left of it.

    Raises:
        LedgerError: There is no such job, a worker has claimed it, or it is being sent, runs or is in doubt.
    """
    found = await fetch(connection, statements.LOCK_LINES, [[batch], [key], account])
    if not found:
        raise no_job(batch, key)
    line = line_of(found[0])
    keep = is_kept(line.row)
    if line.worker_id is not None:
        raise not_owned(key)
    if line.row.state is State.COMPLETED:
        # Whoever saves it would record the file in the new row.
        raise LedgerError(
            f"job {key!r} has a video that is not saved yet, so it is not made again now; nothing was sent",
            key=key,
            advice="let it be saved first: the same command without --redo does that",
        )
    if not keep:
        values = {"id": line.id, "digest": content.digest, "model": model, "at": at}
        values |= {"text": content.text, "files": content.files, "labels": content.labels}
        values |= {"caller": content.caller, "priority": content.priority, "frames": content.frames}
        await fetch(connection, statements.NEW_CONTENT, values)
        await fetch(connection, statements.UNLINK, [[line.id]])
        await chains.link(connection, account, [(line.id, batch, content.frames)])
        await chains.relink(connection, line.id, line.id)
        return None
    others = await fetch(connection, statements.KEYS_BELOW, [account, batch, f"{key}~"])
    free = free_key(key, {other for (other,) in others}.__contains__)
    await fetch(connection, statements.RENAME, [free, line.id])
    new = statements.inserted_values({(batch, key): (content, model, at)})
    ((made, _, _),) = await fetch(connection, statements.INSERT, {**new, "account": account, "worker_id": None})
    await chains.link(connection, account, [(made, batch, content.frames)])
    await chains.relink(connection, line.id, made)
    return attrs.evolve(line.row, key=free)


async def put_mark(connection: Connection, account: str, prediction_id: str, mark: Mark | None, at: float) -> None:
    """Record the mark of a video; None removes it."""
    if mark is None:
        await fetch(connection, statements.REMOVE_MARK, [account, prediction_id])
    else:
        await fetch(connection, statements.PUT_MARK, [account, prediction_id, mark.value, at])

"""Jobs of a shared ledger that continue others: held until these have videos, and skipped if they end without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import statements
from .connection import fetch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .connection import Connection
    from .statements import Line


async def link(
    connection: Connection, account: str, jobs: Iterable[tuple[int, str, str | None]], *, worker: str = ""
) -> None:
    """Link new jobs to those that they continue, and hold them until these have videos.

    Args:
        connection: Connection, in whose transaction they were inserted.
        account: Name of the account.
        jobs: Number and batch of each job, and the keys that it continues as in `Content.frames`.
        worker: Name of the worker, for the history.
    """
    wanted = [
        (id_, batch, parent)
        for id_, batch, frames in jobs
        if frames is not None
        for parent in dict.fromkeys(json.loads(frames).values())
    ]
    if not wanted:
        return
    ids, batches, parents = map(list, zip(*wanted, strict=True))
    values = {"account": account, "ids": ids, "batches": batches, "parents": parents}
    locked = [id_ for (id_,) in await fetch(connection, statements.LOCK_PARENTS, values)]
    await fetch(connection, statements.LINK, values)
    await fetch(connection, statements.HOLD, values)
    await fetch(connection, statements.SKIP, {"ids": locked, "worker": worker})


async def relink(connection: Connection, old: int, new: int) -> None:
    """Let the jobs that continue one, and are yet to be sent, wait for the video that its key is to get.

    Args:
        connection: Connection, in whose transaction the key got other content.
        old: Number of the job that they continue.
        new: Number of the job that has its key now.
    """
    waiting = [id_ for (id_,) in await fetch(connection, statements.RELINK, {"old": old, "new": new})]
    await fetch(connection, statements.HOLD, {"ids": waiting})


async def follow(connection: Connection, changed: Iterable[tuple[Line, Line]], *, worker: str) -> None:
    """Wake what continues jobs that have videos now, and skip what continues those that have ended without one.

    Args:
        connection: Connection, in whose transaction the jobs were written.
        changed: Lines as they were and as they are.
        worker: Name of the worker, for the history.
    """
    made: list[int] = []
    over: list[int] = []
    for was, line in changed:
        if line.row.has_video and not was.row.has_video:
            made.append(line.id)
        elif statements.is_over(line) and not statements.is_over(was):
            over.append(line.id)
    if made:
        # A statement of its own: the next one sees what was committed while this one waited.
        await fetch(connection, statements.LOCK_CHILDREN, [made])
        await fetch(connection, statements.WAKE, {"ids": made, "worker": worker})
    if over:
        await fetch(connection, statements.SKIP, {"ids": over, "worker": worker})


async def skip_left(connection: Connection, account: str, *, worker: str) -> None:
    """Skip what continues jobs that have ended without a video, and whose workers have died before they said so."""
    over = [id_ for (id_,) in await fetch(connection, statements.OVER, [account])]
    if over:
        await fetch(connection, statements.SKIP, {"ids": over, "worker": worker})

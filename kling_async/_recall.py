"""A batch out of its ledger: for when its input is not there any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from ._core.content import Content, digests, recalled
from ._core.errors import InvalidJobError, KlingError, Problem
from ._core.job import Job
from ._core.media import FITTED
from ._core.states import Row, State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from ._core.clock import Clock
    from .ledger.routed import Ledgers

ORDER = (
    (State.COMPLETED,),
    (State.SUBMITTED,),
    (State.INTENT, State.UNCERTAIN),
    (State.CLAIMED, State.PENDING, State.SKIPPED, State.REJECTED),
    (State.FAILED, State.EXPIRED, State.DOWNLOADED),
)
"""What may be lost by waiting comes first, what costs money after it."""
_NEVER_ACCEPTED = frozenset({*ORDER[2], *ORDER[3]})


@attrs.frozen
class Recalled:
    """A job as the ledger has it.

    Attributes:
        row: Its row.
        job: The job; with an empty image where that was given as bytes, and no upload of it is left.
        content: Its content; None when its image files are to be looked into again.
        error: Why it cannot be sent.
    """

    row: Row
    job: Job
    content: Content | None
    error: KlingError | None = None


async def recall(
    ledgers: Ledgers, batch: str, clock: Clock, order: Sequence[Collection[State]] = ORDER
) -> AsyncGenerator[Recalled]:
    """The jobs of a batch in these states, each once; by default all of them, what expires soonest first."""
    seen: set[int] = set()
    for states in order:
        for key in await ledgers.keys(batch, states):
            # What has moved on since it was given comes by once more.
            if hash(key) in seen:
                continue
            seen.add(hash(key))
            found = await ledgers.find(batch, key)
            if found is not None:
                row, content = found
                yield await recall_one(ledgers, clock, row, content)


async def recall_one(ledgers: Ledgers, clock: Clock, row: Row, content: Content) -> Recalled:
    """One job out of its ledger."""
    uploads: dict[str, str] = {}
    for digest in digests(content):
        for name in (digest, digest + FITTED):
            url = await ledgers.uploaded(name, clock.now())
            if url is not None:
                uploads[digest] = url
    job = recalled(content, uploads)
    if row.state not in _NEVER_ACCEPTED:
        # Nothing of it is sent again: its files need not be there any more.
        return Recalled(row, job, content)
    lost = [name for name in ("image", "end_image") if getattr(job, name) == b""]
    if lost:
        gone = "was given as bytes, which are in no ledger, and its upload is gone: run the batch with its input"
        error = InvalidJobError([Problem(name, gone) for name in lost], job=job, key=row.key)
        return Recalled(row, job, content, error)
    return Recalled(row, job, None if content.files else content)

"""A batch out of its ledger: for when its input is not there any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kling_async._core.content import IMAGES, Content, digests, files, recalled
from kling_async._core.job import Job
from kling_async._core.media import CONVERTED_SUFFIX
from kling_async._core.prediction import Prediction, Status
from kling_async._core.states import RESUME_ORDER, Row, State
from kling_async.errors import InvalidJobError, KeyReusedError, Problem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
    from pathlib import Path

    from kling_async._core.clock import Clock
    from kling_async.ledger import Ledger

RETENTION_S = 7 * 86_400.0
"""Seconds that the service keeps predictions and outputs (docs: what-are-predictions)."""

_STATUS = {
    State.SUBMITTED: Status.CREATED,
    State.COMPLETED: Status.COMPLETED,
    State.DOWNLOADED: Status.COMPLETED,
    State.FAILED: Status.FAILED,
}


def prediction_of(row: Row) -> Prediction:
    """The prediction as the ledger knows it."""
    status = _STATUS[row.state]
    return Prediction(
        id=row.prediction_id or "",
        model=row.model,
        status=status,
        raw_status=status.value,
        outputs=(row.output,) if row.output else (),
        error=row.error,
        code=row.code,
        key=row.key,
    )


@attrs.frozen
class Recalled:
    """A job as the ledger has it.

    Attributes:
        row: Its row.
        job: The job; with an empty image where that was given as bytes, and no upload of it is left.
        content: Its content; what its image files hold now is looked into when it has to be sent.
    """

    row: Row
    job: Job
    content: Content


async def recall(
    ledger: Ledger, batch: str, clock: Clock, order: Sequence[Collection[State]] = RESUME_ORDER
) -> AsyncGenerator[Recalled]:
    """The jobs of a batch in these states, each once; by default all of them, what expires soonest first."""
    seen: set[int] = set()
    for states in order:
        for key in await ledger.keys(batch, states):
            # What has moved on since it was given comes by once more.
            if hash(key) in seen:
                continue
            seen.add(hash(key))
            found = await ledger.find(batch, key)
            if found is not None:
                row, content = found
                yield await recall_one(ledger, clock, row, content)


async def recall_one(ledger: Ledger, clock: Clock, row: Row, content: Content) -> Recalled:
    """One job out of its ledger."""
    uploads: dict[str, str] = {}
    for digest in digests(content):
        for name in (digest, digest + CONVERTED_SUFFIX):
            url = await ledger.uploaded(name, clock.now())
            if url is not None:
                uploads[digest] = url
    return Recalled(row, recalled(content, uploads), content)


async def check_images(job: Job, content: Content, key: str, look: Callable[[Path], Awaitable[str]]) -> None:
    """Raise unless the images of a job out of a ledger are what they were.

    Args:
        job: The job.
        content: Its content in the ledger.
        key: Its name.
        look: Returns the digest of an image file as it is now.

    Raises:
        InvalidJobError: An image file cannot be read, or an image is not there any more.
        KeyReusedError: An image file has changed.
    """
    lost = [name for name in IMAGES if getattr(job, name) == b""]
    if lost:
        gone = "was given as bytes, which are in no ledger, and its upload is gone: run the batch with its input"
        raise InvalidJobError([Problem(name, gone) for name in lost], job=job, key=key)
    for path, was in files(content):
        if await look(path) != was:
            raise KeyReusedError(key)

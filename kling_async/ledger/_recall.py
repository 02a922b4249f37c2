"""Jobs of a batch from its ledger, without the batch's input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kling_async._core.content import Content, digests, files, recalled
from kling_async._core.job import Job
from kling_async._core.media import RECALLED_SUFFIXES
from kling_async._core.prediction import Prediction, SavedFile, Status
from kling_async._core.states import RESUME_ORDER, Row, State
from kling_async.errors import InvalidJobError, KeyReusedError, Problem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence

    from kling_async._core.clock import Clock
    from kling_async.ledger import Ledger

RETENTION_S = 7 * 86_400.0
"""Seconds for which the service keeps predictions and outputs (docs: what-are-predictions)."""

_STATUS = {
    State.SUBMITTED: Status.CREATED,
    State.COMPLETED: Status.COMPLETED,
    State.DOWNLOADED: Status.COMPLETED,
    State.FAILED: Status.FAILED,
}


def prediction_of(row: Row) -> Prediction:
    """Return the prediction of a row of an accepted job."""
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


def saved_file(row: Row) -> SavedFile | None:
    """Return the saved video of a row, or None if its file is gone; an object in a store is not looked at."""
    if row.path is None:
        return None
    if "://" in row.path:
        return SavedFile(row.path, row.bytes or 0, row.sha256 or "")
    path = Path(row.path)
    try:
        there = path.stat().st_size == row.bytes
    except OSError:
        there = False
    return SavedFile(path, row.bytes or 0, row.sha256 or "") if there else None


@attrs.frozen
class Recalled:
    """A job from a ledger.

    Attributes:
        row: Its row.
        job: The job; a file that was given as bytes, and whose upload has expired, is empty.
        content: Its content in the ledger; its files are compared with it before the job is sent.
    """

    row: Row
    job: Job
    content: Content


async def recall(
    ledger: Ledger, batch: str, clock: Clock, order: Sequence[Collection[State]] = RESUME_ORDER
) -> AsyncGenerator[Recalled]:
    """Yield the jobs of a batch in these states, each once; by default all jobs, in the order of a resume.

    The jobs that a job continues come before it, whatever their states.
    """
    seen: set[int] = set()
    # At the end once more in all states: a job may have moved to states that were listed before it did.
    for states in (*order, frozenset[State]().union(*order)):
        for key in await ledger.keys(batch, states):
            # A job that has changed its state since is listed again.
            following = [] if hash(key) in seen else [key]
            while following:
                found = await ledger.find(batch, following[-1])
                parents = () if found is None else found[1].parents
                before = [each for each in parents if hash(each) not in seen and each not in following]
                following += before
                if before:
                    continue
                seen.add(hash(following.pop()))
                if found is not None:
                    yield await recall_one(ledger, clock, *found)


async def recall_one(ledger: Ledger, clock: Clock, row: Row, content: Content) -> Recalled:
    """Return one job from its ledger."""
    uploads: dict[str, str] = {}
    for digest in digests(content):
        for suffix in RECALLED_SUFFIXES:
            url = await ledger.uploaded(digest + suffix, clock.now())
            if url is not None:
                uploads[digest] = url
    return Recalled(row, recalled(content, uploads), attrs.evolve(content, digest=row.digest))


async def check_images(job: Job, content: Content, key: str, digest: Callable[[Path], Awaitable[str]]) -> None:
    """Raise unless the files of a job from a ledger have not changed.

    Args:
        job: The job.
        content: Its content in the ledger.
        key: Key of the job.
        digest: Returns the present digest of a file.

    Raises:
        InvalidJobError: A file cannot be read, or is missing.
        KeyReusedError: A file has changed.
    """
    missing = [place for place, file in job.files.items() if file == b""]
    if missing:
        gone = (
            "the file is missing: it was given as bytes, which the ledger does not keep, and its upload has expired; "
            "run the batch with its input"
        )
        raise InvalidJobError([Problem(name, gone) for name in missing], job=job, key=key)
    for path, recorded in files(content):
        if await digest(path) != recorded:
            raise KeyReusedError(key)

"""Enqueueing: write jobs into a shared ledger for workers to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async._clock import SystemClock
from kling_async._session.batch import Jobs, iterate
from kling_async._session.keys import KeyAssigner, read_content
from kling_async.errors import ConfigurationError, InvalidJobError, Problem
from kling_async.ledger import SharedLedger, open_ledger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from kling_async._core.content import Content
    from kling_async._core.job import Job
    from kling_async.ledger import Ledger
    from kling_async.ledger.postgres import PostgresLedger

MAX_JOBS_PER_TRANSACTION = 2_000
"""Greatest number of jobs written in one transaction."""
ANALYZE_AFTER_JOBS = 1_000
"""Least number of new jobs after which the statistics of the tables are updated."""


async def enqueue(ledger: PostgresLedger, jobs: Jobs, *, batch: str = "") -> int:
    """Write jobs into a shared ledger for workers to run. Jobs that are there already stay as they are.

    Args:
        ledger: The shared ledger, open.
        jobs: The jobs, as for `KlingSession.batch`. Images are URLs, or files that workers can read by the same path.
        batch: Name of the batch.

    Returns:
        Number of new jobs.

    Raises:
        InvalidJobError: An image cannot be read or is given as bytes, or two jobs have the same key.
        KeyReusedError: The ledger has another job with one of the keys.
        LedgerError: The ledger cannot be written.
    """
    new = 0
    async for portion in portions(jobs, identity=await ledger.identity(batch)):
        new += len(await ledger.enqueue(batch, portion, at=SystemClock().now()))
    if new >= ANALYZE_AFTER_JOBS:
        await ledger.analyze()
    return new


async def portions(jobs: Jobs, *, identity: int) -> AsyncGenerator[list[tuple[str, Content, str]]]:
    """Yield key, content and model of jobs, in portions for one transaction each.

    Args:
        jobs: The jobs, as for `KlingSession.batch`.
        identity: Version of the rule by which their batch makes keys and digests.

    Raises:
        InvalidJobError: An image cannot be read or is given as bytes, or two jobs have the same key.
    """
    portion: list[tuple[str, Content, str]] = []
    keys = KeyAssigner()
    position = 0
    async for item in iterate(jobs):
        given, job = item if isinstance(item, tuple) else (None, item)
        _refuse_bytes(job)
        content = await read_content(job, identity=identity)
        assigned = keys.assign(given, content, position)
        if assigned.duplicate is not None:
            assigned.duplicate.job = job
            raise assigned.duplicate
        portion.append((assigned.key, content, job.model))
        position += 1
        if len(portion) == MAX_JOBS_PER_TRANSACTION:
            yield portion
            portion = []
    if portion:
        yield portion


def _refuse_bytes(job: Job) -> None:
    """Raise if a worker could not read an image of the job.

    Raises:
        InvalidJobError: An image is given as bytes.
    """
    for field in ("image", "end_image"):
        image = getattr(job, field)
        if isinstance(image, bytes) or (isinstance(image, str) and image.startswith("data:")):
            raise InvalidJobError(
                [Problem(field, "expected a URL or a file, got bytes, which the ledger does not keep")], job=job
            )


def shared_ledger(ledger: Ledger | str) -> PostgresLedger:
    """Return a ledger as a PostgreSQL ledger.

    Raises:
        ConfigurationError: It is another kind of ledger.
    """
    made = open_ledger(ledger)
    if isinstance(made, SharedLedger):
        # Imported here: it needs an extra.
        from kling_async.ledger.postgres import PostgresLedger  # noqa: PLC0415 -- see above

        if isinstance(made, PostgresLedger):
            return made
    raise ConfigurationError(
        "ledger: expected a PostgreSQL ledger, which workers can share",
        advice="give its URL: postgresql://user:password@host/database",
    )

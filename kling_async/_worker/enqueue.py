"""Enqueueing: write jobs into a shared ledger for workers to run."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from kling_async._clock import SystemClock
from kling_async._core.content import Content, Identity, possible_digests, recalled
from kling_async._core.job_key import checked_batch, checked_key, is_derived
from kling_async._core.signed_urls import parameter_names
from kling_async._session.batch import Jobs, iterate
from kling_async._session.chains import pairs_of
from kling_async._session.keys import Digests, KeyAssigner, read_content
from kling_async._session.seen import Found
from kling_async.errors import ConfigurationError, InvalidJobError, Problem
from kling_async.ledger import SharedLedger, open_ledger
from kling_async.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from kling_async._core.job import Job
    from kling_async._core.seen import Seen
    from kling_async.ledger import Ledger
    from kling_async.ledger.postgres import PostgresLedger

Portion: TypeAlias = list[tuple[str, Content, str]]
"""Key, content and model of some jobs."""

MAX_JOBS_PER_TRANSACTION = 2_000
"""Greatest number of jobs written in one transaction."""
ANALYZE_AFTER_JOBS = 1_000
"""Least number of new jobs after which the statistics of the tables are updated."""


async def enqueue(
    ledger: PostgresLedger,
    jobs: Jobs,
    *,
    batch: str = "",
    seen: Seen = "stop",
    ignored_parameters: Collection[str] | None = None,
) -> int:
    """Write jobs into a shared ledger for workers to run. Jobs that are there already stay as they are.

    Args:
        ledger: The shared ledger, open.
        jobs: The jobs, as for `KlingSession.batch`. Images are URLs, or files that workers can read by the same path.
            A job that continues another is claimed once that one has a video, whichever worker made it.
        batch: Name of the batch.
        seen: What to do with jobs that another batch of the ledger has paid for, as in `KlingSession`. "stop" refuses
            a whole `Manifest` that has any, before anything is written, and any other input at the first portion that
            has; "reuse" and "pay" are for the worker that takes the job.
        ignored_parameters: Names of query parameters that are no part of a job's identity, as in `KlingSession`.

    Returns:
        Number of new jobs.

    Raises:
        AlreadyPaidError: Another batch has paid for jobs.
        ConfigurationError: The batch ignores other parameters.
        InvalidJobError: An image cannot be read or is given as bytes, a key is no text or whole number, or two jobs
            have the same key.
        KeyReusedError: The ledger has another job with one of the keys.
        LedgerError: The ledger cannot be written.
    """
    batch = checked_batch(batch)
    jobs, _ = pairs_of(jobs)
    new = 0
    identity = await ledger.identity(batch, ignored=parameter_names(ignored_parameters))
    async for portion in new_portions(ledger, jobs, batch=batch, identity=identity, seen=seen):
        new += len(await ledger.enqueue(batch, portion, at=SystemClock().now(), seen=of_row(seen)))
    if new >= ANALYZE_AFTER_JOBS:
        await ledger.analyze()
    return new


def of_row(seen: Seen) -> Seen | None:
    """Return the setting to record with jobs; "stop" looks when they are enqueued, and leaves the rest to workers."""
    return None if seen == "stop" else seen


async def new_portions(
    ledger: PostgresLedger, jobs: Jobs, *, batch: str, identity: Identity, seen: Seen
) -> AsyncGenerator[Portion]:
    """Yield the portions of an input that may be written.

    Args:
        ledger: The shared ledger, open.
        jobs: The jobs, as for `KlingSession.batch`.
        batch: Name of the batch.
        identity: Identity of the batch.
        seen: As in `enqueue`.

    Raises:
        AlreadyPaidError: Another batch has paid for jobs, and they are not to be paid for again.
        InvalidJobError: An image cannot be read or is given as bytes, or two jobs have the same key.
    """
    if seen == "stop" and isinstance(jobs, Manifest):
        found = Found(batch)
        async for portion in portions(jobs, identity=identity):
            found = await _with_paid(ledger, portion, found)
        if found.jobs:
            raise found.error()
    async for portion in portions(jobs, identity=identity):
        if seen == "stop":
            found = await _with_paid(ledger, portion, Found(batch))
            if found.jobs:
                raise found.error()
        yield portion


async def _with_paid(ledger: PostgresLedger, portion: Portion, found: Found) -> Found:
    """Add those jobs of a portion that other batches have paid for."""
    ignored = await ledger.ignored_parameters()
    wanted = [(key, possible_digests(content, ignored), is_derived(key, content.digest)) for key, content, _ in portion]
    paid = await ledger.paid_among(found.batch, wanted)
    for key, content, _ in portion:
        if key in paid:
            found = found.with_job(recalled(content, {}), paid[key])
    return found


async def portions(jobs: Jobs, *, identity: Identity) -> AsyncGenerator[Portion]:
    """Yield key, content and model of jobs, in portions for one transaction each.

    Args:
        jobs: The jobs, as for `KlingSession.batch`.
        identity: Identity of their batch.

    Raises:
        InvalidJobError: An image cannot be read or is given as bytes, or two jobs have the same key.
    """
    portion: Portion = []
    keys, digests = KeyAssigner(), Digests(getattr(jobs, "continued", None))
    position = 0
    async for item in iterate(jobs):
        given, job = item if isinstance(item, tuple) else (None, item)
        key = None if given is None else checked_key(given, position=position)
        _refuse_bytes(job)
        content = await read_content(job, identity=identity, digest_of=digests.of)
        assigned = keys.assign(key, content, position)
        if assigned.duplicate is not None:
            assigned.duplicate.job = job
            raise assigned.duplicate
        digests.add(assigned.key, content)
        portion.append((assigned.key, content, job.model))
        position += 1
        if len(portion) == MAX_JOBS_PER_TRANSACTION:
            yield portion
            portion = []
    if portion:
        yield portion


def _refuse_bytes(job: Job) -> None:
    """Raise if a worker could not read a file of the job.

    Raises:
        InvalidJobError: A file is given as bytes.
    """
    expected = "expected a URL or a file, got bytes, which the ledger does not keep"
    problems = [Problem(place, expected) for place, file in job.files.items() if isinstance(file, (bytes, str))]
    if problems:
        raise InvalidJobError(problems, job=job)


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

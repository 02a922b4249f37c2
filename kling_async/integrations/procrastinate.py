"""Jobs of a Procrastinate application: deferred with their ledger rows in one transaction, made once whatever dies.

A queue runs a task again when its worker died, and cannot know what that had paid for. The ledger does: a job that is
run again is followed, or settled, and not sent twice. Needs the extra `procrastinate`; the ledger lies in the
application's own database.

```python
ledger = PostgresLedger("postgresql://user@host/database")
kling = KlingSession(level="silver", ledger=ledger)
tasks = install(app, ledger, kling, save_to="videos")
async with app.open_async(), kling:
    await app.run_worker_async(queues=["kling"], concurrency=300)
```
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import attrs
import procrastinate
from procrastinate import exceptions, jobs, tasks

from kling_async._worker.enqueue import ANALYZE_AFTER_JOBS, portions
from kling_async._worker.worker import Worker
from kling_async.errors import ConfigurationError
from kling_async.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    import os

    from kling_async._core.states import Row
    from kling_async._session.batch import Jobs
    from kling_async._session.session import KlingSession

__all__ = ["KlingTasks", "install"]

TASK = "kling_async.make"
SWEEP = "kling_async.sweep"


@attrs.frozen
class KlingTasks:
    """What an application does with jobs. Made by `install`.

    Attributes:
        app: The application.
        ledger: Where the jobs are; open it in processes that only enqueue and ask.
        task: The task that makes one job: `batch` and `key` are its arguments.
    """

    app: procrastinate.App
    ledger: PostgresLedger
    task: tasks.Task[Any, Any, Any]

    async def enqueue(self, jobs: Jobs, *, batch: str = "") -> int:
        """Write jobs into the ledger and the queue, each portion of 2,000 in one transaction.

        Args:
            jobs: As a batch takes them. Their images are URLs, or files that the workers find under the same path.
            batch: The batch's name.

        Returns:
            How many were new; the others are left as they are.

        Raises:
            InvalidJobError: An image cannot be read, or is given as bytes.
            KeyReusedError: A key names a job with other content.
            LedgerError: They cannot be written.
        """
        connector = self.app.connector
        if not isinstance(connector, procrastinate.PsycopgConnector):
            raise ConfigurationError("procrastinate: the application needs a PsycopgConnector to share a transaction")
        count = 0
        async with connector.pool.connection() as connection, connection.transaction():
            identity = await self.ledger.identity(batch, connection=connection)
        async for some in portions(jobs, identity=identity):
            async with connector.pool.connection() as connection, connection.transaction():
                new = await self.ledger.enqueue(batch, some, at=time.time(), connection=connection)
                if new:
                    deferrer = self.task.configure(connection=connection)
                    await deferrer.batch_defer_async(*[_named(batch, key) for key in new])
            count += len(new)
        if count >= ANALYZE_AFTER_JOBS:
            # Without it the queue makes its plans for the table as it was, and hands nothing out for minutes.
            await connector.execute_query_async("ANALYZE procrastinate_jobs, kling_job, kling_content")
        return count

    async def outcome(self, key: str, *, batch: str = "") -> Row:
        """The row of a job when it has ended, whoever works on it. Wrap it in a timeout.

        Raises:
            LedgerError: There is no such job.
        """
        return await self.ledger.outcome(batch, key)


def _named(batch: str, key: str) -> dict[str, Any]:
    return {"batch": batch, "key": key}


@attrs.define
class _Again(procrastinate.BaseRetryStrategy):
    """Who was sent away by a shutdown is run again at once, everything else in a while."""

    seconds: float

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> procrastinate.RetryDecision | None:
        del job
        away = isinstance(exception, (asyncio.CancelledError, exceptions.JobAborted))
        return procrastinate.RetryDecision(retry_in={"seconds": 0 if away else round(self.seconds)})


def install(
    app: procrastinate.App,
    ledger: PostgresLedger,
    kling: KlingSession | None = None,
    *,
    save_to: str | os.PathLike[str] | None = None,
    queue: str = "kling",
    again: float = 60.0,
    stalled_after: float = 30.0,
    sweep: str = "* * * * *",
) -> KlingTasks:
    """Register the task that makes a job, and the sweep that runs again what a dead worker left.

    Args:
        app: The application.
        ledger: A ledger in the application's database.
        kling: A session over that ledger, which is open while workers run; None in processes that only enqueue and ask.
        save_to: Folder for the videos; None saves nothing.
        queue: The name of the queue.
        again: Seconds until a job is run again that could not be sent, settled or saved.
        stalled_after: Seconds without a sign of life after which a worker is dead.
        sweep: When to look for those, as a cron expression.
    """
    worker = None if kling is None else Worker(kling, save_to=save_to, again=again)

    @app.task(name=TASK, queue=queue, retry=_Again(again))
    async def make(*, batch: str, key: str) -> None:
        if worker is None:
            raise ConfigurationError("procrastinate: install() was given no session, so that no job is made here")
        error = await worker.run_one(batch, key)
        if error is not None:
            raise error

    @app.periodic(cron=sweep)
    @app.task(name=SWEEP, queue=queue, queueing_lock=SWEEP, pass_context=False)
    async def look(timestamp: int) -> None:
        del timestamp
        stalled = await app.job_manager.get_stalled_jobs(queue=queue, seconds_since_heartbeat=stalled_after)
        for job in stalled:
            if job.task_name == TASK:
                await app.job_manager.retry_job(job)
            else:
                await app.job_manager.finish_job(job, jobs.Status.FAILED, delete_job=True)

    return KlingTasks(app, ledger, make)

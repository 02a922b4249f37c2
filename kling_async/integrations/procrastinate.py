"""Jobs of a Procrastinate application: enqueued with their ledger rows in one transaction, paid once despite crashes.

A queue repeats a task when its worker dies, without knowing what that worker had paid for. The ledger knows: a repeated
job is watched or settled instead of sent twice. Needs the extra `procrastinate`; the ledger is in the application's own
database.

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

from kling_async._core.signed_urls import parameter_names
from kling_async._worker.enqueue import ANALYZE_AFTER_JOBS, new_portions, of_row
from kling_async._worker.worker import Worker
from kling_async.errors import ConfigurationError
from kling_async.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from kling_async._core.seen import Seen
    from kling_async._core.states import Row
    from kling_async._session.batch import Jobs
    from kling_async._session.session import KlingSession

__all__ = ["KlingTasks", "install"]

MAKE_TASK_NAME = "kling_async.make"
SWEEP_TASK_NAME = "kling_async.sweep"


@attrs.frozen
class KlingTasks:
    """Access to jobs for an application. Made by `install`.

    Attributes:
        app: The application.
        ledger: Ledger of the jobs; open it in processes that only enqueue and wait for outcomes.
        task: Task that runs one job; its arguments are `batch` and `key`.
    """

    app: procrastinate.App
    ledger: PostgresLedger
    task: tasks.Task[Any, Any, Any]

    async def enqueue(
        self,
        jobs: Jobs,
        *,
        batch: str = "",
        seen: Seen = "stop",
        ignored_parameters: Collection[str] | None = None,
    ) -> int:
        """Write jobs to the ledger and the queue, 2,000 per transaction.

        Args:
            jobs: Jobs as a batch takes them. Images are URLs, or files that the workers find under the same path.
            batch: The batch's name.
            seen: What to do with jobs that another batch of the ledger has paid for, as in `kling_async.enqueue`.
            ignored_parameters: Names of query parameters that are no part of a job's identity, as in `KlingSession`.

        Returns:
            Number of new jobs; existing ones are left unchanged.

        Raises:
            AlreadyPaidError: Another batch has paid for jobs.
            ConfigurationError: The batch ignores other parameters, or the application shares no transactions.
            InvalidJobError: An image cannot be read, or is given as bytes.
            KeyReusedError: A key names a job with other content.
            LedgerError: They cannot be written.
        """
        self.ledger.check_loop()
        connector = self.app.connector
        if not isinstance(connector, procrastinate.PsycopgConnector):
            raise ConfigurationError("procrastinate: the application needs a PsycopgConnector to share a transaction")
        count = 0
        async with connector.pool.connection() as connection, connection.transaction():
            ignored = parameter_names(ignored_parameters)
            identity = await self.ledger.identity(batch, ignored=ignored, connection=connection)
        async for some in new_portions(self.ledger, jobs, batch=batch, identity=identity, seen=seen):
            async with connector.pool.connection() as connection, connection.transaction():
                new = await self.ledger.enqueue(batch, some, at=time.time(), seen=of_row(seen), connection=connection)
                if new:
                    deferrer = self.task.configure(connection=connection)
                    await deferrer.batch_defer_async(*[_arguments(batch, key) for key in new])
            count += len(new)
        if count >= ANALYZE_AFTER_JOBS:
            # Without new statistics, PostgreSQL plans for the old table and the queue delivers nothing for minutes.
            await connector.execute_query_async("ANALYZE procrastinate_jobs, kling_job, kling_content")
        return count

    async def outcome(self, key: str, *, batch: str = "") -> Row:
        """Wait until a job has ended, in whichever process, and return its row. Wrap the call in a timeout.

        Raises:
            LedgerError: There is no such job.
        """
        return await self.ledger.outcome(batch, key)


def _arguments(batch: str, key: str) -> dict[str, Any]:
    return {"batch": batch, "key": key}


@attrs.define
class _Retry(procrastinate.BaseRetryStrategy):
    """Retry strategy: at once after a shutdown, after `seconds` otherwise."""

    seconds: float

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> procrastinate.RetryDecision | None:
        del job
        shutdown = isinstance(exception, (asyncio.CancelledError, exceptions.JobAborted))
        return procrastinate.RetryDecision(retry_in={"seconds": 0 if shutdown else round(self.seconds)})


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
    """Register the task that runs a job, and a periodic task that repeats jobs of dead workers.

    Args:
        app: The application.
        ledger: Ledger in the application's database.
        kling: Session over that ledger, open while workers run; None in processes that only enqueue and wait.
        save_to: Folder for the videos; None to save none.
        queue: Name of the queue.
        again: Seconds until the retry of a job that could not be sent, settled or saved.
        stalled_after: Seconds without a heartbeat after which a worker counts as dead.
        sweep: Schedule of the search for dead workers, as a cron expression.
    """
    worker = None if kling is None else Worker(kling, save_to=save_to, again=again)

    @app.task(name=MAKE_TASK_NAME, queue=queue, retry=_Retry(again))
    async def make(*, batch: str, key: str) -> None:
        if worker is None:
            raise ConfigurationError(
                "procrastinate: install() got no session (kling=None), so this process cannot run jobs"
            )
        error = await worker.run_one(batch, key)
        if error is not None:
            raise error

    @app.periodic(cron=sweep)
    @app.task(name=SWEEP_TASK_NAME, queue=queue, queueing_lock=SWEEP_TASK_NAME, pass_context=False)
    async def sweep_stalled(timestamp: int) -> None:
        del timestamp
        stalled = await app.job_manager.get_stalled_jobs(queue=queue, seconds_since_heartbeat=stalled_after)
        for job in stalled:
            if job.task_name == MAKE_TASK_NAME:
                await app.job_manager.retry_job(job)
            else:
                await app.job_manager.finish_job(job, jobs.Status.FAILED, delete_job=True)

    return KlingTasks(app, ledger, make)

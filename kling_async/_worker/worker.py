"""Workers: processes that claim jobs from a shared ledger and run them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from kling_async._core.job_key import Key, checked_key
from kling_async._core.polling import DEADLINE_S
from kling_async._core.states import Row, State
from kling_async._log import log
from kling_async._session.job_run import JobRun
from kling_async._session.outcome import publish_finished, run_to_outcome
from kling_async._session.session import engine_of
from kling_async._submission.drain import Drain
from kling_async._tasks import is_cancelled
from kling_async.errors import (
    ConfigurationError,
    KlingError,
    LedgerError,
    SkippedError,
    SubmissionUncertainError,
)
from kling_async.ledger._recall import recall_one
from kling_async.storage import Outputs
from kling_async.storage.naming import folder_name

from .enqueue import shared_ledger

if TYPE_CHECKING:
    import os

    from kling_async._core.content import Content
    from kling_async._core.prediction import Outcome
    from kling_async._core.seen import Seen
    from kling_async._session.engine import SessionEngine
    from kling_async._session.session import KlingSession
    from kling_async.ledger.postgres import PostgresLedger

MAX_CLAIMED_AT_ONCE = 50
"""Greatest number of jobs that a worker claims in one transaction."""
MAX_CLAIMED_UNSENT = 64
"""Greatest number of jobs that a worker has claimed and not submitted. Other workers cannot claim them."""
IDLE_PAUSE_S = 0.1
"""Least number of seconds between two attempts to claim jobs after one that found none."""


class Worker:
    """Runs the jobs of a shared ledger, along with any number of other workers.

    It watches running predictions and settles submissions in doubt of earlier workers, and claims new jobs as the
    account's limits allow, which the ledger enforces for all workers together. Cancelling `run` stops submitting; when
    the session closes, running predictions are released to other workers.

    ```python
    async with KlingSession(ledger="postgresql://user@host/database") as kling:
        await Worker(kling, save_to="out/").run()
    ```

    Args:
        kling: An open session with a PostgreSQL ledger.
        save_to: Folder for the videos, which are named by their keys, in folders named by their batches. None saves
            nothing.
        deadline: Seconds from acceptance to wait for each prediction.
        seen: What to do with jobs that another batch of the ledger has paid for, as in `KlingSession`, unless `enqueue`
            was given. A job that "stop" refuses is rejected, and says so. Default: the session's.
        again: Seconds until a job that could not be sent, settled or saved is tried again.

    Attributes:
        finished: Number of jobs that ended here, successful or not.
        failed: Number of jobs that ended here without success.

    Raises:
        ConfigurationError: A number of seconds is not positive.
    """

    def __init__(
        self,
        kling: KlingSession,
        *,
        save_to: str | os.PathLike[str] | None = None,
        deadline: float = DEADLINE_S,
        seen: Seen | None = None,
        again: float = 60.0,
    ) -> None:
        for name, seconds in (("deadline", deadline), ("again", again)):
            if not seconds > 0:
                raise ConfigurationError(f"{name}: expected a positive number of seconds, got {seconds!r}")
        self.finished = 0
        self.failed = 0
        self._kling = kling
        self._save_to = None if save_to is None else Path(save_to)
        self._deadline = deadline
        self._seen: Seen | None = seen
        self._again = again
        self._runs: dict[tuple[str, str], JobRun | None] = {}
        self._in_doubt: set[tuple[str, str]] = set()
        self._drain = Drain()

    async def run(self) -> None:
        """Claim jobs and run them until cancelled.

        Raises:
            ConfigurationError: The session's ledger is not a shared one, or there is no such setting `seen`.
            KlingError: An account-wide error (API key, balance, budget) has stopped the worker. After an error about
                money, running predictions are waited for first.
        """
        engine = engine_of(self._kling)
        ledger = shared_ledger(engine.ledger)
        engine.seen(self._seen)
        async with anyio.create_task_group() as tasks:
            while self._drain.stopped is None:
                news = ledger.news
                claimed = await self._claim(engine, ledger)
                for row, content in claimed:
                    if (row.batch, row.key) in self._runs:
                        # Its lease was lost while it was running here, and it has not ended yet.
                        ledger.give_back(row.batch, row.key, again=self._again)
                        continue
                    self._runs[row.batch, row.key] = None
                    if row.state is State.UNCERTAIN:
                        self._in_doubt.add((row.batch, row.key))
                    tasks.start_soon(self._run_claimed, engine, ledger, row, content)
                if not claimed:
                    await engine.clock.sleep(IDLE_PAUSE_S)
                    await ledger.wait(news)
            if not self._drain.stopped.insufficient_funds:
                tasks.cancel_scope.cancel()
        if self._drain.stopped is not None:
            raise self._drain.stopped

    async def run_one(self, batch: str, key: Key) -> KlingError | None:
        """Run one job of the ledger, or wait for the worker that has claimed it. Safe to call again.

        Args:
            batch: Name of the batch.
            key: Key of the job.

        Returns:
            None if the job has ended, successful or not; else the error because of which to run it again later.

        Raises:
            InvalidJobError: The key is no text or whole number.
            LedgerError: There is no such job, or the ledger cannot be used.
        """
        engine = engine_of(self._kling)
        key = checked_key(key)
        found = await engine.ledger.find(batch, key)
        if found is None:
            raise LedgerError(
                f"the ledger has no job {key!r} in the batch {batch!r}", key=key, advice="enqueue it first"
            )
        if (batch, key) in self._runs:
            # The queue has mistaken this process for dead. Reporting the job as done would end its retries.
            return KlingError("the job is running in this process already", key=key, advice="run it again later")
        self._runs[batch, key] = None
        try:
            # Its own drain: an account-wide error ends only this call, and the queue runs the job again later.
            outcome = await self._run(engine, *found, drain=Drain())
        finally:
            del self._runs[batch, key]
        if outcome.error is None or outcome.error.permanent:
            return None
        found = await engine.ledger.find(batch, key)
        if found is not None and found[0].state.accepted and found[0].state.unsuccessful:
            return None
        return outcome.error

    async def _claim(self, engine: SessionEngine, ledger: PostgresLedger) -> list[tuple[Row, Content]]:
        """Claim as many jobs as the worker may have unsent, and return them."""
        unsent = sum(
            name not in self._in_doubt and (run is None or run.prediction_id is None)
            for name, run in self._runs.items()
        )
        room = min(MAX_CLAIMED_AT_ONCE, MAX_CLAIMED_UNSENT - unsent)
        if room <= 0:
            return []
        try:
            return await ledger.take(
                room,
                engine.level,
                unsaved=self._save_to is not None,
                failures=engine.runner.retry_failed,
                senders=engine.senders.ids,
                callers=engine.callers.share,
            )
        except (LedgerError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            log.warning("no jobs can be claimed, trying again: %s", _text(error))
            return []

    async def _run_claimed(self, engine: SessionEngine, ledger: PostgresLedger, row: Row, content: Content) -> None:
        """Run a claimed job and release it. A cancelled one stays claimed until the session closes and releases it."""
        try:
            outcome = await self._run(engine, row, content, drain=self._drain)
        except (LedgerError, asyncio.CancelledError) as trouble:
            if isinstance(trouble, asyncio.CancelledError) and is_cancelled():
                raise
            log.warning("job %s cannot be started, trying again in %.0f s: %s", row.key, self._again, _text(trouble))
            ledger.give_back(row.batch, row.key, again=self._again)
            return
        finally:
            del self._runs[row.batch, row.key]
            self._in_doubt.discard((row.batch, row.key))
        error, prediction = outcome.error, outcome.prediction
        ledger.give_back(
            row.batch,
            row.key,
            running=prediction is not None and engine.watcher.seen(prediction.id) is not None,
            again=None if error is not None and error.permanent else self._later(engine, row, error),
            error=None if error is None else error.message,
        )

    def _later(self, engine: SessionEngine, row: Row, error: KlingError | None) -> float:
        """Return the seconds until a job is tried again; for one in doubt, the age of the doubt."""
        in_doubt = isinstance(error, SubmissionUncertainError) and row.state is State.UNCERTAIN
        return max(self._again, engine.clock.now() - row.updated_at if in_doubt else 0.0)

    async def _run(self, engine: SessionEngine, row: Row, content: Content, *, drain: Drain) -> Outcome:
        recalled = await recall_one(engine.ledger, engine.clock, row, content)
        run = self._runs[row.batch, row.key] = JobRun(
            job=recalled.job,
            key=row.key,
            batch=row.batch,
            deadline=self._deadline,
            seen=row.seen or engine.seen(self._seen),
            drain=drain,
            content=recalled.content,
            recalled=True,
        )
        save_to = None if self._save_to is None else Outputs.of(_folder(self._save_to, row.batch))
        outcome = await run_to_outcome(engine, run, save_to=save_to)
        if not isinstance(outcome.error, SkippedError):
            self.finished += 1
            self.failed += outcome.error is not None
        publish_finished(engine, run, outcome)
        return outcome


def _text(error: LedgerError | asyncio.CancelledError) -> str:
    return error.message if isinstance(error, LedgerError) else "the ledger raised CancelledError"


def _folder(where: Path, batch: str) -> Path:
    """Return the folder of a batch; no name of a batch leads out of `where`."""
    return where / folder_name(batch) if batch else where

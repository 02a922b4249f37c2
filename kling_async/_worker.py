"""Workers: processes that take jobs from a shared ledger, as many as there are, and make them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ._admission import Admission
from ._batch import KEY_LENGTH, Jobs, each
from ._clock import SystemClock
from ._core import events
from ._core.content import content_of
from ._core.errors import (
    BudgetExceededError,
    ConfigurationError,
    InsufficientBalanceError,
    InvalidJobError,
    KeyReusedError,
    KlingError,
    LedgerError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    PredictionError,
    Problem,
    RequestRejectedError,
    SkippedError,
    Spent,
    SubmissionUncertainError,
    UnsupportedError,
)
from ._core.prediction import Outcome, Prediction, SavedFile
from ._core.states import Row, State
from ._media import digest
from ._recall import Recalled, recall_one
from .ledger import SharedLedger, open_ledger
from .storage import target_path

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator

    from ._account import Account
    from ._core.content import Content
    from ._core.job import Job
    from ._session import KlingSession
    from .ledger import Ledger
    from .ledger.postgres import PostgresLedger

log = logging.getLogger("kling_async")

TAKEN_AT_ONCE = 50
"""Jobs that a worker takes from the ledger together."""
STARTING = 64
"""Jobs that a worker has taken and not submitted: what it takes away from others."""
BREATH = 0.1
"""Seconds between two looks when there was nothing to take."""
TOGETHER = 2_000
"""Jobs that are enqueued by one transaction."""
MANY = 1_000
"""New jobs after which the database looks at its tables."""

_FINAL = (
    InvalidJobError,
    KeyReusedError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    RequestRejectedError,
    UnsupportedError,
)
"""What will not change by asking again later."""
_MONEY = (BudgetExceededError, InsufficientBalanceError)
"""What keeps jobs from being sent, and none from being followed."""


class Worker:
    """Makes the jobs of a shared ledger, beside any number of others like it.

    What an earlier worker left running is followed, what it left in doubt is settled, and new jobs are taken as the
    account's slots and starts allow, which the ledger counts for all of them together. Cancelling `run` drains the
    worker: nothing more is submitted, and when the session closes, what runs is handed over.

    Args:
        kling: The session, over a shared ledger.
        save_to: Folder for the videos: named by their keys, in folders named by their batches. None saves nothing.
        deadline: Seconds from acceptance to wait for each.
        again: Seconds until a job is tried again that could not be sent, settled or saved.

    Attributes:
        finished: How many jobs it has brought to an end.
        failed: How many of them did not end well.
    """

    def __init__(
        self,
        kling: KlingSession,
        *,
        save_to: str | os.PathLike[str] | None = None,
        deadline: float = 1800.0,
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
        self._again = again
        self._starting: set[tuple[str, str]] = set()
        self._busy: set[tuple[str, str]] = set()
        self._admission = Admission()

    async def run(self) -> None:
        """Take jobs and make them, until this is cancelled.

        Raises:
            ConfigurationError: The session's ledger is not a shared one.
            KlingError: What concerns the whole account (key, balance, budget): nothing is taken any more. Where it is
                about money, what runs is followed to its end before.
        """
        account = self._kling.account
        ledger = shared(account.ledger)
        unsaved = self._save_to is not None
        async with anyio.create_task_group() as tasks:
            while self._admission.stopped is None:
                news = ledger.news
                room = min(TAKEN_AT_ONCE, STARTING - len(self._starting))
                taken: list[tuple[Row, Content]] = []
                try:
                    if room > 0:
                        taken = await ledger.take(room, account.level, unsaved=unsaved, failures=account.retry_failed)
                except LedgerError as error:
                    log.warning("no jobs can be taken: %s", error.message)
                for row, content in taken:
                    if (row.batch, row.key) in self._busy:
                        # Its lease was lost while it was under way here, and it is not at its end yet.
                        ledger.give_back(row.batch, row.key, again=self._again)
                        continue
                    self._busy.add((row.batch, row.key))
                    if row.state is not State.UNCERTAIN:
                        self._starting.add((row.batch, row.key))
                    tasks.start_soon(self._take_on, account, ledger, row, content)
                if not taken:
                    await account.clock.sleep(BREATH)
                    await ledger.hear(news)
            if not isinstance(self._admission.stopped, _MONEY):
                tasks.cancel_scope.cancel()
        if self._admission.stopped is not None:
            raise self._admission.stopped

    async def run_one(self, batch: str, key: str) -> KlingError | None:
        """Make one job of the ledger, or wait for the worker that has it in hand. Safe to repeat.

        Returns:
            Why it is to be run again later; None when it has ended, well or not.

        Raises:
            LedgerError: There is no such job.
        """
        account = self._kling.account
        found = await account.ledger.find(batch, key)
        if found is None:
            raise LedgerError(
                f"the ledger has no job {key!r} in the batch {batch!r}", key=key, advice="enqueue it first"
            )
        if (batch, key) in self._busy:
            # A queue took this process for dead. Who says that the job is done now would have nobody run it again.
            return KlingError(f"job {key} is under way in this process already", key=key)
        self._busy.add((batch, key))
        try:
            outcome = await self._make(account, found[0], await recall_one(account.ledger, account.clock, *found))
        finally:
            self._busy.discard((batch, key))
        if outcome.error is None or isinstance(outcome.error, _FINAL):
            return None
        found = await account.ledger.find(batch, key)
        return None if found is not None and found[0].state in {State.FAILED, State.EXPIRED} else outcome.error

    async def _take_on(self, account: Account, ledger: PostgresLedger, row: Row, content: Content) -> None:
        """One job that was taken, until it is given back; who is cancelled keeps it, and closing hands it over."""
        try:
            outcome = await self._make(account, row, await recall_one(account.ledger, account.clock, row, content))
        except LedgerError as trouble:
            log.warning("job %s cannot be begun: %s", row.key, trouble.message)
            ledger.give_back(row.batch, row.key, again=self._again)
            return
        finally:
            self._starting.discard((row.batch, row.key))
            self._busy.discard((row.batch, row.key))
        error, prediction = outcome.error, outcome.prediction
        if error is not None and error.account_wide and self._admission.stopped is None:
            self._admission.stopped = error
        ledger.give_back(
            row.batch,
            row.key,
            running=prediction is not None and account.watcher.seen(prediction.id) is not None,
            again=None if isinstance(error, _FINAL) else self._later(account, row, error),
            error=None if error is None else error.message,
        )

    def _later(self, account: Account, row: Row, error: KlingError | None) -> float:
        """Seconds until a job is tried again; what stays in doubt is looked for at every doubling of its age."""
        in_doubt = isinstance(error, SubmissionUncertainError) and row.state is State.UNCERTAIN
        return max(self._again, account.clock.now() - row.updated_at if in_doubt else 0.0)

    async def _make(self, account: Account, row: Row, recalled: Recalled) -> Outcome:
        prediction: Prediction | None = None
        saved: SavedFile | None = None
        error: KlingError | None = None

        def accepted(accepted_as: Prediction) -> None:
            nonlocal prediction
            prediction = accepted_as
            self._starting.discard((row.batch, row.key))

        job = recalled.job
        account.observe(events.Admitted, at=account.clock.now(), key=row.key, batch=row.batch, job=job)
        try:
            prediction = await account.make(
                job,
                key=row.key,
                batch=row.batch,
                deadline=self._deadline,
                content=recalled.content,
                recalled=True,
                accepted=accepted,
                admission=self._admission,
            )
            error = prediction.failure(job=job)
            if error is None and self._save_to is not None:
                saved = await account.saving.save(prediction, _folder(self._save_to, row.batch), batch=row.batch)
        except KlingError as caught:
            error = caught
            if isinstance(caught, PredictionError) and caught.prediction is not None:
                prediction = caught.prediction
        except Exception as bug:  # noqa: BLE001 -- one broken job must not end the others
            spent = Spent.YES if prediction else Spent.UNKNOWN
            error = KlingError(f"{type(bug).__name__}: {bug}", spent=spent, advice="this is a mistake in the program")
            error.__cause__ = bug
        skipped = isinstance(error, SkippedError)
        self.finished += not skipped
        self.failed += error is not None and not skipped
        cost = job.price(account.provider.name).usd if prediction is not None else None
        outcome = Outcome(job=job, key=row.key, index=0, prediction=prediction, error=error, saved=saved, cost=cost)
        account.observe(events.Finished, at=account.clock.now(), key=row.key, batch=row.batch, outcome=outcome)
        return outcome


async def enqueue(ledger: PostgresLedger, jobs: Jobs, *, batch: str = "") -> int:
    """Write jobs down for workers to take; those that are there already are left as they are.

    Args:
        ledger: The shared ledger, open.
        jobs: As a batch takes them. Their images are URLs, or files that the workers find under the same path.
        batch: The batch's name.

    Returns:
        How many were new.

    Raises:
        InvalidJobError: An image cannot be read, or is given as bytes.
        KeyReusedError: A key names a job with other content.
        LedgerError: They cannot be written.
    """
    new = 0
    async for some in portions(jobs):
        new += len(await ledger.enqueue(batch, some, at=SystemClock().now()))
    if new >= MANY:
        await ledger.analyze()
    return new


async def portions(jobs: Jobs) -> AsyncGenerator[list[tuple[str, Content, str]]]:
    """Key, content and model of jobs, as many at once as one transaction takes.

    Raises:
        InvalidJobError: An image cannot be read, or is given as bytes, or a key comes twice.
    """
    some: list[tuple[str, Content, str]] = []
    times: dict[int, int] = {}
    async for item in each(jobs):
        given, job = item if isinstance(item, tuple) else (None, item)
        content = await lasting(job)
        name = given or content.digest[:KEY_LENGTH]
        occurrence = times[hash(name)] = times.get(hash(name), 0) + 1
        if given is not None and occurrence > 1:
            raise InvalidJobError([Problem("key", f"{given!r} names an earlier job of this batch already")], job=job)
        some.append((name if occurrence == 1 else f"{name}-{occurrence}", content, job.model))
        if len(some) == TOGETHER:
            yield some
            some = []
    if some:
        yield some


async def lasting(job: Job) -> Content:
    """A job's content, of which another process can make it again.

    Raises:
        InvalidJobError: An image cannot be read, or is given as bytes.
    """
    for field in ("image", "end_image"):
        image = getattr(job, field)
        if (
            image is not None
            and not isinstance(image, Path)
            and (isinstance(image, bytes) or image.startswith("data:"))
        ):
            raise InvalidJobError(
                [Problem(field, "is given as bytes, which are in no ledger: give a URL or a file")], job=job
            )
    digests = {image: await digest(image) for image in (job.image, job.end_image) if image is not None}
    return content_of(job, digests.__getitem__)


def shared(ledger: Ledger | str) -> PostgresLedger:
    """The ledger as one that workers share.

    Raises:
        ConfigurationError: It is none.
    """
    made = open_ledger(ledger)
    if isinstance(made, SharedLedger):
        # Imported here: it needs an extra, and it is there.
        from .ledger.postgres import PostgresLedger  # noqa: PLC0415 -- see above

        if isinstance(made, PostgresLedger):
            return made
    raise ConfigurationError(
        "ledger: workers share a PostgreSQL ledger", advice="name one: postgresql://user:password@host/database"
    )


def _folder(where: Path, batch: str) -> Path:
    """The folder of a batch, whose name cannot lead out of it."""
    return target_path(where, batch).with_suffix("") if batch else where

"""Save the videos of a session, and record where they are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio
import attrs

from kling_async._core.states import Entry, Row, State
from kling_async.errors import KlingError, NoOutputError, OutputGoneError, StorageError
from kling_async.events import Saved
from kling_async.ledger._recall import RETENTION_S, prediction_of

if TYPE_CHECKING:
    import os

    from kling_async import storage
    from kling_async._core.clock import Clock
    from kling_async._core.prediction import Prediction, SavedFile
    from kling_async._core.transport import Transport
    from kling_async._observers import Observers
    from kling_async.ledger import Ledger

URGENT_BEFORE_DELETION_S = 86_400.0
"""A video that the service deletes in fewer seconds is saved before any other."""


class Saver:
    """Downloads the outputs of a session, saves them, and records their locations in the ledger.

    Args:
        transport: Sends the downloads.
        ledger: Has the jobs of predictions, and records locations.
        clock: The session's clock.
        observe: Publishes events.
        at_once: Greatest number of outputs saved at once.
    """

    def __init__(self, *, transport: Transport, ledger: Ledger, clock: Clock, observe: Observers, at_once: int) -> None:
        self._transport = transport
        self._ledger = ledger
        self._clock = clock
        self._observe = observe
        self._limiter = anyio.CapacityLimiter(at_once)

    async def save(
        self, prediction: Prediction, where: str | os.PathLike[str] | storage.Outputs, *, batch: str = ""
    ) -> SavedFile:
        """Save the output of a prediction, unless the ledger has it as saved and it is unchanged there.

        Args:
            prediction: The completed prediction.
            where: A path, a template, the URL of an object store, or an `Outputs`.
            batch: Name of the batch, if the ledger has no job of the prediction.

        Raises:
            ConfigurationError: `where` is none of these.
            NoOutputError: The prediction has no output.
            StorageError: The output could not be downloaded, checked or written.
            LedgerError: The ledger cannot be read.
        """
        from kling_async import storage  # noqa: PLC0415 -- many sessions save nothing

        outputs = storage.Outputs.of(where)
        name = prediction.key or prediction.id
        if prediction.output is None:
            raise NoOutputError(
                f"the prediction is {prediction.raw_status} and has no output to save",
                prediction=prediction,
                key=prediction.key,
            )
        row = await self._ledger.owner(prediction.id)
        created_at = row.submitted_at if row else None
        if created_at is None and prediction.created_at is not None:
            created_at = prediction.created_at.timestamp()
        target = outputs.target(
            storage.Fields(
                key=name,
                id=prediction.id,
                model=prediction.model or (row.model if row else ""),
                batch=row.batch if row else batch,
                at=self._clock.now() if created_at is None else created_at,
            )
        )
        if row is not None and row.state is State.DOWNLOADED:
            kept = await target.kept(row.path or "", row.bytes or 0, row.sha256 or "")
            if kept is not None:
                return kept
        try:
            async with self._limiter:
                since = self._clock.now()
                saved = await storage.save_output(
                    self._transport, prediction.output, target, self._clock, created_at=created_at
                )
        except StorageError as error:
            error.prediction_id, error.key = prediction.id, prediction.key
            if isinstance(error, OutputGoneError) and row is not None and row.state.unsaved:
                self._ledger.note(Entry(batch=row.batch, key=row.key, state=State.EXPIRED, at=self._clock.now()))
            raise
        self._observe(Saved, at=self._clock.now(), key=name, batch=row.batch if row else batch, file=saved, since=since)
        if row is not None:
            self._note(row, prediction, saved)
        return saved

    async def save_expiring(self, batch: str, where: storage.Outputs) -> None:
        """Save the unsaved videos of a batch that the service is about to delete, those that expire soonest first.

        Failures are ignored here: each job saves its video again in its turn and reports the failure.

        Args:
            batch: Name of the batch.
            where: Where to save them.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        urgent = [key for key in await self._ledger.keys(batch, [State.COMPLETED]) if await self._expires(batch, key)]

        async def save(key: str) -> None:
            found = await self._ledger.find(batch, key)
            if found is not None:
                with contextlib.suppress(KlingError):
                    await self.save(prediction_of(found[0]), where, batch=batch)

        async with anyio.create_task_group() as tasks:
            for key in urgent:
                tasks.start_soon(save, key)

    async def _expires(self, batch: str, key: str) -> bool:
        """Return whether the service is about to delete a job's video."""
        found = await self._ledger.find(batch, key)
        if found is None:
            return False
        row, _ = found
        return self._clock.now() - (row.submitted_at or row.updated_at) > RETENTION_S - URGENT_BEFORE_DELETION_S

    def _note(self, row: Row, prediction: Prediction, saved: SavedFile) -> None:
        """Record where the video of a job was saved."""
        step = Entry(
            batch=row.batch, key=row.key, state=State.COMPLETED, at=self._clock.now(), output=prediction.output
        )
        if row.state is not State.COMPLETED:
            self._ledger.note(step)
        self._ledger.note(
            attrs.evolve(
                step,
                state=State.DOWNLOADED,
                path=saved.address,
                bytes=saved.bytes,
                sha256=saved.sha256,
            )
        )

"""What was made, on its way to where it is kept."""

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

URGENT = 86_400.0
"""Seconds before its deletion from which a video is saved before anything else."""


class Saver:
    """Downloads and keeps the outputs of a session, and writes down where they are.

    Args:
        transport: Brings them.
        ledger: Knows whose they are, and is told.
        clock: The session's clock.
        observe: Is told what was saved.
        at_once: How many are saved at the same time.
    """

    def __init__(self, *, transport: Transport, ledger: Ledger, clock: Clock, observe: Observers, at_once: int) -> None:
        self._transport = transport
        self._ledger = ledger
        self._clock = clock
        self._observe = observe
        self._line = anyio.CapacityLimiter(at_once)

    async def save(
        self, prediction: Prediction, where: str | os.PathLike[str] | storage.Outputs, *, batch: str = ""
    ) -> SavedFile:
        """The video on the disk, or in an object store.

        Raises:
            ConfigurationError: `where` cannot be understood.
            NoOutputError: There is no output.
            StorageError: It could not be downloaded, checked or written.
        """
        from kling_async import storage  # noqa: PLC0415 -- many sessions save nothing

        outputs = storage.Outputs.of(where)
        name = prediction.key or prediction.id
        if prediction.output is None:
            raise NoOutputError("there is no output to save", prediction=prediction, key=prediction.key)
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
            async with self._line:
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

    async def rescue(self, batch: str, where: storage.Outputs) -> None:
        """Save what a batch has made and not saved, and the service is about to delete: soonest first.

        What cannot be saved now is told when its job has its turn.
        """
        urgent = [key for key in await self._ledger.keys(batch, [State.COMPLETED]) if await self._expires(batch, key)]

        async def one(key: str) -> None:
            found = await self._ledger.find(batch, key)
            if found is not None:
                with contextlib.suppress(KlingError):
                    await self.save(prediction_of(found[0]), where, batch=batch)

        async with anyio.create_task_group() as tasks:
            for key in urgent:
                tasks.start_soon(one, key)

    async def _expires(self, batch: str, key: str) -> bool:
        found = await self._ledger.find(batch, key)
        if found is None:
            return False
        row, _ = found
        return self._clock.now() - (row.submitted_at or row.updated_at) > RETENTION_S - URGENT

    def _note(self, row: Row, prediction: Prediction, saved: SavedFile) -> None:
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

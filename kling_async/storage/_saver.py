"""Save the videos of a session, and record where they are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import attrs

from kling_async._core.job_key import is_derived
from kling_async._core.picture_names import name_in_content
from kling_async._core.states import Entry, Row, State
from kling_async._log import log
from kling_async.errors import LedgerError, NoOutputError, OutputGoneError, StorageError
from kling_async.events import Saved
from kling_async.ledger._recall import RETENTION_S, prediction_of, saved_file

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator

    from kling_async import storage
    from kling_async._core.clock import Clock
    from kling_async._core.content import Content
    from kling_async._core.prediction import Prediction, SavedFile
    from kling_async._core.transport import Transport
    from kling_async._observers import Observers
    from kling_async._turns import Turns
    from kling_async.ledger import Ledger

URGENT_BEFORE_DELETION_S = 86_400.0
"""A video that the service deletes in fewer seconds is saved before any other."""
URGENT_DEADLINE_S = 60.0
"""Seconds without progress after which such a video no longer delays the others; it is saved again in its turn."""


@attrs.frozen
class Name:
    """Values for the name of an output that its prediction does not have.

    Attributes:
        picture: Name of the job's picture if its key was derived, empty if it has none; else None.
        alone: Whether the name of the picture may stand without the key.
        batch: Name of the batch, if the ledger has no row.
        created_at: Time of acceptance in seconds since the epoch; None if unknown.
    """

    picture: str | None
    alone: bool
    batch: str
    created_at: float | None


def _picture(key: str | None, content: Content | None) -> str | None:
    """Return the name of a job's picture if its key was derived from its content, empty without a name; else None."""
    return None if key is None or content is None or not is_derived(key, content.digest) else name_in_content(content)


class Saver:
    """Downloads the outputs of a session, saves them, and records their locations in the ledger.

    The ledger is read and written best-effort: what is paid for is saved even where the ledger's disk is full.

    Args:
        transport: Sends the downloads.
        ledger: Has the jobs of predictions, and records locations.
        clock: The session's clock.
        observe: Publishes events.
        turns: Limit on the outputs that are saved at once.
        max_bytes: Greatest size in bytes of an output.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        ledger: Ledger,
        clock: Clock,
        observe: Observers,
        turns: Turns,
        max_bytes: int,
    ) -> None:
        self._transport = transport
        self._ledger = ledger
        self._clock = clock
        self._observe = observe
        self._turns = turns
        self._max_bytes = max_bytes
        self._saving: set[anyio.CancelScope] = set()
        self._closed = False

    def close(self) -> None:
        """End all saving, also what begins later: without a transport it would be tried again until its deadline."""
        self._closed = True
        for scope in self._saving:
            scope.cancel()

    async def save(
        self,
        prediction: Prediction,
        where: str | os.PathLike[str] | storage.Outputs,
        *,
        deadline: float,
        batch: str = "",
        content: Content | None = None,
        named_alone: bool = False,
    ) -> SavedFile:
        """Save the output of a prediction, unless the ledger has it as saved and it is unchanged there.

        Args:
            prediction: The completed prediction.
            where: A path, a template, the URL of an object store, or an `Outputs`.
            deadline: Seconds without progress after which the download is given up.
            batch: Name of the batch, if the ledger has no job of the prediction.
            content: Content of the job; None for the one in the ledger.
            named_alone: Whether the name of the job's picture may stand without the key.

        Raises:
            ConfigurationError: `where` is none of these.
            NoOutputError: The prediction has no output.
            StorageError: The output could not be downloaded, checked or written, or the session was closed.
        """
        from kling_async import storage  # noqa: PLC0415 -- many sessions save nothing

        outputs = storage.Outputs.of(where)
        row = await self._row(prediction)
        at = None if row is None else row.submitted_at
        if content is None and row is not None and is_derived(row.key, row.digest):
            content = await self._content(row)
        picture = _picture(prediction.key, content)
        name = Name(picture, alone=named_alone, batch=batch, created_at=at)
        return await self._save(prediction, outputs, row, name=name, deadline=deadline)

    async def save_reused(
        self,
        prediction: Prediction,
        where: storage.Outputs | None,
        *,
        deadline: float,
        batch: str,
        content: Content | None = None,
        named_alone: bool = False,
    ) -> SavedFile | None:
        """Return the saved video of another batch's job that is handed out for a job; save it if there is no file.

        Args:
            prediction: The completed prediction, with the key of the job that it is handed out for.
            where: Where to save the video; None saves nothing.
            deadline: Seconds without progress after which the download is given up.
            batch: Name of the batch of the job that it is handed out for.
            content: Content of that job.
            named_alone: Whether the name of its picture may stand without the key.

        Raises:
            StorageError: The output could not be downloaded, checked or written.
            LedgerError: The ledger cannot be read.
        """
        found = await self._ledger.find(batch, prediction.key or "")
        own, other = None if found is None else found[0], await self._ledger.owner(prediction.id)
        for each in (own, other):
            saved = None if each is None else await anyio.to_thread.run_sync(saved_file, each)
            if saved is not None:
                return saved
        if where is None:
            return None
        at = None if other is None else other.submitted_at
        name = Name(_picture(prediction.key, content), alone=named_alone, batch=batch, created_at=at)
        return await self._save(prediction, where, own, name=name, deadline=deadline)

    async def _save(
        self,
        prediction: Prediction,
        outputs: storage.Outputs,
        row: Row | None,
        *,
        name: Name,
        deadline: float,
    ) -> SavedFile:
        """Save the output of a prediction, and record in a row where it is.

        Args:
            prediction: The completed prediction.
            outputs: Where to save it.
            row: Row of the job; None if the ledger has none.
            name: Values for its name.
            deadline: Seconds without progress after which the download is given up.
        """
        from kling_async import storage  # noqa: PLC0415 -- many sessions save nothing

        key, batch, created_at = prediction.key or prediction.id, row.batch if row else name.batch, name.created_at
        if prediction.output is None:
            raise NoOutputError(
                f"the prediction is {prediction.raw_status} and has no output to save",
                prediction=prediction,
                key=prediction.key,
            )
        if created_at is None and prediction.created_at is not None:
            created_at = prediction.created_at.timestamp()
        fields = storage.Fields(
            key=key,
            id=prediction.id,
            model=prediction.model or (row.model if row else ""),
            batch=batch,
            at=self._clock.now() if created_at is None else created_at,
            suffix=storage.suffix_of(prediction.output),
            picture=name.picture,
            alone=name.alone,
        )
        target = outputs.target(fields)
        if row is not None and row.state is State.DOWNLOADED:
            kept = await target.kept(row.path or "", row.bytes or 0, row.sha256 or "")
            if kept is not None:
                return kept
        try:
            since = self._clock.now()
            async with self._until_closed(target.address):
                saved = await storage.save_output(
                    self._transport,
                    prediction.output,
                    target,
                    self._clock,
                    deadline=deadline,
                    turns=self._turns,
                    created_at=created_at,
                    max_bytes=self._max_bytes,
                )
        except StorageError as error:
            error.prediction_id, error.key = prediction.id, prediction.key
            if isinstance(error, OutputGoneError) and row is not None and row.state.unsaved:
                self._note(Entry(batch=row.batch, key=row.key, state=State.EXPIRED, at=self._clock.now()))
            raise
        self._observe(Saved, at=self._clock.now(), key=key, batch=batch, file=saved, since=since)
        if row is not None:
            self._note_saved(row, prediction, saved)
        return saved

    async def _content(self, row: Row) -> Content | None:
        """Return the content of a job in the ledger; None if it has none, or cannot be read."""
        with contextlib.suppress(LedgerError):
            found = await self._ledger.find(row.batch, row.key)
            if found is not None and found[1].text:
                return attrs.evolve(found[1], digest=row.digest)
        return None

    @contextlib.asynccontextmanager
    async def _until_closed(self, target: str) -> AsyncIterator[None]:
        """Cancel the body when the session is closed.

        Args:
            target: Target file or URL, for the error.

        Raises:
            StorageError: The session was closed meanwhile.
        """
        with anyio.CancelScope() as scope:
            self._saving.add(scope)
            if self._closed:
                scope.cancel()
            try:
                yield
            finally:
                self._saving.discard(scope)
        if scope.cancelled_caught:
            raise StorageError("the session was closed before the output was saved", target=target)

    async def save_expiring(self, batch: str, where: storage.Outputs) -> None:
        """Save the unsaved videos of a batch that the service is about to delete, those that expire soonest first.

        Failures are ignored here: each job saves its video again in its turn and reports the failure.

        Args:
            batch: Name of the batch.
            where: Where to save them.
        """
        urgent: list[str] = []
        with contextlib.suppress(LedgerError):
            urgent += [
                key for key in await self._ledger.keys(batch, [State.COMPLETED]) if await self._expires(batch, key)
            ]

        async def save(key: str) -> None:
            try:
                found = await self._ledger.find(batch, key)
                if found is not None:
                    await self.save(prediction_of(found[0]), where, batch=batch, deadline=URGENT_DEADLINE_S)
            except Exception as error:  # noqa: BLE001 -- one video ends neither the others nor the batch
                log.warning("job %s: its video, which expires soon, was not saved: %s", key, error)

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

    async def _row(self, prediction: Prediction) -> Row | None:
        """Return the row of the prediction's job; None if the ledger has none, or cannot be read."""
        try:
            return await self._ledger.owner(prediction.id)
        except LedgerError as error:
            log.warning("prediction %s is saved without its row in the ledger: %s", prediction.id, error.message)
            return None

    def _note_saved(self, row: Row, prediction: Prediction, saved: SavedFile) -> None:
        """Record where the video of a job was saved."""
        of_file: dict[str, Any] = {"path": saved.address, "bytes": saved.bytes, "sha256": saved.sha256}
        if row.state is State.REUSED:
            at, output = self._clock.now(), prediction.output
            self._note(Entry(batch=row.batch, key=row.key, state=State.REUSED, at=at, output=output, **of_file))
            return
        step = Entry(
            batch=row.batch, key=row.key, state=State.COMPLETED, at=self._clock.now(), output=prediction.output
        )
        if row.state is not State.COMPLETED:
            self._note(step)
        self._note(attrs.evolve(step, state=State.DOWNLOADED, **of_file))

    def _note(self, step: Entry) -> None:
        """Record a step best-effort."""
        try:
            self._ledger.note(step)
        except LedgerError as error:
            log.warning("job %s: %s cannot be recorded: %s", step.key, step.state.value, error.message)

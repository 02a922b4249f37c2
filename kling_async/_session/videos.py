"""Frames of videos for jobs that begin or end with them: of saved files, or of outputs that are downloaded once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from kling_async._core.clock import Clock
from kling_async._core.content import file_digests
from kling_async._core.prediction import Prediction
from kling_async._core.states import Row, State
from kling_async._core.transport import Transport
from kling_async._http.reads import ServiceReads
from kling_async._images.uploads import digest
from kling_async._turns import Turns
from kling_async.errors import (
    ConfigurationError,
    InvalidJobError,
    KlingError,
    NotFoundError,
    OutputGoneError,
    Problem,
    StorageError,
)
from kling_async.ledger import Ledger
from kling_async.ledger._recall import saved_file

from .link import Video

if TYPE_CHECKING:
    from kling_async._core.prediction import SavedFile
    from kling_async._core.video_frames import VideoFrame

    from .job_run import JobRun


def video_of(key: str, prediction: Prediction, saved: SavedFile | None, *, users: int = 1) -> Video | None:
    """Return the video of a job that has ended, also if it could not be saved; None if there is none.

    Args:
        key: Key of the job.
        prediction: Its prediction.
        saved: Where its output was saved; None if it was not.
        users: Number of jobs that may take frames of it.
    """
    if not prediction.status.ended or prediction.failure() is not None:
        return None
    path = saved.location if saved is not None and isinstance(saved.location, Path) else None
    at = None if prediction.created_at is None else prediction.created_at.timestamp()
    return Video(f"the job {key!r}", prediction.id, prediction.output, path, at, users)


async def video_of_row(ledger: Ledger, row: Row) -> Video | None:
    """Return the video of a job by its row; None while there is none."""
    if row.state is State.REUSED and not row.has_video:
        found = await ledger.owner(row.reused or "")
        row = found or row
    if not row.has_video:
        return None
    saved = await anyio.to_thread.run_sync(saved_file, row)
    path = saved.location if saved is not None and isinstance(saved.location, Path) else None
    return Video(f"the job {row.key!r}", row.reused or row.prediction_id or "", row.output, path, row.submitted_at)


def require_decoder() -> None:
    """Raise unless frames can be taken out of videos.

    Raises:
        ConfigurationError: PyAV is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise ConfigurationError(
            "a job begins or ends with a frame of a video, which takes PyAV, and it is not installed; nothing was sent",
            advice="install kling-async[film]",
        )


@attrs.define(kw_only=True)
class Frames:
    """Takes frames of videos for the jobs of a session.

    Attributes:
        transport: Sends downloads.
        ledger: Knows where videos were saved.
        clock: The session's clock.
        turns: Limit on the outputs that are downloaded at once.
        reads: Reads single predictions.
        max_bytes: Greatest size in bytes of an output.
    """

    transport: Transport
    ledger: Ledger
    clock: Clock
    turns: Turns
    reads: ServiceReads
    max_bytes: int

    async def take(self, run: JobRun, place: str, frame: VideoFrame) -> bytes:
        """Return a frame as a picture that is sent for a job.

        Args:
            run: The job. It may have the videos of its parents.
            place: Place of the frame in the job, for errors.
            frame: The frame.

        Raises:
            ConfigurationError: PyAV is not installed.
            InvalidJobError: The video is gone, or has no such frame.
            KlingError: The video could not be downloaded; nothing was sent.
        """
        require_decoder()
        if isinstance(frame.of, Path):
            expected = file_digests(run.content_read).get(place)
            if await digest(frame.of, field=f"{place}.of") != expected:
                raise _invalid(place, f"{frame.of} has changed since the job's key was made from it")
            return await _extract(place, frame, frame.of)
        shared = None if run.link is None else run.link.videos.get(frame.parent or "")
        video = shared or await self._find(run, place, frame)
        try:
            if video.path is None:
                # Another run may have saved it.
                row = await self.ledger.owner(video.id)
                known = None if row is None else await video_of_row(self.ledger, row)
                video.path, video.at = (None, video.at) if known is None else (known.path, known.at)
            file = await video.file(lambda video, folder: self._download(run, place, video, folder))
            return await _extract(place, frame, file)
        finally:
            if shared is None:
                await video.release()

    async def _find(self, run: JobRun, place: str, frame: VideoFrame) -> Video:
        """Return the video of a finished job or prediction as the ledger or the service knows it.

        Raises:
            InvalidJobError: There is none.
        """
        video: Video | None = None
        if isinstance(frame.of, Prediction):
            of = frame.of
            at = None if of.created_at is None else of.created_at.timestamp()
            return Video(f"the prediction {of.id}", of.id, of.output, None, at)
        found = await self.ledger.find(run.batch, frame.parent or "")
        video = None if found is None else await video_of_row(self.ledger, found[0])
        if video is None:
            if found is not None and found[0].state is State.EXPIRED:
                raise _gone(place, f"the job {frame.parent!r}")
            state = "is not in the ledger" if found is None else f"is {found[0].state.label}"
            raise KlingError(
                f"{place}: the job {frame.parent!r}, whose video it continues, has no video: it {state}; nothing was "
                "sent",
                advice="run the batch again: the job is sent once there is a video",
            )
        return video

    async def _download(self, run: JobRun, place: str, video: Video, folder: Path) -> Path:
        """Download a video into a folder, and return the file.

        Raises:
            InvalidJobError: It is gone.
            KlingError: It could not be downloaded.
        """
        from kling_async.storage import save_output, suffix_of  # noqa: PLC0415 -- many sessions save nothing

        url = video.url
        try:
            if url is None:
                url = (await self.reads.prediction(video.id)).output
            if url is None:
                raise _gone(place, video.of)
            target = folder / f"video{suffix_of(url)}"
            saved = await save_output(
                self.transport,
                url,
                target,
                self.clock,
                deadline=run.deadline,
                turns=self.turns,
                created_at=video.at,
                max_bytes=self.max_bytes,
            )
        except (OutputGoneError, NotFoundError) as error:
            raise _gone(place, video.of) from error
        except StorageError as error:
            raise KlingError(
                f"{place}: the video of {video.of}, with which it begins or ends, could not be downloaded: "
                f"{error.message}; nothing was sent",
                advice="run the batch again: nothing is paid for again",
            ) from error
        return saved.path


def _invalid(place: str, message: str) -> InvalidJobError:
    return InvalidJobError([Problem(place, message)])


def _gone(place: str, of: str) -> InvalidJobError:
    return _invalid(
        place,
        f"the video of {of} is neither saved nor at the service any more, so there is no frame of it to send",
    )


async def _extract(place: str, frame: VideoFrame, file: Path) -> bytes:
    """Return a frame of a file.

    Raises:
        ConfigurationError: PyAV is too old.
        InvalidJobError: There is none.
    """
    from kling_async.films import read_frame  # noqa: PLC0415 -- it needs an extra

    try:
        return await read_frame(file, frame.position)
    except ConfigurationError:
        raise
    except Exception as error:
        reason = error.message if isinstance(error, KlingError) else str(error)
        raise _invalid(place, f"no such frame can be taken of the video: {reason}") from error

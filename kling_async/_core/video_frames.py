"""Frames of videos as pictures of jobs: of another job of the batch, of a finished prediction, or of a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

import attrs

from kling_async.errors import Problem

from .job_key import Key, key_or_problem

if TYPE_CHECKING:
    from .prediction import Prediction  # noqa: TC004 -- predictions name jobs, and jobs name frames

Position: TypeAlias = 'Literal["first", "last"] | float'
"""Position of a frame in its video: the first, the last, or that shown at a number of seconds."""

_FILE: Final = "sha256:"
_JOB: Final = "job:"
_PREDICTION: Final = "prediction:"
_LAST: Final = "last_frame:"
_FIRST: Final = "first_frame:"
_AT: Final = "frame_at:"


@attrs.frozen
class VideoFrame(ABC):
    """A frame of a video, in place of a picture of a job. Base of `LastFrame`, `FirstFrame`, `FrameAt`.

    Attributes:
        of: The video: the key of another job of the same batch, a completed prediction, or a video file. A text or a
            number is always a key, never a file or a URL.
    """

    of: Key | Prediction | Path

    @property
    @abstractmethod
    def position(self) -> Position:
        """Position of the frame in the video."""

    @property
    def parent(self) -> str | None:
        """Key of the job whose video it is of; None if it is of a prediction or a file."""
        return None if isinstance(self.of, Path) or _is_prediction(self.of) else str(self.of)


@attrs.frozen
class LastFrame(VideoFrame):
    """The last frame of a video, with which the next clip begins.

    Attributes:
        of: The video: the key of another job of the same batch, a completed prediction, or a video file.
    """

    @property
    def position(self) -> Position:
        """Position of the frame in the video."""
        return "last"


@attrs.frozen
class FirstFrame(VideoFrame):
    """The first frame of a video.

    Attributes:
        of: The video: the key of another job of the same batch, a completed prediction, or a video file.
    """

    @property
    def position(self) -> Position:
        """Position of the frame in the video."""
        return "first"


@attrs.frozen
class FrameAt(VideoFrame):
    """The frame that a video shows at a moment.

    Attributes:
        of: The video: the key of another job of the same batch, a completed prediction, or a video file.
        seconds: Seconds from the beginning of the video.
    """

    seconds: float

    @property
    def position(self) -> Position:
        """Position of the frame in the video."""
        return float(self.seconds)


def _is_prediction(value: object) -> bool:
    # Imported here: predictions name jobs, and jobs name frames.
    from . import prediction  # noqa: PLC0415 -- see above

    return isinstance(value, prediction.Prediction)


def check_frame(field: str, frame: VideoFrame, problems: list[Problem]) -> VideoFrame:
    """Return a frame as a job keeps it, and append to `problems` if it is wrong. Files are not opened here.

    Args:
        field: Field of the job, such as `image` or `keyframes[0]`.
        frame: The frame as the caller passes it.
        problems: Receives the problems.
    """
    from . import prediction  # noqa: PLC0415 -- as above

    found = frame
    expected = "a key of the same batch, a completed Prediction or the Path of a video"
    if type(frame) not in _KINDS:
        problems.append(Problem(field, f"expected LastFrame, FirstFrame or FrameAt, got {type(frame).__name__}"))
    of = cast("object", frame.of)
    if isinstance(of, prediction.Prediction):
        if of.status is not prediction.Status.COMPLETED:
            problems.append(Problem(f"{field}.of", f"expected a completed prediction, got one that is {of.raw_status}"))
    elif not isinstance(of, Path):
        key = key_or_problem(of)
        if isinstance(key, Problem):
            got = f"got {type(of).__name__}" if not isinstance(of, (str, int)) else f"and the key {key.message}"
            problems.append(Problem(f"{field}.of", f"expected {expected}, {got}"))
        elif key != of:
            found = attrs.evolve(frame, of=key)
    if isinstance(frame, FrameAt) and (said := problem_of_seconds(frame.seconds)):
        problems.append(Problem(f"{field}.seconds", said))
    return found


def problem_of_seconds(seconds: object) -> str:
    """Return what is wrong with the moment of a frame; empty if nothing is."""
    if not isinstance(seconds, bool) and isinstance(seconds, (int, float)) and 0 <= seconds < math.inf:
        return ""
    got = f"{seconds!r:.40}" if isinstance(seconds, (int, float)) else type(seconds).__name__
    return f"expected seconds from the beginning, at least 0, got {got}"


_KINDS = frozenset({LastFrame, FirstFrame, FrameAt})


def frame_text(frame: VideoFrame, digest: str) -> str:
    """Return a frame as the text of a content has it: no URL and no digest looks like it.

    Args:
        frame: The frame.
        digest: Digest of the content of the job, or of the file, that it is of; unused for a prediction.
    """
    match frame.position:
        case "last":
            begin = _LAST
        case "first":
            begin = _FIRST
        case seconds:
            begin = f"{_AT}{seconds!r}:"
    if isinstance(frame.of, Path):
        return f"{begin}{_FILE}{digest}"
    if frame.parent is not None:
        return f"{begin}{_JOB}{digest}"
    return f"{begin}{_PREDICTION}{getattr(frame.of, 'id', '')}"


def is_frame_text(text: str) -> bool:
    """Return whether the text of a picture in a job's content is that of a frame."""
    return text.startswith((_LAST, _FIRST, _AT))


def file_digest_of(text: str) -> str | None:
    """Return the digest of the video file that the text of a frame names; None if it names something else."""
    _, source = _split(text)
    return source.removeprefix(_FILE) if source.startswith(_FILE) else None


def frame_of_text(text: str, *, parent: str | None, path: Path | None) -> VideoFrame:
    """Return the frame of a text.

    Args:
        text: The text.
        parent: Key of the job that it is of, if it is of one.
        path: The video file, if it is of one.
    """
    from . import prediction  # noqa: PLC0415 -- as above

    begin, source = _split(text)
    of: Key | Prediction | Path
    if source.startswith(_PREDICTION):
        id_, done = source.removeprefix(_PREDICTION), prediction.Status.COMPLETED
        of = prediction.Prediction(id=id_, status=done, raw_status=done.value)
    else:
        of = path if path is not None and source.startswith(_FILE) else parent or ""
    if begin == _LAST:
        return LastFrame(of)
    return FirstFrame(of) if begin == _FIRST else FrameAt(of, float(begin.removeprefix(_AT).removesuffix(":")))


def _split(text: str) -> tuple[str, str]:
    """Return the kind of a frame, and its source."""
    for begin in (_LAST, _FIRST):
        if text.startswith(begin):
            return begin, text.removeprefix(begin)
    seconds, _, source = text.removeprefix(_AT).partition(":")
    return f"{_AT}{seconds}:", source

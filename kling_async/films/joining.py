"""Joining: clips become one film, without a new encoding where that is possible."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import attrs

from kling_async.errors import Spent, StorageError, VideoError
from kling_async.storage._part import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SUFFIX: Final = ".mp4"


@attrs.frozen
class Film:
    """A film that was joined from clips.

    Attributes:
        path: The file. Its name has a digest where the wanted one was taken by another content.
        bytes: Its length.
        sha256: Its SHA-256, in lower-case hex.
        seconds: Length of the film.
        clips: Number of clips.
        is_encoded: Whether the clips were encoded anew; if not, their packets were copied.
    """

    path: Path
    bytes: int
    sha256: str
    seconds: float
    clips: int
    is_encoded: bool


async def join(
    clips: Iterable[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    crossfade: float = 0.0,
    fit: bool = False,
    replace: bool = False,
    progress: Callable[[float], object] | None = None,
) -> Film:
    """Join clips into one MP4, in their order and with their sound.

    Clips with equal streams and without a cross-fade are copied as they are. Others are encoded once, as H.264 and AAC,
    in the size, the frame rate and the colour matrix of the first clip. A silent clip among others gets silence.

    Where two clips meet without a cross-fade, the last frame of the first gives way to the first frame of the second:
    where a clip goes on from the last frame of another, that picture is not seen twice.

    The file gets its name only when it is complete. A cancelled call leaves none. Any number of clips takes the same
    memory.

    Args:
        clips: Files: MP4, MOV or WebM.
        target: The film, ending in `.mp4`, whose folder is created. An existing file with other content is kept; the
            film is then written beside it, and the result has the name.
        crossfade: Seconds for which two neighbours overlap, rounded to frames. The film is shorter by these.
        fit: Whether clips of other sizes and frame rates are fitted into those of the first one: scaled, with black
            bars.
        replace: Whether an existing file with other content is replaced.
        progress: Called in the event loop with the share that is done, from 0 to 1, at most a hundred times.

    Returns:
        Location, length and SHA-256 of the film.

    Raises:
        ConfigurationError: PyAV is not installed.
        VideoError: An argument is wrong; a clip cannot be read, is HDR and would have to be encoded anew, or is too
            short for its cross-fades; or sizes or rates differ without `fit`. Nothing is written.
        StorageError: The film cannot be written.
    """
    paths = _checked_clips(clips)
    film = Path(target)
    if film.suffix.lower() != SUFFIX:
        raise VideoError(f"target: expected a file ending in {SUFFIX}, got {film}", advice="give another name")
    if not (math.isfinite(crossfade) and crossfade >= 0):
        raise VideoError(f"crossfade: expected seconds from 0 on, got {crossfade!r}", advice="give other seconds")
    loop = asyncio.get_running_loop()
    steps = _Steps(lambda share: loop.call_soon_threadsafe(progress, share) if progress is not None else None)
    joined = functools.partial(_join, paths, film, crossfade=crossfade, fit=fit, replace=replace, steps=steps)
    work = loop.run_in_executor(None, joined)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        steps.stop.set()
        # Until its thread has removed what it has written; shielded against anyio, and against further cancellations.
        with anyio.CancelScope(shield=True):
            while not work.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
        work.exception()
        raise


def _checked_clips(clips: Iterable[str | os.PathLike[str]]) -> list[Path]:
    if isinstance(clips, (str, os.PathLike)):
        raise VideoError(f"clips: expected several files, got {os.fspath(clips)!r}", advice="pass a list")
    paths = [Path(clip) for clip in clips]
    if not paths:
        raise VideoError("clips: expected at least one file, got none", advice="name the clips in their order")
    return paths


class _StoppedError(Exception):
    """The call was cancelled."""


class _Steps:
    """Progress of the thread, which ends at its next step once `stop` is set."""

    def __init__(self, report: Callable[[float], object]) -> None:
        self.stop = threading.Event()
        self._report = report
        self._percent = 0

    def check(self) -> None:
        """Raise if the call was cancelled."""
        if self.stop.is_set():
            raise _StoppedError

    def advance(self, share: float) -> None:
        """Report a share, when it is another percent, and check."""
        self.check()
        if int(share * 100) > self._percent:
            self._percent = int(share * 100)
            self._report(self._percent / 100)


def _join(paths: Sequence[Path], target: Path, *, crossfade: float, fit: bool, replace: bool, steps: _Steps) -> Film:
    """Do the work, blocking."""
    # PyAV is optional, and takes long to load. The first of them says what to install.
    from ._clips import arrange, can_be_copied, check_alike, survey  # noqa: PLC0415 -- see above
    from ._copying import copy  # noqa: PLC0415 -- see above
    from ._encoding import encode  # noqa: PLC0415 -- see above

    # isort: split
    from av.error import FFmpegError  # noqa: PLC0415 -- see above

    for path in paths:
        if _is_same_file(path, target):
            raise VideoError(
                f"target: expected another file than the clips, got {target}", path=path, advice="give another name"
            )
    clips = [survey(path, steps.check) for path in paths]
    if not fit:
        check_alike(clips)
    segments = list(arrange(clips, crossfade))
    is_encoded = bool(crossfade) or not can_be_copied(clips)
    part = Part(str(target), target)
    try:
        part.open()
        if part.path is None:
            raise _StoppedError
        seconds = encode(segments, part.path, steps.advance) if is_encoded else copy(clips, part.path, steps.advance)
        part.measure()
        if (found := part.flaw()) is not None:
            raise StorageError(f"{target}: the film is not whole: {found.reason}", target=str(target), spent=Spent.NO)
        steps.advance(1.0)
        saved = part.keep(replace=replace)
    except (FFmpegError, OSError) as error:
        raise StorageError(
            f"cannot write {target}: {error.strerror or error}",
            target=str(target),
            spent=Spent.NO,
            advice="make room or choose another folder, and join again",
        ) from error
    finally:
        part.discard()
    return Film(saved.path, saved.bytes, saved.sha256, float(seconds), len(clips), is_encoded)


def _is_same_file(path: Path, target: Path) -> bool:
    try:
        return path.samefile(target)
    except OSError:
        return False

"""Place of a job in a film, and the videos that it takes frames of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_PREFIX: Final = "kling-frame-"
"""Beginning of the names of folders for copies, in the temporary folder."""
_STALE_AFTER_S: Final = 86_400.0
"""Seconds without use after which a copy is one that a killed process has left."""


@attrs.define(eq=False)
class Video:
    """A finished video, shared by the jobs that take frames of it.

    Attributes:
        of: The job or prediction that it is of, for errors.
        id: Id of the prediction.
        url: URL of the output; None if it is not known.
        path: The saved file; None if there is none on this computer.
        at: Time at which the prediction was made, in seconds since the epoch; None if it is not known.
        users: Number of jobs that may still take a frame. After the last one, a downloaded copy is removed.
    """

    of: str
    id: str
    url: str | None
    path: Path | None
    at: float | None = None
    users: int = 1
    _copy: Path | None = attrs.field(default=None, init=False)
    _lock: anyio.Lock = attrs.field(factory=anyio.Lock, init=False)

    async def file(self, download: Callable[[Video, Path], Awaitable[Path]]) -> Path:
        """Return the file, downloaded on first use if it is not saved.

        Args:
            download: Downloads the video into a folder and returns the file.

        Raises:
            KlingError: It cannot be downloaded.
        """
        if self.path is not None and await anyio.Path(self.path).is_file():
            return self.path
        async with self._lock:
            if self._copy is not None and not await anyio.to_thread.run_sync(_is_kept, self._copy):
                await self.remove_copy()
            if self._copy is None:
                folder = await anyio.to_thread.run_sync(_new_folder)
                try:
                    self._copy = await download(self, folder)
                except BaseException:
                    await _remove(folder)
                    raise
        return self._copy

    async def release(self) -> None:
        """Record that one of its users takes no frame any more."""
        self.users -= 1
        if not self.users:
            await self.remove_copy()

    async def remove_copy(self) -> None:
        """Remove the copy that was downloaded, if there is one."""
        if self._copy is not None:
            copy, self._copy = self._copy, None
            await _remove(copy.parent)


def _new_folder() -> Path:
    """Make a folder for a copy, and remove those that killed processes have left.

    Their age decides, and not the id of a process: containers may share the temporary folder. Should one still be in
    use, its process downloads the copy again.
    """
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with contextlib.suppress(OSError), os.scandir(made.parent) as entries:
        # By the clock of the file system, which may be another computer's.
        stale_before = made.stat().st_mtime - _STALE_AFTER_S
        for entry in entries:
            is_copy = entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
            if is_copy and entry.stat(follow_symlinks=False).st_mtime < stale_before:
                shutil.rmtree(entry.path, ignore_errors=True)
    return made


def _is_kept(copy: Path) -> bool:
    """Return whether a copy is still there, and note on its folder that it is used."""
    try:
        os.utime(copy.parent)
    except OSError:
        return False
    return copy.is_file()


NO_VIDEOS: Mapping[str, Video] = MappingProxyType({})
"""Videos of a job that continues none."""


async def _remove(folder: Path) -> None:
    # Begun before anything is awaited, as it has to happen when the task is cancelled, too.
    removal = asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(folder, ignore_errors=True))
    with anyio.CancelScope(shield=True):
        try:
            await asyncio.shield(removal)
        except asyncio.CancelledError:
            # The scope does not hold off a task group of asyncio. Whoever cancels finds the folder gone.
            await asyncio.wait([removal])
            raise


@attrs.define(eq=False, kw_only=True)
class Link:
    """Place of a job in a film: what it continues.

    Attributes:
        rank: Rank in the ready queue: the index of the job that the film begins with.
        waits: Number of jobs that it continues and that have not ended.
        videos: Videos of the others, by their keys, as far as they are known.
    """

    rank: float
    waits: int = 0
    videos: Mapping[str, Video] = NO_VIDEOS

    async def release(self) -> None:
        """Record that the job takes no frame any more."""
        for video in self.videos.values():
            await video.release()

"""Films: frames of clips as pictures for other jobs, and clips joined into one. Needs PyAV, from the extra `film`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from .joining import Film, join

if TYPE_CHECKING:
    from pathlib import Path

    from kling_async._core.video_frames import Position

__all__ = ["Film", "join", "read_frame"]


async def read_frame(path: Path, position: Position) -> bytes:
    """Return one frame of a video as a picture, as `frames.extract_frame` does, in a worker thread.

    Args:
        path: MP4, MOV or WebM.
        position: `"first"`, `"last"`, or seconds from the beginning of the first frame.

    Returns:
        PNG in the size of the video, or JPEG of high quality where the PNG would pass 10 MB.

    Raises:
        ConfigurationError: PyAV is not installed.
        VideoError: The file is no video, is cut off or damaged, is HDR, or ends before `position`.
    """
    return await anyio.to_thread.run_sync(_extract_frame, path, position)


def _extract_frame(path: Path, position: Position) -> bytes:
    from .frames import extract_frame  # noqa: PLC0415 -- PyAV is optional, and takes long to load

    return extract_frame(path, position)

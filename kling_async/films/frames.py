"""Placeholder of frames of videos, to be replaced by the room of films."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import av

if TYPE_CHECKING:
    from pathlib import Path


def extract_frame(path: Path, position: Literal["first", "last"] | float) -> bytes:
    """Return a frame of a video as PNG. Blocks: call it in a thread.

    Args:
        path: The video.
        position: The first frame, the last one, or that shown at a number of seconds.

    Raises:
        ValueError: The file is no video, or has no such frame.
    """
    try:
        with av.open(str(path)) as video:
            found = None
            for frame in video.decode(video=0):
                if isinstance(position, float) and found is not None and (frame.time or 0.0) > position:
                    break
                found = frame
                if position == "first":
                    break
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} is no video that can be read: {error}") from error
    if found is None:
        raise ValueError(f"{path} has no picture")
    png = io.BytesIO()
    found.to_image().save(png, "PNG")
    return png.getvalue()

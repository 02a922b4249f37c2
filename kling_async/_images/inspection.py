"""Check files of any kind before they are sent, from their first and last bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

from kling_async._core.input_files import EXPECTED, HEAD_BYTES, kind_problem, media_problem, media_type
from kling_async._core.media import FileFacts, ImageFacts

from .preflight import invalid, is_known_picture, open_image, preflight

if TYPE_CHECKING:
    from pathlib import Path

_BOX_HEAD_BYTES = 16
_MIN_BOX_BYTES = 8
_MAX_BOXES = 10_000
"""Far more than a video has; a file made of nothing else would take minutes."""


def inspect(file: Path | bytes, *, field: str, fit: bool = False) -> FileFacts | ImageFacts:
    """Check a file as the service would, and return its type and size, and the dimensions of a picture.

    Args:
        file: The file, or its content.
        field: Its place in a job, for errors; where it names a kind of file, others are refused.
        fit: Whether a picture will be converted before it is sent.

    Raises:
        InvalidJobError: It cannot be read, is of another kind, has too many bytes, or is truncated; pictures, as in
            `preflight`.
    """
    with open_image(file, field) as opened:
        head = opened.read(HEAD_BYTES)
        kind = media_type(head)
        if kind is None:
            if (
                head
                and not is_known_picture(head)
                and field.startswith(("extra", "element_list", "voice_list", "file"))
            ):
                raise invalid(field, f"{EXPECTED}, the bytes are none of these")
            problem = kind_problem(field, "image/png")
        else:
            size = opened.seek(0, io.SEEK_END)
            problem = media_problem(kind, size) or kind_problem(field, kind)
            if not problem and kind in {"video/mp4", "video/quicktime"}:
                problem = _problem_of_boxes(opened, size)
            if not problem:
                return FileFacts(kind, size)
    if problem:
        raise invalid(field, problem)
    return preflight(file, field=field, fit=fit)


def _problem_of_boxes(file: BinaryIO, size: int) -> str:
    """Return the problem of the boxes that an MP4 or MOV consists of, or an empty text."""
    offset, has_description = 0, False
    for _ in range(_MAX_BOXES):
        if offset >= size:
            break
        file.seek(offset)
        head = file.read(_BOX_HEAD_BYTES)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            # It lasts to the end of the file.
            length = size - offset
        has_description = has_description or kind == b"moov"
        if length < _MIN_BOX_BYTES:
            # Some programs write zeros after the last box.
            break
        offset += length
    if offset > size:
        return "is truncated: the end of the video is missing"
    return "" if has_description else "is damaged, or is truncated: it has no description of its content"

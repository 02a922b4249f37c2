"""Checks of input pictures: format and size, read from the header bytes."""

from __future__ import annotations

import base64
import struct
from typing import Final

import attrs

__all__ = [
    "DOWNLOAD_FAILED_TEXT",
    "MAX_PICTURE_BYTES",
    "MEDIA_ACCESS_CODE",
    "PictureError",
    "check",
    "check_media",
    "decode_inline",
]

MAX_PICTURE_BYTES: Final = 10 * 1024 * 1024
"""Largest picture the service accepts."""

MEDIA_ACCESS_CODE: Final = 1402
"""`data.code` of a picture that cannot be read."""

DOWNLOAD_FAILED_TEXT: Final = "Failed to download image from the provided URL."
"""`data.error` of a picture that cannot be downloaded."""

_MIN_SIDE_PIXELS: Final = 300
_INVALID_PARAMETER_CODE: Final = 1401
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC: Final = b"\xff\xd8\xff"
_JPEG_FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
_JPEG_MARKERS_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_TRAILER_BYTES: Final = 4096


@attrs.frozen(eq=False)
class PictureError(Exception):
    """The picture is unusable: the task fails with this `data.code` and text."""

    code: int
    message: str


def check(content: bytes) -> tuple[int, int]:
    """Return width and height of a picture in pixels.

    Raises:
        PictureError: if it is too large, not a complete JPEG or PNG, or too small.
    """
    if len(content) > MAX_PICTURE_BYTES:
        raise PictureError(MEDIA_ACCESS_CODE, "Image file size exceeds the limit of 10MB.")
    size = _png_size(content) if content.startswith(_PNG_MAGIC) else _jpeg_size(content)
    if size is None:
        raise PictureError(_INVALID_PARAMETER_CODE, "Invalid image: only jpg, jpeg and png files are supported.")
    if min(size) < _MIN_SIDE_PIXELS:
        raise PictureError(_INVALID_PARAMETER_CODE, "Invalid image: width and height must be at least 300 pixels.")
    return size


def check_media(kind: str, content: bytes) -> None:
    """Check that content is a `video` or an `audio`.

    Raises:
        PictureError: if it is another file.
    """
    video = content[4:8] in {b"ftyp", b"moov", b"mdat", b"wide"} or content.startswith(b"\x1aE\xdf\xa3")
    audio = content.startswith((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")) or (
        content.startswith(b"RIFF") and content[8:12] == b"WAVE"
    )
    if not {"video": video, "audio": audio}[kind]:
        raise PictureError(_INVALID_PARAMETER_CODE, f"Invalid {kind}: the format of the file is not supported.")


def decode_inline(value: str) -> bytes:
    """Decode a data URI or bare base64.

    Raises:
        PictureError: if it is not base64.
    """
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:  # raised for non-ASCII characters as well
        raise PictureError(MEDIA_ACCESS_CODE, "Failed to decode the image data.") from None


def _png_size(content: bytes) -> tuple[int, int] | None:
    if content[12:16] != b"IHDR" or b"IEND" not in content[-_TRAILER_BYTES:]:
        return None
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    if not content.startswith(_JPEG_MAGIC) or b"\xff\xd9" not in content[-_TRAILER_BYTES:]:
        return None
    at = 2
    while at + 9 <= len(content):
        if content[at] != 0xFF:  # noqa: PLR2004 -- JPEG marker byte
            return None
        marker = content[at + 1]
        if marker in _JPEG_FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        if marker == 0xFF:  # noqa: PLR2004 -- fill byte before a marker
            at += 1
        elif marker in _JPEG_MARKERS_WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None

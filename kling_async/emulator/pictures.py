"""What the service finds out about an input picture before it runs: format and size, from the header bytes alone."""

from __future__ import annotations

import base64
import struct
from typing import Final

import attrs

__all__ = ["MAX_BYTES", "MIN_SIDE", "PictureError", "check", "decode_inline"]

MAX_BYTES: Final = 10 * 1024 * 1024
"""The service's limit for one picture, in bytes."""

MIN_SIDE: Final = 300
"""The service's least width and height, in pixels."""

MEDIA_ACCESS: Final = 1402
INVALID_PARAMETER: Final = 1401
DOWNLOAD_FAILED: Final = "Failed to download image from the provided URL."

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_FRAMES: Final = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})


@attrs.frozen(eq=False)
class PictureError(Exception):
    """The picture cannot be used: the task fails with this `data.code` and text."""

    code: int
    message: str


def check(content: bytes) -> tuple[int, int]:
    """Width and height in pixels of a picture the service would take.

    Raises:
        PictureError: when it is too large, no whole JPEG or PNG, or too small.
    """
    if len(content) > MAX_BYTES:
        raise PictureError(MEDIA_ACCESS, "Image file size exceeds the limit of 10MB.")
    size = _png_size(content) if content.startswith(_PNG) else _jpeg_size(content)
    if size is None:
        raise PictureError(INVALID_PARAMETER, "Invalid image: only jpg, jpeg and png files are supported.")
    if min(size) < MIN_SIDE:
        raise PictureError(INVALID_PARAMETER, "Invalid image: width and height must be at least 300 pixels.")
    return size


def decode_inline(value: str) -> bytes:
    """The bytes of a data URI or of bare base64.

    Raises:
        PictureError: when it is not base64.
    """
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:  # also what is not ASCII
        raise PictureError(MEDIA_ACCESS, "Failed to decode the image data.") from None


def _png_size(content: bytes) -> tuple[int, int] | None:
    if content[12:16] != b"IHDR" or b"IEND" not in content[-4096:]:
        return None
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    if not content.startswith(_JPEG) or b"\xff\xd9" not in content[-4096:]:
        return None
    at = 2
    while at + 9 <= len(content):
        if content[at] != 0xFF:  # noqa: PLR2004 - the JPEG marker byte
            return None
        marker = content[at + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte before a marker
            at += 1
        elif marker in _BARE:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None

"""Facts of image files: type, size, and what a service may show otherwise than a viewer. No pixels are decoded."""

from __future__ import annotations

import io
from typing import BinaryIO, Final

from .media import ImageFacts

FORMAT_NAMES: Final = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WebP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
    "image/heic": "HEIC",
}
"""Names of the formats that are known by their first bytes."""
HEAD_BYTES: Final = 64
"""First bytes of a file that tell its format."""
_PNG_START: Final = 8
_PNG_DEEP: Final = 16
_PNG_ALPHA: Final = frozenset({4, 6})
"""Colour types of PNG with an alpha channel."""
_MAX_EXIF_BYTES: Final = 2**20
_CMYK_CHANNELS: Final = 4


def media_type(head: bytes) -> str | None:
    """Return the media type by the first bytes; None if it is unknown."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "image/tiff"
    if head[4:8] == b"ftyp":
        brands = head[8:HEAD_BYTES]
        return "image/avif" if b"avif" in brands else "image/heic" if b"hei" in brands or b"mif1" in brands else None
    # Many files begin with these two letters; in a bitmap the four bytes after the length are zero too.
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "image/bmp"
    return None


def read_facts(file: BinaryIO, kind: str) -> ImageFacts:
    """Return the facts of an image file.

    Args:
        file: The file.
        kind: Its media type.

    Raises:
        ValueError: Its width and height cannot be read.
    """
    import imagesize  # type: ignore[import-untyped]  # noqa: PLC0415 -- has no types; not every job has a file

    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        found = imagesize.get_info(file, dpi=False, colors=False)
        width, height, rotation = int(found.width), int(found.height), int(found.rotation)
        transparent = deep = False
        if kind == "image/png":
            transparent, deep, rotation = _read_png(file)
            # Orientations from 5 on lay a picture on its side.
            width, height = (height, width) if rotation in range(5, 9) else (width, height)
    except Exception as error:  # noqa: BLE001 -- hostile bytes let imagesize raise many kinds
        raise ValueError(str(error)) from None
    if width <= 0 or height <= 0:
        raise ValueError(f"{width}x{height}")
    return ImageFacts(
        kind,
        width,
        height,
        size,
        turned=rotation in range(2, 9),
        transparent=transparent,
        deep=deep,
        cmyk=kind == "image/jpeg" and found.channels == _CMYK_CHANNELS,
    )


def facts_of_bytes(content: bytes) -> ImageFacts | None:
    """Return the facts of a JPEG or PNG in memory; None if it is none, or they cannot be read."""
    kind = media_type(content[:HEAD_BYTES])
    if kind not in {"image/jpeg", "image/png"}:
        return None
    try:
        return read_facts(io.BytesIO(content), kind)
    except ValueError:
        return None


def _read_png(file: BinaryIO) -> tuple[bool, bool, int]:
    """Return whether a PNG has transparency, whether it has 16 bits a channel, and its EXIF orientation."""
    transparent, deep, orientation = False, False, 1
    offset = _PNG_START
    while True:
        file.seek(offset)
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name == b"IHDR":
            header = file.read(13)
            transparent, deep = header[9] in _PNG_ALPHA, header[8] == _PNG_DEEP
        elif name == b"tRNS":
            transparent = True
        elif name == b"eXIf" and length <= _MAX_EXIF_BYTES:
            orientation = _orientation(file.read(length))
        if len(name) < 4 or name == b"IEND":  # noqa: PLR2004 -- letters of a name
            return transparent, deep, orientation
        offset += length + 12


def _orientation(exif: bytes) -> int:
    """Return the orientation in the first directory of EXIF data; 1 without one."""
    order = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return 1

    def number(at: int, length: int) -> int:
        return int.from_bytes(exif[at : at + length], "big" if order == "big" else "little")

    start = number(4, 4)
    for entry in range(start + 2, min(start + 2 + 12 * number(start, 2), len(exif) - 11), 12):
        # Stored as SHORT.
        if number(entry, 2) == 0x0112 and number(entry + 2, 2) == 3:  # noqa: PLR2004 -- tag and type
            return number(entry + 8, 2)
    return 1

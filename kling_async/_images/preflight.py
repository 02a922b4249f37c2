"""Images before they are sent: what the service would look at, read from the file's ends, nothing decoded."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import stat
from typing import TYPE_CHECKING, BinaryIO, Final

from kling_async._core.images import MAX_IMAGE_BYTES, MIN_IMAGE_SIDE
from kling_async._core.media import ACCEPTED_IMAGE_TYPES, ImageFacts
from kling_async.errors import ConfigurationError, InvalidJobError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_FIT_BYTES: Final = 100 * 1024 * 1024
"""Bytes of an image that is made to fit."""
MAX_FIT_PIXELS: Final = 80_000_000
"""Pixels of an image that is made to fit: decoded it takes three bytes for each."""

_PIECE: Final = 2**18
"""Bytes of a file that are read at once."""
_TAIL: Final = 2**15
_FORMATS: Final = {
    "image/webp": "WebP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
    "image/heic": "HEIC",
}
_CONVERTED: Final = frozenset(_FORMATS) - {"image/heic"}


def preflight(image: Path | bytes, *, field: str = "image", fit: bool = False) -> ImageFacts:
    """What the service would look at before it accepts an image.

    Args:
        image: The file, or its content.
        field: How errors name it.
        fit: Whether it will be made to fit before it is sent: other formats and more bytes are fine then.

    Raises:
        InvalidJobError: It cannot be read, is of no format that is taken, has too many bytes or too few pixels, is cut
            off, or its size cannot be told.
    """
    import imagesize  # type: ignore[import-untyped]  # noqa: PLC0415 -- has no types; not every job has a file

    with _opened(image, field) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(64)
        kind = _media_type(head)
        problem = _problem(kind, size, fit=fit)
        if problem or kind is None:
            raise invalid(field, problem)
        try:
            facts = imagesize.get_info(file, dpi=False, colors=False, channels=False)
            width, height = int(facts.width), int(facts.height)
        except Exception:  # noqa: BLE001 -- hostile bytes let it raise whatever they hit
            raise invalid(field, "is damaged: its width and height cannot be read") from None
        if width <= 0 or height <= 0:
            raise invalid(field, "is damaged: its width and height cannot be read")
        if min(width, height) < MIN_IMAGE_SIDE:
            raise invalid(field, f"expected at least {MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE} pixels, got {width}x{height}")
        if _cut_off(file, kind, size):
            raise invalid(field, "is cut off: the end of the picture is missing")
    found = ImageFacts(kind, width, height, size, turned=facts.rotation in range(2, 9))
    if fit and found.unfit and width * height > MAX_FIT_PIXELS:
        raise invalid(field, f"{width}x{height} pixels are more than are converted, {MAX_FIT_PIXELS // 10**6} million")
    return found


def require_pillow() -> None:
    """Make sure that images can be made to fit.

    Raises:
        ConfigurationError: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise ConfigurationError("fit: needs Pillow", advice="install kling-async[images]")


def read(image: Path | bytes, field: str, *, most: int = MAX_FIT_BYTES) -> bytes:
    """Return the whole content; of a file that is too large, one byte more than is permitted.

    Args:
        image: The file, or its content.
        field: Name of the field in errors.
        most: Bytes that are permitted.

    Raises:
        InvalidJobError: It cannot be read.
    """
    return b"".join(_pieces(image, field, most))


def sha256(image: Path | bytes, field: str) -> str:
    """The digest of the content in hex.

    Raises:
        InvalidJobError: It cannot be read.
    """
    # Piece by piece: many files may be looked at at once, and only those that go up are worth their memory.
    whole = hashlib.sha256()
    for piece in _pieces(image, field):
        whole.update(piece)
    return whole.hexdigest()


def invalid(field: str, message: str) -> InvalidJobError:
    """The error that says what is wrong with the image."""
    return InvalidJobError([Problem(field, message)])


def _problem(kind: str | None, size: int, *, fit: bool) -> str:
    if not size:
        return "is empty"
    most = MAX_FIT_BYTES if fit else MAX_IMAGE_BYTES
    if size > most:
        return f"expected at most {most // 2**20} MB, got more"
    if kind is None:
        return "expected a JPEG or PNG, the bytes are neither"
    if kind in ACCEPTED_IMAGE_TYPES or (fit and kind in _CONVERTED):
        return ""
    return f"expected a JPEG or PNG, this is {_FORMATS[kind]}" + ("" if fit or kind not in _CONVERTED else "; fit it")


def _media_type(head: bytes) -> str | None:
    """The format by the first bytes, whatever the file's name says."""
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
        brands = head[8:64]
        return "image/avif" if b"avif" in brands else "image/heic" if b"hei" in brands or b"mif1" in brands else None
    # Two letters that much else begins with: the four bytes after the length are zero in a bitmap.
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "image/bmp"
    return None


def _cut_off(file: BinaryIO, kind: str, size: int) -> bool:
    """Whether what ends a picture of this format is missing; for the formats that are sent as they are."""
    if kind not in ACCEPTED_IMAGE_TYPES:
        return False
    mark, start = (b"IEND", 8) if kind == "image/png" else (b"\xff\xd9", _pixels(file))
    # Usually it is at the very end; phones put films and notes after it.
    file.seek(max(start, size - _TAIL))
    if mark in file.read():
        return False
    file.seek(start)
    last = b""
    while piece := file.read(_PIECE):
        if mark in last + piece:
            return False
        last = piece[-len(mark) :]
    return True


def _pixels(file: BinaryIO) -> int:
    """Where the pixels of a JPEG begin: before them a small preview may be, with an end of its own."""
    place = 2
    while True:
        file.seek(place)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:  # noqa: PLR2004 -- a segment's mark and length
            return place
        # Any number of filling bytes may precede a mark.
        place += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:4], "big")  # noqa: PLR2004 -- the same


def _opened(image: Path | bytes, field: str) -> BinaryIO:
    """The image as a file.

    Raises:
        InvalidJobError: It cannot be opened, or is not a regular file.
    """
    if isinstance(image, bytes):
        return io.BytesIO(image)
    try:
        # Asked before it is opened: to open a pipe is to wait for its other end.
        if stat.S_ISREG(image.stat().st_mode):
            return image.open("rb")
    except (OSError, ValueError) as error:
        raise _unreadable(image, field, error) from error
    raise invalid(field, f"{image} is not a regular file")


def _pieces(image: Path | bytes, field: str, most: int = MAX_FIT_BYTES) -> Iterator[bytes]:
    if isinstance(image, bytes):
        yield image
        return
    left = most + 1
    with _opened(image, field) as file:
        try:
            while piece := file.read(min(left, _PIECE)):
                yield piece
                left -= len(piece)
        except OSError as error:
            raise _unreadable(image, field, error) from error


def _unreadable(image: Path | bytes, field: str, error: Exception) -> InvalidJobError:
    reason = error.strerror if isinstance(error, OSError) else None
    return invalid(field, f"cannot read {image!s}: {reason or error}")

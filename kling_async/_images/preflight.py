"""Check images before they are sent, from the first and last bytes of the file, without decoding them."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import stat
from typing import TYPE_CHECKING, BinaryIO, Final

from kling_async._core.images import MAX_IMAGE_BYTES, MIN_IMAGE_SIDE
from kling_async._core.input_files import MAX_UPLOAD_BYTES
from kling_async._core.media import ACCEPTED_IMAGE_TYPES, ImageFacts
from kling_async.errors import ConfigurationError, InvalidJobError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_CONVERTED_BYTES: Final = 100 * 1024 * 1024
"""Greatest size in bytes of an image to convert."""
MAX_CONVERTED_PIXELS: Final = 80_000_000
"""Greatest number of pixels of an image to convert; decoding takes up to four bytes of memory per pixel."""

_READ_BYTES: Final = 2**18
"""Bytes per read of a file."""
_SEGMENT_BYTES: Final = 256
"""Bytes that are read of a JPEG's segment for its marker, its length and the fill bytes before them."""
_TAIL_BYTES: Final = 2**15
"""Bytes at the end of a file that are searched for the end of the picture first."""
_FORMAT_NAMES: Final = {
    "image/webp": "WebP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
    "image/heic": "HEIC",
}
_CONVERTIBLE_TYPES: Final = frozenset(_FORMAT_NAMES) - {"image/heic"}


def preflight(image: Path | bytes, *, field: str = "image", fit: bool = False) -> ImageFacts:
    """Check an image as the service would, and return its type, dimensions and size.

    Args:
        image: The file, or its content.
        field: Name of the field in errors.
        fit: Whether it will be converted before it is sent: more formats and more bytes are accepted then.

    Raises:
        InvalidJobError: It cannot be read, has an unsupported format, too many bytes or too few pixels, is truncated,
            or its dimensions cannot be read.
    """
    import imagesize  # type: ignore[import-untyped]  # noqa: PLC0415 -- has no types; not every job has a file

    with open_image(image, field) as file:
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
        except Exception:  # noqa: BLE001 -- hostile bytes let imagesize raise many kinds
            raise invalid(field, "is damaged: its width and height cannot be read") from None
        if width <= 0 or height <= 0:
            raise invalid(field, "is damaged: its width and height cannot be read")
        if min(width, height) < MIN_IMAGE_SIDE:
            raise invalid(field, f"expected at least {MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE} pixels, got {width}x{height}")
        if _is_truncated(file, kind, size):
            raise invalid(field, "is truncated: the end of the picture is missing")
    found = ImageFacts(kind, width, height, size, turned=facts.rotation in range(2, 9))
    if fit and found.unfit and width * height > MAX_CONVERTED_PIXELS:
        limit = f"at most {MAX_CONVERTED_PIXELS // 10**6} million pixels"
        raise invalid(field, f"cannot be converted: expected {limit}, got {width}x{height}")
    return found


def require_pillow() -> None:
    """Raise unless images can be converted.

    Raises:
        ConfigurationError: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise ConfigurationError("fit: needs Pillow, which is not installed", advice="install kling-async[images]")


def read(image: Path | bytes, field: str, *, most: int = MAX_CONVERTED_BYTES) -> bytes:
    """Return the content of an image; of a file that is too large, one byte more than `most`.

    Args:
        image: The file, or its content.
        field: Name of the field in errors.
        most: Greatest permitted number of bytes.

    Raises:
        InvalidJobError: It cannot be read.
    """
    return b"".join(_read_pieces(image, field, most))


def sha256(image: Path | bytes, field: str) -> str:
    """Return the SHA-256 of the content of a file of any kind in hex.

    Raises:
        InvalidJobError: It cannot be read.
    """
    # In pieces: many files may be hashed at once, and only those that are uploaded may take memory.
    whole = hashlib.sha256()
    for piece in _read_pieces(image, field, MAX_UPLOAD_BYTES):
        whole.update(piece)
    return whole.hexdigest()


def invalid(field: str, message: str) -> InvalidJobError:
    """Return the error of an invalid image."""
    return InvalidJobError([Problem(field, message)])


def changed(image: Path, field: str, *, expected: str, found: str) -> InvalidJobError:
    """Return the error of a file that is another one than when its job's key was made.

    Args:
        image: The file.
        field: Name of the field.
        expected: SHA-256 of the former content in hex.
        found: SHA-256 of the present one.
    """
    return invalid(
        field,
        f"{image!s} has changed since the job's key was made from it: expected SHA-256 {expected[:16]}..., "
        f"got {found[:16]}...",
    )


def is_known_picture(head: bytes) -> bool:
    """Return whether a file is a picture of a known format, by its first bytes."""
    return _media_type(head) is not None


def _problem(kind: str | None, size: int, *, fit: bool) -> str:
    """Return the problem of an image with this type and size; empty if there is none."""
    if not size:
        return "is empty"
    most = MAX_CONVERTED_BYTES if fit else MAX_IMAGE_BYTES
    if size > most:
        return f"expected at most {most // 2**20} MB, got more"
    if kind is None:
        return "expected a JPEG or PNG, the bytes are neither"
    if kind in ACCEPTED_IMAGE_TYPES or (fit and kind in _CONVERTIBLE_TYPES):
        return ""
    hint = "" if fit or kind not in _CONVERTIBLE_TYPES else "; the option fit converts it"
    return f"expected a JPEG or PNG, got {_FORMAT_NAMES[kind]}{hint}"


def _media_type(head: bytes) -> str | None:
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
        brands = head[8:64]
        return "image/avif" if b"avif" in brands else "image/heic" if b"hei" in brands or b"mif1" in brands else None
    # Many files begin with these two letters; in a bitmap the four bytes after the length are zero too.
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "image/bmp"
    return None


def _is_truncated(file: BinaryIO, kind: str, size: int) -> bool:
    """Return whether a JPEG or PNG lacks its end marker; False for other formats."""
    if kind not in ACCEPTED_IMAGE_TYPES:
        return False
    marker, start = (b"IEND", 8) if kind == "image/png" else (b"\xff\xd9", _start_of_pixels(file))
    # It is usually at the very end, but phones append videos and metadata.
    file.seek(max(start, size - _TAIL_BYTES))
    if marker in file.read():
        return False
    file.seek(start)
    last = b""
    while piece := file.read(_READ_BYTES):
        if marker in last + piece:
            return False
        last = piece[-len(marker) :]
    return True


def _start_of_pixels(file: BinaryIO) -> int:
    """Return the offset of a JPEG's pixels. A thumbnail before them may have an end marker of its own."""
    offset = 2
    while True:
        file.seek(offset)
        block = file.read(_SEGMENT_BYTES)
        # Any number of fill bytes may precede a marker.
        fill = len(block) - len(block.lstrip(b"\xff"))
        if fill > _SEGMENT_BYTES - 3:
            offset += fill - 1
            continue
        marker = block[fill : fill + 3]
        if not fill or len(marker) < 3 or marker[0] == 0xDA:  # noqa: PLR2004 -- marker and length
            return offset
        offset += fill + 1 + int.from_bytes(marker[1:], "big")


def open_image(image: Path | bytes, field: str) -> BinaryIO:
    """Open an image as a file.

    Raises:
        InvalidJobError: It cannot be opened, or is not a regular file.
    """
    if isinstance(image, bytes):
        return io.BytesIO(image)
    try:
        # Checked before opening it, because opening a pipe blocks until its other end is opened.
        if stat.S_ISREG(image.stat().st_mode):
            return image.open("rb")
    except (OSError, ValueError) as error:
        raise _unreadable(image, field, error) from error
    raise invalid(field, f"{image} is not a regular file")


def _read_pieces(image: Path | bytes, field: str, most: int = MAX_CONVERTED_BYTES) -> Iterator[bytes]:
    if isinstance(image, bytes):
        yield image
        return
    remaining = most + 1
    with open_image(image, field) as file:
        try:
            while piece := file.read(min(remaining, _READ_BYTES)):
                yield piece
                remaining -= len(piece)
        except OSError as error:
            raise _unreadable(image, field, error) from error


def _unreadable(image: Path | bytes, field: str, error: Exception) -> InvalidJobError:
    reason = error.strerror if isinstance(error, OSError) else None
    return invalid(field, f"cannot read {image!s}: {reason or error}")

"""Check images before they are sent, from the first and last bytes of the file, without decoding them."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import stat
from typing import TYPE_CHECKING, BinaryIO, Final

from kling_async._core.input_files import MAX_UPLOAD_BYTES
from kling_async._core.media import ACCEPTED_IMAGE_TYPES, MAX_CONVERTED_BYTES, MAX_IMAGE_BYTES, MIN_IMAGE_SIDE
from kling_async._core.picture_facts import FORMAT_NAMES, HEAD_BYTES, media_type, read_facts
from kling_async.errors import ConfigurationError, InvalidJobError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kling_async._core.media import ImageFacts

MAX_CONVERTED_PIXELS: Final = 250_000_000
"""Greatest number of pixels of a JPEG or HEIC to convert; a large JPEG is decoded at a smaller size."""
MAX_DECODED_PIXELS: Final = 120_000_000
"""Greatest number of pixels of another image to convert; decoding takes up to four bytes of memory per pixel."""
PHONE_TYPES: Final = frozenset({"image/jpeg", "image/heic"})
"""Formats of the largest pictures of phones."""
VERIFIED_PIXELS: Final = 50_000_000
"""Greatest number of pixels of an image that is decoded to its end before it is sent, unless that is asked for."""

_SMALL_BYTES: Final = 2**20
"""Bytes that are hashed in a few milliseconds."""
_READ_BYTES: Final = 2**18
"""Bytes per read of a file."""
_SEGMENT_BYTES: Final = 256
"""Bytes that are read of a JPEG's segment for its marker, its length and the fill bytes before them."""
_TAIL_BYTES: Final = 2**15
"""Bytes at the end of a file that are searched for the end of the picture first."""


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
    with open_image(image, field) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        kind = media_type(file.read(HEAD_BYTES))
        problem = _problem(kind, size, fit=fit)
        if problem or kind is None:
            raise invalid(field, problem)
        facts: ImageFacts | None
        try:
            facts = read_facts(file, kind)
        except ValueError:
            facts = _facts_by_decoder(file, kind) if fit and kind not in ACCEPTED_IMAGE_TYPES else None
        if facts is None:
            raise invalid(field, "is damaged: its width and height cannot be read")
        if min(facts.width, facts.height) < MIN_IMAGE_SIDE:
            got = f"{facts.width}x{facts.height}"
            raise invalid(field, f"expected at least {MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE} pixels, got {got}")
        if _is_truncated(file, kind, size):
            raise invalid(field, "is truncated: the end of the picture is missing")
    most = MAX_CONVERTED_PIXELS if kind in PHONE_TYPES else MAX_DECODED_PIXELS
    if fit and facts.unfit and facts.width * facts.height > most:
        limit = f"at most {most // 10**6} million pixels"
        raise invalid(field, f"cannot be converted: expected {limit}, got {facts.width}x{facts.height}")
    return facts


def _facts_by_decoder(file: BinaryIO, kind: str) -> ImageFacts | None:
    """Return the facts of an image as its decoder reads them, which knows more layouts; None if it is damaged."""
    from .convert import decoder_facts  # noqa: PLC0415 -- Pillow is an extra

    return decoder_facts(file, kind)


def has_pillow() -> bool:
    """Return whether Pillow is installed."""
    return _is_installed("PIL")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:
        # Named in `sys.modules`, and not there: an application has made it unavailable.
        return False


def require_pillow(option: str = "fit") -> None:
    """Raise unless images can be decoded.

    Args:
        option: Name of the option that needs it.

    Raises:
        ConfigurationError: Pillow is not installed.
    """
    if not has_pillow():
        raise ConfigurationError(
            f"{option}: needs Pillow, which is not installed", advice="install kling-async[images]"
        )


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


def sha256_of_small(image: Path | bytes, field: str) -> str | None:
    """Return the SHA-256 of content that is hashed in a few milliseconds; None if there is more of it.

    Raises:
        InvalidJobError: It cannot be read.
    """
    try:
        size = len(image) if isinstance(image, bytes) else image.stat().st_size
    except (OSError, ValueError):
        # Reading it says why.
        size = 0
    return sha256(image, field) if size <= _SMALL_BYTES else None


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
    return media_type(head) is not None


def _problem(kind: str | None, size: int, *, fit: bool) -> str:
    """Return the problem of an image with this type and size; empty if there is none."""
    if not size:
        return "is empty"
    most = MAX_CONVERTED_BYTES if fit else MAX_IMAGE_BYTES
    if size > most:
        hint = "" if fit or kind is None or size > MAX_CONVERTED_BYTES else "; the option fit makes it smaller"
        return f"expected at most {most // 2**20} MB, got more{hint}"
    if kind is None:
        return "expected a JPEG or PNG, the bytes are neither"
    heic = kind == "image/heic" and not _is_installed("pillow_heif")
    if kind in ACCEPTED_IMAGE_TYPES or (fit and not heic):
        return ""
    hint = "install kling-async[heic], with which the option fit converts it" if heic else "the option fit converts it"
    return f"expected a JPEG or PNG, got {FORMAT_NAMES[kind]}; {hint}"


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

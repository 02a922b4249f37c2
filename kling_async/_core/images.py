"""Input images: the sources that callers may pass, and the plain form that a job keeps (URL, `Path` or bytes)."""

from __future__ import annotations

import base64
import io
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast
from urllib.parse import urlsplit

from kling_async.errors import InvalidJobError, Problem

MAX_IMAGE_BYTES = 10 * 1024 * 1024
"""Most bytes of an input image (Kling 2.1 pages)."""
MIN_IMAGE_SIDE = 300
"""Fewest pixels of each side of an input image (Kling 2.1 pages)."""


class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that is used."""

    @property
    def mode(self) -> str:
        """Pixel format, such as "RGB"."""
        ...

    def save(self, fp: IO[bytes], format: str | None = None, **params: Any) -> None:  # noqa: A002 -- Pillow's name
        """Write the image to `fp`, encoded."""
        ...

    def convert(self, mode: str) -> PillowImage:
        """Return a copy in another pixel format."""
        ...

    def getexif(self) -> Any:
        """Return the EXIF data by tag number."""
        ...

    def transpose(self, method: Any) -> PillowImage:
        """Return a copy, rotated or mirrored."""
        ...


Image: TypeAlias = str | Path | bytes
"""An input image as a job keeps it: a URL, a file, or the bytes of a JPEG or PNG. A string never opens a file."""
ImageSource: TypeAlias = str | Path | bytes | bytearray | memoryview | IO[bytes] | PillowImage
"""An image as callers may pass it: an `Image`, an open binary file or a PIL image; the last two are read at once."""


def image_repr(image: Image | None) -> str:
    """Return a short repr of an image, without its content or the credentials of its URL."""
    if isinstance(image, bytes):
        return f"<{len(image)} bytes>"
    if isinstance(image, str):
        return (
            f"<data URI of {len(image)} characters>" if image.startswith("data:") else repr(_without_credentials(image))
        )
    return repr(image)


def _without_credentials(url: str) -> str:
    """Return a URL without its query, which may be a signature, and without its user info; 120 characters at most."""
    scheme, separator, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return (scheme + separator + host.rpartition("@")[2] + slash + path)[:120]


def load_image(source: ImageSource) -> Image:
    """Return an image as a URL, a path or bytes; file objects and PIL images are read.

    Raises:
        InvalidJobError: The models do not accept it.
    """
    problems: list[Problem] = []
    image = check_image("image", source, problems)
    if problems:
        raise InvalidJobError(problems)
    return image


def check_image(field: str, source: object, problems: list[Problem]) -> Image:
    """Return the image as a job keeps it, and append to `problems` if it is wrong. Paths are not opened here."""
    problem: str
    match source:
        case Path():
            return source
        case str():
            problem = _url_problem(source)
            if not problem:
                return source
        case bytes() | bytearray() | memoryview():
            problem = bytes_problem(bytes(source))
            if not problem:
                return bytes(source)
        case _ if isinstance(source, type):
            problem = f"expected an image, got the class {source.__name__}"
        case _ if hasattr(source, "read"):
            content, problem = _read(source)
            if not problem:
                return content
        case _ if hasattr(source, "save") and hasattr(source, "mode"):
            content, problem = _encoded(cast("PillowImage", source))
            if not problem:
                return content
        case _:
            problem = f"expected a URL, a Path, bytes, a binary file or a PIL image, got {type(source).__name__}"
    problems.append(Problem(field, problem))
    return b""


def _read(file: Any) -> tuple[bytes, str]:
    """Return the content of an open file, and the problem with it or an empty text."""
    try:
        content = file.read(MAX_IMAGE_BYTES + 1)
    except UnicodeDecodeError:
        # Opened in text mode: no image decodes as text.
        content = ""
    except Exception as error:  # noqa: BLE001 -- a caller's file object may raise anything
        return b"", f"the file cannot be read: {type(error).__name__}: {error}"
    if isinstance(content, bytes):
        return content, bytes_problem(content)
    if isinstance(content, Coroutine):
        content.close()
        return b"", "expected bytes, got an asynchronous file: pass image=await file.read()"
    return b"", "expected a file opened in binary mode"


def _encoded(image: PillowImage) -> tuple[bytes, str]:
    """Return a PIL image as PNG, or as JPEG of quality 95 if the PNG is too large; and the problem or an empty text."""
    buffer = io.BytesIO()
    try:
        # The encoded bytes carry no EXIF data, so the rotation is applied to the pixels.
        transpose = _TRANSPOSE_BY_ORIENTATION.get(image.getexif().get(_EXIF_ORIENTATION))
        upright = image if transpose is None else image.transpose(transpose)
        flat = upright if upright.mode in {"RGB", "L"} else upright.convert("RGB")
        flat.save(buffer, "PNG")
        if buffer.tell() > MAX_IMAGE_BYTES:
            buffer = io.BytesIO()
            flat.save(buffer, "JPEG", quality=95)
    except Exception as error:  # noqa: BLE001 -- Pillow raises many types for files that it cannot decode
        return b"", f"the PIL image cannot be encoded: {type(error).__name__}: {error}"
    return buffer.getvalue(), bytes_problem(buffer.getvalue())


_EXIF_ORIENTATION = 0x0112
_TRANSPOSE_BY_ORIENTATION = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Member of `PIL.Image.Transpose` that undoes each EXIF orientation."""


def _url_problem(url: str) -> str:
    if url.startswith("data:"):
        header, comma, payload = url.partition(",")
        if not comma or not header.endswith(";base64") or not header.startswith(("data:image/jpeg", "data:image/png")):
            return "expected a data URI of image/jpeg or image/png in base64"
        try:
            return bytes_problem(base64.b64decode(payload, validate=True))
        except ValueError:
            return "the data URI is not base64"
    try:
        parts = urlsplit(url)
        # Reading the port raises if it is not a number.
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    else:
        if parts.scheme.lower() in {"http", "https"} and host and url.isprintable() and " " not in url:
            return ""
    return f"expected an http(s) URL, got {_without_credentials(url)[:60]!r}; pass a file as Path(...)"


def bytes_problem(content: bytes) -> str:
    """Return the problem with an image by its first bytes and length, or an empty text. Pixels are checked later."""
    if not content:
        return "is empty"
    if len(content) > MAX_IMAGE_BYTES:
        return f"expected at most {MAX_IMAGE_BYTES // 2**20} MB, got more"
    if image_type(content) is None:
        return "expected a JPEG or PNG, the bytes are neither"
    return ""


def image_type(content: bytes) -> str | None:
    """Return the media type of a JPEG or PNG by its first bytes; None for anything else."""
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    return None

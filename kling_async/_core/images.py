"""Images as callers give them, and at rest: a URL, a file, or the bytes of a JPEG or PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast
from urllib.parse import urlsplit

from kling_async.errors import InvalidJobError, Problem

MAX_IMAGE_BYTES = 10 * 1024 * 1024
"""Bytes of an input image (Kling 2.1 pages)."""
MIN_IMAGE_SIDE = 300
"""Pixels of each side of an input image (Kling 2.1 pages)."""


class PillowImage(Protocol):
    """What is used of a `PIL.Image.Image`."""

    @property
    def mode(self) -> str:
        """The pixel format."""
        ...

    def save(self, fp: IO[bytes], format: str | None = None, **params: Any) -> None:  # noqa: A002 -- Pillow's name
        """Encode."""
        ...

    def convert(self, mode: str) -> PillowImage:
        """The same in another pixel format."""
        ...

    def getexif(self) -> Any:
        """Its EXIF data, by the numbers of the tags."""
        ...

    def transpose(self, method: Any) -> PillowImage:
        """The same, turned or mirrored."""
        ...


Image: TypeAlias = str | Path | bytes
"""An input image at rest: a URL, a file, or the bytes of a JPEG or PNG. A string never opens a file."""
ImageSource: TypeAlias = str | Path | bytes | bytearray | memoryview | IO[bytes] | PillowImage
"""What is accepted as an image: also an open binary file and a PIL image, both read at once."""


def image_repr(image: Image | None) -> str:
    """What a repr tells of an image."""
    if isinstance(image, bytes):
        return f"<{len(image)} bytes>"
    if isinstance(image, str):
        return f"<data URI of {len(image)} characters>" if image.startswith("data:") else repr(_public(image))
    return repr(image)


def _public(url: str) -> str:
    """What may be shown of a URL: neither its query, which signs it, nor its userinfo."""
    scheme, separator, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return (scheme + separator + host.rpartition("@")[2] + slash + path)[:120]


def image_at_rest(source: ImageSource) -> Image:
    """An image as a URL, a path or bytes: file objects and PIL images are read.

    Raises:
        InvalidJobError: It is no image that the models take.
    """
    problems: list[Problem] = []
    image = at_rest("image", source, problems)
    if problems:
        raise InvalidJobError(problems)
    return image


def at_rest(path: str, source: object, problems: list[Problem]) -> Image:
    """The image at rest. Files are looked at later, off the event loop."""
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
    problems.append(Problem(path, problem))
    return b""


def _read(file: Any) -> tuple[bytes, str]:
    """The content of an open file, and what is wrong with it."""
    try:
        content = file.read(MAX_IMAGE_BYTES + 1)
    except UnicodeDecodeError:
        # A picture is no text in any encoding.
        content = ""
    except Exception as error:  # noqa: BLE001 -- the file is the caller's, and so is what it raises
        return b"", f"the file cannot be read: {type(error).__name__}: {error}"
    if isinstance(content, bytes):
        return content, bytes_problem(content)
    if isinstance(content, Coroutine):
        content.close()
        return b"", "an asynchronous file is read before: image=await file.read()"
    return b"", "expected a file opened in binary mode"


def _encoded(image: PillowImage) -> tuple[bytes, str]:
    """A PIL image as PNG, or as JPEG of quality 95 when the PNG would be over the limit; and what is wrong with it."""
    buffer = io.BytesIO()
    try:
        # The bytes that are sent have no EXIF data left to turn them by.
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
        upright = image if turn is None else image.transpose(turn)
        flat = upright if upright.mode in {"RGB", "L"} else upright.convert("RGB")
        flat.save(buffer, "PNG")
        if buffer.tell() > MAX_IMAGE_BYTES:
            buffer = io.BytesIO()
            flat.save(buffer, "JPEG", quality=95)
    except Exception as error:  # noqa: BLE001 -- Pillow raises many kinds for files that it opened and cannot decode
        return b"", f"the PIL image cannot be encoded: {type(error).__name__}: {error}"
    return buffer.getvalue(), bytes_problem(buffer.getvalue())


_ORIENTATION = 0x0112
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""What undoes each EXIF orientation, as `PIL.Image.Transpose` numbers it."""


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
        # A port that is no number is found only by asking for it.
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    else:
        if parts.scheme.lower() in {"http", "https"} and host and url.isprintable() and " " not in url:
            return ""
    return f"expected an http(s) URL, got {_public(url)[:60]!r}; a file is given as Path(...)"


def bytes_problem(content: bytes) -> str:
    """What is wrong with the bytes of an image by their beginning and number, or nothing. Pixels are measured later."""
    if not content:
        return "is empty"
    if len(content) > MAX_IMAGE_BYTES:
        return f"expected at most {MAX_IMAGE_BYTES // 2**20} MB, got more"
    if image_type(content) is None:
        return "expected a JPEG or PNG, the bytes are neither"
    return ""


def image_type(content: bytes) -> str | None:
    """The media type of a JPEG or PNG by its first bytes; None for anything else."""
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    return None

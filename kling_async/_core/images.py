"""Input images: the sources that callers may pass, and the plain form that a job keeps (URL, `Path` or bytes)."""

from __future__ import annotations

import base64
import re
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, Self, TypeAlias
from urllib.parse import urlsplit

from kling_async.errors import Problem

from .media import MAX_CONVERTED_BYTES
from .picture_facts import HEAD_BYTES, facts_of_bytes, media_type
from .picture_urls import url_caution
from .video_frames import VideoFrame, check_frame

_PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.-]+/[A-Za-z0-9/._~%+-]*")
"""A URL with nothing to look at closer: no port, user info, query or fragment."""


class PillowImage(Protocol):
    """The part of `PIL.Image.Image` by which one is known."""

    @property
    def mode(self) -> str:
        """Pixel format, such as "RGB"."""
        ...

    def save(self, fp: IO[bytes], format: str | None = None, **params: Any) -> None:  # noqa: A002 -- Pillow's name
        """Write the image to `fp`, encoded."""
        ...


class EncodedImage(bytes):
    """An image that was encoded here, with the digests by which earlier versions know it.

    Attributes:
        former: SHA-256 in hex of the bytes that versions with an earlier identity rule made of it, by rule; without
            those rules that made these bytes, or refused it.
    """

    former: Mapping[int, str]

    def __new__(cls, content: bytes, former: Mapping[int, str] | None = None) -> Self:
        """Return the image with its former digests."""
        made = super().__new__(cls, content)
        made.former = former or {}
        return made

    def __getnewargs__(self) -> tuple[bytes, Mapping[int, str]]:  # type: ignore[override]  # bytes have one argument
        return bytes(self), self.former


Image: TypeAlias = str | Path | bytes
"""An input image as a job keeps it: a URL, a file, or the bytes of one. A string never opens a file."""
Picture: TypeAlias = Image | VideoFrame
"""A picture as a job keeps it: an image, or a frame of a video, which becomes one before the job is sent."""
ImageSource: TypeAlias = str | Path | bytes | bytearray | memoryview | IO[bytes] | PillowImage | VideoFrame
"""A picture as callers may pass it: a `Picture`, an open binary file or a PIL image; these two are read at once."""


def image_repr(image: Picture | None) -> str:
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


def check_image(field: str, source: object, problems: list[Problem]) -> Picture:
    """Return the picture as a job keeps it, and append to `problems` if it is wrong. Paths are not opened here."""
    problem: str
    match source:
        case Path():
            return source
        case str():
            url, problem = _data_uri(source) if source.startswith("data:") else (source, _url_problem(source))
            if not problem:
                return url
        case EncodedImage() | VideoFrame():
            return check_frame(field, source, problems) if isinstance(source, VideoFrame) else source
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
            content, problem = _encoded(source)
            if not problem:
                return content
        case _:
            problem = _unknown(source)
    problems.append(Problem(field, problem))
    return b""


def _read(file: Any) -> tuple[bytes, str]:
    """Return the content of an open file, and the problem with it or an empty text."""
    try:
        content = file.read(MAX_CONVERTED_BYTES + 1)
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


def _encoded(image: object) -> tuple[bytes, str]:
    """Return a PIL image encoded as a viewer shows it, and the problem with it or an empty text."""
    try:
        from PIL import Image as Pillow  # noqa: PLC0415 -- an extra, which whoever has a PIL image has

        from .pixels import encoded  # noqa: PLC0415 -- see above
    except ImportError:
        return b"", _unknown(image)
    if not isinstance(image, Pillow.Image):
        return b"", _unknown(image)
    try:
        return encoded(image), ""
    except Exception as error:  # noqa: BLE001 -- Pillow raises many types for files that it cannot decode
        return b"", f"the PIL image cannot be encoded: {type(error).__name__}: {error}"


def _unknown(source: object) -> str:
    return (
        f"expected a URL, a Path, bytes, a binary file, a PIL image or a frame of a video, got {type(source).__name__}"
    )


def picture_cautions(image: Picture | None, *, fit: bool, local: bool = False) -> tuple[str, ...]:
    """Return what a service may not reach of an image, or show otherwise than a viewer; files are not opened.

    Args:
        image: The image.
        fit: Whether it is converted unless it is a URL.
        local: The service is an emulator on this machine.
    """
    if isinstance(image, str) and not image.startswith("data:"):
        caution = url_caution(image, local=local)
        return (caution,) if caution else ()
    if fit or image is None or isinstance(image, (Path, VideoFrame)):
        return ()
    facts = facts_of_bytes(image if isinstance(image, bytes) else content_of_uri(image))
    return () if facts is None else facts.cautions


def is_decoded(source: object) -> bool:
    """Return whether an image is a file or a PIL image, which take time to read or to encode."""
    return hasattr(source, "read") or (hasattr(source, "save") and hasattr(source, "mode"))


def content_of_uri(uri: str) -> bytes:
    """Return the content of a data URI in base64.

    Raises:
        ValueError: It is not base64.
    """
    return base64.b64decode(uri.partition(",")[2], validate=True)


def _data_uri(uri: str) -> tuple[str, str]:
    """Return a data URI as it is sent, and the problem with it or an empty text."""
    header, comma, payload = uri.partition(",")
    header = header.replace("data:image/jpg", "data:image/jpeg", 1)
    if not comma or not header.endswith(";base64") or not header.startswith("data:image/"):
        return "", "expected a data URI of an image in base64: data:image/jpeg;base64,..."
    # E-mails have it in lines of 76 characters.
    sent = f"{header},{''.join(payload.split())}"
    try:
        problem = bytes_problem(content_of_uri(sent))
    except ValueError:
        return "", "the data URI is not base64"
    # The same string if nothing was mended: it may be large.
    return uri if sent == uri else sent, problem


def _url_problem(url: str) -> str:
    if _PLAIN_URL.fullmatch(url):
        # Lists have millions of them, and parsing takes a sixth of the check of a row.
        return ""
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
    """Return the problem with an image by its first bytes and length, or an empty text.

    Whether it has to be converted is known to the session that sends it.
    """
    if not content:
        return "is empty"
    if len(content) > MAX_CONVERTED_BYTES:
        return f"expected at most {MAX_CONVERTED_BYTES // 2**20} MB, got more"
    if media_type(content[:HEAD_BYTES]) is None:
        return "expected a JPEG or PNG, the bytes are neither"
    return ""


def image_type(content: bytes) -> str | None:
    """Return the media type of a JPEG or PNG by its first bytes; None for anything else."""
    kind = media_type(content[:HEAD_BYTES])
    return kind if kind in {"image/jpeg", "image/png"} else None

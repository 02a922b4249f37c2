"""Input files of any kind: recognised by content, and named by their place in a job, such as `extra.videos[1]`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import IO, Any, Final, TypeAlias, cast

from kling_async.errors import Problem

from .images import Picture, bytes_problem, check_image, image_repr
from .media import MAX_CONVERTED_BYTES

File: TypeAlias = Path | bytes
"""A file of any kind as a job keeps it."""
FileSource: TypeAlias = Path | bytes | bytearray | memoryview | IO[bytes]
"""A file of any kind as callers may pass it; an open one is read at once."""

MAX_UPLOAD_BYTES: Final = 300 * 2**20
"""Most bytes of a video or a sound (docs: media-upload)."""
HEAD_BYTES: Final = 64
"""Bytes at the beginning of a file that tell its type."""
MEDIA: Final[Mapping[str, tuple[str, str, str]]] = {
    "image/jpeg": ("picture", "JPEG", ".jpg"),
    "image/png": ("picture", "PNG", ".png"),
    "video/mp4": ("video", "MP4", ".mp4"),
    "video/quicktime": ("video", "MOV", ".mov"),
    "video/webm": ("video", "WebM", ".webm"),
    "audio/mpeg": ("sound", "MP3", ".mp3"),
    "audio/wav": ("sound", "WAV", ".wav"),
}
"""Kind, name and suffix of the media types that are taken."""
EXPECTED: Final = "expected a picture (JPEG, PNG), a video (MP4, MOV, WebM) or a sound (MP3, WAV)"

_OTHERS: Final = {
    "video/x-matroska": "Matroska (MKV)",
    "video/x-msvideo": "AVI",
    "audio/mp4": "M4A",
    "audio/ogg": "Ogg",
    "audio/flac": "FLAC",
    "audio/aac": "AAC",
}
"""Names of media types that are recognised and refused."""
_PICTURE_BRANDS: Final = (b"avif", b"hei", b"hev", b"mif1", b"msf1")
_OLD_QUICKTIME_BOXES: Final = frozenset({b"moov", b"mdat", b"wide", b"pnot"})
_KIND_BY_WORD: Final = {"image": "picture", "video": "video", "audio": "sound"}
_PICTURE_FIELDS: Final = frozenset({"image", "end_image", "keyframes", "images"})
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def is_picture(kind: str) -> bool:
    """Return whether a media type is that of a picture."""
    return not kind.startswith(("video/", "audio/"))


def media_type(head: bytes) -> str | None:
    """Return the media type of a video or a sound by its first bytes; None for anything else, pictures included."""
    if head[4:8] == b"ftyp":
        return _type_by_brand(head[8:12], head[8:HEAD_BYTES])
    if head[4:8] in _OLD_QUICKTIME_BOXES:
        return "video/quicktime"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head else "video/x-matroska"
    if head.startswith(b"RIFF"):
        return {b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}.get(head[8:12])
    if head.startswith(b"OggS"):
        return "audio/ogg"
    if head.startswith(b"fLaC"):
        return "audio/flac"
    if head.startswith(b"ID3"):
        return "audio/mpeg"
    # A frame of MPEG audio begins with 11 bits that are set; the layer 3 is 01, and 00 is AAC.
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # noqa: PLR2004 -- see above
        return {0b01: "audio/mpeg", 0b00: "audio/aac"}.get(head[1] >> 1 & 0b11)
    return None


def _type_by_brand(brand: bytes, brands: bytes) -> str | None:
    """Return the media type of a file that begins with a list of brands."""
    if any(each in brands for each in _PICTURE_BRANDS):
        return None
    if brand.startswith(b"M4A"):
        return "audio/mp4"
    return "video/quicktime" if brand == b"qt  " else "video/mp4"


def media_problem(kind: str, size: int) -> str:
    """Return the problem of a video or a sound by its media type and its length in bytes, or an empty text."""
    if kind not in MEDIA:
        return f"{EXPECTED}, got {_OTHERS[kind]}"
    return f"expected at most {MAX_UPLOAD_BYTES // 2**20} MB, got more" if size > MAX_UPLOAD_BYTES else ""


def kind_problem(place: str, kind: str) -> str:
    """Return the problem of a file whose field names another kind of file, or an empty text.

    Args:
        place: Place in the job, such as `extra.reference_videos[1]`.
        kind: Media type of the file.
    """
    words = re.split(r"[^a-z]+", re.sub(r"\[\d+\]$", "", place).rpartition(".")[2].lower())
    named = {_KIND_BY_WORD[word.removesuffix("s")] for word in words if word.removesuffix("s") in _KIND_BY_WORD}
    got, name = ("picture", "") if is_picture(kind) else (MEDIA[kind][0], f" ({MEDIA[kind][1]})")
    if place.partition("[")[0] in _PICTURE_FIELDS:
        named = {"picture"}
    return f"expected a {named.pop()}, got a {got}{name}" if len(named) == 1 and got not in named else ""


def check_file(place: str, source: object, problems: list[Problem]) -> File:
    """Return a file of any kind as a job keeps it, and append to `problems` if it is wrong. Paths are not opened."""
    content: bytes | None = None
    if isinstance(source, Path):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
    elif hasattr(source, "read") and not isinstance(source, type):
        content, problem = _read(source)
        if problem:
            problems.append(Problem(place, problem))
            return b""
    if content is None:
        # A PIL image, or none of all.
        return cast("File", check_image(place, source, problems))
    problem = _content_problem(place, content)
    if problem:
        problems.append(Problem(place, problem))
        return b""
    return content


def _content_problem(place: str, content: bytes) -> str:
    kind = media_type(content[:HEAD_BYTES])
    if kind is not None:
        return media_problem(kind, len(content)) or kind_problem(place, kind)
    problem = bytes_problem(content)
    if problem.startswith("expected a JPEG or PNG"):
        return f"{EXPECTED}, the bytes are none of these"
    return problem or kind_problem(place, "image/png")


def _read(file: Any) -> tuple[bytes, str]:
    """Return the content of an open file, and the problem with it or an empty text."""
    try:
        content: object = file.read(MAX_CONVERTED_BYTES + 1)
        if isinstance(content, bytes) and len(content) > MAX_CONVERTED_BYTES and media_type(content[:HEAD_BYTES]):
            # Only videos and sounds may be larger.
            content += file.read(MAX_UPLOAD_BYTES + 1 - len(content))
    except UnicodeDecodeError:
        content = ""
    except Exception as error:  # noqa: BLE001 -- a caller's file object may raise anything
        return b"", f"the file cannot be read: {type(error).__name__}: {error}"
    if isinstance(content, bytes):
        return content, ""
    if isinstance(content, Coroutine):
        content.close()
        return b"", "expected bytes, got an asynchronous file: pass what await file.read() returns"
    return b"", "expected a file opened in binary mode"


def is_file_source(value: object) -> bool:
    """Return whether a value is a file as callers may pass it, or a PIL image."""
    if isinstance(value, (Path, bytes, bytearray, memoryview)):
        return True
    return not isinstance(value, type) and (
        hasattr(value, "read") or (hasattr(value, "save") and hasattr(value, "mode"))
    )


def replaced(value: object, place: str, replace: Callable[[str, object], object]) -> object:
    """Return a copy of a JSON value, of which every text, number and file is what `replace` returns for it.

    Args:
        value: The value.
        place: Its place in a job.
        replace: Function of the place and the value.
    """
    match value:
        case Mapping():
            items = cast("Mapping[str, object]", value).items()
            return {name: replaced(item, _member(place, name), replace) for name, item in items}
        case list() | tuple():
            values = cast("list[object]", value)
            return [replaced(item, f"{place}[{number}]", replace) for number, item in enumerate(values)]
        case _:
            return replace(place, value)


def _member(place: str, name: object) -> str:
    # Quoted, so that no two places have the same name.
    plain = isinstance(name, str) and _PLAIN_NAME.fullmatch(name)
    return f"{place}.{name}" if plain else f"{place}[{json.dumps(name, default=str)}]"


def with_values(fields: Mapping[str, object], values: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of the fields of a job with other values at some places.

    Args:
        fields: The fields.
        values: Values by their places.
    """
    names = {re.split(r"[.\[]", place, maxsplit=1)[0] for place in values}
    return {name: replaced(value, name, values.get) if name in names else value for name, value in fields.items()}


def files_in(value: object, place: str) -> dict[str, File]:
    """Return the files in a JSON value, by their places in a job."""
    found: dict[str, File] = {}
    # Not recursive: a value without files may be nested as deeply as JSON may be.
    left = [(place, value)]
    while left:
        where, item = left.pop()
        match item:
            case Path() | bytes():
                found[where] = item
            case Mapping():
                members = cast("Mapping[str, object]", item).items()
                left += [(_member(where, name), each) for name, each in reversed(list(members))]
            case list() | tuple():
                items = cast("list[object]", item)
                left += [(f"{where}[{number}]", items[number]) for number in reversed(range(len(items)))]
            case _:
                pass
    return found


def inputs_repr(value: object) -> str:
    """Return the repr of a JSON value without the contents of its files."""

    def shown(_: str, item: object) -> object:
        return _Shown(image_repr(item)) if isinstance(item, bytes) else item

    if not any(isinstance(file, bytes) for file in files_in(value, "").values()):
        return repr(value)
    return repr(replaced(value, "", shown))


class _Shown(str):
    """A text that is its own repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def is_url(image: Picture | None) -> bool:
    """Return whether an image is a URL, which the service fetches, and not a file, bytes, a data URI or a frame."""
    return isinstance(image, str) and not image.startswith("data:")

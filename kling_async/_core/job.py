"""What the caller asks for: checked before a byte is sent."""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import json
import math
import textwrap
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, TypedDict, Unpack, cast
from urllib.parse import urlsplit

import attrs

from .catalogue import DEFAULT_MODEL, Model, Price, find_model, near_names
from .errors import InvalidJobError, Problem

MAX_TEXT = 2500
"""Characters of a prompt and of a negative prompt (pages of standard and pro; ComfyUI node)."""
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


Image: TypeAlias = str | Path | bytes
"""An input image at rest: a URL, a file, or the bytes of a JPEG or PNG. A string never opens a file."""
ImageSource: TypeAlias = str | Path | bytes | bytearray | memoryview | IO[bytes] | PillowImage
"""What is accepted as an image: also an open binary file and a PIL image, both read at once."""


class JobFields(TypedDict, total=False):
    """The fields of a job, by the names that `Job`, `generate` and `submit` take."""

    model: str
    prompt: str
    image: ImageSource
    end_image: ImageSource
    negative_prompt: str
    guidance_scale: float
    duration: int | str
    sound: bool
    extra: Mapping[str, object]


def _text(text: str | None) -> str:
    return "None" if text is None else repr(textwrap.shorten(text, 60, placeholder="..."))


def _image(image: Image | None) -> str:
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


def _shown(value: object) -> str:
    """The beginning of `repr(value)`, which is the caller's: an integer of 5,000 digits has none."""
    try:
        return repr(value)[:40]
    except Exception:  # noqa: BLE001 -- whatever a foreign `__repr__` raises, the field is what is wrong
        return f"a value of type {type(value).__name__}"


@attrs.frozen(kw_only=True, init=False)
class Job:
    """One video to make: plain data, complete and checked.

    Attributes:
        model: Full id of the model, resolved from the full id, a short name (`"kling-v2.1-pro"`) or an alias.
        prompt: 1 to 2,500 characters; empty only where the model's row allows it.
        image: The first frame: a URL, a `Path`, or the bytes of a JPEG or PNG of at most 10 MB and at least 300 x 300
            pixels. A file object or a PIL image is read when the job is made.
        end_image: The last frame, for the models that take one.
        negative_prompt: What to avoid, at most 2,500 characters.
        guidance_scale: 0 to 1; None leaves the service's 0.5.
        duration: Seconds of video, as the model's row allows; 5 by default. `"5"` is accepted.
        sound: Whether to make sound too, for the models that can.
        extra: Fields that are sent as they are and not checked. The service drops names that it does not know,
            silently, and charges: this is the door for what the catalogue does not know yet.

    Raises:
        InvalidJobError: With the path of every field that is wrong.
    """

    model: str
    prompt: str = attrs.field(repr=_text)
    image: Image = attrs.field(repr=_image)
    end_image: Image | None = attrs.field(repr=_image)
    negative_prompt: str | None = attrs.field(repr=_text)
    guidance_scale: float | None
    duration: int
    sound: bool | None
    extra: Mapping[str, object] = attrs.field(hash=False)

    def __init__(self, /, **fields: Unpack[JobFields]) -> None:
        self.__attrs_init__(**_checked(dict(fields)))

    @property
    def row(self) -> Model:
        """The model's row of the catalogue."""
        row = find_model(self.model)
        if row is None:  # pragma: no cover -- a job is made only with a model that exists
            raise LookupError(self.model)
        return row

    def price(self, provider: str = "wavespeed") -> Price:
        """What it costs by the price list, in USD."""
        return self.row.price(self.duration, provider=provider, sound=bool(self.sound))

    def inputs(self, image: str, end_image: str | None) -> dict[str, object]:
        """The request body, with the images as URLs. Fields that were not given are left to the service's defaults."""
        row = self.row
        body: dict[str, object] = {}
        if self.prompt:
            body["prompt"] = self.prompt
        body["image"] = image
        if row.end_image is not None and end_image is not None:
            body[row.end_image.field] = end_image
        if self.negative_prompt is not None:
            body["negative_prompt"] = self.negative_prompt
        if row.scale is not None and self.guidance_scale is not None:
            body[row.scale] = self.guidance_scale
        # Sent even when it is the default: it decides the price.
        body["duration"] = self.duration
        if self.sound is not None:
            body["sound"] = self.sound
        return body | dict(self.extra)

    def digest(self, image_digest: Callable[[Image], str]) -> str:
        """The digest of the content: the same for the same job, whatever the names of its files.

        Args:
            image_digest: The digest of an image's content; a URL is its own content.
        """
        content = {
            "model": self.model,
            "inputs": self.inputs(
                image_digest(self.image), None if self.end_image is None else image_digest(self.end_image)
            ),
        }
        return hashlib.sha256(
            json.dumps(content, sort_keys=True, separators=(",", ":"), default=str).encode()
        ).hexdigest()


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """All fields of a job, normalised; or InvalidJobError with all that is wrong."""
    problems: list[Problem] = []
    given = {name: value for name, value in fields.items() if value is not None}
    for name in [name for name in fields if name not in JobFields.__annotations__]:
        near = difflib.get_close_matches(name, [*JobFields.__annotations__, *_SYNONYMS], n=1, cutoff=0.6)
        meant = _SYNONYMS.get(near[0], near[0]) if near else None
        hint = f"; did you mean {meant}?" if meant else "; the fields are " + ", ".join(JobFields.__annotations__)
        problems.append(Problem(name, "unknown field, the service would drop it and charge" + hint))

    row = _model(given.get("model", DEFAULT_MODEL), problems)
    checked: dict[str, Any] = {
        "model": row.id if row else "",
        "prompt": _prompt(given.get("prompt", ""), row, problems),
        "image": b"",
        "end_image": None,
        "negative_prompt": None,
        "guidance_scale": None,
        "duration": _duration(given.get("duration", 5), row, problems),
        "sound": None,
        "extra": {},
    }
    if "image" in given:
        checked["image"] = _picture("image", given["image"], problems)
    else:
        problems.append(Problem("image", "required: a URL, a Path, or the bytes of a JPEG or PNG"))
    _end_image(given, row, checked, problems)
    if "negative_prompt" in given:
        checked["negative_prompt"] = _short("negative_prompt", given["negative_prompt"], problems)
    if "guidance_scale" in given:
        checked["guidance_scale"] = _scale(given["guidance_scale"], row, problems)
    if "sound" in given:
        if not isinstance(given["sound"], bool):
            problems.append(Problem("sound", f"expected True or False, got {_shown(given['sound'])}"))
        elif row is not None and not row.sound:
            problems.append(Problem("sound", f"{row.name} makes no sound"))
        checked["sound"] = given["sound"]
    _extra(given.get("extra", {}), checked, problems)
    if problems:
        raise InvalidJobError(problems)
    return checked


_SYNONYMS = {
    "cfg_scale": "guidance_scale",
    "last_image": "end_image",
    "tail_image": "end_image",
    "start_image": "image",
    "image_url": "image",
    "seconds": "duration",
    "text": "prompt",
}


def _model(name: object, problems: list[Problem]) -> Model | None:
    if not isinstance(name, str):
        problems.append(Problem("model", f"expected a name, got {type(name).__name__}"))
        return None
    row = find_model(name)
    if row is None:
        problems.append(Problem("model", f"unknown model {name[:80]!r}; did you mean {' or '.join(near_names(name))}?"))
    return row


def _short(path: str, text: object, problems: list[Problem]) -> str:
    if not isinstance(text, str):
        problems.append(Problem(path, f"expected text, got {type(text).__name__}"))
        return ""
    if len(text) > MAX_TEXT:
        problems.append(Problem(path, f"expected at most {MAX_TEXT} characters, got {len(text)}"))
    try:
        text.encode()
    except UnicodeEncodeError:
        problems.append(Problem(path, "has a lone surrogate, which is no text"))
    return text


def _prompt(text: object, row: Model | None, problems: list[Problem]) -> str:
    prompt = _short("prompt", text, problems)
    if isinstance(text, str) and not prompt.strip() and (row is None or row.prompt_required):
        problems.append(Problem("prompt", f"required: 1 to {MAX_TEXT} characters"))
    return prompt


def _duration(value: object, row: Model | None, problems: list[Problem]) -> int:
    durations = row.durations if row else (5, 10)
    # The length is bounded because `int` refuses texts of thousands of digits with an error of its own.
    numeric = isinstance(value, str) and len(value) < 10 and value.strip().isdecimal()  # noqa: PLR2004 -- see above
    seconds: object = int(cast("str", value)) if numeric else value
    if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds not in durations:
        allowed = (
            f"{durations[0]} to {durations[-1]}"
            if len(durations) > 2  # noqa: PLR2004 -- two are said by name, more as a range
            else " or ".join(map(str, durations))
        )
        problems.append(Problem("duration", f"expected {allowed}, got {_shown(value)}"))
        return 0
    return seconds


def _scale(value: object, row: Model | None, problems: list[Problem]) -> float | None:
    if row is not None and row.scale is None:
        problems.append(Problem("guidance_scale", f"{row.name} has no guidance scale"))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1 or math.isnan(value):
        problems.append(Problem("guidance_scale", f"expected a number from 0 to 1, got {_shown(value)}"))
        return None
    return float(value)


def _end_image(given: dict[str, Any], row: Model | None, checked: dict[str, Any], problems: list[Problem]) -> None:
    if "end_image" not in given:
        if row is not None and row.end_image is not None and row.end_image.required:
            problems.append(Problem("end_image", f"required by {row.name}: a URL, a Path, or bytes"))
        return
    if row is not None and row.end_image is None:
        problems.append(Problem("end_image", f"{row.name} takes no last frame"))
    checked["end_image"] = _picture("end_image", given["end_image"], problems)


def _extra(extra: object, checked: dict[str, Any], problems: list[Problem]) -> None:
    if not isinstance(extra, Mapping):
        problems.append(Problem("extra", f"expected a mapping, got {type(extra).__name__}"))
        return
    problems.extend(
        Problem(f"extra.{name}", "is a field of the job: give it by its name")
        for name in extra
        if name in JobFields.__annotations__
    )
    try:
        # A private copy of plain JSON, so that a job stays what it was when it was checked.
        text = json.dumps(dict(extra), allow_nan=False, ensure_ascii=False)
        text.encode()
        checked["extra"] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(Problem("extra", f"is not JSON: {error}"))


def image_at_rest(source: ImageSource) -> Image:
    """An image as a URL, a path or bytes: file objects and PIL images are read.

    Raises:
        InvalidJobError: It is no image that the models take.
    """
    problems: list[Problem] = []
    image = _picture("image", source, problems)
    if problems:
        raise InvalidJobError(problems)
    return image


def _picture(path: str, source: object, problems: list[Problem]) -> Image:
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
        flat = image if image.mode in {"RGB", "L"} else image.convert("RGB")
        flat.save(buffer, "PNG")
        if buffer.tell() > MAX_IMAGE_BYTES:
            buffer = io.BytesIO()
            flat.save(buffer, "JPEG", quality=95)
    except Exception as error:  # noqa: BLE001 -- Pillow raises many kinds for files that it opened and cannot decode
        return b"", f"the PIL image cannot be encoded: {type(error).__name__}: {error}"
    return buffer.getvalue(), bytes_problem(buffer.getvalue())


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

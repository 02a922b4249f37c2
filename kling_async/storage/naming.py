"""Names of outputs, from keys and templates; no name leads out of its folder."""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs

from kling_async._core.catalogue import find_model
from kling_async.errors import ConfigurationError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["FIELDS", "Fields", "Template", "target_path"]

SUFFIX = ".mp4"
_YEAR_1, _YEAR_9999 = (datetime(year, 12, 31, tzinfo=UTC).timestamp() for year in (1, 9999))
MEDIA_TYPES: Mapping[str, str] = {
    SUFFIX: "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".mp3": "audio/mpeg",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".ogg": "audio/ogg",
    ".glb": "model/gltf-binary",
}
"""Media types of outputs by suffix: those of Kling are MP4s, other models of the service make other files."""
FIELDS = ("key", "model", "id", "batch", "date", "shard")
"""Fields that a template may contain."""

_MAX_NAME_BYTES = 120
"""Length of a file name made of one value, suffix included; far below the 255 of file systems."""
_MAX_COMPONENT_BYTES = 200
"""Length of a file or folder name made of several values; leaves room for a dot, `.part` and a digest."""


@attrs.frozen(kw_only=True)
class Fields:
    """Values for the name of one output.

    Attributes:
        key: The job's key.
        id: The prediction's id.
        model: The model's id, or empty.
        batch: The batch's name, or empty.
        at: Time of acceptance of the job, seconds since the epoch.
        suffix: Suffix of the output.
        picture: Name of the picture of a job without a key of its caller's, empty if it has none; None with a key.
        alone: Whether the name of the picture stands for `{key}` alone, without the key behind it.
    """

    key: str
    id: str
    model: str = ""
    batch: str = ""
    at: float = 0.0
    suffix: str = SUFFIX
    picture: str | None = None
    alone: bool = False

    def value(self, field: str) -> str:
        """Return the value of a field of `FIELDS`."""
        match field:
            case "key" if self.picture:
                return self.picture if self.alone else f"{self.picture}-{self.key}"
            case "key" | "id":
                return str(getattr(self, field))
            case "model":
                row = find_model(self.model)
                return row.name if row else self.model or "unknown"
            case "batch":
                return self.batch or "unnamed"
            case "date":
                return datetime.fromtimestamp(min(max(self.at, _YEAR_1), _YEAR_9999), UTC).date().isoformat()
            case _:
                return _digest(self.key)[:2]


@attrs.frozen
class _Piece:
    """Literal text and the field that follows it, if any."""

    text: str
    field: str | None = None


class Template:
    """Relative name with fields in braces, such as `{date}/{model}/{key}.mp4`.

    `{key}` is the job's key, `{id}` the prediction's id, `{model}` the model's short name, `{batch}` the batch's name
    ("unnamed" without one), `{date}` the day (UTC) of acceptance, `{shard}` two hex digits of the key's digest, which
    spread the files over 256 folders. `.mp4` is added if it is missing, `{key}` after a final slash. Double a literal
    brace. Outputs of other kinds have their own suffix instead.

    In the name of a file, `{key}` of a job without a key of its caller's is the name of its picture, and behind it the
    key, unless the name stands alone (`Fields.alone`).

    Args:
        text: The template.

    Raises:
        ConfigurationError: It does not give a valid name for any values.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        stem = text + "{key}" if text.endswith("/") else text
        if stem.lower().endswith(SUFFIX):
            stem = stem[: -len(SUFFIX)]
        try:
            self._components = _components(stem)
            for component in self._components:
                _check(component)
        except ValueError as error:
            raise ConfigurationError(
                f"output name {text!r}: {error}", advice="correct the template; nothing was sent"
            ) from None

    @property
    def fields(self) -> frozenset[str]:
        """Fields in the template."""
        return frozenset(piece.field for component in self._components for piece in component if piece.field)

    @property
    def ends_in_key(self) -> bool:
        """True if the key is part of the file's name, and not only of its folders'."""
        return any(piece.field == "key" for piece in self._components[-1])

    def render(self, fields: Fields) -> str:
        """Return the relative name of an output, with slashes.

        A value never adds a path component: characters other than letters and digits of any script, `._-` and, in the
        key as part of a file's name, single marks such as spaces and parentheses are replaced, and a digest of the
        value is added.
        """
        # A saved video is found by its folder, and a picture may be renamed.
        plain = attrs.evolve(fields, picture=None)
        folders = (_as_folder_name(_rendered(component, plain)) for component in self._components[:-1])
        return "/".join([*folders, _rendered(self._components[-1], fields, named=True) + fields.suffix])

    def named_otherwise_before(self, fields: Fields) -> bool:
        """Return whether earlier versions gave the file of a job another name: that of its key, or without spaces."""
        if not self.ends_in_key:
            return False
        return fields.picture is not None or any(mark in fields.key for mark in _MARKS)


def suffix_of(url: str) -> str:
    """Return the suffix of an output by its URL; that of an MP4 if the URL tells none that is known."""
    try:
        suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    except ValueError:
        # It is no URL: the download says so.
        return SUFFIX
    return suffix if suffix in MEDIA_TYPES else SUFFIX


def target_path(where: str | os.PathLike[str], name: str, suffix: str = SUFFIX) -> Path:
    """Return the path of an output.

    Args:
        where: A file if it ends in `suffix`, else a folder.
        name: Name in the folder, usually a job's key. It cannot lead out of the folder: characters other than letters
            and digits of any script, `._-`, spaces, parentheses and other usual marks are replaced, and a digest of
            `name` is added, so that names stay distinct.
        suffix: The suffix of the file.
    """
    path = Path(where)
    if path.suffix.lower() == suffix:
        return path
    return path / (_safe(name, _MAX_NAME_BYTES - len(suffix), _MARKS) + suffix)


def folder_name(value: str) -> str:
    """Return the name of a folder for a value, such as the name of a batch; no other value has the same."""
    return _safe(value, _MAX_NAME_BYTES - len(SUFFIX))


_MARKS = " ()+,&@'"
"""Marks that names of pictures have, and that every file system takes. In names of folders they are replaced, as
earlier versions did: saved videos are looked for there."""
_UNSAFE_AT_ENDS = re.compile(r"^[. -]+|[ ]+$")
_SAFE = frozenset(string.ascii_letters + string.digits + "._-")
_KEPT = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Mn", "Mc"})
"""Categories of the characters outside of ASCII that names have: letters, digits, and marks on them."""
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


def _safe(value: str, longest: int, marks: str = "") -> str:
    """Return a value as part of a name: unchanged if it is valid on every system, else with its digest.

    Args:
        value: The value, in any script.
        longest: Most bytes of the part.
        marks: Characters that are kept besides letters, digits, marks on them, and `._-`.
    """
    # One form of the accents: some file systems do not tell the two apart.
    plain = unicodedata.normalize("NFC", value)
    safe = "".join(one if _is_kept(one) or one in marks else "_" for one in plain)
    safe = _UNSAFE_AT_ENDS.sub("_", safe)
    if safe == value and value and len(safe.encode()) <= longest and not _RESERVED.match(safe):
        return safe
    return _cut(_with_digest(safe, value), longest)


def _is_kept(one: str) -> bool:
    return one in _SAFE if one.isascii() else unicodedata.category(one) in _KEPT


def _with_digest(text: str, value: str) -> str:
    # The digest precedes the first dot, because Windows reserves CON.mp4 and CON.a.mp4 like CON.
    stem, dot, rest = text.partition(".")
    return f"{_cut(stem, 40) or 'output'}-{_digest(value)[:10]}{dot}{rest}"


def _cut(text: str, longest: int) -> str:
    """Return the beginning of a text, at most so many bytes long: file systems limit bytes, not characters."""
    return text if len(text) * 4 <= longest else text.encode(errors="replace")[:longest].decode(errors="ignore")


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()


def _components(text: str) -> list[list[_Piece]]:
    """Split a template at its slashes.

    Raises:
        ValueError: It is not a valid template.
    """
    components: list[list[_Piece]] = [[]]
    for literal, field, spec, conversion in string.Formatter().parse(text):
        first, *others = literal.split("/")
        components[-1].append(_Piece(first))
        components += [[_Piece(other)] for other in others]
        if field is None:
            continue
        if field not in FIELDS:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise ValueError(f"unknown field {{{field}}}; expected one of {known}")
        if spec or conversion:
            raise ValueError(f"{{{field}}} takes no format")
        components[-1].append(_Piece("", field))
    return components


def _check(component: list[_Piece]) -> None:
    """Check that a component is a valid name on every system, for any values.

    Raises:
        ValueError: It is not.
    """
    text = "".join(piece.text for piece in component)
    constant = all(piece.field is None for piece in component)
    if constant and text in {"", ".", ".."}:
        raise ValueError(f"{text!r} between slashes is not a name; expected a path relative to its folder")
    forbidden = _FORBIDDEN.search(text)
    if forbidden:
        raise ValueError(f"{forbidden[0]!r} is not allowed in names on every system")
    if not text.isprintable() or text != text.strip() or (constant and text.endswith(".")):
        raise ValueError(f"{text!r} is not a valid name on every system")
    if constant and (_RESERVED.match(text) or len(text.encode()) > _MAX_COMPONENT_BYTES):
        raise ValueError(f"{text!r} is a reserved name or too long")


def _rendered(component: list[_Piece], fields: Fields, *, named: bool = False) -> str:
    """Return a component of a name.

    Args:
        component: Its pieces.
        fields: The values.
        named: Whether it is the name of a file, in which the key keeps the marks of names.
    """
    longest = _MAX_NAME_BYTES - len(SUFFIX)
    name = "".join(
        piece.text
        if piece.field is None
        else _safe(fields.value(piece.field), longest, _MARKS if named and piece.field == "key" else "")
        for piece in component
    )
    if _RESERVED.match(name) or name.startswith("..") or len(name.encode()) > _MAX_COMPONENT_BYTES:
        return _with_digest(_cut(name, 100).strip(". "), name)
    return name


def _as_folder_name(name: str) -> str:
    """Replace final dots, which Windows drops from a folder's name."""
    return f"{name.rstrip('.')}-{_digest(name)[:10]}" if name.endswith(".") else name

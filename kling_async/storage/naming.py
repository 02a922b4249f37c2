"""What outputs are called: names made of keys and of templates, none of which leads out of its folder."""

from __future__ import annotations

import hashlib
import re
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kling_async._core.catalogue import find_model
from kling_async.errors import ConfigurationError

if TYPE_CHECKING:
    import os

__all__ = ["FIELDS", "Fields", "Template", "target_path"]

SUFFIX = ".mp4"
FIELDS = ("key", "model", "id", "batch", "date", "shard")
"""What a template may name in braces."""

_MAX_NAME = 120
"""Bytes of a file name that is made of one value, its suffix included: far below the 255 of file systems."""
_MAX_COMPONENT = 200
"""Bytes of a file or folder name that is made of several values; a dot, `.part` and a digest still fit."""


@attrs.frozen(kw_only=True)
class Fields:
    """What the name of one output may be made of.

    Attributes:
        key: The job's key.
        id: The prediction's id.
        model: The model's id, or empty.
        batch: The batch's name, or empty.
        at: When the job was accepted, seconds since the epoch.
    """

    key: str
    id: str
    model: str = ""
    batch: str = ""
    at: float = 0.0

    def value(self, field: str) -> str:
        """What a field of `FIELDS` stands for."""
        match field:
            case "key" | "id":
                return str(getattr(self, field))
            case "model":
                row = find_model(self.model)
                return row.name if row else self.model or "unknown"
            case "batch":
                return self.batch or "unnamed"
            case "date":
                return datetime.fromtimestamp(self.at, UTC).date().isoformat()
            case _:
                return _digest(self.key)[:2]


@attrs.frozen
class _Piece:
    """Text, and the field that follows it."""

    text: str
    field: str | None = None


class Template:
    """A relative name with fields in braces, such as `{date}/{model}/{key}.mp4`.

    `{key}` is the job's key, `{id}` the prediction's id, `{model}` the model's short name, `{batch}` the batch's name
    ("unnamed" without one), `{date}` the day (UTC) of acceptance, `{shard}` two hex digits of the key's digest, which
    spread the files over 256 folders. `.mp4` is added where it is missing, and `{key}` after a final slash. A brace
    that is meant as such is doubled.

    Args:
        text: The template.

    Raises:
        ConfigurationError: It cannot be a name, whatever the values.
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
                f"the name {text!r} of outputs: {error}", advice="correct the template; nothing was sent"
            ) from None

    @property
    def fields(self) -> frozenset[str]:
        """The fields that it has."""
        return frozenset(piece.field for component in self._components for piece in component if piece.field)

    def render(self, fields: Fields) -> str:
        """The relative name of an output, its parts joined by slashes.

        A value is one part of a name at most: what is not a letter, a digit or one of `._-` is replaced, and a digest
        of the value is added then.
        """
        *folders, last = (_rendered(component, fields) for component in self._components)
        return "/".join([*map(_as_folder, folders), last + SUFFIX])


def target_path(where: str | os.PathLike[str], name: str, suffix: str = SUFFIX) -> Path:
    """The file for an output.

    Args:
        where: A file when it ends in `suffix`, else a folder.
        name: What to call it in a folder, usually a job's key. It cannot lead out of the folder: what is not a letter,
            a digit or one of `._-` is replaced, and a digest of `name` is added then, so that no two names meet.
        suffix: The suffix of the file.
    """
    path = Path(where)
    if path.suffix.lower() == suffix:
        return path
    return path / (_safe(name, _MAX_NAME - len(suffix)) + suffix)


_UNSAFE = re.compile(r"^[.-]+|[^A-Za-z0-9._-]")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)", re.IGNORECASE)
_NEVER = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


def _safe(value: str, longest: int) -> str:
    """The value as a part of a name: unchanged where that is safe everywhere, else marked by its digest."""
    safe = _UNSAFE.sub("_", value)
    if safe == value and value and len(safe) <= longest and not _RESERVED.match(safe):
        return safe
    return _marked(safe, value)[:longest]


def _marked(text: str, value: str) -> str:
    # The mark precedes the first dot, because Windows reserves CON.mp4 and CON.a.mp4 like CON.
    stem, dot, rest = text.partition(".")
    return f"{stem[:40] or 'output'}-{_digest(value)[:10]}{dot}{rest}"


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()


def _components(text: str) -> list[list[_Piece]]:
    """The parts of a template between its slashes.

    Raises:
        ValueError: It is no template.
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
            raise ValueError(f"unknown field {{{field}}}; there are {known}")
        if spec or conversion:
            raise ValueError(f"{{{field}}} takes no format")
        components[-1].append(_Piece("", field))
    return components


def _check(component: list[_Piece]) -> None:
    """Whatever the values are, this is a name.

    Raises:
        ValueError: It is not.
    """
    text = "".join(piece.text for piece in component)
    constant = all(piece.field is None for piece in component)
    if constant and text in {"", ".", ".."}:
        raise ValueError(f"{text!r} between slashes is no name; it is relative to its folder and stays there")
    unfit = _NEVER.search(text)
    if unfit:
        raise ValueError(f"{unfit[0]!r} cannot stand in names everywhere")
    if not text.isprintable() or text != text.strip() or (constant and text.endswith(".")):
        raise ValueError(f"{text!r} cannot be a name everywhere")
    if constant and (_RESERVED.match(text) or len(text.encode()) > _MAX_COMPONENT):
        raise ValueError(f"{text!r} is a reserved name or too long")


def _rendered(component: list[_Piece], fields: Fields) -> str:
    longest = _MAX_NAME - len(SUFFIX)
    name = "".join(
        piece.text if piece.field is None else _safe(fields.value(piece.field), longest) for piece in component
    )
    if _RESERVED.match(name) or name.startswith("..") or len(name.encode()) > _MAX_COMPONENT:
        # Cut in bytes, since it is bytes that file systems count.
        return _marked(name.encode()[:100].decode(errors="ignore").strip(". "), name)
    return name


def _as_folder(name: str) -> str:
    """Windows drops dots at the end of a folder's name."""
    return f"{name.rstrip('.')}-{_digest(name)[:10]}" if name.endswith(".") else name

"""Files that rows name: found below the folder of a list, however the name is written."""

from __future__ import annotations

import base64
import functools
import itertools
import os
import re
import shlex
import stat
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_FILE_URL: Final = "file:"
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")
_BASE64: Final = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")
"""Beginnings of JPEG, PNG, WebP and GIF pictures in base64."""
_PICTURES: Final = (*_BASE64, "data:image/")
_MIN_BASE64: Final = 100
_MAX_TEXT_IN_MESSAGE: Final = 120
_MAX_FOLDERS: Final = 64
_MAX_SUBFOLDERS: Final = 16
"""Subfolders that are searched for a file that a list names without its folder."""


def shown(text: str) -> str:
    """Return the beginning of a text for a message."""
    return repr(text[:_MAX_TEXT_IN_MESSAGE])


def content_of_base64(text: str) -> bytes | None:
    """Return the picture that a text is in base64; None if it is none.

    Raises:
        ValueError: It begins as one and is cut or damaged.
    """
    if not text.startswith(_BASE64) or len(text) < _MIN_BASE64:
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise ValueError(
            f"begins as a picture in base64, and is cut or damaged after {len(text):,} characters (a cell of Excel "
            "holds 32,767): name the file instead"
        ) from None


def looks_like_picture(value: object) -> bool:
    """Return whether a value is, or begins as, a picture in base64 or a data URI."""
    return isinstance(value, str) and len(value) >= _MIN_BASE64 and value.startswith(_PICTURES)


def find_file(text: str, root: Path) -> Path:
    """Return the file that a row names, which may be written as another system writes it.

    Args:
        text: Its path, or its `file:` URL.
        root: The folder that it lies below.

    Raises:
        ValueError: It does not exist, is no regular file, or is outside of the root; the message says how to fix it.
    """
    if not text.strip():
        raise ValueError("is empty")
    # As strings: with many rows, path objects would take most of the time.
    base = str(root)
    inside = base.rstrip(os.sep) + os.sep
    problem = ""
    for form in _forms(text):
        # Resolved, so that neither `..` nor a symbolic link leads out of the root.
        path = os.path.realpath(os.path.join(base, form))  # noqa: PTH118 -- see above
        if not path.startswith(inside):
            said = f"is outside of {root}"
        else:
            try:
                found = os.stat(path)  # noqa: PTH116 -- see above
            except FileNotFoundError:
                link = os.path.islink(os.path.join(base, form))  # noqa: PTH114, PTH118 -- see above
                said = f"is a link to a file that is not there: {path}" if link else f"does not exist (in {root})"
            except OSError as error:
                said = f"cannot be read: {error.strerror or error}"
            else:
                if stat.S_ISREG(found.st_mode):
                    return Path(path)
                said = f"is not a file (in {root})"
        problem = problem or said
    raise ValueError(f"{shown(text)} {problem}{_hint(text, base)}")


def _forms(text: str) -> Iterator[str]:
    """Yield a path as it is written, then as it may be meant."""
    if text.startswith(_FILE_URL):
        path = unquote(urlsplit(text).path)
        # file:///C:/photos/a.jpg
        yield path[1:] if _DRIVE.match(path[1:]) else path
        return
    yield text
    if "\\" in text and os.sep == "/":
        yield text.replace("\\", "/")
    if not text.isascii():
        # Systems write accents as one character or as two.
        yield unicodedata.normalize("NFC", text)
        yield unicodedata.normalize("NFD", text)
    if "%" in text:
        yield unquote(text)
    if text != text.strip():
        yield text.strip()


def _hint(text: str, base: str) -> str:
    """Return what to do about a file that is not found, as the end of a message."""
    path = next(_forms(text)).replace("\\", "/").strip()
    folder, _, name = path.rpartition("/")
    for place in dict.fromkeys((os.path.join(base, folder), base)):  # noqa: PTH118 -- as above
        near = _near(name, place)
        if near == name and os.path.lexists(os.path.join(base, path)):  # noqa: PTH118 -- as above
            # It is there itself, as a link.
            return ""
        if near and os.path.realpath(place).startswith(base):
            return f"; {os.path.relpath(os.path.join(place, near), base)!r} is there"  # noqa: PTH118 -- as above
    below = "" if folder else _in_subfolder(name, base)
    if below:
        return f"; {os.path.join(below, name)!r} is there: name the folder of the files, --root {shlex.quote(below)}"  # noqa: PTH118 -- as above
    if _DRIVE.match(path):
        return ": a path on another computer; copy the pictures here and name them without the folders"
    return ""


def _in_subfolder(name: str, base: str) -> str:
    """Return the only subfolder of a folder that has a file of a name; empty if none or several have it."""
    try:
        folders = _folders(base, os.stat(base).st_mtime_ns)  # noqa: PTH116 -- as above
    except OSError:
        return ""
    found = [folder for folder in folders if os.path.isfile(os.path.join(base, folder, name))]  # noqa: PTH113, PTH118 -- as above
    return found[0] if len(found) == 1 else ""


@functools.lru_cache(_MAX_FOLDERS)
def _folders(base: str, changed_at: int) -> tuple[str, ...]:
    """Return the first subfolders of a folder, as it was at a time."""
    del changed_at
    with os.scandir(base) as entries:
        return tuple(
            itertools.islice(
                (one.name for one in entries if one.is_dir(follow_symlinks=False) and not one.name.startswith(".")),
                _MAX_SUBFOLDERS,
            )
        )


def _near(name: str, folder: str) -> str:
    """Return the only file of a folder that has nearly a name: in other case, or with a suffix; empty if none has."""
    try:
        names = _names(folder, os.stat(folder).st_mtime_ns)  # noqa: PTH116 -- as above
    except (OSError, ValueError):
        return ""
    found = names.get(_folded(name)) or names.get(_folded(os.path.splitext(name)[0])) or []  # noqa: PTH122 -- as above
    return found[0] if len(found) == 1 else ""


@functools.lru_cache(_MAX_FOLDERS)
def _names(folder: str, changed_at: int) -> Mapping[str, list[str]]:
    """Return the files of a folder, as it was at a time, by their names, and without suffix, in one form."""
    del changed_at
    names: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            for form in {_folded(entry.name), _folded(os.path.splitext(entry.name)[0])}:  # noqa: PTH122 -- as above
                names.setdefault(form, []).append(entry.name)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()

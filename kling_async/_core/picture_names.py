"""Names of pictures, after which the videos of jobs without a key are named."""

from __future__ import annotations

import json
import re
import unicodedata
from array import array
from bisect import bisect_left
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from .job_key import looks_derived

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .content import Content

_MAX_NAME_BYTES = 100
"""Most bytes of a name in UTF-8; a longer one, such as that of a generated URL, tells nobody anything."""
_BUCKETS = 256
_URL_NAME = re.compile(r"[^/]*//[^/?#]*/(?:[^?#]*/)?([^/?#]*)")


def picture_name(image: object) -> str:
    """Return the name of a picture without its suffix; empty for one without a name.

    Args:
        image: The picture: a URL, a `Path`, or the path of a file as text.
    """
    if isinstance(image, Path):
        name = image.name
    elif not isinstance(image, str) or image.startswith("data:"):
        return ""
    elif "://" in image:
        if "?" in image or "#" in image:
            match = _URL_NAME.match(image)
            name = "" if match is None else match[1]
        else:
            folder, _, name = image.rpartition("/")
            # A host alone has no name.
            name = "" if folder.endswith("/") else name
        if "%" in name:
            name = unquote(name)
    else:
        name = image.replace("\\", "/").rpartition("/")[2]
    name = (name.rpartition(".")[0] or name).strip()
    if len(name) > _MAX_NAME_BYTES or not name.isprintable() or "/" in name:
        return ""
    if name.isascii():
        return name
    # Systems write accents as one character or as two, and the name is the same. Lone surrogates are not printable.
    name = unicodedata.normalize("NFC", name)
    return name if len(name.encode()) <= _MAX_NAME_BYTES else ""


def shown_name(key: str, image: object) -> str:
    """Return what people are shown of a job: its key, or the name of its picture if the key is a hash of its content.

    Args:
        key: The job's key.
        image: Its picture, as for `picture_name`.
    """
    return (picture_name(image) if looks_derived(key) else "") or key


def name_in_content(content: Content) -> str:
    """Return the name of the first frame of a job; empty if it has none."""
    paths: dict[str, str] = json.loads(content.files) if content.files else {}
    if "image" in paths:
        return picture_name(Path(paths["image"]))
    image = str(json.loads(content.text).get("image", ""))
    # A file without a path is its digest.
    return picture_name(image) if "://" in image else ""


class NameCounter:
    """Finds the names that are unique in a list, in 8 bytes per row: a list may have millions.

    In an extremely rare case, a unique name counts as repeated.
    """

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]

    def add(self, name: str) -> None:
        """Add the name of a row; an empty one is none."""
        if name:
            digest = _hash(name)
            self._buckets[digest % _BUCKETS].append(digest)

    def unique(self) -> UniqueNames:
        """Return the names that were added once, and forget all of them."""
        repeated: list[int] = []
        for place, bucket in enumerate(self._buckets):
            digests = sorted(bucket)
            repeated += {one for one, other in pairwise(digests) if one == other}
            self._buckets[place] = array("q")
        return UniqueNames(repeated)


class UniqueNames:
    """Names that only one row of a list has. Of a name that no row has, it says the same.

    Args:
        repeated: Hashes of the others.
    """

    def __init__(self, repeated: Iterable[int] = ()) -> None:
        self._repeated = array("q", sorted(repeated))

    def __contains__(self, name: str) -> bool:
        if not name:
            return False
        digest = _hash(name)
        place = bisect_left(self._repeated, digest)
        return place == len(self._repeated) or self._repeated[place] != digest


def _hash(name: str) -> int:
    """Return the hash of a name as case-insensitive file systems compare it."""
    return hash(name.casefold() if name.isascii() else unicodedata.normalize("NFC", name).casefold())

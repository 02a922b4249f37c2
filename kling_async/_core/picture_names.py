"""Names of pictures: jobs without a key are called after them."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

MAX_NAME_BYTES = 200
"""Most bytes of a name in UTF-8; a longer one, such as that of a generated URL, tells nobody anything."""
_URL_NAME = re.compile(r"[^/]*//[^/?#]*/(?:[^?#]*/)?([^/?#]*)")


def picture_name(image: object) -> str | None:
    """Return the name of a picture without its suffix; None for one without a name.

    Args:
        image: The picture: a URL, a `Path`, or the path of a file as text.
    """
    if isinstance(image, Path):
        name = image.name
    elif not isinstance(image, str) or image.startswith("data:"):
        return None
    elif "://" in image:
        match = _URL_NAME.match(image)
        if match is None:
            return None
        name = unquote(match[1]) if "%" in image else match[1]
    else:
        name = image.replace("\\", "/").rpartition("/")[2]
    name = (name.rpartition(".")[0] or name).strip()
    if not name.isascii():
        # Systems write accents as one character or as two, and the name is the same.
        name = unicodedata.normalize("NFC", name)
    # Keys have neither NUL characters nor lone surrogates, which are not printable.
    if not name or not name.isprintable() or "/" in name or len(name.encode()) > MAX_NAME_BYTES:
        return None
    return name


def folded(name: str) -> str:
    """Return a name as case-insensitive file systems compare it."""
    return name.casefold() if name.isascii() else unicodedata.normalize("NFC", name).casefold()

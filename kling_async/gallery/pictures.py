"""Input images as a page can show them: small copies by Pillow where it is installed, else the images themselves."""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from kling_async._core.images import image_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.images import Image

    from .cards import Picture

_SIDE: Final = 480
"""Pixels of the longer side of a small copy: sharp on a dense screen, and some 20 KB."""
_REMEMBERED: Final = 10_000
"""Files whose small copies are known without reading them again."""
_MAX_BYTES: Final = 32 * 2**20
_MAX_PIXELS: Final = 100_000_000
_SUFFIXES: Final = {"image/jpeg": ".jpg", "image/png": ".png"}


class Pictures:
    """Finds and makes the files of input images. Its methods block: they belong into a worker thread.

    Args:
        folder: The gallery's folder. Small copies go to `posters/` in it, and to `images/` what came as bytes. Both are
            named by their content, so that many jobs of one image share them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._posters: dict[Path, Path | None] = {}
        self._makes_posters = importlib.util.find_spec("PIL") is not None

    def settle(self, picture: Picture) -> None:
        """Give a picture its name and its files. What cannot be read is left without; it is only a picture."""
        given, picture.given = picture.given, None
        if given is None:
            return
        picture.said = said(given)
        try:
            picture.path = self._file(given)
            if picture.path is not None:
                picture.poster = self._poster(picture.path)
        except (OSError, ValueError):
            return

    def _file(self, given: Image) -> Path | None:
        if isinstance(given, Path):
            path = given.absolute()
            return path if path.is_file() else None
        content = given if isinstance(given, bytes) else _inline(given)
        if content is None:
            return None
        suffix = _SUFFIXES.get(image_type(content) or "")
        return None if suffix is None else self._written("images", content, suffix, bytes)

    def _poster(self, path: Path) -> Path | None:
        if not self._makes_posters:
            return None
        if path not in self._posters:
            if len(self._posters) >= _REMEMBERED:
                self._posters.clear()
            self._posters[path] = self._small_copy(path) if path.stat().st_size <= _MAX_BYTES else None
        return self._posters[path]

    def _small_copy(self, path: Path) -> Path | None:
        content = path.read_bytes()
        return self._written("posters", content, ".webp", _small)

    def _written(self, where: str, source: bytes, suffix: str, make: Callable[[bytes], bytes | None]) -> Path | None:
        """The file of what is made of an image, made when it is not there."""
        path = self._folder / where / (hashlib.sha256(source).hexdigest()[:24] + suffix)
        if not path.exists():
            content = make(source)
            if content is None:
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.replace(path)
        return path


def said(image: Image) -> str:
    """What an image is called: a file's name, or a URL without its query, which may be a signature."""
    if isinstance(image, Path):
        return image.name
    if isinstance(image, bytes) or image.startswith("data:"):
        return ""
    parts = urlsplit(image)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _inline(url: str) -> bytes | None:
    """The content of a `data:` URI, or None."""
    head, _, data = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64")):
        return None
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return None


def _small(content: bytes) -> bytes | None:
    """A small WebP of an image, upright and without its metadata; None of what Pillow cannot or should not decode."""
    from PIL import Image as Pillow  # noqa: PLC0415 -- not everybody has it
    from PIL import ImageOps  # noqa: PLC0415 -- the same

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is too large it warns; that is decided here
            image = Pillow.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
            if image.width * image.height > _MAX_PIXELS:
                return None
            # A JPEG can be decoded at a half or a quarter of its size for much less than the whole costs.
            image.draft("RGB", (_SIDE, _SIDE))
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in {"RGB", "RGBA"}:
                upright = upright.convert("RGBA" if "transparency" in upright.info or "A" in upright.mode else "RGB")
            upright.thumbnail((_SIDE, _SIDE))
            out = io.BytesIO()
            upright.save(out, "WEBP", quality=78, method=2, exif=b"", icc_profile=upright.info.get("icc_profile"))
    except Exception:  # noqa: BLE001 -- hostile files make decoders raise anything
        return None
    return out.getvalue()

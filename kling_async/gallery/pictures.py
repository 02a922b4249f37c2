"""Files of input images for the page; small copies if Pillow is installed."""

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
from kling_async._core.picture_facts import HEAD_BYTES, media_type
from kling_async._files import FOR_ALL, make_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.images import Image

    from .cards import Picture

_POSTER_PIXELS: Final = 480
"""Longer side of a small copy: sharp on a dense screen at about 20 KB."""
_MAX_CACHED_POSTERS: Final = 10_000
_MAX_IMAGE_BYTES: Final = 32 * 2**20
_MAX_JPEG_PIXELS: Final = 100_000_000
_MAX_IMAGE_PIXELS: Final = 25_000_000
"""Decoded whole, with two copies, this takes 300 MB; a JPEG is decoded at the size of its poster."""
_HEIC: Final = "image/heic"
_SUFFIXES: Final = {"image/jpeg": ".jpg", "image/png": ".png"}


class Pictures:
    """Finds and makes files of input images. The methods block, so they belong in a worker thread.

    Args:
        folder: Folder of the gallery. Small copies are written to `posters/`, image bytes to `images/`. The names are
            hashes of the content, so that jobs with the same image share a file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._posters: dict[Path, Path | None] = {}
        self._not_shown: set[Path] = set()
        self._makes_posters = importlib.util.find_spec("PIL") is not None

    def make_files(self, picture: Picture) -> None:
        """Set label and files of a picture. An unreadable image gets no files and raises nothing."""
        source, picture.source = picture.source, None
        if source is None:
            return
        try:
            picture.label = label_of(source)
            picture.path = self._file(source)
            if picture.path is not None:
                picture.poster = self._poster(picture.path)
                if picture.path in self._not_shown:
                    picture.path = picture.poster
        except (OSError, ValueError):
            return

    def _file(self, source: Image) -> Path | None:
        if isinstance(source, Path):
            path = source.absolute()
            return path if path.is_file() else None
        content = source if isinstance(source, bytes) else _inline(source)
        if content is None:
            return None
        suffix = _SUFFIXES.get(image_type(content) or "")
        return None if suffix is None else self._written("images", content, suffix, bytes)

    def _poster(self, path: Path) -> Path | None:
        if not self._makes_posters:
            return None
        if path not in self._posters:
            if len(self._posters) >= _MAX_CACHED_POSTERS:
                self._posters.clear()
                self._not_shown.clear()
            self._posters[path] = self._small_copy(path) if path.stat().st_size <= _MAX_IMAGE_BYTES else None
        return self._posters[path]

    def _small_copy(self, path: Path) -> Path | None:
        content = path.read_bytes()
        if media_type(content[:HEAD_BYTES]) == _HEIC:
            # Few browsers show it.
            self._not_shown.add(path)
        return self._written("posters", content, ".webp", _small)

    def _written(self, where: str, source: bytes, suffix: str, make: Callable[[bytes], bytes | None]) -> Path | None:
        """Return the file made from an image; write it if it does not exist."""
        path = self._folder / where / (hashlib.sha256(source).hexdigest()[:24] + suffix)
        if not path.exists():
            content = make(source)
            if content is None:
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            make_part(part, mode=FOR_ALL)
            part.write_bytes(content)
            part.replace(path)
        return path


def label_of(image: Image) -> str:
    """Return the label of an image: the file's name, or the URL without its query, which may be a signature."""
    if isinstance(image, Path):
        return image.name
    if isinstance(image, bytes) or image.startswith("data:"):
        return ""
    parts = urlsplit(image)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _inline(url: str) -> bytes | None:
    """Return the content of a `data:` URI; None for other URLs."""
    head, _, data = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64")):
        return None
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return None


def _small(content: bytes) -> bytes | None:
    """Return a small upright WebP without metadata; None if the image is damaged or too large."""
    from PIL import Image as Pillow  # noqa: PLC0415 -- an extra
    from PIL import ImageOps  # noqa: PLC0415 -- see above

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the limit is below
            if media_type(content[:HEAD_BYTES]) == _HEIC:
                from kling_async._images.convert import open_heic  # noqa: PLC0415 -- see above

                image: Pillow.Image = open_heic(io.BytesIO(content))
            else:
                image = Pillow.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
            if image.width * image.height > (_MAX_JPEG_PIXELS if image.format == "JPEG" else _MAX_IMAGE_PIXELS):
                return None
            # Decoding a JPEG at a half or a quarter of its size is much faster.
            image.draft("RGB", (_POSTER_PIXELS, _POSTER_PIXELS))
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in {"RGB", "RGBA"}:
                upright = upright.convert("RGBA" if "transparency" in upright.info or "A" in upright.mode else "RGB")
            upright.thumbnail((_POSTER_PIXELS, _POSTER_PIXELS))
            out = io.BytesIO()
            upright.save(out, "WEBP", quality=78, method=2, exif=b"", icc_profile=upright.info.get("icc_profile"))
    except Exception:  # noqa: BLE001 -- hostile files make decoders raise anything
        return None
    return out.getvalue()

"""Decode images with Pillow (extra `images`): convert what a service would show otherwise, and find what is damaged."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, Final

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageColor,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from kling_async._core.media import ImageFacts
from kling_async._core.picture_facts import HEAD_BYTES, media_type
from kling_async._core.pixels import MAX_CONVERTED_SIDE_PX, as_shown, fitted, is_as_shown
from kling_async.errors import ConfigurationError

from .preflight import MAX_CONVERTED_PIXELS, MAX_DECODED_PIXELS, PHONE_TYPES, invalid, open_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL.ImageFile import ImageFile

_MANY_PIXELS: Final = 25_000_000
_SHRINKABLE_MODES: Final = frozenset({"RGB", "RGBA", "L", "LA", "CMYK"})
_MAX_OTHER_PIXELS: Final = 80_000_000
"""Greatest number of pixels of an image that cannot be made smaller before its copies are made."""
_FILES: Final[dict[str, Callable[[BinaryIO], ImageFile]]] = {
    "image/jpeg": JpegImagePlugin.JpegImageFile,
    "image/png": PngImagePlugin.PngImageFile,
    "image/webp": WebPImagePlugin.WebPImageFile,
    "image/gif": GifImagePlugin.GifImageFile,
    "image/bmp": BmpImagePlugin.BmpImageFile,
    "image/tiff": TiffImagePlugin.TiffImageFile,
    "image/avif": AvifImagePlugin.AvifImageFile,
}


def check_background(background: str) -> None:
    """Raise unless a colour is known.

    Raises:
        ConfigurationError: It is not.
    """
    try:
        ImageColor.getrgb(background)
    except ValueError:
        raise ConfigurationError(
            f'background: expected the name of a colour or "#rrggbb", got {background!r}'
        ) from None


def convert(content: bytes, *, field: str = "image", background: str = "white") -> bytes:
    """Return an image as a viewer shows it, in sRGB, as a JPEG of at most 10 MB, or a PNG where a JPEG would lose much.

    It is rotated as its EXIF data says, with transparency on a ground, and without a colour profile.

    An animation becomes its first frame. The image is made smaller only if it has too many bytes, or far more pixels
    than any video: a large JPEG while it is decoded, so that 200 million pixels take no more memory than 25 million.

    Args:
        content: The whole file, in a format that is converted.
        field: Name of the field in errors.
        background: Colour of the ground.

    Raises:
        InvalidJobError: It cannot be decoded to its end, has too many pixels, or has more than 10 MB at the least size
            that the service takes.
    """
    try:
        with _opened(io.BytesIO(content)) as image:
            # Decodes a large JPEG at a smaller size; other formats ignore it, or have a smaller copy.
            image.draft(None, (MAX_CONVERTED_SIDE_PX, MAX_CONVERTED_SIDE_PX))
            if image.width * image.height > _MANY_PIXELS and image.mode in _SHRINKABLE_MODES:
                # Before its copies are made: one whole takes up to 4 bytes a pixel.
                image.thumbnail((MAX_CONVERTED_SIDE_PX, MAX_CONVERTED_SIDE_PX), Image.Resampling.LANCZOS)
            return fitted(as_shown(image, background))
    except Exception as error:  # noqa: BLE001 -- hostile files let Pillow raise many kinds
        raise invalid(field, f"cannot be converted: {type(error).__name__}: {error}") from None


def needs_conversion(image: Path | bytes, *, field: str = "image") -> bool:
    """Return whether a viewer shows a JPEG or PNG otherwise than its plain pixels are, or it cannot be read.

    Args:
        image: The file, or its content.
        field: Name of the field in errors.

    Raises:
        InvalidJobError: It cannot be opened.
    """
    with open_image(image, field) as file:
        try:
            with _opened(file) as picture:
                return not is_as_shown(picture)
        except Exception:  # noqa: BLE001 -- hostile files let Pillow raise many kinds; its conversion says which
            return True


def verify(image: Path | bytes, *, field: str = "image") -> None:
    """Decode a JPEG or PNG to its end.

    A JPEG is decoded at an eighth of its size, in a third to a half of the time. Pillow shows bytes of a JPEG that
    decode to nonsense as noise or grey: these are not found.

    Args:
        image: The file, or its content.
        field: Name of the field in errors.

    Raises:
        InvalidJobError: It cannot be opened, or not be decoded to its end.
    """
    with open_image(image, field) as file:
        try:
            with _opened(file) as picture:
                picture.draft("L", (1, 1))
                picture.load()
        except Exception as error:  # noqa: BLE001 -- hostile files let Pillow raise many kinds
            message = f"is damaged: it cannot be decoded to its end ({type(error).__name__}: {error})"
            raise invalid(field, message) from None


def decoder_facts(file: BinaryIO, kind: str) -> ImageFacts | None:
    """Return the facts of an image that has to be converted, of this type; None if it cannot be opened."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with (open_heic if kind == "image/heic" else _FILES[kind])(file) as image:
            return ImageFacts(kind, image.width, image.height, size)
    except Exception:  # noqa: BLE001 -- hostile files let Pillow raise many kinds
        return None


def _opened(file: BinaryIO) -> ImageFile:
    """Open an image.

    Pillow's own `open` refuses more than 179 million pixels before it knows that they will not all be decoded.

    Raises:
        ValueError: It has another format, or too many pixels.
        SyntaxError: It is not what its first bytes say.
    """
    kind = media_type(file.read(HEAD_BYTES)) or ""
    file.seek(0)
    image = open_heic(file) if kind == "image/heic" else _FILES[kind](file)
    pixels = image.width * image.height
    # A progressive JPEG is kept whole while it is decoded.
    if kind in PHONE_TYPES and not image.info.get("progressive"):
        most = MAX_CONVERTED_PIXELS
    else:
        most = MAX_DECODED_PIXELS if image.mode in _SHRINKABLE_MODES else _MAX_OTHER_PIXELS
    if pixels > most:
        raise ValueError(f"expected at most {most // 10**6} million pixels, got {image.width}x{image.height}")
    return image


def open_heic(file: BinaryIO) -> ImageFile:
    """Open a HEIC picture.

    Raises:
        ImportError: pillow-heif is not installed.
    """
    from pillow_heif import HeifImageFile  # noqa: PLC0415 -- an extra of its own

    return HeifImageFile(file)  # type: ignore[no-untyped-call]  # has no types there
